"""What a job may take of Redis, measured there: whatever it prints, however often it is tried."""

import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest

from cronium_worker.errors import ClaimLost
from cronium_worker.fleet.connections import connect
from cronium_worker.fleet.events import metrics_body, progress_body
from cronium_worker.fleet.share import make_room, with_others
from cronium_worker.fleet.store import Claim, JobStore, job_keys
from cronium_worker.fleet.writer import LogWriter
from cronium_worker.models import Job
from tests.conftest import wait_until

MIB = 1024 * 1024
CAP = 2 * MIB
# Beyond the cap: what Redis's allocator rounds up, a quarter at most (docs/scaling.md).
AT_MOST = 1.25 * CAP
# Of a stream: made for so many bytes, and not made smaller when entries are removed.
NODE = 4096
AN_ATTEMPT = 2 * NODE


@pytest.fixture
def store(redis_url: str) -> Iterator[JobStore]:
    redis = connect(redis_url)
    yield JobStore(redis, result_ttl_s=600)
    redis.close()


@pytest.fixture
def job(store: JobStore) -> Iterator[Job]:
    job = Job.model_validate({"id": f"t-{uuid4().hex}", "script": {"type": "bash", "content": ""}})
    store.register(job, task_id=job.id, queue="q")
    yield job
    store.redis.delete(*job_keys(job.id))


def claimed(store: JobStore, job: Job, *, cap: int = CAP) -> Claim:
    claim = store.claim(job.id, host="h1")
    assert isinstance(claim, Claim)
    make_room(store, claim, cap)
    return claim


def memory(store: JobStore, job: Job) -> int:
    """What the job's events take, by Redis's own account."""
    redis: Any = store.redis
    return int(redis.memory_usage(job_keys(job.id)[1], samples=0) or 0)


def printed(store: JobStore, claim: Claim, pieces: Iterator[str], *, cap: int = CAP, chunk: int = 65536) -> int:
    """Have the writer take pieces until it is full; returns the characters that it took."""
    room = threading.Event()
    writer = LogWriter(store, claim, chunk=chunk, max_bytes=cap, on_room=room.set)
    taken = 0
    for number, piece in enumerate(pieces):
        while not writer.has_room():
            room.wait(10)
            room.clear()
        took = writer.put("stderr" if number % 2 and piece == "." else "stdout", piece, offset=number + 1)
        taken += took
        if took < len(piece):
            break
    else:
        pytest.fail("the writer took all of it")
    writer.close()
    return taken


