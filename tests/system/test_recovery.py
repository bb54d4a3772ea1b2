"""Nothing lost, nothing twice: messages that vanish, workers and hosts that die, are stopped, or hang."""

import os
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from cronium_worker import JobFailed, execute_job, follow
from cronium_worker.fleet.oversight import Oversight
from cronium_worker.fleet.store import ACTIVE_KEY, record_key
from cronium_worker.tasks import store
from tests.conftest import wait_until
from tests.rig import CRONIUM, Rig, RigWorker
from tests.system.local_host import IMAGE, LocalHost

TIMEOUT_S = 60
# Where a worker's jobs are to wait for the next one: a node's start takes seconds, on a busy machine more than a lease.
LONG_LEASE = {"CRONIUM_LEASE_TTL": "30"}


@pytest.fixture
def recovering(host: LocalHost) -> LocalHost:
    """A host without a jobs node yet, in a fleet that looks for lost jobs every second."""
    schedule = {"CRONIUM_SCHEDULE__RECOVERY": "1"}
    host.env |= schedule | {"PATH": f"{Path(CRONIUM).parent}:{os.environ['PATH']}"}
    host.start(node="agent")
    host.process("celery", "--quiet", "-A", "cronium_worker.app", "beat", "--loglevel", "INFO")
    return host


def submit(host: LocalHost, script: str, **fields: Any) -> Any:
    return execute_job.delay({"script": {"type": "bash", "content": script}, "queue": host.queue} | fields)


def lines_of(job_id: str) -> list[str]:
    return "".join(e["data"] for e in store().events(job_id) if e["type"] == "log").splitlines()


def statuses_of(job_id: str) -> list[str]:
    return [event["status"] for event in store().events(job_id) if event["type"] == "status"]


@pytest.mark.timeout(120)
def test_a_message_that_was_deleted_costs_seconds(recovering: LocalHost) -> None:
    async_result = submit(recovering, "echo hi")
    assert store().redis.delete(f"{recovering.queue}:4") == 1  # priority 5, turned round for Redis
    started = time.monotonic()
    recovering.start(node="jobs")
    assert async_result.get(timeout=TIMEOUT_S)["status"] == "completed"
    assert time.monotonic() - started < 20
    assert statuses_of(async_result.id) == ["pending", "preparing", "running", "completed"]


@pytest.mark.timeout(120)
def test_a_lost_message_is_missed_while_others_are_waiting(recovering: LocalHost) -> None:
    """The queue is never empty here: that a younger one was taken tells."""
    lost = submit(recovering, "echo lost")
    assert store().redis.delete(f"{recovering.queue}:4") == 1
    sent_ms = Oversight(store()).standing([lost.id])[lost.id].sent_at_ms
    store().redis.hset(record_key(lost.id), "sent_at", sent_ms - 10_000)
    others = [submit(recovering, "sleep 2") for _ in range(14)]
    recovering.start(node="jobs", concurrency=1)
    wait_until(lambda: Oversight(store()).standing([lost.id])[lost.id].sent_at_ms > sent_ms, timeout_s=40)
    assert [other for other in others if store().record(other.id)["status"] == "pending"]
    for other in others:
        store().cancel(other.id)
    assert lost.get(timeout=TIMEOUT_S)["status"] == "completed"


@pytest.mark.timeout(120)
def test_a_result_that_celery_did_not_get_is_given_to_it(recovering: LocalHost) -> None:
    """Given a job that ended while nobody had its message; then `get` hears of it all the same."""
    async_result = submit(recovering, "echo hi")
    assert store().redis.delete(f"{recovering.queue}:4") == 1
    store().cancel(async_result.id)
    recovering.start(node="jobs")
    with pytest.raises(JobFailed) as caught:
        async_result.get(timeout=TIMEOUT_S)
    assert caught.value.result.status == "cancelled"
    wait_until(lambda: store().redis.zscore(ACTIVE_KEY, async_result.id) is None)


