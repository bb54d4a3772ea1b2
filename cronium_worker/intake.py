"""Whether a jobs node takes jobs: its queues, consumed or not."""

import logging
import threading
from collections.abc import Sequence
from typing import Any

logger = logging.getLogger(__name__)


class Intake:
    """Opens and closes a node's queues. `set` may be called from any thread, at any time.

    The selection of queues is what Celery consumes after a reconnect (Consumer.add_task_queue and
    cancel_task_queue change it, too); the running consumer is told in the event loop, its own thread.

    `is_open`: as it was set. Nothing is taken either while jobs wait for a place on this host: others may have one.
    """

    def __init__(self, worker: Any, queues: Sequence[str]) -> None:
        self._worker = worker
        self._queues = tuple(queues)
        self.is_open = True
        self._crowded = False
        self._lock = threading.Lock()

    def set(self, *, is_open: bool) -> bool:
        """True: that is a change."""
        with self._lock:
            if is_open == self.is_open:
                return False
            logger.info("taking jobs" if is_open else "taking no jobs")
            self.is_open = is_open
            self._select()
            return True

    def crowded(self, is_crowded: bool) -> None:
        """Whether jobs wait for a place."""
        with self._lock:
            self._crowded = is_crowded
            self._select()

    @property
    def takes(self) -> bool:
        return self.is_open and not self._crowded

    def _select(self) -> None:
        queues = self._worker.app.amqp.queues
        for name in self._queues:
            if self.takes:
                queues.select_add(queues[name])
            else:
                queues.deselect(name)
        # Not yet there while the node boots: then it starts with the selection.
        consumer = self._worker.consumer
        if consumer is not None and consumer.task_consumer is not None:
            consumer.call_soon(self._apply, consumer)

    def _apply(self, consumer: Any) -> None:
        for name in self._queues:
            if self.takes:
                consumer.add_task_queue(name)
            else:
                consumer.cancel_task_queue(name)
