"""A node's regular word to the fleet, in a thread of its own."""

import logging
import threading
from collections.abc import Callable
from contextlib import suppress

from redis.exceptions import RedisError

from cronium_worker.fleet.keys import BrokenKey

logger = logging.getLogger(__name__)


class Heartbeat:
    """Calls `beat` every `every_s` seconds and at once when asked. A beat that fails is left out."""

    def __init__(self, beat: Callable[[], None], *, every_s: float) -> None:
        self._beat = beat
        self._every_s = every_s
        self._due = threading.Event()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)

    def start(self) -> None:
        """The first beat is made before this returns, and its errors are raised, but for that of a broken key."""
        with suppress(BrokenKey):
            self._beat()
        self._thread.start()

    def soon(self) -> None:
        """Beat now; safe from any thread, does not wait."""
        self._due.set()

    def stop(self) -> None:
        """Ends after the beat that is under way."""
        self._stopped = True
        self._due.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while True:
            self._due.wait(self._every_s)
            self._due.clear()
            if self._stopped:
                return
            try:
                self._beat()
            except BrokenKey:
                continue  # the log says which
            except (RedisError, OSError):
                logger.warning("no heartbeat: Redis does not answer")
            except Exception:
                logger.exception("no heartbeat")  # the next one may do; a silent host counts as gone
