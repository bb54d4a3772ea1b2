"""What a message must look like before a worker uses it. Pure.

Whoever can write to the broker can put anything there, and Celery takes much for granted: a message without an id,
for one, takes a slot of its worker and never gives it back.
"""

from binascii import Error as Base64Error
from collections.abc import Mapping
from typing import Any, TypeGuard

from kombu.transport.virtual.base import Base64
from kombu.utils.json import loads

from cronium_worker.links import NO_TASK, is_group, is_id, links_defect
from cronium_worker.models.fields import MIB

# As it is in the broker. A whole job has 11 MiB at most, and 15 in the base64 of a message.
MAX_MESSAGE_BYTES = 16 * MIB
_NO_MESSAGE = "not a message of Celery"
# What parsing and kombu's own decoders of dates, numbers and the like raise over what they cannot read.
UNREADABLE = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)
_OPTIONAL_IDS = ("root_id", "parent_id", "shadow")
_OPTIONAL_GROUPS = ("group", "taskset")  # protocol 1 has both
_OPTIONAL_TEXTS = ("eta", "expires", "argsrepr", "kwargsrepr")


def message_defect(raw: bytes | str) -> str:
    """Why a message of Redis must not be used; empty: it may be.

    What is too long is not parsed at all, and nothing is decompressed.
    """
    if len(raw) > MAX_MESSAGE_BYTES:
        return f"longer than {MAX_MESSAGE_BYTES} bytes"
    try:
        message = loads(raw)  # type: ignore[no-untyped-call]
    except UNREADABLE as error:
        return f"not readable as JSON ({type(error).__name__})"
    properties = message.get("properties") if isinstance(message, Mapping) else None
    delivery = properties.get("delivery_info") if isinstance(properties, Mapping) else None
    if not (isinstance(message, Mapping) and isinstance(properties, Mapping) and isinstance(delivery, Mapping)):
        return _NO_MESSAGE
    headers = message.get("headers")
    names = [properties.get("delivery_tag"), delivery.get("exchange"), delivery.get("routing_key")]
    names += [properties[name] for name in ("correlation_id", "reply_to") if properties.get(name) is not None]
    if not (headers is None or isinstance(headers, Mapping)) or not all(isinstance(name, str) for name in names):
        return _NO_MESSAGE
    if headers and headers.get("compression"):
        return "compressed"
    return _body_defect(message.get("body"), properties.get("body_encoding"))


def _body_defect(body: object, encoding: object) -> str:
    if not isinstance(body, str) or encoding not in (None, "base64"):
        return _NO_MESSAGE
    try:
        if encoding:
            Base64().decode(body)  # type: ignore[no-untyped-call]
    except (Base64Error, ValueError):
        return "its body is no base64"
    return ""


def first_argument(raw: bytes | str) -> Any:
    """Of the task that a message of Redis is about; None: there is none, or the message is not to be used."""
    if message_defect(raw):
        return None
    message = loads(raw)  # type: ignore[no-untyped-call]
    body = message["body"]
    try:
        if message["properties"].get("body_encoding"):
            body = Base64().decode(body)  # type: ignore[no-untyped-call]
        return loads(body)[0][0]  # type: ignore[no-untyped-call]
    except UNREADABLE:
        return None


def task_defect(headers: Mapping[str, Any] | None, payload: object) -> str:
    """Why the message of a task must not be used; empty: it may be. `payload`: its body, as it was decoded.

    Takes both of Celery's protocols: 1 has all in the body, and some producers in other languages send it.
    """
    if headers and "task" in headers:
        about, parts = headers, payload
    elif isinstance(payload, Mapping):
        about = payload
        canvas = {name: payload.get(name) for name in ("callbacks", "errbacks", "chord")}
        parts = [payload.get("args", []), payload.get("kwargs", {}), canvas]
    else:
        return NO_TASK
    if not (_is_about_a_task(about) and _are_parts(parts)):
        return NO_TASK
    after = parts[2] or {}
    return links_defect(*(after.get(name) for name in ("callbacks", "errbacks", "chain", "chord")))


def _is_about_a_task(about: Mapping[str, Any]) -> bool:
    limits = about.get("timelimit")
    return (
        isinstance(about.get("task"), str)
        and is_id(about.get("id"))
        and all(about.get(name) is None or is_id(about[name]) for name in _OPTIONAL_IDS)
        and all(about.get(name) is None or is_group(about[name]) for name in _OPTIONAL_GROUPS)
        and all(isinstance(about.get(name), str | None) for name in _OPTIONAL_TEXTS)
        and isinstance(about.get("retries"), int | None)
        and isinstance(about.get("group_index"), int | None)
        and isinstance(about.get("stamps"), Mapping | None)
        and isinstance(about.get("stamped_headers"), list | None)
        and (limits is None or (isinstance(limits, list) and [type(each) for each in limits] in _TIME_LIMITS))
    )


_NONE, _NUMBERS = type(None), (int, float)
_TIME_LIMITS = [[soft, hard] for soft in (_NONE, *_NUMBERS) for hard in (_NONE, *_NUMBERS)]


def _are_parts(parts: object) -> TypeGuard[list[Any]]:
    """Arguments, keyword arguments, and what is to be done after the task."""
    if not isinstance(parts, list) or len(parts) != 3:
        return False
    arguments, keywords, canvas = parts
    if not (isinstance(arguments, list) and isinstance(keywords, dict) and isinstance(canvas, dict | None)):
        return False
    after = canvas or {}
    lists = [after.get(name) for name in ("callbacks", "errbacks", "chain")]
    return all(isinstance(each, list | None) for each in lists) and isinstance(after.get("chord"), dict | None)
