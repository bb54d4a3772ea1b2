"""`python -m benchmarks.disk_watch`: what it costs to watch the disk use of jobs. No containers, about a minute.

For each kind of load: the watcher's CPU by job, how long a walk through one job's tree takes, and how late a thread of
the same process answers that waits for input, as those do that read the jobs' logs.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import ExitStack
from pathlib import Path

from cronium_worker.execution.diskuse import DiskLimits, DiskUse
from cronium_worker.execution.diskwatch import DiskWatcher
from cronium_worker.workspace import Workspace, create, remove

LOADS = ((0, 100), (1, 100), (8, 100), (1, 100_000), (8, 10_000))  # jobs, files of each
NO_LIMITS = DiskLimits(bytes=2**60, inodes=2**60, min_free_bytes=0)
SECONDS = 8
ECHO = "import os\nwhile b := os.read(0, 1): os.write(1, b)"


class NoProcesses:
    def processes(self) -> list[int]:
        return []

    def written_bytes(self) -> int:
        return 0


def main() -> None:
    sys.stdout.write("jobs  files of each  CPU ms/s of each  walk s  answer ms p50, p95, p99\n")
    for jobs, files in LOADS:
        sys.stdout.write(measure(jobs, files) + "\n")


def measure(jobs: int, files: int) -> str:
    base = Path(tempfile.mkdtemp())
    workspaces = [create(base, f"job-{number}", uid=1000, gid=1000) for number in range(jobs)]
    for workspace in workspaces:
        fill(workspace, files)
    uses = [DiskUse(workspace, NO_LIMITS, counters=NoProcesses(), on_excess=lambda: None) for workspace in workspaces]
    watcher = DiskWatcher()
    with ExitStack() as watched:
        for use in uses:
            watched.enter_context(watcher.watch(use))
        cpu_s, began = watcher_cpu_s(), time.monotonic()
        waits = answers(SECONDS)
        cpu_s, took_s = watcher_cpu_s() - cpu_s, time.monotonic() - began
    for workspace in workspaces:
        remove(workspace)
    shutil.rmtree(base)
    percentiles = ", ".join(f"{waits[int(len(waits) * share)]:.2f}" for share in (0.5, 0.95, 0.99))
    walk_s = uses[0]._took_s if uses else 0
    return f"{jobs:4}  {files:13}  {1000 * cpu_s / took_s / max(1, jobs):16.1f}  {walk_s:6.3f}  {percentiles}"


def fill(workspace: Workspace, files: int) -> None:
    for start in range(0, files, 100):
        directory = workspace.scratch / f"d{start}"
        directory.mkdir()
        for number in range(100):
            os.mknod(directory / str(number))


def watcher_cpu_s() -> float:
    """See proc_pid_task(5)."""
    for thread in threading.enumerate():
        if thread.name == "disk watcher":
            fields = Path(f"/proc/self/task/{thread.native_id}/stat").read_text().rpartition(")")[2].split()
            return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return 0.0


def answers(seconds: float) -> list[float]:
    """Milliseconds from a byte to its echo by another process, sorted."""
    waits = []
    command = [sys.executable, "-S", "-c", ECHO]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0) as echo:
        assert echo.stdin is not None
        assert echo.stdout is not None
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            sent = time.perf_counter()
            echo.stdin.write(b"x")
            echo.stdout.read(1)
            waits.append(1000 * (time.perf_counter() - sent))
            time.sleep(0.002)
    return sorted(waits)


if __name__ == "__main__":
    main()
