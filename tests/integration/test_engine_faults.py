"""A Docker Engine in trouble, or a container in somebody else's hands: a typed outcome, and no stuck slot."""

import gc
import signal
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest

from cronium_worker.engine.client import CALL_TIMEOUT_S, Engine
from cronium_worker.engine.seccomp import version_of
from cronium_worker.execution import follow, sandbox
from cronium_worker.execution.sandbox import Host, destroy
from cronium_worker.fleet.store import JobStore
from cronium_worker.models import JobResult
from cronium_worker.settings import Settings
from cronium_worker.workspace import directories
from tests.conftest import wait_until
from tests.integration.shifts import Case, cases, own
from tests.rig import Rig, rig, runner_image
from tests.rig_engine import has_ended

__all__ = ["rig"]
# The SDK does not close a socket that was refused.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")

# The lines of a script that goes on until it is told to end; at SIGTERM it claims success.
ENDLESS = {"type": "bash", "content": "trap 'echo told; exit 0' TERM; echo on; while :; do sleep 0.05; done"}
# Numbered lines for about three seconds, with an unfinished one now and then.
NUMBERED = {
    "type": "python",
    "content": "import os, time\nfor n in range(150):\n"
    " os.write(1, b'%d ' % n); time.sleep(0.02); os.write(1, b'end\\n'); os.write(2, b'%d\\n' % n)\n",
}
NUMBERED_OUT = "".join(f"{n} end\n" for n in range(150))
NUMBERED_ERR = "".join(f"{n}\n" for n in range(150))


def assert_whole(case: Case, result: JobResult) -> None:
    assert (result.status, result.error) == ("completed", None)
    assert (case.text(), case.text("stderr")) == (NUMBERED_OUT, NUMBERED_ERR)
    assert (result.log.gap, case.gaps()) == (False, [])


def assert_lost(result: JobResult) -> None:
    assert result.status == "failed"
    assert result.error is not None
    assert (result.error.type, result.error.retryable) == ("daemon", True)


# ---- somebody else's hands


def running(case: Callable[..., Case], **fields: Any) -> Case:
    job = case(**{"script": ENDLESS, "grace_period": 1, **fields})
    job.start()
    job.wait_for("on")
    return job


def test_a_container_that_is_removed_by_hand(case: Callable[..., Case]) -> None:
    job = running(case)
    job.host.engine.api.remove_container(job.container().id, force=True)
    result = job.shifts[0].end(timeout_s=10)
    assert_lost(result)
    assert result.error is not None
    assert result.error.message == "the container was removed"


@pytest.mark.parametrize(("number", "exit_code"), [("SIGKILL", 137), ("SIGINT", 130)])
def test_a_container_that_is_killed_by_hand(case: Callable[..., Case], number: str, exit_code: int) -> None:
    job = running(case)
    job.host.engine.api.kill(job.container().id, number)
    result = job.shifts[0].end(timeout_s=10)
    assert (result.status, result.exit_code) == ("failed", exit_code)
    assert result.error is not None
    assert result.error.type == "script"


def test_a_container_that_is_stopped_by_hand(case: Callable[..., Case]) -> None:
    job = running(case, script={"type": "bash", "content": "trap 'exit 9' TERM; echo on; while :; do sleep 0.05; done"})
    job.host.engine.api.stop(job.container().id)
    assert job.shifts[0].end(timeout_s=10).exit_code == 9


@pytest.mark.parametrize("cause", ["timeout", "cancelled"])
def test_a_paused_container_does_not_outlive_its_job(case: Callable[..., Case], cause: str) -> None:
    job = running(case, timeout=3 if cause == "timeout" else 60)
    job.host.engine.api.pause(job.container().id)
    if cause == "cancelled":
        job.shifts[0].token.cancel()
    assert job.shifts[0].end(timeout_s=15).status == cause


def test_a_stream_that_breaks_is_read_on(case: Callable[..., Case], monkeypatch: Any) -> None:
    streams = []
    for name in ("attach", "logs"):
        method = getattr(Engine, name)

        def recorded(*arguments: Any, method: Any = method, **named: Any) -> Any:
            streams.append(method(*arguments, **named))
            return streams[-1]

        monkeypatch.setattr(Engine, name, recorded)
    job = case(script=NUMBERED)
    shift = job.start()
    for number in (20, 40, 60):
        job.wait_for(f"\n{number} ")
        streams[-1]._socket.shutdown(socket.SHUT_RDWR)
    assert_whole(job, shift.end())
    assert len(streams) == 5


