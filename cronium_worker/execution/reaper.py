"""What the engine is to do that no job waits for: sandboxes are destroyed behind the jobs' back."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

# A job's result goes first, and in the time of a short one there is nothing else for the engine to do.
_AFTER_S = 0.05
# The engine gains nothing from more removals at once.
_AT_ONCE = 4
_WAITING = 16


class Reaper:
    """Safe for threads. What it has not done when the worker dies is done by the next one, or by the janitor.
    `pending`: how many it has still to destroy."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="reaper")
        self._lock = threading.Lock()
        self.pending = 0

    def destroy(self, destroy: Callable[[], None]) -> None:
        """Soon; and at once, in this thread, when many are waiting already: who makes more than the engine removes has
        to wait for it."""
        with self._lock:
            self.pending += 1
            crowded = self.pending > _WAITING
        if crowded or not self.soon(lambda: self._destroy(destroy)):
            self._destroy(destroy)

    def soon(self, action: Callable[[], None]) -> bool:
        """False: never, since this one is closed."""
        with suppress(RuntimeError):
            self._threads.submit(_later, action)
            return True
        return False

    def _destroy(self, destroy: Callable[[], None]) -> None:
        try:
            destroy()
        finally:
            with self._lock:
                self.pending -= 1

    def close(self) -> None:
        """Wait for what has been given to it."""
        self._threads.shutdown()


def _later(action: Callable[[], None]) -> None:
    time.sleep(_AFTER_S)
    action()
