"""`make bench`: run all benchmarks, print a table, write benchmarks/results/latest.json and docs/performance.png.

`make bench ARGS=attacks`: what jobs do to their neighbours instead (attacks.py). `make bench ARGS=scale`: what one
Redis carries, by a model of up to 1,000 hosts (scale.py). `make bench ARGS="latency gate logs throughput burst
growth shares neighbours"`: only those parts of it, printed and not kept. `make bench ARGS="ab BASE=COMMIT"`: this
tree beside another commit's (ab.py). `make bench ARGS=engines`: engines and runtimes beside each other (engines.py).
"""

import json
import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks import ab, attacks, engines, growth, scale
from benchmarks.fleet import running_worker
from benchmarks.gate import gate
from benchmarks.housekeeping import pull_to_all_hosts, sweep_orphans
from benchmarks.jobs import docker_run, enqueue_to_result, plain_celery, raw_cycle
from benchmarks.load import burst, idle, running, throughput
from benchmarks.logs import logs
from benchmarks.measure import Figure
from benchmarks.neighbours import neighbours
from benchmarks.plots import plot_performance
from benchmarks.shares import shares

RESULTS = Path(__file__).parent / "results" / "latest.json"
ROUNDS = 20
LANGUAGES = ("bash", "python", "node")
LINES = 500_000


def main() -> None:
    figures = latency() + _logs()
    figures += gate()
    figures += throughput(80)
    figures += burst(200)
    figures += idle(8)
    figures += running(64)
    figures += sweep_orphans(200)
    figures += pull_to_all_hosts(rounds=5, megabytes=50)
    figures += growth.figures()
    show(figures)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps([figure.as_dict() for figure in figures], indent=2) + "\n")
    plot_performance([figure.as_dict() for figure in figures])
    sys.stdout.write(f"written to {RESULTS}\n")


def latency() -> list[Figure]:
    """Of single jobs, one after the other."""
    with running_worker(CRONIUM_POOL__SIZE="0") as queue:
        floor = raw_cycle(ROUNDS)
        figures = [floor, docker_run(ROUNDS, floor), plain_celery(ROUNDS, floor)]
        figures += [enqueue_to_result(language, queue, ROUNDS, floor, warm=False) for language in LANGUAGES]
    with running_worker(CRONIUM_POOL__SIZE="8") as queue:
        for network in "isolated", "none":
            figures += [
                enqueue_to_result(language, queue, ROUNDS, floor, warm=True, network=network) for language in LANGUAGES
            ]
    with running_worker(CRONIUM_POOL__SIZE="8", CRONIUM_POOL__INTERPRETERS="false") as queue:
        figures += [
            enqueue_to_result(language, queue, ROUNDS, floor, warm=True, note=", no interpreters")
            for language in LANGUAGES
        ]
    return figures


def _logs() -> list[Figure]:
    with running_worker(CRONIUM_POOL__SIZE="0") as queue:
        return logs(LINES, queue)


PARTS: Mapping[str, Callable[[], list[Figure]]] = {
    "latency": latency,
    "gate": gate,
    "logs": _logs,
    "throughput": partial(throughput, 80),
    "burst": partial(burst, 200),
    "growth": growth.figures,
    "shares": shares,
    "neighbours": neighbours,
}


def parts(names: list[str]) -> None:
    show([figure for name in names for figure in PARTS[name]()])


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
    match sys.argv[1:]:
        case ["attacks"]:
            attacks.main()
        case ["ab", *options]:
            ab.main(options)
        case ["engines", *options]:
            engines.main(options)
        case ["scale"]:
            scale.again_with_own_redis("benchmarks.scale")
        case [*names] if names and set(names) <= set(PARTS):
            parts(names)
        case []:
            main()
        case _:
            sys.exit(f"ab BASE=COMMIT, attacks, engines, scale, or any of: {' '.join(PARTS)}")
