"""The rig itself: what tests with several hosts rest on."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import requests
from docker.models.containers import Container

from cronium_worker.engine.network import FIRST
from cronium_worker.settings import Settings
from tests.conftest import wait_until
from tests.rig import CRONIUM, Rig, RigHost, runner_image
from tests.rig_engine import has_ended
from tests.rig_network import NAMESPACES, run


@pytest.fixture
def make_rig(settings: Settings) -> Iterator[Callable[..., Rig]]:
    """A rig apart from the session's, which may be broken."""
    made: list[Rig] = []

    def make() -> Rig:
        redis_url = settings.redis_url.get_secret_value()
        made.append(Rig(redis_url=redis_url, fleet=f"{settings.fleet}-rig-2", hosts=1))
        return made[-1]

    yield make
    for rig in made:
        rig.stop()


def run_sleeper(host: RigHost, name: str) -> Container:
    image = runner_image("bash")
    host.load(image)
    return host.client.containers.run(image, ["sleep", "600"], name=name, detach=True)


def process_of(container: Container) -> psutil.Process:
    container.reload()
    return psutil.Process(container.attrs["State"]["Pid"])


def remains(rig: Rig) -> list[str]:
    """Everything on this machine that has the rig's name."""
    name = rig.bridge.name
    links = [link["ifname"] for link in json.loads(run("ip", "-json", "link"))]
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    return [
        *(link for link in links if link.startswith(name)),
        *(str(path) for path in NAMESPACES.glob(f"{name}*")),
        *(mount for mount in mounts if name in mount),
        *(str(path) for path in Path("/sys/fs/cgroup").glob(f"**/{name}*")),
        *(str(path) for path in rig.root.parent.glob(f"*{name}*")),
        *(line for line in run("iptables-save").splitlines() if name in line or str(rig.bridge.subnet) in line),
    ]


@pytest.mark.timeout(180)
def test_jobs_run_on_the_engine_and_in_the_network_of_their_host(rig: Rig, tmp_path: Path) -> None:
    """Two jobs are held at the same moment by a server on the rig's address, and looked at."""
    script = tmp_path / "job.sh"
    script.write_text('exec 3<>"/dev/tcp/$ADDRESS/$PORT"; read -r line <&3; echo "$line"')
    with socket.create_server((rig.address, 0)) as server:
        server.settimeout(60)
        port = str(server.getsockname()[1])

        def submit(host: RigHost) -> subprocess.Popen[str]:
            where = ["--env", f"ADDRESS={rig.address}", "--env", f"PORT={port}", "--queue", host.name]
            command = [CRONIUM, "run", str(script), "--json", *where]
            return subprocess.Popen(command, env=host.env, stdout=subprocess.PIPE, text=True)

        for host in rig.hosts:
            host.load(runner_image("bash"))
        with rig.a.start_worker(queues=rig.a.name), rig.b.start_worker(queues=rig.b.name):
            jobs = [submit(host) for host in rig.hosts]
            peers = [server.accept() for _ in jobs]
            running = [host.client.containers.list() for host in rig.hosts]
            networks = [host.client.networks.get(FIRST.network) for host in rig.hosts]
            for connection, _ in peers:
                connection.sendall(b"hello\n")
                connection.close()
            results = [json.loads(job.communicate(timeout=60)[0]) for job in jobs]

    assert [(result["status"], result["host"]) for result in results] == [
        ("completed", host.host_name) for host in rig.hosts
    ]
    ours = [[c.labels["cronium.job.id"] for c in containers if "cronium.job.id" in c.labels] for containers in running]
    assert ours == [[result["job_id"]] for result in results]
    assert len({network.id for network in networks}) == 2
    assert {network.attrs["Options"]["com.docker.network.bridge.name"] for network in networks} == {FIRST.bridge}
    # Each came from its host's own address on the bridge.
    assert {peer[0] for _, peer in peers} == {str(address) for address in list(rig.bridge.subnet.hosts())[1:3]}
    for host in rig.hosts:
        assert FIRST.bridge in run("ip", "-n", host.name, "-brief", "link")


@pytest.mark.timeout(180)
def test_a_frozen_host_does_nothing_until_it_is_thawed(rig: Rig) -> None:
    worker = rig.b.start_worker(queues=rig.b.name, node="agent")
    processes = [*worker.processes(), *rig.b.engine.processes()]
    rig.b.client.api.timeout = 1
    try:
        rig.b.freeze()
        assert {process.status() for process in processes} == {psutil.STATUS_STOPPED}
        with pytest.raises(requests.exceptions.ReadTimeout):
            rig.b.client.info()
        assert rig.a.client.ping()
    finally:
        rig.b.thaw()
    wait_until(rig.b.client.ping, what="the engine answers again")
    assert worker.stop() == 0


@pytest.mark.timeout(180)
def test_containers_live_or_die_with_their_engine(rig: Rig) -> None:
    def status(name: str) -> str:
        return str(rig.a.client.containers.get(name).status)

    first = process_of(run_sleeper(rig.a, "first"))
    rig.a.kill_dockerd()
    assert not has_ended(first)
    rig.a.restart_dockerd()
    assert status("first") == "exited"

    second = process_of(run_sleeper(rig.a, "second"))
    rig.a.restart_dockerd(live_restore=True)
    assert status("second") == "running"
    assert process_of(rig.a.client.containers.get("second")) == second
    rig.a.restart_dockerd()
    assert status("second") == "exited"

    for name in ("first", "second"):
        rig.a.client.containers.get(name).remove()


@pytest.mark.timeout(180)
def test_a_rig_in_a_bad_state_is_removed_as_a_whole(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig().start()
    container = process_of(run_sleeper(rig.a, "one"))
    worker = rig.a.start_worker(queues=rig.a.name)
    processes = [container, *worker.processes(), *rig.a.engine.processes()]
    names = {process.name() for process in processes}
    assert {"dockerd", "containerd", "tini"} <= names
    assert any(name.startswith("containerd-shim") for name in names)
    assert len(worker.processes()) == 3
    assert remains(rig)
    worker.process.kill()
    rig.a.kill_dockerd()
    rig.a.freeze()
    rig.stop()
    assert remains(rig) == []
    assert [process for process in processes if not has_ended(process)] == []


def test_a_host_that_does_not_start_leaves_nothing(make_rig: Callable[..., Rig]) -> None:
    rig = make_rig()
    rig.a.engine.insecure_registries = "no/address"
    with pytest.raises(RuntimeError, match=r"(?s)did not start: .*no/address"):
        rig.start()
    assert remains(rig) == []


@pytest.mark.timeout(180)
def test_the_rig_of_a_killed_process_is_removed_by_the_next_one(make_rig: Callable[..., Rig]) -> None:
    code = """if True:
        import sys
        from tests.rig import Rig
        rig = Rig(redis_url="redis://127.0.0.1:6379/0", fleet="abandoned", hosts=1).start()
        print(rig.bridge.name, flush=True)
        sys.stdin.read()
    """
    command = [sys.executable, "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        name = process.stdout.readline().strip()
        os.kill(process.pid, signal.SIGKILL)
    abandoned = Rig(redis_url="", fleet="", hosts=1, name=name)
    assert remains(abandoned)
    make_rig().start()
    assert remains(abandoned) == []
    assert abandoned.a.engine.processes() == []
