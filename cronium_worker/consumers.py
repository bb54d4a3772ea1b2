"""Celery's consumer of messages, as far as ours differs. Celery imports this by the name in `worker_consumer`."""

from collections.abc import Callable
from functools import partial
from typing import Any

from celery.worker import state
from celery.worker.consumer import Consumer

_LONGEST_PAUSE_S = 4
_LOOK_EVERY_S = 0.1


class EagerConsumer(Consumer):
    """Is back within seconds of the broker's return: Celery's pauses between its tries grow to 30 s, and a minute
    of Redis's absence cost 15 s more."""

    def ensure_connected(self, conn: Any) -> Any:
        conn.ensure_connection = partial(conn.ensure_connection, interval_step=1, interval_max=_LONGEST_PAUSE_S)
        return super().ensure_connected(conn)


class SlotConsumer(EagerConsumer):
    """With RabbitMQ: stops consuming with the message that takes the last slot, and goes on when one is free.

    Celery keeps as many messages as it has slots behind the running ones, unacknowledged until a slot takes them:
    no other host can have them, and when the jobs before take longer than RabbitMQ's consumer_timeout (30
    minutes), it closes the channel and the node ends. Its `worker_disable_prefetch` is for Redis only.

    One message at a time: the next one is not delivered before this one has been acknowledged, and that is done
    in the event loop after the message's own turn, in which consuming has been stopped.
    """

    _look: Any = None

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.initial_prefetch_count = 1

    @property
    def max_prefetch_count(self) -> int:
        return 1

    def _update_prefetch_count(self, index: int = 0) -> None:
        """Whatever the size of the pool."""

    def create_task_handler(self, *args: Any, **options: Any) -> Callable[[Any], None]:
        handle = super().create_task_handler(*args, **options)
        if self._look is not None:  # a reconnect, after which Celery consumes by itself
            self._look.cancel()
            self._look = None

        def on_message(message: Any) -> None:
            if self._slots_are_taken():  # RabbitMQ 4 counts for each queue: one more may be on its way
                message.requeue()
            else:
                handle(message)
            if self._slots_are_taken():
                self._pause()

        return on_message

    def _slots_are_taken(self) -> bool:
        return bool(len(state.reserved_requests) >= self.pool.num_processes)

    def _pause(self) -> None:
        self.task_consumer.cancel()
        if self._look is None:
            self._look = self.timer.call_repeatedly(_LOOK_EVERY_S, self._go_on)

    def _go_on(self) -> None:
        if self._look is None or self._slots_are_taken():
            return
        self._look.cancel()
        self._look = None
        self.task_consumer.consume()
