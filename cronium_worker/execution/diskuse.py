"""What one running job has taken of the disk, its limits, and what is to be done about it."""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from cronium_worker.models import ErrorInfo
from cronium_worker.models.fields import MIB
from cronium_worker.workspace.directories import Workspace
from cronium_worker.workspace.space import Kind, Room
from cronium_worker.workspace.usage import Tally, Tangled, Usage

logger = logging.getLogger(__name__)

TICK_S = 0.25
REST = 3  # seconds of rest for each second of work
_EVERY_S, _QUIET_EVERY_S = 1.0, 4.0
# Who is that far over a limit, beside an eighth of it, is not asked to end: in the time that takes the disk fills.
_TOLERANCE_BYTES, _TOLERANCE_INODES = 16 * MIB, 1000
# What a job must have grown by to be the reason for a full disk.
GROWTH = {"disk": 16 * MIB, "inodes": 1000}


class Counters(Protocol):
    """What is seen of the job's processes (engine.stats)."""

    def processes(self) -> list[int]: ...

    def written_bytes(self) -> int: ...


@dataclass(frozen=True, kw_only=True)
class DiskLimits:
    """Of one job; `min_free_bytes` is what the file system must keep, whoever fills it."""

    bytes: int
    inodes: int
    min_free_bytes: int

    def exceeded_by(self, usage: Usage) -> bool:
        return usage.bytes > self.bytes or usage.inodes > self.inodes

    def far_exceeded_by(self, usage: Usage) -> bool:
        return (
            usage.bytes > self.bytes + self.bytes // 8 + _TOLERANCE_BYTES
            or usage.inodes > self.inodes + self.inodes // 8 + _TOLERANCE_INODES
        )


@dataclass(frozen=True, kw_only=True)
class Excess:
    """Why a job must end. `at_once`: without its grace. `tangled`: its directories cannot be counted. `room`: what
    the file system had left, when that is the reason."""

    limits: DiskLimits
    usage: Usage
    at_once: bool = False
    tangled: bool = False
    room: Room | None = None

    def info(self) -> ErrorInfo:
        limits, usage = self.limits, self.usage
        kind: Kind = "disk"
        limit = {"limit_bytes": limits.bytes}
        if self.room is not None:
            if self.room.free_bytes >= limits.min_free_bytes:
                kind, limit = "inodes", {"limit_inodes": limits.inodes}
            shortage = self.room.shortage(min_free_bytes=limits.min_free_bytes).partition(": ")[2]
            message = f"the host's disk ran full, and this job was filling it: {shortage}"
        elif usage.bytes > limits.bytes:
            message = f"out of disk space: {usage.bytes} bytes are used, the limit is {limits.bytes}"
        else:
            kind, limit = "inodes", {"limit_inodes": limits.inodes}
            counted = "directories too deep and too many to be counted" if self.tangled else f"{usage.inodes}"
            message = f"too many files and directories: {counted}, the limit is {limits.inodes}"
        details = {"limit": kind, **limit, "used_bytes": usage.bytes, "used_inodes": usage.inodes}
        return ErrorInfo(type="resource_limit", message=message, details=details)


def left_by(workspace: Workspace, limits: DiskLimits) -> Excess | None:
    """Whether a job that has ended has left more than it may. Raises OSError."""
    tally = Tally(workspace, enough=limits.far_exceeded_by)
    try:
        usage = tally.run()
    except Tangled:
        return Excess(limits=limits, usage=tally.total, tangled=True)
    return Excess(limits=limits, usage=usage) if limits.exceeded_by(usage) else None


