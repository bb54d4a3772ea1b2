"""A container's limits as the kernel's files have them, and the one file that is written."""

import logging
import sys
from pathlib import Path

import pytest

from cronium_worker.engine import cgroups
from cronium_worker.engine.cgroups import CpuBurst, limits

V1 = {
    "cpu/docker/c/cpu.cfs_quota_us": "50000\n",
    "memory/docker/c/memory.limit_in_bytes": "536870912\n",
    "pids/docker/c/pids.max": "256\n",
}
V2 = {
    "docker/c/cpu.max": "50000 100000\n",
    "docker/c/memory.max": "536870912\n",
    "docker/c/pids.max": "256\n",
}
GROUPS = {
    "v1": "3:pids:/docker/c\n2:memory:/docker/c\n1:cpu,cpuacct:/docker/c\n",
    "v2": "0::/docker/c\n",
}
ASKED = {"CpuQuota": 50_000, "Memory": 512 * 2**20, "PidsLimit": 256}


def read(path: Path, groups: str, files: dict[str, str]) -> dict[str, int]:
    """What is found under these files."""
    process = path / "proc" / "7"
    process.mkdir(parents=True)
    (process / "cgroup").write_text(GROUPS[groups])
    for name, text in files.items():
        file = path / "cgroup" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return limits(7, proc=path / "proc", cgroup_root=path / "cgroup")


@pytest.mark.parametrize(("groups", "files"), [("v1", V1), ("v2", V2)])
def test_limits_that_are_in_force(tmp_path: Path, groups: str, files: dict[str, str]) -> None:
    assert read(tmp_path, groups, files) == ASKED


@pytest.mark.parametrize(
    ("groups", "files"),
    [("v1", V1 | {"cpu/docker/c/cpu.cfs_quota_us": "-1\n"}), ("v2", V2 | {"docker/c/cpu.max": "max 100000\n"})],
)
def test_no_limit_is_more_than_any(tmp_path: Path, groups: str, files: dict[str, str]) -> None:
    assert read(tmp_path, groups, files) == ASKED | {"CpuQuota": sys.maxsize}


def test_what_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    assert read(tmp_path, "v2", {"docker/c/memory.max": "", "docker/c/pids.max": "256\n"}) == {"PidsLimit": 256}
    assert limits(8, proc=tmp_path / "proc") == {}


def burst_of(monkeypatch: pytest.MonkeyPatch, file: Path) -> CpuBurst:
    monkeypatch.setattr(cgroups, "cgroup_files", lambda *_: {"": file})
    return CpuBurst(7)


def test_a_burst_that_is_refused_is_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(CpuBurst, "refused", "")
    refused, allowed = tmp_path / "directory", tmp_path / "cpu.max.burst"
    refused.mkdir()
    allowed.write_text("0")
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            burst_of(monkeypatch, refused).set(0.5)
    assert CpuBurst.refused == "Is a directory"
    assert len(caplog.records) == 1
    assert str(refused) in caplog.text

    burst_of(monkeypatch, allowed).set(0.5)
    assert allowed.read_text() == "50000"
    assert CpuBurst.refused == ""


def test_a_kernel_without_burst_and_a_container_that_has_ended_refuse_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CpuBurst, "refused", "")
    missing = tmp_path / "cpu.max.burst"
    burst_of(monkeypatch, missing).set(0.5)
    assert not missing.exists()

    missing.write_text("0")
    burst = burst_of(monkeypatch, missing)
    missing.unlink()
    missing.parent.joinpath("x").mkdir()
    monkeypatch.setattr(Path, "write_text", _gone)
    burst.set(0.5)
    assert CpuBurst.refused == ""


def _gone(*_: object) -> None:
    raise OSError(19, "No such device")
