"""A worker node as a process of its own, and the command line as a user has it."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from cronium_worker.settings import Settings
from tests.conftest import Leftovers, wait_until
from tests.rig import rig
from tests.system.local_host import LocalHost

__all__ = ["rig"]

CRONIUM = str(Path(sys.executable).parent / "cronium")


@dataclass
class Fleet:
    """One jobs node of this session's fleet, on a queue of its own, and what talks to it."""

    environment: dict[str, str]
    queue: str
    log: Path
    worker: subprocess.Popen[bytes] | None = None

    def start(self, **extra: str) -> None:
        log = self.log.open("ab")
        self.worker = subprocess.Popen(
            [CRONIUM, "worker", "--node", "jobs", "--concurrency", "8", "--queues", self.queue],
            env=self.environment | extra,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
        log.close()
        ready = self.log.read_text().count(" ready.")
        wait_until(lambda: self.log.read_text().count(" ready.") > ready, what="worker ready")

    def stop(self, timeout_s: float = 60) -> int:
        assert self.worker is not None
        self.worker.send_signal(signal.SIGTERM)
        return self.worker.wait(timeout_s)

    def cronium(
        self, *arguments: str, stdin: str | None = None, extra: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [CRONIUM, *arguments],
            env=self.environment | (extra or {}),
            input=stdin,
            capture_output=True,
            text=True,
            timeout=90,
            check=False,
        )

    def popen(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [CRONIUM, *arguments],
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            bufsize=1,
        )


@pytest.fixture(scope="session")
def fleet(settings: Settings, leftovers: Leftovers, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    keep = {name: value for name, value in os.environ.items() if not name.startswith("CRONIUM_")}
    environment = keep | {
        "CRONIUM_REDIS_URL": settings.redis_url.get_secret_value(),
        "CRONIUM_FLEET": settings.fleet,
        "CRONIUM_HOST_NAME": settings.host_name,
        "CRONIUM_BASE_PATH": str(settings.base_path),
        "CRONIUM_RESULT_TTL": "600",
        "CRONIUM_POOL__SIZE": os.environ["CRONIUM_POOL__SIZE"],
        "CRONIUM_SECRET_KEYS": os.environ["CRONIUM_SECRET_KEYS"],
    }
    fleet = Fleet(environment, f"queue-{settings.host_name}", tmp_path_factory.mktemp("worker") / "log")
    fleet.start()
    yield fleet
    assert fleet.stop() == 0
    leftovers.must_be_none()


@pytest.fixture
def make_host(settings: Settings, tmp_path: Path, leftovers: Leftovers) -> Iterator[Callable[[], LocalHost]]:
    """Hosts of a test on this machine's engine. Nothing of theirs is left after it."""
    made: list[LocalHost] = []

    def make() -> LocalHost:
        path = tmp_path / f"host-{len(made) + 1}"
        path.mkdir()
        made.append(LocalHost(settings, path))
        return made[-1]

    yield make
    for host in made:
        host.close()
    for host in made:
        host.remove_containers()
        assert not list(host.base_path.glob("*/sandboxes/*"))


@pytest.fixture
def host(make_host: Callable[[], LocalHost]) -> LocalHost:
    return make_host()
