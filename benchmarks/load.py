"""Many jobs: as fast as they go, beside the engine's own limit and a plain Celery task; and what a worker takes while
they run or while it waits."""

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psutil

from benchmarks.fleet import running_worker
from benchmarks.jobs import TIMEOUT_S, RawCycle, plain_arguments
from benchmarks.measure import Figure, figure
from benchmarks.plain import plain_worker, run
from cronium_worker import execute_job, result
from cronium_worker.housekeeping import hosts
from cronium_worker.settings import get_settings
from cronium_worker.tasks import store

AT_ONCE = 8  # with two cores 1.1 times as fast as 4
ECHO = {"type": "bash", "content": "echo hi"}
_TURNS = 3
_QUIET_S = 20
_REST_S = 6  # a node reports every 5 s
_ROOMY = {"CRONIUM_CAPACITY__CPU_OVERCOMMIT": "1000"}  # jobs that do nothing need no cores


def throughput(count: int) -> list[Figure]:
    """Jobs a second without a pool, beside the engine's own cycles of the same container; turn and turn about."""
    cycles, jobs = [], []
    with RawCycle() as raw, running_worker(CRONIUM_POOL__SIZE="0") as queue, ThreadPoolExecutor(AT_ONCE) as threads:
        execute_job.delay(_job(queue)).get(timeout=TIMEOUT_S)
        for _ in range(_TURNS):
            began = time.perf_counter()
            list(threads.map(lambda _: raw(), range(count)))
            cycles.append(count / (time.perf_counter() - began))
            seconds, _ = _burst(queue, count)
            jobs.append(count / seconds)
    floor = figure("engine's own cycles a second (floor)", "1/s", cycles)
    return [floor, figure("jobs a second, no sandboxes wait", "1/s", jobs, floor)]


def burst(count: int) -> list[Figure]:
    """All at once: each one's time to its result, and the slowest one's, beside a plain Celery task's; turn and turn
    about. The pool is the default one, and full: it has been asked for as many at once before as it may hold."""
    size = get_settings().pool.size
    bursts: dict[str, list[list[float]]] = {"plain Celery tasks": [], "jobs": []}
    arguments = plain_arguments()
    for _ in range(_TURNS):
        with plain_worker() as queue:
            began = time.perf_counter()
            sent = [run.apply_async(arguments, queue=queue) for _ in range(count)]
            bursts["plain Celery tasks"].append([_until(began, one) for one in sent])
        with running_worker() as queue:
            while _waiting() < size:
                _burst(queue, size)
                _wait_for_rest()
            bursts["jobs"].append(_burst(queue, count)[1])
    figures: list[Figure] = []
    for name, turns in bursts.items():
        plain, slowest = figures or (None, None)
        figures += [
            figure(
                f"burst of {count} {name}: time to the result", "ms", [ms for times in turns for ms in times], plain
            ),
            figure(f"burst of {count} {name}: the slowest", "ms", [max(times) for times in turns], slowest),
        ]
    return figures


def _burst(queue: str, count: int) -> tuple[float, list[float]]:
    """Seconds in all; milliseconds of each from the first one's submission, by the records."""
    began = time.perf_counter()
    sent = [execute_job.delay(_job(queue)) for _ in range(count)]
    times = [_until(began, one) for one in sent]
    lost = [one.id for one in sent if (found := result(one.id)) is None or found.status != "completed"]
    if lost:
        raise RuntimeError(f"not completed: {lost}")
    return time.perf_counter() - began, times


def _until(began: float, sent: Any) -> float:
    sent.get(timeout=600)
    return (time.perf_counter() - began) * 1000


def _job(queue: str) -> dict[str, Any]:
    return {"script": ECHO, "queue": queue}


def idle(waiting: int) -> list[Figure]:
    """What a jobs node takes while nothing but its sandboxes wait."""
    with running_worker(CRONIUM_POOL__SIZE=str(waiting), CRONIUM_POOL__MINIMUM=str(waiting)):
        _wait_for_pool(waiting)
        return [figure(f"idle node with {waiting} that wait: CPU", "% of a core", [_cpu_percent(_node(), _QUIET_S)])]


def running(count: int) -> list[Figure]:
    """What a jobs node takes for jobs that run and say nothing."""
    with running_worker(CRONIUM_POOL__SIZE="0", CRONIUM_CONCURRENCY=str(count), **_ROOMY) as queue:
        node = _node()
        before = node.memory_info().rss
        job = {"script": {"type": "bash", "content": "sleep 300"}, "queue": queue, "resources": {"memory": "32m"}}
        sent = [execute_job.delay(job) for _ in range(count)]
        while _report()["running"] < count or any(_status(one) != "running" for one in sent):
            time.sleep(1)
        percent = _cpu_percent(node, _QUIET_S)
        megabytes = (node.memory_info().rss - before) / count / 1e6
        for one in sent:
            one.revoke(terminate=True)
        for one in sent:
            one.get(timeout=TIMEOUT_S, propagate=False)
    return [
        figure(f"{count} quiet jobs: CPU of the node", "% of a core", [percent]),
        figure(f"{count} quiet jobs: memory of the node for each", "MB", [megabytes]),
    ]


def _status(sent: Any) -> str | None:
    return store().record(sent.id).get("status")


def _report() -> dict[str, Any]:
    """The running node's; empty: it has not reported yet."""
    own = get_settings().host_name
    found = next((dict(host.nodes.get("jobs", {})) for host in hosts().hosts() if host.name == own), {})
    return found if psutil.pid_exists(found.get("pid", -1)) else {}


def _node() -> psutil.Process:
    while "pid" not in (found := _report()):
        time.sleep(0.2)
    return psutil.Process(found["pid"])


def _waiting() -> int:
    return int(_report().get("pool", {}).get("waiting", 0))


def _wait_for_pool(count: int) -> None:
    while _waiting() < count:
        time.sleep(0.2)


def _wait_for_rest() -> None:
    """Until no more are made: the same number wait in two reports."""
    before = 0
    while before != (now := _waiting()) or not now:
        before = now
        time.sleep(_REST_S)


def _cpu_percent(node: psutil.Process, seconds: float) -> float:
    node.cpu_percent()
    time.sleep(seconds)
    return float(node.cpu_percent())
