"""A program that uses one version of the package: `PYTHON driver.py` reads a call from each line and writes its answer.

Both are JSON. It runs under older versions as well, so it imports only what they have.
"""

import json
import sys
from typing import Any

from celery import chain, chord, group

import cronium_worker
from cronium_worker import JobFailed, execute_job, schedules, workflows


def submit(job: dict[str, Any]) -> str:
    return str(cronium_worker.submit(job).id)


def canvas(kind: str, jobs: list[dict[str, Any]]) -> None:
    """The jobs of a chain, a group, a chord (the last one is its body), or a job and what is linked to it."""
    signatures = [execute_job.s(job).set(task_id=job["id"]) for job in jobs]
    if kind == "link":
        first, *rest = signatures
        for each in rest:
            first.link(each)
        first.delay()
    elif kind == "chord":
        chord(signatures[:-1])(signatures[-1])
    else:
        {"chain": chain, "group": group}[kind](*signatures).delay()


def workflow(steps: list[dict[str, Any]]) -> None:
    workflows.start({"steps": steps})


def get(job_id: str) -> dict[str, Any]:
    try:
        result: dict[str, Any] = execute_job.AsyncResult(job_id).get(timeout=120)
    except JobFailed as failed:
        return failed.result.model_dump(mode="json")
    return result


def result(job_id: str) -> dict[str, Any] | None:
    found = cronium_worker.result(job_id)
    return found and found.model_dump(mode="json")


def follow(job_id: str) -> list[dict[str, Any]]:
    return list(cronium_worker.follow(job_id))


def rerun(job_id: str) -> str:
    return str(cronium_worker.rerun(job_id).id)


def add_schedule(schedule: dict[str, Any]) -> None:
    schedules.add(schedule)


def list_schedules() -> list[str]:
    return [view.name for view in schedules.schedules()]


CALLS = {
    call.__name__: call
    for call in (
        submit, canvas, workflow, get, result, follow, rerun, cronium_worker.cancel, add_schedule, list_schedules,
        schedules.remove,
    )
}  # fmt: skip


def main() -> None:
    for line in sys.stdin:
        name, arguments = json.loads(line)
        try:
            answer = {"value": CALLS[name](*arguments)}
        except Exception as error:  # noqa: BLE001 - the test decides what it may be
            answer = {"error": type(error).__name__, "message": str(error)}
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
