"""Watch a running script: its output, its deadline, its cancel, its end. One thread, no polling."""

import selectors
import time
from dataclasses import dataclass, field
from typing import Literal

from cronium_worker.errors import DaemonError
from cronium_worker.execution.joblog import JobLog
from cronium_worker.execution.sandbox import CLEANUP_TIMEOUT_S, Sandbox
from cronium_worker.execution.signals import CancelToken, Wake
from cronium_worker.fleet.writer import LogWriter
from cronium_worker.models import Job, Metrics

Cause = Literal["timeout", "cancelled"]
MEASURE_EVERY_S = 0.5


@dataclass
class Watch:
    """What was seen of a run. `cause`: why the worker ended it; None: it ended by itself."""

    cause: Cause | None = None
    metrics: Metrics = field(default_factory=Metrics)
    oom_kills: int = 0


class Follower:
    """Follows one run to the end of its output. The log's own thread writes to Redis."""

    def __init__(
        self, sandbox: Sandbox, job: Job, *, log: JobLog, writer: LogWriter, token: CancelToken, wake: Wake
    ) -> None:
        self._sandbox = sandbox
        self._job = job
        self._log = log
        self._writer = writer
        self._token = token
        self._wake = wake
        self._watch = Watch()
        self._measure_at = 0.0
        self._kill_at: float | None = None
        self._give_up_at: float | None = None
        self._deadline = time.monotonic() + job.timeout

    def run(self) -> Watch:
        """Raises DaemonError when the container cannot be ended, and what the log's writer met."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake, selectors.EVENT_READ)
            if self._sandbox.end is not None:
                selector.register(self._sandbox.end, selectors.EVENT_READ)
            reading = False
            while not self._sandbox.stream.ended:
                if reading != self._writer.has_room():
                    reading = not reading
                    if reading:
                        selector.register(self._sandbox.stream, selectors.EVENT_READ)
                    else:
                        selector.unregister(self._sandbox.stream)
                self._step(selector)
                self._enforce(time.monotonic())
        if self._give_up_at is None:  # the end of the output was seen first
            self._measure()
        return self._watch

    def _step(self, selector: selectors.BaseSelector) -> None:
        due = [at for at in (self._deadline, self._kill_at, self._give_up_at) if at is not None]
        for key, _ in selector.select(max(0.0, min(due) - time.monotonic())):
            if key.fileobj is self._sandbox.stream:
                for stream, data in self._sandbox.stream.read():
                    self._log.feed(stream, data)
                if time.monotonic() >= self._measure_at:
                    # In case this thread comes too late for the counters at the end.
                    self._measure()
            elif key.fileobj is self._wake:
                self._wake.clear()
            else:
                selector.unregister(key.fileobj)
                self._ended()

    def _ended(self) -> None:
        """The first process is gone: the last moment at which the kernel still has the counters."""
        self._measure()
        self._deadline = float("inf")
        self._kill_at = None
        self._give_up_at = time.monotonic() + CLEANUP_TIMEOUT_S

    def _measure(self) -> None:
        metrics = self._sandbox.usage.read()
        self._measure_at = time.monotonic() + MEASURE_EVERY_S
        if metrics.cpu_seconds is not None:
            self._watch.metrics = metrics
            self._watch.oom_kills = self._sandbox.usage.oom_kills()

    def _enforce(self, now: float) -> None:
        if self._give_up_at is not None and now >= self._give_up_at:
            raise DaemonError("the container's output did not end after its processes", retryable=True)
        if self._watch.cause is None:
            if self._token.cancelled():
                self._terminate("cancelled", now)
            elif now >= self._deadline:
                self._terminate("timeout", now)
        if self._kill_at is not None and now >= self._kill_at:
            self._kill_at = None
            self._measure()  # the engine answers to a SIGKILL when all is gone, the counters too
            self._sandbox.signal("SIGKILL")
            self._give_up_at = now + CLEANUP_TIMEOUT_S

    def _terminate(self, cause: Cause, now: float) -> None:
        self._watch.cause = cause
        self._deadline = float("inf")
        if self._give_up_at is None:  # otherwise it has ended by itself just now
            self._sandbox.signal("SIGTERM")
            self._kill_at = now + self._job.grace_period
