"""Whether the Redis of a fleet can keep its promise: looked at before a worker starts, and by `cronium doctor`."""

import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from redis import Redis
from redis.exceptions import AuthenticationError, NoPermissionError, ReadOnlyError, RedisError, ResponseError
from redis.sentinel import MasterNotFoundError

from cronium_worker.errors import ConfigurationError
from cronium_worker.fleet.connections import connect
from cronium_worker.fleet.hosts import HostRegistry
from cronium_worker.fleet.keys import BOOKKEEPING, FLEET_KEYS, Misfit, misfits
from cronium_worker.fleet.patience import will_pass
from cronium_worker.models.queues import DEFAULT_QUEUE, FLEET_QUEUE, HOST_QUEUE_PREFIX
from cronium_worker.settings import Settings, without_password

logger = logging.getLogger(__name__)

# A Redis that loads its data or that is started together with the worker is waited for: 20 seconds.
_RETRIES = 10
# What our own scripts do: a write after TIME needs Redis 5, streams as well.
_CANARY = """
local time = redis.call('TIME')
redis.call('HSET', KEYS[1], 'at', time[1])
redis.call('XADD', KEYS[2], '*', 'event', '')
redis.call('PUBLISH', KEYS[1], time[1])
redis.call('DEL', KEYS[1], KEYS[2])
"""
# Inside a script a denial is an ERR, in the words of Redis 7 and of Redis 8.
_DENIED = ("NOPERM", "user executing the script can't", "ACL failure in script")
_OF_HOSTS = ("cronium:{hosts}:index", "cronium:{hosts}:drained")
_CANARY_KEYS = ("cronium:{canary}", "cronium:{canary}:events")


@dataclass(frozen=True)
class RedisServer:
    """What a Redis says of itself. None: it does not say (some providers hide it)."""

    version: str | None
    eviction: str | None
    memory_limit_bytes: int | None
    append_only: bool | None
    replicas: int | None = None  # that are connected

    @property
    def evicts(self) -> bool:
        """Whether it forgets keys when its memory is full. Without a limit it never is, whatever its policy."""
        return bool(self.memory_limit_bytes) and self.eviction not in (None, "noeviction")


def look(redis: "Redis") -> RedisServer:
    """Ask, and write something as a worker does. Raises redis errors."""
    info: dict[str, Any] = {}
    try:
        info = redis.info()
    except NoPermissionError:
        redis.ping()
    redis.eval(_CANARY, len(_CANARY_KEYS), *_CANARY_KEYS)
    append_only = info.get("aof_enabled")
    return RedisServer(
        version=info.get("redis_version"),
        eviction=info.get("maxmemory_policy"),
        memory_limit_bytes=info.get("maxmemory"),
        append_only=None if append_only is None else bool(append_only),
        replicas=info.get("connected_slaves"),
    )


def broken_keys(redis: "Redis") -> list[Misfit]:
    """Keys of another type than they have to have: of the broker and its queues, the fleet, its hosts and schedules. Of
    jobs' own keys, the logs of workers tell. Raises redis errors."""
    found = misfits(redis, [*BOOKKEEPING, *FLEET_KEYS])
    broken = {each.key for each in found}
    read: tuple[tuple[str, Callable[[str], Any]], ...] = (
        ("cronium:{hosts}:index", redis.smembers),
        ("cronium:queues", lambda key: redis.zrange(key, 0, -1)),
        ("cronium:beat::schedule", lambda key: redis.zrange(key, 0, -1)),
    )
    hosts, waiting, entries = ([] if key in broken else list(map(str, names(key))) for key, names in read)
    host_keys = [f"cronium:{{hosts}}:host:{host}" for host in hosts]
    found += misfits(redis, [*host_keys, *entries])
    queues = {DEFAULT_QUEUE, FLEET_QUEUE, *waiting, *(HOST_QUEUE_PREFIX + host for host in hosts)}
    if broken.isdisjoint(_OF_HOSTS):
        queues.update(*(view.queues for view in HostRegistry(redis, host_ttl_s=math.inf).hosts()))
    lists = [f"{queue}{end}" for queue in queues for end in ("", *(f":{step}" for step in range(1, 10)))]
    exchanges = (*queues, "celery.pidbox", "reply.celery.pidbox", "celeryev")
    bindings = [f"_kombu.{kind}.{name}" for kind in ("binding", "binding_permanent") for name in exchanges]
    return [*found, *misfits(redis, [*lists, *bindings, "_kombu.binding_deadlines"])]


def remedy(error: RedisError | OSError, setting: str) -> str:
    """What to do about a Redis that cannot be used. `setting`: what holds its address."""
    if isinstance(error, AuthenticationError):
        return f"set its user and password in {setting}"
    if isinstance(error, ReadOnlyError):
        return f"this is a replica: set {setting} to the primary"
    if isinstance(error, ResponseError):
        if isinstance(error, NoPermissionError) or any(text in str(error) for text in _DENIED):
            return "let this user run scripts, and read and write keys and channels cronium:*"
        if will_pass(error):
            return "give Redis more memory or disk, or wait until it is ready"
        return "Redis 5 or newer is needed"
    what = "Redis and its sentinels" if isinstance(error, MasterNotFoundError) else "Redis"
    return f"start {what}, or set {setting}"


def redis_addresses(settings: Settings) -> Iterator[tuple[str, str]]:
    """The setting and the address of each Redis in which a lost key is a lost job."""
    address = settings.redis_url.get_secret_value()
    yield "CRONIUM_REDIS_URL", address
    broker = settings.broker_url.get_secret_value() if settings.broker_url else address
    if broker != address and broker.startswith(("redis://", "rediss://", "sentinel://")):
        yield "CRONIUM_BROKER_URL", broker


def too_few(replicas: int, wanted: int) -> str:
    """Of Redis's replicas, for CRONIUM_REDIS_WAIT_REPLICAS."""
    return f"{replicas} replicas are connected, and CRONIUM_REDIS_WAIT_REPLICAS is {wanted}"


def check_redis(settings: Settings) -> None:
    """Raises ConfigurationError, one line with the remedy, when jobs would get lost or none could run."""
    for name, address in redis_addresses(settings):
        shown = f"{name}: {without_password(address)}"
        try:
            with connect(address, retries=_RETRIES) as redis:
                server = look(redis)
        except (RedisError, OSError) as error:
            raise ConfigurationError(f"{shown}: {error}; {remedy(error, name)}") from None
        if server.evicts:
            raise ConfigurationError(
                f"{shown}: maxmemory-policy {server.eviction} forgets jobs when memory is full; "
                "set maxmemory-policy noeviction"
            )
        wanted = settings.redis_wait_replicas
        if name == "CRONIUM_REDIS_URL" and server.replicas is not None and server.replicas < wanted:
            logger.warning("%s: jobs wait: %s", shown, too_few(server.replicas, wanted))
        if server.append_only is False:
            logger.warning("%s: without an append-only file a restart of Redis loses jobs; set appendonly yes", shown)
