"""Redis stops, dies, hangs or is full while a job runs: the job goes on, and all that it said is there afterwards."""

import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from queue import SimpleQueue

import psutil
import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import OutOfMemoryError, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError

from cronium_worker.execution.runner import Runner
from cronium_worker.execution.sandbox import Host
from cronium_worker.fleet.connections import connect
from cronium_worker.fleet.store import Claim, JobStore
from cronium_worker.fleet.writer import LogWriter
from cronium_worker.models import Job
from tests.conftest import Leftovers, wait_until
from tests.integration.conftest import Bench
from tests.own_redis import OwnRedis, own_redis

__all__ = ["own_redis"]
MIB = 1024 * 1024
READ_TIMEOUT_S = 1.0
FAULTS = ["restarting", "crashed", "frozen", "out_of_memory"]
# 100 bytes a line, some 3 MB a second; and how far it is, for those who can see the job's files.
LINES = 60_000
NUMBERED = f"""
import time
for block in range(0, {LINES}, 300):
    print("\\n".join(f"{{n:099d}}" for n in range(block, block + 300)), flush=True)
    open("/workspace/count", "w").write(str(block + 300))
    time.sleep(0.01)
"""


@pytest.fixture
def store(own_redis: OwnRedis) -> Iterator[JobStore]:
    """A worker's, but for its read timeout."""
    redis = connect(own_redis.url, retries=300, read_timeout_s=READ_TIMEOUT_S)
    yield JobStore(redis, result_ttl_s=600)
    redis.close()


@pytest.fixture
def patient_bench(host: Host, store: JobStore, leftovers: Leftovers) -> Iterator[Bench]:
    """One whose records are in the Redis that fails."""
    sent: defaultdict[str, SimpleQueue[None]] = defaultdict(SimpleQueue)
    bench = Bench(Runner(host, store, send=lambda job_id: sent[job_id].put(None)), store, sent)
    yield bench
    bench.close()
    leftovers.must_be_none()


def count(host: Host) -> int:
    """How far the running script is."""
    for path in host.settings.base_path.glob("*/sandboxes/*/**/count"):
        return int(path.read_text() or 0)
    return 0


@pytest.mark.parametrize("fault", FAULTS)
def test_a_job_that_runs_goes_on(
    own_redis: OwnRedis, store: JobStore, patient_bench: Bench, host: Host, fault: str
) -> None:
    away: AbstractContextManager[None] = getattr(own_redis, fault)()
    job = patient_bench.start(script={"type": "python", "content": NUMBERED}, resources={"cpu": 2})
    wait_until(lambda: count(host) > 3000, what="the script runs")

    with away:
        started = time.monotonic()
        # More than memory takes, and for longer than a read may last.
        wait_until(lambda: count(host) > 45_000, what="the script goes on")
        wait_until(lambda: time.monotonic() - started > 2 * READ_TIMEOUT_S)
    wait_until(lambda: store.result(job.id), what="the result")

    events = list(store.events(job.id))
    assert [event["seq"] for event in events] == list(range(len(events)))
    printed = "".join(event["data"] for event in events if event["type"] == "log")
    assert printed == "".join(f"{number:099d}\n" for number in range(LINES))
    assert [event["status"] for event in events if event["type"] == "status"] == [
        "pending",
        "preparing",
        "running",
        "completed",
    ]
    result = store.result(job.id)
    assert result is not None
    assert (result.exit_code, result.log.lines, result.log.bytes) == (0, LINES, LINES * 100)
    assert store.record(job.id)["stdout_offset"] == str(LINES * 100)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_job_that_ends_meanwhile_has_its_result(
    own_redis: OwnRedis, store: JobStore, patient_bench: Bench, leftovers: Leftovers, fault: str
) -> None:
    job = patient_bench.start(script={"type": "bash", "content": "echo one; sleep 1; echo two; exit 3"})
    wait_until(lambda: store.record(job.id)["status"] == "running", what="the script runs")

    with getattr(own_redis, fault)():
        # What it has printed is to be written first: the container is destroyed after that.
        wait_until(leftovers, what="the container")
        started = time.monotonic()
        wait_until(lambda: time.monotonic() - started > 2 * READ_TIMEOUT_S)
    wait_until(lambda: store.result(job.id), what="the result")

    events = list(store.events(job.id))
    assert "".join(event["data"] for event in events if event["type"] == "log") == "one\ntwo\n"
    assert [event["status"] for event in events if event["type"] == "status"].count("failed") == 1
    result = store.result(job.id)
    assert result is not None
    assert (result.status, result.exit_code) == ("failed", 3)


def claimed(store: JobStore, name: str) -> Claim:
    job = Job.model_validate({"id": name, "script": {"type": "bash", "content": ""}})
    store.register(job, task_id=job.id, queue="q")
    claim = store.claim(job.id, host="h")
    assert isinstance(claim, Claim)
    return claim


def test_memory_does_not_grow_while_redis_is_away(own_redis: OwnRedis, store: JobStore, tmp_path: Path) -> None:
    jobs, block = 64, "x" * 9_999 + "\n"
    claims = [claimed(store, f"j{number}") for number in range(jobs)]
    process = psutil.Process()
    with own_redis.crashed():
        writers = [
            LogWriter(
                store,
                claim,
                chunk=65536,
                buffer=100_000,
                spool_in=tmp_path,
                spool_bytes=2 * MIB,
                max_bytes=10**9,
                on_room=lambda: None,
            )
            for claim in claims
        ]
        put = [0] * jobs
        before = process.memory_info().rss
        while any(writer.has_room() for writer in writers):
            for number, writer in enumerate(writers):
                if writer.has_room():
                    put[number] += len(block)
                    writer.put("stdout", block, offset=put[number])
        grown = process.memory_info().rss - before
        assert min(put) > 2 * MIB
        # Of each: what is being written, the buffer, and what is gathered for the disk.
        assert grown < jobs * 600_000, f"{grown / MIB:.0f} MiB for {sum(put) / MIB:.0f} MiB of logs"
    for writer in writers:
        writer.close()
    for claim, written in zip(claims, put, strict=True):
        text = "".join(event["data"] for event in store.events(claim.job.id) if event["type"] == "log")
        assert len(text) == written
        assert store.record(claim.job.id)["stdout_offset"] == str(written)
    assert list(tmp_path.glob("tmp*")) == []


