"""Measures the engine of one host for `engines.py`, in a process of that host.

Reads one word a line and answers with JSON: `cycle`, the milliseconds of each step of a container as a job has it;
`burst`, jobs a second when many are submitted at once to a worker without warm sandboxes.
"""

import json
import sys
import time

from benchmarks.fleet import running_worker
from benchmarks.jobs import ECHO, TIMEOUT_S, RawCycle
from cronium_worker import execute_job
from cronium_worker.models import Network

BURST_JOBS = 80


def burst(queue: str) -> float:
    began = time.perf_counter()
    job = {"script": {"type": "bash", "content": ECHO["bash"]}, "queue": queue}
    for sent in [execute_job.delay(job) for _ in range(BURST_JOBS)]:
        sent.get(timeout=TIMEOUT_S)
    return BURST_JOBS / (time.perf_counter() - began)


def main() -> None:
    settings = {"CRONIUM_POOL__SIZE": "0", "CRONIUM_CAPACITY__CPU_OVERCOMMIT": "1000"}
    with running_worker(**settings) as queue, RawCycle(Network(mode="none")) as cycle:
        for line in sys.stdin:
            print(json.dumps(cycle() if line.strip() == "cycle" else burst(queue)), flush=True)


if __name__ == "__main__":
    main()
