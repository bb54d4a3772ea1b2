"""Counting what is in a workspace, whatever is in it and whatever happens to it meanwhile."""

import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cronium_worker.workspace import Workspace, usage
from cronium_worker.workspace.usage import Tally, Tangled, Usage
from tests.unit.workspace.trees import chain, descriptors, fill

MIB = 2**20
BLOCK = 4096


def count(workspace: Workspace) -> Usage:
    return Tally(workspace).run()


def write(path: Path, size: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    return path


def test_an_empty_workspace_is_nothing(workspace: Workspace) -> None:
    assert count(workspace) == Usage(0, 0)


def test_everything_that_a_job_may_write_counts_and_nothing_else(workspace: Workspace) -> None:
    for directory in (workspace.data, workspace.output, workspace.tmp, workspace.scratch):
        write(directory / "sub" / "file", MIB)
    write(workspace.scripts / "main.sh", MIB)
    write(workspace.control / "start", MIB)

    found = count(workspace)

    assert found.inodes == 8
    assert 4 * MIB <= found.bytes <= 4 * (MIB + 2 * BLOCK)


def test_blocks_count_not_sizes(workspace: Workspace) -> None:
    with (workspace.tmp / "sparse").open("wb") as file:
        file.truncate(2**40)
    with (workspace.tmp / "preallocated").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, 4 * MIB)
        file.truncate(1)
        os.posix_fallocate(file.fileno(), 0, 4 * MIB)

    found = count(workspace)

    assert 4 * MIB <= found.bytes < 5 * MIB


def test_a_file_of_many_names_takes_its_space_once_and_its_names_count(workspace: Workspace) -> None:
    first = write(workspace.output / "a" / "0", 8 * MIB)
    (workspace.output / "b").mkdir()
    for number in range(1, 100):
        os.link(first, workspace.output / ("b" if number % 2 else "a") / str(number))

    found = count(workspace)

    assert found.inodes == 102
    assert 8 * MIB - 100 * 512 <= found.bytes < 9 * MIB


def test_links_lead_nowhere(workspace: Workspace, tmp_path: Path) -> None:
    write(tmp_path / "outside" / "big", 4 * MIB)
    for directory in (workspace.tmp, workspace.scratch):
        (directory / "file").symlink_to(tmp_path / "outside" / "big")
        (directory / "directory").symlink_to(tmp_path / "outside")
        (directory / "loop").symlink_to(directory)
        os.mkfifo(directory / "fifo")

    found = count(workspace)

    assert found == Usage(found.bytes, 8)
    assert found.bytes < MIB


def test_other_mounts_are_not_entered(workspace: Workspace, mounted: Callable[..., None], tmp_path: Path) -> None:
    write(tmp_path / "outside" / "big", 4 * MIB)
    for name, arguments in {"memory": ["-t", "tmpfs", "none"], "same": ["--bind", str(tmp_path / "outside")]}.items():
        (workspace.tmp / name).mkdir()
        mounted(workspace.tmp / name, *arguments)
    write(workspace.tmp / "memory" / "big", 4 * MIB)

    assert count(workspace).bytes < MIB


@pytest.mark.parametrize("depth", [20, 3000, 10000])
def test_a_deep_tree_is_counted_to_its_end_with_few_descriptors(quick_workspace: Workspace, depth: int) -> None:
    chain(quick_workspace.output, depth, leaf=b"x" * MIB)
    before = descriptors()

    tally = Tally(quick_workspace)
    peak = max(descriptors() for _ in tally.steps())

    assert (tally.total.inodes, tally.total.whole) == (depth + 1, True)
    assert tally.total.bytes >= MIB
    assert peak - before <= 2 * 8 + 8
    assert descriptors() == before


def test_a_wide_tree_is_counted_in_small_steps_and_constant_memory(quick_workspace: Workspace) -> None:
    fill(quick_workspace.tmp, 50_000)
    tracemalloc.start()

    tally = Tally(quick_workspace)
    steps = sum(1 for _ in tally.steps())

    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert tally.total.inodes == 50_000
    assert steps >= 50_000 // 256
    assert peak < MIB


def test_many_directories_side_by_side_and_deep_take_bounded_memory(
    quick_workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage, "_PENDING_BYTES", MIB)
    chain(quick_workspace.tmp, 10)
    deep = quick_workspace.tmp / "/".join(10 * "d")
    for number in range(10_000):
        (deep / f"{number:0200}").mkdir()
    before = descriptors()
    tracemalloc.start()

    with pytest.raises(Tangled):
        count(quick_workspace)

    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3 * MIB
    assert descriptors() == before


