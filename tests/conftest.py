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

# The key of jobs' secrets, also for this process's own settings, which are read once.
os.environ.setdefault("CRONIUM_SECRET_KEYS", Fernet.generate_key().decode())
# Sandboxes in advance are the pool's own tests' matter; `CRONIUM_POOL__SIZE=8 pytest` has them in all others, too.
os.environ.setdefault("CRONIUM_POOL__SIZE", "0")


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


@pytest.fixture(scope="session")
def leftovers(settings: Settings) -> Iterator[Callable[[], list[str]]]:
    """What jobs of this session have left on the host: containers, running or not, and workspaces."""
    import docker

    client = docker.from_env()

    def look() -> list[str]:
        filters = {"label": f"cronium.fleet={settings.fleet}"}
        # Without a look at each: one that is just being removed would be missed.
        containers = [name for row in client.api.containers(all=True, filters=filters) for name in row["Names"]]
        return containers + [path.name for path in settings.base_path.glob("*/sandboxes/*")]

    yield look
    for network in client.networks.list(filters={"label": f"cronium.fleet={settings.fleet}"}):
        network.remove()
    client.close()
    # The workers' firewall rules are for this bridge.
    if shutil.which("nft") and not Path("/sys/class/net/br-cronium").exists():
        subprocess.run(["nft", "delete", "table", "inet", "cronium"], stderr=subprocess.DEVNULL, check=False)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """What cannot run on somebody's laptop (no root, no mounts) may be skipped there, never in CI."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("CI") and reporter is not None and reporter.stats.get("skipped"):
        reporter.write_line("tests were skipped: in CI all must run", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
