"""Celery's consumer of messages, as far as ours differs. Celery imports this by the name in `worker_consumer`."""

import logging
from collections.abc import Callable
from functools import partial
from typing import Any

from celery.exceptions import NotRegistered
from celery.utils.objects import Bunch
from celery.worker import state
from celery.worker.consumer import Consumer
from kombu.exceptions import ContentDisallowed, DecodeError
from redis.exceptions import RedisError

from cronium_worker.envelope import MAX_MESSAGE_BYTES, UNREADABLE, task_defect
from cronium_worker.models.job import AGENT_NODE
from cronium_worker.models.queues import check_fleet_queue, is_destination
from cronium_worker.settings import get_settings

logger = logging.getLogger(__name__)

_LONGEST_PAUSE_S = 4
_LOOK_EVERY_S = 0.1
_SHOWN_CHARACTERS = 100


class EagerConsumer(Consumer):
    """Is back within seconds of the broker's return: Celery's pauses between its tries grow to 30 s, and a minute
    of Redis's absence cost 15 s more.

    A message that cannot be used is dropped, and told in the log once and without its content, which Celery would
    show: it may be somebody's script. There is no place for such messages: they would have to be guarded like jobs.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        """Raises ValueError for a queue that is not one of jobs, or not of this fleet."""
        super().__init__(*args, **options)
        for name in self.app.amqp.queues.consume_from:
            self._check_queue(name)

    def _check_queue(self, name: str) -> None:
        """Also of a worker that Celery's own command has started. The agent's are maintenance's."""
        if not (self.hostname.startswith(f"{AGENT_NODE}@") and is_destination(name)):
            check_fleet_queue(name, get_settings().queues)

    def add_task_queue(self, queue: str, *_: Any, **__: Any) -> None:
        """Also for the control command add_consumer, but without its exchange, which would name a key as well."""
        try:
            self._check_queue(queue)
        except ValueError as error:
            logger.error("queue not served: %s", error)  # noqa: TRY400 - no traceback: it is no fault of ours
            return
        super().add_task_queue(queue)

    def ensure_connected(self, conn: Any) -> Any:
        conn.ensure_connection = partial(conn.ensure_connection, interval_step=1, interval_max=_LONGEST_PAUSE_S)
        return super().ensure_connected(conn)

    def create_task_handler(self, *args: Any, **options: Any) -> Callable[[Any], None]:
        handle = super().create_task_handler(*args, **options)

        def on_message(message: Any) -> None:
            reason = _defect(message)
            try:
                if reason:
                    self._refuse(message, reason)
                else:
                    handle(message)
            except UNREADABLE as error:
                # A KeyError would be a lost connection to Celery: it would connect again, and put the message back
                # into its queue, for ever.
                self._refuse(message, f"not a task of Celery ({type(error).__name__})")

        return on_message

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        """Also of control commands."""
        self._refuse(message, _undecodable(message, exc))

    def on_unknown_message(self, body: Any, message: Any) -> None:
        self._refuse(message, "not a task of Celery")

    def on_invalid_task(self, body: Any, message: Any, exc: Exception) -> None:
        self._refuse(message, f"not a task of Celery ({type(exc).__name__})")

    def on_unknown_task(self, body: Any, message: Any, exc: Exception) -> None:
        """Whoever waits for the result hears of it, as from Celery."""
        headers = message.headers or {}
        name, task_id = headers.get("task"), headers.get("id")
        self._refuse(message, f"no such task: {_shown(name)}")
        if isinstance(name, str) and isinstance(task_id, str):
            request = Bunch(name=name, chord=None, root_id=None, correlation_id=None, reply_to=None, errbacks=None)
            try:
                self.app.backend.mark_as_failure(task_id, NotRegistered(name[:_SHOWN_CHARACTERS]), request=request)
            except RedisError:
                logger.warning("a result is not stored: Redis does not answer")

    def _refuse(self, message: Any, reason: str) -> None:
        queue = _shown((message.delivery_info or {}).get("routing_key"))
        logger.error("message refused: %s", reason, extra={"place": queue, "bytes": len(message.body or "")})
        if not message.acknowledged:
            message.reject_log_error(logger, self.connection_errors)


def _defect(message: Any) -> str:
    """Why a message must not be used; empty: it may be."""
    if len(message.body or "") > MAX_MESSAGE_BYTES:  # RabbitMQ's; what comes from Redis has been looked at
        return f"longer than {MAX_MESSAGE_BYTES} bytes"
    try:
        payload = message.payload
    except (ContentDisallowed, DecodeError, *UNREADABLE) as error:
        return _undecodable(message, error)
    return task_defect(message.headers, payload)


def _undecodable(message: Any, error: Exception) -> str:
    return f"content type {_shown(message.content_type)} ({type(error).__name__})"


def _shown(value: object) -> str:
    """What a stranger wrote: short, and nothing in it that could forge a line of the log."""
    return ascii(value)[:_SHOWN_CHARACTERS]


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