def test_directories_side_by_side_in_the_upper_levels_are_no_names_to_remember(
    quick_workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage, "_PENDING_BYTES", 1000)
    for number in range(2000):
        (quick_workspace.tmp / "a" / f"{number:0200}").mkdir(parents=True)

    assert count(quick_workspace).inodes == 2001


def test_the_count_ends_when_it_is_enough(quick_workspace: Workspace) -> None:
    fill(quick_workspace.tmp, 10_000)

    found = Tally(quick_workspace, enough=lambda usage: usage.inodes > 1000).run()

    assert 1000 < found.inodes < 1600


def test_what_is_removed_under_way_is_no_fault(quick_workspace: Workspace) -> None:
    chain(quick_workspace.tmp, 300)
    fill(quick_workspace.tmp, 600)  # are all in the first buffer that is read of the directory
    (quick_workspace.output / "directory").mkdir()
    before = descriptors()

    tally = Tally(quick_workspace)
    steps = tally.steps()
    while tally.total.inodes < 256:
        next(steps)
    subprocess.run(["find", quick_workspace.tmp, "-mindepth", "1", "-delete"], check=True)
    for _ in steps:
        pass

    assert tally.total.inodes >= 600
    assert descriptors() == before


@pytest.mark.parametrize("level", [3, 100])
def test_a_directory_that_is_moved_under_way_leads_nowhere_else(quick_workspace: Workspace, level: int) -> None:
    """Moved to the top while what is deep in it is walked through."""
    root = quick_workspace.scratch
    chain(root / "data", 200)
    current = os.open(root / "data", os.O_RDONLY)
    for _ in range(200):
        below = os.open("d", os.O_RDONLY, dir_fd=current)
        os.close(current)
        current = below
    for number in range(1000):
        os.mknod(f"{number}", dir_fd=current)
    os.close(current)

    tally = Tally(quick_workspace)
    steps = tally.steps()
    while tally.total.inodes < 600:
        next(steps)
    (root / "data" / "/".join(level * "d")).rename(root / "moved")
    for _ in steps:
        pass

    assert tally.total.whole is (level < 8)
    assert tally.total.inodes <= 1200 + 200


@pytest.fixture
def holder(workspace: Workspace) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has two descriptors of a file without a name, and one of a file with a name."""
    program = f"""
import os, sys
nameless = open({str(workspace.tmp / "gone")!r}, "wb")
os.unlink(nameless.name)
nameless.write(bytes({4 * MIB})); nameless.flush()
os.dup(nameless.fileno())
named = open({str(workspace.tmp / "named")!r}, "wb")
elsewhere = open("/dev/shm/" + str(os.getpid()), "wb")
os.unlink(elsewhere.name)
elsewhere.write(bytes({4 * MIB})); elsewhere.flush()
print(flush=True)
sys.stdin.read()
"""
    command = [sys.executable, "-c", program]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process


def test_a_file_without_a_name_counts_once_while_it_is_open(
    workspace: Workspace, holder: subprocess.Popen[bytes]
) -> None:
    assert count(workspace).bytes < MIB

    found = Tally(workspace, processes=lambda: [holder.pid, 2**22 + 1]).run()

    assert 4 * MIB <= found.bytes < 5 * MIB
    assert found.inodes == 2


def test_no_more_descriptors_are_looked_at_than_agreed(
    workspace: Workspace, holder: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(usage, "_DESCRIPTORS", 1)

    assert not Tally(workspace, processes=lambda: [holder.pid]).run().whole


def test_a_worker_that_is_not_root_says_what_it_cannot_see(unprivileged: Path) -> None:
    from cronium_worker.workspace import create

    workspace = create(unprivileged, "job-1", uid=os.geteuid(), gid=os.getegid())
    write(workspace.tmp / "closed" / "file", MIB)
    (workspace.tmp / "closed").chmod(0)

    assert not count(workspace).whole


def test_a_workspace_that_is_gone_is_an_error(workspace: Workspace) -> None:
    before = descriptors()
    workspace.output.rmdir()

    with pytest.raises(FileNotFoundError):
        count(workspace)

    assert descriptors() == before
