"""A fleet with RabbitMQ for its messages, Redis still for records and events: a real broker, a host on this machine."""

import sys
import time
from collections.abc import Iterator

import pytest
from amqp import Connection

from cronium_worker.fleet.connections import connect
from cronium_worker.fleet.hosts import HostRegistry
from cronium_worker.fleet.store import JobStore
from cronium_worker.models import JobResult
from cronium_worker.models.queues import HOST_QUEUE_PREFIX
from cronium_worker.settings import Settings
from tests.conftest import wait_until
from tests.own_rabbitmq import OwnRabbitMQ
from tests.rig import RigWorker
from tests.system.local_host import LocalHost, is_there

CONSUMER_TIMEOUT_S = 2

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnRabbitMQ]:
    broker = OwnRabbitMQ(tmp_path_factory.mktemp("rabbitmq"), consumer_timeout_s=CONSUMER_TIMEOUT_S)
    try:
        broker.start()
        yield broker
    finally:
        broker.remove()


@pytest.fixture(scope="module")
def amqp_host(settings: Settings, broker: OwnRabbitMQ, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalHost]:
    host = LocalHost(settings, tmp_path_factory.mktemp("host"))
    # By itself a node would look every twenty seconds.
    host.env |= {"CRONIUM_BROKER_URL": broker.url, "CRONIUM_SCHEDULE__CLEANUP": "1", "CRONIUM_LEASE_TTL": "120"}
    host.registry = HostRegistry(host.registry._redis, host_ttl_s=120)
    yield host
    host.close()


@pytest.fixture(scope="module")
def worker(amqp_host: LocalHost) -> RigWorker:
    """Both nodes, two slots."""
    return amqp_host.start(concurrency=2)


@pytest.fixture(scope="module")
def store(settings: Settings) -> Iterator[JobStore]:
    redis = connect(settings.redis_url.get_secret_value())
    yield JobStore(redis, result_ttl_s=600)
    redis.close()


def ready(broker: OwnRabbitMQ, queue: str) -> int:
    """Messages that the broker has given to nobody."""
    with Connection(f"127.0.0.1:{broker.port}", "guest", "guest") as connection:
        return int(connection.channel().queue_declare(queue, passive=True).message_count)


def submit(host: LocalHost, *jobs: tuple[str, int]) -> list[str]:
    """Bash scripts with their priorities, as an application sends them."""
    code = f"""
from cronium_worker import execute_job
for script, priority in {jobs!r}:
    job = {{"script": {{"type": "bash", "content": script}}, "queue": {host.queue!r}, "priority": priority}}
    print(execute_job.delay(job).id)
"""
    process = host.process(sys.executable, "-c", code)
    assert process.process.wait(30) == 0, process.log.read_text()
    return process.log.read_text().split()


def statuses(store: JobStore, jobs: list[str]) -> list[str]:
    return [store.record(job)["status"] for job in jobs]


def results(store: JobStore, jobs: list[str]) -> list[JobResult]:
    wait_until(lambda: all(store.result(job) for job in jobs), timeout_s=40, what="the results")
    return [result for job in jobs if (result := store.result(job))]


def test_priority_nine_comes_first(
    amqp_host: LocalHost, broker: OwnRabbitMQ, store: JobStore, worker: RigWorker
) -> None:
    full = submit(amqp_host, ("sleep 4", 5), ("sleep 4", 5))
    wait_until(lambda: statuses(store, full) == ["running"] * 2, what="both slots are taken")
    priorities = [0, 5, 3, 9, 7]
    jobs = submit(amqp_host, *[("true", priority) for priority in priorities])
    # The node whose slots are full holds not one of them.
    assert ready(broker, amqp_host.queue) == len(jobs)
    assert statuses(store, full) == ["running"] * 2

    started = [str(result.started_at) for result in results(store, jobs)]
    order = [priority for _, priority in sorted(zip(started, priorities, strict=True))]
    assert (set(order[:2]), set(order[2:4]), order[4]) == ({9, 7}, {5, 3}, 0)  # two slots


