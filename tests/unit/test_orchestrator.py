"""The upstream orchestrator's payload, translated to a job."""

import functools
from typing import Any

import pytest
from pydantic import ValidationError

from cronium_worker.errors import validation_message
from cronium_worker.models import Job

SCRIPT = {"type": "bash", "content": ""}
PAYLOAD: dict[str, Any] = {
    "id": "job-1",
    "type": "container",
    "priority": 7,
    "createdAt": "2025-01-01T00:00:00Z",
    "attempts": 0,
    "execution": {
        "target": {"type": "local"},
        "script": {"type": "PYTHON", "content": "print(1)", "workingDirectory": "/workspace/data"},
        "environment": {"REGION": "eu"},
        "timeout": 90,
        "resources": {"cpuLimit": 1.5, "memoryLimit": "256m", "diskLimit": 1073741824, "pidsLimit": 50},
        "retryPolicy": {"maxAttempts": 3, "backoffType": "exponential", "backoffDelay": 2},
        "inputData": {"a": [1, None]},
        "variables": {"count": 1},
    },
    "metadata": {"name": "nightly", "userId": 5},
}


def with_execution(**changed: Any) -> dict[str, Any]:
    return {**PAYLOAD, "execution": {**PAYLOAD["execution"], **changed}}


def test_a_whole_payload_becomes_a_job() -> None:
    job = Job.from_orchestrator(PAYLOAD)

    assert job.model_dump(exclude_unset=True) == {
        "id": "job-1",
        "priority": 7,
        "script": {"type": "python", "content": "print(1)", "working_directory": "/workspace/data"},
        "environment": {"REGION": "eu"},
        "input_data": {"a": [1, None]},
        "variables": {"count": 1},
        "timeout": 90.0,
        "resources": {"cpu": 1.5, "memory": 268435456, "disk": 1073741824, "pids": 50},
        "retry": {"max_attempts": 3, "delay": 2.0},
        "event": {"name": "nightly", "userId": 5},
        "metadata": {"name": "nightly", "userId": "5"},
    }


def test_the_smallest_payload_takes_the_fleets_defaults() -> None:
    job = Job.from_orchestrator({"execution": {"script": {"type": "BASH", "content": "echo"}}})

    assert job.id
    assert job.model_fields_set == {"script", "event", "metadata"}


@pytest.mark.parametrize(
    ("written", "timeout_s"),
    [
        (1, 1),
        (0.5, 0.5),
        (3600, 3600),
        (86400, 86400),
        (1_000_000_000, 1),
        (90_000_000_000, 90),
        (86_400_000_000_000, 86400),
        ("1m30s", 90),
        ("1h", 3600),
        ("1h0m0.5s", 3600.5),
        ("500ms", 0.5),
        ("1500us", 0.0015),
        ("1500µs", 0.0015),
        ("2000000ns", 0.002),
    ],
)
def test_durations_are_read_in_every_form_upstream_writes(written: Any, timeout_s: float) -> None:
    assert Job.from_orchestrator(with_execution(timeout=written)).timeout == pytest.approx(timeout_s)


@pytest.mark.parametrize(
    "written", [86401, 999_999_999, "90", "1m 30s", "-1m", "1d", "m", "1m30", True, [1], {"s": 1}, -(10**400)]
)
def test_a_doubtful_duration_is_refused_by_name(written: Any) -> None:
    with pytest.raises(ValueError, match=r"^execution\.timeout: "):
        Job.from_orchestrator(with_execution(timeout=written))
    with pytest.raises(ValueError, match=r"^execution\.retryPolicy\.backoffDelay: "):
        Job.from_orchestrator(with_execution(retryPolicy={"backoffDelay": written}))


@pytest.mark.parametrize("written", [-1, 86_401_000_000_000, "25h", float("inf")])
def test_a_duration_out_of_range_is_refused_by_the_job(written: Any) -> None:
    with pytest.raises(ValidationError) as caught:
        Job.from_orchestrator(with_execution(timeout=written))

    assert validation_message(caught.value).startswith("timeout: ")


@pytest.mark.parametrize(
    "name", ["type", "createdAt", "updatedAt", "scheduledFor", "attempts", "status", "userId", "eventId"]
)
def test_what_the_orchestrator_keeps_for_itself_is_passed_over(name: str) -> None:
    assert Job.from_orchestrator(PAYLOAD | {name: 5}) == Job.from_orchestrator(PAYLOAD)
    with pytest.raises(ValueError, match=f"my{name}"):
        Job.from_orchestrator(PAYLOAD | {f"my{name}": 5})


@pytest.mark.parametrize("timeout", [None, 0])
def test_no_timeout_means_the_default(timeout: Any) -> None:
    assert "timeout" not in Job.from_orchestrator(with_execution(timeout=timeout)).model_fields_set


