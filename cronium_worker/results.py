"""Where Celery keeps its copies of results: as Celery does it, but large ones are sent in pieces."""

from typing import Any
from uuid import uuid4

from celery.backends.redis import RedisBackend, SentinelBackend
from kombu.utils.encoding import bytes_to_str
from kombu.utils.json import dumps
from redis.exceptions import ResponseError

from cronium_worker.fleet.pieces import in_pieces, set_pieces
from cronium_worker.fleet.store import UNFINISHED_S
from cronium_worker.models.result import with_ready_outputs

_JOIN = "redis.call('SET', KEYS[1], table.concat(ARGV))"
_PUBLISH = "return redis.call('PUBLISH', KEYS[1], redis.call('GET', KEYS[1]))"


class Results(RedisBackend):  # type: ignore[misc]
    """A Redis refuses a command with a value of more than its `proto-max-bulk-len`, and drops the connection: Celery
    would try again for ever. Put together in Redis a value may be larger."""

    def encode(self, data: Any) -> Any:
        # What `_set` is given are dictionaries: there ready outputs get their places. A chord's parts, lists, are not.
        if isinstance(data, dict) and not self.compression:
            return dumps(data)  # type: ignore[no-untyped-call]
        return super().encode(data)

    def _set(self, key: str | bytes, value: str | bytes, expires: Any = None) -> None:
        pieces = in_pieces(with_ready_outputs(value if isinstance(value, bytes) else value.encode()))
        if len(pieces) == 1:
            super()._set(key, pieces[0], expires)
            return
        expires = self.expires if expires is None else expires
        apart = f"{bytes_to_str(key)}.{uuid4().hex}"  # type: ignore[no-untyped-call]
        try:
            set_pieces(self.client, apart, pieces, into="string", ttl_s=int(expires or UNFINISHED_S))
        except ResponseError:  # larger than `proto-max-bulk-len`, which scripts need not heed
            self.client.eval(_JOIN, 1, apart, *pieces)
            self.client.expire(apart, int(expires or UNFINISHED_S))
        self.client.rename(apart, key)
        if not expires:
            self.client.persist(key)
        # Who subscribes later looks at the key after that.
        if any(count for _, count in self.client.pubsub_numsub(key)):
            self.client.eval(_PUBLISH, 1, key)


class SentinelResults(Results, SentinelBackend):  # type: ignore[misc]
    """The same behind Sentinel."""
