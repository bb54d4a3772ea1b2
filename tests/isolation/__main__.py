"""`python -m tests.isolation`: the whole catalogue and the probes, as a table and in benchmarks/results/isolation.json.

Wants a Docker Engine with the runner images, and a Redis in CRONIUM_REDIS_URL. Exit code 1 when anything is not as it
must be.
"""

import json
import os
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from queue import SimpleQueue
from typing import Any
from uuid import uuid4

from rich.console import Console
from rich.table import Table

from cronium_worker.engine.inventory import engine_facts
from cronium_worker.execution.runner import Runner
from cronium_worker.fleet.connections import connect
from cronium_worker.fleet.store import JobStore
from cronium_worker.nodes import make_host
from cronium_worker.settings import Pool, Settings
from tests.conftest import Leftovers
from tests.integration.conftest import Bench
from tests.integration.scripts import LANGUAGES
from tests.isolation import probes
from tests.isolation.catalogue import REFUSALS, grouped
from tests.isolation.trial import Trial, Verdict, peak_bytes, refuse, reset_peak

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "isolation.json"
_OUTCOMES = ("refused", "user fault", "contained")


def main() -> int:
    name = f"isolation-{uuid4().hex[:8]}"
    with tempfile.TemporaryDirectory(prefix="isolation-") as directory:
        settings = Settings(
            redis_url=os.environ["CRONIUM_REDIS_URL"], fleet=name, host_name=name, base_path=Path(directory),
            result_ttl=1800, pool=Pool(size=0),
        )  # fmt: skip
        started = time.monotonic()
        figures, verdicts = _measure(settings)
    figures["duration_s"] = round(time.monotonic() - started, 1)
    _print(figures, verdicts)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(figures, indent=2) + "\n")
    return 0 if figures["passed"] else 1


def _measure(settings: Settings) -> tuple[dict[str, Any], list[Verdict]]:
    host = make_host(settings)
    redis = connect(settings.redis_url.get_secret_value())
    sent: defaultdict[str, SimpleQueue[None]] = defaultdict(SimpleQueue)
    store = JobStore(redis, result_ttl_s=settings.result_ttl)
    bench = Bench(Runner(host, store, send=lambda job_id: sent[job_id].put(None)), store, sent)
    leftovers = Leftovers(settings)
    try:
        trial = Trial(bench, settings.base_path, leftovers)
        reset_peak()
        before = peak_bytes()
        verdicts = [refuse(case, language) for language in LANGUAGES for case in REFUSALS]
        probed = _probe(bench, Path(tempfile.mkdtemp(dir=settings.base_path)))
        verdicts += trial.run_all(grouped(), LANGUAGES)
        facts = engine_facts(host.engine)
    finally:
        leftovers.close()
        host.engine.close()
        redis.close()
    unexpected = [verdict for verdict in verdicts if not verdict.as_expected]
    figures = {
        "engine": facts["engine"],
        "cgroup": facts["cgroup"],
        "cases": len({verdict.id for verdict in verdicts}),
        "by_language": {
            language: dict(Counter(str(v.outcome) for v in verdicts if v.language == language))
            for language in LANGUAGES
        },
        "not_as_expected": [vars(verdict) for verdict in unexpected],
        "canary_reads": trial.canary_reads,
        "canary_writes": trial.canary_writes,
        "residue": trial.residue,
        "worker_crashes": len(trial.crashes),
        "worker_memory_before_bytes": before,
        "worker_memory_peak_bytes": trial.peak_bytes,
        "probes": probed,
    }
    bad = trial.canary_reads + trial.canary_writes + len(trial.residue) + len(trial.crashes) + len(unexpected)
    figures["passed"] = not bad and not any(row["allowed"] for row in probed.values())
    return figures, verdicts


def _probe(bench: Bench, directory: Path) -> dict[str, dict[str, Any]]:
    program = probes.compiled(directory)
    rows = {}
    for language in LANGUAGES:
        report = probes.Report.read(bench.run(**probes.job(language, program)).text("stdout"))
        rows[language] = {
            "calls": len(report.calls),
            "refused": sum(answer != "ok" for answer in report.calls.values()),
            "allowed": report.allowed(),
        }
    return rows


def _print(figures: dict[str, Any], verdicts: Sequence[Verdict]) -> None:
    console = Console()
    table = Table("", "language", "cases", *_OUTCOMES)
    for category in sorted({verdict.category for verdict in verdicts}):
        for language in LANGUAGES:
            found = [v for v in verdicts if (v.category, v.language) == (category, language)]
            counts = Counter(str(verdict.outcome) for verdict in found)
            table.add_row(category, language, str(len(found)), *(str(counts[name]) for name in _OUTCOMES))
    for language, row in figures["probes"].items():
        table.add_row("probes", language, str(row["calls"]), str(row["refused"]), "", str(len(row["allowed"])))
    console.print(table)
    console.print(
        "probes that are allowed:", *sorted({name for row in figures["probes"].values() for name in row["allowed"]})
    )
    for verdict in verdicts:
        if not verdict.as_expected:
            console.print(f"NOT AS EXPECTED: {verdict}", markup=False)
    before, peak = (figures[f"worker_memory_{when}_bytes"] // 2**20 for when in ("before", "peak"))
    console.print(
        f"canary read {figures['canary_reads']} times, changed {figures['canary_writes']}; "
        f"left behind {len(figures['residue'])}; worker crashes {figures['worker_crashes']}"
    )
    console.print(f"the worker's memory: {before} MiB before, {peak} MiB at its peak; {figures['duration_s']} s in all")


if __name__ == "__main__":
    sys.exit(main())
