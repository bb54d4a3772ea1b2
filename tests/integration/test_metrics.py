"""What a node measures of its jobs, on the real engine and the real Redis."""

from collections.abc import Callable

import pytest
import requests
from docker.errors import APIError

from cronium_worker import metrics
from cronium_worker.engine.client import faults
from cronium_worker.engine.images import ImageManager
from cronium_worker.errors import ConfigurationError, ContainerGone, DaemonError, Fault
from cronium_worker.execution.sandbox import Host
from cronium_worker.fleet.connections import connect
from cronium_worker.fleet.oversight import Oversight
from cronium_worker.fleet.store import JobStore
from cronium_worker.settings import Pool, Registry
from tests.conftest import wait_until
from tests.integration.conftest import Bench
from tests.integration.scripts import says


class Change:
    """How much each sample has grown since."""

    def __init__(self) -> None:
        self._before = self._samples()

    @staticmethod
    def _samples() -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        return {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for family in metrics.registry.collect()
            for sample in family.samples
        }

    def of(self, name: str, **labels: str) -> float:
        key = (name, tuple(sorted(labels.items())))
        return self._samples().get(key, 0) - self._before.get(key, 0)


@pytest.fixture
def change() -> Change:
    return Change()


def test_a_job_is_measured_from_the_queue_to_its_record(bench: Bench, change: Change) -> None:
    ran = bench.run(script=says("bash", "one\ntwo"))

    assert change.of("cronium_jobs_finished_total", status="completed", type="bash", error_type="") == 1
    for phase in ("queue", "admission", "image", "sandbox", "setup", "run", "collect", "total"):
        assert change.of("cronium_job_phase_seconds_count", phase=phase) == 1, phase
    spent = {phase: change.of("cronium_job_phase_seconds_sum", phase=phase) for phase in ("run", "setup", "total")}
    assert spent["run"] == pytest.approx(ran.result.timings.run_s)
    assert spent["setup"] == pytest.approx(ran.result.timings.setup_s)
    assert spent["total"] > spent["run"] + spent["setup"]
    for phase in ("workspace", "create", "start", "destroy"):
        assert change.of("cronium_sandbox_phase_seconds_count", phase=phase) == 1, phase
    assert change.of("cronium_log_bytes_total") == ran.result.log.bytes
    assert change.of("cronium_log_lines_total") == ran.result.log.lines == 2
    assert change.of("cronium_pool_jobs_total", type="bash", outcome="own") == 1
    assert change.of("cronium_claims_total", how="taken") == 1


def test_failures_and_what_is_made_again(bench: Bench, change: Change) -> None:
    bench.run(script={"type": "bash", "content": "exit 3"}, retry={"max_attempts": 2, "delay": 0})
    bench.run(script={"type": "bash", "content": "sleep 60"}, timeout=0.2, grace_period=0)

    assert change.of("cronium_attempts_retried_total", type="bash", error_type="script") == 1
    assert change.of("cronium_jobs_finished_total", status="failed", type="bash", error_type="script") == 1
    assert change.of("cronium_jobs_finished_total", status="timeout", type="bash", error_type="timeout") == 1
    assert change.of("cronium_job_phase_seconds_count", phase="run") == 3


def test_what_is_over_the_cap_is_counted(make_bench: Callable[..., Bench], host: Host, change: Change) -> None:
    log = host.settings.log.model_copy(update={"max_bytes": 1500})
    bench = make_bench(log=log)
    bench.run(script={"type": "bash", "content": "printf %02500d 0"})

    dropped = change.of("cronium_log_dropped_bytes_total")
    assert (change.of("cronium_log_bytes_total"), 1000 < dropped < 2500) == (2500, True)


def test_jobs_that_find_a_sandbox_and_those_that_do_not(make_bench: Callable[..., Bench], change: Change) -> None:
    bench = make_bench(pool=Pool(size=1, minimum=1))
    bench.run(script=says("bash", "x"))
    bench.runner.start()
    wait_until(lambda: bench.runner.pool_count().waiting == 1, what="one waits")
    bench.run(script=says("bash", "x"))

    assert change.of("cronium_pool_jobs_total", type="bash", outcome="miss") == 1
    assert change.of("cronium_pool_jobs_total", type="bash", outcome="hit") == 1
    assert change.of("cronium_pool_age_seconds_count") == 1


