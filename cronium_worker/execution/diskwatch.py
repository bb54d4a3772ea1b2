"""Watch what running jobs take of the disk: one thread for all jobs of this worker.

The file system's free space is one system call, asked four times a second. Each job's tree is walked through from time
to time: sooner when the file system has filled, later when nothing changes. Walks are made in steps of a millisecond,
in turns, with rests: no job's log and no other job's limit waits for the end of one with a million files.
"""

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from cronium_worker.execution.diskuse import GROWTH, REST, TICK_S, DiskUse
from cronium_worker.workspace.space import Kind, Room, room

logger = logging.getLogger(__name__)

_WAIT_FOR_WALKS_S = 2.0
_IDLE_S = 60.0
_NEXT_S = 1.0  # after one job was ended for a full disk, at the earliest


class DiskWatcher:
    """Watches jobs from any number of threads; its own thread is there while there are jobs, and for a minute more."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._jobs: list[DiskUse] = []
        self._thread: threading.Thread | None = None
        self._tick_at = 0.0
        self._room: Room | None = None
        self._short_since: float | None = None
        self._last: tuple[float, Kind, int] | None = None  # when a job was blamed, and what was free then

    @contextmanager
    def watch(self, job: DiskUse) -> Iterator[None]:
        with self._changed:
            self._jobs.append(job)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="disk watcher", daemon=True)
                self._thread.start()
            self._changed.notify()
        try:
            yield
        finally:
            with self._changed:
                self._jobs.remove(job)
            job.close()

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._jobs and not self._changed.wait_for(lambda: self._jobs, _IDLE_S):
                    self._thread = None
                    return
                jobs = tuple(self._jobs)
            try:
                pause_s = self._round(jobs)
            except Exception:  # without this thread no limit would hold
                logger.exception("the disk is not watched")
                pause_s = 1.0
            with self._changed:
                if self._jobs:
                    self._changed.wait(pause_s)

    def _round(self, jobs: Sequence[DiskUse]) -> float:
        """A step for each job that has one to make; returns how long to rest (seconds)."""
        began = time.monotonic()
        if began >= self._tick_at:
            self._tick_at = began + TICK_S
            self._look(jobs, began)
        busy = [job.step(began, self._room) for job in jobs]
        now = time.monotonic()
        if any(busy):
            return REST * (now - began)
        return max(0.0, min(self._tick_at, *(job.due_s for job in jobs)) - now)

    def _look(self, jobs: Sequence[DiskUse], now: float) -> None:
        """At the file system: the workspaces of a host are all on one."""
        self._room = found = room(jobs[0].workspace.root.parent)
        if found is None:
            return
        kind = found.short_of(min_free_bytes=jobs[0].limits.min_free_bytes)
        for job in jobs:
            job.note_room(found, short=kind is not None)
        if kind is None:
            self._short_since = self._last = None
        elif self._short_since is None:
            self._short_since = now
            for job in jobs:
                job.note_written()
        else:
            self._make_room([job for job in jobs if job.excess is None or not job.excess.at_once], found, kind, now)

    def _make_room(self, jobs: Sequence[DiskUse], found: Room, kind: Kind, now: float) -> None:
        """End the job that fills the file system; the next one only if it goes on filling."""
        free = found.free_bytes if kind == "disk" else found.inodes or 0
        if self._last is not None and self._last[1] == kind:
            at, _, left = self._last
            if now < at + _NEXT_S:
                self._last = at, kind, free  # the one that was ended may write until it is
                return
            if free > left - GROWTH[kind]:
                return
        since = self._short_since or now
        seen = [job for job in jobs if job.walked_s >= since]
        if len(seen) < len(jobs) and now < since + _WAIT_FOR_WALKS_S:
            return
        growth = {job: job.growth(found, kind, jobs=len(jobs)) for job in seen}
        if not any(growth.values()) and kind == "disk":
            # What no walk finds has been written all the same: deleted files that are mapped, trees that change.
            growth = {job: job.written() for job in jobs}
        if any(growth.values()):
            job = max(growth, key=lambda job: growth[job])
            logger.warning("the disk is nearly full: a job is ended that fills it", extra={"free": free})
            job.blame(found)
            self._last = now, kind, free
            self._short_since = now
