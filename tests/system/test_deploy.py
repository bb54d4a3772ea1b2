"""What `deploy/` has for real hosts, asked of the programs that read it."""

import os
import re
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import docker
import pytest
from docker.models.containers import Container
from redis import Redis

from cronium_worker.fleet.connections import connect
from cronium_worker.fleet.store import JobStore
from cronium_worker.models import Job
from cronium_worker.settings import Settings
from tests.guarded_redis import make_access
from tests.own_redis import OwnRedis
from tests.system.celery_fleet.images import worker_image
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
    env_file.write_text(re.sub(r"(PASSWORD|TOKEN)=\n", r"\1=secret\n", EXAMPLE))
    services = compose(env_file, "config", "--services").stdout.split()
    assert sorted(services) == ["beat-1", "beat-2", "flower", "redis", "web", "worker"]
    config = compose(env_file, "config")
    assert config.returncode == 0, config.stderr
    assert config.stdout.count("restart: always") == len(services)
    assert config.stdout.count("healthcheck:") == len(services)
    # The worker is in the host's network.
    assert config.stdout.count("redis://:secret@redis:6379/0") == len(services) - 2
    assert config.stdout.count("redis://:secret@127.0.0.1:6379/0") == 1


@pytest.mark.parametrize("name", ["CRONIUM_REDIS_PASSWORD", "CRONIUM_WEB__TOKEN"])
def test_compose_refuses_to_start_without_a_password(tmp_path: Path, name: str) -> None:
    env_file = tmp_path / "cronium.env"
    given = re.sub(r"(PASSWORD|TOKEN)=\n", r"\1=secret\n", EXAMPLE)
    env_file.write_text(given.replace(f"{name}=secret", f"{name}="))
    config = compose(env_file, "config")
    assert config.returncode != 0
    assert name in config.stderr


def test_every_name_of_the_example_is_a_setting() -> None:
    names = re.findall(r"^#? ?CRONIUM_(\w+)=", EXAMPLE, flags=re.MULTILINE)
    assert len(names) > 8
    for name in set(names) - COMPOSE_ALONE:
        section, _, field = name.lower().partition("__")
        assert section in Settings.model_fields
        if field:
            assert field in type(getattr(Settings(), section)).model_fields


# ---- install.sh, in a container that has what a host has, but systemd


class Machine:
    """A container with the engine of this machine, where install.sh is called. `base_path`: the same directory for
    both."""

    def __init__(self, container: Container, base_path: Path) -> None:
        self.container = container
        self.base_path = base_path

    def settings_file(self, redis_url: str) -> str:
        """With what a shell would trip over."""
        address = f"CRONIUM_REDIS_URL={redis_url}?socket_timeout=20&health_check_interval=30"
        path = f"CRONIUM_BASE_PATH={self.base_path}"
        return f"{address}\nCRONIUM_HOST_NAME=host-9\nCRONIUM_SECURITY__FIREWALL=off\n{path}\n"

    def run(self, *command: str) -> tuple[int, str]:
        done = self.container.exec_run(["env", "PIP_NO_INDEX=1", "PIP_FIND_LINKS=/opt/wheels", *command])
        return done.exit_code, done.output.decode()

    def install(self, *options: str) -> tuple[int, str]:
        return self.run("/source/deploy/install.sh", *options)

    def write(self, path: str, text: str, mode: str = "600") -> None:
        code, said = self.run("sh", "-c", 'printf %s "$1" >"$2" && chmod "$3" "$2"', "sh", text, path, mode)
        assert code == 0, said


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """The worker's image has Debian's packages and a program in /opt/cronium that install.sh has not made."""
    client = docker.from_env()
    image = worker_image(client, tmp_path_factory.mktemp("wheels"))
    base_path = tmp_path_factory.mktemp("base")
    container = client.containers.run(
        image,
        ["sleep", "600"],
        detach=True,
        network_mode="host",
        pid_mode="host",
        cap_add=["NET_ADMIN", "SYS_ADMIN", "SYS_PTRACE"],
        security_opt=["apparmor=unconfined"],
        volumes=[
            f"{DEPLOY.parent}:/source:ro",
            "/var/run/docker.sock:/var/run/docker.sock",
            f"{base_path}:{base_path}",
        ],
    )
    try:
        yield Machine(container, base_path)
    finally:
        container.remove(force=True)
        client.close()