class DiskUse:
    """One job's use of the disk while it runs. The watcher's thread calls what is not said to be others'.

    `excess`: why the job must end; None: it need not. `on_excess()`: that has changed.
    """

    def __init__(
        self, workspace: Workspace, limits: DiskLimits, *, counters: Counters, on_excess: Callable[[], None]
    ) -> None:
        self.workspace = workspace
        self.limits = limits
        self.excess: Excess | None = None
        self.due_s = time.monotonic() + TICK_S  # a short job has this process for itself
        self.walked_s = float("-inf")  # the beginning of the last walk that has ended (monotonic)
        self._counters = counters
        self._on_excess = on_excess
        self._step_lock = threading.Lock()
        self._closed = False
        self._usage = Usage()
        self._room: Room | None = None  # at the beginning of the last walk
        self._calm: tuple[Usage, Room] | None = None  # the last of both while the file system was not short of room
        self._walk: _Walk | None = None
        self._suspected = False
        self._every_s = _EVERY_S
        self._ended_s = self._took_s = 0.0
        self._written = 0

    def close(self) -> None:
        """For the job's own thread: no step is under way when this returns, and none follows."""
        with self._step_lock:
            self._closed = True
            if self._walk is not None:
                self._walk.steps.close()

    def step(self, now: float, room: Room | None) -> bool:
        """A millisecond's work, if a walk is under way or due. False: there was nothing to do."""
        with self._step_lock:
            if self._closed or (self._walk is None and now < self.due_s):
                return False
            if self._walk is None:
                tally = Tally(self.workspace, enough=self.limits.far_exceeded_by, processes=self._counters.processes)
                self._walk = _Walk(now, tally)
                self._room = room
            if self._step(self._walk):
                self._end(self._walk)
            return True

    def _step(self, walk: "_Walk") -> bool:
        """Whether it was the last one."""
        try:
            ended = walk.step()
        except Tangled:
            self._set(Excess(limits=self.limits, usage=walk.tally.total, at_once=True, tangled=True))
            return True
        except OSError as error:
            logger.warning("disk use not seen: %s", error.strerror, extra={"path": str(self.workspace.root)})
            return True
        usage = walk.tally.total
        exceeded = self.limits.exceeded_by(usage)
        # What is moved during a walk may be counted twice: only what a second walk finds as well is so.
        if exceeded and self._suspected:
            self._set(Excess(limits=self.limits, usage=usage, at_once=self.limits.far_exceeded_by(usage)))
        if ended:
            self._suspected = exceeded
        return ended

    def _set(self, excess: Excess) -> None:
        if self.excess is None or (excess.at_once and not self.excess.at_once):
            self.excess = excess
            self._on_excess()

    def _end(self, walk: "_Walk") -> None:
        walk.steps.close()
        self._walk = None
        self.walked_s, self._ended_s = walk.began_s, time.monotonic()
        self._took_s = self._ended_s - walk.began_s
        usage = walk.tally.total
        if usage == self._usage and usage.whole:
            self._every_s = min(2 * self._every_s, _QUIET_EVERY_S)
        else:
            self._every_s = _EVERY_S
        self._usage = usage
        if self._calm is None and self._room is not None:
            self._calm = usage, self._room
        if self._suspected:
            self.due_s = self._soonest_s if self.excess else self._ended_s
        else:
            self.due_s = self._ended_s + max(self._every_s, REST * self._took_s)

    @property
    def _soonest_s(self) -> float:
        return self._ended_s + max(TICK_S, self._took_s)

    def note_room(self, room: Room, *, short: bool) -> None:
        """Walk sooner when the file system is short of room, or has filled by a good part of what the job has left."""
        if not short and self._room is not None and self._walk is None:
            self._calm = self._usage, self._room
        if short or self._may_have_exceeded(room):
            self.due_s = min(self.due_s, self._soonest_s)

    def _may_have_exceeded(self, room: Room) -> bool:
        if self._room is None:
            return False
        left_bytes = max(0, self.limits.bytes - self._usage.bytes)
        left_inodes = max(0, self.limits.inodes - self._usage.inodes)
        return (
            4 * _filled(self._room, room, "disk") > left_bytes or 4 * _filled(self._room, room, "inodes") > left_inodes
        )

    # ---- when the file system itself runs full

    def growth(self, room: Room, kind: Kind, *, jobs: int) -> int:
        """What has come since the file system had room, in bytes or inodes; 0: nothing that could be the reason."""
        if self._calm is None:
            return 0
        usage, before = self._calm
        grown = self._usage.bytes - usage.bytes if kind == "disk" else self._usage.inodes - usage.inodes
        share = _filled(before, room, kind) // (4 * jobs)
        return grown if grown >= max(GROWTH[kind], share) else 0

    def note_written(self) -> None:
        self._written = self._counters.written_bytes()

    def written(self) -> int:
        """Bytes since `note_written`; 0: no more than everybody may."""
        written = self._counters.written_bytes() - self._written
        return written if written >= GROWTH["disk"] else 0

    def blame(self, room: Room) -> None:
        with self._step_lock:
            if not self._closed:
                self._set(Excess(limits=self.limits, usage=self._usage, at_once=True, room=room))


class _Walk:
    def __init__(self, began_s: float, tally: Tally) -> None:
        self.began_s = began_s
        self.tally = tally
        self.steps = tally.steps()

    def step(self) -> bool:
        """Whether it was the last one. Raises OSError, Tangled."""
        return next(self.steps, self) is self


def _filled(before: Room, now: Room, kind: Kind) -> int:
    """By how much a file system has less room than before."""
    if kind == "disk":
        return before.free_bytes - now.free_bytes
    return (before.inodes or 0) - (now.inodes or 0)
