"""`make bench ARGS=scale`: what one Redis carries, by a load model of 1, 10, 100 and 1,000 hosts.

First the model is held against a real host: what both have Redis do for one idle second, and for one job. Then, for
each number of hosts: what they cost while they are idle, what a job costs, how long its ways take, and what single
actions cost that reach all hosts. All of it on a Redis of its own, written to benchmarks/results/scale.json and to
docs/scaling.png. About ten minutes.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.measure import figure
from benchmarks.model import Answer, Load, beat, call, idle, real_host, redis, simulated
from benchmarks.redis_meter import Meter, Spent
from cronium_worker.settings import get_settings
from tests.own_redis import OwnRedis

RESULTS = Path(__file__).parent / "results" / "scale.json"
HOSTS = (1, 10, 100, 1000)
IDLE_S = 15
# As many connections as the process may have files; each host has some twenty.
_CONNECTIONS = 19_500
_CHECKED = Load(rate=1, seconds=15, job_seconds=2, lines=10)
# What a client sends by itself: how often depends on the connections, which simulated hosts share.
_SETTING_UP = {"hello", "ping", "script|exists", "script|load", "client|setinfo", "select", "auth"}
_SETTLING_S = 5


# Jobs a second: what two cores carry beside the simulated hosts themselves. One job takes five seconds.
RATES = {1: 1, 10: 10, 100: 20, 1000: 5}


def load_for(hosts: int) -> Load:
    rate = RATES[hosts]
    return Load(rate=rate, seconds=max(20, 200 / rate) if hosts >= 10 else 20, job_seconds=5, lines=20)


@contextmanager
def own_redis() -> Iterator[str]:
    """Without a file: what is measured here is its one thread."""
    with (
        tempfile.TemporaryDirectory() as directory,
        OwnRedis(Path(directory), "--appendonly", "no", "--maxclients", str(_CONNECTIONS)) as server,
    ):
        yield server.url


def again_with_own_redis(module: str) -> None:
    """Run a module in a process whose settings name a Redis of its own; then once more, with a broker of its own."""
    command = [sys.executable, "-m", module]
    with own_redis() as url, own_redis() as broker:
        environment = ["/usr/bin/env", f"CRONIUM_REDIS_URL={url}", "CRONIUM_FLEET=model"]
        subprocess.run([*environment, *command], check=True)
        subprocess.run([*environment, f"CRONIUM_BROKER_URL={broker}", *command, "apart"], check=True)


# ---- the model beside a real host


def _per_job(answer: Answer, quiet: Spent) -> dict[str, float]:
    """Commands by kind for one job, without those of an idle host in that time."""
    names = set(answer.spent.commands) | set(quiet.commands)
    idle_share = answer.spent.seconds / quiet.seconds
    counts = {
        name: (answer.spent.commands.get(name, 0) - quiet.commands.get(name, 0) * idle_share) / answer.completed
        for name in names - _SETTING_UP
    }
    return {name: round(count, 2) for name, count in counts.items()}


def _one_host(place: Callable[[], Any]) -> dict[str, Any]:
    with redis() as client:
        client.flushall()
    with place():
        call(Load(rate=1, seconds=1, job_seconds=0, lines=1))  # what a first job brings is not measured
        time.sleep(_SETTLING_S)
        quiet = idle(IDLE_S)
        answer = call(_CHECKED)
    _check(answer)
    idle_second = {name: round(n / quiet.seconds, 2) for name, n in quiet.commands.items() if name not in _SETTING_UP}
    return {"idle_second": idle_second, "job": _per_job(answer, quiet), "connections": quiet.clients}


def beside_a_real_host() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as directory:
        return {
            "real": _one_host(lambda: real_host("model-real", Path(directory))),
            "model": _one_host(lambda: simulated(1)),
        }


# ---- many hosts


def _check(answer: Answer) -> None:
    if answer.failed:
        raise RuntimeError(f"{answer.failed} jobs did not complete")


def many(hosts: int) -> dict[str, Any]:
    load = load_for(hosts)
    with redis() as client:
        client.flushall()
    began = time.monotonic()
    with simulated(hosts), beat():
        joined_s = time.monotonic() - began
        time.sleep(_SETTLING_S)
        quiet = idle(IDLE_S)
        before = _memory()
        answer = call(load)
        _check(answer)
        kept = (_memory() - before) / answer.completed
        actions = _actions()
    busy = answer.spent
    jobs_cpu_s = busy.cpu_s - quiet.busy * busy.seconds
    row = {
        "hosts": hosts,
        "joined_s": joined_s,
        "connections": quiet.clients,
        "idle_cpu": quiet.busy,
        "idle_cpu_ms_a_host": 1000 * quiet.busy / hosts,
        "idle_commands_a_host": sum(quiet.commands.values()) / quiet.seconds / hosts,
        "idle_bytes_a_host": (quiet.bytes_in + quiet.bytes_out) / quiet.seconds / hosts,
        "idle_share": _shares(quiet),
        "rate": load.rate,
        "load_cpu": busy.busy,
        "job_cpu_ms": 1000 * jobs_cpu_s / answer.completed,
        "job_memory": kept,
        "job_bytes": (busy.bytes_in + busy.bytes_out) / answer.completed
        - (quiet.bytes_in + quiet.bytes_out) / quiet.seconds * busy.seconds / answer.completed,
        "load_share": _shares(busy),
        "actions_cpu_ms": actions,
    }
    for name in ("send_ms", "claimed_ms", "returned_ms"):
        way = figure(name, "ms", getattr(answer, name))
        row |= {f"{name}_p50": way.p50, f"{name}_p95": way.p95}
    return row


def _memory() -> int:
    with redis() as client:
        info: Any = client.info("memory")
        return int(info["used_memory_dataset"])


def _shares(spent: Spent) -> dict[str, float]:
    """Of the time in commands, by kind: the largest. What scripts call is a part of theirs."""
    inner = {"hmget", "hset", "hget", "hincrby", "xadd", "time", "expire", "sadd", "sismember", "hdel", "hexists"}
    outer = {name: usec for name, usec in spent.usec.items() if name not in inner}
    total = sum(outer.values()) or 1
    largest = sorted(outer.items(), key=lambda pair: -pair[1])[:5]
    return {name: round(usec / total, 3) for name, usec in largest}


def _actions() -> dict[str, float]:
    """Redis's milliseconds for one action that has to do with all hosts, median of some."""
    from cronium_worker.app import app
    from cronium_worker.beat_schedule import CLEANUP
    from cronium_worker.fleet.store import CANCEL_CHANNEL
    from cronium_worker.housekeeping import hosts, send_to_all

    with redis() as client:
        actions: Mapping[str, tuple[Callable[[], Any], int]] = {
            "a cancel, to all hosts": (lambda: client.publish(CANCEL_CHANNEL, "nobody"), 10),
            "a control command, to all nodes": (lambda: app.control.broadcast("beat", destination=["nobody"]), 3),
            "a look at all hosts": (hosts().hosts, 10),
            "a task to all hosts": (lambda: send_to_all(CLEANUP), 1),
            "a ping of all nodes": (lambda: app.control.inspect(timeout=1.0).ping(), 1),
        }
        return {name: _cost_ms(client, action, times) for name, (action, times) in actions.items()}


