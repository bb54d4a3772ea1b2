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

from cronium_worker.fleet.connections import connect
from cronium_worker.fleet.store import JobStore
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
for job_id in sys.argv[2:]:
    submit({"id": job_id, "queue": sys.argv[1], "script": {"type": "bash", "content": content}})
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


def statuses(host: LocalHost) -> set[str]:
    with closing(connect(host.env["CRONIUM_REDIS_URL"])) as redis:
        return {JobStore(redis, result_ttl_s=600).record(job_id)["status"] for job_id in JOBS}


def attempts(host: LocalHost) -> list[tuple[str, str]]:
    """What each job has printed, and how often it was tried."""
    with closing(connect(host.env["CRONIUM_REDIS_URL"])) as redis:
        store = JobStore(redis, result_ttl_s=600)
        printed = ["".join(e["data"] for e in store.events(job_id) if e["type"] == "log") for job_id in JOBS]
        return list(zip(printed, [store.record(job_id)["attempt"] for job_id in JOBS], strict=True))


def test_they_live_side_by_side(fleets: tuple[LocalHost, LocalHost]) -> None:
    """Given jobs of the same ids in both; when one fleet's worker is killed, starts again and sweeps; then the other's
    containers are all there, and each job has run once."""
    first, second = fleets
    workers = [fleet.start() for fleet in fleets]
    for fleet in fleets:
        subprocess.run([sys.executable, "-c", SUBMIT, fleet.queue, *JOBS], env=fleet.env, check=True)
    for fleet in fleets:
        wait_until(lambda host=fleet: statuses(host) == {"running"}, what="both run", timeout_s=60)
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
    for fleet in fleets:
        wait_until(lambda host=fleet: statuses(host) == {"completed"}, what="their end", timeout_s=60)
        assert attempts(fleet) == [("start\nend\n", "1")] * len(JOBS)
