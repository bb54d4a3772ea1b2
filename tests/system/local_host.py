"""A host on this machine's own engine, with real worker processes, and the command line as its operator has it."""

import json
import os
import subprocess
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

import docker
from docker.types import Mount

from cronium_worker.fleet.connections import connect
from cronium_worker.fleet.hosts import HostRegistry, HostView
from cronium_worker.settings import Settings
from cronium_worker.workspace import create
from tests.rig import CRONIUM, RigWorker

IMAGE = "cronium/runner:bash-debian"


class LocalHost:
    """Of one test alone: its settings, its workers, its command line."""

    def __init__(self, settings: Settings, path: Path) -> None:
        self.name = f"hk-{uuid4().hex[:8]}"
        self.fleet = settings.fleet
        self.queue = f"queue-{self.name}"
        self.path = path
        self.base_path = path / "base"
        self.base_path.mkdir()
        keep = {name: value for name, value in os.environ.items() if not name.startswith("CRONIUM_")}
        self.env = keep | {
            "CRONIUM_REDIS_URL": settings.redis_url.get_secret_value(),
            "CRONIUM_FLEET": settings.fleet,
            "CRONIUM_HOST_NAME": self.name,
            "CRONIUM_BASE_PATH": str(self.base_path),
            "CRONIUM_RESULT_TTL": "600",
            "CRONIUM_POOL__SIZE": os.environ["CRONIUM_POOL__SIZE"],
            "CRONIUM_LEASE_TTL": "3",
            "CRONIUM_ORPHAN_RETENTION": "1",
        }
        self.registry = HostRegistry(connect(self.env["CRONIUM_REDIS_URL"]), host_ttl_s=3)
        self._workers = ExitStack()
        self._started = 0

    def start(self, *, node: str | None = None, concurrency: int = 2, **env: str) -> RigWorker:
        command = [CRONIUM, "worker", "--queues", self.queue, "--concurrency", str(concurrency)]
        self._started += 1
        log = self.path / f"worker-{self._started}.log"
        worker = RigWorker(command + (["--node", node] if node else []), self.env | env, log)
        self._workers.enter_context(worker)
        worker.wait_ready(nodes=1 if node else 2)
        return worker

    def process(self, *command: str, **env: str) -> RigWorker:
        """Another process of the fleet, with its log."""
        self._started += 1
        process = RigWorker(list(command), self.env | env, self.path / f"process-{self._started}.log")
        self._workers.enter_context(process)
        return process

    def close(self) -> None:
        self._workers.close()
        self.registry.undrain(self.name)
        self.registry._redis.close()

    def remove_containers(self) -> None:
        client = docker.from_env()
        for container in client.containers.list(
            all=True, filters={"label": f"cronium.host={self.name}"}, ignore_removed=True
        ):
            container.remove(force=True)
        client.close()

    def view(self) -> HostView | None:
        return next((host for host in self.registry.hosts() if host.name == self.name), None)

    def state(self) -> str:
        view = self.view()
        return view.state if view else "unknown"

    def cronium(self, *arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
        env = self.env | changes
        return subprocess.run([CRONIUM, *arguments], env=env, capture_output=True, text=True, timeout=60, check=False)

    def json(self, *arguments: str) -> Any:
        done = self.cronium(*arguments, "--json")
        assert done.stdout, done.stderr
        return json.loads(done.stdout)

    def submit(self, script: str) -> str:
        file = self.path / f"{uuid4().hex}.sh"
        file.write_text(script)
        done = self.cronium("run", str(file), "--detach", "--queue", self.queue)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def status(self, job_id: str) -> str:
        return str(self.json("status", job_id)["status"])

    def plant_orphan(self) -> str:
        """An old container that nobody claims."""
        name, sandbox = f"cronium-orphan-{uuid4().hex[:8]}", uuid4().hex
        labels = {"cronium.fleet": self.fleet, "cronium.host": self.name, "cronium.sandbox": sandbox}
        workspace = create(self.base_path / f"{self.fleet}@{self.name}", sandbox, uid=1000, gid=1000)
        mount = Mount("/run/cronium", str(workspace.control), type="bind", read_only=True)
        client = docker.from_env()
        client.containers.create(IMAGE, ["true"], name=name, labels=labels, network_mode="none", mounts=[mount])
        client.close()
        return name


def is_there(name: str) -> bool:
    client = docker.from_env()
    try:
        return name in [c.name for c in client.containers.list(all=True, ignore_removed=True)]
    finally:
        client.close()
