"""What may follow a task: Celery's signatures, as messages and records hold them. Pure.

A worker sends a link with the options that the link has. Some of those that Celery knows name a key of the broker (the
queue), a channel of control commands (the exchange), or the keys of another group. So there is a list of the options
that a link may have. A link with any other option is refused, together with its message.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any, TypeGuard

from cronium_worker.models.queues import FOREIGN_QUEUE, is_queue

NO_TASK = "not a task of Celery"
# Of tasks: in log lines, and the last part of a key of Redis.
_ID = re.compile(r"[!-~]{1,255}")
# Of groups: Celery puts .j, .t and .s behind one for keys of the same group.
_GROUP = re.compile(r"[A-Za-z0-9_:@+=-]{1,255}", re.ASCII)
_PRIORITIES = range(256)
_NUMBER, _TEXT, _FLAG, _TIME = (int, float), (str,), (bool,), (str, datetime)
# What celery.app.task.Task.apply_async takes, but for what says how and where to publish: connection, producer,
# exchange, routing_key, declare, compression, delivery_mode and the like. `on` is ours (workflows).
_TYPES: dict[str, tuple[type, ...]] = {
    "argsrepr": _TEXT, "kwargsrepr": _TEXT, "shadow": _TEXT, "origin": _TEXT, "reply_to": _TEXT, "on": _TEXT,
    "eta": _TIME, "expires": (*_TIME, *_NUMBER), "countdown": _NUMBER, "retries": _NUMBER, "group_index": _NUMBER,
    "time_limit": _NUMBER, "soft_time_limit": _NUMBER, "replaced_task_nesting": _NUMBER,
    "ignore_result": _FLAG, "add_to_parent": _FLAG, "retry": _FLAG, "immutable": _FLAG,
    "retry_policy": (dict,), "headers": (dict,), "stamps": (dict,), "stamped_headers": (list, tuple),
}  # fmt: skip
_SIGNATURES = ("link", "link_error", "chain", "chord")


def is_id(value: object) -> bool:
    return isinstance(value, str) and _ID.fullmatch(value) is not None


def is_group(value: object) -> bool:
    return isinstance(value, str) and _GROUP.fullmatch(value) is not None


def links_defect(*given: object) -> str:
    """Why these signatures, or lists of them, must not be used; empty: they may be. Each of them may be None."""
    waiting = [value for value in given if value is not None]
    while waiting:  # no recursion: they are nested as deep as the parser lets them
        value = waiting.pop()
        if isinstance(value, list | tuple):
            waiting.extend(value)
            continue
        if not _is_signature(value):
            return NO_TASK
        options = value.get("options") or {}
        for name, option in options.items():
            if option is not None and not _is_allowed(name, option, options):
                return f"a link has the option {ascii(name)[:40]} with a value that is not allowed"
        waiting.extend(options[name] for name in _SIGNATURES if options.get(name) is not None)
        waiting.extend(_parts(value))
    return ""


def _is_signature(value: object) -> TypeGuard[dict[str, Any]]:
    kinds = {"task": str, "args": list | tuple | None, "kwargs": dict | None, "options": dict | None}
    return isinstance(value, dict) and all(isinstance(value.get(name), kind) for name, kind in kinds.items())


_CHECKS: dict[str, Callable[[Any], bool]] = {
    "task_id": is_id, "root_id": is_id, "parent_id": is_id, "group_id": is_group,
    "queue": lambda value: is_queue(value) or value == FOREIGN_QUEUE,
    "priority": lambda value: type(value) is int and value in _PRIORITIES,
    "serializer": lambda value: bool(value == "json"),
    **dict.fromkeys(_SIGNATURES, lambda value: isinstance(value, list | tuple | dict)),  # looked at in their turn
}  # fmt: skip


def _is_allowed(name: object, option: Any, options: Mapping[Any, Any]) -> bool:
    if not isinstance(name, str):
        return False
    if name in _CHECKS:
        return _CHECKS[name](option)
    if name in _TYPES:
        return isinstance(option, _TYPES[name])
    stamps = options.get("stamped_headers")
    return isinstance(stamps, list | tuple) and name in stamps and name not in _PUBLISHING


# What a stamp must not be called: it would be taken for an option of these names.
_PUBLISHING = {
    "body_encoding", "compression", "confirm_timeout", "connection", "content_encoding", "content_type",
    "correlation_id", "declare", "delivery_info", "delivery_mode", "delivery_tag", "event_dispatcher", "exchange",
    "exchange_type", "immediate", "mandatory", "producer", "publisher", "route_name", "router", "routing_key",
    "task_type", "timeout",
}  # fmt: skip


def _parts(signature: Mapping[str, Any]) -> Iterator[Any]:
    """The signatures that a chain, a group or a chord is made of."""
    keywords = signature.get("kwargs") or {}
    if signature.get("subtask_type") or str(signature["task"]).startswith("celery."):
        for name in ("tasks", "header", "body", "task"):
            part = keywords.get(name)
            if isinstance(part, dict | list | tuple):
                yield part
