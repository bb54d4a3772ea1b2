"""What one job can do to its neighbours: their start and the node's heartbeat while it takes all of a resource.

`make bench ARGS=attacks`. Each attack has the fleet's maxima of cores and processes, and goes on for ATTACK_S seconds
or until a limit ends it. What it fills and floods is bounded by the scripts themselves.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.fleet import running_worker
from benchmarks.measure import Lookout, figure
from cronium_worker import execute_job, follow, result
from cronium_worker.fleet.store import record_key
from cronium_worker.housekeeping import hosts
from cronium_worker.models import JobResult
from cronium_worker.settings import get_settings
from cronium_worker.tasks import store

RESULTS = Path(__file__).parent / "results" / "attacks.json"
ATTACK_S = 10
QUIET_S = 5  # before each attack: what else the machine does changes
LEASE_TTL_S = 6  # of the node: a beat and a renewal each second

_FORKED = """
import os, sys, time
def forked(count, body):
    for _ in range(count):
        try:
            if os.fork() == 0:
                body()
                os._exit(0)
        except OSError:
            return
"""

ATTACKS: dict[str, str] = {
    "CPU spin on all threads": _FORKED + "forked(8, lambda: [None for _ in iter(int, 1)])\nwhile True: pass",
    "memory up to OOM, in a loop": _FORKED
    + """
def fill():
    held = []
    while True: held.append(b"x" * 2**24)
while True:
    forked(1, fill)
    os.wait()
""",
    "fork bomb": _FORKED + "while True: forked(10**6, lambda: time.sleep(0.2))",
    "thread bomb": """
import threading, time
while True:
    try: threading.Thread(target=time.sleep, args=(0.5,)).start()
    except RuntimeError: pass
""",
    "zombies": _FORKED + "while True: forked(10**6, int)",
    "disk fill, 2 GB": """
import os, time
with open("/workspace/data/fill", "wb") as file:
    for _ in range(2000): file.write(os.urandom(2**16) * 16)
time.sleep(60)
""",
    "inode fill, 300,000": """
import os, time
for d in range(300):
    os.mkdir(f"/workspace/data/{d}")
    for f in range(1000): os.mknod(f"/workspace/data/{d}/{f}")
time.sleep(60)
""",
    "file descriptors, 100 processes": _FORKED
    + """
def hold():
    held = []
    while True:
        try: held.append(os.open("/dev/null", os.O_RDONLY))
        except OSError: time.sleep(0.001)
forked(100, hold)
hold()
""",
    "log flood, 1 GB of lines": """
import sys
line = b"x" * 99 + b"\\n"
for _ in range(10_000): sys.stdout.buffer.write(line * 1000)
""",
    "log of 256 MB without newline": """
import sys
for _ in range(256): sys.stdout.buffer.write(b"x" * 2**20)
""",
    "10,000 connections, DNS flood": """
import selectors, socket, struct, time
route = [row.split() for row in open("/proc/net/route")]
gateway = next((socket.inet_ntoa(struct.pack("<L", int(row[2], 16))) for row in route if row[1] == "00000000"), None)
held = []
for number in range(10_000):
    name = b"".join(bytes([len(part)]) + part for part in (b"%d" % number, b"cronium", b"invalid"))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as dns:
        query = struct.pack(">6H", number, 0x100, 1, 0, 0, 0) + name + b"\\0" + struct.pack(">2H", 1, 1)
        try: dns.sendto(query, ("127.0.0.11", 53))
        except OSError: pass
    made = socket.socket()
    made.setblocking(False)
    try: made.connect_ex((gateway, 20_000 + number))
    except OSError: pass
    held.append(made)
    if len(held) > 3000: held.pop(0).close()
time.sleep(60)
""",
    "pipes and inotify": _FORKED
    + """
import ctypes, fcntl
libc = ctypes.CDLL(None)
def hold():
    held = [libc.inotify_init() for _ in range(1000)]
    while True:
        try:
            read, write = os.pipe2(os.O_NONBLOCK)
            held += [read, write]
            try: fcntl.fcntl(write, 1031, 2**20)
            except OSError: pass
            os.write(write, bytes(2**20))
        except OSError: time.sleep(0.001)
