"""The files of a container's cgroups: where they are, and the one that is written.

Formats: cgroups(7), Documentation/admin-guide/cgroup-v1/*.rst, cgroup-v2.rst and scheduler/sched-bwc.rst of the kernel.
"""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

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


class CpuBurst:
    """Lets a container save what it has not used of its processor time, up to one period's, and use it later: the
    start of a script takes more than its share of a period, and would be halted until the next. Over longer the limit
    stands.

    Needs Linux 5.14, and the right to write there; without, nothing is saved. The engine has no option for it.
    """

    def __init__(self, pid: int | None = None) -> None:
        files = {} if pid is None else cgroup_files(pid, {"": ("cpu", "cpu.cfs_burst_us")}, {"": "cpu.max.burst"})
        self._file = files.get("")

    def set(self, cores: float) -> None:
        """As many cores as the limit. 0, before it is changed: the kernel takes no limit that is below."""
        if self._file is not None:
            with suppress(OSError):
                self._file.write_text(str(round(cores * CPU_PERIOD_US)))
