"""How much of the disk a job has taken, while it runs: a walk through trees that it changes under the walker's feet.

What counts: the blocks that files and directories have (a sparse file has none for its holes), and the names in the
job's directories. A file of n names is counted as an nth by each of them: no list of what was seen is needed. Every
name counts as an inode, so that hard links cannot make a walk endless.
"""

import os
import random
import stat
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import NamedTuple

from cronium_worker.models.fields import MIB
from cronium_worker.workspace.directories import MOUNT_POINTS, OF_THE_JOB, VOLUMES, Workspace
from cronium_worker.workspace.walk import closing, mount_id, open_directory

_BLOCK_BYTES = 512  # of st_blocks, whatever the file system's own blocks are (stat(2))
_STEP = 256  # names between two yields: about a millisecond
_HELD_LEVELS = 8  # directories that are kept open on the way down, at two descriptors each
# Of the names of directories that are still to be walked through, below the held levels. A Python object and a list's
# slot are added for each, and a list for each level.
_PENDING_BYTES = 32 * MIB
_NAME_BYTES, _LEVEL_BYTES = 64, 256
_DESCRIPTORS = 50_000


class Usage(NamedTuple):
    """What a job has on the disk. `whole`: nothing is known to have been missed."""

    bytes: int = 0
    inodes: int = 0
    whole: bool = True


class Tangled(Exception):
    """Directories too deep and too many at once to be walked through in bounded memory."""


