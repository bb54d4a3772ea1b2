"""Sandboxes that wait at their gates, so that a job starts in a millisecond: each is used for one job, then destroyed.

One keeper thread decides, by what jobs came lately, what is made and what is let go. Jobs go first: nothing is made
here while a job's own sandbox is being made, since the engine makes no more at once than it has cores.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from cronium_worker import metrics
from cronium_worker.engine.images import Pulled
from cronium_worker.errors import Fault
from cronium_worker.execution.admission import Admission, Share, Ticket
from cronium_worker.execution.demand import Demand, shares
from cronium_worker.execution.reaper import Reaper
from cronium_worker.execution.sandbox import Host, Kind, Sandbox, kind_of
from cronium_worker.models import Job

logger = logging.getLogger(__name__)

_LOOK_EVERY_S = 5.0  # at what waits, and at the images
_AFTER_HIT_S = 0.1  # many a job has ended by then: it has the host for itself
_PAUSES_S = (1.0, 30.0)  # after a sandbox could not be made: the first, the longest
# Of the host's cores, to make one. With two, an engine starts 4.5 to 5.5 containers a second 2 at once, 5.5 to 6.1 a
# second 4 at once, 6.4 to 7.1 a second 8 at once.
_START = Share(millicores=250, memory=0)
_MIN_AVAILABLE = 0.1  # of the host's memory


@dataclass(frozen=True, kw_only=True)
class PoolCount:
    """Of sandboxes: those that wait, and those that are being destroyed; since the worker's start, the jobs that found
    one and those that did not, and for how long (seconds) those that were found had waited, in all."""

    waiting: int
    leaving: int
    hits: int
    misses: int
    age_s: float


class Pool:
    """Where jobs get their sandboxes, and where these end. Safe for threads. `standing()`: the kinds that are kept
    whether jobs come or not, by this moment's images; may raise Fault. Nothing is made in advance before `start()`."""

    def __init__(self, host: Host, *, standing: Callable[[], Sequence[Kind]] = list) -> None:
        self._host = host
        self._reaper = Reaper()
        self._standing_kinds = standing
        self._size = host.settings.pool.size
        self._minimum = host.settings.pool.minimum
        self._changed = threading.Condition()
        self._waiting: list[tuple[float, Kind, Sandbox]] = []  # the oldest first
        self._making: list[Kind] = []
        self._demand: dict[Kind, Demand] = {}
        self._standing: Sequence[Kind] = ()
        self._jobs_making = 0
        self._hits = self._misses = 0
        self._age_s = 0.0
        self._look_at = self._resume_at = 0.0
        self._pause_s = _PAUSES_S[0]
        self._closed = self._size == 0
        self._starts = Admission(Share(1000 * (os.cpu_count() or 1), 0))
        self._makers = ThreadPoolExecutor(os.cpu_count() or 1, thread_name_prefix="pool")
        self._keeper = threading.Thread(target=self._run, name="pool", daemon=True)

    def start(self) -> None:
        if not self._closed:
            self._keeper.start()

    def close(self) -> None:
        """After the last job: let go of all that wait, and wait until nothing is left."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._keeper.ident is not None:
            self._keeper.join()
        self._makers.shutdown()
        self._let_go(self._pop(lambda _: True))
        self._reaper.close()

    def get(self, job: Job, *, attempt: int, image: Pulled, ticket: Ticket) -> Sandbox | None:
        """One that has waited for such a job, or one that is made for it when it is its turn; None: it was told to end,
        or to be left, before. `job`: with the fleet's defaults. Raises Fault."""
        kind = kind_of(job, image, self._host.settings.defaults) if self._size else None
        if kind is None:
            metrics.pool_jobs.labels(job.script.type, "own").inc()
        while kind is not None and (waiting := self._take(kind)) is not None:
            try:
                waiting.assign(job, attempt=attempt)
                self._reaper.soon(partial(self._after_hit, waiting, job, attempt))
                return waiting
            except Fault as fault:
                logger.warning("a sandbox that waited is of no use: %s", str(fault))
                self.destroy(waiting.destroy)
        with self._making_for_job(ticket) as is_its_turn:
            return Sandbox.create(self._host, job=job, attempt=attempt, image=image) if is_its_turn else None

    def destroy(self, destroy: Callable[[], None]) -> None:
        """Behind the caller's back, as far as the engine keeps up."""
        self._reaper.destroy(destroy)

    def _take(self, kind: Kind) -> Sandbox | None:
        """One that waits, which is the caller's from now on; None: there is none."""
        with self._changed:
            now = time.monotonic()
            self._demand.setdefault(kind, Demand()).note(now)
            taken, broken = None, []
            for entry in [entry for entry in self._waiting if entry[1] == kind]:
                self._waiting.remove(entry)
                if entry[2].waits():
                    taken = entry
                    break
                broken.append(entry[2])
            if taken is None:
                self._misses += 1
                metrics.pool_jobs.labels(kind.script_type, "miss").inc()
            else:
                self._hits += 1
                metrics.pool_jobs.labels(kind.script_type, "hit").inc()
                metrics.pool_age.observe(now - taken[0])
                self._resume_at = max(self._resume_at, now + _AFTER_HIT_S)
                self._age_s += now - taken[0]
        self._let_go(broken)
        return taken[2] if taken else None

    def _after_hit(self, sandbox: Sandbox, job: Job, attempt: int) -> None:
        """What the job, which has this process for itself until then, does not wait for."""
        sandbox.rename(job, attempt=attempt)
        with self._changed:
            self._changed.notify()

    @contextmanager
    def _making_for_job(self, ticket: Ticket) -> Iterator[bool]:
        with self._changed:
            self._jobs_making += 1
        is_its_turn = False
        try:
            is_its_turn = self._starts.enter(_START, ticket)
            yield is_its_turn
        finally:
            if is_its_turn:
                self._starts.leave(_START)
            with self._changed:
                self._jobs_making -= 1
                self._changed.notify()

    def count(self) -> PoolCount:
        with self._changed:
            return PoolCount(
                waiting=len(self._waiting),
                leaving=self._reaper.pending,
                hits=self._hits,
                misses=self._misses,
                age_s=round(self._age_s, 3),
            )

    # ---- the keeper

    def _run(self) -> None:
        while not self._closed:
            try:
                self._turn()
            except Exception:  # without this thread every job would wait for its sandbox
                logger.exception("the pool is not kept")
                time.sleep(_PAUSES_S[0])

    def _turn(self) -> None:
        """See to what has changed, then wait for the next change."""
        if time.monotonic() >= self._look_at:
            self._look()
        is_short = _memory_is_short()
        with self._changed:
            surplus = self._adjust({} if is_short else self._targets(time.monotonic()))
            if not surplus and not self._closed:
                due = self._resume_at if self._resume_at > time.monotonic() else self._look_at
                self._changed.wait(max(0.0, min(due - time.monotonic(), _LOOK_EVERY_S)))
        self._let_go(surplus)

    def _look(self) -> None:
        """At the images of this moment, and at what has waited: an engine that was restarted has ended it."""
        self._look_at = time.monotonic() + _LOOK_EVERY_S
        try:
            standing = self._standing_kinds()
        except Fault:
            return  # the engine is away
        with self._changed:
            self._standing = standing
        self._let_go(self._pop(lambda entry: not entry[2].waits()))

    def _targets(self, now: float) -> dict[Kind, int]:
        """How many of each kind should wait: those that were asked for last first, and no more in all than may."""
        current = {(kind.script_type, kind.image): kind.image_id for kind in self._standing}
        self._demand = {kind: demand for kind, demand in self._demand.items() if demand.peak(now)}
        wanted = {
            kind: demand.peak(now)
            for kind, demand in self._demand.items()
            if current.get((kind.script_type, kind.image), kind.image_id) == kind.image_id
        }
        for kind in self._standing:
            wanted[kind] = max(self._minimum, wanted.get(kind, 0))
        lately = {kind: demand.last_s for kind, demand in self._demand.items()}
        ordered = sorted(wanted, key=lambda kind: lately.get(kind, 0.0), reverse=True)
        return shares({kind: wanted[kind] for kind in ordered}, self._size)

    def _adjust(self, targets: Mapping[Kind, int]) -> list[Sandbox]:
        """Start making what is missing. Returns what is too much, which nobody is given any more."""
        kept: dict[Kind, int] = {}

        def is_surplus(entry: tuple[float, Kind, Sandbox]) -> bool:
            kept[entry[1]] = kept.get(entry[1], 0) + 1
            return kept[entry[1]] > targets.get(entry[1], 0)

        surplus = self._pop(is_surplus)
        while not self._closed and self._may_make() and (kind := self._most_wanted(targets)) is not None:
            self._making.append(kind)
            self._makers.submit(self._make, kind)
        return surplus

    def _may_make(self) -> bool:
        is_busy = self._jobs_making or len(self._making) >= (os.cpu_count() or 1)
        return not is_busy and time.monotonic() >= self._resume_at

    def _most_wanted(self, targets: Mapping[Kind, int]) -> Kind | None:
        """The kind of which most are missing; None: there are enough."""
        there = [kind for _, kind, _ in self._waiting] + self._making
        missing = {kind: target - there.count(kind) for kind, target in targets.items()}
        kind = max(missing, key=lambda kind: missing[kind], default=None)
        return kind if kind is not None and missing[kind] > 0 else None

    def _make(self, kind: Kind) -> None:
        sandbox = None
        try:
            sandbox = Sandbox.prepare(self._host, kind)
        except Fault as fault:
            logger.warning("no sandbox made in advance: %s", str(fault))
        except Exception:
            logger.exception("no sandbox made in advance")
        with self._changed:
            self._making.remove(kind)
            if sandbox is None:
                metrics.pool_failures.inc()
                self._resume_at = time.monotonic() + self._pause_s
                self._pause_s = min(2 * self._pause_s, _PAUSES_S[1])
            else:
                self._pause_s = _PAUSES_S[0]
                self._waiting.append((time.monotonic(), kind, sandbox))
            self._changed.notify()

    def _pop(self, chosen: Callable[[tuple[float, Kind, Sandbox]], bool]) -> list[Sandbox]:
        with self._changed:
            popped = [entry for entry in self._waiting if chosen(entry)]
            self._waiting = [entry for entry in self._waiting if entry not in popped]
            return [sandbox for _, _, sandbox in popped]

    def _let_go(self, sandboxes: Sequence[Sandbox]) -> None:
        for sandbox in sandboxes:
            self._reaper.destroy(sandbox.destroy)


def _memory_is_short() -> bool:
    """See proc_meminfo(5)."""
    with open("/proc/meminfo") as lines:  # noqa: PTH123
        amounts = {line.split(":")[0]: int(line.split()[1]) for line in lines if line.startswith("Mem")}
    return amounts["MemAvailable"] < _MIN_AVAILABLE * amounts["MemTotal"]
