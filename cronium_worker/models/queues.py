"""The names that queues may have. Pure.

With Redis a queue is a list whose key is the queue's name (the plain name for priority 9, `<name>:<n>` for others). So
a name that a job brings must never be the key of anything else. The form alone excludes keys with `:`, `_kombu.…`, `/…`
(kombu's channels), spaces and glob characters. `_RESERVED` excludes the other keys, queues and exchanges that these
sources name:

- kombu.transport.redis.Channel: `unacked`, `unacked_index`, `unacked_mutex`, `_kombu.binding*`;
- kombu.pidbox.Mailbox, of Celery's namespace: `*.celery.pidbox`, `*.reply.celery.pidbox`, `reply.celery.pidbox`;
- celery.backends.base.KeyValueStoreBackend and celery.backends.redis: `celery-task-meta-*`, `celery-taskset-meta-*`,
  `chord-unlock-*`;
- celery.app.defaults: `celery` (the queue of other applications), `celeryev*`, `celeryresults`, `celery_delayed_*`;
- redbeat.schedulers: `redbeat:*` where no prefix is set; ours is `cronium:beat:`;
- RabbitMQ: `amq.*`;
- this package: `cronium:*`, `cronium.host.*`, `cronium.fleet`, and names that look like these or the default queue.
"""

import re
from collections.abc import Sequence

DEFAULT_QUEUE = "cronium.jobs"
HOST_QUEUE_PREFIX = "cronium.host."
FLEET_QUEUE = "cronium.fleet"  # housekeeping that any one agent does for all
FOREIGN_QUEUE = "celery"  # Celery's default queue: of other applications on the same broker

QUEUE_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$"
_FORM = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}", re.ASCII)
_RESERVED = re.compile(
    r"(?:unacked|celery|chord-|redbeat|amq\.|cronium\.(?:fleet|host|jobs)).*|cronium|.*\.pidbox",
    re.IGNORECASE | re.ASCII,
)
_REPLIES = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.@-]{0,255}\.reply\.celery\.pidbox", re.ASCII)
_EXAMPLE = "choose another, like reports or team-a.reports"


def check_queue(name: object) -> str:
    """Return the name of a queue of jobs. Raises ValueError, which says what to do, for any other name."""
    if not isinstance(name, str) or not _FORM.fullmatch(name):
        shown = ascii(name)[:80]
        raise ValueError(
            f"{shown} is not a queue name: use 1 to 128 letters, digits, -, _ and ., a letter or digit first"
        )
    if name == FLEET_QUEUE or name.startswith(HOST_QUEUE_PREFIX):
        raise ValueError(f"{FLEET_QUEUE} and names that begin with {HOST_QUEUE_PREFIX} are for maintenance only")
    if name != DEFAULT_QUEUE and _RESERVED.fullmatch(name):
        raise ValueError(f"{name} is reserved for keys of the broker, Celery or cronium: {_EXAMPLE}")
    return name


def check_fleet_queue(name: object, queues: Sequence[str]) -> str:
    """The same, and of `queues` (setting QUEUES) or the default one; without `queues`, any name will do."""
    allowed = sorted({DEFAULT_QUEUE, *queues})
    checked = check_queue(name)
    if queues and checked not in allowed:
        raise ValueError(f"{checked} is not a queue of this fleet: use {' or '.join(allowed)} (CRONIUM_QUEUES)")
    return checked


def is_queue(name: object) -> bool:
    """Whether jobs may be sent to a queue of this name."""
    try:
        return bool(check_queue(name))
    except ValueError:
        return False


def is_destination(name: object) -> bool:
    """Whether a message of any kind may be sent to a queue of this name: to one of jobs, of maintenance, of other
    applications, or of replies to a control command."""
    if not isinstance(name, str):
        return False
    if name in (FLEET_QUEUE, FOREIGN_QUEUE) or _REPLIES.fullmatch(name):
        return True
    return bool(_FORM.fullmatch(name)) if name.startswith(HOST_QUEUE_PREFIX) else is_queue(name)