def endless(piece: str) -> Iterator[str]:
    for _ in range(400_000_000 // len(piece)):
        yield piece


@pytest.mark.attack
@pytest.mark.parametrize(
    ("piece", "characters"),
    [
        pytest.param("\0" * 8192, CAP / 6, id="NULs"),
        pytest.param("\x1b[31m\x01\x1b[0m\n" * 700, CAP / 2.3, id="colours"),
        pytest.param('"\\' * 4096, CAP / 2, id="quotes"),
        pytest.param("\n" * 1000, CAP / 2, id="empty lines"),
        pytest.param("\U0001f600" * 2000, CAP / 4, id="four bytes a character"),
        pytest.param("\ufffd" * 2000, CAP / 3, id="no text"),
        pytest.param("x" * 79 + "\n", CAP, id="plain lines"),
        pytest.param("x" * 1900, CAP, id="as long as half a node of a stream"),
        pytest.param("x" * 33_000, CAP, id="as long as Redis rounds up the most"),
    ],
)
def test_whatever_is_printed_takes_no_more_than_the_cap(
    store: JobStore, job: Job, piece: str, characters: float
) -> None:
    claim = claimed(store, job)

    taken = printed(store, claim, endless(piece))

    assert 0.9 * characters < taken <= characters
    assert memory(store, job) < AT_MOST
    assert claim.stored == int(store.record(job.id)["stored"])
    assert 0.9 * CAP < claim.stored <= CAP


@pytest.mark.attack
def test_a_change_of_stream_with_each_byte_takes_no_more_than_the_cap(store: JobStore, job: Job) -> None:
    printed(store, claimed(store, job, cap=MIB // 4), endless("."), cap=MIB // 4)

    assert memory(store, job) < 1.25 * MIB // 4


@pytest.mark.attack
def test_a_byte_every_now_and_then_takes_no_more_than_the_cap(store: JobStore, job: Job) -> None:
    """Each comes after the one before was written."""
    cap = 20_000
    claim = claimed(store, job, cap=cap)
    writer = LogWriter(store, claim, chunk=64 * 1024, max_bytes=cap, on_room=lambda: None)
    wrote: list[int] = []
    number = 0
    while not writer.full:
        number += 1
        writer._wrote_at = float("-inf")
        writer.put("stdout", "x", offset=number)
        wait_until(lambda: not writer._waits(), what="it is written")
        wrote.append(claim.stored)
    writer.close()

    assert 50 < number < 150
    assert memory(store, job) < 1.25 * cap


def test_what_does_not_fit_is_cut_at_a_whole_character_and_the_end_is_kept_for_whoever_adopts(
    store: JobStore, job: Job
) -> None:
    claim = claimed(store, job, cap=3000)
    writer = LogWriter(store, claim, chunk=500, max_bytes=3000, on_room=lambda: None)

    taken = writer.put("stdout", "€\0" * 5000, offset=20_000)
    writer.close()

    text = "".join(event["data"] for event in store.events(job.id) if event["type"] == "log")
    assert text == ("€\0" * 5000)[:taken]
    assert store.record(job.id)["stored"] == "3000"

    heir = store.adopt(job.id, attempt=1, host="h1")
    assert isinstance(heir, Claim)
    make_room(store, heir, 3000)
    writer = LogWriter(store, heir, chunk=500, max_bytes=3000, on_room=lambda: None)
    assert writer.full
    assert writer.put("stdout", "more", offset=20_004) == 0
    writer.close()


def test_an_adopted_attempt_of_a_worker_that_did_not_count_goes_on_behind_its_text(store: JobStore, job: Job) -> None:
    claim = claimed(store, job)
    store.write(claim, [], {"status": "running", "stdout_offset": 700, "stderr_offset": 300})
    store.redis.hdel(job_keys(job.id)[0], "stored")

    heir = store.adopt(job.id, attempt=1, host="h1")
    assert isinstance(heir, Claim)
    make_room(store, heir, CAP)

    assert heir.stored == 1000


# ---- attempts


def failed(store: JobStore, claim: Claim) -> None:
    store.retry(claim, "again", failure=True)


def cuts(store: JobStore, job: Job) -> list[dict[str, Any]]:
    return [event for event in store.events(job.id) if event.get("truncated")]


@pytest.mark.attack
def test_a_hundred_attempts_take_no_more_than_the_cap(store: JobStore, job: Job) -> None:
    cap = 200_000
    for attempt in range(1, 101):
        claim = claimed(store, job, cap=cap)
        assert claim.attempt == attempt
        assert claim.stored <= cap / 4
        taken = printed(store, claim, endless("x" * 4000), cap=cap)
        assert taken > 0.65 * cap, "the current attempt has room"
        assert memory(store, job) < 1.3 * cap + attempt * AN_ATTEMPT
        failed(store, claim)


@pytest.mark.attack
def test_a_hundred_attempts_with_small_events_take_no_more_than_the_cap(store: JobStore, job: Job) -> None:
    cap = 60_000
    for _ in range(100):
        claim = claimed(store, job, cap=cap)
        store.write(claim, [progress_body(f"pulling {number}") for number in range(200)])
        failed(store, claim)

    assert memory(store, job) < 1.3 * cap + 100 * AN_ATTEMPT


def test_the_oldest_of_earlier_attempts_goes_first_and_a_marker_says_how_far(store: JobStore, job: Job) -> None:
    cap = 40_000
    for attempt in (1, 2, 3):
        claim = claimed(store, job, cap=cap)
        assert claim.earlier_cut == (attempt > 1)
        printed(store, claim, iter([f"{attempt}: {number:05}\n" * 40 for number in range(1000)]), cap=cap, chunk=1000)
        store.write(claim, [metrics_body({"n": attempt})])
        failed(store, claim)

    events = list(store.events(job.id))
    (marker,) = cuts(store, job)[-1:]
    assert marker["attempt"] == 2
    seqs = [event["seq"] for event in events]
    assert seqs == sorted(set(seqs))
    removed = set(range(seqs[-1])) - set(seqs)
    assert max(removed) == marker["to_seq"]
    assert all(event["type"] == "status" for event in events if event["seq"] < marker["to_seq"])
    statuses = [event["status"] for event in events if event["type"] == "status"]
    assert statuses == ["pending", "preparing"] * 3 + ["pending"]
    text = "".join(event["data"] for event in events if event["type"] == "log")
    assert not re.search("^1:", text, re.MULTILINE)
    assert re.search("^2:", text, re.MULTILINE)
    assert [event["n"] for event in events if event["type"] == "metrics"] == [2, 3]


def test_a_job_with_little_of_a_log_keeps_all_of_it(store: JobStore, job: Job) -> None:
    for attempt in (1, 2, 3):
        claim = claimed(store, job)
        writer = LogWriter(store, claim, chunk=1000, max_bytes=CAP, on_room=lambda: None)
        writer.put("stdout", f"attempt {attempt}\n", offset=10)
        writer.close()
        failed(store, claim)

    events = list(store.events(job.id))
    assert [event["seq"] for event in events] == list(range(len(events)))
    assert [event["data"] for event in events if event["type"] == "log"] == [f"attempt {n}\n" for n in (1, 2, 3)]
    assert cuts(store, job) == []


def test_who_follows_is_not_disturbed_by_what_is_removed(store: JobStore, job: Job) -> None:
    cap = 40_000
    seen: list[Any] = []
    follower = threading.Thread(target=lambda: seen.extend(store.follow(job.id)))
    follower.start()
    for _ in range(3):
        claim = claimed(store, job, cap=cap)
        printed(store, claim, endless("x" * 997 + "\n"), cap=cap)
        failed(store, claim)
    store.cancel(job.id)
    follower.join(20)

    assert not follower.is_alive()
    assert seen[-1]["status"] == "cancelled"
    # Whoever comes late goes on behind a place that is no more.
    redis: Any = store.redis
    first = redis.xrange(job_keys(job.id)[1], count=1)[0][0]
    redis.xdel(job_keys(job.id)[1], first)
    assert next(store.follow(job.id, after=first))["seq"] == 1


def test_a_worker_that_dies_while_it_makes_room_leaves_the_rest_to_the_next(
    store: JobStore, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    cap = 60_000
    claim = claimed(store, job, cap=cap)
    store.write(claim, [progress_body(f"pulling {number}") for number in range(250)])
    failed(store, claim)

    run, calls = store.run, []

    def dies(script: str, job_id: str, *arguments: Any) -> Any:
        if script == "cut":
            calls.append(script)
            if len(calls) == 2:
                raise KeyboardInterrupt
        return run(script, job_id, *arguments)

    monkeypatch.setattr(store, "run", dies)
    claim_2 = store.claim(job.id, host="h1")
    assert isinstance(claim_2, Claim)
    with pytest.raises(KeyboardInterrupt):
        make_room(store, claim_2, cap)
    monkeypatch.undo()
    assert cuts(store, job) == []
    store.retry(claim_2, "lost", fault=True)

    claim_3 = claimed(store, job, cap=cap)
    (marker,) = cuts(store, job)
    seqs = [event["seq"] for event in store.events(job.id)]
    assert max(set(range(max(seqs))) - set(seqs)) == marker["to_seq"]
    assert claim_3.stored <= cap / 4


def test_who_lost_the_claim_removes_nothing(store: JobStore, job: Job) -> None:
    cap = 20_000
    claim = claimed(store, job, cap=cap)
    store.write(claim, [progress_body(f"pulling {number}") for number in range(100)])
    failed(store, claim)
    stale = store.claim(job.id, host="h1")
    assert isinstance(stale, Claim)
    store.redis.hincrby(job_keys(job.id)[0], "token", 1)
    before = len(list(store.events(job.id)))

    with pytest.raises(ClaimLost):
        make_room(store, stale, cap)

    assert len(list(store.events(job.id))) == before


def test_nothing_is_asked_of_redis_for_a_job_that_nobody_had_before(store: JobStore, job: Job) -> None:
    claim = store.claim(job.id, host="h1")
    assert isinstance(claim, Claim)
    nothing: Any = None

    make_room(nothing, claim, CAP)

    assert claim.stored == 0


# ---- what is not the log


@pytest.mark.attack
def test_samples_end_an_eighth_beyond_the_cap(store: JobStore, job: Job) -> None:
    cap = 20_000
    claim = claimed(store, job, cap=cap)
    writer = LogWriter(store, claim, chunk=1000, max_bytes=cap, on_room=lambda: None)
    writer.put("stdout", "x" * 50_000, offset=50_000)
    for number in range(100):
        writer.put_sample(metrics_body({"n": number}))
        writer._wrote_at = float("-inf")
        wait_until(lambda: writer._sample is None, what="it is written")
    writer.close()

    assert cap < claim.stored < with_others(cap) + 500
    assert memory(store, job) < 1.25 * with_others(cap) + NODE


# ---- how often


@pytest.fixture
def writes(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """When the store was told to write."""
    at: list[float] = []
    write: Callable[..., bool] = store.write

    def noted(*arguments: Any) -> bool:
        at.append(time.monotonic())
        return write(*arguments)

    monkeypatch.setattr(store, "write", noted)
    return at


def test_above_twenty_writes_a_second_they_are_gathered(store: JobStore, job: Job, writes: list[float]) -> None:
    writer = LogWriter(store, claimed(store, job), chunk=64 * 1024, max_bytes=CAP, on_room=lambda: None)
    script = threading.Event()
    for number in range(300):
        writer.put("stdout", "x", offset=number + 1)
        script.wait(0.001)
    writer.close()

    assert "".join(event["data"] for event in store.events(job.id) if event["type"] == "log") == "x" * 300
    assert len(writes) <= 20 * (writes[-1] - writes[0]) + 2


def test_what_comes_after_a_pause_is_written_at_once(store: JobStore, job: Job, writes: list[float]) -> None:
    writer = LogWriter(store, claimed(store, job), chunk=64 * 1024, max_bytes=CAP, on_room=lambda: None)
    script, put = threading.Event(), []
    for number in range(5):
        script.wait(0.06)
        put.append(time.monotonic())
        writer.put("stdout", "x", offset=number + 1)
        wait_until(lambda: len(writes) == len(put), what="it is written")
    writer.close()

    assert min(wrote - at for wrote, at in zip(writes, put, strict=True)) < 0.02


def test_the_end_of_a_log_waits_for_nothing(store: JobStore, job: Job, writes: list[float]) -> None:
    delays = []
    for number in range(5):
        writer = LogWriter(store, claimed(store, job), chunk=64 * 1024, max_bytes=CAP, on_room=lambda: None)
        writer.put("stdout", "first", offset=number)
        wait_until(lambda: writes, what="it is written")
        at = time.monotonic()
        writer.put("stdout", "last", offset=number)
        writer.close()
        delays.append(time.monotonic() - at)
        store.retry(writer._claim, "again", failure=True)

    assert min(delays) < 0.04
