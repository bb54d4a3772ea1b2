"""`cronium doctor --workers` tells nodes that take messages from such that only live."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from tests.conftest import wait_until
from tests.rig import CRONIUM, RigWorker
from tests.system.local_host import LocalHost


def findings(host: LocalHost, **changes: str) -> tuple[int, dict[str, str]]:
    """The exit code, and what is said of the host's queues and agent, by name."""
    done = host.cronium("doctor", "--workers", **changes)
    found = dict(line[5:].split(": ", 1) for line in done.stdout.splitlines())
    return done.returncode, {name: text for name, text in found.items() if host.name in name}


def consume(host: LocalHost, command: str, queue: str, node: str) -> None:
    """Have a node stop consuming a queue, or start again: it lives and beats all the same."""
    code = f"""
from cronium_worker.app import app
options = {{"destination": [{f"{node}@{host.name}"!r}], "reply": True, "timeout": 5}}
print(app.control.{command}({queue!r}, **options))
"""
    told = host.process(sys.executable, "-c", code)
    assert told.process.wait(20) == 0
    assert "'ok'" in told.log.read_text()


@pytest.mark.timeout(120)
def test_what_takes_messages_and_what_only_lives(host: LocalHost) -> None:
    # The watchdog must not end a node that takes nothing while doctor looks at it.
    host.start(concurrency=1, CRONIUM_LEASE_TTL="10")
    jobs, agent = f"queue {host.queue}", f"agent of {host.name}"
    well = {jobs: f"taken by {host.name}", agent: "takes messages"}
    assert findings(host) == (0, well)
    # Whoever asks may be set up for another fleet: the workers of this Redis are meant.
    assert findings(host, CRONIUM_FLEET="another") == (0, well)

    job = host.submit("sleep 20")
    wait_until(lambda: (v := host.view()) and v.nodes["jobs"]["running"] == 1, what="the report of a full node")
    assert findings(host) == (0, well | {jobs: f"{host.name}: all slots are taken"})
    assert host.cronium("cancel", job).returncode == 0
    wait_until(lambda: (v := host.view()) and v.nodes["jobs"]["running"] == 0, what="the report of a free node")

    consume(host, "cancel_consumer", host.queue, "jobs")
    code, found = findings(host)
    assert (code, found[agent]) == (1, "takes messages")
    assert found[jobs] == f"{host.name}: took no message → restart these workers: they live, and take no jobs"

    consume(host, "add_consumer", host.queue, "jobs")
    consume(host, "cancel_consumer", f"cronium.host.{host.name}", "agent")
    code, found = findings(host)
    assert (code, found[jobs]) == (1, f"taken by {host.name}")
    assert found[agent] == "took no message → restart it: it lives, and takes no messages"


def test_a_container_is_made_as_for_a_job(host: LocalHost) -> None:
    def line(**changes: str) -> str:
        return next(line for line in host.cronium("doctor", **changes).stdout.splitlines() if " container: " in line)

    assert re.fullmatch(
        r"ok   container: runc, network (isolated|none): started in .* s; its limits are in force", line()
    )
    refused = line(CRONIUM_SECURITY__RUNTIME="nonesuch")
    assert refused.startswith("FAIL container: ")
    assert "the engine has no runtime nonesuch" in refused


def test_what_a_node_may_not_do_is_told(host: LocalHost) -> None:
    host.registry.beat(host.name, "jobs", {"lacks": ["CPU burst: Read-only file system"]})
    told = host.cronium("doctor", "--workers").stdout
    assert f"weak host {host.name}: CPU burst: Read-only file system → allow it in the worker's unit" in told


@pytest.fixture
def podman(tmp_path: Path) -> Iterator[str]:
    """The address of its API."""
    with TemporaryDirectory(dir="/tmp") as short:
        socket = Path(short) / "podman.sock"
        storage = ["--root", f"{short}/root", "--runroot", f"{short}/run", "--storage-driver", "vfs"]
        command = ["podman", *storage, "system", "service", "--time", "0", f"unix://{socket}"]
        with RigWorker(command, dict(os.environ), tmp_path / "podman.log"):
            wait_until(socket.exists, what="Podman's socket")
            yield f"unix://{socket}"


@pytest.mark.timeout(60)
def test_podman_is_refused_in_one_line(host: LocalHost, podman: str) -> None:
    version = subprocess.check_output(["podman", "--version"], text=True).split()[-1]
    told = f"Docker Engine: this is Podman {version}; set DOCKER_HOST to a Docker Engine"
    assert f"FAIL docker: {told}" in host.cronium("doctor", DOCKER_HOST=podman).stdout
    worker = host.process(CRONIUM, "worker", "--node", "jobs", DOCKER_HOST=podman)
    assert worker.process.wait(40) == 1
    assert worker.log.read_text().splitlines()[-1] == f"cronium: {told}"