@pytest.mark.timeout(180)
def test_install_goes_from_an_empty_host_to_a_worker_that_can_start(machine: Machine, redis_url: str) -> None:
    """One call after the other, as an operator makes them."""
    code, said = machine.install("--dry-run")
    assert code == 0, said
    assert "would: install this check-out in /opt/cronium" in said
    assert "would stop here until that file is filled in" in said
    assert machine.run("ls", "/etc/cronium/cronium.env")[0] != 0

    code, said = machine.install()
    assert (code, "fill in /etc/cronium/cronium.env" in said) == (1, True), said
    assert machine.run("stat", "-c", "%a", "/etc/cronium/cronium.env")[1] == "600\n"
    name = machine.run("uname", "-n")[1].strip()
    assert machine.run("grep", "-x", f"CRONIUM_HOST_NAME={name}", "/etc/cronium/cronium.env")[0] == 0

    # Filled in, but nobody is there: the words are doctor's.
    machine.write("/etc/cronium/cronium.env", machine.settings_file("redis://127.0.0.1:1/0"), mode="644")
    code, said = machine.install()
    assert code == 1, said
    assert "/opt/cronium is up to date" in said
    assert re.search(r"FAIL redis: redis://127.0.0.1:1/0.* start Redis, or set CRONIUM_REDIS_URL", said), said
    assert said.endswith("install: not enabled: mend what says FAIL, then call this again\n")
    assert machine.run("stat", "-c", "%a", "/etc/cronium/cronium.env")[1] == "600\n"

    machine.write("/etc/cronium/cronium.env", machine.settings_file(redis_url))
    code, said = machine.install()
    assert code == 0, said
    assert "no unit is installed or enabled" in said
    assert "cd /etc/cronium && /opt/cronium/bin/cronium worker" in said


def test_install_enables_the_worker_where_systemd_is(machine: Machine, redis_url: str) -> None:
    """It runs in no container: what it would be told is written down instead."""
    machine.write("/etc/cronium/cronium.env", machine.settings_file(redis_url))
    machine.run("mkdir", "-p", "/run/systemd/system", "/etc/systemd/system")
    machine.write("/usr/local/bin/systemctl", '#!/bin/sh\necho "$*" >>/systemctl.log\n', mode="755")
    assert machine.run("truncate", "--size", "0", "/systemctl.log")[0] == 0

    code, said = machine.install()
    assert code == 0, said
    told = machine.run("cat", "/systemctl.log")[1].splitlines()
    assert told == [
        "enable --quiet --now docker",
        "daemon-reload",
        "enable --quiet cronium-worker",
        "start cronium-worker",
    ]
    units = machine.run("ls", "/etc/systemd/system")[1].split()
    assert {unit.name for unit in UNITS} <= set(units)


def test_install_refuses_what_is_no_debian(machine: Machine) -> None:
    release = machine.run("cat", "/etc/os-release")[1]
    machine.run("rm", "/etc/os-release")
    machine.write("/etc/os-release", "ID=alpine\n", mode="644")
    code, said = machine.install("--dry-run")
    machine.write("/etc/os-release", release, mode="644")
    assert code == 1
    assert said.startswith("install: this is neither Debian nor Ubuntu (alpine")


def test_uninstall_takes_away_what_install_has_made(machine: Machine, redis_url: str) -> None:
    machine.run("mkdir", "-p", "/etc/cronium", "/etc/systemd/system")
    machine.run("ln", "-sf", "cronium.env", "/etc/cronium/.env")
    machine.write("/etc/cronium/cronium.env", machine.settings_file(redis_url))
    assert machine.run("cp", "/source/deploy/systemd/cronium-worker.service", "/etc/systemd/system/")[0] == 0

    code, said = machine.run("/source/deploy/uninstall.sh", "--dry-run")
    assert (code, "would: remove /opt/cronium" in said) == (0, True), said
    assert machine.run("ls", "/opt/cronium/bin/cronium")[0] == 0

    code, said = machine.run("/source/deploy/uninstall.sh")
    assert code == 0, said
    assert "host-9 has left the fleet" in said
    assert machine.run("ls", "/opt/cronium")[0] != 0
    assert machine.run("ls", "/etc/systemd/system/cronium-worker.service")[0] != 0
    assert machine.run("ls", "/etc/cronium/cronium.env")[0] == 0  # it may come back

    code, said = machine.run("/source/deploy/uninstall.sh")
    assert (code, "this machine is no host any more" in said) == (0, True), said


