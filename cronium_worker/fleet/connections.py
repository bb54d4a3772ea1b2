"""How the address of a Redis becomes a client. (Celery's own way to write it: `broker`.)"""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from redis import Redis
from redis import asyncio as aio
from redis.asyncio import sentinel as aio_sentinel
from redis.sentinel import (
    Sentinel,
    SentinelConnectionPool,
    SentinelManagedConnection,
    SentinelManagedSSLConnection,
)

from cronium_worker.fleet.keys import NamingRedis
from cronium_worker.fleet.patience import Patience
from cronium_worker.models.sentinel import sentinel_address

BLOCK_MS = 5000  # the longest blocking read
# Of callers: for less than a second; behind Sentinel as long as a failover may take: Debian's sentinels need 30 s to
# take a primary for gone.
_RETRIES, _FAILOVER_RETRIES = 3, 30


class PrimaryConnection(SentinelManagedConnection):
    """Asks the sentinels whenever it is made, also within the retries of a command whose connection broke: redis-py
    would try the Redis that is gone, until they are over (redis-py #3874)."""

    def _connect(self) -> Any:
        self.host, self.port = self.connection_pool.get_master_address()
        return super()._connect()  # type: ignore[no-untyped-call]


class PrimarySSLConnection(SentinelManagedSSLConnection, PrimaryConnection):
    """The same with TLS."""


def connect(
    url: str,
    *,
    retries: int | None = None,
    read_timeout_s: float = BLOCK_MS / 1000 + 10,
    on_error: Callable[[Exception], object] = lambda _: None,
) -> "Redis":
    """A client that tries again over a lost connection, and while Redis can do nothing for a time (Patience):
    3 times for callers (under a second, or one read timeout), 30 (a minute) behind Sentinel; more for workers: 300 are
    ten minutes. `on_error` is told of each try that failed.

    The read timeout must be longer than any blocking read: it is how a dead link is noticed.
    """
    if retries is None:
        retries = _FAILOVER_RETRIES if sentinel_address(url) else _RETRIES
    return client(
        url,
        decode_responses=True,
        retry=Patience(retries, on_error),
        socket_timeout=read_timeout_s,
        socket_connect_timeout=5,
        health_check_interval=30,
    )


def client(url: str, **options: Any) -> "Redis":
    """With redis-py's options; behind Sentinel each new connection is to the Redis that is the primary then."""
    address = sentinel_address(url)
    if address is None:
        return NamingRedis.from_url(url, **options)
    sentinel = Sentinel(address.sentinels, sentinel_kwargs=address.sentinel_options)  # type: ignore[no-untyped-call]
    connection = PrimarySSLConnection if address.tls else PrimaryConnection
    options = address.redis_options | options | {"connection_class": connection}
    return NamingRedis.from_pool(SentinelConnectionPool(address.service, sentinel, **options))  # type: ignore[no-untyped-call]


@asynccontextmanager
async def async_client(url: str, **options: Any) -> AsyncIterator["aio.Redis"]:
    """The same for asyncio, without retries; closed at the end."""
    address = sentinel_address(url)
    if address is None:
        async with aio.Redis.from_url(url, **options) as redis:
            yield redis
        return
    options = address.redis_options | options
    async with aio_sentinel.Sentinel(address.sentinels, sentinel_kwargs=address.sentinel_options) as sentinel:  # type: ignore[no-untyped-call]
        pool = aio_sentinel.SentinelConnectionPool(address.service, sentinel, **options)  # type: ignore[no-untyped-call]
        async with aio.Redis.from_pool(pool) as redis:
            yield redis
