"""The Python side against a real worker process: delay, get, follow, cancel, canvas, other producers."""

import json
import threading
import time
from typing import Any
from uuid import uuid4

import pytest
from celery import chain, group

from cronium_worker import Job, JobFailed, JobNotFound, cancel, execute_job, follow, result, submit
from cronium_worker.app import app
from cronium_worker.fleet.connections import connect
from cronium_worker.fleet.store import ACTIVE_KEY
from cronium_worker.tasks import store
from tests.conftest import wait_until
from tests.integration.scripts import LANGUAGES, exits_with, says
from tests.system.conftest import Fleet

TIMEOUT_S = 60
KINDS = ("script", "environment", "secret", "input", "variable", "output")


@pytest.fixture(autouse=True)
def this_fleet(fleet: Fleet) -> None:
    """This process talks to the same Redis as the worker (the settings are read once a process)."""
    assert app.conf.broker_url == fleet.environment["CRONIUM_REDIS_URL"]


@pytest.mark.parametrize("language", LANGUAGES)
def test_delay_and_get(fleet: Fleet, language: str) -> None:
    job = Job.model_validate({"script": says(language, "hi"), "queue": fleet.queue})
    async_result = execute_job.delay(job)
    outcome = async_result.get(timeout=TIMEOUT_S)
    assert async_result.id == job.id
    assert (outcome["status"], outcome["job_id"], async_result.state) == ("completed", job.id, "SUCCESS")
    stored = result(job.id)
    assert stored is not None
    assert stored.model_dump(mode="json") == outcome


def test_get_raises_job_failed_with_the_whole_result(fleet: Fleet) -> None:
    async_result = submit({"script": exits_with("python", 7), "queue": fleet.queue})
    with pytest.raises(JobFailed) as caught:
        async_result.get(timeout=TIMEOUT_S)
    assert (caught.value.result.exit_code, caught.value.result.status) == (7, "failed")
    assert async_result.state == "FAILURE"


def test_a_failed_script_is_no_error_of_the_worker(fleet: Fleet) -> None:
    async_result = submit({"script": exits_with("bash", 9), "queue": fleet.queue})
    with pytest.raises(JobFailed):
        async_result.get(timeout=TIMEOUT_S)
    wait_until(lambda: f"JobFailed('{async_result.id}'" in fleet.log.read_text())
    assert "Traceback" not in fleet.log.read_text()


def test_nothing_of_a_job_is_in_events_messages_or_logs(fleet: Fleet) -> None:
    marks = {
        name: f"mark-{name}-{uuid4().hex}"
        for name in ("script", "environment", "secret", "input", "variable", "output")
    }
    seen: list[str] = []
    job_id = uuid4().hex
    listening = threading.Event()

    def listen() -> None:
        with app.connection() as connection:

            def on_event(event: dict[str, Any]) -> None:
                seen.append(json.dumps(event))
                receiver.should_stop = event["type"] == "task-succeeded" and event["uuid"] == job_id

            receiver = app.events.Receiver(connection, handlers={"*": on_event})
            with receiver.consumer_context():
                listening.set()
                receiver.capture(limit=None, timeout=TIMEOUT_S, wakeup=False)

    fields = {
        "id": job_id,
        "script": {"type": "bash", "content": f"true # {marks['script']}\ncronium_output {marks['output']}"},
        "environment": {"X": marks["environment"]},
        "secrets": {"Y": marks["secret"]},
        "input_data": marks["input"],
        "variables": {"v": marks["variable"]},
        "queue": fleet.queue,
    }
    thread = threading.Thread(target=listen)
    thread.start()
    assert listening.wait(20)
    submit(fields).get(timeout=TIMEOUT_S)
    thread.join(TIMEOUT_S)
    assert not thread.is_alive()
    everything = "".join(seen) + fleet.log.read_text()
    assert job_id in everything
    assert not [name for name, mark in marks.items() if mark in everything]


