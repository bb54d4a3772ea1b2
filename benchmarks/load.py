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
_POOL = 8
_QUIET_S = 20
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
    """All at once: each one's time to its result, beside a plain Celery task's. The first one finds one sandbox that
    waits, the next one as many as the first has taught the pool to keep."""
    arguments = plain_arguments()
    with plain_worker() as queue:
        began = time.perf_counter()
        sent = [run.apply_async(arguments, queue=queue) for _ in range(count)]
        times = [_until(began, one) for one in sent]
    figures = [figure(f"burst of {count}, plain Celery task: time to the result", "ms", times)]
    with running_worker(CRONIUM_POOL__SIZE=str(_POOL)) as queue:
        for name, waiting in ("burst", 3), ("next burst", _POOL):
            _wait_for_pool(waiting)
            _, times = _burst(queue, count)
            figures.append(figure(f"{name} of {count}: time to the result", "ms", times, figures[0]))
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
    own = get_settings().host_name
    return next((dict(host.nodes.get("jobs", {})) for host in hosts().hosts() if host.name == own), {})


def _node() -> psutil.Process:
    while "pid" not in (found := _report()):
        time.sleep(0.2)
    return psutil.Process(found["pid"])


def _wait_for_pool(count: int) -> None:
    while _report().get("pool", {}).get("waiting", 0) < count:
        time.sleep(0.2)


def _cpu_percent(node: psutil.Process, seconds: float) -> float:
    node.cpu_percent()
    time.sleep(seconds)
    return float(node.cpu_percent())
