"""The way of a log into a real Redis: order, gathering, room, and what happens when it fails."""

import resource
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from redis import Redis

from cronium_worker.errors import ClaimLost
from cronium_worker.fleet.connections import connect
from cronium_worker.fleet.events import metrics_body
from cronium_worker.fleet.store import INDEX_KEY, Claim, JobStore, record_key
from cronium_worker.fleet.writer import LogWriter
from cronium_worker.models import Job
from tests.conftest import wait_until


@pytest.fixture(scope="module")
def store(redis_url: str) -> Iterator[JobStore]:
    redis = connect(redis_url)
    yield JobStore(redis, result_ttl_s=600)
    redis.close()


@pytest.fixture
def claim(store: JobStore) -> Iterator[Claim]:
    job = Job.model_validate({"id": f"t-{uuid4().hex}", "script": {"type": "bash", "content": ""}})
    store.register(job, task_id=job.id, queue="q")
    claim = store.claim(job.id, host="h1")
    assert isinstance(claim, Claim)
    yield claim
    store.redis.delete(record_key(job.id), f"{record_key(job.id)}:events", f"{record_key(job.id)}:secrets")
    store.redis.zrem(INDEX_KEY, job.id)


class Room:
    """Counts how often there is said to be room again."""

    def __init__(self) -> None:
        self.calls = 0
        self.thread_names: set[str] = set()

    def __call__(self) -> None:
        self.calls += 1
        self.thread_names.add(threading.current_thread().name)


@pytest.fixture
def room() -> Room:
    return Room()


@pytest.fixture
def slow_redis(redis_url: str) -> Iterator[Callable[[], None]]:
    """A Redis that answers no write from here on; the function that is given lets it go on."""
    redis: Any = Redis.from_url(redis_url)
    redis.execute_command("CLIENT", "PAUSE", "30000", "WRITE")

    def go_on() -> None:
        redis.execute_command("CLIENT", "UNPAUSE")

    yield go_on
    go_on()
    redis.close()


def logged(store: JobStore, claim: Claim) -> list[tuple[str, str]]:
    events = list(store.events(claim.job.id))
    assert [event["seq"] for event in events] == list(range(len(events)))
    return [(event["stream"], event["data"]) for event in events if event["type"] == "log"]


def text(store: JobStore, claim: Claim, stream: str = "stdout") -> str:
    return "".join(data for name, data in logged(store, claim) if name == stream)


def test_text_is_written_at_once_and_in_order(store: JobStore, claim: Claim, room: Room) -> None:
    writer = LogWriter(store, claim, chunk=1000, max_bytes=10**9, on_room=room)

    writer.put("stdout", "one\n", offset=4)
    wait_until(lambda: logged(store, claim) == [("stdout", "one\n")], what="the first line, while the script runs")
    writer.put("stderr", "two\n", offset=4)
    writer.put("stdout", "three ü\0\u2028", offset=99)
    writer.close()

    assert logged(store, claim) == [("stdout", "one\n"), ("stderr", "two\n"), ("stdout", "three ü\0\u2028")]
    record = store.record(claim.job.id)
    assert (record["stdout_offset"], record["stderr_offset"]) == ("99", "4")
    assert room.calls > 0
    assert room.thread_names == {f"log {claim.job.id}"}


def test_all_that_was_put_is_written_in_order_of_each_stream(store: JobStore, claim: Claim, room: Room) -> None:
    writer = LogWriter(store, claim, chunk=50, max_bytes=10**9, on_room=room)
    expected = {"stdout": "", "stderr": ""}

    for number in range(3000):
        stream: Any = "stdout" if number % 3 else "stderr"
        line = f"{number}\n"
        expected[stream] += line
        writer.put(stream, line, offset=len(expected[stream]))
    writer.close()

    assert {stream: text(store, claim, stream) for stream in expected} == expected
    record = store.record(claim.job.id)
    assert {s: int(record[f"{s}_offset"]) for s in expected} == {s: len(t) for s, t in expected.items()}


def test_a_log_without_text_writes_nothing(store: JobStore, claim: Claim, room: Room) -> None:
    LogWriter(store, claim, chunk=50, max_bytes=10**9, on_room=room).close()

    assert logged(store, claim) == []
    assert room.calls == 0


