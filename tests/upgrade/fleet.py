"""Hosts whose processes are of any version, one by one, on this machine's engine; and programs of each version."""

import contextlib
import json
import os
import subprocess
import threading
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import docker
from cryptography.fernet import Fernet

from tests.chaos import fleet as chaos
from tests.chaos.fleet import QUEUE, in_starter
from tests.conftest import wait_until
from tests.registry import free_port
from tests.rig import RigWorker
from tests.upgrade.versions import ROOT, Version

SLOTS = 4
# A worker that is replaced is away for longer than one of `make chaos`: Python starts, the rest is busy as well.
LEASE_TTL_S = 30.0
NODES = ("jobs", "agent", "beat", "web")
_READY = {"jobs": " ready.", "agent": " ready.", "beat": "beat: Starting", "web": "Page and API:"}


class DriverError(Exception):
    """What a call has raised there: its class and its message."""


class Driver:
    """A program of one version. Safe for threads."""

    def __init__(self, version: Version, env: dict[str, str], log: Path) -> None:
        self.version = version
        self._lock = threading.Lock()
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                [version.python, ROOT / "tests" / "upgrade" / "driver.py"],
                env=env | version.env,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )

    def __call__(self, name: str, *arguments: Any) -> Any:
        """Raises DriverError."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with self._lock:
            self._process.stdin.write(json.dumps([name, arguments]) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        answer = json.loads(line or '{"error": "it has ended", "message": ""}')
        if "error" in answer:
            raise DriverError(f"{answer['error']}: {answer['message']}")
        return answer["value"]

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._process.communicate(timeout=10)
        self._process.kill()
        self._process.wait()


class UpgradeHost:
    """One host. Each of its processes is of a version, and ends and begins alone."""

    def __init__(self, name: str, directory: Path, env: dict[str, str]) -> None:
        self.name = name
        self.directory = directory
        self.base_path = directory / "base"
        self.base_path.mkdir(parents=True)
        self.queue = f"only-{name}"
        self.port = free_port()
        self.env = env | {
            "CRONIUM_HOST_NAME": name,
            "CRONIUM_BASE_PATH": str(self.base_path),
            "CRONIUM_WEB__PORT": str(self.port),
        }
        self.running: dict[str, tuple[Version, RigWorker]] = {}
        self._started = 0

    def engine(self) -> docker.DockerClient:
        """A client of its own; the caller closes it."""
        return docker.from_env()

    def start(self, version: Version, *nodes: str) -> None:
        """Start these processes, and wait until they are of use."""
        for node in nodes:
            in_starter(lambda node=node: self._start(version, node))
        for node in nodes:
            self._wait_ready(node)

    def _start(self, version: Version, node: str) -> None:
        worker = version.cronium("worker", "--node", node)
        command = {
            "jobs": [*worker, "--queues", f"{QUEUE},{self.queue}", "--concurrency", str(SLOTS)],
            "agent": worker,
            "beat": [str(version.python), "-m", "celery", "-A", "cronium_worker.app", "beat", "--loglevel", "INFO"],
            "web": version.cronium("web"),
        }[node]
        self._started += 1
        log = self.directory / f"{self._started:02}-{node}-{version}.log"
        self.running[node] = (version, RigWorker(command, self.env | version.env, log))

    def _wait_ready(self, node: str) -> None:
        version, worker = self.running[node]

        def is_ready() -> bool:
            text = worker.log.read_text(errors="replace")
            assert worker.process.poll() is None, f"{node} of {version} has ended: {text[-2000:]}"
            return _READY[node] in text

        wait_until(is_ready, timeout_s=120, what=f"{node} of {version} is ready")

    def log(self, node: str) -> str:
        """Of the process that runs."""
        return self.running[node][1].log.read_text(errors="replace")

    def stop(self, *nodes: str) -> None:
        """As a service manager does it."""
        for node in nodes:
            self.running[node][1].process.terminate()
        for node in nodes:
            version, worker = self.running.pop(node)
            code = worker.process.wait(120)
            # Older beats end by Celery's own handler, which closes them inside of whatever runs just then.
            may_fail = node == "beat" and version.name != "today"
            assert code == 0 or may_fail, (
                f"{node} of {version} ended with {code}: {worker.log.read_text(errors='replace')[-2000:]}"
            )

    def kill(self, *nodes: str) -> None:
        """SIGKILL. Without nodes: all of them."""
        for node in nodes or tuple(self.running):
            self.running.pop(node)[1].kill()

    def replace(self, version: Version, *nodes: str, kill: bool = False) -> None:
        """Have these processes go on in another version."""
        (self.kill if kill else self.stop)(*nodes)
        self.start(version, *nodes)

    def ask(self, path: str) -> Any:
        """What the page's API says."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=20) as answer:
            return json.loads(answer.read())

    def workspaces(self) -> list[Path]:
        return list(self.base_path.glob("*/sandboxes/*"))

    def sweep(self) -> subprocess.CompletedProcess[str]:
        return chaos.ChaosHost.sweep(self)


class UpgradeFleet(chaos.Fleet):
    """Some hosts on one Redis, with keys for secrets and signatures."""

    def __init__(self, root: Path) -> None:
        keys = {
            "CRONIUM_SECRET_KEYS": Fernet.generate_key().decode(),
            "CRONIUM_SIGNING_KEYS": Fernet.generate_key().decode(),
            "CRONIUM_LEASE_TTL": f"{LEASE_TTL_S:g}",
        }
        super().__init__(root, pool=2)
        os.environ.update(keys)
        self.env |= chaos.SETTINGS | keys
        self.lease_ttl_s = LEASE_TTL_S
        self._drivers: list[Driver] = []
        self._made = 0

    def host(self) -> UpgradeHost:
        self._made += 1
        name = f"{self.name}-{self._made}"
        host = UpgradeHost(name, self.root / name, self.env)
        self.hosts.append(host)
        return host

    def driver(self, version: Version) -> Driver:
        self._drivers.append(Driver(version, self.env, self.root / f"driver-{version}.log"))
        return self._drivers[-1]

    def cli(self, version: Version, *arguments: str, timeout_s: float = 120) -> subprocess.CompletedProcess[str]:
        command = version.cronium(*arguments)
        env = self.env | version.env
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=timeout_s, check=False)

    def close(self) -> None:
        for driver in self._drivers:
            driver.close()
        super().close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def alternating(*submits: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Submit by one after the other."""
    turns: list[Callable[[Any], Any]] = []
    lock = threading.Lock()

    def submit(job: Any) -> Any:
        with lock:
            if not turns:
                turns.extend(submits)
            each = turns.pop()
        return each(job)

    return submit
