"""Celery's Redis transport, as far as ours differs, for each connection of the application.

**What a message says of itself is not believed.** Kombu takes a message out of its queue and parses it in the event
loop, where one that is nested too deep for the parser, or is not JSON at all, ends the worker; the next worker gets the
next one. Here such a message is dropped, and told in the log once, without its content: that may be anybody's script.
Kombu also keeps a message under the tag that the message has, and gives it back to the queue that the message names:
here both are the transport's own.

**A key of another type ends no worker.** Kombu's bookkeeping and each queue are keys that anybody with access to Redis
can overwrite; Celery ends over a WRONGTYPE. Here a queue with such a key is left out while the other ones go on, and
nothing is taken while the bookkeeping is broken; both are looked at again every few seconds. `fleet.keys` tells which
key it is.
"""

import logging
from collections.abc import Iterable
from contextlib import suppress
from queue import Empty
from time import monotonic
from typing import Any
from uuid import uuid4

from kombu.transport import redis as kombu_redis
from kombu.transport import virtual
from redis import Redis
from redis.client import PubSub
from redis.exceptions import ResponseError

from cronium_worker.envelope import message_defect
from cronium_worker.fleet.keys import BOOKKEEPING, BrokenKey, NamingRedis, is_wrong_type, tell, told
from cronium_worker.models.queues import is_destination

logger = logging.getLogger(__name__)

_LOOK_AGAIN_S = 3.0  # at what is broken
_BOOKKEEPING_EVERY_S = 9.0


class _PubSub(PubSub):
    """Of control commands and events."""

    def parse_response(self, *args: Any, **options: Any) -> Any:
        reply = super().parse_response(*args, **options)  # type: ignore[no-untyped-call]
        # [type, pattern, channel, data]. Kombu leaves out what has no data.
        if isinstance(reply, list) and reply[0] in (b"message", b"pmessage") and _is_refused(reply[-1], reply[-2]):
            return [*reply[:-1], b""]
        return reply


class _Redis(NamingRedis):
    def pubsub(self, **options: Any) -> Any:
        return _PubSub(self.connection_pool, **options)

    def parse_response(self, connection: Any, command_name: Any, **options: Any) -> Any:
        reply = super().parse_response(connection, command_name, **options)  # type: ignore[no-untyped-call]
        # [list, message]. To kombu nothing means that its time to wait is over.
        if command_name == "BRPOP" and reply and _is_refused(reply[1], reply[0]):
            return None
        return reply


def _is_refused(raw: bytes, place: bytes) -> bool:
    reason = message_defect(raw)
    if reason:
        name = place.decode(errors="replace")
        logger.error("message refused: %s", reason, extra={"place": name, "bytes": len(raw)})
    return bool(reason)


class QoS(kombu_redis.QoS):
    """Kombu's bookkeeping of messages that are taken and not acknowledged. Broken keys are told by `fleet.keys`."""

    def append(self, message: Any, delivery_tag: str) -> None:
        """A message that cannot be noted goes back to where it came from."""
        try:
            super().append(message, delivery_tag)  # type: ignore[no-untyped-call]
        except BrokenKey:
            self.channel.put_back(message)
            self.channel.look(BOOKKEEPING)
            raise Empty from None

    def ack(self, delivery_tag: str) -> None:
        with suppress(BrokenKey):
            return super().ack(delivery_tag)  # type: ignore[no-untyped-call, no-any-return]
        return virtual.QoS.ack(self, delivery_tag)  # type: ignore[no-untyped-call, no-any-return]

    def reject(self, delivery_tag: str, requeue: bool = False) -> None:
        with suppress(BrokenKey):
            return super().reject(delivery_tag, requeue)  # type: ignore[no-untyped-call, no-any-return]
        return virtual.QoS.ack(self, delivery_tag)  # type: ignore[no-untyped-call, no-any-return]

    def restore_by_tag(self, tag: str, client: Any = None, leftmost: bool = False) -> None:
        try:
            super().restore_by_tag(tag, client, leftmost)  # type: ignore[no-untyped-call]
        except BrokenKey:
            if tag in self._delivered:
                self.channel.put_back(self._delivered[tag], leftmost=leftmost)

    def restore_visible(self, start: int = 0, num: int = 10, interval: int = 10) -> None:
        """Kombu calls this every ten seconds. The mutex alone would never say that it is broken."""
        if self.channel.is_broken():
            return
        with suppress(BrokenKey):
            super().restore_visible(start, num, interval)  # type: ignore[no-untyped-call]


