"""Sandboxes are destroyed behind the jobs' back: nobody waits for the engine's removal of a container."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

# The engine gains nothing from more removals at once.
_AT_ONCE = 4
_WAITING = 16


class Reaper:
    """Safe for threads. What it has not done when the worker dies is done by the next one, or by the janitor."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="reaper")
        self._lock = threading.Lock()
        self.pending = 0

    def soon(self, destroy: Callable[[], None]) -> None:
        """At once, and in this thread, when many are waiting already: who makes more than the engine removes has to
        wait for it."""
        with self._lock:
            self.pending += 1
            crowded = self.pending > _WAITING
        try:
            if not crowded:
                self._threads.submit(self._destroy, destroy)
                return
        except RuntimeError:  # closed
            pass
        self._destroy(destroy)

    def _destroy(self, destroy: Callable[[], None]) -> None:
        try:
            destroy()
        finally:
            with self._lock:
                self.pending -= 1

    def close(self) -> None:
        """Wait for what has been given to it."""
        self._threads.shutdown()
