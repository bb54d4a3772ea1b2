"""Job, JobResult and the exceptions that carry them: what is accepted, what is refused and how it is named."""

import json
from typing import Any

import pytest
from celery import Celery
from celery.exceptions import TaskRevokedError
from celery.result import AsyncResult
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kombu.exceptions import EncodeError
from kombu.serialization import dumps, loads
from pydantic import ValidationError

from cronium_worker.errors import Cancelled, DaemonError, Fault, JobFailed, validation_message
from cronium_worker.models import ErrorInfo, Job, JobResult, Output, OutputFile, Retry, Timings
from cronium_worker.models.fields import ENVIRONMENT_MAX_BYTES, KIB, MIB, json_bytes, parse_size

SCRIPT = {"type": "bash", "content": "echo hello"}

# ---- any valid job

_text = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
_text_without_nul = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)
_id = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_-]{0,62}", fullmatch=True)
_seconds = st.one_of(st.integers(1, 3600), st.floats(0.001, 3600))
_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | _text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_text, inner, max_size=3),
    max_leaves=8,
)
_environment = st.dictionaries(
    st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,20}", fullmatch=True).filter(
        lambda name: not name.upper().startswith("CRONIUM_")
    ),
    _text_without_nul,
    max_size=4,
)
_object = st.dictionaries(_text, _json, max_size=3)
_address = st.ip_addresses().map(str)
_image = st.sampled_from(
    ["alpine", "alpine:3.20", "registry.example:5000/team/tools:1_a", f"tools@sha256:{'0a' * 32}", "Registry.io/a__b"]
)

_fields = st.fixed_dictionaries(
    {
        "script": st.fixed_dictionaries(
            {
                "type": st.sampled_from(["bash", "python", "node", "BASH", "Python", "NODEJS", "nodejs"]),
                "content": _text_without_nul,
            },
            optional={"working_directory": st.sampled_from(["/workspace", "/workspace/a b/ü", "/tmp", "/tmp//x/."])},
        ),
    },
    optional={
        "id": _id,
        "environment": _environment,
        "secrets": _environment,
        "input_data": _json,
        "variables": _object,
        "event": _object,
        "resources": st.fixed_dictionaries(
            {},
            optional={
                "cpu": st.floats(0.01, 1024) | st.integers(1, 1024),
                "memory": st.integers(6 * MIB, 2**62) | st.sampled_from(["512m", "2G", "1.5gb", "7340032"]),
                "pids": st.integers(1, 2**22),
                "disk_io": st.integers(4 * KIB, 2**62),
                "disk": st.sampled_from(["4k", "1t"]),
            },
        ),
        "timeout": _seconds,
        "grace_period": _seconds | st.just(0),
        "image": st.none() | _image,
        "pull_policy": st.sampled_from(["if-not-present", "always", "never"]),
        "network": st.fixed_dictionaries(
            {},
            optional={
                "mode": st.sampled_from(["isolated", "none", "team-net"]),
                "dns": st.lists(_address, max_size=8),
                "extra_hosts": st.dictionaries(st.sampled_from(["db", "api.example", "a_b-c"]), _address),
            },
        ),
        "retry": st.fixed_dictionaries(
            {},
            optional={
                "max_attempts": st.integers(1, 100),
                "delay": st.floats(0, 86400),
                "backoff": st.floats(1, 100),
                "max_delay": st.floats(0, 86400),
                "on": st.lists(st.sampled_from(["failed", "timeout"]), max_size=2),
            },
        ),
        "priority": st.integers(0, 9),
        "queue": st.none() | st.sampled_from(["reports", "cronium.jobs", "a.b-c_d"]),
        "metadata": st.dictionaries(_text, _text, max_size=3),
    },
).filter(lambda fields: not fields.get("environment", {}).keys() & fields.get("secrets", {}).keys())

_quick = settings(deadline=None, database=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])


