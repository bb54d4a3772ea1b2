"""Jobs on workers in containers, sent by a Celery app that has nothing of ours."""

from collections.abc import Callable
from contextlib import suppress
from uuid import uuid4

import pytest
from pytest_celery import CeleryTestSetup

from cronium_worker.errors import JobNotFound
from cronium_worker.fleet.store import JobStore
from cronium_worker.models import JobResult
from tests.conftest import wait_until


def send(setup: CeleryTestSetup, content: str) -> str:
    """As a producer in another language does."""
    job_id = uuid4().hex
    job = {"id": job_id, "script": {"type": "bash", "content": content}}
    setup.app.send_task("cronium.execute_job", args=[job], task_id=job_id, queue="cronium.jobs")
    return job_id


def result_of(store: JobStore, job_id: str) -> JobResult:
    def result() -> JobResult | None:
        with suppress(JobNotFound):  # no worker has had the message yet
            return store.result(job_id)
        return None

    found: JobResult = wait_until(result, timeout_s=60, what=f"result of {job_id}")
    return found


def results(store: JobStore, job_ids: list[str]) -> list[JobResult]:
    found = [result_of(store, job_id) for job_id in job_ids]
    assert [(result.status, result.error) for result in found] == [("completed", None)] * len(found)
    return found


@pytest.mark.timeout(240)
def test_workers_in_containers_share_the_jobs_and_one_goes_on_alone(
    celery_setup: CeleryTestSetup, store: JobStore, leftovers: Callable[[], list[str]]
) -> None:
    # One slot each: two jobs of some seconds go to two workers.
    pair = results(store, [send(celery_setup, "sleep 6; echo '[1]' | cronium_output") for _ in range(2)])
    assert {result.host for result in pair} == {"celery-fleet-1", "celery-fleet-2"}
    assert [result.output.data for result in pair] == [[1], [1]]
    # Without its host's processes in sight a worker knows a job's end from the engine, and has no figures.
    measured = {result.host: result.metrics.cpu_seconds is not None for result in pair}
    assert measured == {"celery-fleet-1": True, "celery-fleet-2": False}

    # What a killed worker has not removed yet is left to the next one of its host: here there is none.
    wait_until(lambda: not leftovers(), what="nothing left of the two")
    celery_setup.worker_cluster[0].kill()
    rest = results(store, [send(celery_setup, "exit 0") for _ in range(3)])
    assert {result.host for result in rest} == {"celery-fleet-2"}
