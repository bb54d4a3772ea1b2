"""Leases, and taking jobs from those who are gone, on a real Redis."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cronium_worker.errors import ClaimLost
from cronium_worker.fleet.events import log_body
from cronium_worker.fleet.oversight import Oversight, Standing
from cronium_worker.fleet.store import ACTIVE_KEY, Claim, JobStore
from cronium_worker.models import ErrorInfo, Job, JobResult
from tests.conftest import wait_until
from tests.integration.scripts import says

TTL_S = 600


@pytest.fixture
def oversight(store: JobStore) -> Oversight:
    return Oversight(store)


@pytest.fixture
def make_job(store: JobStore) -> Iterator[Callable[..., Job]]:
    made: list[Job] = []

    def make(**fields: Any) -> Job:
        job = Job.model_validate({"script": says("bash", "x")} | fields)
        store.register(job, task_id=job.id, queue="none", message={"chain": [1]})
        made.append(job)
        return job

    yield make
    for job in made:
        store.settle(job.id)


@pytest.fixture
def job(make_job: Callable[..., Job]) -> Job:
    return make_job()


def claim_of(store: JobStore, job: Job, **arguments: Any) -> Claim:
    claim = store.claim(job.id, host="h1", **arguments)
    assert isinstance(claim, Claim)
    return claim


def adopted(store: JobStore, job: Job, attempt: int = 1) -> Claim:
    claim = store.adopt(job.id, attempt=attempt, host="h1", node="n2")
    assert isinstance(claim, Claim)
    return claim


def standing(oversight: Oversight, job: Job) -> Standing:
    return oversight.standing([job.id])[job.id]


def lapsed_s(oversight: Oversight, job: Job) -> float:
    value = standing(oversight, job).lapsed_s
    assert value is not None
    return value


def statuses(store: JobStore, job: Job) -> list[str]:
    return [event["status"] for event in store.events(job.id) if event["type"] == "status"]


def test_a_lease_lives_until_it_lapses_and_as_long_as_it_is_renewed(
    store: JobStore, oversight: Oversight, job: Job
) -> None:
    short = JobStore(store.redis, result_ttl_s=TTL_S, lease_ttl_s=1)
    assert "unknown" not in oversight.standing([job.id, "unknown"])
    assert standing(oversight, job).lapsed_s is None
    claim = claim_of(short, job, node="n1")
    assert (standing(oversight, job).host, standing(oversight, job).node) == ("h1", "n1")
    assert -1 <= lapsed_s(oversight, job) <= 0
    wait_until(lambda: lapsed_s(oversight, job) > 0)
    short.renew([claim])
    assert -1 <= lapsed_s(oversight, job) <= 0
    store.renew([claim])
    assert lapsed_s(oversight, job) < -29


def test_a_lease_ends_with_its_claim(store: JobStore, oversight: Oversight, job: Job) -> None:
    first = claim_of(store, job)
    store.retry(first, "again", fault=True)
    store.renew([first])  # of a worker that does not know yet
    assert "lease" not in store.record(job.id)
    assert (standing(oversight, job).status, standing(oversight, job).lapsed_s) == ("pending", None)
    second = claim_of(store, job)
    store.finish(second, JobResult(job_id=job.id, status="completed"), "completed")
    assert "lease" not in store.record(job.id)
    store.renew([second])
    assert "lease" not in store.record(job.id)
    assert (standing(oversight, job).ended, standing(oversight, job).lapsed_s) == (True, None)


def test_retries_are_counted_by_kind_and_wait_until_they_are_due(
    store: JobStore, oversight: Oversight, job: Job
) -> None:
    store.retry(claim_of(store, job), "a fault", fault=True)
    store.retry(claim_of(store, job), "a failure", failure=True)
    store.retry(claim_of(store, job), "a failure", failure=True)
    store.retry(claim_of(store, job), "neither")
    held = standing(oversight, job)
    assert (held.faults, held.failures) == (1, 2)
    claim = claim_of(store, job)
    assert (claim.attempt, claim.faults, claim.failures) == (4, 1, 2)
    store.retry(claim, "later", delay_s=1, failure=True)
    assert store.claim(job.id, host="h1") == "busy"
    assert -1 <= standing(oversight, job).due_s < 0
    wait_until(lambda: standing(oversight, job).due_s >= 0)
    assert claim_of(store, job).attempt == 5


def test_a_lapsed_claim_is_taken_and_its_worker_fenced_out(store: JobStore, oversight: Oversight, job: Job) -> None:
    short = JobStore(store.redis, result_ttl_s=TTL_S, lease_ttl_s=0.1)
    lost = claim_of(store, job)
    held = standing(oversight, job)
    assert not oversight.reclaim(job.id, held, "too early", gone=False)
    short.renew([lost])
    wait_until(lambda: lapsed_s(oversight, job) > 0)
    assert oversight.reclaim(job.id, held, "again: h1 was lost", gone=False)
    assert not oversight.reclaim(job.id, held, "twice", gone=False)
    for write in (
        lambda: short.write(lost, [log_body("stdout", "late")]),
        lambda: short.finish(lost, JobResult(job_id=job.id, status="completed"), ""),
        lambda: short.retry(lost, "late", fault=True),
    ):
        with pytest.raises(ClaimLost):
            write()
    short.renew([lost])
    assert standing(oversight, job).lapsed_s is None
    claim = claim_of(store, job)
    assert (claim.attempt, claim.faults) == (2, 1)
    short.renew([lost])
    assert lapsed_s(oversight, job) < -29  # the new worker's, as it has set it
    assert statuses(store, job) == ["pending", "preparing", "pending", "preparing"]


def test_who_is_certainly_gone_is_not_waited_for(store: JobStore, oversight: Oversight, job: Job) -> None:
    claim_of(store, job)
    assert lapsed_s(oversight, job) < 0
    held = standing(oversight, job)
    assert oversight.reclaim(job.id, held, "again", gone=True)
    assert standing(oversight, job).status == "pending"
    claim_of(store, job)
    assert not oversight.reclaim(job.id, held, "the next one is not gone", gone=True)
    assert standing(oversight, job).status == "preparing"


def test_what_its_worker_has_given_back_or_ended_meanwhile_is_not_taken(
    store: JobStore, oversight: Oversight, job: Job
) -> None:
    first = claim_of(store, job)
    held = standing(oversight, job)
    store.retry(first, "given back as it was")
    assert not oversight.reclaim(job.id, held, "again", gone=True)
    last = claim_of(store, job)
    held = standing(oversight, job)
    store.finish(last, JobResult(job_id=job.id, status="completed"), "completed")
    assert not oversight.give_up(job.id, held, "failed", ErrorInfo(type="lost", message="given up"), gone=True)
    assert statuses(store, job) == ["pending", "preparing", "pending", "preparing", "completed"]


def test_a_renewed_lease_is_not_taken(store: JobStore, oversight: Oversight, job: Job) -> None:
    short = JobStore(store.redis, result_ttl_s=TTL_S, lease_ttl_s=0.1)
    claim = claim_of(short, job)
    wait_until(lambda: lapsed_s(oversight, job) > 0)
    held = standing(oversight, job)
    store.renew([claim])
    assert not oversight.reclaim(job.id, held, "again", gone=False)
    store.write(claim, [log_body("stdout", "still mine")])


def test_giving_up_is_a_terminal_status(store: JobStore, oversight: Oversight, job: Job) -> None:
    lost = claim_of(store, job)
    error = ErrorInfo(type="lost", message="given up")
    assert oversight.give_up(job.id, standing(oversight, job), "failed", error, gone=True)
    result = store.result(job.id)
    assert result is not None
    assert (result.status, result.error) == ("failed", error)
    assert list(store.events(job.id))[-1]["result"]["error"]["type"] == "lost"
    with pytest.raises(ClaimLost):
        store.finish(lost, JobResult(job_id=job.id, status="completed"), "")


def test_an_adopted_attempt_goes_on_where_it_was(store: JobStore, oversight: Oversight, job: Job) -> None:
    before = claim_of(store, job, node="n1")
    fields = {"status": "running", "started_at": "2026-01-01T00:00:00Z", "image": "i:1", "stdout_offset": 7}
    store.write(before, [log_body("stdout", "seven b")], fields)
    after = adopted(store, job)
    assert (after.attempt, after.job, after.adoptions) == (1, job, 1)
    assert after.progress == (7, 0, "2026-01-01T00:00:00Z", "i:1")
    assert standing(oversight, job).node == "n2"
    with pytest.raises(ClaimLost):
        store.write(before, [log_body("stdout", "late")])
    store.write(after, [log_body("stdout", "more")])
    assert adopted(store, job).adoptions == 2
    third = adopted(store, job)
    store.renew([third])
    fourth = adopted(store, job)
    assert fourth.adoptions == 4
    store.write(fourth, [], {"detached": 1})  # told to end: not a death
    fifth = adopted(store, job)
    assert fifth.adoptions == 4
    fifth.taken_s -= 11
    store.renew([fifth])  # it has lived long enough
    assert adopted(store, job).adoptions == 1


def test_the_next_attempt_begins_where_nothing_has_been(store: JobStore, job: Job) -> None:
    """Or its log would be read from the last one's offset on, when it is adopted."""
    first = claim_of(store, job)
    store.write(first, [], {"started_at": "2026-01-01T00:00:00Z", "image": "i:1", "stdout_offset": 7})
    second = adopted(store, job)
    store.write(second, [], {"stderr_offset": 8, "detached": 1})
    store.retry(second, "again", fault=True)
    claim_of(store, job)
    after = adopted(store, job, attempt=2)
    assert (after.progress, after.adoptions) == ((0, 0, None, None), 1)