@pytest.mark.parametrize(("length", "chunks"), [(1, 1), (99, 1), (100, 1), (101, 2), (1000, 10), (1050, 11)])
def test_no_event_has_more_than_a_chunk(store: JobStore, claim: Claim, room: Room, length: int, chunks: int) -> None:
    writer = LogWriter(store, claim, chunk=100, max_bytes=10**9, on_room=room)
    data = ("abcü" * length)[:length]

    writer.put("stdout", data, offset=length)
    writer.close()

    pieces = [piece for _, piece in logged(store, claim)]
    assert "".join(pieces) == data
    assert len(pieces) == chunks
    assert max(map(len, pieces)) <= 100


def test_while_redis_is_slow_text_is_gathered(
    store: JobStore, claim: Claim, room: Room, slow_redis: Callable[[], None]
) -> None:
    writer = LogWriter(store, claim, chunk=1000, max_bytes=10**9, on_room=room)

    for number in range(1000):
        writer.put("stdout", f"{number:04}\n", offset=5 * number + 5)
    assert logged(store, claim) == []
    slow_redis()
    writer.close()

    assert text(store, claim) == "".join(f"{number:04}\n" for number in range(1000))
    # The first line went alone, perhaps with some more; the others had to wait and came together.
    assert 5 <= len(logged(store, claim)) <= 10
    assert store.record(claim.job.id)["stdout_offset"] == "5000"


def samples(store: JobStore, claim: Claim) -> list[int]:
    return [event["n"] for event in store.events(claim.job.id) if event["type"] == "metrics"]


def test_a_sample_is_written_at_once_also_without_text(store: JobStore, claim: Claim, room: Room) -> None:
    writer = LogWriter(store, claim, chunk=1000, max_bytes=10**9, on_room=room)

    writer.put_sample(metrics_body({"n": 1}))
    wait_until(lambda: samples(store, claim) == [1], what="the sample")
    writer.put("stdout", "one\n", offset=4)
    writer.put_sample(metrics_body({"n": 2}))
    writer.close()

    assert samples(store, claim) == [1, 2]
    assert logged(store, claim) == [("stdout", "one\n")]
    assert store.record(claim.job.id)["stdout_offset"] == "4"


def test_of_the_samples_that_wait_the_newest_is_written(
    store: JobStore, claim: Claim, room: Room, slow_redis: Callable[[], None]
) -> None:
    writer = LogWriter(store, claim, chunk=1000, max_bytes=10**9, on_room=room)

    for number in range(100):
        writer.put_sample(metrics_body({"n": number}))
    slow_redis()
    writer.close()

    assert samples(store, claim)[-1] == 99
    assert len(samples(store, claim)) <= 3


def test_a_change_of_stream_is_not_gathered_away(
    store: JobStore, claim: Claim, room: Room, slow_redis: Callable[[], None]
) -> None:
    writer = LogWriter(store, claim, chunk=1000, max_bytes=10**9, on_room=room)

    for number in range(5):
        writer.put("stdout", f"out {number}\n", offset=1)
        writer.put("stderr", f"err {number}\n", offset=1)
    slow_redis()
    writer.close()

    assert [data for _, data in logged(store, claim)] == [f"{s} {n}\n" for n in range(5) for s in ("out", "err")]


def test_a_slow_redis_leaves_no_room_and_then_calls(
    store: JobStore, claim: Claim, room: Room, slow_redis: Callable[[], None]
) -> None:
    writer = LogWriter(store, claim, chunk=100, buffer=1000, max_bytes=10**9, on_room=room)
    put = 0

    while writer.has_room():
        writer.put("stdout", "x" * 99 + "\n", offset=put)
        put += 100
    assert put == 1000
    assert room.calls == 0

    slow_redis()
    wait_until(lambda: room.calls and writer.has_room(), what="room")

    writer.close()
    assert len(text(store, claim)) == put


def test_what_memory_does_not_hold_waits_on_disk_up_to_the_limit(
    store: JobStore, claim: Claim, room: Room, slow_redis: Callable[[], None], tmp_path: Path
) -> None:
    writer = LogWriter(
        store, claim, chunk=100, buffer=1000, spool_in=tmp_path, spool_bytes=300_000, max_bytes=10**9, on_room=room
    )
    offsets = {"stdout": 0, "stderr": 0}
    put = {"stdout": "", "stderr": ""}

    def fill(most: int) -> None:
        for count in range(most):
            if not writer.has_room():
                break
            stream: Any = "stderr" if count % 7 == 0 else "stdout"
            line = f"{len(put[stream])} ü\n" * 3
            offsets[stream] += len(line.encode())
            put[stream] += line
            writer.put(stream, line, offset=offsets[stream])

    fill(100_000)
    assert 250_000 < sum(offsets.values()) < 400_000  # each piece has a header in the file
    assert list(tmp_path.iterdir()) == []  # it has no name
    assert logged(store, claim) == []

    slow_redis()
    wait_until(writer.has_room, what="room, when all of it is written")
    fill(5000)  # the file may be used again
    writer.close()

    assert {stream: text(store, claim, stream) for stream in put} == put
    record = store.record(claim.job.id)
    assert {stream: int(record[f"{stream}_offset"]) for stream in put} == offsets


