"""`cronium hosts`, `drain`, `leave`, `cleanup`: the fleet's hosts."""

import json
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import click
import humanize

from cronium_worker.cli.jobs import show_table
from cronium_worker.cli.printing import echo, one_line
from cronium_worker.models.job import AGENT_NODE, JOBS_NODE
from cronium_worker.settings import get_settings

if TYPE_CHECKING:
    from cronium_worker.fleet.hosts import HostView, Report

_JSON_OPTION = click.option("--json", "as_json", is_flag=True, help="print JSON alone")
_LOOK_EVERY_S = 0.1
_SWEEP_TIMEOUT_S = 300


@dataclass(frozen=True)
class HostReports:
    """What the hosts have answered: the report by host, and who was silent."""

    reports: "dict[str, Report]"
    silent: list[str]


def ask_every_host(task: str, *, timeout_s: float, **arguments: Any) -> HostReports:
    """Have every live host do a housekeeping task now, and wait for the reports; progress goes to stderr."""
    from cronium_worker.housekeeping import hosts, send_to_all

    run = uuid4().hex
    asked = send_to_all(task, run=run, **arguments)
    if not asked:
        raise click.ClickException("no host answers: start one with `cronium worker`; see `cronium hosts`")
    reports: dict[str, Report] = {}
    for message in hosts().answers(run, asked, timeout_s=timeout_s):
        if "report" in message:
            reports[message["host"]] = message["report"]
        else:
            echo(f"{message['host']}: {one_line(message['progress'])}", err=True)
    return HostReports(dict(sorted(reports.items())), sorted(set(asked) - reports.keys()))


@click.command()
@_JSON_OPTION
def hosts(as_json: bool) -> None:
    """List the fleet's hosts: live, draining (they take no jobs), unfit (no room on a disk, no engine, or no firewall
    where it is required), and gone.

    \b
    Example:
      cronium hosts
    """
    from cronium_worker.housekeeping import hosts as registry

    found = registry().hosts()
    if as_json:
        echo(json.dumps([asdict(host) for host in found]))
        return
    columns = ("host", "state", "running", "queues", "engine", "free", "beat", "swept", "pulled", "note")
    show_table(columns, [_row(host) for host in found])


def _row(host: "HostView") -> list[str]:
    jobs, agent = host.nodes.get(JOBS_NODE), host.nodes.get(AGENT_NODE)
    cleanup, prepull = host.housekeeping.get("cleanup"), host.housekeeping.get("prepull")
    free = min((jobs or {}).get("free_bytes", {}).values(), default=None)
    return [
        host.name,
        host.state,
        host.slots,
        " ".join(host.queues),
        f"{agent['engine']}, cgroup v{agent['cgroup']}" if agent and "engine" in agent else "",
        humanize.naturalsize(free, binary=True) if free is not None else "",
        f"{humanize.naturaldelta(host.last_beat_s)} ago" if host.last_beat_s is not None else "",
        f"{sum(cleanup['removed'].values())}, {_ago(cleanup)}" if cleanup and "removed" in cleanup else "",
        f"{len(prepull['images'])}, {_ago(prepull)}" if prepull and "images" in prepull else "",
        "; ".join(notes(host)),
    ]


def _ago(report: "Report") -> str:
    return humanize.naturaltime(datetime.now(UTC) - datetime.fromisoformat(report["at"]))


def notes(host: "HostView") -> list[str]:
    """What an operator has to look at."""
    if host.state == "gone":
        return []
    notes = [f"no {node} node" for node in (JOBS_NODE, AGENT_NODE) if node not in host.nodes]
    notes += [node[field] for node in host.nodes.values() for field in ("unfit", "error") if node.get(field)]
    if waiting := host.nodes.get(JOBS_NODE, {}).get("capacity", {}).get("waiting"):
        notes.append(f"{waiting} wait for cores or memory")
    for kind, report in host.housekeeping.items():
        failed = [*report.get("failed", ()), *(row["image"] for row in report.get("images", ()) if row["error"])]
        if "error" in report:
            notes.append(f"{kind}: {report['error']}")
        elif failed:
            notes.append(f"{kind} failed: {', '.join(failed[:3])}" + (" …" if len(failed) > 3 else ""))
    return notes