def test_what_an_orderly_worker_has_left_is_adopted_without_a_death(store: JobStore, job: Job) -> None:
    store.write(claim_of(store, job), [], {"detached": 1})
    assert adopted(store, job).adoptions == 0


def test_what_cannot_be_adopted(store: JobStore, job: Job) -> None:
    assert store.adopt(job.id, attempt=1, host="h1") == "busy"  # nobody has begun it
    claim = claim_of(store, job)
    assert store.adopt(job.id, attempt=2, host="h1") == "busy"
    assert store.adopt(job.id, attempt=1, host="another") == "busy"
    assert store.adopt("unknown", attempt=1, host="h1") == "missing"
    store.retry(claim, "given back as it was")
    assert store.adopt(job.id, attempt=1, host="h1") == "busy"
    claim = claim_of(store, job)
    store.finish(claim, JobResult(job_id=job.id, status="completed"), "")
    assert store.adopt(job.id, attempt=1, host="h1") == "finished"


def test_what_a_message_needs_is_kept_with_the_record(store: JobStore, oversight: Oversight, job: Job) -> None:
    sent_s = standing(oversight, job).sent_s
    waited_s = wait_until(lambda: standing(oversight, job).sent_s > sent_s + 0.1 and standing(oversight, job).sent_s)
    assert store.sending(job.id) == (job.id, "none", 5, "bash", {"chain": [1]})
    assert standing(oversight, job).sent_s < waited_s
    claim = claim_of(store, job)
    assert store.sending(job.id) is None
    store.finish(claim, JobResult(job_id=job.id, status="completed"), "")
    assert store.sending(job.id) is not None  # whoever waits for Celery's result needs it
    assert store.sending("unknown") is None


