"""Large values in Redis, written in pieces: no argument of a command may be larger than `proto-max-bulk-len`."""

import threading
import time
from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any, Literal, cast

from redis import Redis
from redis.client import NEVER_DECODE

from cronium_worker.models.result import Pieces

PIECE_BYTES = 512 * 1024  # `proto-max-bulk-len` is 1 MB at least
# A process writes at most 32 MiB/s: what else asks Redis, or needs its processor, does so meanwhile.
_PAUSE_S = 0.015
_turn = threading.Lock()
_READ_COUNT = 4
# For a list and for a string: how to add a piece, and to count what is there.
_COMMANDS = {"list": ("RPUSH", "LLEN"), "string": ("APPEND", "STRLEN")}
# Adds the piece where it belongs, and there alone: it may be sent again, also to a primary that has fewer.
_ADD = """
if redis.call(ARGV[2], KEYS[1]) == tonumber(ARGV[3]) then redis.call(ARGV[1], KEYS[1], ARGV[4]) end
redis.call('EXPIRE', KEYS[1], ARGV[5])
return redis.call(ARGV[2], KEYS[1])
"""


def in_pieces(text: Pieces) -> list[bytes]:
    """The same in pieces that a command can carry."""
    return [bytes(memoryview(each)[at : at + PIECE_BYTES]) for each in text for at in range(0, len(each), PIECE_BYTES)]


def set_pieces(
    redis: "Redis", key: str, pieces: Sequence[bytes], *, into: Literal["list", "string"], ttl_s: int
) -> None:
    """Make a new key of pieces, without haste, each added by a command of its own: a script that puts 22 MiB together
    keeps all others waiting for 150 ms. What is unfinished expires as well. Blocks; raises redis errors."""
    script = redis.register_script(_ADD)
    add, count = _COMMANDS[into]
    starts = list(accumulate([1] * len(pieces) if into == "list" else map(len, pieces), initial=0))
    there = 0
    while there < starts[-1]:
        with _turn:
            piece = pieces[starts.index(there)]
            there = cast(int, script(keys=[key], args=[add, count, there, piece, ttl_s]))
            time.sleep(_PAUSE_S)


def get_pieces(redis: "Redis", key: str) -> Iterator[bytes]:
    """Those of a list, some at a time; none, when there is no such key."""
    start = 0
    while pieces := cast(Any, redis).execute_command(
        "LRANGE", key, start, start + _READ_COUNT - 1, **{NEVER_DECODE: True}
    ):
        yield from pieces
        start += len(pieces)