def test_a_claim_that_is_lost(bench: Bench, store: JobStore, change: Change) -> None:
    job = bench.start(script={"type": "bash", "content": "sleep 60"}, grace_period=0)
    wait_until(lambda: bench.runner.standing() == {("running", "bash"): 1}, what="it runs")
    store.redis.hincrby(f"cronium:job:{{{job.id}}}", "token", 1)  # another has it
    store.cancel(job.id)
    bench.settle()

    assert change.of("cronium_claims_lost_total") == 1
    assert bench.runner.standing() == {}


def test_leases_are_renewed_at(bench: Bench) -> None:
    before = metrics.registry.get_sample_value("cronium_lease_renewed_timestamp_seconds")
    bench.runner.renew_leases()

    assert metrics.registry.get_sample_value("cronium_lease_renewed_timestamp_seconds") > before


def test_what_the_engine_refuses_and_what_it_does_not_answer(host: Host, change: Change) -> None:
    with pytest.raises(ContainerGone):
        host.engine.state("no-such-container")
    assert change.of("cronium_engine_errors_total", outcome="refused") == 0  # that is an answer
    with pytest.raises(Fault):
        host.engine.start("no-such-container")
    assert change.of("cronium_engine_errors_total", outcome="refused") == 1

    failed = requests.Response()
    failed.status_code = 500
    for error in (APIError("broken", response=failed), ConnectionRefusedError()):
        with pytest.raises(Fault), faults(DaemonError, "container list"):
            raise error
    assert change.of("cronium_engine_errors_total", outcome="failed") == 1
    assert change.of("cronium_engine_errors_total", outcome="unanswered") == 1


def test_a_pull_that_fails(host: Host, change: Change) -> None:
    images = ImageManager(host.engine, Registry())
    with pytest.raises(Fault):
        images.pull("127.0.0.1:1/none:1", policy="always", cancelled=lambda: False, progress=lambda *_, **__: None)

    assert change.of("cronium_image_pull_seconds_count") == 1
    reasons = {s.labels["reason"] for f in metrics.registry.collect() for s in f.samples if "reason" in s.labels}
    assert sum(change.of("cronium_image_pull_failures_total", reason=reason) for reason in reasons) == 1


def test_each_try_to_reach_redis_that_fails(change: Change) -> None:
    away = connect("redis://127.0.0.1:1/0", retries=2, on_error=metrics.redis_error)
    with pytest.raises(Exception, match="refused"):
        away.ping()
    away.close()

    assert change.of("cronium_redis_errors_total", error="ConnectionError") >= 3


def test_a_port_that_is_taken_is_said(redis_url: str) -> None:
    port = int(redis_url.rpartition(":")[2].partition("/")[0])

    with pytest.raises(ConfigurationError, match=rf"CRONIUM_METRICS__PORT: cannot listen on 127.0.0.1:{port}: "):
        metrics.serve("127.0.0.1", port)


# ---- the fleet's counts


def test_jobs_that_nobody_looks_after(bench: Bench, store: JobStore) -> None:
    oversight = Oversight(store)
    before = oversight.backlog()
    job = bench.register(script=says("bash", "x"))
    store.look_at(job.id, in_s=-30)
    due = oversight.backlog()
    store.look_at(job.id, in_s=-90)
    overdue = oversight.backlog()
    store.settle(job.id)

    assert due == before._replace(unsettled=before.unsettled + 1)
    assert overdue == due._replace(overdue=before.overdue + 1)
    assert oversight.backlog() == before


@pytest.fixture
def ended(store: JobStore) -> Callable[[], dict[tuple[str, str, str], int]]:
    before = store.ended()

    def grown() -> dict[tuple[str, str, str], int]:
        return {key: more for key, count in store.ended().items() if (more := count - before.get(key, 0))}

    return grown


def test_each_job_that_ends_is_counted_once(
    bench: Bench, store: JobStore, ended: Callable[[], dict[tuple[str, str, str], int]]
) -> None:
    bench.run(script=says("bash", "x"))
    bench.run(script={"type": "python", "content": "raise SystemExit(2)"}, retry={"max_attempts": 2, "delay": 0})
    waiting = bench.register(script=says("node", "x"))
    store.cancel(waiting.id)
    store.cancel(waiting.id)

    assert ended() == {
        ("completed", "bash", ""): 1,
        ("failed", "python", "script"): 1,
        ("cancelled", "node", "cancelled"): 1,
    }
