"""What a container has used, read from the host's cgroup and network files.

The files are opened while the container lives and read again when its first process is gone: the kernel keeps
the counters until the engine removes the cgroup some milliseconds later, so that the totals of a container
that ran for a millisecond are exact, too. (The engine's own stats are all zero after the end.)
Formats: see cgroups.py; proc(5) for net/dev.
"""

import os
from contextlib import ExitStack, suppress
from pathlib import Path

from cronium_worker.engine.cgroups import CGROUP_ROOT, PROC, cgroup_files
from cronium_worker.models import Metrics

_PROCESSES = "processes"
_V1_FILES = {
    "cpu": ("cpuacct", "cpuacct.usage"),
    "memory": ("memory", "memory.max_usage_in_bytes"),
    "memory now": ("memory", "memory.usage_in_bytes"),
    "pids": ("pids", "pids.peak"),
    "pids now": ("pids", "pids.current"),
    "io": ("blkio", "blkio.throttle.io_service_bytes_recursive"),
    "oom": ("memory", "memory.oom_control"),
    _PROCESSES: ("pids", "cgroup.procs"),
}
_V2_FILES = {
    "cpu": "cpu.stat",
    "memory": "memory.peak",
    "memory now": "memory.current",
    "pids": "pids.peak",
    "pids now": "pids.current",
    "io": "io.stat",
    "oom": "memory.events",
    _PROCESSES: "cgroup.procs",
}


class UsageReader:
    """Counters of one container by its first process. Where a file is not to be had, its figure is None;
    without a pid, all are."""

    def __init__(self, pid: int | None, *, proc: Path = PROC, cgroup_root: Path = CGROUP_ROOT) -> None:
        self._files: dict[str, int] = {}
        self._proc = proc
        self._processes: Path | None = None
        self._cpu_before_s = 0.0
        if pid is None:
            return
        paths = cgroup_files(pid, _V1_FILES, _V2_FILES, proc=proc, cgroup_root=cgroup_root)
        paths["net"] = proc / str(pid) / "net" / "dev"
        # Opened anew for each look: cgroup v1 may give an open file the list that it gave before (kernel/cgroup).
        self._processes = paths.pop(_PROCESSES, None)
        with ExitStack() as on_error:
            on_error.callback(self.close)
            for name, path in paths.items():
                with suppress(OSError):
                    self._files[name] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            on_error.pop_all()

    def close(self) -> None:
        while self._files:
            os.close(self._files.popitem()[1])

    def _text(self, name: str) -> str:
        try:
            return os.pread(self._files[name], 65536, 0).decode("ascii", "replace")
        except (KeyError, OSError):
            return ""

    def begin(self) -> None:
        """What it has used of the processors until now does not count: it has waited."""
        self._cpu_before_s = self._cpu_s() or 0.0

    def _cpu_s(self) -> float | None:
        text = self._text("cpu")
        usage_us = _field(text, "usage_usec")  # v2; v1 has one number in nanoseconds
        return usage_us / 1e6 if usage_us is not None else _number(text, scale=1e9)

    def oom_kills(self) -> int:
        """How many processes of the container the kernel killed for want of memory."""
        return _field(self._text("oom"), "oom_kill") or 0

    def processes(self) -> list[int]:
        """The container's processes as the host numbers them; empty where they cannot be seen."""
        try:
            text = self._processes.read_text() if self._processes is not None else ""
        except OSError:
            return []
        return [int(line) for line in text.splitlines()]

    def written_bytes(self) -> int:
        """What they, and their children that are gone, have given to file systems to write, also if it is not on
        the disk yet. (On cgroup v1 such writes are not in the metrics.) See proc_pid_io(5)."""
        written = 0
        for process in self.processes():
            with suppress(OSError):
                text = (self._proc / str(process) / "io").read_text().replace(":", "")
                written += _field(text, "write_bytes") or 0
        return written

    def now(self) -> dict[str, int | None]:
        """What is no total: memory in use (with the cache of files), processes and threads."""
        return {"memory_bytes": _integer(self._text("memory now")), "pids": _integer(self._text("pids now"))}

    def read(self) -> Metrics:
        cpu_s = self._cpu_s()
        received, sent = _network(self._text("net"))
        read, written = _disk(self._text("io"))
        return Metrics(
            cpu_seconds=None if cpu_s is None else cpu_s - self._cpu_before_s,
            memory_peak_bytes=_integer(self._text("memory")),
            pids_peak=_integer(self._text("pids")),
            network_rx_bytes=received,
            network_tx_bytes=sent,
            disk_read_bytes=read,
            disk_write_bytes=written,
        )


def _field(text: str, name: str) -> int | None:
    for line in text.splitlines():
        key, _, value = line.partition(" ")
        if key == name and value.isdigit():
            return int(value)
    return None


def _integer(text: str) -> int | None:
    return int(text) if text.strip().isdigit() else None


def _number(text: str, *, scale: float) -> float | None:
    value = _integer(text)
    return None if value is None else value / scale


def _network(text: str) -> tuple[int | None, int | None]:
    """Bytes received and sent over all interfaces but the loopback."""
    rows = [line.replace(":", " ").split() for line in text.splitlines()[2:]]
    outside = [row for row in rows if len(row) >= 10 and row[0] != "lo"]
    if not rows:
        return None, None
    return sum(int(row[1]) for row in outside), sum(int(row[9]) for row in outside)


def _disk(text: str) -> tuple[int | None, int | None]:
    """Bytes read and written: v1 `8:0 Read 4096` a line, v2 `8:0 rbytes=4096 wbytes=0 …`."""
    if not text:
        return None, None
    read = written = 0
    for line in text.splitlines():
        words = line.split()
        pairs = dict(word.split("=", 1) for word in words[1:] if "=" in word)
        read += int(pairs.get("rbytes", 0))
        written += int(pairs.get("wbytes", 0))
        if len(words) == 3 and words[1] == "Read":
            read += int(words[2])
        if len(words) == 3 and words[1] == "Write":
            written += int(words[2])
    return read, written
