"""The watcher of the jobs' disk use, on trees and on a small file system of its own; no containers."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from cronium_worker.execution import diskuse, diskwatch
from cronium_worker.execution.diskuse import DiskLimits, DiskUse, Excess, left_by
from cronium_worker.execution.diskwatch import DiskWatcher
from cronium_worker.workspace import Workspace, create
from cronium_worker.workspace.space import Room
from cronium_worker.workspace.usage import Tally, Tangled, Usage
from tests.conftest import wait_until
from tests.mounts import mounts_below
from tests.unit.workspace.trees import descriptors

MIB = 2**20
LIMITS = DiskLimits(bytes=10 * MIB, inodes=100, min_free_bytes=0)


class Processes:
    """Of a job that is played by the test."""

    written = 0

    def processes(self) -> list[int]:
        return []

    def written_bytes(self) -> int:
        return self.written


class Job:
    def __init__(self, workspace: Workspace, limits: DiskLimits) -> None:
        self.workspace = workspace
        self.processes = Processes()
        self.woken = threading.Event()
        self.use = DiskUse(workspace, limits, counters=self.processes, on_excess=self.woken.set)

    def write(self, mebibytes: int, name: str = "big") -> None:
        (self.workspace.tmp / name).write_bytes(bytes(mebibytes * MIB))

    def make(self, files: int) -> None:
        for number in range(files):
            (self.workspace.tmp / str(number)).touch()

    def excess(self, *, within_s: float = 5) -> Excess:
        assert self.woken.wait(within_s), "not noticed"
        assert self.use.excess is not None
        return self.use.excess


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    directory = tmp_path / "disk"
    directory.mkdir()
    with mounts_below(directory) as mount:
        mount(directory, "-t", "tmpfs", "-o", "size=256m,nr_inodes=20k", "none")
        yield directory


def wait_for_the_end_of_the_watch() -> None:
    wait_until(lambda: "disk watcher" not in [thread.name for thread in threading.enumerate()], what="its end")


@pytest.fixture
def watcher(monkeypatch: pytest.MonkeyPatch) -> Iterator[DiskWatcher]:
    """Its thread does not stay: while there is one, another test cannot see the end of its own."""
    monkeypatch.setattr(diskwatch, "_IDLE_S", 0.1)
    yield DiskWatcher()
    wait_for_the_end_of_the_watch()


@pytest.fixture
def start(watcher: DiskWatcher, small_disk: Path) -> Iterator[Callable[..., Job]]:
    """Jobs that are watched until the end of the test. No thread and no descriptor is left."""
    before = descriptors()
    with ExitStack() as stack:

        def begin(limits: DiskLimits = LIMITS, **changed: Any) -> Job:
            workspace = create(small_disk, f"job-{time.monotonic_ns()}", uid=os.geteuid(), gid=os.getegid())
            job = Job(workspace, DiskLimits(**{**vars(limits), **changed}))
            stack.enter_context(watcher.watch(job.use))
            wait_until(lambda: job.use.walked_s > 0, what="the first walk")
            return job

        yield begin
    wait_for_the_end_of_the_watch()
    assert descriptors() == before


def test_bytes_over_the_limit_are_noticed_soon_and_only_of_that_job(start: Callable[..., Job]) -> None:
    job, other = start(), start()
    job.write(11)
    began = time.monotonic()

    excess = job.excess()

    assert time.monotonic() - began < 1.5
    assert (excess.at_once, excess.usage.bytes) == (False, 11 * MIB)
    info = excess.info()
    assert (info.type, info.details["limit"]) == ("resource_limit", "disk")
    assert info.details == {"limit": "disk", "limit_bytes": 10 * MIB, "used_bytes": 11 * MIB, "used_inodes": 1}
    assert other.use.excess is None


def test_files_over_the_limit_are_noticed(start: Callable[..., Job]) -> None:
    job = start()
    job.make(101)

    info = job.excess().info()

    assert info.details == {"limit": "inodes", "limit_inodes": 100, "used_bytes": 0, "used_inodes": 101}
    assert info.message == "too many files and directories: 101, the limit is 100"


def test_who_is_far_over_the_limit_must_go_at_once(start: Callable[..., Job]) -> None:
    job = start()
    job.write(11)
    assert not job.excess().at_once
    job.woken.clear()
    job.write(30)

    assert job.excess().at_once


def test_just_the_limit_is_not_over_it(start: Callable[..., Job]) -> None:
    job = start()
    job.write(10)
    job.make(99)
    began = time.monotonic()
    wait_until(lambda: job.use.walked_s > began, what="a walk")

    assert job.use.excess is None


def test_what_only_one_walk_finds_is_not_believed(start: Callable[..., Job], monkeypatch: pytest.MonkeyPatch) -> None:
    """A directory that is moved during a walk may be counted twice."""
    monkeypatch.setattr(diskuse, "_EVERY_S", 0.1)
    job = start()
    counts = iter([20 * MIB, 6 * MIB, 20 * MIB, 6 * MIB])
    walks = []

    def steps(tally: Tally) -> Iterator[None]:
        tally._bytes = next(counts, 6 * MIB)
        walks.append(tally)
        yield

    monkeypatch.setattr(Tally, "steps", steps)
    wait_until(lambda: len(walks) > 5, timeout_s=30, what="walks")

    assert job.use.excess is None


def test_a_job_that_does_nothing_is_looked_at_less_often(
    start: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(diskuse, "_EVERY_S", 0.1)
    monkeypatch.setattr(diskuse, "_QUIET_EVERY_S", 0.4)
    job = start()
    times = []
    for _ in range(4):
        last = job.use.walked_s
        wait_until(lambda last=last: job.use.walked_s > last, what="a walk")
        times.append(job.use.walked_s)

    assert times[3] - times[2] >= 0.4
    job.write(1)
    wait_until(lambda: job.use.walked_s > times[3], what="a walk")
    last = job.use.walked_s
    wait_until(lambda: job.use.walked_s > last, what="the next")
    assert job.use.walked_s - last < 0.4


def test_a_small_job_does_not_wait_for_the_walk_through_a_large_one(
    start: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = start()
    large = start()
    endless = threading.Event()

    def steps(tally: Tally) -> Iterator[None]:
        if tally._workspace == large.workspace:
            while not endless.is_set():
                time.sleep(0.001)
                yield
        yield from original(tally)

    original = Tally.steps
    monkeypatch.setattr(Tally, "steps", steps)
    large.use.due_s = 0
    small.write(11)

    small.excess(within_s=3)
    endless.set()


def test_a_fault_of_one_walk_is_not_the_end_of_the_watch(start: Callable[..., Job]) -> None:
    job, other = start(), start()
    job.workspace.root.rename(job.workspace.root.with_name("moved"))
    began = time.monotonic()
    wait_until(lambda: job.use.walked_s > began, what="a walk that fails")
    job.workspace.root.with_name("moved").rename(job.workspace.root)
    job.write(11)
    other.write(11)

    job.excess(within_s=6)
    other.excess()


def test_directories_that_cannot_be_counted_are_too_many(
    start: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    def steps(tally: Tally) -> Iterator[None]:
        yield
        raise Tangled

    job = start()
    monkeypatch.setattr(Tally, "steps", steps)
    job.use.due_s = 0

    excess = job.excess()

    assert excess.at_once
    assert excess.info().details["limit"] == "inodes"
    assert "too deep and too many" in excess.info().message


def test_nothing_is_looked_at_after_the_job(watcher: DiskWatcher, small_disk: Path) -> None:
    job = Job(create(small_disk, "job", uid=os.geteuid(), gid=os.getegid()), LIMITS)
    with watcher.watch(job.use):
        wait_until(lambda: job.use.walked_s > 0, what="the first walk")
    job.write(11)

    assert not job.use.step(time.monotonic() + 100, None)
    assert job.use.excess is None


# ---- the file system itself


def test_the_job_that_fills_the_file_system_is_named(start: Callable[..., Job]) -> None:
    job, other = (start(bytes=2**40, min_free_bytes=100 * MIB) for _ in range(2))
    other.write(10)
    job.write(160)

    excess = job.excess()

    assert excess.at_once
    assert excess.room is not None
    info = excess.info()
    assert info.details["limit"] == "disk"
    assert info.message.startswith("the host's disk ran full, and this job was filling it: ")
    assert other.use.excess is None


def test_the_next_one_is_named_only_if_the_file_system_goes_on_filling(start: Callable[..., Job]) -> None:
    first, second, third = (start(bytes=2**40, min_free_bytes=100 * MIB) for _ in range(3))
    second.write(40)
    third.write(30)
    first.write(100)
    first.excess()
    first.write(20, "on its way to its end")
    began = time.monotonic()
    wait_until(lambda: min(second.use.walked_s, third.use.walked_s) > began + 1.2, what="walks")
    assert second.use.excess is None

    third.write(2, "more")
    second.write(20, "more")

    second.excess()
    assert third.use.excess is None


def test_who_fills_the_inodes_is_named(start: Callable[..., Job]) -> None:
    job, other = (start(bytes=2**40, inodes=2**40) for _ in range(2))
    other.write(20)
    job.make(12_000)

    info = job.excess(within_s=10).info()

    assert info.details["limit"] == "inodes"
    assert "inodes are free" in info.message
    assert other.use.excess is None


def test_no_job_is_named_when_others_fill_the_file_system(start: Callable[..., Job], small_disk: Path) -> None:
    job = start(bytes=2**40, min_free_bytes=100 * MIB)
    with (small_disk / "an image").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, 170 * MIB)
    job.write(17)
    began = time.monotonic()
    wait_until(lambda: job.use.walked_s > began + 2.5, what="walks")

    assert job.use.excess is None


def test_what_no_walk_finds_is_found_by_what_was_written(start: Callable[..., Job], small_disk: Path) -> None:
    job, other = (start(bytes=2**40, min_free_bytes=100 * MIB) for _ in range(2))
    other.processes.written = 10 * MIB
    with (small_disk / "hidden").open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, 170 * MIB)
    wait_until(lambda: job.use._room is not None and job.use._room.free_bytes < 100 * MIB, what="the shortage")
    other.processes.written += 15 * MIB
    began = time.monotonic()
    wait_until(lambda: other.use.walked_s > began + 0.6, what="walks")
    assert other.use.excess is None
    job.processes.written += 20 * MIB

    job.excess()
    assert other.use.excess is None


# ---- what was left


def test_what_a_job_has_left_is_measured_exactly(small_disk: Path) -> None:
    workspace = create(small_disk, "job", uid=os.geteuid(), gid=os.getegid())
    (workspace.output / "big").write_bytes(bytes(10 * MIB))
    assert left_by(workspace, LIMITS) is None
    (workspace.output / "more").write_bytes(b"x")

    found = left_by(workspace, LIMITS)

    assert found is not None
    assert found.usage == Usage(10 * MIB + 4096, 2)


@pytest.mark.parametrize(
    ("usage", "far"),
    [
        (Usage(10 * MIB + 1, 0), False),
        (Usage(11 * MIB + 262144 + 16 * MIB, 0), False),
        (Usage(11 * MIB + 262145 + 16 * MIB, 0), True),
        (Usage(0, 1112), False),
        (Usage(0, 1113), True),
    ],
)
def test_how_far_is_far(usage: Usage, far: bool) -> None:
    assert LIMITS.exceeded_by(usage)
    assert LIMITS.far_exceeded_by(usage) is far


def test_the_message_of_a_full_disk_has_no_path_of_the_host() -> None:
    excess = Excess(limits=LIMITS, usage=Usage(), room=Room(Path("/srv/secret"), 5, 5), at_once=True)

    assert excess.info().message.endswith(": 5 inodes are free, fewer than 10000")
    assert "/srv" not in excess.info().message