@pytest.mark.parametrize(
    ("policy", "retry"),
    [
        (None, None),
        ({}, None),
        ({"maxAttempts": 0}, {"max_attempts": 1}),
        ({"maxAttempts": 1}, {"max_attempts": 1}),
        ({"maxAttempts": 5, "backoffType": "fixed"}, {"max_attempts": 5, "backoff": 1}),
        ({"maxAttempts": 5, "backoffType": "constant"}, {"max_attempts": 5, "backoff": 1}),
        ({"maxAttempts": 5, "backoffType": "exponential"}, {"max_attempts": 5}),
        ({"backoffDelay": 5_000_000_000}, {"delay": 5}),
        ({"backoffDelay": "1m"}, {"delay": 60}),
    ],
)
def test_retry_policies(policy: Any, retry: dict[str, Any] | None) -> None:
    job = Job.from_orchestrator(with_execution(retryPolicy=policy))

    assert job.model_dump(exclude_unset=True).get("retry") == retry


@pytest.mark.parametrize("name", ["environment", "inputData", "variables", "resources", "retryPolicy", "target"])
def test_null_means_not_given(name: str) -> None:
    assert Job.from_orchestrator(with_execution(**{name: None})).script.type == "python"


@pytest.mark.parametrize("value", [0, False, "", [], {}])
def test_falsy_input_is_input(value: Any) -> None:
    job = Job.from_orchestrator(with_execution(inputData=value))

    assert job.input_data == value
    assert "input_data" in job.model_fields_set


def test_resources_that_are_not_limited_upstream_take_the_default() -> None:
    job = Job.from_orchestrator(with_execution(resources={"cpuLimit": 0, "memoryLimit": "", "pidsLimit": 7}))

    assert job.resources.model_fields_set == {"pids"}


@pytest.mark.parametrize(
    ("payload", "named"),
    [
        ({}, "execution"),
        ({"execution": None}, "execution"),
        ({"execution": {}}, "execution"),
        ({"execution": [1]}, "execution"),
        ({**PAYLOAD, "metadata": "x"}, "metadata"),
        ({**PAYLOAD, "metadata": {"a": functools.reduce(lambda inner, _: [inner], range(5000), 1)}}, "metadata"),
        ({**PAYLOAD, "Privileged": True}, "Privileged"),
        ({**PAYLOAD, "x\n\ud800": 1}, r"'x\\n\\ud800'"),
        (with_execution(target={"type": "ssh"}), "execution.target.type"),
        (with_execution(target={"type": ["local"]}), "execution.target.type"),
        (with_execution(target="local"), "target"),
        (with_execution(script="echo"), "script"),
        (with_execution(resources=[1]), "resources"),
        (with_execution(retryPolicy=5), "retryPolicy"),
    ],
)
def test_a_wrong_payload_is_a_value_error_that_names_the_field(payload: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=rf"^{named}: "):
        Job.from_orchestrator(payload)


@pytest.mark.parametrize(
    ("payload", "named"),
    [
        ({**PAYLOAD, "id": "../x"}, "id"),
        ({**PAYLOAD, "priority": 10}, "priority"),
        ({**PAYLOAD, "queue": "cronium.host.a"}, "queue"),
        (with_execution(script={}), "script.type"),
        (with_execution(script={"type": "RUBY", "content": ""}), "script.type"),
        (with_execution(script={"type": "BASH"}), "script.content"),
        (with_execution(script={"type": "BASH", "content": "", "workingDirectory": "/etc"}), "script.workingDirectory"),
        (with_execution(script={"type": "BASH", "content": "", "args": []}), "script.args"),
        (with_execution(environment=["A=1"]), "environment"),
        (with_execution(environment={"CRONIUM_X": "1"}), "environment"),
        (with_execution(variables=[1]), "variables"),
        (with_execution(resources={"memoryLimit": "lots"}), "resources.memory"),
        (with_execution(resources={"cpuLimit": "1"}), "resources.cpu"),
        (with_execution(retryPolicy={"maxAttempts": 101}), "retry.max_attempts"),
    ],
)
def test_a_wrong_field_is_named_by_the_job(payload: dict[str, Any], named: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Job.from_orchestrator(payload)

    assert named in [
        ".".join(map(str, detail["loc"])) or validation_message(caught.value).partition(":")[0]
        for detail in caught.value.errors()
    ]


def test_the_payload_is_left_as_it_is() -> None:
    before = repr(PAYLOAD)

    Job.from_orchestrator(PAYLOAD)

    assert repr(PAYLOAD) == before


@pytest.mark.parametrize(
    "execution",
    [
        {"retryPolicy": {"maxAttempts": "3"}},
        {"retryPolicy": {"maxAttempts": [1]}},
        {"timeout": 10**400},
        {"resources": {"memoryLimit": "9" * 400}},
        {"timeout": "9" * 400 + "h"},
    ],
)
def test_any_wrong_payload_is_a_value_error(execution: dict[str, Any]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        Job.from_orchestrator({"execution": {"script": SCRIPT, **execution}})


@pytest.mark.parametrize(
    "execution", [{"script": {**SCRIPT, "workingDirectory": ""}}, {"retryPolicy": {"maxAttempts": None}}]
)
def test_zero_values_mean_not_given(execution: dict[str, Any]) -> None:
    Job.from_orchestrator({"execution": {"script": SCRIPT, **execution}})