class Tally:
    """Counts a workspace step by step; `total` is what was counted so far.

    `enough(total)`: whether there is no need to count on. `processes()`: the job's processes as the host sees them;
    files that they hold open without a name are counted as well, 50,000 descriptors in an order that is another one
    each time.
    """

    def __init__(
        self,
        workspace: Workspace,
        *,
        enough: Callable[[Usage], bool] = lambda _: False,
        processes: Callable[[], Iterable[int]] = tuple,
    ) -> None:
        self._workspace = workspace
        self._enough = enough
        self._processes = processes
        self._bytes = self._names = 0
        self._whole = True
        self._device = self._mount = 0
        self._pending_bytes = 0

    @property
    def total(self) -> Usage:
        return Usage(max(0, self._bytes), max(0, self._names), self._whole)

    def run(self) -> Usage:
        """Count to the end, without a pause. Raises OSError, Tangled."""
        for _ in self.steps():
            pass
        return self.total

    def steps(self) -> Generator[None, None, None]:
        """Each `next` goes on for about a millisecond. Raises OSError, Tangled."""
        for _ in self._all():
            yield
            if self._enough(self.total):
                return

    def _all(self) -> Iterator[None]:
        with closing(open_directory(os.fspath(self._workspace.root))) as root:
            self._device = os.fstat(root).st_dev
            # The scratch directory first, so that what is allowed for comes before what is found.
            names = sorted(OF_THE_JOB, key=lambda name: name != "scratch")
            names += {VOLUMES} & {entry.name for entry in os.scandir(root)}
            for name in names:
                top = open_directory(name, dir_fd=root)
                self._mount = mount_id(top)
                self._allow(os.fstat(top), mount_points=_mount_points(name, top))
                yield from self._walk(top)
        yield
        yield from self._nameless()

    def _allow(self, top: os.stat_result, *, mount_points: int) -> None:
        """What an empty workspace has is nothing of the job's."""
        empty = min(top.st_blocks * _BLOCK_BYTES, top.st_blksize)
        self._bytes += top.st_blocks * _BLOCK_BYTES - empty * (1 + mount_points)
        self._names -= mount_points

    def _walk(self, top: int) -> Iterator[None]:
        """The upper levels by open directories: wherever they are moved, each is read to its end. Closes `top`."""
        with ExitStack() as stack:
            levels = [_Level(top)]
            stack.callback(_close, levels)
            while levels:
                entry = next(levels[-1].entries, None)
                if entry is None:
                    levels.pop().close()
                    continue
                directory = levels[-1].directory
                below = self._enter(entry.name, directory) if self._count(entry, directory) else None
                if below is not None and len(levels) < _HELD_LEVELS:
                    levels.append(_Level(below))
                elif below is not None:
                    yield from self._walk_deep(below)
                if not self._names % _STEP:
                    yield

    def _walk_deep(self, here: int) -> Iterator[None]:
        """The levels below, in one descriptor: up again by `..`, which must lead to where it came from. Closes
        `here`."""
        self._pending_bytes = 0
        try:
            levels = [(yield from self._list(here))]
            while levels:
                names = levels[-1][1]
                if names:
                    name = names.pop()
                    self._pending_bytes -= len(name) + _NAME_BYTES
                    if (below := self._enter(name, here)) is not None:
                        os.close(here)
                        here = below
                        levels.append((yield from self._list(here)))
                    continue
                levels.pop()
                self._pending_bytes -= _LEVEL_BYTES
                if levels:
                    above = open_directory("..", dir_fd=here)
                    os.close(here)
                    here = above
                    if os.fstat(here).st_ino != levels[-1][0]:
                        self._whole = False  # it was moved: where the rest is now, nobody knows
                        return
        finally:
            os.close(here)

    def _list(self, directory: int) -> Generator[None, None, tuple[int, list[bytes]]]:
        """Count what is in a directory. Its own inode, and the names of the directories in it."""
        names = []
        self._pending_bytes += _LEVEL_BYTES
        with os.scandir(directory) as entries:
            for entry in entries:
                if self._count(entry, directory):
                    names.append(os.fsencode(entry.name))
                    self._pending_bytes += len(names[-1]) + _NAME_BYTES
                    if self._pending_bytes > _PENDING_BYTES:
                        raise Tangled
                if not self._names % _STEP:
                    yield
        return os.fstat(directory).st_ino, names

    def _count(self, entry: "os.DirEntry[str]", parent: int) -> bool:
        """Whether it is a directory to be walked through."""
        self._names += 1
        try:
            status = entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            return False
        if stat.S_ISDIR(status.st_mode):
            self._bytes += status.st_blocks * _BLOCK_BYTES
            # The name of a mount point is listed with the number of what is below the mount. But btrfs has devices and
            # numbers of their own for subvolumes, which anybody may make.
            usual = status.st_dev == self._device and status.st_ino == entry.inode()
            return usual or self._is_on_this_mount(entry.name, parent)
        self._bytes += status.st_blocks * _BLOCK_BYTES // max(1, status.st_nlink)
        return False

    def _enter(self, name: str | bytes, parent: int) -> int | None:
        """None: there is no directory by this name any more, or it is closed to the worker."""
        try:
            return open_directory(name, dir_fd=parent)
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            self._whole = False
            return None

    def _is_on_this_mount(self, name: str, parent: int) -> bool:
        directory = self._enter(name, parent)
        if directory is None:
            return False
        with closing(directory):
            return mount_id(directory) == self._mount

    def _nameless(self) -> Iterator[None]:
        """Files that were unlinked and are still open."""
        seen: set[int] = set()
        left = _DESCRIPTORS
        processes = list(self._processes())
        random.shuffle(processes)
        for process in processes:
            directory = Path(f"/proc/{process}/fd")
            try:
                descriptors = os.listdir(directory)  # noqa: PTH208 - the names alone
            except OSError:  # it has ended
                continue
            random.shuffle(descriptors)
            for descriptor in descriptors:
                with suppress(OSError):
                    self._add_nameless((directory / descriptor).stat(), seen)
                left -= 1
                if not left:
                    self._whole = False
                    return
                if not left % _STEP:
                    yield

    def _add_nameless(self, status: os.stat_result, seen: set[int]) -> None:
        ours = status.st_dev == self._device and stat.S_ISREG(status.st_mode)
        if ours and not status.st_nlink and status.st_ino not in seen:
            seen.add(status.st_ino)
            self._bytes += status.st_blocks * _BLOCK_BYTES
            self._names += 1


def _mount_points(name: str, top: int) -> int:
    """How many of the directories in one of the job's own were made by the worker."""
    if name == VOLUMES:
        return sum(1 for _ in os.scandir(top))
    return len(MOUNT_POINTS) if name == "scratch" else 0


class _Level:
    """A directory that is open, and what is still to be read of it."""

    def __init__(self, directory: int) -> None:
        self.directory = directory
        try:
            self.entries = os.scandir(directory)
        except OSError:
            os.close(directory)
            raise

    def close(self) -> None:
        self.entries.close()
        os.close(self.directory)


def _close(levels: list[_Level]) -> None:
    for level in levels:
        level.close()