class Channel(kombu_redis.Channel):
    QoS = QoS

    def __init__(self, *args: Any, **options: Any) -> None:
        self._broken: set[str] = set()  # keys of another type, as they were at the last look
        self._look_at = self._bookkeeping_at = float("-inf")
        super().__init__(*args, **options)  # type: ignore[no-untyped-call]

    def _get_client(self) -> type[Redis]:
        super()._get_client()  # type: ignore[no-untyped-call]  # checks versions
        return _Redis

    # ---- broken keys

    def look(self, keys: Iterable[str]) -> None:
        """Look at these keys, and at those that were broken."""
        wanted = {*keys, *self._broken}
        with self.conn_or_acquire() as client:
            found = tell(client, wanted)
        self._broken = {each.key for each in found}
        self._look_at = monotonic() + _LOOK_AGAIN_S

    def is_broken(self) -> bool:
        """Whether the bookkeeping is, or was in the last ten seconds: without an event loop kombu asks all the time."""
        if monotonic() - self._bookkeeping_at > _BOOKKEEPING_EVERY_S:
            self._bookkeeping_at = monotonic()
            with self.conn_or_acquire() as client:
                self.look([*BOOKKEEPING, *told(client)])
        return not self._broken.isdisjoint(BOOKKEEPING)

    def put_back(self, message: Any, *, leftmost: bool = False) -> None:
        """Have a message that was taken and not noted be the next one of its queue."""
        info = message.delivery_info
        with self.conn_or_acquire() as client, suppress(BrokenKey):
            self._do_restore_message(message._raw, info["exchange"], info["routing_key"], client, leftmost)

    def queue_keys(self, queue: str) -> list[str]:
        return [self._q_for_pri(queue, step) for step in self.priority_steps]  # type: ignore[no-untyped-call]

    def _brpop_start(self, timeout: float | None = None) -> None:
        if self._broken and monotonic() >= self._look_at:
            self.look(())
        if not self._broken:
            super()._brpop_start(timeout)  # type: ignore[no-untyped-call]
            return
        queues = self._queue_cycle.consume(len(self.active_queues))
        keys = [self._q_for_pri(queue, step) for step in self.priority_steps for queue in queues]  # type: ignore[no-untyped-call]
        keys = [key for key in keys if key not in self._broken]
        if not keys or not self._broken.isdisjoint(BOOKKEEPING):
            return  # kombu calls again at its next turn
        self._in_poll = self.client.connection
        self._brpop_sent_at = monotonic()  # type: ignore[assignment]
        self.client.connection.send_command("BRPOP", *keys, timeout or self.brpop_timeout or 0)

    def _brpop_read(self, **options: Any) -> Any:
        try:
            return super()._brpop_read(**options)  # type: ignore[no-untyped-call]
        except ResponseError as error:
            if not is_wrong_type(error):
                raise
        self.look([*BOOKKEEPING, *(key for queue in self.active_queues for key in self.queue_keys(queue))])
        raise Empty

    def _size(self, queue: str) -> int:
        with self.conn_or_acquire() as client, client.pipeline(transaction=False) as pipe:
            for key in self.queue_keys(queue):
                pipe.llen(key)
            return sum(size for size in pipe.execute(raise_on_error=False) if isinstance(size, int))

    def _queue_bind(self, *args: Any) -> None:
        """A queue is sent to by its name, and commands are published: neither needs the binding."""
        with suppress(BrokenKey):
            super()._queue_bind(*args)  # type: ignore[no-untyped-call]

    def get_table(self, exchange: str) -> list[Any]:
        with suppress(BrokenKey):
            return super().get_table(exchange)  # type: ignore[no-untyped-call, no-any-return]
        return []

    def maybe_refresh_binding_expiry(self) -> None:
        with suppress(BrokenKey):
            super().maybe_refresh_binding_expiry()  # type: ignore[no-untyped-call]

    def _delete(self, *args: Any, **options: Any) -> None:
        with suppress(BrokenKey):
            super()._delete(*args, **options)  # type: ignore[no-untyped-call]

    # ---- where messages go

    def _lookup(self, exchange: str, routing_key: str, default: str | None = None) -> list[str]:
        """Of all that is sent: also of replies to control commands, which go where the command says. Raises
        ValueError."""
        found: list[str] = super()._lookup(exchange, routing_key, default)  # type: ignore[no-untyped-call]
        for queue in found:
            if not is_destination(queue):
                raise ValueError(f"{ascii(queue)[:80]} is not a queue that a message may be sent to")
        return found

    def _do_restore_message(self, payload: Any, exchange: str, routing_key: str, *more: Any, **options: Any) -> None:
        """Kombu logs what it cannot restore, with its content."""
        try:
            self._lookup(exchange, routing_key)
        except ValueError as error:
            logger.error("message not restored: %s", error)  # noqa: TRY400 - no traceback: it is no fault of ours
            return
        super()._do_restore_message(payload, exchange, routing_key, *more, **options)  # type: ignore[no-untyped-call]


class Transport(kombu_redis.Transport):
    """To be named in the place of kombu's."""

    Channel = Channel

    def _deliver(self, message: Any, queue: str) -> None:
        set_origin(message, queue)
        super()._deliver(message, queue)  # type: ignore[no-untyped-call]


class SentinelChannel(Channel, kombu_redis.SentinelChannel):
    """Ours, with kombu's connections."""


class SentinelTransport(Transport):
    default_port = kombu_redis.SentinelTransport.default_port  # type: ignore[assignment]
    Channel = SentinelChannel


def set_origin(message: Any, queue: str) -> None:
    """Where the message came from, and a tag of our own: what it says itself of both is another's word."""
    properties = message["properties"]
    redelivered = properties["delivery_info"].get("redelivered") is True
    properties["delivery_info"] = {"exchange": "", "routing_key": queue} | (
        {"redelivered": True} if redelivered else {}
    )
    properties["delivery_tag"] = str(uuid4())
    if type(properties.get("priority")) is not int:
        properties["priority"] = 0
