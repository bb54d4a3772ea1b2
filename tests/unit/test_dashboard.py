"""What the web page says of events, tasks and records."""

import json
from typing import Any

import pytest
from celery.events.state import State

from cronium_worker.cli.main import cli
from cronium_worker.dashboard.app import masked, serve
from cronium_worker.dashboard.readable import line, of_record, past, readable
from cronium_worker.errors import ConfigurationError, JobFailed
from cronium_worker.models import ErrorInfo, JobResult
from cronium_worker.settings import Flower, load_settings

NODE = "jobs@build-7"


def event(kind: str, at: float = 100.0, **fields: Any) -> dict[str, Any]:
    common = {"uuid": "a1", "hostname": NODE, "timestamp": at, "local_received": at, "clock": int(at), "pid": 1}
    return {**common, "type": kind, **fields}


def shown(*events: dict[str, Any]) -> dict[str, Any]:
    """The line of task a1 after these events."""
    state = State()
    for each in events:
        state.event(readable(each))
    return line(state.tasks["a1"])


def received(**fields: Any) -> dict[str, Any]:
    return event("task-received", **{"name": "cronium.execute_job", "args": "a1 node", "kwargs": "{}", **fields})


def test_a_completed_job_is_one_line() -> None:
    result = repr(JobResult(job_id="a1", status="completed"))
    row = shown(received(), event("task-started", 101), event("task-succeeded", 104, result=result, runtime=3.0))

    wanted = {"job": "a1", "type": "node", "status": "completed", "host": "build-7", "started": 101, "runtime": 3.0}
    assert {name: row[name] for name in wanted} == wanted
    assert row["result"] == "completed"


@pytest.mark.parametrize("status", ["failed", "timeout", "cancelled"])
def test_another_end_is_its_status_without_our_traceback(status: Any) -> None:
    failure = JobFailed(JobResult(job_id="a1", status=status))
    traceback = 'Traceback (most recent call last):\n  File "/srv/cronium_worker/tasks.py", line 9'
    failed = event("task-failed", 104, exception=repr(failure), traceback=traceback)

    row = shown(received(), event("task-started", 101), failed)

    assert (row["status"], row["result"], row["runtime"]) == (status, status, 3)
    assert "traceback" not in readable(failed)


def test_a_fault_of_the_worker_is_failed_with_its_first_line() -> None:
    row = shown(received(), event("task-failed", exception="RuntimeError('no engine')\n" + "x" * 999, traceback="t"))

    assert (row["status"], row["result"]) == ("failed", "RuntimeError('no engine')")


def test_long_results_are_cut() -> None:
    assert len(shown(received(), event("task-succeeded", result="y" * 999))["result"]) == 200


def test_whatever_a_foreign_producer_calls_its_arguments_is_not_shown() -> None:
    leaky = received(args="[{'script': {'content': 'planted'}, 'secrets': {'K': 'planted'}}]", kwargs="planted")

    cleaned = readable(leaky)

    assert "planted" not in json.dumps(cleaned)
    assert shown(leaky)["job"] == "a1"


def test_maintenance_is_named_by_its_task() -> None:
    row = shown(event("task-received", name="cronium.cleanup_orphans", args="()", kwargs="{}"))

    assert (row["type"], row["is_job"], row["status"]) == ("cleanup_orphans", False, "pending")


def test_events_of_workers_are_left_alone() -> None:
    heartbeat = {"type": "worker-heartbeat", "hostname": NODE, "active": 3}

    assert readable(heartbeat) == heartbeat


RECORD = {
    "id": "a1",
    "type": "bash",
    "queue": "cronium.jobs",
    "attempt": "1",
    "host": "build-7",
    "created_at": "2026-01-02T03:04:05.000000Z",
    "started_at": "2026-01-02T03:04:07.000000Z",
    "finished_at": "2026-01-02T03:04:09.500000Z",
    "status": "failed",
}


@pytest.mark.parametrize(
    ("changed", "status", "host", "runtime"),
    [
        ({}, "failed", "build-7", 2.5),
        ({"status": "completed"}, "completed", "build-7", 2.5),
        ({"status": "cancelled", "host": None, "started_at": None}, "cancelled", "", None),
        ({"status": "running", "finished_at": None}, "running", "build-7", None),
        ({"status": "pending", "host": None, "started_at": None, "finished_at": None}, "pending", "", None),
    ],
)
def test_a_record_becomes_the_same_line(
    changed: dict[str, str | None], status: str, host: str, runtime: float | None
) -> None:
    record = {name: value for name, value in {**RECORD, **changed}.items() if value is not None}

    row = shown(*past(record))

    assert (row["status"], row["host"], row["runtime"]) == (status, host, runtime)
    assert (row["job"], row["type"], row["received"]) == ("a1", "bash", 1767323045.0)


def test_the_page_of_a_job_has_its_end_in_one_line_and_nothing_of_its_script() -> None:
    error = ErrorInfo(type="script", message="the script exited with 7\nand more")
    result = JobResult(job_id="a1", status="failed", exit_code=7, error=error)
    job = {"script": {"content": "planted"}, "environment": {"K": "planted"}, "metadata": {"team": "billing"}}

    page = of_record({**RECORD, "job": json.dumps(job), "result": result.model_dump_json()})

    assert (page["Result"], page["Exit code"]) == ("script: the script exited with 7", 7)
    assert page["Metadata"] == "team=billing"
    assert "planted" not in str(page)


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "", "192.0.2.1", "build-7.example", "localhost.example"])
def test_beyond_loopback_there_must_be_a_login(address: str) -> None:
    with pytest.raises(ConfigurationError, match=r"CRONIUM_FLOWER__USERNAME and CRONIUM_FLOWER__PASSWORD"):
        serve(Flower(address=address), report=lambda _: None)


def test_the_command_has_an_example() -> None:
    assert "cronium flower" in (cli.commands["flower"].help or "")


@pytest.mark.parametrize("name", ["USERNAME", "PASSWORD"])
def test_half_a_login_is_refused(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(f"CRONIUM_FLOWER__{name}", "hunter2-hunter2-hunter2")
    with pytest.raises(ConfigurationError, match=r"^CRONIUM_FLOWER: .*__USERNAME and __PASSWORD") as caught:
        load_settings()
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(("name", "text"), [("USERNAME", "a:b"), ("PASSWORD", "pässword"), ("PORT", "70000")])
def test_what_a_login_cannot_carry_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, text: str) -> None:
    monkeypatch.setenv(f"CRONIUM_FLOWER__{name}", text)
    with pytest.raises(ConfigurationError, match=rf"^CRONIUM_FLOWER__{name}: "):
        load_settings()


def test_the_password_is_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRONIUM_FLOWER__USERNAME", "ada")
    monkeypatch.setenv("CRONIUM_FLOWER__PASSWORD", "hunter2-hunter2-hunter2")
    settings = load_settings()
    assert settings.flower.login == "ada:hunter2-hunter2-hunter2"
    assert "hunter2" not in json.dumps(settings.masked()) + repr(settings)


def test_passwords_in_a_workers_configuration_are_masked() -> None:
    configuration = {"redbeat_redis_url": "redis://:hunter2@h/0", "worker_concurrency": 8, "timezone": "UTC"}
    assert masked(configuration) == {**configuration, "redbeat_redis_url": "redis://:***@h/0"}