def test_a_write_whose_answer_got_lost_is_made_once(own_redis: OwnRedis, store: JobStore) -> None:
    claim = claimed(store, "j")
    writer = LogWriter(store, claim, chunk=65536, max_bytes=10**9, on_room=lambda: None)
    writer.put("stdout", "first\n", offset=6)  # so that Redis knows the script
    wait_until(lambda: store.record("j").get("stdout_offset") == "6", what="the first write")
    with own_redis.frozen():
        writer.put("stdout", "once\n", offset=11)
        started = time.monotonic()
        wait_until(lambda: time.monotonic() - started > 3 * READ_TIMEOUT_S)
    writer.close()
    assert [event["data"] for event in store.events("j") if event["type"] == "log"] == ["first\n", "once\n"]


# ---- clients


def test_a_caller_hears_soon_that_redis_is_full(own_redis: OwnRedis) -> None:
    caller = JobStore(connect(own_redis.url), result_ttl_s=600)
    with own_redis.out_of_memory():
        started = time.monotonic()
        with pytest.raises(OutOfMemoryError, match="maxmemory"):
            claimed(caller, "j")
        assert time.monotonic() - started < 5
    caller.redis.close()


def test_a_caller_hears_soon_that_redis_is_away(own_redis: OwnRedis) -> None:
    caller = JobStore(connect(own_redis.url), result_ttl_s=600)
    with own_redis.crashed():
        started = time.monotonic()
        with pytest.raises(RedisConnectionError, match="refused"):
            claimed(caller, "j")
        assert time.monotonic() - started < 5
    caller.redis.close()


def test_a_caller_hears_that_redis_is_silent_after_the_time_of_its_tries(own_redis: OwnRedis) -> None:
    caller = JobStore(connect(own_redis.url, retries=1, read_timeout_s=2), result_ttl_s=600)
    with own_redis.frozen():
        started = time.monotonic()
        with pytest.raises(RedisTimeoutError):
            claimed(caller, "j")
        assert time.monotonic() - started < 4  # not once for each of redis-py's nested tries
    caller.redis.close()


def test_scripts_are_there_again_after_a_restart(own_redis: OwnRedis, store: JobStore) -> None:
    claim = claimed(store, "j")
    store.renew([claim])
    with own_redis.restarting():
        pass
    store.renew([claim])  # in a pipeline
    with own_redis.crashed():
        pass
    store.write(claim, [], {"image": "i"})
    assert store.record("j")["image"] == "i"


def test_a_worker_waits_until_the_replica_is_a_primary(own_redis: OwnRedis, store: JobStore) -> None:
    claim = claimed(store, "j")
    with own_redis.client() as redis:
        redis.replicaof("127.0.0.1", 1)
        written = threading.Thread(target=store.write, args=(claim, [], {"image": "i"}))
        written.start()
        started = time.monotonic()
        wait_until(lambda: time.monotonic() - started > 0.5)
        assert written.is_alive()
        redis.replicaof("NO", "ONE")
    written.join(10)
    assert store.record("j")["image"] == "i"


def test_who_follows_a_job_goes_on_after_a_restart(own_redis: OwnRedis, store: JobStore) -> None:
    claim = claimed(store, "j")
    seen: list[str] = []

    def follow() -> None:
        seen.extend(event["type"] for event in store.follow("j"))

    follower = threading.Thread(target=follow, daemon=True)
    follower.start()
    for fault in (own_redis.restarting, own_redis.crashed):
        with fault():
            pass
    store.retry(claim, "again", fault=True)
    store.cancel("j")
    follower.join(30)
    assert not follower.is_alive()
    assert seen == ["status"] * 4


def test_a_wrong_password_is_not_waited_for(own_redis: OwnRedis) -> None:
    with own_redis.client() as redis:
        redis.config_set("requirepass", "sesame")
    with connect(own_redis.url, retries=300) as worker, pytest.raises(RedisError, match="uthentication"):
        worker.ping()


def test_a_result_for_which_redis_has_no_memory_leaves_a_job_that_has_failed(
    own_redis: OwnRedis, host: Host, leftovers: Leftovers
) -> None:
    redis = connect(own_redis.url, retries=1)
    store = JobStore(redis, result_ttl_s=600)
    bench = Bench(Runner(host, store), store, defaultdict(SimpleQueue))
    job = bench.register(script={"type": "bash", "content": "head -c 8M /dev/zero > output/file; echo done"})
    used = int(own_redis.client().info("memory")["used_memory"])  # type: ignore[union-attr,arg-type,index]
    own_redis.limit_memory(used + 5 * MIB)
    bench.take(job)
    own_redis.limit_memory(0)
    bench.close()

    result = store.result(job.id)
    assert result is not None
    assert result.error is not None
    assert (result.status, result.error.type, result.exit_code) == ("failed", "output", 0)
    assert result.error.message.startswith("Redis did not take the outputs: ")
    assert (result.output.files, result.log.bytes) == ({}, 5)
    assert [event["status"] for event in store.events(job.id) if event["type"] == "status"][-1] == "failed"
    redis.close()
    leftovers.must_be_none()
