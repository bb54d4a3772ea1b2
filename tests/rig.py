"""Two hosts on this machine: each with a Docker Engine, a network namespace and workers of its own.

    rig.a.load(runner_image("bash"))
    with rig.a.start_worker(queues="q"), rig.b.start_worker(queues="q"):
        ...

The workers run in this machine's own namespace, because Redis is on its loopback address; what a job or an
engine is to reach from a host listens on `rig.address`, the bridge that both hosts are plugged into.
"""

import contextlib
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import docker
import psutil
import pytest

from cronium_worker.models.job import ScriptType
from cronium_worker.settings import Images, Settings
from tests.conftest import wait_until
from tests.rig_engine import RigEngine, end
from tests.rig_network import Bridge, remove_link, remove_namespace

CRONIUM = str(Path(sys.executable).parent / "cronium")
# Short, because a socket's path has 107 characters at most; and on a disk, for the engines' images.
_PARENT = Path("/var/tmp")
_PREFIX = "cronium-rig-"
# Marks the processes of a worker, whoever their parent is by now: its value is the worker's log.
_MARK = "RIG_WORKER"


class RigWorker:
    """`cronium worker` as a process of its own. Both nodes of the host, or the named one."""

    def __init__(self, command: list[str], env: dict[str, str], log: Path) -> None:
        self.log = log
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "TERM", "--", *command],
                env=env | {_MARK: str(log)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait_ready(self, nodes: int) -> None:
        def ready() -> bool:
            assert self.process.poll() is None, f"the worker has ended: {self.log.read_text()[-2000:]}"
            return self.log.read_text().count(" ready.") >= nodes

        wait_until(ready, timeout_s=60, what="worker ready")

    def processes(self) -> list[psutil.Process]:
        return _worker_processes(self.log)

    def stop(self, timeout_s: float = 60) -> int:
        """SIGTERM, as a service manager does, and wait for the end. Returns the exit code."""
        self.process.terminate()
        return self.process.wait(timeout_s)

    def kill(self) -> None:
        """SIGKILL to all of it at once."""
        end(self.processes())
        self.process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        try:
            self.stop()
        finally:
            self.kill()


def _worker_processes(path: Path) -> list[psutil.Process]:
    """Of the worker with this log, or of all workers with a log below."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            mark = process.environ().get(_MARK)
            if mark and (path == Path(mark) or path in Path(mark).parents):
                found.append(process)
    return found


def runner_image(script_type: ScriptType) -> str:
    """The runner image that the machine's own engine has: of the flavour that was built or pulled there."""
    with contextlib.closing(docker.from_env()) as shared:
        tags = {tag for image in shared.images.list(name="cronium/runner") for tag in image.tags}
    return next(image for image in Images().candidates(script_type) if image in tags)


class RigHost:
    """One host of the fleet."""

    def __init__(self, name: str, root: Path, bridge: Bridge, number: int, env: dict[str, str]) -> None:
        self.name = name
        self.root = root
        self.engine = RigEngine(name, root / "engine", insecure_registries=str(bridge.subnet))
        self.base_path = root / "base"
        self.host_name = f"{env['CRONIUM_FLEET']}-{number}"
        self.env = env | {
            "DOCKER_HOST": self.engine.url,
            "CRONIUM_HOST_NAME": self.host_name,
            "CRONIUM_BASE_PATH": str(self.base_path),
        }
        self.workers: list[RigWorker] = []
        self._bridge = bridge
        self._number = number

    @property
    def client(self) -> docker.DockerClient:
        """Of the dockerd that runs now: ask anew after a restart."""
        return self.engine.client

    def start(self) -> None:
        self.base_path.mkdir(parents=True)
        self._bridge.connect(self.name, self._number)
        self.engine.start()

    def remove(self) -> None:
        """Whatever state it is in. Every part is tried."""
        with contextlib.ExitStack() as parts:
            parts.callback(remove_namespace, self.name)
            parts.callback(remove_link, self.name)
            parts.callback(self.engine.remove)
            parts.callback(self.stop_workers)

    def load(self, reference: str) -> None:
        """Copy an image from the machine's own engine, unless it is there."""
        if self.client.images.list(name=reference):
            return
        with contextlib.closing(docker.from_env()) as shared:
            image = shared.images.get(reference)
            self.client.api.load_image(image.save(named=True))  # type: ignore[no-untyped-call]

    def start_worker(self, *, queues: str, node: str | None = None, concurrency: int = 4, **env: str) -> RigWorker:
        """Returns when its nodes are ready; `env` has further settings, as CRONIUM_PULL_POLICY="always"."""
        command = [CRONIUM, "worker", "--queues", queues, "--concurrency", str(concurrency)]
        command += ["--node", node] if node else []
        worker = RigWorker(command, self.env | env, self.root / f"worker-{len(self.workers)}.log")
        self.workers.append(worker)
        worker.wait_ready(nodes=1 if node else 2)
        return worker

    def stop_workers(self) -> None:
        """SIGKILL to all of them, also to those of a process of tests that is gone."""
        end(_worker_processes(self.root))
        for worker in self.workers:
            worker.process.wait()

    def freeze(self) -> None:
        """The host hangs: its engine and its workers do nothing more. Containers that run go on."""
        stopped = self._signal(signal.SIGSTOP)
        # Every thread has to notice.
        wait_until(lambda: {process.status() for process in stopped} <= {psutil.STATUS_STOPPED}, what="host stopped")

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> list[psutil.Process]:
        processes = [*_worker_processes(self.root), *self.engine.processes()]
        for process in processes:
            process.send_signal(number)
        return processes

    def kill_dockerd(self) -> None:
        """SIGKILL; containers run on."""
        self.engine.kill()

    def restart_dockerd(self, *, live_restore: bool = False) -> None:
        """Stop dockerd, unless it was killed, and start it. Containers survive that with live_restore alone."""
        self.engine.restart(live_restore=live_restore)


class Rig:
    """Hosts of one fleet on one Redis. `name` is for the remains of another process's rig."""

    _numbers = itertools.count(1)

    def __init__(self, *, redis_url: str, fleet: str, hosts: int = 2, name: str | None = None) -> None:
        name = name or f"cr{os.getpid()}-{next(self._numbers)}"
        self.root = _PARENT / f"{_PREFIX}{name}"
        self.bridge = Bridge(name, first_subnet=os.getpid())
        keep = {key: value for key, value in os.environ.items() if not key.startswith(("CRONIUM_", "DOCKER_"))}
        own = {"CRONIUM_REDIS_URL": redis_url, "CRONIUM_FLEET": fleet, "CRONIUM_RESULT_TTL": "600"}
        env = keep | own | {"CRONIUM_POOL__SIZE": os.environ.get("CRONIUM_POOL__SIZE", "0")}
        self.hosts = [
            # As the name of a link it has 15 characters at most.
            RigHost(f"{name}.{number}", self.root / str(number), self.bridge, number, env)
            for number in range(1, hosts + 1)
        ]

    @property
    def a(self) -> RigHost:
        return self.hosts[0]

    @property
    def b(self) -> RigHost:
        return self.hosts[1]

    @property
    def address(self) -> str:
        """This machine's own, as the hosts see it. Their engines accept a registry without TLS there."""
        return self.bridge.address

    def start(self) -> Self:
        """Returns when all engines answer; what has been started is gone if one does not."""
        _remove_abandoned()
        with contextlib.ExitStack() as undo:
            undo.callback(self.stop)
            self.root.mkdir()
            self.bridge.add()
            for host in self.hosts:
                host.start()
            undo.pop_all()
        return self

    def stop(self) -> None:
        """Away with all of it: processes, mounts, namespaces, links, control groups, files. Every part is tried."""
        with contextlib.ExitStack() as parts:
            parts.callback(self._remove_files)
            parts.callback(remove_link, self.bridge.name)
            for host in self.hosts:
                parts.callback(host.remove)

    def _remove_files(self) -> None:
        if self.root.exists():
            shutil.rmtree(self.root)


def _remove_abandoned() -> None:
    """The rigs of processes that were killed before they could stop theirs."""
    for root in _PARENT.glob(f"{_PREFIX}*"):
        name = root.name.removeprefix(_PREFIX)
        owner = re.fullmatch(r"cr(\d+)-\d+", name)
        if owner and not psutil.pid_exists(int(owner[1])):
            numbers = [int(path.name) for path in root.iterdir()]
            Rig(redis_url="", fleet="", hosts=max(numbers, default=0), name=name).stop()


@pytest.fixture(scope="session")
def rig(settings: Settings) -> Iterator[Rig]:
    """Two hosts for the whole session, started for the first test that wants them. Stop your workers."""
    rig = Rig(redis_url=settings.redis_url.get_secret_value(), fleet=f"{settings.fleet}-rig").start()
    yield rig
    rig.stop()
