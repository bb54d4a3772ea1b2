"""What a host has for its jobs, and who gets it: each job's cores and memory are reserved before its container is made,
and kept until it has ended."""

import bisect
import itertools
import select
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from cronium_worker.execution.signals import CancelToken, Wake
from cronium_worker.models import Resources

# A job that is one more important comes before those that have waited for so long. With that no job waits for ever:
# the order of two of them never changes.
PRIORITY_S = 60.0


class Share(NamedTuple):
    """Of a host: thousandths of a core, and bytes of memory."""

    millicores: int
    memory: int

    @classmethod
    def of(cls, resources: Resources) -> "Share":
        return cls(round(resources.cpu * 1000), resources.memory)

    def __str__(self) -> str:
        return f"{self.millicores / 1000:g} cores and {self.memory // 2**20} MiB"


class Ticket(NamedTuple):
    """Who asks, for the order of those that wait. `since_s`: when the job was queued, by a clock that all jobs have."""

    priority: int
    since_s: float
    token: CancelToken


@dataclass(order=True)
class _Waiting:
    rank: float
    number: int  # who has come first, of equals
    share: Share = field(compare=False)
    wake: Wake = field(compare=False, default_factory=Wake)
    admitted: bool = field(compare=False, default=False)


class Admission:
    """Safe for threads. `whole`: None is without limits. `on_crowded(bool)` is called when a job begins to wait, and
    when none waits any more: it must not block, nor call anything here.

    Strictly by rank: nobody passes a job that waits, so one that needs much gets it as the jobs before it end.
    """

    def __init__(self, whole: Share | None = None) -> None:
        self.whole = whole
        self.on_crowded: Callable[[bool], None] = lambda _: None
        self.reserved = Share(0, 0)
        self._waiting: list[_Waiting] = []
        self._crowded = False
        self._numbers = itertools.count()
        self._lock = threading.Lock()

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    def excess(self, share: Share) -> str:
        """Why this host can never run a job of that size; empty: it can."""
        whole = self.whole
        if whole is not None and share.millicores > whole.millicores:
            return f"resources.cpu: {share.millicores / 1000:g} is more than this host has for jobs ({whole})"
        if whole is not None and share.memory > whole.memory:
            return f"resources.memory: {share.memory} is more than this host has for jobs ({whole})"
        return ""

    def reserve(self, share: Share) -> None:
        """For a job that runs already."""
        with self._lock:
            self._add(share)

    def enter(self, share: Share, ticket: Ticket, *, on_wait: Callable[[str], object] = lambda _: None) -> bool:
        """Reserve a share when it is this job's turn. `on_wait` is told what it waits for, if it does. False: the job
        was told to end, or to be left, before."""
        with self._lock:
            if not self._waiting and self._fits(share):
                self._add(share)
                return True
            one = _Waiting(ticket.since_s - PRIORITY_S * ticket.priority, next(self._numbers), share)
            bisect.insort(self._waiting, one)
            self._admit()
            asked = f"waiting for {share}: {self._free()} of {self.whole} are free here, {len(self._waiting)} wait"
        try:
            if not one.admitted:
                on_wait(asked)
                self._wait(one, ticket.token)
        except BaseException:
            self._withdraw(one)
            raise
        finally:
            one.wake.close()
        if not one.admitted:
            self._withdraw(one)
        return one.admitted

    def leave(self, share: Share) -> None:
        """A job has ended that had this share."""
        with self._lock:
            self._add(share, -1)
            self._admit()

    def _wait(self, one: _Waiting, token: CancelToken) -> None:
        token.wakes(one.wake)
        try:
            while not (one.admitted or token.cancelled() or token.detached()):
                select.select([one.wake], [], [])
                one.wake.clear()
        finally:
            token.wakes(None)

    def _withdraw(self, one: _Waiting) -> None:
        with self._lock:
            if one.admitted:
                self._add(one.share, -1)
                one.admitted = False
            else:
                self._waiting.remove(one)
            self._admit()

    # ---- with the lock

    def _admit(self) -> None:
        while self._waiting and self._fits(self._waiting[0].share):
            one = self._waiting.pop(0)
            self._add(one.share)
            one.admitted = True
            one.wake.set()
        if self._crowded != bool(self._waiting):
            self._crowded = not self._crowded
            self.on_crowded(self._crowded)

    def _fits(self, share: Share) -> bool:
        free = self._free()
        return free is None or (share.millicores <= free.millicores and share.memory <= free.memory)

    def _free(self) -> Share | None:
        if self.whole is None:
            return None
        return Share(self.whole.millicores - self.reserved.millicores, self.whole.memory - self.reserved.memory)

    def _add(self, share: Share, times: int = 1) -> None:
        reserved = self.reserved
        self.reserved = Share(reserved.millicores + times * share.millicores, reserved.memory + times * share.memory)