def test_a_full_disk_slows_the_script(
    store: JobStore, claim: Claim, slow_redis: Callable[[], None], tmp_path: Path
) -> None:
    """The limit of a file's size stands for the disk's: writing fails in the midst of a piece."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    writer = LogWriter(
        store,
        claim,
        chunk=1000,
        buffer=1000,
        spool_in=tmp_path,
        spool_bytes=10**9,
        max_bytes=10**9,
        on_room=lambda: None,
    )
    put = 0
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
    try:
        while writer.has_room():
            put += 1000
            writer.put("stdout", f"{put:0999}\n", offset=put)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    # The file's 200 kB, and what was taken to be written before: up to a batch, when the thread came late.
    assert 100_000 < put < 500_000
    slow_redis()
    writer.close()
    assert text(store, claim) == "".join(f"{number:0999}\n" for number in range(1000, put + 1, 1000))


def test_what_waits_is_written_before_the_end(
    store: JobStore, claim: Claim, room: Room, slow_redis: Callable[[], None]
) -> None:
    writer = LogWriter(store, claim, chunk=100, max_bytes=10**9, on_room=room)
    writer.put("stdout", "last words\n", offset=11)
    closing = threading.Thread(target=writer.close)
    closing.start()

    assert closing.is_alive()
    slow_redis()
    closing.join(10)

    assert not closing.is_alive()
    assert text(store, claim) == "last words\n"


def test_who_lost_the_claim_hears_it(store: JobStore, claim: Claim, room: Room) -> None:
    writer = LogWriter(store, claim, chunk=100, buffer=10, max_bytes=10**9, on_room=room)
    store.retry(claim, "again", fault=True)
    new = store.claim(claim.job.id, host="h2")
    assert isinstance(new, Claim)

    writer.put("stdout", "x" * 20, offset=20)
    wait_until(lambda: room.calls, what="a call")

    assert writer.has_room(), "whoever waits for room must wake to hear the error"
    with pytest.raises(ClaimLost):
        writer.put("stdout", "y", offset=21)
    with pytest.raises(ClaimLost):
        writer.close()
    assert logged(store, claim) == []


def test_any_failure_is_heard_by_the_owner(claim: Claim, room: Room) -> None:
    class Broken:
        def write(self, *_: Any) -> bool:
            raise OSError("no Redis")

    broken: Any = Broken()
    writer = LogWriter(broken, claim, chunk=100, max_bytes=10**9, on_room=room)

    writer.put("stdout", "x", offset=1)

    with pytest.raises(OSError, match="no Redis"):
        writer.close()
    assert room.calls == 1


def test_the_thread_ends_with_the_log(store: JobStore, claim: Claim, room: Room) -> None:
    writer = LogWriter(store, claim, chunk=100, max_bytes=10**9, on_room=room)
    name = f"log {claim.job.id}"
    assert name in [thread.name for thread in threading.enumerate()]

    writer.put("stdout", "x", offset=1)
    writer.close()
    writer.close()

    assert name not in [thread.name for thread in threading.enumerate()]


def test_small_pieces_of_both_streams_do_not_hold_up_redis_or_fill_memory(
    store: JobStore, claim: Claim, slow_redis: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    write = store.write

    def counted(claim: Claim, bodies: Any, fields: Any) -> bool:
        sizes.append(len(bodies))
        return write(claim, bodies, fields)

    monkeypatch.setattr(store, "write", counted)
    writer = LogWriter(store, claim, chunk=65536, max_bytes=10**9, on_room=lambda: None)
    for number in range(100_000):
        writer.put("stdout" if number % 2 else "stderr", "x", offset=number)
    slow_redis()
    writer.close()
    assert max(sizes) <= 1000  # one script call: all other clients of this Redis wait for it
