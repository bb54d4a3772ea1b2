"""`make bench`: run all benchmarks, print a table, write benchmarks/results/latest.json.

`make bench ARGS=attacks`: what jobs do to their neighbours instead (attacks.py).
"""

import json
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks import attacks
from benchmarks.fleet import running_worker
from benchmarks.housekeeping import pull_to_all_hosts, sweep_orphans
from benchmarks.jobs import docker_run, enqueue_to_result, lines_lost, plain_celery, raw_cycle
from benchmarks.load import burst, idle, running, throughput
from benchmarks.measure import Figure

RESULTS = Path(__file__).parent / "results" / "latest.json"
ROUNDS = 20
LANGUAGES = ("bash", "python", "node")


def main() -> None:
    with running_worker(CRONIUM_POOL__SIZE="0") as queue:
        floor = raw_cycle(ROUNDS)
        figures = [floor, docker_run(ROUNDS, floor), plain_celery(ROUNDS, floor)]
        figures += [enqueue_to_result(language, queue, ROUNDS, floor, warm=False) for language in LANGUAGES]
        figures.append(lines_lost(500_000, queue))
    with running_worker(CRONIUM_POOL__SIZE="8") as queue:
        for network in "isolated", "none":
            figures += [
                enqueue_to_result(language, queue, ROUNDS, floor, warm=True, network=network) for language in LANGUAGES
            ]
    with running_worker(CRONIUM_POOL__SIZE="8", CRONIUM_POOL__INTERPRETERS="false") as queue:
        figures += [
            enqueue_to_result(language, queue, ROUNDS, floor, warm=True, note=", no interpreters")
            for language in LANGUAGES[1:]
        ]
    figures += throughput(40)
    figures += burst(200)
    figures += idle(8)
    figures += running(64)
    figures += sweep_orphans(200)
    figures += pull_to_all_hosts(rounds=5, megabytes=50)
    show(figures)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps([figure.as_dict() for figure in figures], indent=2) + "\n")
    sys.stdout.write(f"written to {RESULTS}\n")


def show(figures: list[Figure]) -> None:
    table = Table(box=None, header_style="bold")
    for column in ("figure", "p50", "p95", "unit", "n", "beside the floor"):
        table.add_column(column)
    for figure in figures:
        ratio = f"{figure.ratio:.2f}" if figure.ratio is not None else ""
        table.add_row(figure.name, f"{figure.p50:.4g}", f"{figure.p95:.4g}", figure.unit, str(figure.count), ratio)
    console = Console(highlight=False)
    console.width = max(console.width, 100)
    console.print(table)


if __name__ == "__main__":
    attacks.main() if sys.argv[1:] == ["attacks"] else main()
