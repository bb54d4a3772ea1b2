"""Cancels, as a worker hears them: at once by pub/sub, and by a look at the records in case a message got lost."""

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any

from redis.exceptions import RedisError

from cronium_worker.fleet.keys import BrokenKey
from cronium_worker.fleet.store import JobStore

logger = logging.getLogger(__name__)

LOOK_EVERY_S = 2.0


class CancelListener:
    """A thread that calls `cancel(job_id)` for each of this worker's jobs that is to end."""

    def __init__(self, store: JobStore, *, active: Callable[[], Sequence[str]], cancel: Callable[[str], None]) -> None:
        self._store = store
        self._active = active
        self._cancel = cancel
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="cancels", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Nothing is cancelled from now on. The thread, which waits for Redis, ends within LOOK_EVERY_S."""
        self._stopped.set()

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                with self._store.cancels() as pubsub:
                    self._listen(pubsub)
            except (RedisError, OSError) as error:
                if not isinstance(error, BrokenKey):  # of that the log says more
                    logger.warning("no cancels are heard: Redis does not answer")
                self._stopped.wait(LOOK_EVERY_S)

    def _listen(self, pubsub: Any) -> None:
        while True:
            message = pubsub.get_message(timeout=LOOK_EVERY_S)
            if self._stopped.is_set():
                return
            if message is not None:
                self._cancel(message["data"])
                continue
            active = self._active()
            if active:
                for job_id in self._store.cancel_requested(active):
                    self._cancel(job_id)
