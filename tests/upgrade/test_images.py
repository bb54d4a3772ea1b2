"""Images that one version has built are of use to the other: a host has one set of them, whichever worker runs."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.chaos.settle import sweep
from tests.upgrade.fleet import UpgradeFleet, UpgradeHost
from tests.upgrade.versions import Version

SCRIPTS = {
    "bash": 'cronium_output "$(cronium_input)"',
    "python": "cronium.output(cronium.input())",
    "node": "cronium.output(cronium.input())",
}


@pytest.fixture
def host(fleet: UpgradeFleet, new: Version) -> Iterator[UpgradeHost]:
    """The images are today's again after the test."""
    host = fleet.host()
    yield host
    host.stop(*host.running)
    built = fleet.cli(new, "images", "build", timeout_s=1200)
    assert built.returncode == 0, built.stderr
    assert sweep(host) == []


@pytest.mark.long
@pytest.mark.timeout(3000)
def test_a_worker_of_each_version_runs_jobs_in_images_of_the_other(
    fleet: UpgradeFleet, host: UpgradeHost, old: Version, new: Version
) -> None:
    driver = fleet.driver(new)
    for builder, worker in ((old, new), (new, old)):
        built = fleet.cli(builder, "images", "build", timeout_s=1200)
        assert built.returncode == 0, built.stderr
        host.start(worker, "jobs")
        # The first ones have a sandbox made, the others find one that waits.
        jobs = [one(host, kind, f"{worker}-{n}") for n in range(3) for kind in SCRIPTS]
        for job in jobs:
            driver("submit", job)
        for job in jobs:
            result = driver("get", job["id"])
            assert (result["status"], result["output"]["data"], result["attempt"]) == ("completed", {"a": ["ä", 1]}, 1)
        host.stop("jobs")


def one(host: UpgradeHost, kind: str, name: str) -> dict[str, Any]:
    script = {"type": kind, "content": SCRIPTS[kind]}
    return {"id": f"{host.name}-{kind}-{name}", "script": script, "queue": host.queue, "input_data": {"a": ["ä", 1]}}
