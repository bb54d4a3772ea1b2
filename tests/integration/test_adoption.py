"""A job goes from one worker to the next: nothing of it is lost, nothing is there twice."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cronium_worker.errors import Detached
from cronium_worker.execution.admission import Admission, Share
from cronium_worker.fleet.store import record_key
from cronium_worker.settings import Log
from cronium_worker.workspace.gate import Gate
from tests.conftest import wait_until
from tests.integration.scripts import says
from tests.integration.shifts import Case

SECRET = "correct horse"
LINES = 150
# Each line of stdout is cut within a character and within the secret.
NUMBERED = f"""
import os, time
secret = os.environ["TOKEN"].encode()
for n in range({LINES}):
    for piece in (b"%d \\xc3" % n, b"\\xa4 " + secret[:6], secret[6:] + b"\\n"):
        os.write(1, piece)
        time.sleep(0.004)
    os.write(2, b"%d\\n" % n)
os.write(1, b"no end of line")
cronium.output({{"lines": {LINES}}})
cronium.set_variable("seen", "all")
"""
NUMBERED_OUT = "".join(f"{n} ä ***\n" for n in range(LINES)) + "no end of line"
NUMBERED_ERR = "".join(f"{n}\n" for n in range(LINES))


def numbered(case: Callable[..., Case]) -> Case:
    return case(script={"type": "python", "content": NUMBERED}, secrets={"TOKEN": SECRET})


def assert_numbered(case: Case, result: Any) -> None:
    assert (result.status, result.exit_code, result.error) == ("completed", 0, None)
    assert case.text("stderr") == NUMBERED_ERR
    assert case.text("stdout") == NUMBERED_OUT
    assert case.gaps() == []
    assert (result.log.lines, result.log.gap, result.log.truncated) == (2 * LINES + 1, False, False)
    assert result.log.bytes == len(NUMBERED_OUT.replace("***", SECRET).encode()) + len(NUMBERED_ERR)
    assert result.output.data == {"lines": LINES}
    assert result.output.variables == {"seen": "all"}


def test_a_run_that_goes_through_many_hands_is_whole(case: Callable[..., Case]) -> None:
    job = numbered(case)
    shift = job.start()
    for number in (10, 11, 30, 60, 61, 100):
        job.wait_for(f"\n{number} ")
        detached = shift.leave()
        assert detached is not None
        assert detached.container_left
        shift = job.adopt()
    result = shift.end()

    assert_numbered(job, result)
    record = job.store.record(job.job.id)
    assert (result.image, result.started_at) == (record["image"], record["started_at"])
    assert result.image.startswith("cronium/runner:python-")
    assert result.metrics.cpu_seconds
    assert result.metrics.memory_peak_bytes
    assert 1.5 < result.timings.run_s < 20
    assert result.timings.queue_s < 5


def test_a_run_that_ended_without_a_worker_is_whole(case: Callable[..., Case]) -> None:
    job = numbered(case)
    shift = job.start()
    job.wait_for("\n5 ")
    shift.leave()
    container = job.container()
    wait_until(lambda: not job.host.engine.state(container.id).running, what="the end of the script")
    # What the next worker is late does not count as run time.
    finished_s = job.host.engine.state(container.id).finished_s
    wait_until(lambda: time.time() - finished_s > 2, what="a while")
    result = job.adopt().end()

    assert_numbered(job, result)
    assert result.metrics.cpu_seconds is None
    ran_s = finished_s - container.created_s
    assert ran_s - 2 < result.timings.run_s <= ran_s


@pytest.mark.parametrize("driver", ["local", "json-file"])
def test_a_run_of_which_nothing_was_read_yet(case: Callable[..., Case], driver: Any) -> None:
    job = case({"log": Log(driver=driver)}, script=says("bash", "late ü", then_sleep_s=1))
    shift = job.start()
    sandboxes = job.host.settings.sandboxes_path
    wait_until(lambda: list(sandboxes.glob("**/control/released")), what="the open gate")
    detached = shift.leave()
    assert detached is None or detached.container_left
    result = job.adopt().end()

    assert (result.status, job.text(), job.gaps()) == ("completed", "late ü\n", [])


def test_a_failed_script_keeps_its_exit_code(case: Callable[..., Case]) -> None:
    job = case(script={"type": "bash", "content": "echo on; until [ -e /tmp/go ]; do sleep 0.1; done; exit 7"})
    shift = job.start()
    job.wait_for("on")
    shift.leave()
    sandbox = job.container().sandbox_id
    shift = job.adopt()
    (job.host.settings.sandboxes_path / "sandboxes" / sandbox / "tmp" / "go").touch()
    result = shift.end()

    assert (result.status, result.exit_code) == ("failed", 7)
    assert result.error is not None
    assert result.error.type == "script"


def test_the_timeout_counts_over_all_workers(case: Callable[..., Case]) -> None:
    job = case(script=says("bash", "on", then_sleep_s=60), timeout=4)
    shift = job.start()
    job.wait_for("on")
    began = time.monotonic()
    shift.leave()
    wait_until(lambda: time.monotonic() - began > 2, what="half of the time")
    result = job.adopt().end()

    assert result.status == "timeout"
    assert time.monotonic() - began < 5.5
    assert 4 <= result.timings.run_s < 6


def test_a_run_over_its_timeout_ends_with_the_adoption(case: Callable[..., Case]) -> None:
    job = case(script=says("bash", "on", then_sleep_s=60), timeout=1)
    shift = job.start()
    job.wait_for("on")
    shift.leave()
    began = time.monotonic()
    wait_until(lambda: time.monotonic() - began > 1.5, what="the timeout")
    assert job.host.engine.state(job.container().id).running
    result = job.adopt().end()

    assert result.status == "timeout"
    assert time.monotonic() - began < 10


@pytest.mark.parametrize("when", ["after", "before"])
def test_a_cancel_reaches_an_adopted_job(case: Callable[..., Case], when: str) -> None:
    content = "trap 'echo bye; exit 3' TERM; echo on; while :; do sleep 0.1; done"
    job = case(script={"type": "bash", "content": content})
    shift = job.start()
    job.wait_for("on")
    shift.leave()
    if when == "before":
        assert job.store.cancel(job.job.id) == "requested"
    shift = job.adopt()
    if when == "after":
        shift.token.cancel()
    result = shift.end()

    assert (result.status, result.exit_code) == ("cancelled", 3)
    assert job.text() == "on\nbye\n"


def test_an_adopted_job_has_its_share_of_the_host(case: Callable[..., Case]) -> None:
    job = case(script={"type": "bash", "content": "echo hi; sleep 300"}, resources={"cpu": 0.7, "memory": "128m"})
    shift = job.start()
    job.wait_for("hi")
    shift.leave()
    admission = Admission(Share(500, 0))  # that is less than it needs: it runs already
    job.host = replace(job.host, admission=admission)
    shift = job.adopt()
    wait_until(lambda: admission.reserved == Share(700, 2**27), what="its share is reserved")
    shift.token.cancel()
    assert shift.end().status == "cancelled"
    assert admission.reserved == Share(0, 0)


def test_a_log_over_its_cap_stays_cut_where_it_was(case: Callable[..., Case]) -> None:
    content = """
