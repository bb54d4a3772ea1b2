"""Which messages a worker uses, and which it does not even hand to Celery."""

import base64
import json
from typing import Any

import pytest

from cronium_worker.envelope import MAX_MESSAGE_BYTES, first_argument, message_defect, task_defect
from cronium_worker.links import links_defect
from cronium_worker.transport import set_origin

SIGNATURE = {"task": "t", "args": [], "kwargs": {}, "options": {}}
CHORD = {
    "task": "celery.chord",
    "subtask_type": "chord",
    "kwargs": {"header": [SIGNATURE], "body": SIGNATURE, "kwargs": {}},
    "options": {"task_id": "x"},
}
ABOUT = {"task": "cronium.execute_job", "id": "a1", "root_id": "a1", "retries": 0, "timelimit": [None, None]}
OLD = {"task": "cronium.execute_job", "id": "a1", "args": ["a1"], "kwargs": {}}
NO_TASK, NO_MESSAGE = "not a task of Celery", "not a message of Celery"


def parts(*arguments: Any, **canvas: Any) -> list[Any]:
    return [list(arguments), {}, canvas]


def link(**options: Any) -> dict[str, Any]:
    return SIGNATURE | {"options": options}


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
        (ABOUT, parts("a1", callbacks=[link(queue="celery", priority=3, task_id="x", expires=5, group_id="g-1")])),
        (ABOUT, parts("a1", callbacks=[link(queue="team-a.reports", link=[link()], link_error=[], chain=None)])),
        (ABOUT, parts("a1", callbacks=[link(on="always", stamped_headers=["tenant"], tenant="a", headers={"a": 1})])),
        (ABOUT, parts("a1", chord=CHORD)),
        (None, OLD),
        ({}, OLD | {"callbacks": [SIGNATURE]}),
        ({"tenant": "a"}, OLD | {"errbacks": [SIGNATURE], "chord": SIGNATURE, "taskset": "g", "timelimit": [None, 5]}),
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
        ("group", "a.j"),
        ("group", "a*"),
        ("taskset", "a.t"),
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
        parts("a1", chord=[SIGNATURE]),
        parts("a1", callbacks="x"),
        parts("a1", chain=[5]),
        parts("a1", errbacks=[{"task": 5}]),
        OLD,
    ],
)
def test_parts_that_are_not_those_of_a_task(payload: object) -> None:
    assert task_defect(ABOUT, payload) == NO_TASK


@pytest.mark.parametrize(
    "payload",
    [
        [],
        5,
        None,
        {"task": "t"},
        {"id": "a1"},
        *(OLD | {name: value} for name, value in [
            ("args", "abc"), ("args", None), ("kwargs", []), ("kwargs", None), ("callbacks", [1]), ("callbacks", {}),
            ("errbacks", [1]), ("errbacks", {}), ("chord", [1]), ("chord", 5), ("chord", {"task": 5}),
            ("group", "a.j"), ("taskset", "a.t"), ("timelimit", [1]), ("timelimit", ["1", 2]),
        ]),
    ],
)  # fmt: skip
def test_an_old_message_that_is_none(payload: object) -> None:
    assert task_defect(None, payload) == NO_TASK


@pytest.mark.parametrize("missing", ["args", "kwargs"])
def test_an_old_message_may_have_no_arguments(missing: str) -> None:
    assert task_defect(None, {name: value for name, value in OLD.items() if name != missing}) == ""


@pytest.mark.parametrize(
    ("body", "encoding", "first"),
    [
        (base64.b64encode(b'[["a1"], {}, {}]').decode(), "base64", "a1"),
        ('[["a1", "a2"], {}, {}]', None, "a1"),
        ('[[{"id": "a1"}], {}, {}]', None, {"id": "a1"}),
        ('[["a1"], {}, {}]', "", None),
        ("[[], {}, {}]", None, None),
        ("[]", None, None),
        ("{", None, None),
        ('[["a1"]]', "base64", None),
        (base64.b64encode(b"\xff").decode(), "base64", None),
    ],
)
def test_the_first_argument_of_a_message(body: str, encoding: str | None, first: Any) -> None:
    properties = {"delivery_info": {"exchange": "", "routing_key": "q"}, "delivery_tag": "t", "body_encoding": encoding}
    assert first_argument(raw(body=body, properties=properties)) == first


