"""What recovery decides, on a real Redis: what is lost is sent again or taken, what only waits is left alone."""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest

from cronium_worker.fleet.hosts import HostRegistry, HostView
from cronium_worker.fleet.oversight import Oversight
from cronium_worker.fleet.store import ACTIVE_KEY, Claim, JobStore, record_key
from cronium_worker.models import Job, JobResult
from cronium_worker.models.formats import FORMAT
from cronium_worker.policy import FAULT_BUDGET
from cronium_worker.recovery import Recovery
from tests.conftest import wait_until
from tests.integration.scripts import says

GRACE_S = 0.2


class Fleet:
    """A queue of this test's own with its jobs, and what recovery does to them."""

    def __init__(self, store: JobStore) -> None:
        self.store = store
        self.short = JobStore(store.redis, result_ttl_s=600, lease_ttl_s=0.1)
        self.oversight = Oversight(store)
        self.registry = HostRegistry(store.redis, host_ttl_s=60)
        self.host = f"rec-{uuid4().hex[:8]}"
        self.queue = f"queue-{self.host}"
        self.waiting = 0
        self.sent: list[str] = []
        self.jobs: list[str] = []

    def job(self, *, age_s: float = 60, **fields: Any) -> str:
        """A registered job whose message was sent so long ago."""
        job = Job.model_validate({"script": says("bash", "x"), "queue": self.queue} | fields)
        self.store.register(job, task_id=job.id, queue=self.queue)
        sent_ms = self.oversight.standing([job.id])[job.id].sent_at_ms
        self.store.redis.hset(record_key(job.id), "sent_at", int(sent_ms - age_s * 1000))
        self.jobs.append(job.id)
        return job.id

    def look(self) -> Counter[str]:
        """At this test's jobs, whatever their time is; other tests' jobs are nobody's business."""
        others = self.store.redis.zrange(ACTIVE_KEY, 0, -1)
        later = {job: 10**15 for job in others if job not in self.jobs}
        if later:
            self.store.redis.zadd(ACTIVE_KEY, later, xx=True)
        for job in self.jobs:
            self.store.redis.zadd(ACTIVE_KEY, {job: 1}, xx=True)
        recovery = Recovery(self.store, self.registry, send=self._send, waiting=lambda _: self.waiting, grace_s=GRACE_S)
        return recovery.look()

    def _send(self, job_id: str) -> None:
        self.sent.append(job_id)
        self.store.sending(job_id)

    def claim(self, job_id: str, *, node: str = "n1", store: JobStore | None = None) -> Claim:
        claim = (store or self.store).claim(job_id, host=self.host, node=node)
        assert isinstance(claim, Claim)
        return claim

    def lapse(self, job_id: str) -> None:
        """Until its lease is over and has been seen so for the grace."""
        wait_until(lambda: (self.oversight.standing([job_id])[job_id].lapsed_s or 0) > 0)
        assert self.look() == Counter()
        wait_until(lambda: self.oversight.suspect(job_id) > GRACE_S)

    def status(self, job_id: str) -> str:
        return self.store.record(job_id)["status"]


@pytest.fixture
def fleet(store: JobStore) -> Iterator[Fleet]:
    fleet = Fleet(store)
    yield fleet
    for job in fleet.jobs:
        store.settle(job)
    fleet.oversight.clear(fleet.jobs)


def test_a_pending_job_without_a_message_is_sent_again(fleet: Fleet) -> None:
    lost, young = fleet.job(), fleet.job(age_s=1)
    assert fleet.look() == Counter(sent=1)
    assert fleet.sent == [lost]
    assert not {lost, young} & set(fleet.oversight.to_look_at(10**6))  # for a while
    assert fleet.look() == Counter()  # it has just been sent
    assert young not in fleet.sent


def test_a_pending_job_that_waits_in_its_queue_is_left_alone(fleet: Fleet) -> None:
    fleet.job()
    fleet.waiting = 1
    assert fleet.look() == Counter()