@pytest.mark.timeout(120)
def test_a_message_that_comes_twice_runs_once(recovering: LocalHost) -> None:
    recovering.start(node="jobs")
    async_result = submit(recovering, "sleep 1; echo once")
    payload = {"task_id": async_result.id, "queue": recovering.queue}
    for _ in range(3):
        execute_job.app.send_task("cronium.execute_job", args=[async_result.id], **payload)
    assert async_result.get(timeout=TIMEOUT_S)["status"] == "completed"
    execute_job.app.send_task("cronium.execute_job", args=[async_result.id], **payload)
    assert async_result.get(timeout=TIMEOUT_S)["status"] == "completed"
    assert lines_of(async_result.id) == ["once"]
    assert statuses_of(async_result.id) == ["pending", "preparing", "running", "completed"]


@pytest.mark.timeout(120)
def test_a_retry_outlives_the_worker_that_owed_it(recovering: LocalHost) -> None:
    worker = recovering.start(node="jobs")
    retry = {"max_attempts": 2, "delay": 4, "on": ["failed"]}
    async_result = submit(recovering, 'echo "$CRONIUM_ATTEMPT"; [ "$CRONIUM_ATTEMPT" = 2 ]', retry=retry)
    wait_until(lambda: store().record(async_result.id)["attempt"] == "2")
    due = time.monotonic() + 4
    worker.kill()
    recovering.start(node="jobs")
    assert async_result.get(timeout=TIMEOUT_S)["attempt"] == 2
    assert time.monotonic() > due - 1
    assert lines_of(async_result.id) == ["1", "2"]


@pytest.mark.timeout(120)
def test_a_slot_is_free_while_a_job_waits_for_its_retry(recovering: LocalHost) -> None:
    recovering.start(node="jobs", concurrency=1)
    waiting = submit(recovering, "false", retry={"max_attempts": 2, "delay": 600, "on": ["failed"]})
    wait_until(lambda: store().record(waiting.id)["attempt"] == "2")
    assert submit(recovering, "true").get(timeout=20)["status"] == "completed"
    store().cancel(waiting.id)
    with pytest.raises(JobFailed):
        waiting.get(timeout=TIMEOUT_S)


@pytest.mark.timeout(120)
def test_a_retry_comes_when_it_is_due(recovering: LocalHost) -> None:
    recovering.start(node="jobs")
    retry = {"max_attempts": 4, "delay": 0.5, "backoff": 2, "on": ["failed"]}
    async_result = submit(recovering, '[ "$CRONIUM_ATTEMPT" = 4 ]', retry=retry)
    assert async_result.get(timeout=TIMEOUT_S)["attempt"] == 4
    at: dict[str, list[float]] = {"pending": [], "preparing": []}
    for event in store().events(async_result.id):
        if event.get("status") in at:
            at[event["status"]].append(datetime.fromisoformat(event["ts"]).timestamp())
    waited_s = [taken - given for given, taken in zip(at["pending"], at["preparing"], strict=True)]
    for due_s, waited in zip((0.5, 1, 2), waited_s[1:], strict=True):
        assert due_s - 0.1 <= waited < due_s + 5  # two clocks


@pytest.mark.timeout(180)
def test_a_worker_that_is_killed_loses_nothing(recovering: LocalHost) -> None:
    """Given 8 jobs that print; when their worker is killed and a new one started; then each completes as if nothing
    had been, and who follows notices nothing but a pause."""
    recovering.env |= LONG_LEASE
    worker = recovering.start(node="jobs", concurrency=8)
    script = 'for n in $(seq 60); do echo "$n"; sleep 0.1; done; cronium_output "$CRONIUM_ATTEMPT"'
    results = [submit(recovering, script, resources={"cpu": 0.2}) for _ in range(8)]
    for async_result in results:
        wait_until(lambda job_id=async_result.id: len(lines_of(job_id)) > 3, timeout_s=40)
    worker.kill()
    recovering.start(node="jobs", concurrency=8)
    for async_result in results:
        outcome = async_result.get(timeout=TIMEOUT_S)
        assert (outcome["attempt"], outcome["output"]["data"], outcome["exit_code"]) == (1, 1, 0)
        events = list(follow(async_result.id))
        assert [event["seq"] for event in events] == list(range(len(events)))
        assert lines_of(async_result.id) == [str(n) for n in range(1, 61)]
        assert outcome["log"]["lines"] == 60
        assert not outcome["log"]["gap"]
        assert statuses_of(async_result.id) == ["pending", "preparing", "running", "completed"]


