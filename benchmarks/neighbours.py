"""`make bench ARGS=neighbours`: what others notice of a job that chooses much work for its worker.

In turn nothing; jobs that leave the worker alone: those of a second, for which the engine makes and removes containers
as for the attacks that end by themselves, and a busy one; and each attack of tests/system/test_neighbours.py. Each
again as soon as it has ended. Meanwhile a neighbour prints every 100 ms; others are started in sandboxes that wait,
cancelled, and run into their timeout. Each row is beside the quiet fleet's.
"""

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from benchmarks.fleet import running_worker
from benchmarks.jobs import REFILL_S
from benchmarks.measure import Figure, figure
from cronium_worker import cancel, execute_job, follow
from cronium_worker.models import TERMINAL, ScriptType
from cronium_worker.tasks import store
from tests.system.test_neighbours import ATTACKS

_STARTS = 24
_ENDS = 24
_TICKS = "import time\nfor _ in range(60):\n    print(time.time(), flush=True)\n    time.sleep(0.1)"
_TILL_TERM = "trap 'exit 0' TERM; echo on; sleep 60 & wait"
_BUSY = "import time\nend = time.time() + 1.5\nwhile time.time() < end: pass"
_KINDS: Mapping[str, Mapping[str, Any]] = {
    "nothing": {},
    "jobs of a second": {"content": "import time; time.sleep(1)"},
    "a busy job": {"content": _BUSY},
    **ATTACKS,
}

Samples = dict[str, list[float]]
_Submit = Callable[..., str]


def neighbours() -> list[Figure]:
    """Milliseconds: of a line from `print` to its event; of a start; of a cancel and a timeout to the end."""
    found: dict[str, Samples] = {}
    with running_worker(CRONIUM_POOL__SIZE="8") as queue:

        def submit(script_type: ScriptType, content: str, **fields: Any) -> str:
            script = {"type": script_type, "content": content}
            return str(execute_job.delay({"script": script, "queue": queue, **fields}).id)

        _starts(submit, 3)
        for kind, job in _KINDS.items():
            with _going_on(submit, job):
                found[kind] = _measure(submit)
    quiet = {name: figure(name, "ms", samples) for name, samples in found["nothing"].items()}
    return [
        figure(f"{name}, beside {kind}", "ms", samples, quiet[name])
        for kind, measured in found.items()
        for name, samples in measured.items()
    ]


def _measure(submit: _Submit) -> Samples:
    samples: Samples = defaultdict(list)
    samples["a line of a log"] = _lines(submit)
    samples["a start"] = _starts(submit, _STARTS)
    for _ in range(_ENDS):
        samples["a cancel"].append(_cancel(submit))
        samples["a timeout"].append(_timeout(submit))
    return samples


def _lines(submit: _Submit) -> list[float]:
    events = [event for event in follow(submit("python", _TICKS)) if event["type"] == "log"]
    return [(_at(event) - float(line)) * 1000 for event in events for line in event["data"].split()[:1]]


def _starts(submit: _Submit, count: int) -> list[float]:
    samples = []
    for _ in range(count):
        time.sleep(REFILL_S)
        started = time.perf_counter()
        job_id = submit("bash", "echo hi")
        next(event for event in follow(job_id) if event["type"] == "log")
        samples.append((time.perf_counter() - started) * 1000)
    return samples


def _cancel(submit: _Submit) -> float:
    job_id = submit("bash", _TILL_TERM)
    asked = 0.0
    for event in follow(job_id):
        if event["type"] == "log":
            asked = time.perf_counter()
            cancel(job_id)
    return (time.perf_counter() - asked) * 1000


def _timeout(submit: _Submit) -> float:
    events = [event for event in follow(submit("bash", _TILL_TERM, timeout=1)) if event["type"] == "status"]
    running = next(event for event in events if event["status"] == "running")
    return (_at(events[-1]) - _at(running) - 1) * 1000


def _at(event: Mapping[str, Any]) -> float:
    return datetime.fromisoformat(event["ts"]).timestamp()


@contextmanager
def _going_on(submit: _Submit, job: Mapping[str, Any]) -> Iterator[None]:
    """This job, one after the other, while it is entered; none, if there is no job. (Two of them, or what they make the
    worker do, would have both cores of a small machine to themselves.)"""
    ended = threading.Event()
    resources = {"cpu": 0.2, "memory": "256m"}

    def attack() -> None:
        while job and not ended.is_set():
            job_id = submit("python", job["content"], secrets=job.get("secrets", {}), resources=resources)
            while not _has_ended(job_id):
                if ended.wait(0.1):
                    cancel(job_id)

    thread = threading.Thread(target=attack)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _has_ended(job_id: str) -> bool:
    """Without reading its result, which is large."""
    return store().fields(job_id).get("status") in TERMINAL
