"""Which step follows which outcome, and what it is given."""

from typing import Any

import pytest
from pydantic import ValidationError

from cronium_worker.errors import validation_message
from cronium_worker.models import ErrorInfo, Job, JobResult, Output
from cronium_worker.models.result import FinalStatus
from cronium_worker.models.workflow import Workflow, following, hindrance, not_taken, was_not_taken
from cronium_worker.tasks import _previous

JOB = {"script": {"type": "bash", "content": "true"}}
ONS = ("success", "failure", "condition", "not_condition", "always")


def ended(status: FinalStatus, condition: bool | None = None, data: Any = None) -> JobResult:
    return JobResult(job_id="before", status=status, output=Output(condition=condition, data=data))


@pytest.mark.parametrize(
    ("previous", "taken"),
    [
        (ended("completed"), {"success", "always"}),
        (ended("completed", True), {"success", "condition", "always"}),
        (ended("completed", False), {"success", "not_condition", "always"}),
        (ended("failed", True), {"failure", "always"}),
        (ended("timeout", False), {"failure", "always"}),
        (ended("cancelled"), {"always"}),
        (not_taken("before", "not taken: …", "2026-11-28T21:58:00Z"), set()),
    ],
)
def test_what_follows_an_outcome(previous: JobResult, taken: set[str]) -> None:
    assert {on for on in ONS if not hindrance(on, previous)} == taken  # type: ignore[arg-type]


def test_why_a_step_is_not_taken_is_said() -> None:
    assert hindrance("condition", ended("completed")) == "not taken: the condition of before is not set"
    assert hindrance("success", ended("failed")) == "not taken: before is failed, and it follows on success"
    assert hindrance("always", not_taken("before", "…", "")) == "not taken: nor was before"


def test_a_job_that_was_cancelled_otherwise_was_taken() -> None:
    error = ErrorInfo(type="cancelled", message="by somebody")
    assert not was_not_taken(JobResult(job_id="x", status="cancelled", error=error))


def test_the_next_job_gets_the_output_as_its_input() -> None:
    job = following(Job.model_validate(JOB), ended("completed", True, {"a": 1}), workflow="w", on="condition")
    assert job.input_data == {"a": 1}
    assert job.event["previous"] == {
        "job_id": "before", "status": "completed", "exit_code": None, "condition": True, "error": None,
    }  # fmt: skip
    assert job.metadata == {"cronium.workflow": "w", "cronium.after": "before", "cronium.on": "condition"}


def test_a_chords_body_gets_all_outputs() -> None:
    results = [ended("completed", data=1), ended("completed", data=2)]
    assert following(Job.model_validate(JOB), results, workflow="w", on="success").input_data == [1, 2]


def test_what_a_job_has_of_its_own_is_kept() -> None:
    own = Job.model_validate(JOB | {"input_data": None, "event": {"x": 1}, "metadata": {"y": "2"}})
    job = following(own, ended("completed", data=5), workflow="w", on="success")
    assert job.input_data is None
    assert job.event["x"] == 1
    assert job.metadata["y"] == "2"
    assert job.id == own.id


@pytest.mark.parametrize("given", [5, {"x": 1}, [5], None])
def test_what_is_no_result_is_not_taken_for_one(given: Any) -> None:
    with pytest.raises(TypeError, match=r"after another task than a job write execute_job.si\(job\)"):
        _previous(given)


@pytest.mark.parametrize(
    ("steps", "message"),
    [
        ([], "steps: 0: a workflow has 1 to 50 steps"),
        ([{"name": f"s{number}"} for number in range(51)], "steps: 51: a workflow has 1 to 50 steps"),
        ([{"name": "a", "after": "b"}], "steps: a is the first one: it has neither after nor on"),
        ([{"name": "a"}, {"name": "a"}], "steps: a is there twice: give each step a name of its own"),
        ([{"name": "a"}, {"name": "b", "after": "c"}], "steps: b: after: 'c' is no step before it"),
        ([{"name": "a"}, {"name": "b", "on": "tuesdays"}], "steps.1.on: Input should be 'success', 'failure'"),
    ],
)
def test_what_is_no_workflow(steps: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        Workflow.model_validate({"steps": [{"job": JOB, **step} for step in steps]})
    assert validation_message(caught.value).startswith(message)


@pytest.mark.parametrize("count", [1, 50])
def test_fewest_and_most_steps(count: int) -> None:
    steps = [{"name": f"s{number}", "job": JOB} for number in range(count)]
    assert len(Workflow.model_validate({"steps": steps}).steps) == count


def test_a_step_follows_the_one_before_it_unless_it_says_so() -> None:
    steps = [{"name": "a"}, {"name": "b"}, {"name": "c", "after": "a"}, {"name": "d"}]
    workflow = Workflow.model_validate({"steps": [{"job": JOB, **step} for step in steps]})
    assert [(before.name, step.name) for before, step in workflow.links()] == [("a", "b"), ("a", "c"), ("c", "d")]