@pytest.mark.parametrize(("priority", "newest_s", "lost"), [(5, 50, True), (5, 58, False), (4, 50, False)])
def test_a_job_that_was_overtaken_in_its_own_list_has_lost_its_message(
    fleet: Fleet, priority: int, newest_s: float, lost: bool
) -> None:
    job = fleet.job(age_s=60)
    now_ms = fleet.oversight.standing([job])[job].sent_at_ms + 60_000
    fleet.oversight.note_taken({(fleet.queue, priority): int(now_ms - newest_s * 1000)})
    fleet.waiting = 1
    assert fleet.look() == (Counter(sent=1) if lost else Counter())


def test_a_job_that_is_to_wait_is_sent_when_it_is_due(fleet: Fleet) -> None:
    job = fleet.job()
    fleet.store.retry(fleet.claim(job), "later", delay_s=0.5, failure=True)
    assert fleet.look() == Counter()
    wait_until(lambda: fleet.oversight.standing([job])[job].due_s > 0)
    assert fleet.look() == Counter(sent=1)


def test_a_live_lease_is_left_alone_and_a_lapsed_one_is_taken_after_the_grace(fleet: Fleet) -> None:
    held, lapsed = fleet.job(), fleet.job()
    fleet.claim(held)
    fleet.claim(lapsed, store=fleet.short)
    fleet.lapse(lapsed)
    assert fleet.look() == Counter(taken=1)
    assert fleet.sent == [lapsed]
    assert (fleet.status(held), fleet.status(lapsed)) == ("preparing", "pending")
    assert fleet.claim(lapsed).attempt == 2


def test_who_renews_in_time_is_not_suspected_any_more(fleet: Fleet) -> None:
    """As after an outage of Redis: every lease has lapsed, and every worker comes back."""
    job = fleet.job()
    claim = fleet.claim(job, store=fleet.short)
    fleet.lapse(job)
    fleet.store.renew([claim])
    assert fleet.look() == Counter()
    assert fleet.oversight.suspect(job) == 0
    assert fleet.status(job) == "preparing"


def test_who_renews_while_it_is_looked_at_keeps_its_job(fleet: Fleet) -> None:
    job = fleet.job()
    claim = fleet.claim(job, store=fleet.short)
    fleet.lapse(job)

    class Late(HostRegistry):
        """Asked after the records."""

        def hosts(self) -> list[HostView]:
            fleet.store.renew([claim])
            return super().hosts()

    fleet.registry = Late(fleet.store.redis, host_ttl_s=60)
    assert fleet.look() == Counter()
    assert (fleet.status(job), fleet.sent) == ("preparing", [])


def test_a_node_that_was_replaced_is_gone_at_once(fleet: Fleet) -> None:
    mine, adopted = fleet.job(), fleet.job()
    fleet.claim(mine, node="old")
    fleet.claim(adopted, node="old")
    fleet.registry.beat(fleet.host, "jobs", {"node": "old"})
    assert fleet.look() == Counter()
    fleet.store.adopt(adopted, attempt=1, host=fleet.host, node="new")
    assert fleet.look() == Counter()  # the new node has not reported yet: it adopts first
    fleet.registry.beat(fleet.host, "jobs", {"node": "new"})
    assert fleet.look() == Counter(taken=1)
    assert fleet.sent == [mine]
    assert fleet.status(adopted) == "preparing"


def test_a_job_that_has_cost_its_budget_is_given_up_with_the_reason(fleet: Fleet) -> None:
    job = fleet.job()
    for attempt in range(1, FAULT_BUDGET + 2):
        assert fleet.claim(job, store=fleet.short).attempt == attempt
        fleet.lapse(job)
        fleet.look()
    result = fleet.store.result(job)
    assert result is not None
    assert (result.status, result.attempt) == ("failed", FAULT_BUDGET + 1)
    assert result.error is not None
    assert (result.error.type, result.error.retryable) == ("lost", False)
    assert (
        result.error.message == f"given up after 4 faults of the fleet; the last: the worker on {fleet.host} was lost"
    )
    assert fleet.sent == [job] * (FAULT_BUDGET + 1)  # the last one brings the result to Celery


def test_a_job_whose_cancel_nobody_heard_is_cancelled(fleet: Fleet) -> None:
    job = fleet.job()
    fleet.claim(job, store=fleet.short)
    assert fleet.store.cancel(job) == "requested"
    fleet.lapse(job)
    assert fleet.look() == Counter(ended=1)
    assert fleet.status(job) == "cancelled"
    result = fleet.store.result(job)
    assert result is not None
    assert not result.log.gap  # its script was not started