@_quick
@given(_fields)
def test_any_valid_job_survives_its_json(fields: dict[str, Any]) -> None:
    job = Job.model_validate(fields)

    again = Job.model_validate_json(job.to_json())

    assert again == job
    # What was not given is still not given: the fleet's defaults are for that.
    assert again.model_fields_set == job.model_fields_set | {"id"}
    assert again.resources.model_fields_set == job.resources.model_fields_set
    assert Job.model_validate(job.model_dump(exclude_unset=True) | {"id": job.id}) == job


@_quick
@given(_fields)
def test_any_valid_job_can_be_written_in_camel_case(fields: dict[str, Any]) -> None:
    job = Job.model_validate(fields)

    camel = job.model_dump(mode="json", by_alias=True, exclude_unset=True) | {"id": job.id}

    assert not any("_" in key for key in [*camel, *camel["script"], *camel.get("retry", {})])
    assert Job.model_validate(camel) == job
    assert Job.model_validate_json(json.dumps(camel)) == job


@_quick
@given(_fields)
def test_any_job_without_secrets_may_stand_in_a_message(fields: dict[str, Any]) -> None:
    job = Job.model_validate({**fields, "secrets": {}})

    content_type, encoding, message = dumps([job], serializer="json")

    assert Job.model_validate(loads(message, content_type, encoding, accept=["application/json"])[0]) == job


def test_a_job_with_secrets_is_sent_by_its_own_task_alone() -> None:
    job = Job.model_validate({"script": {"type": "bash", "content": ""}, "secrets": {"TOKEN": "hunter2"}})

    with pytest.raises(EncodeError, match="execute_job") as caught:
        dumps([job], serializer="json")

    assert "hunter2" not in str(caught.value)


@_quick
@given(_fields, _environment)
def test_the_stored_json_is_the_whole_job_without_its_secrets(fields: dict[str, Any], secrets: dict[str, str]) -> None:
    job = Job.model_validate({**fields, "environment": {}, "secrets": secrets})

    stored = json.loads(job.to_json(secrets=False))

    assert "secrets" not in stored
    assert Job.model_validate({**stored, "secrets": job.secrets}) == job


def test_a_job_has_the_defaults_of_the_contract() -> None:
    job = Job.model_validate({"script": {"type": "bash", "content": ""}})

    assert job.model_dump(mode="json", exclude={"id"}) == {
        "script": {"type": "bash", "content": "", "working_directory": "/workspace"},
        "environment": {},
        "secrets": {},
        "input_data": None,
        "variables": {},
        "event": {},
        "resources": {
            "cpu": 0.5,
            "memory": 536870912,
            "pids": 100,
            "disk_io": 10485760,
            "disk": 1073741824,
        },
        "timeout": 3600,
        "grace_period": 10,
        "image": None,
        "pull_policy": "if-not-present",
        "network": {"mode": "isolated", "dns": [], "extra_hosts": {}},
        "retry": {"max_attempts": 1, "delay": 1, "backoff": 2, "max_delay": 300, "on": ["failed", "timeout"]},
        "priority": 5,
        "queue": None,
        "metadata": {},
    }
    assert len(job.id) == 32
    assert job.id != Job.model_validate({"script": SCRIPT}).id


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("bash", "bash"),
        ("BASH", "bash"),
        ("Python", "python"),
        ("NODE", "node"),
        ("NODEJS", "node"),
        ("nodejs", "node"),
    ],
)
def test_script_types_are_read_in_any_case(written: str, meant: str) -> None:
    assert Job.model_validate({"script": {"type": written, "content": ""}}).script.type == meant


