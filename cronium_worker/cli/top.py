"""`cronium top`: the hosts and what they run, live."""

import time
from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import click
import humanize
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table

from cronium_worker.cli.fleet import notes
from cronium_worker.cli.jobs import make_table, store
from cronium_worker.models.job import JOBS_NODE

if TYPE_CHECKING:
    from cronium_worker.fleet.hosts import HostView

_EVERY_S = 1.0
# A job that is older than so many others is not looked for: each look reads the records of all of these.
_NEWEST = 1000
_UNDER_WAY = ("running", "preparing", "pending")


@click.command()
@click.option("--once", is_flag=True, help="print it once, for scripts; so it is where there is no terminal")
def top(once: bool) -> None:
    """Show the fleet's hosts and the jobs that run or wait, anew every second; of the newest 1,000. Ctrl-C ends it.

    \b
    Example:
      cronium top
    """
    console = Console(highlight=False, markup=False)
    if once or not console.is_terminal:
        if not console.is_terminal:
            console.width = 4096
        console.print(_look(None))
        return
    with (
        suppress(KeyboardInterrupt),
        Live(_look(console.height), console=console, screen=True, auto_refresh=False) as live,
    ):
        while True:
            time.sleep(_EVERY_S)
            live.update(_look(console.height), refresh=True)


def _look(height: int | None) -> Group:
    """`height`: lines of the terminal; None: as many as there are."""
    from cronium_worker.housekeeping import hosts

    found = hosts().hosts()
    jobs = [row for row in store().recent(_NEWEST) if row["status"] in _UNDER_WAY]
    jobs.sort(key=lambda row: (_UNDER_WAY.index(row["status"]), row.get("started_at") or row["created_at"]))
    room = len(jobs) if height is None else max(0, height - len(found) - 5)
    counts = ", ".join(f"{sum(row['status'] == status for row in jobs)} {status}" for status in _UNDER_WAY)
    more = f", {len(jobs) - room} of them not shown" if len(jobs) > room else ""
    return Group(_hosts(found), "", counts + more, _jobs(jobs[:room]))


def _hosts(found: "list[HostView]") -> Table:
    rows = []
    for host in found:
        jobs = host.nodes.get(JOBS_NODE, {})
        capacity = jobs.get("capacity", {})
        reserved, whole = capacity.get("reserved"), capacity.get("whole")
        rows.append(
            [
                host.name,
                host.state,
                host.slots,
                f"{reserved['millicores'] / 1000:g}/{whole['millicores'] / 1000:g}" if reserved and whole else "",
                f"{_size(reserved['memory'])}/{_size(whole['memory'])}" if reserved and whole else "",
                str(jobs["pool"]["waiting"]) if jobs.get("pool") else "",
                "; ".join(notes(host)),
            ]
        )
    return make_table(("host", "state", "running", "cores", "memory", "pool", "note"), rows)


def _jobs(rows: list[dict[str, str]]) -> Table:
    now = datetime.now(UTC)
    columns = ("id", "status", "type", "host", "queue", "attempt", "since")
    return make_table(columns, [[*(row.get(name, "") for name in columns[:-1]), _since(row, now)] for row in rows])


def _since(row: dict[str, str], now: datetime) -> str:
    started = datetime.fromisoformat(row.get("started_at") or row["created_at"])
    return str(now - started).partition(".")[0]


def _size(value: float) -> str:
    return humanize.naturalsize(value, binary=True, format="%.0f")
