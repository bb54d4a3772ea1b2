"""A new field of a job is sent only where every live host reads it: producers of all kinds, on a real Redis."""

import json
from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest
from fastapi import Response
from pydantic import ValidationError
from redis.exceptions import NoPermissionError

from cronium_worker import schedules, workflows
from cronium_worker.client import rerun
from cronium_worker.errors import JobFailed, JobNotFound, validation_message
from cronium_worker.fleet.hosts import HostRegistry
from cronium_worker.fleet.store import JobStore
from cronium_worker.models import Job, formats
from cronium_worker.models.formats import Addition
from cronium_worker.tasks import execute_job, register_foreign, store
from cronium_worker.web.jobs import submit_job

BASH = {"type": "bash", "content": "true"}


@pytest.fixture
def redis_asked(monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """The queues whose hosts were asked for."""
    asked: list[str | None] = []
    ask = HostRegistry.job_formats

    def noted(registry: HostRegistry, queue: str | None) -> dict[str, int]:
        asked.append(queue)
        return ask(registry, queue)

    monkeypatch.setattr(HostRegistry, "job_formats", noted)
    return asked


@pytest.fixture
def newer(monkeypatch: pytest.MonkeyPatch) -> None:
    """A version that has added two fields of today's: `event`, and `metadata`, which a host can do without."""
    rows = (Addition("event", 2), Addition("metadata", 2, is_optional=True))
    monkeypatch.setattr(formats, "ADDITIONS", rows)
    monkeypatch.setattr(formats, "FORMAT", 2)


class Queue:
    """One that nobody else uses, and its hosts."""

    def __init__(self) -> None:
        self.name = f"formats-{uuid4().hex[:8]}"
        self.hosts: list[str] = []
        self._registry = HostRegistry(store().redis, host_ttl_s=30)

    def host(self, **report: Any) -> str:
        self.hosts.append(f"{self.name}-{len(self.hosts)}")
        self._registry.beat(self.hosts[-1], "jobs", {"queues": [self.name], **report})
        return self.hosts[-1]

    def job(self, **fields: Any) -> dict[str, Any]:
        return {"id": f"f-{uuid4().hex}", "script": BASH, "queue": self.name, **fields}

    def forget(self) -> None:
        for host in self.hosts:
            store().redis.delete(f"cronium:{{hosts}}:host:{host}")
        store().redis.delete(self.name)


@pytest.fixture
def queue() -> Iterator[Queue]:
    queue = Queue()
    yield queue
    queue.forget()


def is_registered(job: dict[str, Any]) -> bool:
    try:
        return bool(store().record(job["id"]))
    except JobNotFound:
        return False


def as_schedule(job: dict[str, Any]) -> None:
    given = {name: value for name, value in job.items() if name != "id"}
    schedules.add({"name": job["id"], "every": 3600, "job": given})
    schedules.remove(job["id"])


PRODUCERS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "delay": execute_job.delay,
    "signature": execute_job.s,
    "signature of a Job": lambda job: execute_job.s(Job.model_validate(job)),
    "workflow": lambda job: workflows.start({"steps": [{"name": "first", "job": job}]}),
    "schedule": as_schedule,
    "http": lambda job: submit_job(Response(), Job.model_validate(job)),
}


@pytest.mark.parametrize("send", PRODUCERS.values(), ids=PRODUCERS)
@pytest.mark.usefixtures("newer")
def test_a_new_field_is_refused_while_a_live_host_does_not_know_it(
    queue: Queue, send: Callable[[dict[str, Any]], Any]
) -> None:
    old, new = queue.host(), queue.host(formats={"job": 2})
    job = queue.job(event={"a": 1})
    with pytest.raises(ValidationError) as refused:
        send(job)
    line = validation_message(refused.value)
    assert line.startswith("event: not known to ")
    assert line.endswith(": upgrade these hosts (`cronium hosts`), or leave it out")
    assert old in line
    assert new not in line
    assert not is_registered(job)


@pytest.mark.usefixtures("newer")
def test_a_new_field_is_sent_when_all_hosts_of_the_queue_know_it(queue: Queue) -> None:
    queue.host(formats={"job": 2})
    queue.host(formats={"job": 3})
    queue.host(queues=["another"])
    job = queue.job(event={"a": 1})
    execute_job.delay(job)
    assert store().record(job["id"])["format"] == "2"


