"""What makes a job need a newer version, and what each version reads of another."""

from typing import Any

import pytest
from pydantic import ValidationError

from cronium_worker.dashboard.readable import of_record
from cronium_worker.errors import JobFailed, validation_message
from cronium_worker.fleet.hosts import HostView
from cronium_worker.models import Job, JobResult, formats
from cronium_worker.models.formats import Addition, is_from_newer, needed_format, newer_than, without
from cronium_worker.models.job import JOBS_NODE
from cronium_worker.policy import with_known_fields
from cronium_worker.web.jobs import JobSummary

BASH = {"type": "bash", "content": "true"}
# As if these fields of today had been added later.
ROWS = (Addition("metadata", 2, is_optional=True), Addition("script.type", 3, "node"), Addition("retry.delay", 3))


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "ADDITIONS", ROWS)


def job(**fields: Any) -> Job:
    return Job.model_validate({"script": BASH, **fields})


def test_this_version_reads_the_newest_format_of_its_table() -> None:
    assert max([formats.OLDEST, *(row.format for row in formats.ADDITIONS)]) == formats.FORMAT


@pytest.mark.parametrize(
    ("fields", "needed"),
    [
        ({}, 1),
        ({"priority": 9}, 1),
        ({"metadata": {"a": "b"}}, 2),
        ({"script": BASH | {"type": "node"}}, 3),
        ({"retry": {"max_attempts": 2}}, 1),
        ({"retry": {"delay": 2}}, 3),
        ({"metadata": {}, "retry": {"delay": 2}}, 3),
    ],
)
@pytest.mark.usefixtures("rows")
def test_a_job_needs_the_format_of_the_newest_field_that_it_uses(fields: dict[str, Any], needed: int) -> None:
    assert needed_format(job(**fields)) == needed
    assert {row.format for row in newer_than(1, job(**fields))} <= {2, 3}
    assert newer_than(needed, job(**fields)) == []


@pytest.mark.usefixtures("rows")
def test_what_is_left_out_is_gone_and_the_rest_is_kept() -> None:
    given = job(metadata={"a": "b"}, retry={"delay": 2, "max_attempts": 3}, secrets={"TOKEN": "x"})
    left = without(given, newer_than(1, given))
    assert left == Job.model_validate(
        {"id": given.id, "script": BASH, "retry": {"max_attempts": 3}, "secrets": {"TOKEN": "x"}}
    )
    assert needed_format(left) == 1


@pytest.mark.parametrize(
    ("fields", "hosts", "kept"),
    [
        ({}, {}, True),
        ({"metadata": {"a": "b"}}, {"h": 2}, True),
        ({"metadata": {"a": "b"}}, {"h": 2, "old": 1}, False),
        ({"script": BASH | {"type": "node"}}, {"h": 3}, True),
    ],
)
@pytest.mark.usefixtures("rows")
def test_what_a_host_does_not_know_is_left_out(fields: dict[str, Any], hosts: dict[str, int], kept: bool) -> None:
    given = job(**fields)
    assert with_known_fields(given, hosts) == (given if kept else job(id=given.id))


@pytest.mark.usefixtures("rows")
def test_hosts_that_are_too_old_are_named() -> None:
    with pytest.raises(ValidationError) as refused:
        with_known_fields(job(script=BASH | {"type": "node"}), {"new": 3, "older": 2, "oldest": 1})
    message = validation_message(refused.value)
    assert message.startswith("script.type: not known to older, oldest: upgrade these hosts (`cronium hosts`)")


@pytest.mark.parametrize(
    ("fields", "newer"),
    [
        ({"invented_later": 1}, True),
        ({"script": {**BASH, "arguments": ["a"]}}, True),
        ({"script": {"type": "command", "command": ["ls"]}}, True),  # content is not required any more
        ({"pull_policy": "sometimes"}, True),
        ({"script": {"type": "bash"}}, False),
        ({"timeout": -1}, False),
        ({"timeout": -1, "invented_later": 1}, False),
    ],
)
def test_only_unknown_keys_and_values_are_a_newer_versions(fields: dict[str, Any], newer: bool) -> None:
    with pytest.raises(ValidationError) as refused:
        job(**fields)
    assert is_from_newer(refused.value) is newer


def view(report: dict[str, Any] | None = None) -> HostView:
    return HostView(name="h", state="live", last_beat_s=1, nodes={JOBS_NODE: report} if report else {})


def test_a_host_that_does_not_report_a_format_reads_the_first_one() -> None:
    assert view({"queues": ["q"]}).job_format == 1
    assert view({"queues": ["q"], "formats": {"job": 7, "invented": 3}}).job_format == 7


@pytest.mark.parametrize(("queue", "serves"), [("q", True), (None, True), ("other", False)])
def test_a_host_counts_for_the_queues_of_its_jobs_node(queue: str | None, serves: bool) -> None:
    assert view({"queues": ["q"]}).serves(queue) is serves
    assert not view().serves(queue)


RESULT = {
    "job_id": "j",
    "status": "failed",
    "error": {"type": "environment", "message": "no such package", "invented": 1},
    "output": {"files": {"a": {"size": 1, "sha256": "0", "invented": 1}}, "invented": 1},
    "metrics": {"invented": 1.5},
    "log": {"invented": 1},
    "timings": {"invented_s": 1},
    "environment": {"name": "e"},
}


def test_a_result_of_a_newer_version_is_read() -> None:
    result = JobResult.model_validate(RESULT)
    assert result.error is not None
    assert result.error.type == "environment"
    assert JobFailed(RESULT).result == result
    assert str(JobFailed(RESULT)) == "job j failed: no such package"


def test_flower_and_api_show_what_a_newer_version_has_written() -> None:
    result = JobResult.model_validate(RESULT).model_dump_json()
    record = {"id": "j", "status": "failed", "attempt": "1", "type": "command", "job": "{}", "result": result}
    record |= {"created_at": "2026-01-01T00:00:00.000000Z", "invented": "x"}
    assert of_record(record)["Result"] == "environment: no such package"
    assert JobSummary.model_validate(record).type == "command"