# ---- an engine in trouble


@pytest.fixture(scope="module")
def rig_host(rig: Rig, settings: Settings) -> Iterator[Host]:
    rig.a.load(runner_image("bash"))
    rig.a.load(runner_image("python"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOCKER_HOST", rig.a.engine.url)
        engine = Engine()
    yield Host(engine=engine, settings=settings)
    engine.close()


@pytest.fixture
def far(rig: Rig, rig_host: Host, store: JobStore) -> Iterator[Callable[..., Case]]:
    """Cases on the rig's engine, which may be in any state at the end."""
    with cases(store) as make:
        rig_host.engine._quick.timeout = 1
        yield lambda **fields: make(rig_host, **fields)
        rig_host.engine.api.timeout = CALL_TIMEOUT_S
        rig.a.thaw()
        rig.a.restart_dockerd()
    # What could not be removed while the engine was away is the janitor's.
    settings = rig_host.settings
    for container in own(rig_host):
        destroy(rig_host, container)
    for workspace, _ in directories.existing(settings.sandboxes_path):
        directories.remove(workspace)
    gc.collect()  # while the warnings are ignored


def first_process(job: Case) -> psutil.Process:
    return psutil.Process(job.host.engine.state(job.container().id).pid)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("killed", [True, False], ids=["killed", "stopped"])
def test_an_engine_that_ends_its_containers_completes_nothing(rig: Rig, far: Callable[..., Case], killed: bool) -> None:
    job = running(far)
    if killed:
        process = first_process(job)
        rig.a.kill_dockerd()
        assert not has_ended(process)
    rig.a.restart_dockerd()
    assert_lost(job.shifts[0].end(timeout_s=30))


@pytest.mark.timeout(180)
def test_an_unseen_end_by_an_engine_completes_nothing(
    rig: Rig, far: Callable[..., Case], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox, "visible_pid", lambda *_: None)  # as in a container without the host's
    job = running(far)
    rig.a.kill_dockerd()
    rig.a.restart_dockerd()
    assert_lost(job.shifts[0].end(timeout_s=30))


@pytest.mark.timeout(180)
@pytest.mark.parametrize("killed", [True, False], ids=["killed", "stopped"])
def test_with_live_restore_a_run_goes_on(rig: Rig, far: Callable[..., Case], killed: bool) -> None:
    content = NUMBERED["content"].replace("range(150)", "range(250)")
    job = far(script={**NUMBERED, "content": content})
    shift = job.start()
    job.wait_for("\n20 ")
    if killed:
        rig.a.kill_dockerd()
    rig.a.restart_dockerd(live_restore=True)
    result = shift.end()
    assert (result.status, result.exit_code) == ("completed", 0)
    assert job.text() == "".join(f"{n} end\n" for n in range(250))
    assert job.text("stderr") == "".join(f"{n}\n" for n in range(250))
    # Nobody can know that nothing is missing.
    assert (result.log.gap, len(job.gaps())) == (True, 1)


@pytest.mark.timeout(180)
def test_a_run_that_ends_while_its_engine_is_away_with_live_restore(rig: Rig, far: Callable[..., Case]) -> None:
    rig.a.restart_dockerd(live_restore=True)
    job = far(script={"type": "bash", "content": "echo on; sleep 1; echo off; exit 3"})
    shift = job.start()
    job.wait_for("on")
    process = first_process(job)
    rig.a.kill_dockerd()
    wait_until(lambda: has_ended(process), what="the end of the script")
    rig.a.restart_dockerd(live_restore=True)
    result = shift.end()
    if version_of(rig.a.client.version()["Version"]) >= (26,):  # it does not know any more how the container ended
        assert_lost(result)
        return
    assert result.error is not None
    assert (result.status, result.exit_code, result.error.type) == ("failed", 3, "script")


@pytest.mark.timeout(180)
def test_a_run_that_was_lost_with_its_engine_and_its_worker(rig: Rig, far: Callable[..., Case]) -> None:
    job = running(far)
    assert job.shifts[0].leave() is not None
    rig.a.restart_dockerd()
    container = job.container()
    assert job.host.engine.state(container.id).exit_code == 0
    assert_lost(job.adopt().end())


@pytest.mark.timeout(180)
def test_a_run_that_ends_under_a_frozen_engine_keeps_its_outcome(
    rig: Rig, far: Callable[..., Case], monkeypatch: Any
) -> None:
    monkeypatch.setattr(follow, "_STALL_S", 1)
    job = far(script=NUMBERED)
    shift = job.start()
    job.wait_for("\n20 ")
    process = first_process(job)
    for part in rig.a.engine.processes():
        if part.name() == "dockerd":
            part.suspend()
    wait_until(lambda: has_ended(process), what="the end of the script")
    began = time.monotonic()
    wait_until(lambda: time.monotonic() - began > 3, what="a stall")
    rig.a.thaw()
    assert_whole(job, shift.end())


@pytest.mark.timeout(180)
@pytest.mark.parametrize("cause", ["timeout", "cancelled"])
def test_a_frozen_engine_does_not_keep_a_job_alive(
    rig: Rig, far: Callable[..., Case], monkeypatch: Any, cause: str
) -> None:
    monkeypatch.setattr(follow, "PATIENCE_AT_END_S", 1)
    monkeypatch.setattr(follow, "_STALL_S", 1)
    job = running(far, timeout=4 if cause == "timeout" else 60)
    process = first_process(job)
    job.host.engine.api.timeout = 2
    rig.a.freeze()
    began = time.monotonic()
    if cause == "cancelled":
        job.shifts[0].token.cancel()
    wait_until(lambda: has_ended(process), what="the end of the script")
    result = job.shifts[0].end(timeout_s=40)
    assert (result.status, result.log.gap) == (cause, True)
    assert time.monotonic() - began < 40


@pytest.mark.timeout(180)
@pytest.mark.parametrize("kind", ["frozen", "killed"])
def test_patience_with_an_engine_has_an_end(rig: Rig, far: Callable[..., Case], monkeypatch: Any, kind: str) -> None:
    monkeypatch.setattr(follow, "PATIENCE_S", 2)
    monkeypatch.setattr(follow, "_STALL_S", 1)
    job = running(far)
    process = first_process(job)
    job.host.engine.api.timeout = 2
    if kind == "killed":
        rig.a.kill_dockerd()
    else:
        rig.a.freeze()
        process.send_signal(signal.SIGKILL)  # otherwise nobody could tell
    result = job.shifts[0].end(timeout_s=60)
    assert_lost(result)
    wait_until(lambda: has_ended(process), what="the end of what nobody watches")


@pytest.mark.timeout(180)
@pytest.mark.parametrize("victim", ["containerd", "containerd-shim"])
def test_the_engines_own_parts_may_die(rig: Rig, far: Callable[..., Case], victim: str) -> None:
    job = far(script=NUMBERED)
    shift = job.start()
    job.wait_for("\n20 ")
    if victim == "containerd":
        parts = [part for part in rig.a.engine.processes() if part.name() == "containerd"]
    else:
        parts = [part for part in rig.a.engine.processes() if part == first_process(job).parent()]
    assert len(parts) == 1
    parts[0].kill()
    result = shift.end()
    if victim == "containerd":
        assert_whole(job, result)
    else:
        # The engine says what it would say after a `docker kill`.
        assert result.error is not None
        assert (result.status, result.error.type, result.exit_code) == ("failed", "script", 137)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("damage", ["overwritten", "removed"])
def test_a_stored_log_that_cannot_be_read_is_a_gap_and_not_the_end(
    rig: Rig, far: Callable[..., Case], damage: str
) -> None:
    job = running(far)
    assert job.shifts[0].leave() is not None
    container = job.container()
    stored = rig.a.engine.root / "data/containers" / container.id / "local-logs/container.log"
    if damage == "removed":
        stored.unlink()
    else:
        stored.write_bytes(b"no log" * 100)
    job.adopt()
    job.host.engine.api.kill(container.id, "SIGINT")
    result = job.shifts[1].end(timeout_s=30)
    assert (result.exit_code, result.log.gap, len(job.gaps())) == (130, True, 1)
