"""Jobs under gVisor, a runtime with a kernel of its own: the same outcomes."""

import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cronium_worker.engine.client import Engine
from cronium_worker.execution.sandbox import Host
from cronium_worker.fleet.store import JobStore
from cronium_worker.models import ScriptType
from cronium_worker.settings import Security, Settings
from tests.integration.scripts import says
from tests.integration.shifts import Case, cases
from tests.rig import Rig, rig, runner_image

__all__ = ["rig"]

# The limit counts gVisor's own threads as well.
RESOURCES = {"pids": 600}
KERNEL = "4.4.0"  # as gVisor calls itself, whatever the host's
SCRIPTS: dict[ScriptType, str] = {
    "bash": """
uname -r; id -u
echo "read $(cronium_input)" >&2
cronium_output '{"seen": 7}'; cronium_set_variable x 5
echo kept > output/file.txt
""",
    "python": """
import os, sys
print(os.uname().release); print(os.getuid())
print("read", cronium.input(), file=sys.stderr)
cronium.output({"seen": 7}); cronium.set_variable("x", "5")
open("output/file.txt", "w").write("kept\\n")
""",
    "node": """
console.log(require("os").release()); console.log(process.getuid())
console.error("read", cronium.input())
cronium.output({seen: 7}); cronium.setVariable("x", "5")
require("fs").writeFileSync("output/file.txt", "kept\\n")
""",
}


@pytest.fixture(scope="module")
def host(rig: Rig, settings: Settings) -> Iterator[Host]:
    for script_type in SCRIPTS:
        rig.a.load(runner_image(script_type))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOCKER_HOST", rig.a.engine.url)
        engine = Engine()
    yield Host(engine=engine, settings=settings.model_copy(update={"security": Security(runtime="runsc")}))
    engine.close()
    gc.collect()


@pytest.fixture
def case(host: Host, store: JobStore, rig: Rig) -> Iterator[Callable[..., Case]]:
    with cases(store) as make:

        def under_gvisor(**fields: Any) -> Case:
            return make(host, resources=RESOURCES, **fields)

        yield under_gvisor
    assert rig.a.client.containers.list(all=True) == []


@pytest.mark.parametrize("script_type", SCRIPTS)
def test_a_job_is_whole(case: Callable[..., Case], script_type: ScriptType) -> None:
    job = case(script={"type": script_type, "content": SCRIPTS[script_type]}, input_data=7)
    result = job.start().end()

    assert (result.status, result.error) == ("completed", None)
    assert (job.text(), job.text("stderr")) == (f"{KERNEL}\n1000\n", "read 7\n")
    assert (result.output.data, result.output.variables) == ({"seen": 7}, {"x": "5"})
    assert result.output.files["file.txt"].size == 5
    assert result.metrics.memory_peak_bytes


def test_it_is_told_to_end(case: Callable[..., Case]) -> None:
    job = case(script=says("bash", "on", then_sleep_s=60), grace_period=2)
    shift = job.start()
    job.wait_for("on")
    shift.token.cancel()

    result = shift.end()
    assert (result.status, result.exit_code) == ("cancelled", 143)


def test_it_ends_with_its_timeout_whatever_it_does(case: Callable[..., Case]) -> None:
    stubborn = {"type": "bash", "content": "trap '' TERM; echo on; while :; do sleep 0.1 || :; done"}
    result = case(script=stubborn, timeout=2, grace_period=1).start().end()

    assert result.status == "timeout"


def test_it_goes_from_one_worker_to_the_next(case: Callable[..., Case]) -> None:
    content = "for n in $(seq 100); do echo $n; sleep 0.02; done; exit 3"
    job = case(script={"type": "bash", "content": content})
    shift = job.start()
    job.wait_for("20")
    shift.leave()
    result = job.adopt().end()

    assert (result.status, result.exit_code) == ("failed", 3)
    assert job.text() == "".join(f"{n}\n" for n in range(1, 101))
    assert job.gaps() == []


def test_a_gate_that_cannot_be_opened_starts_no_script(host: Host, store: JobStore) -> None:
    security = Security(runtime="runsc-without-fifo")
    closed = Host(engine=host.engine, settings=host.settings.model_copy(update={"security": security}))
    with cases(store) as make:
        job = make(closed, resources=RESOURCES, script=says("bash", "on"))
        result = job.start().end()

    assert result.error is not None
    assert (result.error.type, result.error.retryable) == ("container_start", True)
    assert job.text() == ""
    assert "cannot open /run/cronium/gate" in job.text("stderr")


def test_a_fork_bomb_stays_in_its_limit(case: Callable[..., Case]) -> None:
    bomb = {"type": "bash", "content": "echo on; bomb() { bomb | bomb & }; bomb; sleep 30"}
    result = case(script=bomb, timeout=4, grace_period=1).start().end()

    assert result.status in ("timeout", "failed")
    assert (result.metrics.pids_peak or 0) <= RESOURCES["pids"]
