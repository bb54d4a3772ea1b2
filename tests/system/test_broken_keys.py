"""A key of Redis that somebody has overwritten: each process says once which one it is, lives, and goes on when it is
mended."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cronium_worker.fleet.connections import connect
from cronium_worker.fleet.store import JobStore
from cronium_worker.settings import Settings
from tests.conftest import wait_until
from tests.own_redis import OwnRedis
from tests.rig import RigWorker
from tests.system.local_host import LocalHost

pytestmark = [pytest.mark.attack, pytest.mark.timeout(240)]

CELERY = str(Path(sys.executable).parent / "celery")
SECOND_QUEUE = "team-a.reports"


@pytest.fixture(scope="module")
def own_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnRedis]:
    with OwnRedis(tmp_path_factory.mktemp("redis")) as redis:
        yield redis


@pytest.fixture(scope="module")
def store(own_redis: OwnRedis) -> Iterator[JobStore]:
    redis = connect(own_redis.url, retries=0)
    yield JobStore(redis, result_ttl_s=600)
    redis.close()


@pytest.fixture(scope="module")
def host(settings: Settings, own_redis: OwnRedis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalHost]:
    host = LocalHost(settings, tmp_path_factory.mktemp("host"))
    host.env |= {"CRONIUM_REDIS_URL": own_redis.url, "CRONIUM_LEASE_TTL": "6"}
    yield host
    host.close()
    host.remove_containers()


@pytest.fixture(scope="module")
def worker(host: LocalHost, store: JobStore) -> Iterator[RigWorker]:
    """Started while the keys that a start needs are broken."""
    queue = host.queue
    at_start = [f"_kombu.binding.{queue}", "_kombu.binding.reply.celery.pidbox", f"{queue}:4", "cronium:{hosts}:index"]
    for key in at_start:
        store.redis.set(key, "x")
    host.queue = f"{queue},{SECOND_QUEUE}"
    worker = host.start(concurrency=2)
    host.queue = queue
    for key in at_start:
        wait_until(lambda key=key: lines_about(worker, key), what=f"a line about {key}")
        store.redis.delete(key)
    yield worker
    assert "Unrecoverable" not in worker.log.read_text()
    assert worker.stop() == 0


def lines_about(process: RigWorker, key: str) -> list[str]:
    return [line for line in process.log.read_text().splitlines() if f"the Redis key {key} is a " in line]


def node_ids(worker: RigWorker) -> set[int]:
    return {process.pid for process in worker.processes() if "--node" in process.cmdline()}


def completes(host: LocalHost, store: JobStore, queue: str | None = None) -> bool:
    """Whether a job that is submitted now does."""
    served, host.queue = host.queue, queue or host.queue
    job_id = host.submit("true")
    host.queue = served
    return bool(wait_until(lambda: store.result(job_id), timeout_s=30, what="the job's end").status == "completed")


@pytest.mark.parametrize("key", ["unacked", "unacked_index", "unacked_mutex", "{queue}:4"])
def test_a_worker_names_the_key_and_lives(host: LocalHost, store: JobStore, worker: RigWorker, key: str) -> None:
    key = key.format(queue=host.queue)
    assert completes(host, store)
    nodes = node_ids(worker)
    before = len(lines_about(worker, key))
    wanted = {"unacked_mutex": "list"}.get(key, "string")
    store.redis.delete(key)
    if wanted == "list":
        store.redis.lpush(key, "x")
    else:
        store.redis.set(key, "x")
    waiting = None
    if key.startswith("unacked"):
        waiting = host.submit("true")
    elif key.startswith(host.queue):
        assert completes(host, store, SECOND_QUEUE)  # the other queue goes on
    wait_until(lambda: len(lines_about(worker, key)) > before, timeout_s=30, what="the line")
    doctor = host.cronium("doctor").stdout
    assert f"the Redis key {key} is a {wanted}" in doctor

    store.redis.delete(key)
    if waiting:
        wait_until(lambda: store.result(waiting), timeout_s=30, what="the job that waited")
    assert completes(host, store)
    told = lines_about(worker, key)[before:]
    assert all(f"is a {wanted}, and has to be a " in line and "delete or rename it" in line for line in told)
    assert len(told) <= 2  # once by each node
    assert node_ids(worker) == nodes
    assert worker.process.poll() is None


def test_a_job_that_runs_ends_while_a_key_of_ours_is_broken(
    host: LocalHost, store: JobStore, worker: RigWorker
) -> None:
    running = host.submit("sleep 6")
    wait_until(lambda: store.record(running)["status"] == "running", what="it runs")
    store.redis.rename("cronium:active", "kept")
    store.redis.set("cronium:active", "x")
    refused = host.cronium("run", os.devnull, "--type", "bash", "--detach", "--queue", host.queue)
    assert "the Redis key cronium:active is a string, and has to be a zset" in refused.stderr
    assert "Traceback" not in refused.stderr

    ended = wait_until(lambda: store.result(running), what="its end")
    assert ended.status == "completed"
    wait_until(lambda: lines_about(worker, "cronium:active"), what="the line")
    store.redis.rename("kept", "cronium:active")
    assert completes(host, store)
    assert len(lines_about(worker, "cronium:active")) == 1


def test_a_message_that_cannot_be_noted_is_not_lost(host: LocalHost, store: JobStore, worker: RigWorker) -> None:
    """Also one of another program, which recovery does not know."""
    message = '{"not": "a message of Celery"}'
    store.redis.set("unacked", "x")
    store.redis.lpush(SECOND_QUEUE, message)
    wait_until(lambda: store.redis.llen(SECOND_QUEUE) == 0 or lines_about(worker, "unacked"), what="seen or taken")
    store.redis.delete("unacked")
    wait_until(lambda: "message refused: not a message of Celery" in worker.log.read_text(), timeout_s=30)
    assert completes(host, store)


def test_one_broken_record_hides_no_other(host: LocalHost, store: JobStore, worker: RigWorker) -> None:
    store.redis.zadd("cronium:jobs", {"broken-one": 10**15})
    store.redis.zadd("cronium:active", {"broken-one": 0, "no id: */{}": 0})
    store.redis.sadd("cronium:{hosts}:index", "broken-host", "no host: */{}")
    store.redis.set("cronium:job:{broken-one}", "x")
    store.redis.set("cronium:{hosts}:host:broken-host", "x")
    store.redis.hset("cronium:taken", "no|number", "1")
    store.redis.hset("cronium:ended", "too|many|parts|here", "1")

    assert completes(host, store)
    assert "completed" in host.cronium("ps").stdout
    assert host.name in host.cronium("hosts").stdout
    assert ("too", "many", "parts") not in store.ended()
    store.redis.delete("cronium:job:{broken-one}", "cronium:{hosts}:host:broken-host")


def test_beat_names_the_key_and_lives(host: LocalHost, store: JobStore, worker: RigWorker) -> None:
    """Given two broken entries, one of housekeeping and one of a user; then the other schedules are fired."""
    broken = ["cronium:beat:cronium.recover_lost_jobs", "cronium:beat:schedule:broken"]
    for key in broken:
        store.redis.set(key, "x")
        store.redis.zadd("cronium:beat::schedule", {key: 1})
    beat = host.process(CELERY, "--quiet", "-A", "cronium_worker.app", "beat", "--loglevel", "INFO")
    added = host.cronium(
        "schedule", "add", "often", "--every", "1s", "--queue", host.queue, os.devnull, "--type", "bash"
    )
    assert added.returncode == 0, added.stderr
    for key in broken:
        wait_until(lambda key=key: lines_about(beat, key), timeout_s=40, what=f"a line about {key}")

    def fired() -> list[str]:
        return [row["id"] for row in store.recent(50) if row["id"].startswith("often-")]

    wait_until(fired, timeout_s=40, what="a run")
    store.redis.delete(*broken)
    wait_until(lambda: store.redis.type(broken[0]) == "hash", timeout_s=30, what="housekeeping is stored again")
    store.redis.rename("cronium:beat::schedule", "kept")
    store.redis.set("cronium:beat::schedule", "x")
    wait_until(lambda: lines_about(beat, "cronium:beat::schedule"), timeout_s=40, what="a line about the index")
    store.redis.rename("kept", "cronium:beat::schedule")
    ran = len(fired())
    wait_until(lambda: len(fired()) > ran, timeout_s=40, what="one more run")
    assert beat.process.poll() is None
    assert all(len(lines_about(beat, key)) == 1 for key in broken)
    assert host.cronium("schedule", "rm", "often").returncode == 0