def test_a_message_is_taken_up_to_its_size_and_not_parsed_beyond() -> None:
    body = "A" * ((MAX_MESSAGE_BYTES - len(raw(body=""))) // 4 * 4)
    assert message_defect(raw(body=body).ljust(MAX_MESSAGE_BYTES)) == ""
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


@pytest.mark.attack
@pytest.mark.parametrize(
    "signature",
    [
        link(queue="unacked"),
        link(queue="_kombu.binding.celery"),
        link(queue="celery.pidbox"),
        link(queue="cronium.fleet"),
        link(queue="cronium.host.h"),
        link(queue={"name": "unacked"}),
        link(exchange="celery.pidbox"),
        link(routing_key="unacked"),
        link(connection="redis://elsewhere"),
        link(producer={}),
        link(declare=[]),
        link(serializer="pickle"),
        link(compression="gzip"),
        link(priority=10**400),
        link(priority=True),
        link(priority="9"),
        link(task_id="a b"),
        link(task_id=["a"]),
        link(group_id="a.j"),
        link(reply_to={"exchange": ""}),
        link(retry_policy=5),
        link(exchange="x", stamped_headers=["exchange"]),
        link(unknown=1),
        link(link={"task": "x", "options": {"queue": "unacked"}}),
        link(link_error=[link(exchange="x")]),
        link(chain=[link(queue="unacked")]),
        link(chord=link(queue="unacked")),
        link(link="x"),
        {"task": "celery.group", "kwargs": {"tasks": [link(queue="unacked")]}},
        {"task": "x", "subtask_type": "chain", "kwargs": {"tasks": [link(queue="unacked")]}},
        CHORD | {"kwargs": {"header": {"task": "celery.group", "kwargs": {"tasks": [link(exchange="x")]}}}},
        CHORD | {"kwargs": {"body": link(queue="unacked")}},
    ],
    ids=lambda value: str(value)[:60],
)
def test_a_link_that_names_what_is_not_its_own(signature: dict[str, Any]) -> None:
    for place in ("callbacks", "errbacks", "chain", "chord"):
        value = signature if place == "chord" else [SIGNATURE, signature]
        assert task_defect(ABOUT, parts("a1", **{place: value})).startswith(("a link has the option '", NO_TASK))
        if place != "chain":
            assert task_defect(None, OLD | {place: value})


@pytest.mark.attack
def test_a_link_that_is_nested_deeper_than_a_parser_lets_it() -> None:
    deep = link(queue="unacked")
    for _ in range(2000):
        deep = link(link=[deep])
    assert task_defect(ABOUT, parts("a1", callbacks=[deep])).startswith("a link has the option 'queue'")


@pytest.mark.attack
@pytest.mark.parametrize("name", ["correlation_id", "reply_to"])
@pytest.mark.parametrize("value", [5, ["a"], {"exchange": "", "routing_key": "unacked"}])
def test_a_property_of_another_type(name: str, value: Any) -> None:
    properties = {"delivery_info": {"exchange": "", "routing_key": "q"}, "delivery_tag": "t", name: value}
    assert message_defect(raw(properties=properties)) == NO_MESSAGE


@pytest.mark.attack
@pytest.mark.parametrize("priority", [None, "9", 10**400, float("inf"), -5, True, {}, 7])
def test_what_a_message_says_of_its_way_is_not_believed(priority: Any) -> None:
    """Kombu restores it to the queue that it names, at the priority that it names, in the place of another's tag."""
    info = {"exchange": "celery.pidbox", "routing_key": "unacked", "redelivered": True, "x": 1}
    message = {"properties": {"delivery_info": info, "delivery_tag": "another's", "priority": priority}}
    set_origin(message, "reports")
    properties: dict[str, Any] = message["properties"]
    assert properties["delivery_info"] == {"exchange": "", "routing_key": "reports", "redelivered": True}
    assert len(properties.pop("delivery_tag")) == 36
    assert type(properties["priority"]) is int
    assert properties["priority"] == (priority if type(priority) is int else 0)


TEXT, NUMBER, FLAG, ANY_DICT = "a", 1.5, True, {"a": 1}
ALLOWED: dict[str, Any] = {
    "argsrepr": TEXT, "kwargsrepr": TEXT, "shadow": TEXT, "origin": TEXT, "reply_to": TEXT, "on": TEXT,
    "eta": "2030-01-01T00:00:00", "expires": NUMBER, "countdown": NUMBER, "retries": 1, "group_index": 1,
    "time_limit": NUMBER, "soft_time_limit": NUMBER, "replaced_task_nesting": 1,
    "ignore_result": FLAG, "add_to_parent": FLAG, "retry": FLAG, "immutable": FLAG,
    "retry_policy": ANY_DICT, "headers": ANY_DICT, "stamps": ANY_DICT, "stamped_headers": ["a"],
    "task_id": "x", "root_id": "x", "parent_id": "x", "group_id": "g", "queue": "q", "priority": 255,
    "serializer": "json", "link": [], "link_error": SIGNATURE, "chain": [SIGNATURE], "chord": CHORD,
}  # fmt: skip


@pytest.mark.parametrize("name", ALLOWED)
def test_an_option_that_a_link_may_have(name: str) -> None:
    assert links_defect([link(**{name: ALLOWED[name]})]) == ""
    assert links_defect(link(**{name: None})) == ""
    assert f"the option '{name}'" in links_defect(link(**{name: b"1"}), None)


@pytest.mark.attack
@pytest.mark.parametrize(
    "name",
    [
        "body_encoding", "compression", "confirm_timeout", "connection", "content_encoding", "content_type",
        "correlation_id", "declare", "delivery_info", "delivery_mode", "delivery_tag", "event_dispatcher", "exchange",
        "exchange_type", "immediate", "mandatory", "producer", "publisher", "route_name", "router", "routing_key",
        "task_type", "timeout",
    ],
)  # fmt: skip
def test_no_stamp_has_the_name_of_an_option_of_publishing(name: str) -> None:
    stamped = {name: "x", "tenant": "x"}
    assert f"the option '{name}'" in links_defect(link(stamped_headers=list(stamped), **stamped))
    assert links_defect(link(stamped_headers=["tenant"], tenant="x")) == ""
