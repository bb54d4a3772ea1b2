"""A host of each version at once: what one writes, all programs of the other read; what one sends, the other runs."""

import itertools
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cronium_worker.models import JobResult
from tests.chaos.settle import sweep
from tests.conftest import wait_until
from tests.upgrade.fleet import Driver, UpgradeFleet, UpgradeHost
from tests.upgrade.versions import Version

_numbers = itertools.count()
_ENDED = ("completed", "failed", "timeout", "cancelled")


class Two:
    """A host of either version, each with its page, and a program of either."""

    def __init__(self, fleet: UpgradeFleet, versions: tuple[Version, Version]) -> None:
        self.fleet = fleet
        self.versions = versions
        self.hosts = [fleet.host(), fleet.host()]
        self.drivers = [fleet.driver(version) for version in versions]
        for host, version in zip(self.hosts, versions, strict=True):
            host.start(version, "jobs", "agent", "beat", "web")

    def status(self, job_id: str) -> str:
        return self.fleet.records.look([job_id]).get(job_id, ("", ""))[0]

    def wait_for(self, job_id: str, *statuses: str) -> None:
        wait_until(lambda: self.status(job_id) in statuses, timeout_s=120, what=f"{job_id} is {statuses}")


@pytest.fixture(scope="module")
def two(fleet: UpgradeFleet, old: Version, new: Version) -> Iterator[Two]:
    two = Two(fleet, (old, new))
    yield two
    for host in two.hosts:
        host.stop(*host.running)
        assert sweep(host) == []


def job(host: UpgradeHost, content: str, **fields: Any) -> dict[str, Any]:
    """One for that host alone."""
    job_id = f"side-{host.name}-{next(_numbers)}"
    limits = {"resources": {"cpu": 0.5, "memory": "64m"}, "network": {"mode": "none"}, "grace_period": 1}
    return {"id": job_id, "script": {"type": "bash", "content": content}, "queue": host.queue, **limits, **fields}


def once(two: Two, driver: Driver, job_id: str) -> dict[str, Any]:
    """The result of a job that was to run in one attempt."""
    two.wait_for(job_id, *_ENDED)
    result = driver("get", job_id)
    started = [event for event in driver("follow", job_id) if event.get("status") == "running"]
    assert (result["attempt"], len(started)) == (1, 1)
    return result


def completes(two: Two, driver: Driver, host: UpgradeHost) -> list[str]:
    fields = {"secrets": {"TOKEN": "hunter2hunter2"}, "input_data": {"n": 1}, "metadata": {"a": "ä"}}
    one = job(host, 'echo "$TOKEN out"; echo err >&2; cronium_output \'{"a": 1}\'; echo x >output/file', **fields)
    driver("submit", one)
    result = once(two, driver, one["id"])
    assert (result["status"], result["output"]["data"]) == ("completed", {"a": 1})
    assert "hunter2" not in json.dumps(driver("follow", one["id"]))
    return [one["id"]]


def is_run_again(two: Two, driver: Driver, host: UpgradeHost) -> list[str]:
    one = job(host, "echo again")
    driver("submit", one)
    once(two, driver, one["id"])
    again = driver("rerun", one["id"])
    assert once(two, driver, again)["status"] == "completed"
    return [one["id"], again]


def fails_and_is_retried(two: Two, driver: Driver, host: UpgradeHost) -> list[str]:
    retry = {"max_attempts": 2, "delay": 0.2, "backoff": 1, "on": ["failed"]}
    one = job(host, 'echo "$CRONIUM_ATTEMPT"; exit 3', retry=retry)
    driver("submit", one)
    two.wait_for(one["id"], *_ENDED)
    result = driver("get", one["id"])
    assert (result["status"], result["exit_code"], result["attempt"]) == ("failed", 3, 2)
    return [one["id"]]


def times_out(two: Two, driver: Driver, host: UpgradeHost) -> list[str]:
    one = job(host, "sleep 60", timeout=1)
    driver("submit", one)
    assert once(two, driver, one["id"])["status"] == "timeout"
    return [one["id"]]