@pytest.mark.timeout(180)
def test_a_job_that_ended_while_no_worker_was_there(recovering: LocalHost) -> None:
    recovering.env |= LONG_LEASE
    worker = recovering.start(node="jobs")
    async_result = submit(recovering, "echo before; sleep 2; echo after >&2; cronium_output 7; exit 3")
    wait_until(lambda: lines_of(async_result.id) == ["before"])
    worker.kill()
    ended = time.monotonic()
    wait_until(lambda: time.monotonic() - ended > 3)
    recovering.start(node="jobs")
    with pytest.raises(JobFailed) as caught:
        async_result.get(timeout=TIMEOUT_S)
    result = caught.value.result
    assert (result.status, result.exit_code, result.attempt, result.output.data) == ("failed", 3, 1, 7)
    assert lines_of(async_result.id) == ["before", "after"]


@pytest.mark.timeout(180)
def test_an_upgrade_under_load_fails_no_job(recovering: LocalHost) -> None:
    """Given a stream of jobs; when the worker is told to end and a new one started, three times; then all complete
    at their first attempt with all their lines."""
    recovering.env |= LONG_LEASE | {"CRONIUM_DRAIN_TIMEOUT": "1"}
    worker = recovering.start(node="jobs", concurrency=4)
    script = 'for n in $(seq 20); do echo "$n"; sleep 0.1; done'
    fields = {"network": {"mode": "none"}}
    results = [submit(recovering, script, **fields) for _ in range(24)]
    for _ in range(3):
        wait_until(lambda: len([r for r in results if store().record(r.id)["status"] == "running"]) >= 2, timeout_s=40)
        assert worker.stop() == 0
        worker = recovering.start(node="jobs", concurrency=4)
    for async_result in results:
        outcome = async_result.get(timeout=TIMEOUT_S)
        assert (outcome["status"], outcome["attempt"]) == ("completed", 1)
        assert lines_of(async_result.id) == [str(n) for n in range(1, 21)]
        assert "failed" not in statuses_of(async_result.id)


@pytest.mark.timeout(120)
def test_a_stopping_worker_answers_and_hears_cancels(recovering: LocalHost) -> None:
    worker = recovering.start(node="jobs")
    async_result = submit(recovering, "sleep 60", grace_period=1)
    wait_until(lambda: statuses_of(async_result.id)[-1] == "running")
    worker.process.terminate()
    wait_until(lambda: (view := recovering.view()) and view.nodes["jobs"].get("stopping"))
    assert execute_job.app.control.ping(destination=[f"jobs@{recovering.name}"], timeout=2)
    waiting = submit(recovering, "true")
    store().cancel(async_result.id)
    assert worker.process.wait(20) == 0
    assert store().record(waiting.id)["status"] == "pending"
    with pytest.raises(JobFailed):
        async_result.get(timeout=5)
    recovering.start(node="jobs")
    assert waiting.get(timeout=TIMEOUT_S)["status"] == "completed"


@pytest.mark.timeout(120)
def test_a_second_signal_detaches_at_once(recovering: LocalHost) -> None:
    recovering.env |= LONG_LEASE
    worker = recovering.start(node="jobs")
    async_result = submit(recovering, "sleep 8; echo end")
    wait_until(lambda: statuses_of(async_result.id)[-1] == "running")
    worker.process.terminate()
    wait_until(lambda: (view := recovering.view()) and view.nodes["jobs"].get("stopping"))
    started = time.monotonic()
    worker.process.terminate()
    assert worker.process.wait(20) == 0
    assert time.monotonic() - started < 5
    recovering.start(node="jobs")
    assert async_result.get(timeout=TIMEOUT_S)["attempt"] == 1
    assert lines_of(async_result.id) == ["end"]


