"""Keys of Redis that have another type than their users need: which one it is, in the error and once in the log.

Redis says WRONGTYPE and no name. Whoever meets it cannot mend it: somebody has to look at the key, and delete or rename
it. Until then the process goes on with all that does not need the key.
"""

import logging
import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from redis import Redis
from redis.client import Pipeline
from redis.exceptions import NoPermissionError, ResponseError

logger = logging.getLogger(__name__)

# kombu's, with which no node can take a message.
BOOKKEEPING = ("unacked", "unacked_index", "unacked_mutex")
FLEET_KEYS = (
    "cronium:jobs", "cronium:active", "cronium:suspects", "cronium:queues", "cronium:ended", "cronium:taken",
    "cronium:{hosts}:index", "cronium:{hosts}:drained",
    "cronium:beat::schedule", "cronium:beat::statics", "cronium:beat::lock",
)  # fmt: skip
# The first pattern that a key matches says what type it has to have.
_TYPES = tuple(
    (re.compile(pattern, re.DOTALL), kind)
    for pattern, kind in (
        (r"unacked", "hash"),
        (r"unacked_index", "zset"),
        (r"unacked_mutex", "string"),
        (r"_kombu\.binding_deadlines", "zset"),
        (r"_kombu\.binding(_permanent)?\..*", "set"),
        (r"celery-task-meta-.*", "string"),
        (r"cronium:(jobs|active|suspects|queues)", "zset"),
        (r"cronium:(ended|taken)", "hash"),
        (r"cronium:\{hosts\}:(index|drained)", "set"),
        (r"cronium:\{hosts\}:host:.*", "hash"),
        (r"cronium:\{hosts\}:run:.*", "list"),
        (r"cronium:job:\{[^{}]*\}", "hash"),
        (r"cronium:job:\{[^{}]*\}:events", "stream"),
        (r"cronium:job:\{[^{}]*\}:secrets", "string"),
        (r"cronium:beat::schedule", "zset"),
        (r"cronium:beat::statics", "set"),
        (r"cronium:beat::lock", "string"),
        (r"cronium:beat:.*", "hash"),
        (r"[A-Za-z0-9][A-Za-z0-9_.-]*(:[0-9])?", "list"),  # a queue
    )
)
_ALL_ARGUMENTS = {"DEL", "EXISTS", "MGET", "UNLINK", "WATCH"}
_told: dict[tuple[object, ...], set[str]] = {}  # by Redis
_lock = threading.Lock()


class Misfit(NamedTuple):
    """A key with a type that is not the one it has to have."""

    key: str
    found: str
    wanted: str

    def __str__(self) -> str:
        return f"the Redis key {_shown(self.key)} is a {self.found}, and has to be a {self.wanted}"


REMEDY = "delete or rename it (redis-cli DEL or RENAME)"


class BrokenKey(ResponseError):
    """Redis refuses a command because of the type of a key; the message names the key and the remedy."""


def is_wrong_type(error: object) -> bool:
    """Also inside a script, where Redis puts its own words around it."""
    return isinstance(error, ResponseError) and "WRONGTYPE" in str(error)


def misfits(redis: "Redis", keys: Iterable[str]) -> list[Misfit]:
    """Those of the keys that have another type than they have to have. Raises redis errors."""
    wanted = {key: kind for key in keys if (kind := _wanted(key))}
    with Redis(connection_pool=redis.connection_pool).pipeline(transaction=False) as pipe:
        for key in wanted:
            pipe.type(key)
        types = [kind.decode() if isinstance(kind, bytes) else str(kind) for kind in pipe.execute()]
    return [
        Misfit(key, found, kind)
        for (key, kind), found in zip(wanted.items(), types, strict=True)
        if found not in ("none", kind)
    ]


def tell(redis: "Redis", keys: Iterable[str]) -> list[Misfit]:
    """Those of the keys that are of another type. Each is logged once, until one of these calls finds it mended."""
    keys = list(keys)
    found, place = misfits(redis, keys), _place(redis)
    broken = {each.key: each for each in found}
    with _lock:
        told = _told.setdefault(place, set())
        new, mended = broken.keys() - told, told.intersection(keys).difference(broken)
        told.difference_update(mended)
        told.update(new)
    for key in sorted(new):
        logger.error("%s: %s; what needs it waits until then", broken[key], REMEDY)
    for key in sorted(mended):
        logger.info("the Redis key %s is mended", _shown(key))
    return found


