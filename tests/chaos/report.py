"""A run's outcome for people and programs."""

import json
import statistics
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.chaos.checker import Report
from tests.chaos.history import Event, Fault, History
from tests.chaos.kinds import ON_FLEET

_SHOWN_VIOLATIONS = 40


@dataclass(frozen=True)
class Row:
    """One kind of fault. `survived`: how often all went on after it, and nothing was wrong with any job that it
    had hit. Recovery in seconds: from the fault (an outage: from its end) to the first sign of life of the last of
    those jobs; when there were none, of the node that was hit."""

    kind: str
    injected: int
    survived: int
    p50_s: float | None
    p95_s: float | None


def rows(history: History, report: Report) -> list[Row]:
    wrong = {violation.job_id for violation in report.violations}
    found = []
    for kind in sorted({fault.kind for fault in history.faults}):
        faults = [fault for fault in history.faults if fault.kind == kind]
        times = [time for fault in faults if (time := _recovery_s(history, fault)) is not None]
        survived = sum(_recovery_s(history, fault) is not None and wrong.isdisjoint(fault.jobs) for fault in faults)
        found.append(Row(kind, len(faults), survived, _quantile(times, 0.5), _quantile(times, 0.95)))
    return found


def _recovery_s(history: History, fault: Fault) -> float | None:
    since = fault.healed if fault.kind in ON_FLEET else fault.began
    signs = [sign for job in fault.jobs if (sign := _first_sign(history.events.get(job, []), since)) is not None]
    if signs:
        return max(signs) - since
    if fault.back is not None:
        return max(0.0, fault.back - since)
    # Whom it hit had ended just then: that the fleet takes jobs is the sign.
    taken = [_at(e) for es in history.events.values() for e in es if e.get("status") == "preparing" and _at(e) > since]
    return min(taken) - since if taken else None


def _first_sign(events: list[Event], since: float) -> float | None:
    return next((at for event in events if (at := _at(event)) > since), None)


def _at(event: Event) -> float:
    return datetime.fromisoformat(event["ts"]).timestamp()


def _quantile(times: list[float], share: float) -> float | None:
    if len(times) < 2:
        return times[0] if times else None
    return statistics.quantiles(times, n=100, method="inclusive")[round(share * 100) - 1]


def show(history: History, report: Report, *, seconds: float) -> None:
    table = Table(box=None, header_style="bold")
    for column in ("fault", "injected", "survived", "recovery p50 s", "p95 s"):
        table.add_column(column, justify="left" if column == "fault" else "right")
    for row in rows(history, report):
        times = [f"{time:.2f}" if time is not None else "" for time in (row.p50_s, row.p95_s)]
        table.add_row(row.kind, str(row.injected), str(row.survived), *times)
    console = Console(highlight=False)
    console.width = max(console.width, 100)
    console.print(table)
    console.print(f"\nseed {history.seed}, {len(history.faults)} faults in {seconds:.0f} s")
    console.print(", ".join(f"{count} {what}" for what, count in report.totals.items()))
    if report.causes:
        causes = ", ".join(f"{count} after {kind}" for kind, count in report.causes.most_common())
        console.print(f"scripts that ran again: {causes}")
    memory = ", ".join(f"{node} {size / 2**20:.0f} MiB" for node, size in sorted(history.rss.items()))
    console.print(f"most memory (RSS): {memory}")
    for violation in report.violations[:_SHOWN_VIOLATIONS]:
        console.print(str(violation), markup=False)
    left = len(report.violations) - _SHOWN_VIOLATIONS
    if left > 0:
        console.print(f"… and {left} more")
    console.print("nothing lost, nothing twice" if report.ok else f"{len(report.violations)} violations", style="bold")


def as_json(history: History, report: Report, *, seconds: float) -> dict[str, Any]:
    return {
        "seed": history.seed,
        "seconds": round(seconds, 1),
        "faults": len(history.faults),
        "kinds": [asdict(row) for row in rows(history, report)],
        "totals": dict(report.totals),
        "run_again_after": dict(report.causes),
        "rss_bytes": history.rss,
        "violations": [str(violation) for violation in report.violations],
    }


def write(path: Path, history: History, report: Report, *, seconds: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(as_json(history, report, seconds=seconds), indent=2) + "\n")