@pytest.mark.timeout(120)
def test_two_workers_of_one_host_do_not_run_at_once(recovering: LocalHost) -> None:
    recovering.start(node="jobs")
    second = recovering.process(CRONIUM, "worker", "--node", "jobs", "--queues", recovering.queue)
    assert second.process.wait(30) == 1
    text = second.log.read_text()
    assert f"another worker runs the jobs of {recovering.name}, or hangs: end it, or set CRONIUM_HOST_NAME" in text
    assert "Traceback" not in text


@pytest.mark.timeout(180)
def test_a_job_whose_worker_does_not_come_back_runs_elsewhere(
    recovering: LocalHost, make_host: Callable[[], LocalHost]
) -> None:
    dying = make_host()
    dying.queue = recovering.queue
    worker = dying.start(node="jobs")
    async_result = submit(recovering, 'echo "$CRONIUM_ATTEMPT"; sleep 3')
    wait_until(lambda: lines_of(async_result.id) == ["1"])
    worker.kill()
    recovering.start(node="jobs")
    outcome = async_result.get(timeout=TIMEOUT_S)
    assert (outcome["host"], outcome["attempt"]) == (recovering.name, 2)
    assert lines_of(async_result.id) == ["1", "2"]
    # What the dead worker has left is destroyed by the next one of that host.
    dying.start(node="jobs")
    wait_until(lambda: not list(dying.base_path.glob("*/sandboxes/*")))


@pytest.mark.timeout(180)
def test_a_job_that_kills_its_worker_each_time_is_given_up(recovering: LocalHost) -> None:
    recovering.env |= LONG_LEASE
    worker = recovering.start(node="jobs")
    async_result = submit(recovering, "sleep 600")
    wait_until(lambda: statuses_of(async_result.id)[-1] == "running")
    for death in range(11):
        assert store().result(async_result.id) is None, f"given up after {death}"
        worker.kill()
        worker = recovering.start(node="jobs")
    with pytest.raises(JobFailed) as caught:
        async_result.get(timeout=TIMEOUT_S)
    error = caught.value.result.error
    assert error is not None
    assert error.type == "lost"
    assert "workers in a row that died with it" in error.message
    # What it may have printed last, nobody has read.
    assert caught.value.result.log.gap
    *_, gap, end = store().events(async_result.id)
    assert (gap["type"], gap.get("gap"), end["status"]) == ("progress", True, "failed")
    assert not list(recovering.base_path.glob("*/sandboxes/*"))


def visibility_worker(host: LocalHost, timeout_s: int) -> RigWorker:
    """A jobs node whose messages come again after that time, if they are not acknowledged."""
    code = f"""if True:
        from cronium_worker.app import app
        from cronium_worker.worker import serve
        soon = {{"visibility_timeout": {timeout_s}, "unacked_restore_interval": 1, "unacked_restore_throttle": 1}}
        app.conf.broker_transport_options = app.conf.broker_transport_options | soon
        serve("jobs@{host.name}", ["--concurrency", "2", "--queues", "{host.queue}"])
    """
    worker = host.process(str(Path(CRONIUM).parent / "python"), "-c", code)
    worker.wait_ready(nodes=1)
    return worker


@pytest.mark.timeout(120)
def test_a_job_longer_than_the_visibility_timeout_runs_once(recovering: LocalHost) -> None:
    visibility_worker(recovering, 2)
    async_result = submit(recovering, "echo run; sleep 8")
    wait_until(lambda: statuses_of(async_result.id)[-1] == "running")
    unacknowledged = store().redis.hvals("unacked")
    assert not [message for message in unacknowledged if async_result.id in message]
    assert async_result.get(timeout=TIMEOUT_S)["attempt"] == 1
    assert lines_of(async_result.id) == ["run"]
    assert statuses_of(async_result.id) == ["pending", "preparing", "running", "completed"]


