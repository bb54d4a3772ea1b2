"""A worker whose Redis (broker, results, records) fails and comes back: it takes jobs again by itself."""

import time
from collections.abc import Iterator

import pytest

from cronium_worker.fleet.connections import connect
from cronium_worker.fleet.store import JobStore
from cronium_worker.settings import Settings
from tests.conftest import wait_until
from tests.own_redis import OwnRedis
from tests.rig import RigWorker
from tests.system.local_host import LocalHost

pytestmark = pytest.mark.timeout(180)

AWAY_S = 3
# Celery's pause between its tries to connect grows by 2 s with each.
BACK_WITHIN_S = 30


@pytest.fixture(scope="module")
def own_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnRedis]:
    with OwnRedis(tmp_path_factory.mktemp("redis")) as redis:
        yield redis


@pytest.fixture(scope="module")
def store(own_redis: OwnRedis) -> Iterator[JobStore]:
    redis = connect(own_redis.url)
    yield JobStore(redis, result_ttl_s=600)
    redis.close()


@pytest.fixture(scope="module")
def outage_host(
    settings: Settings, own_redis: OwnRedis, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LocalHost]:
    host = LocalHost(settings, tmp_path_factory.mktemp("host"))
    host.env |= {"CRONIUM_REDIS_URL": own_redis.url, "CRONIUM_LEASE_TTL": "10"}
    yield host
    host.close()
    host.remove_containers()


@pytest.fixture(scope="module")
def worker(outage_host: LocalHost) -> RigWorker:
    return outage_host.start(concurrency=2)


@pytest.mark.parametrize("fault", ["restarting", "crashed", "frozen", "out_of_memory"])
def test_it_takes_jobs_again(
    outage_host: LocalHost, own_redis: OwnRedis, store: JobStore, worker: RigWorker, fault: str
) -> None:
    lines = 50 * (AWAY_S + 2)
    running = outage_host.submit(f"for n in $(seq {lines}); do echo $n; sleep 0.02; done")
    wait_until(lambda: store.record(running)["status"] == "running", what="it runs")

    with getattr(own_redis, fault)():
        started = time.monotonic()
        wait_until(lambda: time.monotonic() - started > AWAY_S, timeout_s=AWAY_S + 5)
    after = outage_host.submit("true")
    wait_until(lambda: store.result(after), timeout_s=BACK_WITHIN_S, what="a job after the outage")
    wait_until(lambda: store.result(running), timeout_s=BACK_WITHIN_S, what="the job that ran")

    results = [store.result(job) for job in (running, after)]
    assert [(r.status, r.attempt) for r in results if r] == [("completed", 1)] * 2
    printed = [event["data"] for event in store.events(running) if event["type"] == "log"]
    assert "".join(printed).split() == [str(number) for number in range(1, lines + 1)]
    # What get() waits for.
    for job in (running, after):
        key = f"celery-task-meta-{job}"
        wait_until(
            lambda key=key: '"status": "SUCCESS"' in str(store.redis.get(key)),
            timeout_s=BACK_WITHIN_S,
            what="Celery's result",
        )
    assert worker.process.poll() is None
