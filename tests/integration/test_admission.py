"""Jobs on a host that is full: who waits, who runs, what is told."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from cronium_worker.execution.admission import Admission, Share
from cronium_worker.execution.sandbox import Host
from cronium_worker.models import Job, JobResult
from tests.conftest import wait_until
from tests.integration.conftest import Bench

UNTIL_CANCELLED = {"type": "bash", "content": "sleep 300"}
ECHO = {"type": "bash", "content": "echo hi"}


@pytest.fixture
def full(make_bench: Callable[..., Bench], host: Host) -> tuple[Bench, Admission]:
    """A host for one core and 1 GiB."""
    admission = Admission(Share(1000, 2**30))
    return make_bench(on=replace(host, admission=admission)), admission


def status(bench: Bench, job: Job) -> str:
    return bench.store.record(job.id)["status"]


def waits(bench: Bench, job: Job) -> bool:
    return any("are free here" in event.get("message", "") for event in bench.store.events(job.id))


def end(bench: Bench, job: Job) -> JobResult:
    bench.runner.active.cancel(job.id)
    wait_until(lambda: bench.store.result(job.id) is not None, what="the job's end")
    result = bench.store.result(job.id)
    assert result is not None
    return result


def test_a_job_waits_until_there_is_room_for_it(full: tuple[Bench, Admission]) -> None:
    bench, admission = full
    first = bench.start(script=UNTIL_CANCELLED, resources={"cpu": 0.6, "memory": "256m"})
    wait_until(lambda: status(bench, first) == "running", what="the first runs")
    second = bench.start(script=ECHO, resources={"cpu": 0.5, "memory": "256m"}, timeout=1)
    wait_until(lambda: waits(bench, second), what="the second waits")
    assert status(bench, second) == "preparing"
    assert admission.reserved == Share(600, 2**28)

    began = time.monotonic()
    end(bench, first)
    waited_s = time.monotonic() - began
    wait_until(lambda: bench.store.result(second.id) is not None, what="the second ends")
    result = bench.store.result(second.id)
    assert result is not None
    assert result.status == "completed"  # waiting is no part of its timeout
    assert result.timings.queue_s > waited_s / 2  # the first one's end takes a moment, its result comes a bit later
    [message] = [e["message"] for e in bench.store.events(second.id) if "are free here" in e.get("message", "")]
    assert message == (
        "waiting for 0.5 cores and 256 MiB: 0.4 cores and 768 MiB of 1 cores and 1024 MiB are free here, 1 wait"
    )
    wait_until(lambda: admission.reserved == Share(0, 0), what="nothing is reserved")


def test_a_job_that_waits_can_be_cancelled(full: tuple[Bench, Admission]) -> None:
    bench, admission = full
    first = bench.start(script=UNTIL_CANCELLED, resources={"cpu": 1})
    wait_until(lambda: status(bench, first) == "running", what="the first runs")
    second = bench.start(script=ECHO, resources={"cpu": 1})
    wait_until(lambda: waits(bench, second), what="the second waits")

    result = end(bench, second)
    assert (result.status, result.started_at) == ("cancelled", None)
    assert admission.reserved == Share(1000, 512 * 2**20)
    end(bench, first)


def test_a_job_that_waits_is_given_back_when_its_worker_ends(full: tuple[Bench, Admission]) -> None:
    bench, admission = full
    admission.reserve(Share(1000, 0))
    job = bench.register(script=ECHO)
    outcome: list[Any] = []
    thread = bench.thread(lambda: outcome.append(bench.runner.run(job.id)))
    wait_until(lambda: waits(bench, job), what="the job waits")

    bench.runner.active.detach()
    thread.join(10)
    assert outcome == ["later"]
    assert status(bench, job) == "pending"
    assert admission.reserved == Share(1000, 0)


@pytest.mark.parametrize(
    ("resources", "message"),
    [
        ({"cpu": 1.5}, "resources.cpu: 1.5 is more than this host has for jobs (1 cores and 1024 MiB)"),
        ({"memory": 2**30 + 1}, f"resources.memory: {2**30 + 1} is more than this host has"),
    ],
)
def test_what_can_never_fit_is_refused_at_once(
    full: tuple[Bench, Admission], resources: dict[str, Any], message: str
) -> None:
    bench, admission = full
    admission.reserve(Share(1000, 2**30))
    ran = bench.run(script=ECHO, resources=resources)
    assert ran.result.error is not None
    assert ran.result.error.type == "validation"
    assert message in ran.result.error.message
    assert ran.statuses == ["pending", "preparing", "failed"]