@click.command()
@click.argument("host")
@click.option("--undo", is_flag=True, help="let it take jobs again")
@click.option("--wait", is_flag=True, help="return when none of its jobs runs any more")
def drain(host: str, undo: bool, wait: bool) -> None:
    """Let HOST take no more jobs, also after a restart of its worker; those that run there go on.

    \b
    Example:
      cronium drain build-7
    """
    from cronium_worker.control import beat_now
    from cronium_worker.housekeeping import hosts as registry

    if undo and wait:
        raise click.UsageError("--wait is for a drain, not for --undo")
    known = {view.name: view for view in registry().hosts()}
    if host not in known and not (undo and host in registry().drained()):
        raise click.ClickException(f"{host}: no host of this name; see `cronium hosts`")
    if undo:
        registry().undrain(host)
    else:
        registry().drain(host)
    says = "takes jobs again" if undo else "takes no more jobs"
    if host in known and JOBS_NODE in known[host].nodes:
        beat_now(host)
        if not _has_heard(host, drained=not undo):
            raise click.ClickException(f"{host} does not answer; it {says} as soon as it does")
        echo(f"{host} {says}")
        if wait:
            _wait_for_jobs(host)
    else:
        echo(f"{host} is not running; when it comes back, it {says}")


@click.command()
def leave() -> None:
    """Take this host out of the fleet: remove its containers, the fleet's network and firewall rules.

    Its worker has ended, and no job runs here. Images and settings stay. deploy/uninstall.sh does all there is to do.

    \b
    Example:
      cronium drain build-7 --wait && systemctl disable --now cronium-worker && cronium leave
    """
    from cronium_worker import leaving
    from cronium_worker.engine.client import Engine
    from cronium_worker.housekeeping import hosts as registry
    from cronium_worker.tasks import store

    settings = get_settings()
    leaving.leave(Engine(), store(), registry(), settings)
    echo(f"{settings.host_name} has left the fleet {settings.fleet}")


def _report_of(host: str) -> "Report | None":
    """What the host's jobs node has said last; None: it is not live."""
    from cronium_worker.housekeeping import hosts as registry

    return next((view.nodes.get(JOBS_NODE) for view in registry().hosts() if view.name == host), None)


def _has_heard(host: str, *, drained: bool) -> bool:
    """Whether the host's jobs node has acted on it, within a heartbeat's time."""
    deadline = time.monotonic() + get_settings().lease_ttl
    while time.monotonic() < deadline:
        jobs = _report_of(host)
        # A host that is not fit takes none whatever it is told.
        if jobs and (not jobs["taking_jobs"] if drained else jobs["taking_jobs"] or jobs["unfit"]):
            return True
        time.sleep(_LOOK_EVERY_S)
    return False


def _wait_for_jobs(host: str) -> None:
    while (jobs := _report_of(host)) is not None and jobs["running"]:
        time.sleep(_LOOK_EVERY_S * 10)
    if jobs is None:
        raise click.ClickException(f"{host} does not answer any more; its jobs may still run")
    echo(f"{host} runs no jobs")


@click.command()
@click.option("--dry-run", is_flag=True, help="say what would be removed, and remove nothing")
@_JSON_OPTION
def cleanup(dry_run: bool, as_json: bool) -> None:
    """Remove now what nobody claims any more, on all hosts: containers, workspaces, networks, nameless images.

    The same as beat does every few minutes. Exit code 1 if a host failed or did not answer.

    \b
    Example:
      cronium cleanup --dry-run
    """
    from cronium_worker.beat_schedule import CLEANUP

    answered = ask_every_host(CLEANUP, timeout_s=_SWEEP_TIMEOUT_S, dry_run=dry_run)
    if as_json:
        echo(json.dumps({"hosts": answered.reports, "silent": answered.silent}))
    else:
        rows = [[host, *_sweep_cells(report)] for host, report in answered.reports.items()]
        rows += [[host, "did not answer", "", "", ""] for host in answered.silent]
        show_table(("host", "would_remove" if dry_run else "removed", "young", "failed", "seconds"), rows)
    failed = any(report.get("failed") or report.get("error") for report in answered.reports.values())
    raise click.exceptions.Exit(int(bool(answered.silent) or failed))


def _sweep_cells(report: "Report") -> list[str]:
    if "error" in report:
        return [report["error"], "", "", f"{report['seconds']:.1f}"]
    removed = ", ".join(f"{count} {kind}" for kind, count in report["removed"].items() if count)
    failed = ", ".join(f"{name}: {reason}" for name, reason in report["failed"].items())
    return [removed or "nothing", str(report["young"]), failed, f"{report['seconds']:.1f}"]
