"""What `deploy/` has for real hosts, asked of the programs that read it."""

import re
import subprocess
from pathlib import Path

import pytest

from cronium_worker.settings import Settings
from tests.system.conftest import CRONIUM

DEPLOY = Path(__file__).parents[2] / "deploy"
UNITS = sorted((DEPLOY / "systemd").iterdir())
EXAMPLE = (DEPLOY / "cronium.env.example").read_text()
# Not the program's settings, but compose.yaml's.
COMPOSE_ALONE = {"REDIS_PASSWORD", "REDIS_PUBLISH", "IMAGE", "REDIS_IMAGE", "BASE_IMAGE"}


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_systemd_finds_no_fault_in_a_unit(unit: Path, tmp_path: Path) -> None:
    copy = tmp_path / unit.name
    copy.write_text(unit.read_text().replace("/opt/cronium/bin", str(Path(CRONIUM).parent)))
    verify = ["systemd-analyze", "verify", "--man=no", str(copy)]
    done = subprocess.run(verify, capture_output=True, text=True, timeout=60, check=False)
    assert [line for line in done.stderr.splitlines() if unit.name in line] == []
    assert done.returncode == 0, done.stderr


def compose(env_file: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["docker-compose", "--env-file", str(env_file), "--file", str(DEPLOY / "compose.yaml"), *arguments]
    env = {"PATH": "/usr/local/bin:/usr/bin:/bin", "CRONIUM_ENV_FILE": str(env_file)}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)


def test_compose_takes_the_file_and_every_service_is_watched_and_restarted(tmp_path: Path) -> None:
    env_file = tmp_path / "cronium.env"
    env_file.write_text(EXAMPLE.replace("PASSWORD=\n", "PASSWORD=secret\n"))
    services = compose(env_file, "config", "--services").stdout.split()
    assert sorted(services) == ["beat-1", "beat-2", "flower", "redis", "worker"]
    config = compose(env_file, "config")
    assert config.returncode == 0, config.stderr
    assert config.stdout.count("restart: always") == len(services)
    assert config.stdout.count("healthcheck:") == len(services)
    # The worker is in the host's network.
    assert config.stdout.count("redis://:secret@redis:6379/0") == len(services) - 2
    assert config.stdout.count("redis://:secret@127.0.0.1:6379/0") == 1


def test_compose_refuses_to_start_without_a_password(tmp_path: Path) -> None:
    env_file = tmp_path / "cronium.env"
    env_file.write_text(EXAMPLE)
    config = compose(env_file, "config")
    assert config.returncode != 0
    assert "CRONIUM_REDIS_PASSWORD" in config.stderr


def test_every_name_of_the_example_is_a_setting() -> None:
    names = re.findall(r"^#? ?CRONIUM_(\w+)=", EXAMPLE, flags=re.MULTILINE)
    assert len(names) > 8
    for name in set(names) - COMPOSE_ALONE:
        section, _, field = name.lower().partition("__")
        assert section in Settings.model_fields
        if field:
            assert field in type(getattr(Settings(), section)).model_fields