def told(redis: "Redis") -> set[str]:
    """The keys of this Redis that this process has logged, and not found mended."""
    with _lock:
        return set(_told.get(_place(redis), ()))


def _place(redis: "Redis") -> tuple[object, ...]:
    about = redis.connection_pool.connection_kwargs
    service = getattr(redis.connection_pool, "service_name", None)  # of Sentinel's pool
    return (service, *(about.get(name) for name in ("host", "port", "path", "db")))


def named(redis: "Redis", error: ResponseError, keys: Sequence[str]) -> BrokenKey:
    """The error with the name of the key, which is told in the log."""
    try:
        found = tell(redis, keys)
    except NoPermissionError:  # of a user who may not ask for types: deploy/redis/cronium.conf
        found = []
    if not found:  # or mended meanwhile, or a key that nothing is known of
        return BrokenKey(f"{error} (one of {', '.join(map(_shown, keys))})")
    return BrokenKey(f"{'; '.join(map(str, found))}: {REMEDY}")


class NamingRedis(Redis):
    """redis-py's client, which raises BrokenKey for WRONGTYPE."""

    def execute_command(self, *args: Any, **options: Any) -> Any:
        try:
            return super().execute_command(*args, **options)  # type: ignore[no-untyped-call]
        except ResponseError as error:
            if not is_wrong_type(error):
                raise
            raise named(self, error, _keys_of(args)) from None

    def pipeline(self, transaction: bool = True, shard_hint: Any = None) -> Any:
        return _NamingPipeline(self.connection_pool, self.response_callbacks, transaction, shard_hint)


class _NamingPipeline(Pipeline):
    """With `raise_on_error=False` the log alone tells of the key, and the results have redis-py's error."""

    def execute(self, raise_on_error: bool = True) -> list[Any]:
        commands = self.command_stack
        try:
            results = super().execute(raise_on_error)
        except ResponseError as error:
            if not is_wrong_type(error):
                raise
            raise self._named(error, commands) from None
        wrong = [error for error in results if is_wrong_type(error)] if not raise_on_error else []
        if wrong:
            self._named(wrong[0], commands)
        return results

    def immediate_execute_command(self, *args: Any, **options: Any) -> Any:
        try:
            return super().immediate_execute_command(*args, **options)  # type: ignore[no-untyped-call]
        except ResponseError as error:
            if not is_wrong_type(error):
                raise
            raise self._named(error, [(args, options)]) from None

    def _named(self, error: ResponseError, commands: Sequence[tuple[Sequence[Any], Mapping[str, Any]]]) -> BrokenKey:
        return named(self, error, list(dict.fromkeys(key for args, _ in commands for key in _keys_of(args))))


def raise_others(results: Sequence[Any]) -> None:
    """Raise the first error of a pipeline that is not of a broken key: such a key harms nobody but its owner."""
    for result in results:
        if isinstance(result, Exception) and not is_wrong_type(result):
            raise result


def fields_of(pipe: Any, names: Sequence[str]) -> list[list[str | None]]:
    """What a pipeline of HMGET brings; a key that is no hash has none of the fields."""
    results = pipe.execute(raise_on_error=False)
    raise_others(results)
    return [[None] * len(names) if isinstance(result, Exception) else result for result in results]


def _wanted(key: str) -> str:
    return next((kind for pattern, kind in _TYPES if pattern.fullmatch(key)), "")


def _keys_of(command: Sequence[Any]) -> list[str]:
    """The keys in a command as it is sent: of those that this package, kombu and RedBeat use."""
    name, arguments = str(command[0]).upper(), command[1:]
    if name in ("EVAL", "EVALSHA"):
        keys = arguments[2 : 2 + int(arguments[1])]
    elif name == "XREAD":
        places = [str(argument).upper() for argument in arguments].index("STREAMS") + 1
        keys = arguments[places : places + (len(arguments) - places) // 2]
    elif name in ("BRPOP", "BLPOP"):
        keys = arguments[:-1]
    else:
        keys = arguments if name in _ALL_ARGUMENTS else arguments[:1]
    return [key.decode(errors="replace") if isinstance(key, bytes) else str(key) for key in keys]


def _shown(key: str) -> str:
    """Short, and nothing in it that could forge a line of the log."""
    return ascii(key)[1:-1][:160]
