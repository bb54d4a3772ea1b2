"""The block device behind a directory: what the I/O limit of a container is put on."""

import os
from pathlib import Path


def block_device(path: Path, *, sysfs: Path = Path("/sys")) -> str | None:
    """`/dev/<disk>` of the file system that holds `path`; None where it has none of its own (tmpfs, overlay, NFS).

    The kernel throttles whole disks, not partitions (Documentation/admin-guide/cgroup-v1/blkio-controller.rst).
    """
    number = path.stat().st_dev
    entry = sysfs / "dev" / "block" / f"{os.major(number)}:{os.minor(number)}"
    if not entry.exists():
        return None
    disk = entry.resolve()
    if (disk / "partition").exists():
        disk = disk.parent
    node = Path("/dev") / disk.name.replace("!", "/")  # cciss!c0d0 in sysfs is cciss/c0d0
    return str(node) if node.exists() else None
