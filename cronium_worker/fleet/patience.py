"""How long a client of Redis goes on trying, and over what."""

import re
import time
from collections.abc import Callable
from typing import Any, TypeVar

from redis.backoff import ExponentialBackoff
from redis.exceptions import (
    AuthenticationError,
    AuthorizationError,
    ClusterDownError,
    OutOfMemoryError,
    ReadOnlyError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

T = TypeVar("T")

_LONGEST_PAUSE_S = 2.0
_REFUSED_FOR_GOOD = (AuthenticationError, AuthorizationError)  # both are ConnectionErrors to redis-py
_REFUSED_FOR_NOW = (OutOfMemoryError, ReadOnlyError, ClusterDownError, TryAgainError)
# What redis-py has no class for. Redis 6 puts the reason of a script's failure inside an ERR, after a hyphen;
# a pipeline puts the command before it.
_SAYS_FOR_NOW = re.compile(
    r"(?:^|caused error: )(?:MISCONF|NOREPLICAS|BUSY|UNBLOCKED) | -(?:OOM|READONLY|MISCONF|NOREPLICAS) "
)


def will_pass(error: Exception) -> bool:
    """Whether the same call may do later on: Redis cannot be reached, is loading its data, has no memory or disk
    left, is a replica until the failover is over."""
    if isinstance(error, ResponseError):
        return isinstance(error, _REFUSED_FOR_NOW) or _SAYS_FOR_NOW.search(str(error)) is not None
    return not isinstance(error, _REFUSED_FOR_GOOD)


class Patience(Retry):
    """Tries again up to `retries` times, with pauses of up to two seconds; and no more once two seconds a retry
    are over. The number alone would not do: a try lasts as long as the read timeout when Redis is silent, and
    redis-py's retries are nested (a command's, and those of the connection that it needs). `on_error(error)` is told of
    each try that failed so; redis-py copies it, so it must be a function."""

    def __init__(self, retries: int, on_error: Callable[[Exception], object] = lambda _: None) -> None:
        errors = (RedisConnectionError, RedisTimeoutError, TimeoutError, ResponseError)
        super().__init__(ExponentialBackoff(cap=_LONGEST_PAUSE_S, base=0.05), retries, errors)
        self._on_error = on_error

    def call_with_retry(
        self,
        do: Callable[[], T],
        fail: Callable[..., Any],
        is_retryable: Callable[[Exception], bool] | None = None,
        with_failure_count: bool = False,
    ) -> T:
        give_up_at = time.monotonic() + self._retries * _LONGEST_PAUSE_S

        def again(error: Exception) -> bool:
            passes = will_pass(error)
            if passes:
                self._on_error(error)
            known = passes and (is_retryable is None or is_retryable(error))
            return known and time.monotonic() < give_up_at

        return super().call_with_retry(do, fail, again, with_failure_count)
