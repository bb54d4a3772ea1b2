"""Workflows on Celery's canvas: a step is a signature of `execute_job`, linked to the one that it follows.

    check = execute_job.s(look)
    check.link(then(mend, on="not_condition")).link(then(report, on="always"))
    check.delay()

Celery calls links after a success; one that has `on` is called whatever the outcome, and decides itself.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, get_args

import msgspec

from cronium_worker.errors import JobNotFound
from cronium_worker.models import Job
from cronium_worker.models.workflow import STEP, WORKFLOW, On, Workflow
from cronium_worker.policy import admit
from cronium_worker.settings import get_settings
from cronium_worker.signing import is_signed
from cronium_worker.tasks import execute_job, store


@dataclass(frozen=True)
class StepView:
    """A step as it stands. `status`: None while it has not been its turn."""

    name: str
    after: str | None
    on: str
    job_id: str
    status: str | None


def then(job: Job | Mapping[str, Any], on: On = "success") -> Any:
    """A signature to be linked to the job that this one follows (`signature.link`). It gets that one's output as its
    input if it has none of its own, and how that ended as `event.previous`.

    Raises ValueError and pydantic.ValidationError.
    """
    if on not in get_args(On):
        raise ValueError(f"on: {on!r} is none of {', '.join(get_args(On))}")
    job = job if isinstance(job, Job) else Job.model_validate(job)
    admit(job, get_settings())
    return execute_job.s(job).set(task_id=job.id, on=on)


def start(workflow: Workflow | Mapping[str, Any]) -> list[StepView]:
    """Enqueue the first step; the others follow. The workflow's id is the first step's job.

    Raises pydantic.ValidationError, JobConflict and SecretsUnreadable, before anything is sent.
    """
    workflow = workflow if isinstance(workflow, Workflow) else Workflow.model_validate(workflow)
    signatures = {step.name: then(_named(step.job, step.name), step.on) for step in workflow.steps}
    for before, step in workflow.links():
        signatures[before.name].link(signatures[step.name])
    first = signatures[workflow.steps[0].name]
    first.options.pop("on")
    return steps(first.apply_async().id)


def _named(job: Job, name: str) -> Job:
    fields = job.model_dump(exclude_unset=True) | {"id": job.id, "metadata": {**job.metadata, STEP: name}}
    return Job.model_validate(fields)


def steps(workflow_id: str) -> list[StepView]:
    """All steps, each after the one that it follows. Raises JobNotFound."""
    return _steps(_record(workflow_id))


def steps_around(job_id: str) -> list[StepView]:
    """The same of the workflow that a job is in; [] when it is in none, or its beginning has expired. Raises
    JobNotFound."""
    record = _record(job_id)
    workflow_id = _metadata(record["job"]).get(WORKFLOW)
    try:
        found = steps(workflow_id) if workflow_id else _steps(record)
    except JobNotFound:
        return []
    return found if len(found) > 1 else []


def _steps(record: Mapping[str, str]) -> list[StepView]:
    workflow_id = record["id"]
    name = _metadata(record["job"]).get(STEP, workflow_id)
    links = json.loads(record.get("message") or "{}").get("link", [])
    first = StepView(name, None, "", workflow_id, record["status"])
    return [first, *_following(name, links)]


def _following(after: str, links: list[Any]) -> Iterator[StepView]:
    for link in links:
        options = link.get("options") or {}
        if "on" in options:
            job = link["args"][0]
            metadata = _metadata(job["job"]) if is_signed(job) else job.get("metadata", {})
            name = metadata.get(STEP, options["task_id"])
            yield StepView(name, after, options["on"], options["task_id"], _status(options["task_id"]))
            yield from _following(name, options.get("link", []))


def _record(job_id: str) -> dict[str, str]:
    return store().fields(job_id, "id", "job", "message")


class _Described(msgspec.Struct):
    """Of a job, that alone."""

    metadata: dict[str, str] = {}


def _metadata(job: str) -> dict[str, str]:
    try:
        return msgspec.json.decode(job, type=_Described).metadata
    except msgspec.DecodeError:  # of another language, with half a character in it
        return {}


def _status(job_id: str) -> str | None:
    try:
        return store().fields(job_id)["status"]
    except JobNotFound:
        return None