@pytest.mark.parametrize(
    "content",
    ["", "\r\n", "\ufeffecho", "echo", "#!/bin/false\n", "\x1b[31m\u2028\u202e", "ü" * (MIB // 2), "x" * MIB],
    ids=["empty", "crlf", "bom", "no final newline", "shebang", "controls", "1 MiB of 2-byte characters", "1 MiB"],
)
def test_script_text_is_kept_as_it_is(content: str) -> None:
    job = Job.model_validate({"script": {"type": "bash", "content": content}})

    assert Job.model_validate_json(job.to_json()).script.content == content


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1", 1),
        ("0", 0),
        ("1b", 1),
        ("1k", 1024),
        ("1K", 1024),
        ("1kb", 1024),
        ("512m", 512 * MIB),
        ("512MB", 512 * MIB),
        ("2g", 2 * 1024 * MIB),
        ("1.5g", 1536 * MIB),
        ("1t", 1024 * 1024 * MIB),
    ],
)
def test_sizes_are_read_in_dockers_notation(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "limit",
    [
        {"id": "a" * 63},
        {"environment": {"A": "x" * 64 * KIB}},
        {"environment": {"A": "ü" * 32 * KIB}},
        {"environment": {chr(65 + i): "x" * (64 * KIB - 3) for i in range(8)}},  # 8 * (1 + size + 2)
        {"environment": {f"A{number}": "" for number in range(10_000)}},
        {"environment": {"CRONIUM": "", "cron_ium": "", "_": "", "LD_PRELOAD": "x", "PATH": ""}},
        {"input_data": "x" * (8 * MIB - 2)},
        {"variables": {"v": "x" * (MIB - 8)}},
        {"event": {"e": "x" * (MIB - 8)}},
        {"resources": {"cpu": 0.01, "memory": 6 * MIB, "pids": 1, "disk_io": 4096, "disk": 4096}},
        {"resources": {"cpu": 1024, "memory": 2**63 - 1, "pids": 2**22, "disk_io": 2**63 - 1, "disk": 2**63 - 1}},
        {"timeout": 86400},
        {"timeout": 0.001},
        {"grace_period": 0},
        {"grace_period": 3600},
        {"image": "x:" + "a" * 128},
        {"network": {"dns": ["10.0.0.1"] * 8, "extra_hosts": {f"h{i}": "10.0.0.1" for i in range(64)}}},
        {"retry": {"max_attempts": 100, "delay": 0, "backoff": 1, "max_delay": 86400, "on": []}},
        {"priority": 0},
        {"priority": 9},
        {"queue": "q" * 128},
        {"metadata": {"m": "x" * (64 * KIB - 8)}},
    ],
    ids="-".join,
)
def test_values_exactly_at_their_limit_are_accepted(limit: dict[str, Any]) -> None:
    job = Job.model_validate({"script": SCRIPT, **limit})

    assert Job.model_validate_json(job.to_json()) == job


# ---- what is refused


def nested(depth: int) -> Any:
    value: Any = []
    for _ in range(depth):
        value = [value]
    return value


NAN, INFINITY = float("nan"), float("inf")
DEEP = nested(100_000)
NO_NUMBERS: dict[str, Any] = {
    "true": True,
    "NaN": NAN,
    "infinity": INFINITY,
    "text": "1",
    "null": None,
    "list": [1],
    "10^400": 10**400,
}
NO_OBJECTS: dict[str, Any] = {"null": None, "text": "A=1", "list": ["A=1"], "number": 1}

