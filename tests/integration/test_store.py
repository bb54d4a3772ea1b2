"""Records, events and cancels on a real Redis: each job's life, and who may write to it."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, cast
from uuid import uuid4

import pytest
from cryptography.fernet import Fernet
from redis.crc import key_slot

from cronium_worker.errors import ClaimLost, JobConflict, JobNotFound, SecretsUnreadable
from cronium_worker.fleet import store as store_module
from cronium_worker.fleet.cancels import CancelListener
from cronium_worker.fleet.connections import connect
from cronium_worker.fleet.events import Event, claim_body, log_body, metrics_body, progress_body, status_body
from cronium_worker.fleet.pieces import get_pieces, in_pieces, set_pieces
from cronium_worker.fleet.store import CANCEL_CHANNEL, INDEX_KEY, Claim, JobStore, record_key
from cronium_worker.models import ErrorInfo, Job, JobResult, Output, OutputFile, formats
from cronium_worker.models.result import ReadyOutput
from tests.conftest import wait_until

TTL_S = 600
GONE = -2  # TTL's answer
KEY = Fernet.generate_key().decode()


@pytest.fixture(scope="module", params=[2, 3], ids=["RESP2", "RESP3"])
def store(request: pytest.FixtureRequest, redis_url: str) -> Iterator[JobStore]:
    separator = "&" if "?" in redis_url else "?"
    redis = connect(f"{redis_url}{separator}protocol={request.param}")
    yield JobStore(redis, result_ttl_s=TTL_S, secret_keys=[KEY])
    redis.close()


@pytest.fixture
def register(store: JobStore) -> Iterator[Callable[..., Job]]:
    """Registers jobs with ids of their own; nothing of them is left."""
    ids: list[str] = []

    def register(*, by: JobStore = store, **fields: Any) -> Job:
        fields = {"id": f"t-{uuid4().hex}", "script": {"type": "bash", "content": "echo"}, **fields}
        job = Job.model_validate(fields)
        ids.append(job.id)
        by.register(job, task_id=f"task-{job.id}", queue="q")
        return job

    yield register
    for job_id in ids:
        keys = [record_key(job_id) + suffix for suffix in ("", ":events", ":secrets")]
        store.redis.delete(*keys, *whole_results(store, job_id))
        store.redis.zrem(INDEX_KEY, job_id)


@pytest.fixture
def job(register: Callable[..., Job]) -> Job:
    return register(secrets={"TOKEN": "hunter2"})


def taken(store: JobStore, job: Job, host: str = "h1") -> Claim:
    claim = store.claim(job.id, host=host)
    assert isinstance(claim, Claim)
    return claim


def outcome(job: Job, status: Any = "completed", **more: Any) -> JobResult:
    return JobResult(job_id=job.id, status=status, finished_at="2025-01-01T00:00:00.000000Z", **more)


def events(store: JobStore, job: Job) -> list[Event]:
    found = list(store.events(job.id))
    assert [event["seq"] for event in found] == list(range(len(found)))
    return found


def statuses(store: JobStore, job: Job) -> list[str]:
    return [event["status"] for event in events(store, job) if event["type"] == "status"]


def ttl(store: JobStore, job: Job, suffix: str = "") -> int:
    return int(store.redis.ttl(record_key(job.id) + suffix))  # type: ignore[arg-type]


# ---- the way of a job


def test_a_refusal_is_a_record_but_never_over_another_job(store: JobStore, job: Job) -> None:
    """As when a foreign producer sends another job under the id of one that runs."""
    unknown = f"t-{uuid4().hex}"
    error = ErrorInfo(type="validation", message="id: is taken by another job")
    taken(store, job)

    for job_id in (unknown, job.id):
        store.refuse(JobResult(job_id=job_id, status="failed", error=error))

    refused = store.result(unknown)
    assert refused is not None
    assert (refused.status, refused.error) == ("failed", error)
    assert [event["status"] for event in store.events(unknown)] == ["failed"]
    assert statuses(store, job) == ["pending", "preparing"]
    assert store.result(job.id) is None
    store.redis.delete(record_key(unknown), f"{record_key(unknown)}:events")
    store.redis.zrem(INDEX_KEY, unknown)


def test_a_registered_job_waits(store: JobStore, register: Callable[..., Job]) -> None:
    job = register(metadata={"a": "ü"}, secrets={"TOKEN": "hunter2"})

    record = store.record(job.id)

    assert {name: record[name] for name in ("id", "status", "attempt", "type", "queue", "task_id")} == {
        "id": job.id,
        "status": "pending",
        "attempt": "1",
        "type": "bash",
        "queue": "q",
        "task_id": f"task-{job.id}",
    }
    assert record["created_at"] == record["queued_at"]
    assert json.loads(record["job"])["metadata"] == {"a": "ü"}
    assert store.result(job.id) is None
    (event,) = events(store, job)
    assert list(event) == ["v", "job_id", "seq", "ts", "type", "status", "message", "attempt", "host"]
    assert (event["v"], event["job_id"], event["status"], event["attempt"]) == (1, job.id, "pending", 1)


def test_secrets_are_beside_the_record_and_encrypted(store: JobStore, job: Job) -> None:
    assert "hunter2" not in json.dumps(store.record(job.id))
    content = json.loads(Fernet(KEY).decrypt(str(store.redis.get(f"{record_key(job.id)}:secrets"))))
    assert content == {"job_id": job.id, "secrets": {"TOKEN": "hunter2"}}


def with_keys(store: JobStore, *keys: str, secret_ttl_s: int = TTL_S) -> JobStore:
    return JobStore(store.redis, result_ttl_s=TTL_S, secret_keys=keys, secret_ttl_s=secret_ttl_s)


def refusal(store: JobStore, job: Job) -> str:
    """Why the job has ended without having run."""
    result = store.result(job.id)
    assert result is not None
    assert result.error is not None
    assert (result.status, result.error.type, result.error.retryable) == ("failed", "validation", False)
    assert statuses(store, job)[-1] == "failed"
    assert ttl(store, job, ":secrets") == GONE
    return result.error.message


def test_keys_are_changed_while_jobs_wait(store: JobStore, job: Job) -> None:
    key = Fernet.generate_key().decode()

    assert not with_keys(store, key, KEY).register(job, task_id="t", queue="q")
    claim = with_keys(store, key, KEY).claim(job.id, host="h")

    assert isinstance(claim, Claim)
    assert claim.job.secrets == {"TOKEN": "hunter2"}


def test_a_job_goes_on_under_the_new_key_alone(store: JobStore, register: Callable[..., Job]) -> None:
    key = Fernet.generate_key().decode()
    job = register(secrets={"TOKEN": "hunter2"}, by=with_keys(store, key, KEY))

    claim = with_keys(store, key).claim(job.id, host="h")

    assert isinstance(claim, Claim)
    assert claim.job == job


@pytest.mark.parametrize("keys", [[], [Fernet.generate_key().decode()]], ids=["no key", "another key"])
def test_a_worker_that_cannot_decrypt_ends_the_job_with_the_remedy(store: JobStore, job: Job, keys: list[str]) -> None:
    assert with_keys(store, *keys).claim(job.id, host="h") == "finished"

    assert "CRONIUM_SECRET_KEYS" in refusal(store, job)


def test_secrets_of_another_job_are_refused(store: JobStore, register: Callable[..., Job]) -> None:
    job, other = register(secrets={"A": "1"}), register(secrets={"A": "2"})
    stolen = store.redis.get(f"{record_key(other.id)}:secrets")
    store.redis.set(f"{record_key(job.id)}:secrets", str(stolen))

    assert store.claim(job.id, host="h") == "finished"

    assert "another job" in refusal(store, job)


def test_without_a_key_a_job_with_secrets_is_not_written(store: JobStore, register: Callable[..., Job]) -> None:
    job = Job.model_validate({"script": {"type": "bash", "content": ""}, "secrets": {"A": "1"}})

    with pytest.raises(SecretsUnreadable, match="cronium key"):
        with_keys(store).register(job, task_id="t", queue="q")

    assert not store.redis.exists(record_key(job.id), f"{record_key(job.id)}:secrets")
    assert store.redis.zscore(INDEX_KEY, job.id) is None


def test_secrets_of_a_job_that_nobody_ends_go_by_themselves(store: JobStore, register: Callable[..., Job]) -> None:
    short = with_keys(store, KEY, secret_ttl_s=1)
    job = register(secrets={"TOKEN": "hunter2"}, by=short)

    wait_until(lambda: ttl(store, job, ":secrets") == GONE, what="secrets gone")

    assert not store.register(job, task_id="t", queue="q")
    assert store.claim(job.id, host="h") == "finished"
    assert "CRONIUM_SECRET_TTL" in refusal(store, job)


def test_whoever_has_a_job_keeps_its_secrets(store: JobStore, job: Job) -> None:
    def shorten() -> None:
        store.redis.expire(f"{record_key(job.id)}:secrets", 5)

    def kept() -> bool:
        return ttl(store, job, ":secrets") > 5

    assert kept()
    shorten()
    claim = taken(store, job)
    assert kept()
    shorten()
    store.renew([claim])
    assert kept()
    shorten()
    store.retry(claim, "again", fault=True)
    assert kept()


def test_a_job_without_secrets_is_not_one_with(store: JobStore, register: Callable[..., Job]) -> None:
    job = register()
    with pytest.raises(JobConflict):
        store.register(job.model_copy(update={"secrets": {"TOKEN": "new"}}), task_id="t", queue="q")
    store.finish(taken(store, job), outcome(job), "completed")
    with pytest.raises(JobConflict):
        store.register(job.model_copy(update={"secrets": {"TOKEN": "new"}}), task_id="t", queue="q")


def test_a_claim_brings_the_whole_job(store: JobStore, job: Job) -> None:
    claim = taken(store, job)

    assert claim.job == job
    assert (claim.attempt, claim.host, claim.cancel_requested) == (1, "h1", False)
    assert "hunter2" not in repr(claim)
    record = store.record(job.id)
    assert (record["status"], record["host"]) == ("preparing", "h1")
    event = events(store, job)[-1]
    assert (event["status"], event["attempt"], event["host"]) == ("preparing", 1, "h1")


def test_a_job_goes_its_way_to_the_end(store: JobStore, job: Job) -> None:
    claim = taken(store, job)

    store.write(
        claim,
        [status_body("running", "in x", attempt=1, host="h1"), metrics_body({"pids_peak": 1})],
        {"status": "running", "started_at": "now"},
    )
    assert store.record(job.id)["status"] == "running"
    store.write(claim, [log_body("stdout", "ü\0\n"), log_body("stderr", "\u2028")], {"stdout_offset": 4})
    store.finish(claim, outcome(job, exit_code=0, attempt=1), "completed")

    assert statuses(store, job) == ["pending", "preparing", "running", "completed"]
    logs = [(event["stream"], event["data"]) for event in events(store, job) if event["type"] == "log"]
    assert logs == [("stdout", "ü\0\n"), ("stderr", "\u2028")]
    record = store.record(job.id)
    assert (record["status"], record["stdout_offset"], record["started_at"]) == ("completed", "4", "now")
    assert store.result(job.id) == outcome(job, exit_code=0, attempt=1)
    assert store.claim(job.id, host="h2") == "finished"


def test_the_terminal_event_has_the_result_without_file_contents(store: JobStore, job: Job) -> None:
    files = {"f": OutputFile(size=2, sha256="00", content="aGk=")}
    result = outcome(job, output=Output(data=[1], files=files))

    store.finish(taken(store, job), result, "completed")

    last = events(store, job)[-1]
    assert last["result"]["output"]["data"] == [1]
    assert last["result"]["output"]["files"] == {"f": {"size": 2, "sha256": "00", "url": None}}
    assert store.result(job.id) == result


def whole_results(store: JobStore, job_id: str) -> list[str]:
    return list(store.redis.scan_iter(f"{record_key(job_id)}:result:*", count=1000))


def large(job: Job) -> tuple[JobResult, JobResult]:
    """A result with 24 MiB of files, as a process of the job's has written it, and as it is read."""
    files = {name: OutputFile(size=2**23, sha256="00", content="eHh4" * (2**23 // 3)) for name in "abc"}
    read = outcome(job, output=Output(data=[1], files=files, condition=True))
    without = read.output.model_dump_json(exclude={"files": {"__all__": {"content"}}}).encode()
    pieces = in_pieces([read.output.model_dump_json().encode()])
    return read.model_copy(update={"output": ReadyOutput.of(pieces, [without], condition=True)}), read


def test_a_large_result_keeps_nobody_waiting(store: JobStore, register: Callable[..., Job]) -> None:
    store.redis.config_set("slowlog-log-slower-than", 1000)

    def longest_ms() -> float:
        """Of all commands that it takes to end a job."""
        job = register()
        claim, (written, read) = taken(store, job), large(job)
        store.redis.slowlog_reset()
        store.finish(claim, written, "completed")
        longest = max((entry["duration"] for entry in store.redis.slowlog_get(128)), default=0)
        assert store.result(job.id) == read
        assert events(store, job)[-1]["result"]["output"]["files"]["a"]["size"] == 2**23
        return longest / 1000

    assert min(longest_ms() for _ in range(3)) < 40  # some 4; a script that puts it together, 160


@pytest.mark.parametrize("there", [1, 3], ids=["an answer got lost", "a new primary has fewer"])
@pytest.mark.parametrize("into", ["list", "string"])
def test_pieces_are_whole_however_often_they_are_sent(
    store: JobStore, job: Job, into: Literal["list", "string"], there: int
) -> None:
    key, pieces = f"{record_key(job.id)}:{into}", [b"first", b"2nd", b"\xff", b"last"]
    set_pieces(store.redis, key, pieces[:there], into=into, ttl_s=60)

    set_pieces(store.redis, key, pieces, into=into, ttl_s=60)

    if into == "list":
        assert list(get_pieces(store.redis, key)) == pieces
    else:
        assert cast(Any, store.redis).execute_command("GET", key, NEVER_DECODE=True) == b"".join(pieces)
    assert 0 < store.redis.ttl(key) <= 60


def test_a_large_result_lies_beside_the_record_and_goes_with_it(store: JobStore, job: Job) -> None:
    written, _ = large(job)
    store.finish(taken(store, job), written, "completed")

    [key] = whole_results(store, job.id)
    assert TTL_S - 60 < store.redis.ttl(key) <= TTL_S
    in_record = JobResult.model_validate_json(store.record(job.id)["result"])  # what version 0.1.0 reads
    assert (in_record.status, in_record.output.condition, in_record.output.files) == ("completed", True, {})
    assert "newer" in in_record.output.notes[0]
    store.redis.delete(key)
    assert store.result(job.id) == in_record


def test_who_has_lost_a_job_leaves_its_result_alone(store: JobStore, job: Job) -> None:
    first, (written, _) = taken(store, job), large(job)
    store.retry(first, "again", fault=True)
    second = taken(store, job, host="h2")

    with pytest.raises(ClaimLost):
        store.finish(first, written, "completed")
    store.finish(second, outcome(job), "completed")

    assert store.result(job.id) == outcome(job)
    assert whole_results(store, job.id) == []


def test_an_end_of_which_nobody_heard_stays_as_it_was_written(store: JobStore, job: Job) -> None:
    claim, (written, read) = taken(store, job), large(job)
    store.finish(claim, written, "completed")
    keys = whole_results(store, job.id)

    with pytest.raises(ClaimLost):
        store.finish(claim, written, "completed")

    assert store.result(job.id) == read
    assert whole_results(store, job.id) == keys


@pytest.mark.parametrize("end", ["finish", "cancel"])
def test_at_the_end_secrets_go_and_the_rest_expires(store: JobStore, job: Job, end: str) -> None:
    assert [ttl(store, job, suffix) for suffix in ("", ":events")] == [-1, -1]

    if end == "finish":
        store.finish(taken(store, job), outcome(job), "completed")
    else:
        store.cancel(job.id)

    assert ttl(store, job, ":secrets") == GONE
    assert not store.register(job, task_id="t", queue="q")
    assert TTL_S - 60 < ttl(store, job) <= TTL_S
    assert TTL_S - 60 < ttl(store, job, ":events") <= TTL_S


def test_a_retry_gives_the_job_back_with_the_next_attempt(store: JobStore, job: Job) -> None:
    first = taken(store, job)

    store.retry(first, "again in 1 s", fault=True)

    assert (store.record(job.id)["status"], store.record(job.id)["attempt"]) == ("pending", "2")
    second = taken(store, job, host="h2")
    assert (second.attempt, second.job.secrets) == (2, {"TOKEN": "hunter2"})
    assert second.queued_at >= first.queued_at
    assert second.created_at == first.created_at
    shown = [(event["status"], event["attempt"]) for event in events(store, job)]
    assert shown == [("pending", 1), ("preparing", 1), ("pending", 2), ("preparing", 2)]


def test_all_keys_of_a_job_are_in_one_slot(job: Job) -> None:
    slots = {key_slot(key.encode()) for key in store_module.job_keys(job.id)}

    assert len(slots) == 1


def test_a_job_of_the_largest_size_goes_through(store: JobStore, register: Callable[..., Job]) -> None:
    job = register(input_data="x" * (8 * 2**20 - 2), script={"type": "bash", "content": "ü" * 2**19})

    assert taken(store, job).job == job


@pytest.mark.parametrize("ask", ["record", "result", "cancel"])
def test_an_unknown_job_is_not_found(store: JobStore, ask: str) -> None:
    with pytest.raises(JobNotFound, match="no-such-job"):
        getattr(store, ask)("no-such-job")
    assert store.claim("no-such-job", host="h") == "missing"
    assert not store.redis.exists(record_key("no-such-job"))


def test_events_of_an_unknown_job_are_not_found(store: JobStore) -> None:
    with pytest.raises(JobNotFound):
        next(store.events("no-such-job"))


# ---- registering twice


def test_the_same_job_may_be_registered_again(store: JobStore, job: Job) -> None:
    taken(store, job)

    assert store.register(job, task_id="other", queue="other") is False

    assert statuses(store, job) == ["pending", "preparing"]
    assert store.record(job.id)["task_id"] == f"task-{job.id}"


def test_another_job_with_the_id_is_a_conflict(store: JobStore, job: Job) -> None:
    before = store.record(job.id)
    other = Job.model_validate({"id": job.id, "script": {"type": "bash", "content": "other"}, "secrets": {"S": "x"}})

    with pytest.raises(JobConflict, match=job.id):
        store.register(other, task_id="t", queue="q")

    assert store.record(job.id) == before
    assert taken(store, job).job == job


def test_registered_at_once_by_many_it_is_one_job(store: JobStore, register: Callable[..., Job]) -> None:
    job = register()
    store.redis.delete(record_key(job.id), f"{record_key(job.id)}:events")
    barrier = threading.Barrier(8)

    def register_it(number: int) -> bool:
        barrier.wait(10)
        return store.register(job, task_id=str(number), queue="q")

    with ThreadPoolExecutor(8) as pool:
        new = list(pool.map(register_it, range(8)))

    assert sorted(new) == [False] * 7 + [True]
    assert statuses(store, job) == ["pending"]


# ---- fencing


def test_of_claims_at_once_exactly_one_wins(store: JobStore, register: Callable[..., Job]) -> None:
    for _ in range(10):
        job = register()
        barrier = threading.Barrier(8)

        def claim_it(number: int, job: Job = job, barrier: threading.Barrier = barrier) -> Any:
            barrier.wait(10)
            return store.claim(job.id, host=f"h{number}")

        with ThreadPoolExecutor(8) as pool:
            claims = list(pool.map(claim_it, range(8)))

        won = [claim for claim in claims if isinstance(claim, Claim)]
        assert len(won) == 1
        assert [claim for claim in claims if claim not in won] == ["busy"] * 7
        assert store.record(job.id)["host"] == won[0].host
        assert statuses(store, job) == ["pending", "preparing"]


def test_who_lost_the_claim_can_write_nothing(store: JobStore, job: Job) -> None:
    old = taken(store, job)
    store.retry(old, "again", fault=True)
    new = taken(store, job, host="h2")
    before = events(store, job)
    record = store.record(job.id)

    for write in (
        lambda: store.write(old, [log_body("stdout", "late")], {"status": "running"}),
        lambda: store.finish(old, outcome(job), "late"),
        lambda: store.retry(old, "late", fault=True),
    ):
        with pytest.raises(ClaimLost):
            write()

    assert events(store, job) == before
    assert store.record(job.id) == record
    store.finish(new, outcome(job, "failed"), "failed")
    assert store.record(job.id)["status"] == "failed"


def test_a_job_ends_once(store: JobStore, job: Job) -> None:
    claim = taken(store, job)
    store.finish(claim, outcome(job, "failed"), "failed")

    with pytest.raises(ClaimLost):
        store.finish(claim, outcome(job, "completed"), "completed")
    with pytest.raises(ClaimLost):
        store.write(claim, [log_body("stdout", "late")])
    with pytest.raises(ClaimLost):
        store.retry(claim, "again", fault=True)

    assert statuses(store, job) == ["pending", "preparing", "failed"]
    assert events(store, job)[-1]["status"] == "failed"
    result = store.result(job.id)
    assert result is not None
    assert result.status == "failed"


def test_of_ends_at_once_one_is_written(store: JobStore, job: Job) -> None:
    claim = taken(store, job)
    barrier = threading.Barrier(4)

    def end(status: str) -> str:
        barrier.wait(10)
        try:
            if status == "cancel":
                return store.cancel(job.id)
            store.finish(claim, outcome(job, status), status)
        except ClaimLost:
            return "lost"
        return "ended"

    with ThreadPoolExecutor(4) as pool:
        ends = list(pool.map(end, ["completed", "failed", "timeout", "cancel"]))

    assert ends.count("ended") == 1
    assert ends[3] in {"requested", "finished"}
    assert len(statuses(store, job)) == 3


def test_a_write_that_is_sent_again_is_made_once(store: JobStore, job: Job) -> None:
    claim = taken(store, job)
    store.write(claim, [log_body("stdout", "once")], {"x": 1})

    claim._writes -= 1  # what a client does whose answer got lost
    assert store.write(claim, [log_body("stdout", "once")], {"x": 1}) is False

    assert [event["data"] for event in events(store, job) if event["type"] == "log"] == ["once"]
    store.write(claim, [log_body("stdout", "next")])
    assert [event["data"] for event in events(store, job) if event["type"] == "log"] == ["once", "next"]


def test_an_end_that_is_sent_again_is_written_once(store: JobStore, job: Job) -> None:
    claim = taken(store, job)
    store.finish(claim, outcome(job), "completed")

    claim._writes -= 1
    store.finish(claim, outcome(job), "completed")

    assert statuses(store, job) == ["pending", "preparing", "completed"]


def test_a_write_after_one_whose_answer_was_lost_has_the_next_number(store: JobStore, job: Job) -> None:
    claim = taken(store, job)
    store.write(claim, [log_body("stdout", "the answer was lost")])

    claim._seq -= 1
    store.write(claim, [log_body("stdout", "one"), log_body("stdout", "two")])
    store.write(claim, [log_body("stdout", "three")])

    store.finish(claim, outcome(job), "completed")
    events = list(store.events(job.id))
    assert [event["seq"] for event in events] == list(range(len(events)))
    assert [event["data"] for event in events if event["type"] == "log"] == [
        *("the answer was lost", "one", "two", "three")
    ]


def test_a_write_asks_redis_once(store: JobStore, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    claim = taken(store, job)
    run, scripts = store.run, []
    monkeypatch.setattr(store, "run", lambda script, *rest: scripts.append(script) or run(script, *rest))
    for number in range(3):
        store.write(claim, [log_body("stdout", str(number))] * number)

    assert scripts == ["write"] * 3


def test_a_claim_that_is_sent_again_is_the_same_claim(store: JobStore, job: Job) -> None:
    arguments = ("claim", job.id, "claimant", "h1", "node", claim_body("h1").json, 30_000, formats.FORMAT)

    first, second = store.run(*arguments), store.run(*arguments)

    assert first == second
    assert first[0] == "claimed"
    assert statuses(store, job) == ["pending", "preparing"]


def test_a_cancel_that_is_asked_for_again_ends_it_once(store: JobStore, job: Job) -> None:
    assert [store.cancel(job.id) for _ in range(3)] == ["cancelled", "finished", "finished"]
    assert statuses(store, job) == ["pending", "cancelled"]


def test_numbers_have_no_gap_however_many_write(store: JobStore, job: Job) -> None:
    claim = taken(store, job)
    barrier = threading.Barrier(4)

    def write(number: int) -> None:
        barrier.wait(10)
        for turn in range(25):
            store.write(claim, [log_body("stdout", f"{number} {turn} {part}") for part in range(3)])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    store.finish(claim, outcome(job), "completed")

    texts = [event["data"] for event in events(store, job) if event["type"] == "log"]
    assert len(texts) == 300
    for number in range(4):
        own = [text for text in texts if text.startswith(f"{number} ")]
        assert own == [f"{number} {turn} {part}" for turn in range(25) for part in range(3)]


# ---- cancel


def test_a_job_that_waits_is_cancelled_at_once(store: JobStore, job: Job) -> None:
    assert store.cancel(job.id) == "cancelled"

    result = store.result(job.id)
    assert result is not None
    assert (result.status, result.exit_code, result.attempt) == ("cancelled", None, 1)
    assert result.error == ErrorInfo(type="cancelled", message="cancelled before a worker took it")
    assert result.finished_at == store.record(job.id)["finished_at"]
    assert events(store, job)[-1]["result"]["status"] == "cancelled"
    assert store.claim(job.id, host="h1") == "finished"


@pytest.mark.parametrize("status", ["preparing", "running"])
def test_of_a_job_that_a_worker_has_a_cancel_is_asked_for(store: JobStore, job: Job, status: str) -> None:
    claim = taken(store, job)
    assert store.write(claim, [], {"status": status}) is False

    assert store.cancel(job.id) == "requested"
    assert store.cancel(job.id) == "requested"

    assert store.result(job.id) is None
    assert store.write(claim, [log_body("stdout", "x")]) is True
    assert store.cancel_requested([job.id]) == {job.id}
    store.finish(claim, outcome(job, "cancelled"), "cancelled")
    assert store.cancel(job.id) == "finished"
    assert statuses(store, job) == ["pending", "preparing", "cancelled"]


def test_a_cancel_outlives_a_retry(store: JobStore, job: Job) -> None:
    claim = taken(store, job)
    store.cancel(job.id)
    store.retry(claim, "again", fault=True)

    assert taken(store, job).cancel_requested is True


def test_a_job_between_two_attempts_is_cancelled_at_once(store: JobStore, job: Job) -> None:
    claim = taken(store, job)
    store.retry(claim, "again", fault=True)

    assert store.cancel(job.id) == "cancelled"

    result = store.result(job.id)
    assert result is not None
    assert result.attempt == 2
    assert store.claim(job.id, host="h1") == "finished"
    with pytest.raises(ClaimLost):
        store.write(claim, [log_body("stdout", "late")])


@pytest.mark.parametrize("status", ["completed", "failed", "timeout", "cancelled"])
def test_a_finished_job_stays_as_it_is(store: JobStore, job: Job, status: str) -> None:
    store.finish(taken(store, job), outcome(job, status), status)
    before = store.record(job.id)

    assert store.cancel(job.id) == "finished"

    assert store.record(job.id) == before
    assert statuses(store, job)[-1] == status


def test_workers_ask_for_the_cancels_of_their_jobs(store: JobStore, register: Callable[..., Job]) -> None:
    running, asked, ended = register(), register(), register()
    for one in (running, asked):
        taken(store, one)
    store.cancel(asked.id)
    store.cancel(ended.id)

    ids = [running.id, asked.id, ended.id, "no-such-job"]
    assert store.cancel_requested(ids) == {asked.id, ended.id}
    assert store.cancel_requested([]) == set()


@pytest.mark.parametrize("heard", ["message", "look"])
def test_the_ear_for_cancels(store: JobStore, job: Job, monkeypatch: pytest.MonkeyPatch, heard: str) -> None:
    monkeypatch.setattr("cronium_worker.fleet.cancels.LOOK_EVERY_S", 0.05 if heard == "look" else 30.0)
    taken(store, job)
    cancelled: list[str] = []
    if heard == "look":  # the message went out before anybody listened
        store.cancel(job.id)
    listener = CancelListener(store, active=lambda: [job.id], cancel=cancelled.append)
    listener.start()
    if heard == "message":
        wait_until(lambda: dict(store.redis.pubsub_numsub(CANCEL_CHANNEL))[CANCEL_CHANNEL], what="a subscription")
        store.cancel(job.id)

    wait_until(lambda: job.id in cancelled, what="the cancel")

    listener.stop()
    store.redis.publish(CANCEL_CHANNEL, "other")
    wait_until(lambda: not listener._thread.is_alive(), what="its end")
    assert "other" not in cancelled


# ---- following


def follow_in_background(store: JobStore, job: Job) -> tuple[threading.Thread, list[Event]]:
    seen: list[Event] = []

    def run() -> None:
        for event in store.follow(job.id):
            seen.append(event)  # noqa: PERF402 - so that the test sees each one as it comes

    thread = threading.Thread(target=run)
    thread.start()
    return thread, seen


def test_followers_see_every_event_once_whenever_they_come(store: JobStore, job: Job) -> None:
    early, early_seen = follow_in_background(store, job)
    claim = taken(store, job)
    for number in range(50):
        store.write(claim, [log_body("stdout", str(number))])
    wait_until(lambda: len(early_seen) > 20, what="live events")
    middle, middle_seen = follow_in_background(store, job)
    for number in range(50, 100):
        store.write(claim, [log_body("stdout", str(number)), progress_body("x")])
    store.finish(claim, outcome(job), "completed")

    for thread in (early, middle):
        thread.join(10)
        assert not thread.is_alive()

    everything = events(store, job)
    assert early_seen == middle_seen == everything == list(store.follow(job.id))
    assert everything[-1]["status"] == "completed"
    assert len(everything) == 2 + 50 + 100 + 1


def test_a_follower_waits_through_silence(store: JobStore, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "BLOCK_MS", 20)
    waits: list[None] = []
    read = store.redis.xread

    def counted(*arguments: Any, **options: Any) -> Any:
        waits.append(None)
        return read(*arguments, **options)

    monkeypatch.setattr(store.redis, "xread", counted)
    thread, seen = follow_in_background(store, job)
    wait_until(lambda: len(waits) > 3, what="some empty reads")

    store.cancel(job.id)
    thread.join(10)

    assert [event["status"] for event in seen] == ["pending", "cancelled"]


def test_a_long_replay_is_read_in_parts(store: JobStore, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "_READ_COUNT", 7)
    claim = taken(store, job)
    store.write(claim, [log_body("stdout", str(number)) for number in range(50)])
    store.finish(claim, outcome(job), "completed")

    assert list(store.follow(job.id)) == events(store, job)
    assert len(events(store, job)) == 53


def test_following_goes_on_from_a_place_in_the_stream(store: JobStore, job: Job) -> None:
    store.finish(taken(store, job), outcome(job), "completed")
    entries: Any = store.redis.xrange(f"{record_key(job.id)}:events")

    rest = list(store.follow(job.id, after=entries[1][0]))

    assert [event["status"] for event in rest] == ["completed"]


def test_following_an_unknown_job_ends(store: JobStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_module, "BLOCK_MS", 20)

    with pytest.raises(JobNotFound):
        next(store.follow("no-such-job"))


def test_following_a_job_that_expires_meanwhile_ends(
    store: JobStore, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "BLOCK_MS", 20)
    follower = store.follow(job.id)
    next(follower)

    store.redis.delete(*store_module.job_keys(job.id))

    with pytest.raises(JobNotFound):
        next(follower)


# ---- the live channels


def test_an_event_is_in_the_stream_before_it_is_published(store: JobStore, job: Job) -> None:
    key = record_key(job.id)
    pubsub: Any = store.redis.pubsub(ignore_subscribe_messages=True)
    pubsub.subscribe(f"{key}:logs", f"{key}:status", "cronium:status")
    wait_until(lambda: dict(store.redis.pubsub_numsub(f"{key}:logs"))[f"{key}:logs"], what="a subscription")

    def write() -> None:
        claim = taken(store, job)
        for number in range(20):
            store.write(claim, [log_body("stdout", str(number)), metrics_body({}), progress_body("x")])
        store.finish(claim, outcome(job), "completed")

    thread = threading.Thread(target=write)
    thread.start()
    heard: dict[str, list[Event]] = {f"{key}:logs": [], f"{key}:status": [], "cronium:status": []}
    ended = False
    while not ended:
        message = wait_until(lambda: pubsub.get_message(timeout=1), what="a message")
        event = json.loads(message["data"])
        if event["job_id"] != job.id:
            continue
        entries: Any = store.redis.xrevrange(f"{key}:events")
        assert message["data"] in [fields["event"] for _, fields in entries]
        heard[message["channel"]].append(event)
        ended = message["channel"] == "cronium:status" and event["status"] == "completed"
    thread.join(10)
    pubsub.close()

    kinds = {channel: {event["type"] for event in channel_events} for channel, channel_events in heard.items()}
    assert kinds == {
        f"{key}:logs": {"log"},
        f"{key}:status": {"status", "metrics", "progress"},
        "cronium:status": {"status"},
    }
    by_number = {event["seq"]: event for channel_events in heard.values() for event in channel_events}
    assert [by_number[number] for number in sorted(by_number)] == events(store, job)[1:]


# ---- lists


def test_the_newest_jobs_come_first_and_expired_ones_are_forgotten(
    store: JobStore, register: Callable[..., Job]
) -> None:
    jobs = []
    for _ in range(3):
        jobs.append(register())
        # Two jobs of one millisecond have no order.
        created: Any = store.redis.zscore(INDEX_KEY, jobs[-1].id)
        wait_until(lambda created=created: _now_ms() > created, what="the next millisecond")
    own = {job.id for job in jobs}

    assert [row["id"] for row in store.recent(100) if row["id"] in own] == [job.id for job in reversed(jobs)]
    assert store.recent(1)[0]["status"] == "pending"

    store.redis.delete(record_key(jobs[1].id))

    assert jobs[1].id not in [row["id"] for row in store.recent(100)]
    assert store.redis.zscore(INDEX_KEY, jobs[1].id) is None

    store.redis.delete(record_key(jobs[2].id))

    assert store.recent(1)[0]["id"] == jobs[0].id, "a page of expired ones alone is not the end of the list"


def _now_ms() -> int:
    return store_module.epoch_ms(store_module.now_iso())


def test_a_list_shows_no_private_part(store: JobStore, register: Callable[..., Job]) -> None:
    job = register(input_data="private", secrets={"S": "private"})

    (row,) = [row for row in store.recent(100) if row["id"] == job.id]

    assert "private" not in json.dumps(row)
    assert set(row) <= {"id", "status", "type", "queue", "host", "attempt", "created_at", "finished_at"}


def test_following_an_unknown_job_ends_at_once(store: JobStore) -> None:
    started = time.monotonic()
    with pytest.raises(JobNotFound):
        next(store.follow("no-such-job"))
    assert time.monotonic() - started < 4  # a blocking read takes 5


def test_the_same_job_with_other_secrets_is_a_conflict(store: JobStore, register: Callable[..., Job]) -> None:
    job = register(secrets={"TOKEN": "old"})
    with pytest.raises(JobConflict):
        store.register(job.model_copy(update={"secrets": {"TOKEN": "new"}}), task_id="t", queue="q")
    assert not store.register(job, task_id="t", queue="q")


# ---- versions side by side


def test_a_job_of_this_versions_fields_has_no_format(store: JobStore, job: Job) -> None:
    """So that the record is what older versions know."""
    assert "format" not in store.record(job.id)


def test_a_job_of_a_newer_format_is_left_as_it_is(store: JobStore, job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    store.redis.hset(record_key(job.id), "format", formats.FORMAT + 1)
    before, told = store.record(job.id), events(store, job)

    assert store.claim(job.id, host="old") == "unreadable"
    assert (store.record(job.id), events(store, job)) == (before, told)

    monkeypatch.setattr(formats, "FORMAT", formats.FORMAT + 1)
    assert taken(store, job).attempt == 1


def test_a_running_job_of_a_newer_format_is_not_adopted(store: JobStore, job: Job) -> None:
    taken(store, job, host="h1")
    store.redis.hset(record_key(job.id), "format", formats.FORMAT + 1)
    before = store.record(job.id)
    assert store.adopt(job.id, attempt=1, host="h1") == "unreadable"
    assert store.record(job.id) == before


NEWER = '{"script":{"type":"bash","content":""},"invented_later":1}'


def test_a_job_with_unknown_fields_is_given_back_once(store: JobStore, job: Job) -> None:
    """Its record does not say that it needs a newer version; from then on it does."""
    store.redis.hset(record_key(job.id), "job", NEWER)
    assert store.claim(job.id, host="old") == "unreadable"
    record, told = store.record(job.id), events(store, job)
    assert [event["status"] for event in told] == ["pending", "preparing", "pending"]
    assert told[-1]["message"] == "left to a newer version than that of old: invented_later: unknown field"
    assert (record["status"], record["attempt"], record["format"]) == ("pending", "1", str(formats.FORMAT + 1))

    assert store.claim(job.id, host="old") == "unreadable"
    assert (store.record(job.id), events(store, job)) == (record, told)
    assert store.redis.ttl(record_key(job.id) + ":secrets") > 0


def test_a_running_job_with_unknown_fields_is_left_to_recovery(store: JobStore, job: Job) -> None:
    """Its container is destroyed before anybody may take it again."""
    taken(store, job, host="h1")
    store.redis.hset(record_key(job.id), "job", NEWER)
    assert store.adopt(job.id, attempt=1, host="h1") == "unreadable"
    assert store.record(job.id)["status"] == "preparing"
    assert store.adopt(job.id, attempt=1, host="h1") == "unreadable"


def test_a_record_that_no_version_can_have_written_ends_with_the_reason(store: JobStore, job: Job) -> None:
    store.redis.hset(record_key(job.id), "job", '{"script":{"type":"bash","content":""},"timeout":-1}')
    assert store.claim(job.id, host="h") == "finished"
    result = store.result(job.id)
    assert result is not None
    assert result.error is not None
    assert (result.status, result.error.type) == ("failed", "validation")
    assert "timeout: Input should be greater than 0" in result.error.message
    assert statuses(store, job)[-1] == "failed"


def test_why_no_worker_takes_a_job_is_said_once_and_until_one_does(store: JobStore, job: Job) -> None:
    assert store.explain(job.id, "needs a newer worker")
    assert not store.explain(job.id, "needs a newer worker")
    assert store.record(job.id)["note"] == store.recent(1)[0]["note"] == "needs a newer worker"
    assert [event["message"] for event in events(store, job) if event["type"] == "progress"] == ["needs a newer worker"]

    taken(store, job)
    assert "note" not in store.record(job.id)
    assert not store.explain(job.id, "needs a newer worker")
