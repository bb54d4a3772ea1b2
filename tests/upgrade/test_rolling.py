"""Each process of each host goes on in another version, under load, and back: no job is lost, none runs twice."""

import itertools
import json
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from tests.chaos.checker import check
from tests.chaos.fleet import QUEUE
from tests.chaos.history import History
from tests.chaos.load import Load
from tests.chaos.plans import Plan
from tests.chaos.settle import collect, settle, sweep
from tests.chaos.witness import Witness
from tests.conftest import wait_until
from tests.upgrade.fleet import NODES, Driver, UpgradeFleet, UpgradeHost, alternating
from tests.upgrade.versions import Version

_SETTLE_S = 120
# Longer than a worker needs to be replaced, so that each replacement leaves a script that runs.
_LONG_LINES = 120
_END_MARK = re.compile("\x1e([0-9a-f]{32}\x1e?)?$")  # its last character may be an event of its own
_seeds = itertools.count(11)


class Run:
    """Two hosts under load; what happens to the jobs is written down, and judged at the end."""

    def __init__(self, fleet: UpgradeFleet, drivers: list[Driver]) -> None:
        self.fleet = fleet
        self.hosts = [fleet.host(), fleet.host()]
        self.history = History(seed=next(_seeds), lease_ttl_s=fleet.lease_ttl_s)
        self.drivers = itertools.cycle(drivers)
        self._numbers = itertools.count()
        self._submit = alternating(*(lambda job, driver=driver: driver("submit", job) for driver in drivers))

    @contextmanager
    def under_load(self) -> Iterator[Load]:
        witnesses = [Witness(host) for host in self.hosts]
        prefix = f"{self.fleet.name}-load{self.history.seed}"
        load = Load(self.history, self.fleet.records, prefix=prefix, outstanding=10, submit=self._submit)
        try:
            yield load
            load.end()
            for _ in range(2):  # a beat may have been about to run the schedule once more
                self.note_scheduled()
                self.history.troubles += settle(self.fleet, self.history, timeout_s=_SETTLE_S)
        finally:
            load.stop()
            collect(self.fleet, self.history)
            self._forget_others()
            self._forget_marks()
            for host in self.hosts:
                host.stop(*host.running)
            self.history.residue += [left for host in self.hosts for left in sweep(host)]
            for witness in witnesses:
                witness.stop()
                self.history.runs += [run for run in witness.runs() if run.job_id]

    def _forget_others(self) -> None:
        """Leave out the jobs of other tests on this Redis. Those of this run have its seed in their ids."""
        own = (f"{self.fleet.name}-own{self.history.seed}-", f"{self.fleet.name}-load{self.history.seed}-")
        for found in (self.history.records, self.history.events, self.history.celery):
            for job_id in [each for each in found if not each.startswith(own)]:
                del found[job_id]

    def _forget_marks(self) -> None:
        """Take out the mark of a container that an older version has adopted: it knows only the one of before."""
        for events in self.history.events.values():
            for event in events:
                if event["type"] == "log":
                    event["data"] = _END_MARK.sub("", event["data"])

    def plan(self, lines: int) -> Plan:
        job_id = f"{self.fleet.name}-own{self.history.seed}-{next(self._numbers)}"
        plan = Plan(job_id=job_id, kind="ok", lines=lines, pause_s=0.1, pause_every=1, value=21, priority=5)
        self.history.plans[job_id] = plan
        return plan

    def long_job(self, host: UpgradeHost) -> str:
        """One that runs on this host, with a secret."""
        plan = self.plan(_LONG_LINES)
        more = {"secrets": {"TOKEN": "hunter2hunter2"}, "priority": 9}
        next(self.drivers)("submit", plan.job(host.queue) | more)
        self.history.submitted[plan.job_id] = True
        # Not `running` alone: that is told before the gate opens, and a worker that ends then gives the job back.
        wait_until(lambda: self.has_printed(plan.job_id), timeout_s=120, what="the long job prints")
        return plan.job_id

    def has_printed(self, job_id: str) -> bool:
        entries = self.fleet.records.redis.xrange(f"cronium:job:{{{job_id}}}:events")
        return any(json.loads(fields["event"])["type"] == "log" for _, fields in entries)

    def canvases(self) -> None:
        """Jobs that follow each other."""
        driver = next(self.drivers)
        for kind, count in (("chain", 3), ("chord", 3), ("link", 2), ("group", 2)):
            plans = [self.plan(5) for _ in range(count)]
            driver("canvas", kind, [plan.job(QUEUE) for plan in plans])
            self.history.submitted.update((plan.job_id, True) for plan in plans)
        plans = [self.plan(5) for _ in range(2)]
        steps = [{"name": f"s{n}", "job": plan.job(QUEUE)} for n, plan in enumerate(plans)]
        steps[1]["on"] = "always"
        driver("workflow", steps)
        self.history.submitted.update((plan.job_id, True) for plan in plans)

    def replace_jobs_node(self, host: UpgradeHost, version: Version, *, kill: bool) -> None:
        """While a script of the other version's runs on it."""
        job = self.long_job(host)
        self.canvases()
        host.replace(version, "jobs", kill=kill)
        wait_until(
            lambda: f"job {job} is adopted" in host.log("jobs"), what=f"{job} is adopted by {version}", timeout_s=60
        )

    def add_schedule(self) -> None:
        self.schedule = self.plan(3)
        job = self.schedule.job(QUEUE)
        del job["id"]
        next(self.drivers)("add_schedule", {"name": self.schedule.job_id, "every": 2, "overlap": "skip", "job": job})

    def note_scheduled(self) -> int:
        """Make the runs of the schedule a part of what is judged; returns how many there are."""
        prefix = f"{self.schedule.job_id}-"
        ids = [job_id for job_id in self.fleet.records.redis.zrange("cronium:jobs", 0, -1) if job_id.startswith(prefix)]
        for job_id in ids:
            self.history.plans[job_id] = replace(self.schedule, job_id=job_id)
            self.history.submitted[job_id] = True
        return len(ids)


@pytest.mark.timeout(1200)
@pytest.mark.parametrize("rounds", [1, pytest.param(4, marks=pytest.mark.long)])
def test_hosts_are_upgraded_and_downgraded_one_after_the_other(
    fleet: UpgradeFleet, old: Version, new: Version, rounds: int
) -> None:
    run = Run(fleet, [fleet.driver(old), fleet.driver(new)])
    first, second = run.hosts
    first.start(old, *NODES)
    second.start(old, "jobs", "agent", "beat")

    with run.under_load():
        run.add_schedule()
        for version in (new, old) * rounds:
            for host, kill in ((first, False), (second, True)):
                run.replace_jobs_node(host, version, kill=kill)
                others = [node for node in NODES[1:] if node in host.running]
                host.replace(version, *others)
                fired = run.note_scheduled()
                wait_until(lambda n=fired: run.note_scheduled() > n, timeout_s=120, what="the schedule runs")
                if "web" in others:
                    assert len(first.ask("/jobs?limit=20")) == 20
        next(run.drivers)("remove", run.schedule.job_id)

    report = check(run.history)
    sys.stdout.write(f"{dict(report.totals)}\n")
    assert report.ok, "\n".join(map(str, report.violations))
    assert report.totals["completed"] > 40
    assert report.totals["double runs, explained"] == 0
    for status in ("failed", "cancelled", "timeout"):
        assert report.totals[status] > 0, f"no job of the load has ended as {status}"
