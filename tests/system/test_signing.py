"""A fleet that takes signed jobs alone: what anybody else puts into Redis or the broker runs nothing."""

import json
import os
import sys
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest

from cronium_worker import Job, JobFailed, execute_job
from cronium_worker.app import app
from cronium_worker.fleet.store import record_key
from cronium_worker.models import JobResult
from cronium_worker.sealing import new_key
from cronium_worker.signing import Signer
from cronium_worker.tasks import store
from tests.conftest import wait_until
from tests.system.local_host import LocalHost

KEY, OLD_KEY = new_key(), new_key()
SIGNER = Signer([KEY])
NONE_OF_OURS = "its signature is none of this fleet's"

# A chain of one job after the other, as a producer that has the key sends it.
CHAIN = """
import json, sys
from celery import chain
from cronium_worker import execute_job
first, second = json.load(sys.stdin)
print(chain(execute_job.si(first), execute_job.si(second)).apply_async().id)
"""


@pytest.fixture
def signing(host: LocalHost) -> LocalHost:
    host.env["CRONIUM_SECRET_KEYS"] = os.environ["CRONIUM_SECRET_KEYS"]
    host.start(node="jobs", CRONIUM_SIGNING_KEYS=f"{KEY},{OLD_KEY}")
    return host


@pytest.fixture
def job(host: LocalHost) -> Callable[..., dict[str, Any]]:
    def make(**more: Any) -> dict[str, Any]:
        script = {"type": "bash", "content": "echo ran"}
        return {"id": uuid4().hex, "script": script, "queue": host.queue} | more

    return make


def outcome(job_id: str) -> JobResult:
    """How a job has ended; one that did not run has said nothing."""
    wait_until(lambda: store().redis.exists(record_key(job_id)) and store().result(job_id), what=f"the end of {job_id}")
    result = store().result(job_id)
    assert result is not None
    said = [event for event in store().events(job_id) if event["type"] == "log"]
    assert bool(said) == (result.status == "completed")
    return result


def refusal(job_id: str) -> str:
    result = outcome(job_id)
    assert result.error is not None
    assert (result.status, result.error.type, result.started_at) == ("failed", "validation", None)
    return result.error.message


def send(argument: Any, host: LocalHost, **options: Any) -> Any:
    """A message of a producer that has Celery alone."""
    return app.send_task("cronium.execute_job", [argument], queue=host.queue, **options)


@pytest.mark.timeout(120)
def test_who_has_a_key(signing: LocalHost, job: Callable[..., dict[str, Any]]) -> None:
    script = signing.path / "hello.sh"
    script.write_text("echo ran")
    for keys in KEY, OLD_KEY:
        done = signing.cronium("run", str(script), "--queue", signing.queue, CRONIUM_SIGNING_KEYS=keys)
        assert (done.returncode, done.stdout) == (0, "ran\n"), done.stderr

    foreign = job()
    sent = send(SIGNER.wrap(json.dumps(foreign)), signing, task_id=foreign["id"])
    assert sent.get(timeout=30)["status"] == outcome(foreign["id"]).status == "completed"

    first, second = job(), job(secrets={"TOKEN": "hunter2"})
    (signing.path / "jobs").write_text(json.dumps([first, second]))
    producer = signing.process(
        "sh", "-c", f"{sys.executable} -c '{CHAIN}' <{signing.path}/jobs", CRONIUM_SIGNING_KEYS=KEY
    )
    assert producer.process.wait(30) == 0, producer.log.read_text()
    assert outcome(first["id"]).status == outcome(second["id"]).status == "completed"


@pytest.mark.timeout(120)
def test_who_has_none(signing: LocalHost, job: Callable[..., dict[str, Any]]) -> None:
    sent = execute_job.delay(Job.model_validate(job()))
    with pytest.raises(JobFailed, match="it is not signed: set CRONIUM_SIGNING_KEYS"):
        sent.get(timeout=30)
    assert "it is not signed" in refusal(sent.id)

    # What was signed with another key, or for another id, or is not what was signed.
    whole = job()
    foreign = {
        "unsigned": (whole, "it is not signed"),
        "another key": (Signer([new_key()]).wrap(json.dumps(job())), NONE_OF_OURS),
        "changed": ({**SIGNER.wrap(json.dumps(job())), "job": json.dumps(job())}, NONE_OF_OURS),
    }
    for name, (argument, reason) in foreign.items():
        sent = send(argument, signing)
        with pytest.raises(JobFailed, match=reason):
            sent.get(timeout=30)
        assert reason in refusal(whole["id"] if name == "unsigned" else sent.id), name


@pytest.mark.timeout(120)
def test_a_record_that_somebody_has_changed(signing: LocalHost, job: Callable[..., dict[str, Any]]) -> None:
    text = json.dumps(job())
    for signature in SIGNER.sign(text), "":
        changed = Job.model_validate(job())
        store().register(changed, task_id=changed.id, queue=signing.queue)
        store().redis.hset(record_key(changed.id), "signature", signature)
        sent = send(changed.id, signing, task_id=changed.id)
        with pytest.raises(JobFailed):
            sent.get(timeout=30)
        assert "sign" in refusal(changed.id)


@pytest.mark.timeout(120)
def test_what_is_to_follow_a_signed_job_is_signed_as_well(
    signing: LocalHost, job: Callable[..., dict[str, Any]]
) -> None:
    good = job()
    forged, moved = job(), job()
    text = json.dumps(job())
    links = [
        execute_job.si(forged).set(task_id=forged["id"]),
        app.signature(
            "cronium.execute_job",
            [{**SIGNER.wrap(text), "job": json.dumps(moved)}],
            task_id=moved["id"],
            immutable=True,
        ),
    ]
    sent = send(SIGNER.wrap(json.dumps(good)), signing, task_id=good["id"], link=links)
    assert sent.get(timeout=30)["status"] == "completed"
    assert "it is not signed" in refusal(forged["id"])
    assert NONE_OF_OURS in refusal(moved["id"])
    for link in links:
        with pytest.raises(JobFailed):
            app.AsyncResult(link.options["task_id"]).get(timeout=30)
