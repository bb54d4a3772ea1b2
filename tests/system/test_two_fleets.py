"""Two fleets with their workers on one engine, of hosts of the same name: neither sees, stops or removes what is the
other's."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import docker
import pytest
from docker.models.containers import Container
from pydantic import SecretStr

from cronium_worker.settings import Settings
from tests.conftest import wait_until
from tests.own_redis import OwnRedis, own_redis
from tests.system.local_host import LocalHost

__all__ = ["own_redis"]

pytestmark = [pytest.mark.attack, pytest.mark.timeout(240)]

JOBS = ("same", "same-2")
SUBMIT = """
import sys
from cronium_worker import submit
content = "echo start; until [ -e /tmp/go ]; do sleep 0.1; done; echo end"
submit({"id": sys.argv[1], "queue": sys.argv[2], "script": {"type": "bash", "content": content}})
"""


@pytest.fixture
def fleets(
    make_host: Callable[[], LocalHost], settings: Settings, own_redis: OwnRedis, tmp_path: Path
) -> Iterator[tuple[LocalHost, LocalHost]]:
    first, path = make_host(), tmp_path / "second"
    path.mkdir()
    changed = {"fleet": f"{settings.fleet}-second", "redis_url": SecretStr(own_redis.url)}
    second = LocalHost(settings.model_copy(update=changed), path)
    second.name = second.env["CRONIUM_HOST_NAME"] = first.name
    for fleet in (first, second):
        fleet.env["CRONIUM_POOL__SIZE"] = "3"
    yield first, second
    for fleet in (first, second):
        fleet.close()
        for container in containers(fleet).values():
            container.remove(force=True)
        assert not list(fleet.base_path.glob("*/sandboxes/*"))


def containers(host: LocalHost) -> dict[str, Container]:
    with closing(docker.from_env()) as client:
        found = client.containers.list(all=True, filters={"label": f"cronium.fleet={host.fleet}"}, ignore_removed=True)
    return {str(container.id): container for container in found}


def submit(host: LocalHost, job_id: str) -> None:
    subprocess.run([sys.executable, "-c", SUBMIT, job_id, host.queue], env=host.env, check=True)


def test_they_live_side_by_side(fleets: tuple[LocalHost, LocalHost]) -> None:
    """Given jobs of the same ids in both; when one fleet's worker is killed, starts again and sweeps; then the other's
    containers are all there, and each job has run once."""
    first, second = fleets
    workers = [fleet.start() for fleet in fleets]
    for fleet in fleets:
        for job_id in JOBS:
            submit(fleet, job_id)
    for fleet in fleets:
        wait_until(lambda host=fleet: {host.status(job) for job in JOBS} == {"running"}, what="both run")
        wait_until(lambda host=fleet: len(containers(host)) == len(JOBS) + 3, what="three wait", timeout_s=60)
    before = containers(second)

    workers[0].kill()
    first.start()
    swept = wait_until(lambda: first.json("cleanup")["hosts"].get(first.name), what="a sweep", timeout_s=60)

    assert (swept["failed"], swept["left_alone"]) == ({}, {})
    assert containers(second).keys() == before.keys()
    assert {container.status for container in containers(second).values()} == {"running"}
    for fleet in fleets:
        for directory in fleet.base_path.glob("*/sandboxes/*/tmp"):
            (directory / "go").touch()
        for job_id in JOBS:
            wait_until(lambda host=fleet, job=job_id: host.status(job) == "completed", what="its end", timeout_s=60)
            assert fleet.cronium("logs", job_id).stdout == "start\nend\n"
            assert fleet.json("status", job_id)["attempt"] == 1
