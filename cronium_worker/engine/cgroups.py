"""The files of a container's cgroups: where they are, the limits in them, and the one that is written.

Formats: cgroups(7), Documentation/admin-guide/cgroup-v1/*.rst, cgroup-v2.rst and scheduler/sched-bwc.rst of the kernel.
"""

import errno
import logging
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import ClassVar

logger = logging.getLogger(__name__)

PROC, CGROUP_ROOT = Path("/proc"), Path("/sys/fs/cgroup")
CPU_PERIOD_US = 100_000


def cgroup_files(
    pid: int,
    v1: Mapping[str, tuple[str, str]],
    v2: Mapping[str, str],
    *,
    proc: Path = PROC,
    cgroup_root: Path = CGROUP_ROOT,
) -> dict[str, Path]:
    """Paths by the names in `v1` (name: controller, file) or `v2` (name: file), whichever the process is under; they
    need not exist."""
    try:
        lines = (proc / str(pid) / "cgroup").read_text().splitlines()
    except OSError:
        return {}
    groups: dict[str, str] = {}
    for line in lines:
        _, controllers, group = line.split(":", 2)
        groups |= dict.fromkeys(controllers.split(","), group.lstrip("/"))
    if set(groups) == {""}:
        return {name: cgroup_root / groups[""] / file for name, file in v2.items()}
    return {
        name: cgroup_root / controller / groups[controller] / file
        for name, (controller, file) in v1.items()
        if controller in groups
    }


def limits(pid: int, *, proc: Path = PROC, cgroup_root: Path = CGROUP_ROOT) -> dict[str, int]:
    """Return the limits that the kernel has for a container, by the engine's names (engine.spec.changeable_limits).
    One that cannot be read from here is left out; `sys.maxsize`: there is no limit."""
    files = cgroup_files(
        pid,
        {
            "CpuQuota": ("cpu", "cpu.cfs_quota_us"),
            "Memory": ("memory", "memory.limit_in_bytes"),
            "PidsLimit": ("pids", "pids.max"),
        },
        {"CpuQuota": "cpu.max", "Memory": "memory.max", "PidsLimit": "pids.max"},
        proc=proc,
        cgroup_root=cgroup_root,
    )
    found = {}
    for name, path in files.items():
        with suppress(OSError, ValueError, IndexError):
            word = path.read_text().split()[0]
            found[name] = sys.maxsize if word in ("max", "-1") else int(word)
    return found


class CpuBurst:
    """Lets a container save what it has not used of its processor time, up to one period's, and use it later: the
    start of a script takes more than its share of a period, and would be halted until the next. Over longer the limit
    stands.

    Needs Linux 5.14, and the right to write there. The engine has no option for it.
    """

    # Why this process may not write there; empty as long as nobody has refused it. Of the host, not of one container.
    refused: ClassVar[str] = ""

    def __init__(self, pid: int | None = None) -> None:
        files = {} if pid is None else cgroup_files(pid, {"": ("cpu", "cpu.cfs_burst_us")}, {"": "cpu.max.burst"})
        file = files.get("")
        self._file = file if file is not None and file.exists() else None  # an older kernel has none

    def set(self, cores: float) -> None:
        """As many cores as the limit. 0, before it is changed: the kernel takes no limit that is below."""
        if self._file is None:
            return
        try:
            self._file.write_text(str(round(cores * CPU_PERIOD_US)))
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENODEV):
                return  # the container has ended
            reason = error.strerror or type(error).__name__
            if reason != CpuBurst.refused:
                logger.warning("jobs start slower: the CPU burst cannot be set (%s): %s", self._file, reason)
            CpuBurst.refused = reason
        else:
            CpuBurst.refused = ""