# The field that must be named → label → value.
REFUSED: dict[str, dict[str, Any]] = {
    "id": {
        "path": "../x",
        "absolute": "/abs",
        "dot": ".",
        "dots": "..",
        "empty": "",
        "64 characters": "a" * 64,
        "300 characters": "a" * 300,
        "NUL": "a\0",
        "newline inside": "a\nb",
        "newline at the end": "a\n",
        "leading dash": "-rf",
        "leading underscore": "_a",
        "full-width slash": "a\uff0fb",
        "trailing dot": "a.",
        "blank": "a b",
        "not ASCII": "é",
        "surrogate": "\ud800",
        "number": 5,
        "null": None,
        "list": ["a"],
    },
    "script": {"null": None, "text": "echo", "list": []},
    "script.type": {
        "unknown": "ruby",
        "blank at the end": "BASH ",
        "command": "bash;id",
        "empty": "",
        "null": None,
        "list": ["bash"],
        "object": {"bash": 1},
        "number": 1,
        "true": True,
    },
    "script.content": {
        "NUL": "a\0b",
        "1 MiB + 1": "x" * (MIB + 1),
        "1 MiB + 2 in 2-byte characters": "ü" * (MIB // 2 + 1),
        "10 MiB": "x" * 10 * MIB,
        "surrogate": "\ud800",
        "null": None,
        "number": 1,
        "list": ["echo"],
    },
    "script.working_directory": {
        "relative": "workspace",
        "empty": "",
        "parent": "/workspace/..",
        "parent inside": "/workspace/../etc",
        "parent at the end": "/tmp/a/..",
        "root": "/",
        "look-alike": "/workspacex",
        "two slashes": "//workspace",
        "descriptor": "/proc/self/fd/8",
        "root of a process": "/proc/1/root",
        "newline": "/workspace/a\nb",
        "NUL": "/workspace/a\0",
        "surrogate": "/tmp/\ud800",
        "1025 characters": "/workspace/" + "a" * 1014,
        "null": None,
        "list": ["/workspace"],
    },
    "input_data": {
        "8 MiB + 1": "x" * (8 * MIB - 1),
        "NaN": NAN,
        "infinity inside": {"a": [-INFINITY]},
        "surrogate": "\ud800",
        "surrogate in a key": {"\udfff": 1},
        "5000 digits": 10**5000,
        "100000 deep": DEEP,
        "300 deep": nested(300),
        "a set": {"a", "b"},
        "an object of Python": object(),
        "bytes": b"\xff",
    },
    "resources": {"null": None, "text": "512m", "list": []},
    "resources.cpu": {**NO_NUMBERS, "0": 0, "negative": -1, "under 0.01": 0.009, "over 1024": 1025, "1e308": 1e308},
    "resources.pids": {**NO_NUMBERS, "0": 0, "negative": -1, "half": 1.5, "whole float": 5.0, "over 2^22": 2**22 + 1},
    "timeout": {**NO_NUMBERS, "0": 0, "negative": -1, "over a day": 86400.001, "10 years": 315360000, "1e308": 1e308},
    "grace_period": {**NO_NUMBERS, "negative": -0.1, "over an hour": 3600.1},
    "image": {
        "empty": "",
        "blank": "a b",
        "newline": "alpine\n",
        "upper case": "Alpine",
        "option": "-x",
        "two tags": "a:b:c",
        "empty tag": "alpine:",
        "long tag": "x:" + "a" * 129,
        "short digest": "a@sha256:abc",
        "upper digest": "a@sha256:" + "A" * 64,
        "path": "../a",
        "513 characters": "a" * 513,
        "not ASCII": "älpine",
        "number": 1,
        "list": ["alpine"],
    },
    "pull_policy": {"upper case": "ALWAYS", "unknown": "sometimes", "null": None, "true": True},
    "network": {"null": None, "text": "none"},
    "network.mode": {
        "empty": "",
        "other container": "container:abc",
        "newline": "none\n",
        "path": "../x",
        "64 characters": "a" * 64,
        "null": None,
        "list": ["none"],
    },
    "network.dns": {
        "name": ["dns.example"],
        "port": ["10.0.0.1:53"],
        "network": ["10.0.0.0/8"],
        "leading zero": ["010.0.0.1"],
        "decimal": ["2852039166"],
        "nine": ["10.0.0.1"] * 9,
        "text": "10.0.0.1",
        "null": [None],
    },
    "network.extra_hosts": {
        "blank in a name": {"a b": "10.0.0.1"},
        "colon in a name": {"a:1": "10.0.0.1"},
        "empty name": {"": "10.0.0.1"},
        "254 characters": {"a" * 254: "10.0.0.1"},
        "not ASCII": {"é": "10.0.0.1"},
        "host-gateway": {"a": "host-gateway"},
        "name for an address": {"a": "b"},
        "65": {f"h{i}": "10.0.0.1" for i in range(65)},
        "list": ["a:10.0.0.1"],
    },
    "retry": {"null": None, "number": 3},
    "retry.max_attempts": {**NO_NUMBERS, "0": 0, "negative": -1, "101": 101, "half": 1.5},
    "retry.delay": {**NO_NUMBERS, "negative": -1, "over a day": 86401},
    "retry.backoff": {**NO_NUMBERS, "under 1": 0.99, "over 100": 101},
    "retry.max_delay": {**NO_NUMBERS, "negative": -1, "over a day": 86401},
    "retry.on": {"unknown": ["lost"], "cancelled": ["cancelled"], "text": "failed", "null": None},
    "priority": {**NO_NUMBERS, "negative": -1, "10": 10, "float": 5.0},
    "queue": {
        "a host's": "cronium.host.build-7",
        "empty": "",
        "blank": "a b",
        "newline": "a\n",
        "leading dot": ".a",
        "129 characters": "q" * 129,
        "number": 5,
    },
    "metadata": {
        **NO_OBJECTS,
        "number as value": {"a": 1},
        "null as value": {"a": None},
        "64 KiB + 1": {"m": "x" * (64 * KIB - 7)},
        "surrogate": {"a": "\ud800"},
    },
}
for name in ("environment", "secrets"):
    REFUSED[name] = {
        **NO_OBJECTS,
        "empty name": {"": "1"},
        "= in a name": {"A=B": "1"},
        "NUL in a name": {"A\0": "1"},
        "blank in a name": {"A B": "1"},
        "newline in a name": {"A\n": "1"},
        "digit first": {"1A": "1"},
        "dash": {"A-B": "1"},
        "exported function": {"BASH_FUNC_x%%": "() { :; }"},
        "not ASCII": {"Ä": "1"},
        "the worker's": {"CRONIUM_JOB_ID": "x"},
        "the worker's in lower case": {"cronium_token": "x"},
        "NUL": {"A": "a\0b"},
        "surrogate": {"A": "\ud800"},
        "null": {"A": None},
        "number": {"A": 1},
        "true": {"A": True},
        "64 KiB + 1": {"A": "x" * (64 * KIB + 1)},
        "64 KiB + 2 in 2-byte characters": {"A": "ü" * (32 * KIB + 1)},
        "10,000 + 1": {f"A{number}": "" for number in range(10_001)},
        "512 KiB + 1": {chr(65 + i): "x" * (64 * KIB - 3 + (i == 0)) for i in range(8)},
        "3 MB": {f"A{i}": "x" * 64 * KIB for i in range(48)},
    }
for name in ("variables", "event"):
    REFUSED[name] = {
        **NO_OBJECTS,
        "1 MiB + 1": {"v": "x" * (MIB - 7)},
        "NaN": {"a": NAN},
        "surrogate": {"a": "\ud800"},
        "5000 digits": {"a": 10**5000},
        "100000 deep": {"a": DEEP},
    }
for name in ("memory", "disk_io", "disk"):
    REFUSED[f"resources.{name}"] = {
        "true": True,
        "null": None,
        "NaN": NAN,
        "float": 536870912.0,
        "1e308": 1e308,
        "list": ["512m"],
        "0": 0,
        "0 in text": "0",
        "negative": -1,
        "negative in text": "-512m",
        "too small": 4095,
        "2^63": 2**63,
        "2^63 in text": "8388608t",
        "empty": "",
        "blank at the end": "512MB ",
        "blank first": " 512m",
        "newline": "512m\n",
        "unknown unit": "512x",
        "binary unit": "512MiB",
        "exponent": "1e9",
        "hexadecimal": "0x2000000",
        "underscore": "536_870_912",
        "Arabic digits": "٥١٢m",  # noqa: RUF001 - that is the case
        "unit alone": "m",
    }


def payload(where: str, value: Any) -> dict[str, Any]:
    """A job that is valid but for the value at `where`."""
    fields: dict[str, Any] = {"script": dict(SCRIPT)}
    first, _, second = where.partition(".")
    if second:
        fields[first] = {**fields.get(first, {}), second: value}
    else:
        fields[first] = value
    return fields


def named(error: ValidationError) -> list[str]:
    """The fields as a user sees them: by location; for a check across fields, by the message."""
    return [
        ".".join(str(part) for part in detail["loc"]) or detail["msg"].removeprefix("Value error, ").partition(":")[0]
        for detail in error.errors(include_url=False, include_input=False)
    ]


@pytest.mark.parametrize(
    ("where", "value"),
    [
        pytest.param(where, value, id=f"{where}: {label}")
        for where, cases in REFUSED.items()
        for label, value in cases.items()
    ],
)
def test_a_wrong_value_is_refused_by_the_name_of_its_field(where: str, value: Any) -> None:
    with pytest.raises(ValidationError) as caught:
        Job.model_validate(payload(where, value))

    assert all(name == where or name.startswith(f"{where}.") for name in named(caught.value))
    assert len(validation_message(caught.value).splitlines()) == 1


def test_every_field_of_the_contract_has_values_that_are_refused() -> None:
    assert {where.partition(".")[0] for where in REFUSED} == set(Job.model_fields)


@pytest.mark.parametrize(
    ("where", "fields"),
    [
        ("Privileged", {"Privileged": True}),
        ("HostConfig", {"HostConfig": {"Binds": ["/:/host"]}}),
        ("__class__", {"__class__": "x"}),
        ("timeot", {"timeot": 1}),
        ("script.args", {"script": {**SCRIPT, "args": []}}),
        ("resources.gpus", {"resources": {"gpus": 1}}),
        ("network.ports", {"network": {"ports": [80]}}),
        ("retry.forever", {"retry": {"forever": True}}),
        ("input_data", {"inputData": 1, "input_data": 2}),
    ],
)
def test_unknown_keys_are_refused_by_name(where: str, fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        Job.model_validate({"script": SCRIPT, **fields})

    assert named(caught.value) == [where]


@pytest.mark.parametrize(
    ("where", "fields"),
    [
        ("script", {}),
        ("script.content", {"script": {"type": "bash"}}),
        ("script.type", {"script": {"content": "echo"}}),
        ("secrets", {"script": SCRIPT, "environment": {"A": "1"}, "secrets": {"A": "2"}}),
    ],
)
def test_missing_and_contradictory_fields_are_named(where: str, fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        Job.model_validate(fields)

    assert named(caught.value) == [where]


@pytest.mark.parametrize("data", [None, [], "{}", 5, [["script", SCRIPT]]])
def test_what_is_no_object_is_refused(data: Any) -> None:
    with pytest.raises(ValidationError):
        Job.model_validate(data)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[" * 100_000, '{"script":' * 100_000, "null", "NaN", f'{{"priority": {"9" * 5000}}}', '{"a":1}{}'],
    ids=["empty", "cut", "deep list", "deep object", "null", "NaN", "5000 digits", "two"],
)
def test_hostile_json_is_refused(text: str) -> None:
    with pytest.raises(ValidationError):
        Job.model_validate_json(text)


def test_a_job_cannot_be_changed() -> None:
    job = Job.model_validate({"script": SCRIPT})

    with pytest.raises(ValidationError):
        job.priority = 9


# ---- nothing private is shown


CANARIES = {
    "script": {"type": "bash", "content": "CANARY-script"},
    "environment": {"E": "CANARY-environment"},
    "secrets": {"S": "CANARY-secret"},
    "input_data": {"i": "CANARY-input"},
    "variables": {"v": "CANARY-variable"},
    "event": {"e": "CANARY-event"},
}


def test_the_repr_of_a_job_shows_no_private_part() -> None:
    job = Job.model_validate({**CANARIES, "id": "the-job"})

    for shown in (repr(job), str(job), repr([job]), f"{job}"):
        assert "the-job" in shown
        assert "CANARY" not in shown


@pytest.mark.parametrize("name", CANARIES)
def test_a_refusal_shows_no_value(name: str) -> None:
    wrong: dict[str, Any] = {
        "script": {"type": "CANARY", "content": "CANARY\0"},
        "environment": {"E": "CANARY\0"},
        "secrets": {"S": "CANARY" + "x" * 70000},
        "input_data": "CANARY\ud800",
        "variables": ["CANARY"],
        "event": "CANARY",
    }

    with pytest.raises(ValidationError) as caught:
        Job.model_validate({**CANARIES, name: wrong[name]})

    assert "CANARY" not in str(caught.value)
    assert "CANARY" not in validation_message(caught.value)


def test_a_message_names_every_wrong_field_with_its_reason() -> None:
    with pytest.raises(ValidationError) as caught:
        Job.model_validate({"script": {"type": "x", "content": "a\0"}, "timeout": -1, "resources": {"memory": "lots"}})

    assert validation_message(caught.value) == (
        "script.type: Input should be 'bash', 'python' or 'node'; script.content: has a NUL byte; "
        'resources.memory: not a size: give bytes or a number with a unit, like "512m" or "2g"; '
        "timeout: Input should be greater than 0"
    )
    assert validation_message(caught.value, prefix="CRONIUM_").startswith("CRONIUM_SCRIPT__TYPE: ")


def test_a_deep_path_is_named_by_its_beginning() -> None:
    with pytest.raises(ValidationError) as caught:
        Job.model_validate({"script": SCRIPT, "input_data": nested(1000)})

    assert len(validation_message(caught.value)) < 200
    assert len(str(caught.value)) < 1000


# ---- JSON, retries


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (NAN, "JSON"),
        ({"a": INFINITY}, "JSON"),
        ("\ud800", "surrogate"),
        (DEEP, "too deeply"),
    ],
    ids=["NaN", "infinity", "surrogate", "deep"],
)
def test_what_is_not_strict_json_is_a_value_error_with_a_reason(value: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        json_bytes(value)


def test_json_is_compact_utf8() -> None:
    assert json_bytes({"a": [1, "ü"], "b": None}) == '{"a":[1,"ü"],"b":null}'.encode()


@pytest.mark.parametrize(
    ("retry", "delays"),
    [
        (Retry(), [1, 2, 4, 8]),
        (Retry(delay=0), [0, 0, 0, 0]),
        (Retry(delay=3, backoff=1), [3, 3, 3, 3]),
        (Retry(delay=10, backoff=10, max_delay=500), [10, 100, 500, 500]),
        (Retry(delay=10, max_delay=5), [5, 5, 5, 5]),
    ],
)
def test_delays_grow_to_their_maximum(retry: Retry, delays: list[float]) -> None:
    assert [retry.delay_before(attempt) for attempt in (2, 3, 4, 5)] == delays


@pytest.mark.parametrize("backoff", [1, 2, 100])
def test_no_attempt_is_too_late_for_a_delay(backoff: float) -> None:
    assert 0 <= Retry(backoff=backoff).delay_before(10_000) <= 300


# ---- results and exceptions

FAILED = JobResult(
    job_id="abc",
    status="failed",
    exit_code=3,
    error=ErrorInfo(type="script", message="the script exited with 3", details={"exit_code": 3}),
    output=Output(
        data={"a": ["ü", None]},
        condition=False,
        files={"f.txt": OutputFile(size=2, sha256="00", content="aGk=")},
        notes=("big.bin: too large",),
    ),
    timings=Timings(run_s=0.5),
)


def test_a_failure_goes_through_celerys_result_backend_with_its_result() -> None:
    app = Celery("test", broker="memory://", backend="cache+memory://", set_as_current=False)
    app.conf.result_serializer = "json"

    app.backend.store_result("task", JobFailed(FAILED), "FAILURE")
    with pytest.raises(JobFailed) as caught:
        AsyncResult("task", app=app).get(timeout=5)

    assert caught.value.result == FAILED
    assert str(caught.value) == "job abc failed: the script exited with 3"


def test_a_foreign_exception_stays_what_it_is() -> None:
    app = Celery("test", broker="memory://", backend="cache+memory://", set_as_current=False)

    app.backend.store_result("task", TaskRevokedError("revoked"), "REVOKED")

    with pytest.raises(TaskRevokedError):
        AsyncResult("task", app=app).get(timeout=5)


def test_a_failure_can_be_made_of_a_result_or_its_dict() -> None:
    assert JobFailed(FAILED.model_dump(mode="json")).result == JobFailed(FAILED).result == FAILED


def test_the_repr_of_a_failure_does_not_show_the_output() -> None:
    assert repr(JobFailed(FAILED)) == "JobFailed('abc', 'failed')"


def test_a_failure_without_a_reason_says_so() -> None:
    assert str(JobFailed(JobResult(job_id="abc", status="timeout"))) == "job abc timeout: no reason recorded"


def test_the_result_of_the_terminal_event_has_no_file_contents() -> None:
    slim = FAILED.without_contents()

    assert slim["output"]["files"] == {"f.txt": {"size": 2, "sha256": "00", "url": None}}
    assert JobResult.model_validate(slim).output.data == FAILED.output.data


def test_a_result_of_a_newer_version_can_be_read() -> None:
    newer = FAILED.model_dump(mode="json") | {"invented_later": 1}

    assert JobResult.model_validate(newer) == FAILED


@pytest.mark.parametrize("name", Timings.model_fields)
def test_times_are_never_negative(name: str) -> None:
    with pytest.raises(ValidationError):
        Timings.model_validate({name: -0.001})


@pytest.mark.parametrize("kind", Fault.__subclasses__(), ids=lambda kind: kind.__name__)
def test_every_fault_becomes_an_error_of_the_contract(kind: type[Fault]) -> None:
    info = kind("why", retryable=True, code=5).info()

    assert (info.type, info.message, info.retryable, info.details) == (kind.type, "why", True, {"code": 5})


def test_faults_are_not_retryable_unless_they_say_so() -> None:
    assert not Cancelled("x").info().retryable
    assert not DaemonError("x").info().retryable
    assert ENVIRONMENT_MAX_BYTES == 512 * KIB


@pytest.mark.parametrize("size", ["9" * 400, "9" * 400 + "g", "9" * 5000])
def test_an_endless_size_is_refused(size: str) -> None:
    with pytest.raises(ValidationError):
        Job.model_validate({"script": SCRIPT, "resources": {"memory": size}})


@pytest.mark.parametrize(
    "address", [True, 1, 2852039166, b"\x0a\0\0\1", "fe80::1%eth0", "fe80::1%a\nnameserver 6.6.6.6"]
)
@pytest.mark.parametrize("field", ["dns", "extra_hosts"])
def test_only_plain_addresses_in_text_are_addresses(field: str, address: Any) -> None:
    value = [address] if field == "dns" else {"a": address}
    with pytest.raises(ValidationError):
        Job.model_validate({"script": SCRIPT, "network": {field: value}})


@pytest.mark.parametrize("length", [253, 254])
def test_the_longest_name_of_a_host(length: int) -> None:
    fields = {"script": SCRIPT, "network": {"extra_hosts": {"h" * length: "10.0.0.1"}}}
    if length <= 253:
        assert len(Job.model_validate(fields).network.extra_hosts) == 1
    else:
        with pytest.raises(ValidationError, match="is not a host name"):
            Job.model_validate(fields)


def test_a_record_has_the_secrets_beside_it() -> None:
    job = Job.model_validate({"script": SCRIPT, "secrets": {"TOKEN": "x"}})
    assert Job.from_record(job.to_json(secrets=False), {"TOKEN": "x"}) == job


@pytest.mark.parametrize("key", ["a\nFORGED", "\x1b[2J", "\u2028", "x" * 100_000])
@pytest.mark.parametrize("nested", [False, True])
def test_a_message_is_one_short_clean_line_whatever_the_keys_are(key: str, nested: bool) -> None:
    fields: dict[str, Any] = {"metadata": {key: 1}} if nested else {key: 1}
    with pytest.raises(ValidationError) as caught:
        Job.model_validate({"script": SCRIPT, **fields})
    message = validation_message(caught.value)
    assert message.isprintable()
    assert len(message) < 500


@pytest.mark.parametrize("fields", [{"queue": "cronium.host.x"}, {"environment": {"A": "1"}, "secrets": {"A": "2"}}])
def test_checks_across_fields_have_a_location(fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as caught:
        Job.model_validate({"script": SCRIPT, **fields})
    assert caught.value.errors()[0]["loc"]


def test_what_is_accepted_can_be_read_again_from_its_json() -> None:
    value: Any = 1
    for _ in range(210):
        value = [value]
    try:
        job = Job.model_validate({"script": SCRIPT, "input_data": value})
    except ValidationError:
        return
    assert Job.model_validate_json(job.to_json()) == job