forked(20, hold)
hold()
""",
    "page cache and disk churn": _FORKED
    + """
def churn():
    block = os.urandom(2**20)
    while True:
        with open(f"/workspace/data/{os.getpid()}", "w+b", buffering=0) as file:
            for _ in range(200): file.write(block)
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            file.seek(0)
            while file.read(2**20): pass
forked(3, churn)
churn()
""",
    "sync in a loop": _FORKED
    + """
def loop():
    while True:
        with open(f"/workspace/data/{os.getpid()}", "wb") as file: file.write(b"x" * 2**16)
        os.sync()
forked(3, loop)
loop()
""",
}


@dataclass(frozen=True, kw_only=True)
class Row:
    """One attack, or none. Starts in milliseconds: from submitting a neighbour's echo to its first line, and its
    image and container alone. `gap_s`: the longest time between two beats or renewals of a lease, as Redis has
    them. `ended`: how the attack did. `quiet_*`: of first lines just before it; `ratio`: of medians."""

    attack: str
    ended: str
    starts: int
    first_line_p50_ms: float
    first_line_p95_ms: float
    container_p50_ms: float
    container_p95_ms: float
    gap_s: float
    rss_mib: float
    quiet_p50_ms: float | None = None
    quiet_p95_ms: float | None = None
    ratio: float | None = None


class Watch(Lookout):
    """Sees the node's beats, a job's lease and the node's memory while it is entered."""

    def __init__(self, job_id: str | None) -> None:
        super().__init__()
        self._host, self._job_id = get_settings().host_name, job_id
        self._seen: dict[str, list[int]] = {"beat": [], "lease": []}
        self._process: psutil.Process | None = None
        self.rss = 0

    def __exit__(self, *exception: object) -> None:
        super().__exit__(*exception)
        # What has not come by now has not come either.
        seconds, microseconds = store().redis.time()
        self._seen["beat"].append(seconds * 1000 + microseconds // 1000)

    @property
    def gap_s(self) -> float:
        """Of each kind, the longest way from one to the next."""
        gaps = [b - a for seen in self._seen.values() for a, b in pairwise(seen)]
        return max(gaps, default=0) / 1000

    def look(self) -> None:
        view = next((host for host in hosts().hosts() if host.name == self._host), None)
        node = view.nodes.get("jobs") if view else None
        if node is not None:
            self._process = self._process or psutil.Process(node["pid"])
            self._add("beat", node["beat_at_ms"])
        if self._process is not None:
            self.rss = max(self.rss, self._process.memory_info().rss)
        if self._job_id is not None:
            status, lease = store().redis.hmget(record_key(self._job_id), "status", "lease")
            if lease is not None and status == "running":
                self._add("lease", int(lease))

    def _add(self, kind: str, at_ms: int) -> None:
        seen = self._seen[kind]
        if not seen or seen[-1] != at_ms:
            seen.append(at_ms)


def neighbour(queue: str) -> tuple[float, float]:
    """Milliseconds from submitting an echo to its first line, and of its container alone."""
    started = time.perf_counter()
    job_id = execute_job.delay({"script": {"type": "bash", "content": "echo hi"}, "queue": queue}).id
    first_ms = None
    for event in follow(job_id):
        if event["type"] == "log" and first_ms is None:
            first_ms = (time.perf_counter() - started) * 1000
    outcome = result(job_id)
    if outcome is None or outcome.status != "completed" or first_ms is None:
        raise RuntimeError(f"a neighbour's job did not complete: {outcome and outcome.error}")
    return first_ms, outcome.timings.setup_s * 1000


def measured(attack: str, queue: str, quiet: Row | None = None) -> Row:
    """The neighbours' starts while the attack goes on; QUIET_S seconds of quiet for one that there is not."""
    job_id = None
    if attack in ATTACKS:
        job_id = _submit(attack, queue)
        _wait_running(job_id)
    starts: list[tuple[float, float]] = []
    with Watch(job_id) as watch:
        ends = time.monotonic() + (ATTACK_S if job_id else QUIET_S)
        while time.monotonic() < ends and not (starts and _ended(job_id)):
            starts.append(neighbour(queue))
        ended = _end(job_id) if job_id else ""
    first = figure("", "ms", [first for first, _ in starts])
    container = figure("", "ms", [container for _, container in starts])
    return Row(
        attack=attack,
        ended=ended,
        starts=len(starts),
        first_line_p50_ms=round(first.p50),
        first_line_p95_ms=round(first.p95),
        container_p50_ms=round(container.p50),
        container_p95_ms=round(container.p95),
        gap_s=round(watch.gap_s, 2),
        rss_mib=round(watch.rss / 2**20),
        quiet_p50_ms=quiet.first_line_p50_ms if quiet else None,
        quiet_p95_ms=quiet.first_line_p95_ms if quiet else None,
        ratio=round(first.p50 / quiet.first_line_p50_ms, 2) if quiet else None,
    )


def _submit(attack: str, queue: str) -> str:
    maxima = get_settings().maxima
    job: dict[str, Any] = {
        "script": {"type": "python", "content": ATTACKS[attack]},
        "queue": queue,
        "timeout": ATTACK_S,
        "grace_period": 1,
        "resources": {"cpu": maxima.cpu, "pids": maxima.pids, "disk": "4g"},
        # The engine's own resolver passes on what it does not know: to the container itself.
        "network": {"dns": ["127.0.0.1"]},
    }
    return str(execute_job.delay(job).id)


def _wait_running(job_id: str) -> None:
    for event in follow(job_id):
        if event["type"] == "status" and event["status"] not in ("pending", "preparing"):
            return


def _ended(job_id: str | None) -> bool:
    return job_id is not None and result(job_id) is not None


def _end(job_id: str) -> str:
    """Waits for it. How it ended."""
    for _ in follow(job_id):
        pass
    outcome = result(job_id)
    assert isinstance(outcome, JobResult)
    if outcome.error is None:
        return outcome.status
    limit = outcome.error.details.get("limit")
    return f"{outcome.error.type}{f': {limit}' if limit else ''}"


@contextmanager
def _node() -> Iterator[str]:
    own = {"CRONIUM_POOL__SIZE": "0", "CRONIUM_LEASE_TTL": str(LEASE_TTL_S), "CRONIUM_LOG__MAX_BYTES": "16m"}
    with running_worker(**own) as queue:
        for _ in range(3):
            neighbour(queue)  # what a start brings is not measured
        yield queue


def main() -> None:
    rows = []
    with _node() as queue:
        for attack in ATTACKS:
            rows.append(measured(attack, queue, measured("none", queue)))
            show_progress(rows[-1])
    show(rows)
    RESULTS.parent.mkdir(exist_ok=True)
    RESULTS.write_text(json.dumps([asdict(row) for row in rows], indent=2) + "\n")


def show_progress(row: Row) -> None:
    Console(stderr=True, highlight=False).print(f"{row.attack}: {row.ended}", markup=False)


def show(rows: list[Row]) -> None:
    table = Table(box=None, header_style="bold")
    for column in ("attack", "ended"):
        table.add_column(column)
    starts = ("quiet p50 ms", "p95", "first line p50 ms", "p95", "ratio", "container p50 ms", "p95")
    for column in ("n", *starts, "gap s", "RSS MiB"):
        table.add_column(column, justify="right")
    for row in rows:
        figures = (
            *(row.quiet_p50_ms, row.quiet_p95_ms, row.first_line_p50_ms, row.first_line_p95_ms),
            *(row.ratio, row.container_p50_ms, row.container_p95_ms, row.gap_s, row.rss_mib),
        )
        table.add_row(row.attack, row.ended, str(row.starts), *(f"{number:g}" for number in figures))
    console = Console(highlight=False)
    console.width = max(console.width, 170)
    console.print(table)


if __name__ == "__main__":
    main()
