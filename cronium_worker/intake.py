"""Whether a jobs node takes jobs: its queues, consumed or not."""

import logging
from collections.abc import Sequence
from typing import Any

logger = logging.getLogger(__name__)


class Intake:
    """Opens and closes a node's queues. `set` may be called from any thread, at any time.

    The selection of queues is what Celery consumes after a reconnect (Consumer.add_task_queue and
    cancel_task_queue change it, too); the running consumer is told in the event loop, its own thread.
    """

    def __init__(self, worker: Any, queues: Sequence[str]) -> None:
        self._worker = worker
        self._queues = tuple(queues)
        self.is_open = True

    def set(self, *, is_open: bool) -> bool:
        """True: that is a change."""
        if is_open == self.is_open:
            return False
        self.is_open = is_open
        logger.info("taking jobs" if is_open else "taking no jobs")
        queues = self._worker.app.amqp.queues
        for name in self._queues:
            if is_open:
                queues.select_add(queues[name])
            else:
                queues.deselect(name)
        # Not yet there while the node boots: then it starts with the selection.
        consumer = self._worker.consumer
        if consumer is not None and consumer.task_consumer is not None:
            consumer.call_soon(self._apply, consumer)
        return True

    def _apply(self, consumer: Any) -> None:
        for name in self._queues:
            if self.is_open:
                consumer.add_task_queue(name)
            else:
                consumer.cancel_task_queue(name)