def test_follow_before_during_and_after_is_the_same(fleet: Fleet) -> None:
    job_id = uuid4().hex
    submit({"id": job_id, "script": says("bash", "line", then_sleep_s=1.5), "queue": fleet.queue})
    before = list(follow(job_id))
    assert before == list(follow(job_id))
    assert [event["seq"] for event in before] == list(range(len(before)))

    job_id = uuid4().hex
    submit({"id": job_id, "script": says("bash", "line", then_sleep_s=2), "queue": fleet.queue})
    wait_until(lambda: store().record(job_id)["status"] == "running")
    during = list(follow(job_id))
    assert during == list(follow(job_id))
    assert during[0]["status"] == "pending"
    assert during[-1]["result"]["status"] == "completed"


def test_events_are_published_as_the_contract_says(fleet: Fleet) -> None:
    job_id = uuid4().hex
    redis = connect(fleet.environment["CRONIUM_REDIS_URL"])
    key = f"cronium:job:{{{job_id}}}"
    with redis.pubsub(ignore_subscribe_messages=True) as pubsub:
        pubsub.subscribe(f"{key}:logs", f"{key}:status", "cronium:status")
        wait_until(lambda: pubsub.get_message(timeout=1) is None)
        submit({"id": job_id, "script": says("node", "published"), "queue": fleet.queue})
        heard: list[tuple[str, dict[str, Any]]] = []
        deadline = time.monotonic() + TIMEOUT_S
        while time.monotonic() < deadline:
            message = pubsub.get_message(timeout=1)
            if message is None:
                continue
            event = json.loads(message["data"])
            if event["job_id"] == job_id:
                heard.append((message["channel"], event))
            if message["channel"] == "cronium:status" and event["job_id"] == job_id and "result" in event:
                break
    stream = [json.loads(fields["event"]) for _, fields in redis.xrange(f"{key}:events")]
    redis.close()
    assert [event for channel, event in heard if channel != "cronium:status"] == stream
    assert [event["data"] for channel, event in heard if channel.endswith(":logs")] == ["published\n"]
    assert [event["status"] for channel, event in heard if channel == "cronium:status"] == [
        "pending",
        "preparing",
        "running",
        "completed",
    ]


def test_cancel_ends_a_running_job_and_get_says_so(fleet: Fleet) -> None:
    async_result = submit({"script": says("python", "begun", then_sleep_s=60), "queue": fleet.queue})
    for event in follow(async_result.id):
        if event["type"] == "log":
            cancel(async_result.id)
            cancel(async_result.id)
    with pytest.raises(JobFailed) as caught:
        async_result.get(timeout=TIMEOUT_S)
    assert caught.value.result.status == "cancelled"
    cancel(async_result.id)
    with pytest.raises(JobNotFound):
        cancel("nosuchjob")


def test_a_group_runs_side_by_side(fleet: Fleet) -> None:
    jobs = [{"script": says("bash", str(n), then_sleep_s=1), "queue": fleet.queue} for n in range(3)]
    outcomes = group(execute_job.s(job) for job in jobs).apply_async().get(timeout=TIMEOUT_S)
    assert [outcome["status"] for outcome in outcomes] == ["completed"] * 3
    assert len({outcome["job_id"] for outcome in outcomes}) == 3


def follows(fleet: Fleet, *more: Any, **fields: Any) -> Any:
    """A second job of a chain, after one that completes; and what else is to follow."""
    first, second = ({"script": says("bash", "x"), "queue": fleet.queue} | extra for extra in ({}, fields))
    return chain(execute_job.s(first), execute_job.si(second), *more)


def test_a_chain_runs_one_after_the_other(fleet: Fleet) -> None:
    last = follows(fleet).apply_async()
    assert last.get(timeout=TIMEOUT_S)["job_id"] == last.id
    assert last.parent.get(timeout=TIMEOUT_S)["status"] == "completed"


