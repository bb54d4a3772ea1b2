"""Jobs that follow each other: which outcome of one lets the next one run, and what that is given of it. No I/O."""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator

from cronium_worker.models.job import Job, Model
from cronium_worker.models.result import ErrorInfo, JobResult

On = Literal["success", "failure", "condition", "not_condition", "always"]
# In a job's metadata: the first job of its workflow, the job that it followed and on what, its step's name.
WORKFLOW, AFTER, ON, STEP = "cronium.workflow", "cronium.after", "cronium.on", "cronium.step"
_NOT_TAKEN = "not_taken"
_MOST = 50


class Step(Model):
    """A job of a workflow. `after`: the name of an earlier step, not given: the one before it."""

    name: Annotated[str, Field(strict=True, pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$")]
    after: str | None = None
    on: On = "success"
    job: Job


class Workflow(Model):
    """A tree of jobs: the first step begins, each other one follows one of those before it."""

    steps: tuple[Step, ...]

    @field_validator("steps")
    @classmethod
    def _are_a_tree(cls, steps: tuple[Step, ...]) -> tuple[Step, ...]:
        if not 1 <= len(steps) <= _MOST:
            raise ValueError(f"{len(steps)}: a workflow has 1 to {_MOST} steps")
        if steps[0].after is not None or steps[0].on != "success":
            raise ValueError(f"{steps[0].name} is the first one: it has neither after nor on")
        known: set[str] = set()
        for step in steps:
            if step.name in known:
                raise ValueError(f"{step.name} is there twice: give each step a name of its own")
            if step.after is not None and step.after not in known:
                raise ValueError(f"{step.name}: after: {step.after[:80]!r} is no step before it")
            known.add(step.name)
        return steps

    def links(self) -> Iterator[tuple[Step, Step]]:
        """Each step but the first, after the one that it follows."""
        by_name = {step.name: step for step in self.steps}
        for before, step in zip(self.steps, self.steps[1:], strict=False):
            yield by_name[step.after or before.name], step


def hindrance(on: On, previous: JobResult) -> str:
    """Why a step does not run after this outcome; empty: it does."""
    status, condition = previous.status, previous.output.condition
    completed, failed = status == "completed", status in {"failed", "timeout"}
    runs = {
        "success": completed,
        "failure": failed,
        "condition": completed and condition is True,
        "not_condition": completed and condition is False,
        "always": True,
    }[on]
    if was_not_taken(previous):
        return f"not taken: nor was {previous.job_id}"
    if runs:
        return ""
    if completed and "condition" in on:
        return f"not taken: the condition of {previous.job_id} is {_CONDITIONS[condition]}"
    return f"not taken: {previous.job_id} is {status}, and it follows on {on}"


_CONDITIONS = {True: "true", False: "false", None: "not set"}


def was_not_taken(result: JobResult) -> bool:
    """Whether the job was a step of a branch that its workflow did not take."""
    return result.error is not None and result.error.details.get(_NOT_TAKEN) is True


def not_taken(job_id: str, why: str, now: str) -> JobResult:
    """The result of such a job."""
    error = ErrorInfo(type="cancelled", message=why, details={_NOT_TAKEN: True})
    return JobResult(job_id=job_id, status="cancelled", error=error, created_at=now, finished_at=now)


def following(job: Job, previous: JobResult | Sequence[JobResult], *, workflow: str, on: On) -> Job:
    """The job with what it is given of the one before it, or of all before it in a chord: the output's data as its
    input, if it has none of its own, and as `event.previous` how that has ended. Raises pydantic.ValidationError."""
    is_one = isinstance(previous, JobResult)
    results = [previous] if isinstance(previous, JobResult) else list(previous)
    data, ends = [result.output.data for result in results], [_end(result) for result in results]
    fields = job.model_dump(exclude_unset=True) | {"id": job.id}
    fields.setdefault("input_data", data[0] if is_one else data)
    fields["event"] = {**job.event, "previous": ends[0] if is_one else ends}
    origin = {WORKFLOW: workflow, AFTER: " ".join(result.job_id for result in results), ON: on}
    fields["metadata"] = {**job.metadata, **origin}
    return Job.model_validate(fields)


def _end(result: JobResult) -> dict[str, Any]:
    error = result.error and {"type": result.error.type, "message": result.error.message}
    return {
        "job_id": result.job_id,
        "status": result.status,
        "exit_code": result.exit_code,
        "condition": result.output.condition,
        "error": error,
    }
