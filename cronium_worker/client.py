"""What a program does with jobs: submit, follow, cancel, read the result. Needs Redis, no Docker."""

import json
from collections.abc import Iterator, Mapping
from typing import Any

from cronium_worker.errors import JobConflict, SecretsUnreadable
from cronium_worker.fleet.events import Event
from cronium_worker.models import TERMINAL, Job, JobResult
from cronium_worker.tasks import execute_job, store


def submit(job: Job | Mapping[str, Any]) -> Any:
    """Enqueue a job; the same as `execute_job.delay(job)`.

    Returns celery.result.AsyncResult, whose id is the job's. Raises pydantic.ValidationError and JobConflict
    before anything is sent.
    """
    return execute_job.delay(job)


def follow(job_id: str) -> Iterator[Event]:
    """Every event of a job, once and in order: from the first one, then live, to the terminal status.

    Raises JobNotFound, and redis.exceptions.ConnectionError when Redis is away for longer than a moment.
    """
    return store().follow(job_id)


def result(job_id: str) -> JobResult | None:
    """The result, or None while the job is not finished. Raises JobNotFound."""
    return store().result(job_id)


def cancel(job_id: str) -> None:
    """End a job in whatever state it is; a finished one is left as it is. Raises JobNotFound.

    It ends at once when no worker has taken it, else with its grace period: follow it to see.
    """
    store().cancel(job_id)


def rerun(job_id: str) -> Any:
    """Enqueue a job that has ended once more, under a new id; otherwise the same job.

    Returns celery.result.AsyncResult. Raises JobNotFound; JobConflict while the job has not ended; SecretsUnreadable
    for a job with secrets, which went with its end.
    """
    record = store().fields(job_id, "job", "secrets_ttl")
    if record["status"] not in TERMINAL:
        raise JobConflict(f"job {job_id} is {record['status']}: cancel it first, or wait for its end")
    if "secrets_ttl" in record:
        raise SecretsUnreadable(f"secrets: those of job {job_id} went with its end; submit the job anew, with them")
    given = json.loads(record["job"])
    given.pop("id", None)
    return execute_job.delay(given)