# ---- Redis


def script(name: str, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    command = [str(DEPLOY / "redis" / name), *arguments]
    return subprocess.run(command, env=os.environ | env, capture_output=True, text=True, timeout=30, check=False)


def contents(redis: OwnRedis) -> dict[str, object]:
    look: dict[str, Callable[[Redis, str], object]] = {
        "hash": lambda client, key: client.hgetall(key),
        "list": lambda client, key: client.lrange(key, 0, -1),
        "set": lambda client, key: client.smembers(key),
        "stream": lambda client, key: client.xrange(key),
        "string": lambda client, key: client.get(key),
        "zset": lambda client, key: client.zrange(key, 0, -1, withscores=True),
    }
    with redis.client() as client:
        return {key: look[client.type(key)](client, key) for key in client.scan_iter()}


def test_make_keeps_what_is_there_and_renews_what_was_moved_away(tmp_path: Path) -> None:
    make_access(tmp_path, "redis.example", "192.0.2.1", "2001:db8::1")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert all(path.stat().st_mode & 0o077 == 0 for path in tmp_path.iterdir())
    assert not re.search(rb"[A-Z]-PASSWORD", b"".join(before.values()))
    (tmp_path / "server.pem").unlink()
    make_access(tmp_path, "redis.example", "192.0.2.1", "2001:db8::1")
    changed = {path.name for path in tmp_path.iterdir() if before.get(path.name) != path.read_bytes()}
    assert changed == {"server.pem", "server.key", "ca.srl"}
    shown = subprocess.run(
        ["openssl", "x509", "-in", tmp_path / "server.pem", "-noout", "-ext", "subjectAltName"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "DNS:redis.example, IP Address:192.0.2.1, IP Address:2001:DB8:0:0:0:0:0:1" in shown.stdout


def test_a_backup_brings_jobs_schedules_and_results_back(tmp_path: Path) -> None:
    for name in ("old", "new"):
        (tmp_path / name).mkdir()
    backup = tmp_path / "cronium.rdb"
    with OwnRedis(tmp_path / "old") as redis:
        store = JobStore(connect(redis.url), result_ttl_s=600)
        job = Job.model_validate({"script": {"type": "bash", "content": "true"}})
        store.register(job, task_id=job.id, queue="cronium.jobs")
        with redis.client() as client:
            client.hset("cronium:beat:nightly", "definition", "{}")
            client.set("celery-task-meta-ended", "{}", ex=600)
            client.lpush("cronium.jobs", "{}")
            client.sadd("cronium:{hosts}:drained", "host-2")
        had = contents(redis)
        store.redis.close()
        done = script("backup.sh", str(backup), "-p", str(redis.port))
        assert done.returncode == 0, done.stderr
    assert backup.stat().st_mode & 0o777 == 0o600

    assert script("restore.sh", str(backup), str(tmp_path / "new")).returncode == 0
    with OwnRedis(tmp_path / "new") as redis, redis.client() as client:
        assert contents(redis) == had
        assert client.ttl("celery-task-meta-ended") > 0
        client.set("after", "1")
        redis.stop()
        redis.start()
        assert client.get("after") == "1"
    again = script("restore.sh", str(backup), str(tmp_path / "new"))
    assert again.returncode == 1
    assert "is there: stop Redis, and move it away" in again.stderr


def test_a_backup_that_fails_leaves_the_one_before(tmp_path: Path) -> None:
    backup = tmp_path / "cronium.rdb"
    backup.write_text("yesterday's")
    done = script("backup.sh", str(backup), "-p", "1")
    assert done.returncode == 1
    assert "Redis gave no copy" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["cronium.rdb"]
    assert backup.read_text() == "yesterday's"