def test_what_was_suspected_of_the_worker_before_does_not_count(fleet: Fleet) -> None:
    job = fleet.job()
    first = fleet.claim(job, store=fleet.short)
    fleet.lapse(job)  # suspected for long enough, and then its worker gives it back after all
    fleet.store.retry(first, "again")
    fleet.claim(job, node="n2", store=fleet.short)
    wait_until(lambda: (fleet.oversight.standing([job])[job].lapsed_s or 0) > 0)
    assert fleet.look() == Counter()
    assert fleet.status(job) == "preparing"


def test_what_a_lost_worker_has_not_told_of_a_log_is_a_gap(fleet: Fleet) -> None:
    job = fleet.job()
    claim = fleet.claim(job, store=fleet.short)
    fleet.store.write(claim, [], {"status": "running", "started_at": "2026-01-01T00:00:00+00:00", "image": "i:1"})
    fleet.store.cancel(job)
    fleet.lapse(job)
    fleet.look()
    result = fleet.store.result(job)
    assert result is not None
    assert (result.log.gap, result.image, result.started_at) == (True, "i:1", "2026-01-01T00:00:00+00:00")
    *_, gap, end = fleet.store.events(job)
    assert (gap["type"], gap["gap"]) == ("progress", True)
    assert end["status"] == "cancelled"


def test_a_result_is_brought_to_celery_until_it_is_settled(fleet: Fleet) -> None:
    job = fleet.job()
    fleet.store.finish(fleet.claim(job), JobResult(job_id=job, status="completed"), "completed")
    assert fleet.look() == Counter(settled=1)
    fleet.waiting = 1  # its message is there
    assert fleet.look() == Counter()
    fleet.store.settle(job)
    fleet.waiting = 0
    assert fleet.look() == Counter()


def test_what_has_expired_is_forgotten(fleet: Fleet) -> None:
    job = fleet.job()
    fleet.store.redis.delete(record_key(job))
    assert fleet.look() == Counter()
    assert fleet.store.redis.zscore(ACTIVE_KEY, job) is None


def test_two_that_look_at_once_take_a_job_once(fleet: Fleet, store: JobStore) -> None:
    job = fleet.job()
    fleet.claim(job, store=fleet.short)
    fleet.lapse(job)
    held = fleet.oversight.standing([job])[job]
    take: Callable[[], bool] = lambda: Oversight(store).reclaim(job, held, "again", gone=False)  # noqa: E731
    assert [take(), take()] == [True, False]


# ---- versions side by side


def newer(fleet: Fleet, job: str) -> None:
    fleet.store.redis.hset(record_key(job), "format", FORMAT + 1)


def beat(fleet: Fleet, reads: int) -> None:
    fleet.registry.beat(fleet.host, "jobs", {"node": "n1", "queues": [fleet.queue], "formats": {"job": reads}})


def test_a_job_that_no_live_host_can_read_waits_and_says_why(fleet: Fleet) -> None:
    job = fleet.job()
    newer(fleet, job)
    beat(fleet, FORMAT)
    for _ in range(2):
        assert fleet.look() == Counter()
    told = [event for event in fleet.store.events(job) if event["type"] == "progress"]
    why = f"needs a worker that reads jobs of format {FORMAT + 1}; upgrade a host of {fleet.queue}: {fleet.host}"
    assert [event["message"] for event in told] == [why]
    assert fleet.store.record(job)["note"] == why

    beat(fleet, FORMAT + 1)
    assert fleet.look() == Counter(sent=1)


def test_a_job_of_a_newer_format_is_sent_when_no_host_is_known(fleet: Fleet) -> None:
    """Whoever comes and cannot read it leaves it."""
    job = fleet.job()
    newer(fleet, job)
    assert fleet.look() == Counter(sent=1)


def test_a_job_that_this_version_cannot_read_is_taken_back_and_never_given_up(fleet: Fleet) -> None:
    job = fleet.job()
    fleet.claim(job, store=fleet.short)
    newer(fleet, job)
    fleet.store.redis.hset(record_key(job), "faults", FAULT_BUDGET + 5)
    fleet.lapse(job)
    assert fleet.look() == Counter(taken=1)
    assert fleet.status(job) == "pending"
