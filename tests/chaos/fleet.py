"""The fleet under test: hosts whose processes may be killed one by one, under the project's own supervisor."""

import contextlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import docker
import psutil
from redis import Redis
from redis.exceptions import RedisError

from cronium_worker.fleet.hosts import HostRegistry
from cronium_worker.fleet.store import record_key
from tests.chaos.failpoint import DIRECTORY, file_of
from tests.own_redis import OwnRedis
from tests.rig import RigHost, RigWorker
from tests.rig_engine import end

QUEUE = "chaos"
SLOTS = 4
LEASE_TTL_S = 5.0
_LOOK_EVERY_S = 0.05
_LEADS = re.compile(r"\[([0-9-]+ [0-9:,]+): INFO/MainProcess\] beat: Acquired lock")
_NODES = {"jobs": ("--node", "jobs"), "agent": ("--node", "agent"), "beat": ("tests.chaos.beat",)}
_starter = ThreadPoolExecutor(1, thread_name_prefix="starter")
SETTINGS = {
    "CRONIUM_LEASE_TTL": f"{LEASE_TTL_S:g}",
    "CRONIUM_DRAIN_TIMEOUT": "1",
    "CRONIUM_SCHEDULE__RECOVERY": "1",
    "CRONIUM_SCHEDULE__CLEANUP": "10",
    "CRONIUM_ORPHAN_RETENTION": "60",
    "CRONIUM_RESULT_TTL": "7200",
}


def within(timeout_s: float, condition: Callable[[], Any]) -> Any:
    """What the condition gives, once it is true; None when it has not become so in time, or Redis is away."""
    deadline = time.monotonic() + timeout_s
    while True:
        with contextlib.suppress(RedisError):
            if value := condition():
                return value
        if time.monotonic() >= deadline:
            return None
        time.sleep(_LOOK_EVERY_S)


def in_starter(work: Callable[[], None]) -> None:
    """What starts processes: they end with the thread that has started them (setpriv), so that must live on."""
    _starter.submit(work).result()


class Records:
    """What the records say, for somebody without patience. Raises redis errors."""

    def __init__(self, url: str) -> None:
        self.redis = Redis.from_url(url, decode_responses=True, socket_timeout=2, socket_connect_timeout=2)
        self.registry = HostRegistry(self.redis, host_ttl_s=LEASE_TTL_S)

    def look(self, job_ids: Iterable[str]) -> dict[str, tuple[str, str]]:
        """Status and host of each job that has a record."""
        ids = list(job_ids)
        with self.redis.pipeline(transaction=False) as pipe:
            for job_id in ids:
                pipe.hmget(record_key(job_id), "status", "host")
            rows = pipe.execute()
        return {job_id: (status, host or "") for job_id, (status, host) in zip(ids, rows, strict=True) if status}

    def beat_at(self, host: str, node: str) -> float:
        """When a node of a host was heard last: seconds since the epoch, 0 when it counts as gone."""
        for view in self.registry.hosts():
            if view.name == host and node in view.nodes:
                return time.time() - float(view.nodes[node]["beat_s"])
        return 0.0