def test_jobs_are_looked_at_when_it_is_time_until_they_are_settled(
    store: JobStore, oversight: Oversight, job: Job
) -> None:
    assert job.id not in oversight.to_look_at(10**6)
    store.look_at(job.id, in_s=0)
    wait_until(lambda: job.id in oversight.to_look_at(10**6))
    oversight.look_again({job.id: 60})
    assert job.id not in oversight.to_look_at(10**6)
    store.settle(job.id)
    oversight.look_again({job.id: 0})
    assert store.redis.zscore(ACTIVE_KEY, job.id) is None


def test_a_retry_is_looked_at_when_it_is_due_and_its_cancel_at_once(
    store: JobStore, oversight: Oversight, job: Job
) -> None:
    store.retry(claim_of(store, job), "later", delay_s=600, failure=True)
    seconds, _ = store.redis.time()
    assert store.redis.zscore(ACTIVE_KEY, job.id) > (seconds + 590) * 1000
    assert store.cancel(job.id) == "cancelled"
    wait_until(lambda: job.id in oversight.to_look_at(10**6), timeout_s=2)


def test_a_suspicion_grows_old_until_it_is_cleared(oversight: Oversight, job: Job) -> None:
    assert oversight.suspect(job.id) == 0
    wait_until(lambda: oversight.suspect(job.id) > 0.05)
    oversight.clear([job.id])
    assert oversight.suspect(job.id) == 0
    oversight.clear([job.id])


def test_the_newest_taken_message_is_the_newest_of_all_workers(oversight: Oversight, job: Job) -> None:
    one, two = (job.id, 5), (f"{job.id}|odd", 0)
    oversight.note_taken({one: 100, two: 1})
    oversight.note_taken({one: 90})
    assert {key: ms for key, ms in oversight.newest_taken().items() if key in (one, two)} == {one: 100, two: 1}