def test_a_job_may_last_longer_than_consumer_timeout(amqp_host: LocalHost, store: JobStore, worker: RigWorker) -> None:
    before = len(worker.log.read_text())
    long = submit(amqp_host, *[(f"sleep {2 * CONSUMER_TIMEOUT_S + 2}", 5)] * 2)
    wait_until(lambda: statuses(store, long) == ["running"] * 2, what="both slots are taken")
    behind = submit(amqp_host, ("echo behind", 5))

    assert [(result.status, result.attempt) for result in results(store, [*long, *behind])] == [("completed", 1)] * 3
    said = worker.log.read_text()[before:]
    assert "PRECONDITION_FAILED" not in said
    assert "onnection" not in said


@pytest.mark.parametrize("way", ["stop", "kill"])
def test_a_broker_that_comes_back_is_consumed_again(
    amqp_host: LocalHost, broker: OwnRabbitMQ, store: JobStore, worker: RigWorker, way: str
) -> None:
    running = submit(amqp_host, ("sleep 5; echo done", 5))
    wait_until(lambda: statuses(store, running) == ["running"], what="it runs")
    getattr(broker, way)()
    broker.start()
    back = time.monotonic()
    after = submit(amqp_host, ("true", 5))
    assert [(r.status, r.attempt) for r in results(store, [*running, *after])] == [("completed", 1)] * 2
    assert time.monotonic() - back < 30
    assert worker.process.poll() is None


def test_the_agent_has_its_queue(amqp_host: LocalHost, worker: RigWorker) -> None:
    orphan = amqp_host.plant_orphan()
    made = time.monotonic()
    wait_until(lambda: time.monotonic() - made > 1.5)
    assert amqp_host.cronium("cleanup").returncode == 0
    assert not is_there(orphan)
    assert "cleanup done" in worker.log.read_text()


def test_doctor_looks_at_the_broker_and_through_it(
    amqp_host: LocalHost, broker: OwnRabbitMQ, worker: RigWorker
) -> None:
    said = amqp_host.cronium("doctor", "--workers").stdout
    assert f"ok   broker: amqp://guest:***@127.0.0.1:{broker.port}//, RabbitMQ " in said
    assert f"ok   queue {amqp_host.queue}: taken by {amqp_host.name}" in said
    assert f"ok   agent of {amqp_host.name}: takes messages" in said


def test_the_node_hears_of_a_drain_at_once(amqp_host: LocalHost, store: JobStore, worker: RigWorker) -> None:
    started = time.monotonic()
    assert amqp_host.cronium("drain", amqp_host.name).returncode == 0
    assert time.monotonic() - started < 5  # it was told
    assert amqp_host.state() == "draining"
    job = submit(amqp_host, ("true", 5))
    assert statuses(store, job) == ["pending"]
    undone = time.monotonic()
    assert amqp_host.cronium("drain", amqp_host.name, "--undo").returncode == 0
    assert time.monotonic() - undone < 5
    assert [result.status for result in results(store, job)] == ["completed"]


def test_what_is_too_old_for_a_host_is_dropped(amqp_host: LocalHost, broker: OwnRabbitMQ, worker: RigWorker) -> None:
    assert worker.stop() == 0
    sent = amqp_host.process(
        sys.executable,
        "-c",
        f"from cronium_worker.housekeeping import CLEANUP, send; send(CLEANUP, {amqp_host.name!r})",
    )
    assert sent.process.wait(30) == 0, sent.log.read_text()
    assert ready(broker, HOST_QUEUE_PREFIX + amqp_host.name) == 1
    old = time.monotonic()
    wait_until(lambda: time.monotonic() - old > 1.5)
    agent = amqp_host.start(node="agent")
    wait_until(lambda: ready(broker, HOST_QUEUE_PREFIX + amqp_host.name) == 0, what="it is taken")
    assert agent.stop() == 0
    assert "cleanup done" not in agent.log.read_text()
