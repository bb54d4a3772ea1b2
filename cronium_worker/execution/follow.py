"""Watch a running script: its output, its deadline, its cancel, its end. One thread, no polling."""

import logging
import select
import selectors
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from cronium_worker.engine.client import ContainerState, ended_with
from cronium_worker.engine.logs import AttachedStream, StoredLog
from cronium_worker.errors import ContainerGone, DaemonError, Detached
from cronium_worker.execution.diskuse import DiskUse, Excess
from cronium_worker.execution.endmarks import EndMarks
from cronium_worker.execution.joblog import JobLog
from cronium_worker.execution.sampling import Sampler
from cronium_worker.execution.sandbox import CLEANUP_TIMEOUT_S, Sandbox
from cronium_worker.execution.signals import CancelToken, Wake
from cronium_worker.fleet.events import metrics_body
from cronium_worker.fleet.writer import LogWriter
from cronium_worker.models import Job, Metrics, Stream

logger = logging.getLogger(__name__)

Cause = Literal["timeout", "cancelled", "disk"]
# How long the engine may be away while a job runs, and once the worker itself has ended the job.
PATIENCE_S = 120
PATIENCE_AT_END_S = 30
_WAIT_S = 30
_WAIT_UNSEEN_S = 2  # where the end is not seen, the output may just have broken off
# After the end of the processes their output ends within some 30 ms, unless the engine is in trouble.
_STALL_S = 10
_SOON_S = 1.0
_SAME_MOMENT_S = 0.02
_NEARLY_OVER_S = 5  # a worker that is to leave waits that long for the end of a run that is over
_SIGNAL_AGAIN_S = 5
_TRIES = 5
# While a script prints a lot, its output is let gather: a turn costs the same for the engine's 8 kB as for 100.
_MUCH_BYTES = 4 * 1024
_GATHER_S = 0.001
_PAUSES_S = (0.1, 2.0)  # between questions to an engine that does not answer: the first, the longest
_UNKNOWN_EXIT = 255
SIGKILL_EXIT = 137


class _Lost(DaemonError):
    """The engine has answered: what the container did is not known."""


@dataclass
class Watch:
    """What was seen of a run. `cause`: why the worker ended it; None: it ended by itself. `excess`: what it took of
    the disk, when that was why. `state`: the last word of the engine or the launcher; None: there was none to be had
    on a run that the worker has ended."""

    cause: Cause | None = None
    excess: Excess | None = None
    metrics: Metrics = field(default_factory=Metrics)
    oom_kills: int = 0
    state: ContainerState | None = None


