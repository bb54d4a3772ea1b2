"""Which messages a worker uses, and which it does not even hand to Celery."""

import base64
import json
from typing import Any

import pytest

from cronium_worker.envelope import MAX_MESSAGE_BYTES, message_defect, task_defect

SIGNATURE = {"task": "t", "args": [], "kwargs": {}, "options": {}}
ABOUT = {"task": "cronium.execute_job", "id": "a1", "root_id": "a1", "retries": 0, "timelimit": [None, None]}
OLD = {"task": "cronium.execute_job", "id": "a1", "args": ["a1"], "kwargs": {}}
NO_TASK, NO_MESSAGE = "not a task of Celery", "not a message of Celery"


def parts(*arguments: Any, **canvas: Any) -> list[Any]:
    return [list(arguments), {}, canvas]


def raw(**changed: Any) -> bytes:
    delivery = {"exchange": "", "routing_key": "q"}
    properties = {"delivery_info": delivery, "delivery_tag": "t", "body_encoding": "base64"}
    message = {"body": base64.b64encode(b"[]").decode(), "headers": {}, "properties": properties}
    return json.dumps(message | changed).encode()


@pytest.mark.parametrize(
    ("headers", "payload"),
    [
        (ABOUT, parts("a1")),
        (ABOUT | {"timelimit": [1.5, 2], "group": "g", "expires": "2030-01-01T00:00:00"}, parts({"script": {}})),
        (ABOUT, parts("a1", callbacks=[SIGNATURE], errbacks=None, chain=[SIGNATURE], chord=SIGNATURE)),
        (None, OLD),
        ({}, OLD | {"callbacks": [SIGNATURE]}),
    ],
)
def test_a_message_as_producers_send_it(headers: dict[str, Any] | None, payload: object) -> None:
    assert task_defect(headers, payload) == ""


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("task", None),
        ("task", ["t"]),
        ("id", None),
        ("id", {"a": 1}),
        ("id", "a\nb"),
        ("id", "a" * 256),
        ("root_id", [1]),
        ("group", {}),
        ("shadow", "a\n[2026] forged"),
        ("retries", "x"),
        ("timelimit", "ab"),
        ("timelimit", [1]),
        ("eta", {"a": 1}),
        ("expires", [5]),
        ("argsrepr", 5),
        ("stamps", 5),
        ("stamped_headers", "ab"),
    ],
)
def test_a_task_that_is_not_one(name: str, value: object) -> None:
    assert task_defect(ABOUT | {name: value}, parts("a1")) == NO_TASK
    if name in ("task", "id", "retries", "timelimit", "eta", "expires"):
        assert task_defect(None, OLD | {name: value}) == NO_TASK


@pytest.mark.parametrize(
    "payload",
    [
        5,
        "abc",
        {},
        [["a1"], {}],
        ["abc", {}, {}],
        [{"a": 1}, {}, {}],
        [["a1"], ["x"], {}],
        [["a1"], {}, ["x"]],
        parts("a1", chord=5),
        parts("a1", callbacks="x"),
        parts("a1", chain=[5]),
        parts("a1", errbacks=[{"task": 5}]),
        OLD,
    ],
)
def test_parts_that_are_not_those_of_a_task(payload: object) -> None:
    assert task_defect(ABOUT, payload) == NO_TASK


@pytest.mark.parametrize("payload", [[], 5, None, {"task": "t"}, OLD | {"args": "abc"}, OLD | {"callbacks": [1]}])
def test_an_old_message_that_is_none(payload: object) -> None:
    assert task_defect(None, payload) == NO_TASK


def test_a_message_is_taken_up_to_its_size_and_not_parsed_beyond() -> None:
    body = "A" * ((MAX_MESSAGE_BYTES - len(raw(body=""))) // 4 * 4)
    assert message_defect(raw(body=body)) == ""
    assert message_defect(raw()) == ""
    assert message_defect(b"[" * (MAX_MESSAGE_BYTES + 1)) == f"longer than {MAX_MESSAGE_BYTES} bytes"


@pytest.mark.parametrize(
    ("message", "said"),
    [
        (b"nothing", "not readable as JSON (JSONDecodeError)"),
        (b"\xff\xfe", "not readable as JSON (UnicodeDecodeError)"),
        (b"[" * 100_000, "not readable as JSON (RecursionError)"),
        (b'{"__type__": "uuid", "__value__": {"hex": 5}}', "not readable as JSON (AttributeError)"),
        (b'{"__type__": "decimal", "__value__": "x"}', "not readable as JSON (InvalidOperation)"),
        (b"9" * 5000, "not readable as JSON (ValueError)"),
        (b"5", NO_MESSAGE),
        (raw(properties=[]), NO_MESSAGE),
        (raw(properties={"delivery_info": {}, "delivery_tag": "t"}), NO_MESSAGE),
        (raw(properties={"delivery_info": {"exchange": "", "routing_key": "q"}}), NO_MESSAGE),
        (raw(headers=[1]), NO_MESSAGE),
        (raw(body=[1]), NO_MESSAGE),
        (raw(body="A"), "its body is no base64"),
        (raw(headers={"compression": "application/x-gzip"}), "compressed"),
    ],
    ids=lambda value: None if isinstance(value, bytes) else value,
)
def test_a_message_that_is_none(message: bytes, said: str) -> None:
    assert message_defect(message) == said
