"""A version of the future, with one more field of a job, beside today's: refused while today's host is there; what is
accepted all the same waits for a worker that reads it, and runs once."""

import json
from collections.abc import Iterator

import pytest

from tests.chaos.settle import sweep
from tests.conftest import wait_until
from tests.upgrade.fleet import Driver, DriverError, UpgradeFleet, UpgradeHost
from tests.upgrade.versions import Version

pytestmark = pytest.mark.timeout(480)


@pytest.fixture
def host(fleet: UpgradeFleet) -> Iterator[UpgradeHost]:
    host = fleet.host()
    yield host
    host.stop(*host.running)
    assert sweep(host) == []


@pytest.fixture(scope="module")
def driver(fleet: UpgradeFleet, newer: Version) -> Driver:
    return fleet.driver(newer)


def job(host: UpgradeHost, name: str, **fields: str) -> dict[str, object]:
    script = {"type": "bash", "content": "echo runs"}
    return {"id": f"{host.name}-{name}", "script": script, "queue": host.queue, "network": {"mode": "none"}, **fields}


def record(fleet: UpgradeFleet, job_id: object) -> dict[str, str]:
    return fleet.records.redis.hgetall(f"cronium:job:{{{job_id}}}")


def test_a_new_field_is_refused_by_the_name_of_todays_host(
    fleet: UpgradeFleet, host: UpgradeHost, driver: Driver, new: Version, newer: Version
) -> None:
    host.start(new, "jobs")
    plain, labelled = job(host, "plain"), job(host, "labelled", label="x")
    with pytest.raises(
        DriverError, match=f"ValidationError(?s:.)*label\n *not known to {host.name}: upgrade these hosts"
    ):
        driver("submit", labelled)
    assert record(fleet, labelled["id"]) == {}
    driver("submit", plain)
    assert driver("get", plain["id"])["status"] == "completed"
    assert "format" not in record(fleet, plain["id"])

    host.replace(newer, "jobs")
    driver("submit", labelled)
    assert driver("get", labelled["id"])["status"] == "completed"
    assert record(fleet, labelled["id"])["format"] == "2"


def test_what_a_host_cannot_read_waits_for_one_that_can(
    fleet: UpgradeFleet, host: UpgradeHost, driver: Driver, new: Version, newer: Version
) -> None:
    """Nobody was there to ask when it was submitted."""
    one = job(host, "waits", label="x")
    driver("submit", one)
    before = record(fleet, one["id"])
    host.start(new, "jobs", "agent", "beat")
    left = f"job {one['id']} is left to a worker of a newer version"
    wait_until(lambda: left in host.log("jobs"), timeout_s=60, what="today's worker leaves it")
    wait_until(lambda: record(fleet, one["id"]).get("note"), timeout_s=120, what="its record says why it waits")
    after = record(fleet, one["id"])
    assert host.name in after["note"]
    assert {k: v for k, v in after.items() if before.get(k) != v}.keys() <= {"note", "seq", "sent_at"}
    status = json.loads(fleet.cli(new, "status", str(one["id"]), "--json").stdout)
    assert (status["status"], status["note"]) == ("pending", after["note"])

    host.replace(newer, "jobs")
    wait_until(
        lambda: record(fleet, one["id"])["status"] == "completed", timeout_s=120, what="the newer worker runs it"
    )
    assert driver("get", one["id"])["attempt"] == 1
    events = driver("follow", one["id"])
    assert [event["status"] for event in events if event["type"] == "status"] == [
        "pending", "preparing", "running", "completed",
    ]  # fmt: skip
    assert "".join(event["data"] for event in events if event["type"] == "log") == "runs\n"
    assert "note" not in record(fleet, one["id"])


def test_what_runs_when_its_host_is_downgraded_runs_again_in_a_newer_worker(
    fleet: UpgradeFleet, host: UpgradeHost, driver: Driver, new: Version, newer: Version
) -> None:
    """Its container cannot be adopted: it ends, before anybody else may have the job."""
    one = job(host, "downgraded", label="x") | {"script": {"type": "bash", "content": "echo $CRONIUM_ATTEMPT; sleep 4"}}
    host.start(newer, "jobs", "agent", "beat")
    driver("submit", one)
    wait_until(lambda: record(fleet, one["id"])["status"] == "running", timeout_s=120, what="it runs")
    host.replace(new, "jobs", kill=True)
    wait_until(lambda: record(fleet, one["id"])["status"] == "pending", timeout_s=120, what="it is taken back")
    host.replace(newer, "jobs")
    wait_until(lambda: record(fleet, one["id"])["status"] == "completed", timeout_s=120, what="it runs again")
    assert driver("get", one["id"])["attempt"] == 2
