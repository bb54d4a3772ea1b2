"""Where Celery keeps its copies of results: as Celery does it, but large ones are sent in pieces."""

from typing import Any

from celery.backends.redis import RedisBackend
from kombu.utils.json import dumps

from cronium_worker.fleet.store import in_pieces
from cronium_worker.models.result import with_ready_outputs

# ARGV: seconds to live (0: for ever), then the pieces.
_STORE = """
local value = table.concat(ARGV, '', 2)
if ARGV[1] == '0' then
  redis.call('SET', KEYS[1], value)
else
  redis.call('SETEX', KEYS[1], ARGV[1], value)
end
redis.call('PUBLISH', KEYS[1], value)
"""


class Results(RedisBackend):  # type: ignore[misc]
    """A Redis refuses a command with a value of more than its `proto-max-bulk-len`, and drops the connection: Celery
    would try again for ever. Put together in Redis a value may be larger."""

    def encode(self, data: Any) -> Any:
        # What `_set` is given are dictionaries: there ready outputs get their places. A chord's parts, lists, are not.
        if isinstance(data, dict) and not self.compression:
            return dumps(data)  # type: ignore[no-untyped-call]
        return super().encode(data)

    def _set(self, key: str, value: str | bytes, expires: Any = None) -> None:
        pieces = in_pieces(with_ready_outputs(value if isinstance(value, bytes) else value.encode()))
        if len(pieces) == 1:
            super()._set(key, pieces[0], expires)
        else:
            expires = self.expires if expires is None else expires
            self.client.eval(_STORE, 1, key, int(expires or 0), *pieces)
