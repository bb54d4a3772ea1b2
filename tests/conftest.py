"""What the tests share: a real Redis, a real Docker Engine, and a fleet of their own that leaves nothing behind."""

import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from cryptography.fernet import Fernet

from cronium_worker.settings import Settings


def pytest_configure() -> None:
    """Not at the import: benchmarks import from here as well, and measure with the defaults."""
    # The key of jobs' secrets, also for this process's own settings, which are read once.
    os.environ.setdefault("CRONIUM_SECRET_KEYS", Fernet.generate_key().decode())
    # Sandboxes wait where a test asks for them; with `CRONIUM_POOL__SIZE=8 pytest` all other workers have some, too.
    os.environ.setdefault("CRONIUM_POOL__SIZE", "0")


# Side by side (tests.labs), what takes minutes comes first: else all wait for it in the end.
LONGEST = ("test_recovery.py", "test_chaos.py", "test_interpreters.py", "test_fleet.py", "test_housekeeping.py")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if hasattr(config, "workerinput"):
        items.sort(key=lambda item: item.path.name not in LONGEST)


def wait_until(condition: Callable[[], Any], *, timeout_s: float = 20, what: str = "condition") -> Any:
    """Poll until the condition gives something true, and return that. Fails at the deadline."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.01)
    pytest.fail(f"{what}: not within {timeout_s} s")


@pytest.fixture(scope="session")
def redis_url() -> str:
    url = os.environ.get("CRONIUM_REDIS_URL")
    if not url:
        pytest.exit("no Redis: run the tests with `make test`, or set CRONIUM_REDIS_URL", returncode=3)
    return url


@pytest.fixture(scope="session")
def settings(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Settings:
    """Of a fleet and a host that nobody else uses."""
    name = f"test-{uuid4().hex[:8]}"
    base: Path = tmp_path_factory.mktemp("base")
    return Settings(redis_url=redis_url, fleet=name, host_name=name, base_path=base, result_ttl=600)


class Leftovers:
    """What jobs of a fleet have left on this host: containers, running or not, and workspaces."""

    def __init__(self, settings: Settings) -> None:
        import docker

        self._client = docker.from_env()
        self._ours = {"label": f"cronium.fleet={settings.fleet}"}
        self._base_path = settings.base_path

    def __call__(self) -> list[str]:
        return [name for row in self._containers() for name in row["Names"]] + [
            path.name for path in self._workspaces()
        ]

    def must_be_none(self) -> None:
        """What is there fails this test, and is taken away: no other one is to fail of it."""
        found = self()
        if found:
            for row in self._containers():
                self._client.api.remove_container(row["Id"], force=True, v=True)
            for workspace in self._workspaces():
                shutil.rmtree(workspace)
        assert found == []

    def close(self) -> None:
        """After the last job. Takes the fleet's networks away."""
        for network in self._client.networks.list(filters=self._ours):
            network.remove()
        self._client.close()

    def _containers(self) -> list[dict[str, Any]]:
        # Without a look at each: one that is just being removed would be missed.
        return list(self._client.api.containers(all=True, filters=self._ours))

    def _workspaces(self) -> list[Path]:
        return list(self._base_path.glob("*/sandboxes/*"))


@pytest.fixture(scope="session")
def leftovers(settings: Settings) -> Iterator[Leftovers]:
    """Of this session."""
    from cronium_worker.engine.network import FIRST, names_beside

    leftovers = Leftovers(settings)
    yield leftovers
    leftovers.close()
    # The workers' firewall rules are for these bridges.
    for names in (FIRST, names_beside(settings.fleet)):
        if shutil.which("nft") and not Path("/sys/class/net", names.bridge).exists():
            command = ["nft", "delete", "table", *names.table.split()]
            subprocess.run(command, stderr=subprocess.DEVNULL, check=False)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """What cannot run on somebody's laptop (no root, no mounts) may be skipped there, never in CI."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CI") and reporter is not None and reporter.stats.get("skipped"):
        reporter.write_line("tests were skipped: in CI all must run", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