import os, time
for n in range(2000):
    os.write(1, b"%09d\\n" % n)
    os.write(2, b"%09d\\n" % n)
    time.sleep(0.001)
"""
    job = case({"log": Log(max_bytes=40_000)}, script={"type": "python", "content": content})
    shift = job.start()
    for number in (20, 40, 60):
        job.wait_for(f"{number:09d}\n")
        assert shift.leave() is not None
        shift = job.adopt()
    wait_until(lambda: int(job.store.record(job.job.id)["stored"]) > 39_500, what="the cap")
    cut_at = len(job.text()), len(job.text("stderr"))
    assert shift.leave() is not None
    result = job.adopt().end()

    assert (result.log.truncated, result.log.bytes, result.log.lines) == (True, 40_000, 4000)
    for text in (job.text(), job.text("stderr")):
        assert text == "".join(f"{n:09d}\n" for n in range(2000))[: len(text)]
    assert (len(job.text()), len(job.text("stderr"))) == cut_at
    assert sum(len(json.dumps(event)) for event in job.events()) < 50_000


def test_bytes_that_json_file_does_not_keep_are_a_gap_that_is_told(case: Callable[..., Case]) -> None:
    content = "printf 'a\\xffb\\n'; until [ -e /tmp/go ]; do sleep 0.1; done; echo more"
    job = case({"log": Log(driver="json-file")}, script={"type": "bash", "content": content})
    shift = job.start()
    job.wait_for("b\n")
    shift.leave()
    shift = job.adopt()
    (job.host.settings.sandboxes_path / "sandboxes" / job.container().sandbox_id / "tmp" / "go").touch()
    result = shift.end()

    assert (result.status, result.log.gap) == ("completed", True)
    assert len(job.gaps()) == 1
    assert job.text().startswith("a\ufffdb\n")
    assert job.text().endswith("more\n")


def test_a_stored_log_that_is_shorter_than_what_was_read_is_a_gap(case: Callable[..., Case]) -> None:
    job = case(script=says("bash", "on", then_sleep_s=1))
    shift = job.start()
    job.wait_for("on")
    shift.leave()
    job.store.redis.hset(record_key(job.job.id), "stdout_offset", 5000)
    result = job.adopt().end()

    assert (result.status, result.log.gap) == ("completed", True)
    assert len(job.gaps()) == 1


def test_outputs_that_are_being_collected_are_not_left(case: Callable[..., Case], monkeypatch: Any) -> None:
    from cronium_worker.execution import secrecy

    job = case(script={"type": "bash", "content": "echo out > output/x; true"})
    collect = secrecy.collect

    def leave_now(*arguments: Any, **named: Any) -> Any:
        job.shifts[0].token.detach()
        return collect(*arguments, **named)

    monkeypatch.setattr(secrecy, "collect", leave_now)
    result = job.start().end()

    assert (result.status, list(result.output.files)) == ("completed", ["x"])


def test_a_worker_that_leaves_before_the_start_leaves_nothing(
    case: Callable[..., Case], monkeypatch: Any, leftovers: Callable[[], list[str]]
) -> None:
    from cronium_worker.execution import attempt

    job = case(script=says("bash", "never"))
    make = attempt.Sandbox.create

    def make_and_leave(*arguments: Any, **named: Any) -> Any:
        job.shifts[0].token.detach()
        return make(*arguments, **named)

    monkeypatch.setattr(attempt.Sandbox, "create", make_and_leave)
    with pytest.raises(Detached) as caught:
        job.start().end()

    assert not caught.value.container_left
    assert leftovers() == []


# ---- a worker that is killed

WORKER = """
import os, signal, sys
from cronium_worker.engine.client import Engine
from cronium_worker.engine.images import ImageManager
from cronium_worker.execution.attempt import Attempt
from cronium_worker.execution.pool import Pool
from cronium_worker.execution.sandbox import Host, Sandbox
from cronium_worker.execution.signals import CancelToken
from cronium_worker.fleet.connections import connect
from cronium_worker.fleet.store import JobStore
from cronium_worker.settings import Settings
from cronium_worker.workspace.gate import Gate