class Follower:
    """Follows one run to the end of its output and of its container. The log's own thread writes to Redis.

    The end of the output is not the end of the run: unless the first process was seen to end, the engine is asked,
    for as long as it takes, and the stored log is read on from where the stream broke off.
    """

    def __init__(
        self,
        sandbox: Sandbox,
        job: Job,
        *,
        log: JobLog,
        writer: LogWriter,
        token: CancelToken,
        disk: DiskUse,
        wake: Wake,
    ) -> None:
        self._sandbox = sandbox
        self._job = job
        self._log = log
        self._writer = writer
        self._token = token
        self._disk = disk
        self._wake = wake
        self._watch = Watch()
        self._marks = EndMarks(sandbox.end_mark.encode())
        self._selector = selectors.DefaultSelector()
        self._usage = Sampler(sandbox.usage, every_s=sandbox.host.settings.metrics_interval)
        self._kill_at: float | None = None
        self._give_up_at: float | None = None
        self._stall_at: float | None = None
        self._took_at = 0.0
        self._listen_at: float | None = None  # while more is to gather
        self._over_at: float | None = None  # when the end of the processes was seen
        self._deadline = time.monotonic() + job.timeout - sandbox.gate.open_for_s()
        self._attached = sandbox.left is None
        self._said: tuple[int, bool] | None = None  # the launcher, with its end marks
        self._ended: ContainerState | None = None  # as the engine says, checked
        self._resumed_at, self._resumed_s = -1, 0.0  # the log's position and the time
        self._tries = 0  # to read on, without a byte that was not known

    def run(self) -> Watch:
        """Raises DaemonError when the container cannot be ended, was lost or removed, or the engine stays away;
        Detached when the worker is to leave it; and what the log's writer met."""
        with self._selector:
            self._selector.register(self._wake, selectors.EVENT_READ)
            for descriptor in (self._sandbox.end, self._sandbox.gate.ending):
                if descriptor is not None and descriptor >= 0:
                    self._selector.register(descriptor, selectors.EVENT_READ)
            if self._sandbox.stream is not None:
                self._read(self._sandbox.stream)
            while not self._complete() and (stream := self._read_on()) is not None:
                self._read(stream)
        for name, rest in self._marks.rest():
            self._log.feed(name, rest)
        if self._over_at is None:  # the end of the output was seen first
            self._usage.look(at_end=True)
        self._watch.metrics, self._watch.oom_kills = self._usage.metrics, self._usage.oom_kills
        return self._watch

    # ---- the run

    def _read(self, stream: AttachedStream) -> None:
        """To the end of the stream, or until it is silent for too long after the end of the processes."""
        reading = False
        try:
            while not stream.ended and self._marked_exit() is None:
                if reading != self._wants_more():
                    reading = not reading
                    if reading:
                        self._selector.register(stream, selectors.EVENT_READ)
                    else:
                        self._selector.unregister(stream)
                        self._stall_at = None  # nobody listens
                if reading and self._over_at is not None and self._stall_at is None:
                    self._stall_at = time.monotonic() + _STALL_S
                self._step()
                if self._stall_at is not None and time.monotonic() >= self._stall_at:
                    break
        finally:
            self._stall_at = None
            if reading:
                self._selector.unregister(stream)

    def _wants_more(self) -> bool:
        return self._listen_at is None and self._writer.has_room()

    def _step(self, timeout_s: float = float("inf")) -> None:
        """Wait for whatever comes first, and see to it."""
        now = time.monotonic()
        watched = (self._deadline, self._kill_at, self._give_up_at, self._stall_at, self._leave_at(), self._listen_at)
        times = (*watched, self._usage.due_s, now + timeout_s)
        due = min(at for at in times if at is not None)
        for key, _ in self._selector.select(None if due == float("inf") else max(0.0, due - now)):
            if isinstance(key.fileobj, AttachedStream):
                self._take(key.fileobj.read())
            elif key.fileobj is self._wake:
                self._wake.clear()
            elif key.fileobj == self._sandbox.gate.ending:
                self._ending()
            else:
                self._over()
        now = time.monotonic()
        if self._listen_at is not None and now >= self._listen_at:
            self._listen_at = None
        if now >= self._usage.due_s:
            self._writer.put_sample(metrics_body(self._usage.sample()))
        self._enforce(now)

    def _take(self, output: list[tuple[Stream, bytes]]) -> None:
        for stream, data in output:
            self._log.feed(stream, self._marks.feed(stream, data))
        self._stall_at = None
        if self._over_at is None:
            self._usage.look_sometimes()
        now = time.monotonic()
        if sum(len(data) for _, data in output) >= _MUCH_BYTES and now - self._took_at < _GATHER_S:
            self._listen_at = now + _GATHER_S
        self._took_at = now

    def _ending(self) -> None:
        """The script has ended, and its launcher waits."""
        self._selector.unregister(self._sandbox.gate.ending)
        self._usage.look(at_end=True)
        self._said = self._sandbox.gate.said()
        self._sandbox.gate.let_end()

    def _over(self) -> None:
        """The first process is gone: the last moment at which the kernel still has the counters."""
        if self._over_at is None:
            self._usage.look(at_end=True)
            self._over_at = time.monotonic()
            self._deadline = self._usage.due_s = float("inf")
            self._kill_at = self._give_up_at = None
            if self._sandbox.end is not None:
                self._selector.unregister(self._sandbox.end)

    def _enforce(self, now: float) -> None:
        if (leave_at := self._leave_at()) is not None and now >= leave_at:
            raise Detached(container_left=True)
        if self._give_up_at is not None and now >= self._give_up_at:
            raise DaemonError("the container's processes did not end when they were killed", retryable=True)
        if self._watch.cause is None:
            if self._token.cancelled():
                self._terminate("cancelled")
            elif now >= self._deadline:
                self._terminate("timeout")
            elif self._disk.excess is not None:
                self._watch.excess = self._disk.excess
                self._terminate("disk")
        if self._kill_at is not None and (now >= self._kill_at or self._grace_is_over()):
            self._kill()

    def _grace_is_over(self) -> bool:
        """Whether the job goes on filling the disk; not while a SIGKILL waits to be sent again."""
        return self._give_up_at is None and self._disk.excess is not None and self._disk.excess.at_once

    def _leave_at(self) -> float | None:
        """When to leave the run to the next worker; one that is over is finished, if that does not take long."""
        if not self._token.detached():
            return None
        return 0.0 if self._over_at is None else self._over_at + _NEARLY_OVER_S

    def _terminate(self, cause: Cause) -> None:
        self._watch.cause = cause
        self._deadline = float("inf")
        if self._over_at is None:  # otherwise it has ended by itself just now
            self._signal(self._sandbox.terminate)
            self._kill_at = time.monotonic() + self._job.grace_period

    def _kill(self) -> None:
        self._usage.look(at_end=True)  # the engine answers to a SIGKILL when all is gone, the counters too
        sent = self._signal(self._sandbox.kill)
        now = time.monotonic()
        self._kill_at = None if sent else now + _SIGNAL_AGAIN_S
        self._give_up_at = self._give_up_at or now + CLEANUP_TIMEOUT_S

    def _signal(self, send: Callable[[], None]) -> bool:
        try:
            send()
        except DaemonError as fault:
            logger.warning("no signal sent: %s", str(fault), extra={"container": self._sandbox.container_id})
            return False
        return True

    # ---- the end

    def _marked_exit(self) -> int | None:
        """The exit code of a script whose container is gone, and so is all output: the engine needs some 30 ms more to
        say so, beside others' starts and ends up to 300, and there is nothing else that it could say. None: it has to
        be asked; also what a SIGKILL was for, and when something told the script to end that was not the worker: an
        engine that stops does."""
        if self._said is None or not (self._attached and self._over_at is not None and self._marks.seen):
            return None
        code, was_told = self._said
        if code == SIGKILL_EXIT or (was_told and self._watch.cause is None):
            return None
        return code

    def _complete(self) -> bool:
        """Whether all output has been read of a container that has ended. Then the engine has said so, or the
        launcher."""
        if (code := self._marked_exit()) is not None:
            self._watch.state = ended_with(code)
            return True
        stream = self._sandbox.stream
        if stream is None or not stream.ended or (isinstance(stream, StoredLog) and not stream.whole):
            return False
        if self._ended is not None:
            self._log.source_ended()
            return True
        if not self._ends():
            return False
        # A log that is followed ends with the container, and before what the engine had kept of an unfinished line
        # (measured): it is read once more, unless nothing of it could be shown.
        self._resumed_at = -1
        return self._attached or self._log.truncated

    def _ends(self) -> bool:
        """After the end of the output: whether the container has ended as well."""
        if self._over_at is None and self._sandbox.end is not None:
            # At the same moment. If it takes longer, the stream was the engine's: it may have gone away, and a new one
            # may be about to end the container (90 ms after a SIGKILL, measured).
            ready, _, _ = select.select([self._sandbox.end], [], [], _SAME_MOMENT_S)
            if not ready:
                return False
            self._over()
        try:
            state = self._sandbox.wait(timeout_s=_WAIT_UNSEEN_S if self._sandbox.end is None else _WAIT_S)
        except ContainerGone:
            raise
        except DaemonError:
            return False
        if self._attached and (self._over_at is None or time.monotonic() - self._over_at < _SOON_S):
            self._watch.state = state
            return not state.running
        # There was time for the engine to be started anew: it has to be asked for that as well.
        answer = self._ask()
        return answer is not None and not answer.running

    def _read_on(self) -> StoredLog | None:
        """The stored log, to continue with. None: there is no more to be had of it."""
        self._attached = False
        in_vain = self._log.position == self._resumed_at and time.monotonic() - self._resumed_s < _STALL_S
        self._tries = self._tries + 1 if in_vain else 1
        while True:
            if self._tries > 1:
                self._pause(_SOON_S)
            state = self._ask()
            if state is None:
                self._log.lost("the Docker Engine was away when the container ended")
                return None
            if self._tries <= _TRIES:
                try:
                    stream = self._sandbox.read_stored(follow=state.running)
                except ContainerGone:
                    raise
                except DaemonError:
                    self._tries += 1
                    continue
                self._marks.forget()
                self._log.rewind()
                self._resumed_at, self._resumed_s = self._log.position, time.monotonic()
                return stream
            self._log.lost("the stored log cannot be read")
            if not state.running:
                return None

    def _ask(self) -> ContainerState | None:
        """How the container is, from an engine that may be away, frozen or starting. None: it stays away, and the
        worker itself has ended the run.

        Raises ContainerGone; DaemonError when the engine stays away, or was away and the container ended with it.
        """
        began, pause_s = time.monotonic(), _PAUSES_S[0]
        while True:
            try:
                return self._answer()
            except (ContainerGone, _Lost):
                raise
            except DaemonError as fault:
                silent_s = time.monotonic() - began
                by_worker = self._over_at is not None and self._watch.cause is not None
                if silent_s >= PATIENCE_AT_END_S and by_worker:
                    return None
                if silent_s >= PATIENCE_S:
                    self._signal(self._sandbox.kill)  # nobody would know of it
                    raise DaemonError(f"the Docker Engine did not answer for {PATIENCE_S} s", retryable=True) from fault
            self._pause(pause_s)
            pause_s = min(2 * pause_s, _PAUSES_S[1])

    def _answer(self) -> ContainerState:
        state, history = self._sandbox.state(), self._sandbox.history()
        if history.restarted:
            # What it had read of an unfinished line is in nobody's memory now.
            self._log.lost("the Docker Engine was restarted")
        if not state.running:
            self._over()
            if self._watch.cause is None and history.restarted:
                _raise_if_lost(state, live_restore=history.live_restore)
            self._ended = state
        self._watch.state = state
        return state

    def _pause(self, seconds: float) -> None:
        """Or until the end of the processes is seen."""
        until, over = time.monotonic() + seconds, self._over_at
        while (left_s := until - time.monotonic()) > 0 and self._over_at == over:
            self._step(left_s)


def _raise_if_lost(state: ContainerState, *, live_restore: bool) -> None:
    """Raises _Lost when an engine that was started anew has ended the container, or cannot say how it ended."""
    if not live_restore:
        raise _Lost("the Docker Engine was restarted, and the container ended with it", retryable=True)
    if state.exit_code == _UNKNOWN_EXIT:
        raise _Lost("the container ended while the Docker Engine was away", retryable=True)