def _cost_ms(client: Any, action: Callable[[], Any], at_once: int) -> float:
    """Of one, beyond what goes on anyway in that time."""
    action()
    costs = []
    for _ in range(5):
        meter = Meter(client)
        time.sleep(1)
        quiet = meter.read()
        for _ in range(at_once):
            action()
        time.sleep(1)  # for the answers
        spent = meter.read()
        costs.append(1000 * (spent.cpu_s - quiet.busy * spent.seconds) / at_once)
    return statistics.median(costs)


# ---- a Redis that is busy


def back_to_back(jobs: int = 300, lines: int = 20) -> dict[str, float]:
    """The records and events of jobs alone, one call after the other: a Redis that always has something to do takes
    less time for each thing than one that is asked now and then."""
    from cronium_worker.fleet.events import log_body, now_iso, status_body
    from cronium_worker.fleet.store import Claim
    from cronium_worker.models import Job, JobResult
    from cronium_worker.tasks import make_store

    store = make_store()
    line = "a line of a job that has something to say\n"

    def run(pause_s: float) -> None:
        job = Job.model_validate({"script": {"type": "bash", "content": "exit"}})
        store.register(job, task_id=job.id, queue="model")
        claim = store.claim(job.id, host="model", node="model")
        assert isinstance(claim, Claim)
        store.write(claim, [status_body("running", "running", attempt=1, host="model")], {"status": "running"})
        for number in range(lines):
            store.write(claim, [log_body("stdout", line)], {"stdout_offset": number})
            time.sleep(pause_s)
        store.finish(claim, JobResult(job_id=job.id, status="completed", finished_at=now_iso()), "completed")
        store.settle(job.id)

    found = {}
    with redis() as client:
        client.flushall()
        for name, pause_s, count in (("apart", 0.02, jobs // 15), ("back_to_back", 0.0, jobs)):
            meter = Meter(client)
            for _ in range(count):
                run(pause_s)
            spent = meter.read()
            found |= {f"{name}_cpu_ms": 1000 * spent.cpu_s / count, f"{name}_busy": spent.busy}
    return found


# ---- a broker of its own


def apart(hosts: int = 100) -> dict[str, dict[str, float]]:
    """What is left for the Redis of records, events and results, and what the broker's does."""
    broker = get_settings().broker_url
    assert broker is not None
    with redis() as client:
        client.flushall()
    other = Meter.at(broker.get_secret_value())
    load = load_for(hosts)
    with simulated(hosts), beat():
        time.sleep(_SETTLING_S)
        other.read()
        quiet = {"records": idle(IDLE_S), "broker": other.read()}
        answer = call(load)
        busy = {"records": answer.spent, "broker": other.read()}
    _check(answer)
    return {
        name: {
            "idle_cpu_ms_a_host": 1000 * quiet[name].busy / hosts,
            "job_cpu_ms": 1000 * (busy[name].cpu_s - quiet[name].busy * busy[name].seconds) / answer.completed,
            "connections": quiet[name].clients,
        }
        for name in quiet
    }


def main() -> None:
    console = Console(highlight=False)
    console.width = max(console.width, 150)
    checked = beside_a_real_host()
    _show_check(console, checked)
    rows = []
    for hosts in HOSTS:
        rows.append(many(hosts))
        console.print(f"{hosts} hosts: done", style="dim")
    found = {"check": checked, "hosts": rows, "busy": back_to_back(), "full": full(rows)}
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps(found, indent=2) + "\n")
    show(console, found)
    from benchmarks.plots import plot_scale

    plot_scale(found)


def full(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Derived, not measured: where one thread of Redis would have no time left. By the largest fleet, and by the run
    with the most jobs."""
    host_s = rows[-1]["idle_cpu_ms_a_host"] / 1000
    job_s = max(rows, key=lambda row: row["rate"])["job_cpu_ms"] / 1000
    return {"idle_hosts": 1 / host_s, "jobs_a_second": 1 / job_s}


def _show_check(console: Console, checked: dict[str, Any]) -> None:
    table = Table(box=None, header_style="bold", title="commands of a real host and of the model")
    table.add_column("command")
    for column in ("idle second: real", "model", "job: real", "model"):
        table.add_column(column, justify="right")
    real, model = checked["real"], checked["model"]
    columns = [place[what] for what in ("idle_second", "job") for place in (real, model)]
    for name in sorted({name for column in columns for name in column}):
        values = [column.get(name, 0.0) for column in columns]
        if any(abs(value) >= 0.05 for value in values):
            table.add_row(name, *(f"{value:.2f}" for value in values))
    table.add_row("connections", str(real["connections"]), str(model["connections"]))
    console.print(table)


def show(console: Console, found: dict[str, Any]) -> None:
    rows = found["hosts"]
    table = Table(box=None, header_style="bold")
    table.add_column("hosts")
    for row in rows:
        table.add_column(str(row["hosts"]), justify="right")
    scalars = [name for name, value in rows[0].items() if isinstance(value, int | float) and name != "hosts"]
    for name in scalars:
        table.add_row(name, *(f"{row[name]:.4g}" for row in rows))
    for name in rows[0]["actions_cpu_ms"]:
        table.add_row(f"{name}: ms of Redis", *(f"{row['actions_cpu_ms'][name]:.3g}" for row in rows))
    for name in ("idle_share", "load_share"):
        table.add_row(name, *("\n".join(f"{kind} {share:.0%}" for kind, share in row[name].items()) for row in rows))
    console.print(table)
    for name, value in (found["busy"] | found["full"]).items():
        console.print(f"{name}: {value:.4g}")


def main_apart() -> None:
    """Adds to what `main` has written."""
    found = json.loads(RESULTS.read_text()) | {"apart": apart()}
    RESULTS.write_text(json.dumps(found, indent=2) + "\n")
    for name, row in found["apart"].items():
        sys.stdout.write(f"{name} alone: {', '.join(f'{what} {value:.3g}' for what, value in row.items())}\n")


if __name__ == "__main__":
    main_apart() if sys.argv[1:] == ["apart"] else main()