settings = Settings.model_validate_json(sys.argv[1])
settings = settings.model_copy(update={"secret_keys": Settings().secret_keys})
keys = [key.get_secret_value() for key in settings.secret_keys]
store = JobStore(connect(os.environ["CRONIUM_REDIS_URL"]), result_ttl_s=settings.result_ttl, secret_keys=keys)
host = Host(engine=Engine(), settings=settings)
claim = store.claim(sys.argv[2], host=settings.host_name)

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

exec(sys.argv[3])
with Attempt(host, store, ImageManager(host.engine, settings.registry), Pool(host), claim, CancelToken()) as attempt:
    result = attempt.run()
    print(result.status, flush=True)
    signal.pause()  # the result was never written
"""
AT_THE_GATE = "Gate.open = lambda gate: (print('at the gate', flush=True), signal.pause())"
MARKED = """
write = os.write
os.write = lambda descriptor, data: die() if data == b"go\\n" else write(descriptor, data)
"""
LATE_LAUNCHER = """
start = host.engine.start
host.engine.start = lambda container: (start(container), host.engine.api.pause(container))
opened = Gate.open
Gate.open = lambda gate: (opened(gate), die())
"""


def killed_worker(job: Case, patch: str = "") -> subprocess.Popen[str]:
    settings = job.host.settings.model_dump_json(exclude={"redis_url", "secret_keys", "registry", "flower"})
    env = {**os.environ, "CRONIUM_REDIS_URL": job.host.settings.redis_url.get_secret_value()}
    command = [sys.executable, "-c", WORKER, settings, job.job.id, patch]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True)


def test_kill_9_loses_nothing(case: Callable[..., Case]) -> None:
    job = numbered(case)
    with killed_worker(job) as worker:
        job.wait_for("\n50 ")
        worker.send_signal(signal.SIGKILL)
    assert_numbered(job, job.adopt().end())


def in_workspace(job: Case, name: str) -> Path:
    return job.host.settings.sandboxes_path / "sandboxes" / job.container().sandbox_id / name


@pytest.mark.parametrize("waits", [True, False])
def test_a_script_that_was_not_started_never_counts_as_run(case: Callable[..., Case], waits: bool) -> None:
    job = case(script=says("bash", "never"))
    with killed_worker(job, AT_THE_GATE) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "at the gate\n"
        container = job.container()
        if waits:  # otherwise it reads the end of the file
            job.host.engine.api.pause(container.id)
        worker.send_signal(signal.SIGKILL)
    if not waits:
        wait_until(lambda: not job.host.engine.state(container.id).running, what="the launcher's end")
        assert job.host.engine.state(container.id).exit_code == 75
    result = job.adopt().end()

    assert result.status == "failed"
    assert result.error is not None
    assert (result.error.type, result.error.retryable) == ("container_start", True)
    assert (result.exit_code, job.text()) == (None, "")


@pytest.mark.parametrize("patch", [MARKED, LATE_LAUNCHER], ids=["killed before the word", "launcher comes late"])
def test_a_script_that_is_marked_as_started_runs_once(case: Callable[..., Case], patch: str) -> None:
    job = case(script={"type": "bash", "content": "echo once; echo x >> output/runs"})
    with killed_worker(job, patch) as worker:
        assert worker.wait(30) == -signal.SIGKILL
    container = job.container()
    if job.host.engine.api.inspect_container(container.id)["State"]["Paused"]:
        job.host.engine.api.unpause(container.id)
    result = job.adopt().end()

    assert (result.status, result.error) == ("completed", None)
    assert (job.text(), result.output.files["runs"].size) == ("once\n", 2)


def test_a_container_that_was_removed_meanwhile(case: Callable[..., Case]) -> None:
    job = case(script=says("bash", "on", then_sleep_s=60))
    shift = job.start()
    job.wait_for("on")
    shift.leave()
    container = job.container()
    claimed = job.adopt
    job.host.engine.remove(container.id)
    job.container = lambda: container  # type: ignore[method-assign] - seen just before
    result = claimed().end()

    assert result.error is not None
    assert (result.error.type, result.error.retryable) == ("daemon", True)
    assert result.error.message == "the container was removed"


def test_a_workspace_that_is_gone(case: Callable[..., Case]) -> None:
    job = case(script=says("bash", "on", then_sleep_s=60))
    shift = job.start()
    job.wait_for("on")
    shift.leave()
    in_workspace(job, "control/gate").unlink()
    result = job.adopt().end()

    assert result.error is not None
    assert (result.error.type, result.error.retryable) == ("daemon", True)


def test_a_gate_of_another_boot_gives_no_time(tmp_path: Path) -> None:
    gate = Gate(tmp_path)
    gate.open()
    (tmp_path / "released").write_text("0.0 another-boot\n")
    left = Gate.left_by_another(tmp_path)
    assert (left.released, left.same_boot, left.open_for_s()) == (True, False, 0.0)
    left.close()
    gate.close()


def test_a_worker_that_dies_before_it_has_written_the_result_costs_no_second_run(case: Callable[..., Case]) -> None:
    job = case(script=says("bash", "once"))
    with killed_worker(job) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "completed\n"
        worker.send_signal(signal.SIGKILL)
    result = job.adopt().end()
    assert (result.status, result.exit_code) == ("completed", 0)
    assert job.text() == "once\n"


def test_a_timeout_that_a_dead_worker_had_enforced_is_still_one(case: Callable[..., Case]) -> None:
    job = case(script=says("bash", "begun", then_sleep_s=60), timeout=1, grace_period=5)
    with killed_worker(job) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "timeout\n"
        worker.send_signal(signal.SIGKILL)
    result = job.adopt().end()
    assert result.error is not None
    assert (result.status, result.error.type) == ("timeout", "timeout")