@pytest.mark.timeout(120)
def test_a_chain_goes_on_after_a_worker_has_died(recovering: LocalHost) -> None:
    from celery import chain

    worker = recovering.start(node="jobs")
    first = {"id": uuid4().hex, "script": {"type": "bash", "content": "sleep 3; echo one"}, "queue": recovering.queue}
    second = {"id": uuid4().hex, "script": {"type": "bash", "content": "echo two"}, "queue": recovering.queue}
    last = chain(execute_job.s(first), execute_job.si(second)).apply_async()
    wait_until(lambda: statuses_of(first["id"])[-1] == "running")
    worker.kill()
    recovering.start(node="jobs")
    assert last.get(timeout=TIMEOUT_S)["status"] == "completed"
    assert lines_of(second["id"]) == ["two"]


@pytest.mark.timeout(120)
def test_a_node_that_answers_and_takes_nothing_is_started_again(recovering: LocalHost) -> None:
    """Given a node whose consumer is gone without its knowledge, as after a bad reconnect."""
    recovering.env["CRONIUM_LEASE_TTL"] = "8"
    worker = recovering.start()
    running = submit(recovering, "sleep 40; echo end")
    wait_until(lambda: statuses_of(running.id)[-1] == "running")
    node = f"jobs@{recovering.name}"
    execute_job.app.control.cancel_consumer(recovering.queue, destination=[node], reply=True, timeout=2)
    waiting = submit(recovering, "true")
    assert execute_job.app.control.ping(destination=[node], timeout=2)
    assert waiting.get(timeout=TIMEOUT_S)["attempt"] == 1
    assert "jobs are waiting and this node takes none" in worker.log.read_text()
    assert "jobs  | supervisor: ended, exit code 1" in worker.log.read_text()
    assert running.get(timeout=TIMEOUT_S)["attempt"] == 1
    assert lines_of(running.id) == ["end"]


@pytest.mark.timeout(240)
def test_the_jobs_of_a_host_that_hangs_for_good_run_elsewhere_within_a_minute(rig: Rig, tmp_path: Path) -> None:
    """Given a host whose engine and worker are frozen, with the fleet's usual times; then its jobs complete on the
    other host; when it wakes, then it changes nothing and cleans up."""
    queue = f"frozen-{uuid4().hex[:8]}"
    for host in rig.hosts:
        host.load(IMAGE)
    path = f"{Path(CRONIUM).parent}:{os.environ['PATH']}"
    beat = ["celery", "--quiet", "-A", "cronium_worker.app", "beat"]
    clock = RigWorker(beat, rig.b.env | {"PATH": path}, tmp_path / "beat.log")
    with clock, rig.b.start_worker(queues=queue, node="agent"):
        rig.a.start_worker(queues=queue)
        script = {
            "type": "bash",
            "content": 'echo "$CRONIUM_ATTEMPT"; sleep 5; echo end; cronium_output "$CRONIUM_ATTEMPT"',
        }
        fields = {"queue": queue, "network": {"mode": "none"}}
        results = [execute_job.delay({"script": script} | fields) for _ in range(4)]
        for async_result in results:
            wait_until(lambda job_id=async_result.id: lines_of(job_id) == ["1"], timeout_s=40)
        rig.a.freeze()
        frozen = time.monotonic()
        try:
            with rig.b.start_worker(queues=queue, node="jobs"):
                for async_result in results:
                    outcome = async_result.get(timeout=90)
                    assert (outcome["host"], outcome["attempt"]) == (rig.b.host_name, 2)
                assert time.monotonic() - frozen < 60
                before = [list(store().events(r.id)) for r in results]
        finally:
            rig.a.thaw()
        sandboxes = rig.a.base_path / f"{rig.a.env['CRONIUM_FLEET']}@{rig.a.host_name}" / "sandboxes"
        wait_until(lambda: not list(sandboxes.iterdir()), timeout_s=60, what="cleaned up")
        ours = {"label": f"cronium.host={rig.a.host_name}"}
        wait_until(lambda: rig.a.client.containers.list(all=True, filters=ours, ignore_removed=True) == [])
        assert [list(store().events(r.id)) for r in results] == before
        assert [lines_of(r.id) for r in results] == [["1", "2", "end"]] * 4
        rig.a.stop_workers()
