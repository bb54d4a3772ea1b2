"""The disk behind a directory, from a tree like sysfs."""

import os
from pathlib import Path

import pytest

from cronium_worker.engine.device import block_device


class Sysfs:
    """With a disk that is called like a device node that every machine has."""

    def __init__(self, root: Path) -> None:
        self.root = root / "sys"
        self.number = f"{os.major(root.stat().st_dev)}:{os.minor(root.stat().st_dev)}"
        self.links = self.root / "dev" / "block"
        self.links.mkdir(parents=True)

    def add(self, path: str) -> Path:
        device = self.root / "devices" / path
        device.mkdir(parents=True)
        self.links.joinpath(self.number).symlink_to(device)
        return device


@pytest.fixture
def sysfs(tmp_path: Path) -> Sysfs:
    return Sysfs(tmp_path)


def test_a_whole_disk_is_itself(sysfs: Sysfs, tmp_path: Path) -> None:
    sysfs.add("pci0/null")

    assert block_device(tmp_path, sysfs=sysfs.root) == "/dev/null"


def test_a_partition_stands_for_its_disk(sysfs: Sysfs, tmp_path: Path) -> None:
    sysfs.add("pci0/null/null1").joinpath("partition").write_text("1\n")

    assert block_device(tmp_path, sysfs=sysfs.root) == "/dev/null"


def test_a_file_system_without_a_disk_has_none(sysfs: Sysfs, tmp_path: Path) -> None:
    assert block_device(tmp_path, sysfs=sysfs.root) is None


def test_a_disk_without_a_node_is_none(sysfs: Sysfs, tmp_path: Path) -> None:
    sysfs.add("pci0/no-such-disk")

    assert block_device(tmp_path, sysfs=sysfs.root) is None


def test_a_directory_below_is_on_the_same_disk(sysfs: Sysfs, tmp_path: Path) -> None:
    sysfs.add("null")
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)

    assert block_device(below, sysfs=sysfs.root) == "/dev/null"


def test_memory_has_no_disk_on_the_real_machine() -> None:
    assert block_device(Path("/proc")) is None
