"""A caller of the load model: `python -m benchmarks.simulated_client RATE SECONDS JOB_SECONDS LINES`.

Jobs come at a steady rate, whatever becomes of those before (open arrival), and each one's result is waited for, as
an application does it: `execute_job.delay(job).get()`. Writes one JSON object: counts, and milliseconds.
"""

import json
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from cronium_worker import execute_job
from cronium_worker.fleet.store import epoch_ms
from cronium_worker.models import JobResult
from cronium_worker.tasks import store

_TIMEOUT_S = 120
_SCRIPT = 'for n in $(seq {lines}); do echo "a line of a job that has something to say, $n"; sleep {pause:.3f}; done'


def job(seconds: float, lines: int) -> dict[str, Any]:
    """For a real host by its script, for a simulated one by its metadata."""
    content = _SCRIPT.format(lines=lines, pause=seconds / max(1, lines))
    return {
        "script": {"type": "bash", "content": content},
        "metadata": {"seconds": str(seconds), "lines": str(lines)},
    }


class Caller:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.send_ms: list[float] = []
        self.got: dict[str, float] = {}
        self.failed = 0

    def wait(self, sent: Any) -> None:
        try:
            status = sent.get(timeout=_TIMEOUT_S)["status"]
        except Exception:  # noqa: BLE001 - counted, and named by what there is of it in Redis
            status = ""
        now = time.time()
        with self._lock:
            if status == "completed":
                self.got[sent.id] = now
            else:
                self.failed += 1

    def send(self, rate: float, seconds: float, work: dict[str, Any]) -> None:
        count = round(rate * seconds)
        with ThreadPoolExecutor(min(count, 1000)) as threads:
            began = time.monotonic()
            for number in range(count):
                time.sleep(max(0.0, began + number / rate - time.monotonic()))
                started = time.perf_counter()
                sent = execute_job.delay(work)
                self.send_ms.append((time.perf_counter() - started) * 1000)
                threads.submit(self.wait, sent)


def _until(caller: Caller) -> dict[str, list[float]]:
    """Milliseconds from the call to the claim, and from the end to `get()`, by the records."""
    claimed, returned = [], []
    for job_id, got in caller.got.items():
        record = store().record(job_id)
        result = JobResult.model_validate_json(record["result"])
        claimed.append(float(int(record["taken_at"]) - epoch_ms(record["created_at"])))
        returned.append(got * 1000 - epoch_ms(result.finished_at or ""))
    return {"claimed_ms": claimed, "returned_ms": returned}


def main(rate: float, seconds: float, job_seconds: float, lines: int) -> None:
    caller = Caller()
    caller.send(rate, seconds, job(job_seconds, lines))
    sys.stdout.write("done\n")  # what comes now is not of the jobs
    sys.stdout.flush()
    sys.stdin.readline()
    found = {"completed": len(caller.got), "failed": caller.failed, "send_ms": caller.send_ms, **_until(caller)}
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(*map(float, sys.argv[1:4]), int(sys.argv[4]))