def test_what_cannot_follow_in_a_chain_ends_as_failed(fleet: Fleet) -> None:
    """Whoever waits hears why, the job before keeps its result, and nothing comes after."""
    after = execute_job.si({"script": says("bash", "never"), "queue": fleet.queue})
    last = follows(fleet, after, image="strange/image").apply_async()
    refused = last.parent
    with pytest.raises(JobFailed, match="image: strange/image is not on this fleet's allow-list"):
        refused.get(timeout=TIMEOUT_S)
    assert refused.parent.get(timeout=TIMEOUT_S)["status"] == "completed"
    stored = result(refused.id)
    assert stored is not None
    assert stored.error is not None
    assert (stored.status, stored.error.type) == ("failed", "validation")
    wait_until(lambda: last.state == "FAILURE", what="the end of what was to come after")
    with pytest.raises(JobNotFound):
        result(last.id)


def test_a_job_that_is_given_something_else_than_a_result_says_how_to_write_it(fleet: Fleet) -> None:
    linked = uuid4().hex
    job = {"script": says("bash", "x"), "queue": fleet.queue}
    bad = execute_job.s("not a result", job).set(task_id=linked)
    parent = execute_job.apply_async([job], link=bad)
    assert parent.get(timeout=TIMEOUT_S)["status"] == "completed"
    with pytest.raises(JobFailed, match=r"after another task than a job write execute_job.si\(job\)"):
        app.AsyncResult(linked).get(timeout=TIMEOUT_S)
    wait_until(lambda: store().redis.zscore(ACTIVE_KEY, parent.id) is None, what="nobody sends it again")


def test_a_link_that_cannot_run_costs_its_parent_nothing(fleet: Fleet) -> None:
    linked = uuid4().hex
    bad = execute_job.si({"script": says("bash", "x"), "resources": {"cpu": 99}}).set(task_id=linked)
    parent = execute_job.apply_async([{"script": says("bash", "x"), "queue": fleet.queue}], link=bad)
    assert parent.get(timeout=TIMEOUT_S)["status"] == "completed"
    with pytest.raises(JobFailed, match=r"99\.0 is above"):
        app.AsyncResult(linked).get(timeout=TIMEOUT_S)


def test_a_producer_in_another_language_sends_the_job_itself(fleet: Fleet) -> None:
    job_id = uuid4().hex
    payload = {"id": job_id, "script": {"type": "NODEJS", "content": "console.log('foreign')"}, "gracePeriod": 1}
    outcome = app.send_task("cronium.execute_job", args=[payload], queue=fleet.queue).get(timeout=TIMEOUT_S)
    assert outcome["job_id"] == job_id
    assert [event["data"] for event in follow(job_id) if event["type"] == "log"] == ["foreign\n"]


def test_a_forged_message_is_refused_with_the_field(fleet: Fleet) -> None:
    async_result = app.send_task("cronium.execute_job", args=[{"script": {"type": "perl"}}], queue=fleet.queue)
    with pytest.raises(JobFailed) as caught:
        async_result.get(timeout=TIMEOUT_S)
    error = caught.value.result.error
    assert error is not None
    assert error.type == "validation"
    assert "script.content: Field required" in error.message
    assert [event["status"] for event in follow(async_result.id)] == ["failed"]
    assert result(async_result.id) == caught.value.result


def test_jobs_of_higher_priority_go_first(fleet: Fleet) -> None:
    """Eight slots are busy; what waits is taken by priority, not by age."""
    release = [submit({"script": says("bash", "busy", then_sleep_s=3), "queue": fleet.queue}) for _ in range(8)]
    for async_result in release:
        wait_until(lambda job_id=async_result.id: store().record(job_id)["status"] == "running", timeout_s=40)
    low = [submit({"script": says("bash", "low"), "queue": fleet.queue, "priority": 0}) for _ in range(8)]
    high = submit({"script": says("bash", "high"), "queue": fleet.queue, "priority": 9})
    for async_result in (*low, high):
        async_result.get(timeout=TIMEOUT_S)
    started = {a.id: store().record(a.id)["started_at"] for a in (*low, high)}
    assert sum(at < started[high.id] for at in started.values()) < 8
