"""Celery's Redis transport, as far as ours differs: what a worker takes from Redis is looked at before it is used.

Kombu takes a message out of its queue and parses it in the event loop, where one whose nesting is too deep for the
parser, or that is no JSON at all, ends the worker; the next worker gets the next one. Here such a message is dropped,
and told in the log once, without its content: that may be anybody's script.
"""

import logging
from typing import Any

from kombu.transport import redis as kombu_redis
from redis import Redis
from redis.client import PubSub

from cronium_worker.envelope import message_defect

logger = logging.getLogger(__name__)


class _PubSub(PubSub):
    """Of control commands and events."""

    def parse_response(self, *args: Any, **options: Any) -> Any:
        reply = super().parse_response(*args, **options)  # type: ignore[no-untyped-call]
        # [type, pattern, channel, data]. Kombu leaves out what has no data.
        if isinstance(reply, list) and reply[0] in (b"message", b"pmessage") and _is_refused(reply[-1], reply[-2]):
            return [*reply[:-1], b""]
        return reply


class _Redis(Redis):
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


class Channel(kombu_redis.Channel):
    def _get_client(self) -> type[Redis]:
        super()._get_client()  # type: ignore[no-untyped-call]  # checks versions
        return _Redis


class Transport(kombu_redis.Transport):
    """To be named in the place of kombu's."""

    Channel = Channel
