"""The end of a jobs node. Celery's own warm shutdown stops the event loop first: no ping is answered and no cancel
heard while jobs run on, and its end cannot be hurried. Here the loop goes on until no job is left."""

import logging
import os
import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from celery.worker import state as worker_state

from cronium_worker.execution.signals import ActiveJobs

logger = logging.getLogger(__name__)

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
_LOOK_EVERY_S = 0.05
# To write out what was read of the logs, and to end what was being set up.
_DETACH_TIMEOUT_S = 60


class Drain:
    """First signal: no more jobs, those that run may end within `timeout_s`; then, or with the second signal, they
    are left to the next worker of this host, their containers run on."""

    def __init__(self, worker: Any, active: ActiveJobs, *, timeout_s: float, close_intake: Callable[[], None]) -> None:
        self._worker = worker
        self._active = active
        self._timeout_s = timeout_s
        self._close_intake = close_intake
        self._hurry = threading.Event()
        self._started = threading.Lock()
        self._exit_code = 0

    def handle_signals(self) -> None:
        """In the place of Celery's handlers. In the main thread, when Celery has installed its own."""
        for number in _SIGNALS:
            signal.signal(number, self._on_signal)

    def give_up(self) -> None:
        """End now, with an exit code that says that something was wrong."""
        self._exit_code = 1
        self._hurry.set()
        # In case the event loop is what hangs.
        killer = threading.Timer(2 * _DETACH_TIMEOUT_S, os._exit, [self._exit_code])
        killer.daemon = True
        killer.start()
        self._start()

    def _on_signal(self, number: int, _: FrameType | None) -> None:
        if not self._start():
            self._hurry.set()

    def _start(self) -> bool:
        if not self._started.acquire(blocking=False):
            return False
        threading.Thread(target=self._run, name="drain", daemon=True).start()
        return True

    def _run(self) -> None:
        logger.info("stopping: waiting for %d jobs, at most %g s", len(self._active.ids()), self._timeout_s)
        self._close_intake()
        deadline = time.monotonic() + self._timeout_s
        while self._active.ids() and time.monotonic() < deadline and not self._hurry.is_set():
            self._hurry.wait(_LOOK_EVERY_S)
        left = self._active.ids()
        if left:
            logger.info("stopping: leaving %d jobs to the next worker", len(left))
        self._active.detach()  # also one that is being taken in this moment
        deadline = time.monotonic() + _DETACH_TIMEOUT_S
        while self._active.ids():
            if time.monotonic() >= deadline:
                # Redis does not answer. What the next worker needs is in the containers and the records already.
                logger.warning("stopping: %d jobs are left as they are", len(self._active.ids()))
                os._exit(self._exit_code)
            time.sleep(_LOOK_EVERY_S)
        worker_state.should_stop = self._exit_code  # the event loop looks at it after each turn:
        self._worker.consumer.call_soon(lambda: None)  # wakes it
