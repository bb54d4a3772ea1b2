"""Where Celery keeps its copies of results: as Celery does it, but large ones are sent in pieces."""

from typing import Any

from celery.backends.redis import RedisBackend

from cronium_worker.fleet.store import PIECE_BYTES, in_pieces

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

    def _set(self, key: str, value: str | bytes, expires: Any = None) -> None:
        if len(value) <= PIECE_BYTES:
            super()._set(key, value, expires)
        else:
            expires = self.expires if expires is None else expires
            self.client.eval(
                _STORE, 1, key, int(expires or 0), *in_pieces(value if isinstance(value, bytes) else value.encode())
            )
