"""What the fleet's Redis knows, for Prometheus: asked when it is, and cheap however many jobs there are."""

from collections.abc import Iterable, Iterator, Mapping
from datetime import datetime
from itertools import product
from typing import Any, get_args

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from cronium_worker.fleet.hosts import HostView
from cronium_worker.fleet.oversight import Oversight
from cronium_worker.housekeeping import hosts, line
from cronium_worker.models import TERMINAL, ErrorType
from cronium_worker.models.job import AGENT_NODE, JOBS_NODE, ScriptType
from cronium_worker.models.queues import DEFAULT_QUEUE
from cronium_worker.tasks import store

# Queues are named by jobs: so many are told of, those that hosts serve first.
_MOST_QUEUES = 100
_STATES = ("live", "draining", "unfit", "gone")


def registry() -> CollectorRegistry:
    found = CollectorRegistry()
    found.register(FleetCollector())
    return found


class FleetCollector(Collector):
    """Raises redis errors and BrokerUnavailable: half an answer would look like a quiet fleet."""

    def describe(self) -> Iterable[Metric]:
        return ()  # nothing is asked before Prometheus does

    def collect(self) -> Iterator[Metric]:
        oversight, views = Oversight(store()), hosts().hosts()
        yield from _jobs(oversight)
        yield from _queues(oversight, views)
        yield from _hosts(views)
        yield from _loads([(view, view.nodes[JOBS_NODE]) for view in views if JOBS_NODE in view.nodes])


def _jobs(oversight: Oversight) -> Iterator[Metric]:
    ended = CounterMetricFamily(
        "cronium_fleet_jobs_finished",
        "Jobs that have ended, of the whole fleet; error_type is empty for completed ones.",
        labels=["status", "type", "error_type"],
    )
    for labels, count in sorted((dict.fromkeys(_ends(), 0) | store().ended()).items()):
        ended.add_metric(labels, count)
    yield ended
    backlog = oversight.backlog()
    for name, text, count in (
        ("unsettled", "Jobs that have not ended, or whose result is not with Celery yet.", backlog.unsettled),
        ("unattended", "Of them, jobs that recovery should have looked at a minute ago.", backlog.overdue),
        ("suspected", "Jobs whose lease was first seen lapsed in the last 5 minutes.", backlog.suspected),
    ):
        yield GaugeMetricFamily(f"cronium_fleet_jobs_{name}", text, count)


def _ends() -> Iterator[tuple[str, str, str]]:
    """What may come of a job: told of before it does, so that the first one is an increase."""
    for script_type in get_args(ScriptType):
        yield ("completed", script_type, "")
        for error_type in get_args(ErrorType):
            yield (error_type if error_type in TERMINAL else "failed", script_type, error_type)


def _queues(oversight: Oversight, views: Iterable[HostView]) -> Iterator[Metric]:
    served = {DEFAULT_QUEUE: 0}
    for view in views:
        for queue in view.queues:
            served[queue] = served.get(queue, 0) + (view.state == "live")
    names = list(dict.fromkeys([*served, *oversight.queues(_MOST_QUEUES)]))[:_MOST_QUEUES]
    lines = {name: line(name) for name in names}
    standings = oversight.standing([job for _, following in lines.values() for job in following])
    waiting = {job: each.sent_s for job, each in standings.items() if each.status == "pending"}
    length = GaugeMetricFamily("cronium_fleet_queue_messages", "Messages that wait in a queue.", labels=["queue"])
    age = GaugeMetricFamily(
        "cronium_fleet_queue_oldest_seconds",
        "For how long the oldest message of a queue has waited; 0 when none does, nothing when that is not known.",
        labels=["queue"],
    )
    hosts_of = GaugeMetricFamily("cronium_fleet_queue_hosts", "Live hosts that serve a queue.", labels=["queue"])
    for name, (messages, following) in lines.items():
        length.add_metric([name], messages)
        ages = [waiting[job] for job in following if job in waiting]
        if ages or not messages:
            age.add_metric([name], max(ages, default=0.0))
        hosts_of.add_metric([name], served.get(name, 0))
    yield from (length, age, hosts_of)


def _hosts(views: Iterable[HostView]) -> Iterator[Metric]:
    state = GaugeMetricFamily(
        "cronium_fleet_host_state", "1 for the state that a host is in, 0 for others.", labels=["host", "state"]
    )
    beat = GaugeMetricFamily("cronium_fleet_node_beat_seconds", "Since a node's last word.", labels=["host", "node"])
    done = GaugeMetricFamily(
        "cronium_fleet_host_housekeeping_timestamp_seconds",
        "When a host last swept (cleanup) and pulled images (prepull); seconds since 1970.",
        labels=["host", "kind"],
    )
    for view in views:
        for name in _STATES:
            state.add_metric([view.name, name], view.state == name)
        for node in (JOBS_NODE, AGENT_NODE):
            if node in view.nodes:
                beat.add_metric([view.name, node], view.nodes[node]["beat_s"])
        for kind, report in view.housekeeping.items():
            if "at" in report:
                done.add_metric([view.name, kind], datetime.fromisoformat(report["at"]).timestamp())
    yield from (state, beat, done)


def _loads(reports: Iterable[tuple[HostView, Mapping[str, Any]]]) -> Iterator[Metric]:
    """Of live jobs nodes, by their last reports: what a node of another version does not tell is left out."""

    def gauge(name: str, text: str, *labels: str) -> GaugeMetricFamily:
        return GaugeMetricFamily(f"cronium_fleet_host_{name}", text, labels=["host", *labels])

    info = gauge("info", "Always 1.", "version")
    slots = gauge("slots", "Jobs that a host runs at once, at most.")
    jobs = gauge("jobs", "Jobs that a host has.", "status", "type")
    waiting = gauge("jobs_waiting_for_room", "Jobs that wait for cores or memory of their host.")
    cores = gauge("cores", "Cores that a host has for jobs (total), and that its jobs have reserved.", "which")
    memory = gauge("memory_bytes", "The same of memory.", "which")
    pool = gauge("pool_sandboxes", "Sandboxes that wait for a job, and that are leaving.", "state")
    disk = gauge("free_disk_bytes", "What is free where jobs' files are, and the engine's.", "path")
    for view, report in reports:
        host = view.name
        info.add_metric([host, str(report.get("version", ""))], 1)
        slots.add_metric([host], report.get("slots", 0))
        for status, kind in product(("preparing", "running"), get_args(ScriptType)):
            jobs.add_metric([host, status, kind], report.get("jobs", {}).get(status, {}).get(kind, 0))
        capacity = report.get("capacity", {})
        waiting.add_metric([host], capacity.get("waiting", 0))
        for which, share in (("total", capacity.get("whole")), ("reserved", capacity.get("reserved"))):
            if share is not None:
                cores.add_metric([host, which], share["millicores"] / 1000)
                memory.add_metric([host, which], share["memory"])
        for name in ("waiting", "leaving"):
            pool.add_metric([host, name], report.get("pool", {}).get(name, 0))
        for path, free in report.get("free_bytes", {}).items():
            disk.add_metric([host, path], free)
    yield from (info, slots, jobs, waiting, cores, memory, pool, disk)