def is_cancelled(two: Two, driver: Driver, host: UpgradeHost) -> list[str]:
    one = job(host, "echo here; sleep 60")
    driver("submit", one)
    two.wait_for(one["id"], "running")
    driver("cancel", one["id"])
    assert once(two, driver, one["id"])["status"] == "cancelled"
    return [one["id"]]


def crosses_hosts(two: Two, driver: Driver, host: UpgradeHost) -> list[str]:
    """Each job of a canvas runs on the other host than the one before it."""
    [other] = [each for each in two.hosts if each is not host]
    ids: list[str] = []
    for kind, count in (("chain", 3), ("chord", 3), ("link", 2)):
        jobs = [job(place, "echo step", input_data=1) for place in [host, other, host][:count]]
        driver("canvas", kind, jobs)
        for each in jobs:
            assert once(two, driver, each["id"])["status"] == "completed"
        ids += [each["id"] for each in jobs]
    steps = [{"name": "a", "job": job(host, "exit 1")}, {"name": "b", "job": job(other, "true"), "on": "failure"}]
    driver("workflow", steps)
    assert [once(two, driver, step["job"]["id"])["status"] for step in steps] == ["failed", "completed"]
    return ids


CASES: tuple[Callable[[Two, Driver, UpgradeHost], list[str]], ...] = (
    completes, is_run_again, fails_and_is_retried, times_out, is_cancelled, crosses_hosts,
)  # fmt: skip


@pytest.mark.timeout(480)
@pytest.mark.parametrize("of_worker", [0, 1], ids=["worker old", "worker new"])
@pytest.mark.parametrize("of_producer", [0, 1], ids=["producer old", "producer new"])
def test_jobs_of_each_version_run_on_the_other_and_are_read_by_both(two: Two, of_producer: int, of_worker: int) -> None:
    host = two.hosts[of_worker]
    for case in CASES:
        for job_id in case(two, two.drivers[of_producer], host):
            # Each version gives the keys that it knows.
            given = [driver(call, job_id) for driver in two.drivers for call in ("result", "get")]
            results = [JobResult.model_validate(each) for each in given]
            events = [driver("follow", job_id) for driver in two.drivers]
            assert results == [results[0]] * 4
            assert events[0] == events[1]
            for each in two.hosts:
                shown = each.ask(f"/jobs/{job_id}")
                assert (shown["status"], shown["result"]["job_id"]) == (results[0].status, job_id)


@pytest.mark.timeout(480)
def test_the_command_line_of_each_version_reads_the_other(two: Two) -> None:
    for host, driver, version in zip(two.hosts, two.drivers, reversed(two.versions), strict=True):
        one = job(host, "echo out; exit 3")
        driver("submit", one)
        two.wait_for(one["id"], "failed")
        status, result, logs = (two.fleet.cli(version, name, one["id"]) for name in ("status", "result", "logs"))
        assert (status.returncode, result.returncode, logs.returncode) == (0, 3, 0)
        assert "failed" in status.stdout
        assert "failed: script: " in result.stderr
        assert logs.stdout == "out\n"
        listed = json.loads(two.fleet.cli(version, "ps", "--json").stdout)
        assert one["id"] in [row["id"] for row in listed]
        live = {row["name"] for row in json.loads(two.fleet.cli(version, "hosts", "--json").stdout) if row["nodes"]}
        assert live >= {host.name for host in two.hosts}


@pytest.mark.timeout(480)
def test_schedules_of_each_version_are_read_by_the_other(two: Two) -> None:
    names = [f"s{next(_numbers)}-{two.fleet.name}" for _ in two.drivers]
    for name, driver, host in zip(names, two.drivers, two.hosts, strict=True):
        one = job(host, "true", secrets={"TOKEN": "hunter2hunter2"})
        del one["id"]
        driver("add_schedule", {"name": name, "every": 1, "job": one})
    for driver in two.drivers:
        assert set(names) <= set(driver("list_schedules"))
    keys = "cronium:jobs"

    def completed(name: str) -> bool:
        ids = [each for each in two.fleet.records.redis.zrange(keys, 0, -1) if each.startswith(f"{name}-")]
        return any(two.status(each) == "completed" for each in ids)

    for name, driver in zip(names, reversed(two.drivers), strict=True):
        wait_until(lambda name=name: completed(name), timeout_s=120, what=f"{name} runs")
        driver("remove", name)
