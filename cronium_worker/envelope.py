"""What a message must look like before a worker uses it. Pure.

Whoever can write to the broker can put anything there, and Celery takes much for granted: a message without an id,
for one, takes a slot of its worker and never gives it back.
"""

import re
from binascii import Error as Base64Error
from collections.abc import Mapping
from typing import Any

from kombu.transport.virtual.base import Base64
from kombu.utils.json import loads

from cronium_worker.models.fields import MIB

# As it is in the broker. A whole job has 11 MiB at most, and 15 in the base64 of a message.
MAX_MESSAGE_BYTES = 16 * MIB
_NO_TASK = "not a task of Celery"
_NO_MESSAGE = "not a message of Celery"
# What parsing and kombu's own decoders of dates, numbers and the like raise over what they cannot read.
UNREADABLE = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)
# Of tasks and their groups; they are in log lines, and in keys of Redis.
_ID = re.compile(r"[!-~]{1,255}")
_OPTIONAL_IDS = ("root_id", "parent_id", "group", "shadow")
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
    names = (properties.get("delivery_tag"), delivery.get("exchange"), delivery.get("routing_key"))
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
        return _NO_TASK
    return "" if _is_about_a_task(about) and _are_parts(parts) else _NO_TASK


def _is_about_a_task(about: Mapping[str, Any]) -> bool:
    limits = about.get("timelimit")
    return (
        isinstance(about.get("task"), str)
        and _is_id(about.get("id"))
        and all(about.get(name) is None or _is_id(about[name]) for name in _OPTIONAL_IDS)
        and all(isinstance(about.get(name), str | None) for name in _OPTIONAL_TEXTS)
        and isinstance(about.get("retries"), int | None)
        and isinstance(about.get("group_index"), int | None)
        and isinstance(about.get("stamps"), Mapping | None)
        and isinstance(about.get("stamped_headers"), list | None)
        and (limits is None or (isinstance(limits, list) and [type(each) for each in limits] in _TIME_LIMITS))
    )


_NONE, _NUMBERS = type(None), (int, float)
_TIME_LIMITS = [[soft, hard] for soft in (_NONE, *_NUMBERS) for hard in (_NONE, *_NUMBERS)]


def _is_id(value: object) -> bool:
    return isinstance(value, str) and _ID.fullmatch(value) is not None


def _are_parts(parts: object) -> bool:
    """Arguments, keyword arguments, and what is to be done after the task."""
    if not isinstance(parts, list) or len(parts) != 3:
        return False
    arguments, keywords, canvas = parts
    if not (isinstance(arguments, list) and isinstance(keywords, dict) and isinstance(canvas, dict | None)):
        return False
    after = canvas or {}
    chord = after.get("chord")
    lists = [after.get(name) for name in ("callbacks", "errbacks", "chain")]
    if not all(isinstance(each, list | None) for each in lists):
        return False
    signatures = [signature for each in lists for signature in each or []]
    return all(map(_is_signature, signatures if chord is None else [*signatures, chord]))


def _is_signature(value: object) -> bool:
    kinds = {"task": str, "args": list | None, "kwargs": dict | None, "options": dict | None}
    return isinstance(value, dict) and all(isinstance(value.get(name), kind) for name, kind in kinds.items())