class ChaosHost:
    """One host: jobs node, agent and beat. On the machine's own engine, or on one of the rig's."""

    def __init__(self, name: str, directory: Path, env: dict[str, str], *, rig: RigHost | None = None) -> None:
        self.name = name
        self.rig = rig
        self.directory = directory
        self.failpoints = directory / "failpoints"
        self.failpoints.mkdir(parents=True)
        self.base_path = rig.base_path if rig is not None else directory / "base"
        self.base_path.mkdir(exist_ok=True)
        base = {"CRONIUM_HOST_NAME": name, "CRONIUM_BASE_PATH": str(self.base_path)}
        engine = {"DOCKER_HOST": rig.engine.url} if rig is not None else {}
        self.env = env | SETTINGS | base | engine | {DIRECTORY: str(self.failpoints)}
        self._procfile = directory / "Procfile"
        worker = f"worker --queues {QUEUE} --concurrency {SLOTS}"
        self._procfile.write_text(
            f"jobs: {sys.executable} -m tests.chaos.failpoint {worker} --node jobs\n"
            f"agent: {sys.executable} -m cronium_worker worker --node agent\n"
            f"beat: {sys.executable} -m tests.chaos.beat\n"
        )
        self._supervisor: RigWorker | None = None
        self._started = 0

    def engine(self) -> docker.DockerClient:
        """A client of its own; the caller closes it."""
        if self.rig is None:
            return docker.from_env()
        return docker.DockerClient(base_url=self.rig.engine.url, version="auto")

    def start(self) -> None:
        """Returns at once."""
        in_starter(self._start)

    def _start(self) -> None:
        self._started += 1
        command = [sys.executable, "-m", "tests.chaos.supervised", str(self._procfile)]
        log = self.directory / f"host-{self._started}.log"
        self._supervisor = RigWorker(command, self.env, log)

    def wait_ready(self) -> None:
        assert self._supervisor is not None
        self._supervisor.wait_ready(nodes=2)

    def processes(self) -> list[psutil.Process]:
        return self._supervisor.processes() if self._supervisor is not None else []

    def process(self, node: str) -> psutil.Process | None:
        """The process of a node, if it runs: `jobs`, `agent` or `beat`."""
        for process in self.processes():
            with contextlib.suppress(psutil.Error):
                words = process.cmdline()
                named = any(tuple(words[i : i + len(_NODES[node])]) == _NODES[node] for i in range(len(words)))
                if named and words[0] == sys.executable and process.status() != psutil.STATUS_ZOMBIE:
                    return process
        return None

    def signal(self, node: str, number: int) -> bool:
        """False: the node does not run."""
        process = self.process(node)
        if process is None:
            return False
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)
            return True
        return False

    def kill(self) -> None:
        """SIGKILL to the supervisor and all that it has started."""
        if self._supervisor is not None:
            end(self._supervisor.processes())
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._supervisor.process.wait(10)
            end(self._supervisor.processes())

    def stop(self, timeout_s: float = 90) -> int | None:
        """SIGTERM, as a service manager does. Returns the exit code; None: it did not end, and was killed."""
        assert self._supervisor is not None
        try:
            return self._supervisor.stop(timeout_s)
        except subprocess.TimeoutExpired:
            return None
        finally:
            self.kill()

    def led_at(self) -> str:
        """When the host's beat said last that it leads; empty: it never did."""
        assert self._supervisor is not None
        found = _LEADS.findall(self._supervisor.log.read_text(errors="replace"))
        return found[-1] if found else ""

    def arm(self, step: str) -> Path:
        file = file_of(self.failpoints, step)
        file.touch()
        return file

    def workspaces(self) -> list[Path]:
        return list(self.base_path.glob("*/sandboxes/*"))

    def sweep(self) -> subprocess.CompletedProcess[str]:
        """The janitor's sweep of this host, with the shortest retention."""
        env = self.env | {"CRONIUM_ORPHAN_RETENTION": "1"}
        command = [sys.executable, "-m", "tests.chaos.sweep"]
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)


class Fleet:
    """Some hosts on one Redis. Everything is below `root`, and stopped by `close`."""

    def __init__(self, root: Path, *, pool: int = 0) -> None:
        self.root = root
        self.redis = OwnRedis(root)
        in_starter(self.redis.start)
        self.name = f"chaos-{root.name[-6:]}"
        keep = {name: value for name, value in os.environ.items() if not name.startswith("CRONIUM_")}
        own = {"CRONIUM_REDIS_URL": self.redis.url, "CRONIUM_FLEET": self.name, "CRONIUM_POOL__SIZE": str(pool)}
        self.env = keep | own
        # Of this process, which is the producer.
        for name in [name for name in os.environ if name.startswith("CRONIUM_")]:
            del os.environ[name]
        os.environ.update(own | SETTINGS)
        self.lease_ttl_s = LEASE_TTL_S
        self.records = Records(self.redis.url)
        self.hosts: list[ChaosHost] = []

    def add(self, name: str, *, rig: RigHost | None = None) -> ChaosHost:
        # Below the rig's own directory, so that its freeze finds the workers.
        directory = rig.root / "chaos" if rig is not None else self.root / name
        env = rig.env | self.env if rig is not None else self.env
        host = ChaosHost(f"{self.name}-{name}", directory, env, rig=rig)
        self.hosts.append(host)
        return host

    def close(self) -> None:
        """Every part is tried."""
        with contextlib.ExitStack() as parts:
            parts.callback(self._end_redis)
            parts.callback(self._remove_containers)
            for host in self.hosts:
                parts.callback(host.kill)

    def _end_redis(self) -> None:
        with contextlib.suppress(Exception):
            self.redis.thaw()
        self.redis.kill()

    def _remove_containers(self) -> None:
        with contextlib.closing(docker.from_env()) as client:
            ours = {"label": f"cronium.fleet={self.name}"}
            for container in client.containers.list(all=True, filters=ours, ignore_removed=True):
                with contextlib.suppress(docker.errors.APIError):
                    container.remove(force=True)
            for network in client.networks.list(filters=ours):
                with contextlib.suppress(docker.errors.APIError):
                    network.remove()