@pytest.mark.usefixtures("newer")
def test_without_a_live_host_the_job_waits(queue: Queue) -> None:
    job = queue.job(event={"a": 1})
    execute_job.delay(job)
    assert store().record(job["id"])["format"] == "2"


@pytest.mark.usefixtures("newer")
def test_a_field_that_a_host_can_do_without_is_left_out(queue: Queue) -> None:
    queue.host()
    job = queue.job(metadata={"a": "b"})
    execute_job.delay(job)
    record = store().record(job["id"])
    assert "metadata" not in json.loads(record["job"])
    assert "format" not in record
    sent = execute_job.s(queue.job(metadata={"a": "b"})).args[0]
    assert "metadata" not in sent


@pytest.mark.usefixtures("newer")
def test_a_rerun_is_checked_as_well(queue: Queue) -> None:
    job = queue.job(event={"a": 1})
    execute_job.delay(job)
    store().cancel(job["id"])
    queue.host()
    with pytest.raises(ValidationError):
        rerun(job["id"])


@pytest.mark.usefixtures("newer")
def test_the_whole_job_of_a_foreign_producer_ends_with_the_line(queue: Queue) -> None:
    from celery.app.task import Context

    queue.host()
    job = queue.job(event={"a": 1})
    with pytest.raises(JobFailed, match="event: not known to"):
        register_foreign(job, Context({"id": job["id"], "callbacks": None, "errbacks": None, "group": None}))
    assert store().record(job["id"])["status"] == "failed"


@pytest.mark.usefixtures("newer")
def test_a_link_that_a_producer_has_checked_waits_for_a_host_that_can_read_it(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host has become too old meanwhile."""
    monkeypatch.setattr(type(execute_job.app), "is_node", True)
    queue.host()
    job = queue.job(event={"a": 1})
    execute_job.apply_async((job,))
    assert (store().record(job["id"])["status"], store().record(job["id"])["format"]) == ("pending", "2")


@pytest.mark.parametrize("fields", [{}, {"priority": 9, "variables": {"a": 1}}])
@pytest.mark.usefixtures("newer")
def test_a_job_that_every_version_reads_asks_for_no_hosts(
    queue: Queue, redis_asked: list[str | None], fields: dict[str, Any]
) -> None:
    queue.host()
    job = queue.job(**fields)
    execute_job.delay(job)
    assert "format" not in store().record(job["id"])
    assert redis_asked == []


def test_a_schedule_of_a_newer_version_is_kept_and_says_why_it_does_not_run(store: JobStore) -> None:
    name = f"s-{uuid4().hex[:8]}"
    schedules.add({"name": name, "every": 3600, "job": {"script": BASH}})
    entry = schedules._entry(name)
    definition = json.loads(store.redis.hget(entry.key, "definition") or "")
    stored = json.loads(definition["kwargs"]["schedule"]["job"])
    stored["schedule"]["job"]["invented"] = 1
    definition["kwargs"]["schedule"] = store.signer.wrap(json.dumps(stored))
    store.redis.hset(entry.key, "definition", json.dumps(definition))
    store.redis.hset(entry.key, "fired", json.dumps({"job_id": "j", "invented": 1}))
    try:
        view = schedules.get(name)
        assert view.note == "a newer version has written it (job.invented: unknown field): upgrade this one"
        assert view.last_job_id == "j"
    finally:
        schedules.remove(name)


@pytest.mark.usefixtures("newer")
def test_who_may_not_see_the_hosts_sends_what_every_version_reads(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A Redis user with the rights of an older version."""

    def refused(*_: object) -> None:
        raise NoPermissionError("this user has no permissions to access one of the keys")

    monkeypatch.setattr(HostRegistry, "job_formats", refused)
    job = queue.job(metadata={"a": "b"})
    execute_job.delay(job)
    assert "format" not in store().record(job["id"])
    with pytest.raises(ValidationError, match="not known to hosts that this Redis user may not see"):
        execute_job.delay(queue.job(event={"a": 1}))
