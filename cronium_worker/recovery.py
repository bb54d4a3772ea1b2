"""Looks after jobs that nobody may be looking after: messages that got lost, workers and hosts that are gone.

A message is only the call to look at a record, so one too many does no harm, and one that is missing is sent again.
A job is taken from its worker when that is gone for certain (its host's jobs node is another process by now), or
when its lease has lapsed and goes on being so for a while: its own host may adopt it, and after an outage of Redis
every worker needs a moment to renew.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import cache

from cronium_worker.fleet.hosts import HostRegistry, HostView, Report
from cronium_worker.fleet.keys import BrokenKey
from cronium_worker.fleet.oversight import Oversight, Standing
from cronium_worker.fleet.store import FIRST_LOOK_S, JobStore
from cronium_worker.models import ErrorInfo
from cronium_worker.models.formats import FORMAT, OLDEST
from cronium_worker.models.job import JOBS_NODE
from cronium_worker.policy import FAULT_BUDGET

logger = logging.getLogger(__name__)

_AT_ONCE = 5000
_LONGEST_WAIT_S = 60
# Taken later than this after a younger message of the same list, a job's own message is gone.
_OVERTAKEN_MS = 5000
_UNSETTLED_S = 10
# Who holds a job is looked at each time.
_HELD_S = 0


class Recovery:
    """All that it does may be done twice, by two at once."""

    def __init__(
        self,
        store: JobStore,
        registry: HostRegistry,
        *,
        send: Callable[[str], None],
        waiting: Callable[[str], int],
        grace_s: float,
    ) -> None:
        """`send(job_id)` sends a job's message again, `waiting(queue)` counts a queue's messages. `grace_s`: how
        long a lease must have been seen lapsed."""
        self._store = store
        self._oversight = Oversight(store)
        self._registry = registry
        self._send = send
        self._waiting = waiting
        self._grace_s = grace_s

    def look(self) -> Counter[str]:
        """Once over all jobs whose time has come. Returns how many were sent again, taken, ended, settled."""
        done: Counter[str] = Counter()
        ids = self._oversight.to_look_at(_AT_ONCE)
        standings = self._oversight.standing(ids)
        self._oversight.note_queues({each.queue for each in standings.values() if each.status == "pending"})
        views = self._registry.hosts()
        nodes = {view.name: view.nodes[JOBS_NODE] for view in views if JOBS_NODE in view.nodes}
        taken = self._oversight.newest_taken()
        waiting = cache(self._waiting)
        again: dict[str, float] = {}
        for job_id in ids:
            standing = standings.get(job_id)
            if standing is None:
                self._store.settle(job_id)  # expired: nobody can be waiting for it
            elif standing.ended:
                # Whoever takes the message finds the stored result, and gives it to Celery.
                again[job_id] = _UNSETTLED_S
                if waiting(standing.queue) == 0:
                    self._resend(job_id, "settled", done)
            elif standing.lapsed_s is not None:
                again[job_id] = _HELD_S
                self._look_at_holder(job_id, standing, nodes, done)
            elif standing.due_s < 0:
                again[job_id] = -standing.due_s
            elif standing.format > OLDEST and (why := _too_old(standing, views)):
                # A message would only be dropped by each of them.
                again[job_id] = FIRST_LOOK_S
                if self._store.explain(job_id, why):
                    logger.warning("job %s waits: %s", job_id, why)
            elif _is_lost(standing, taken, waiting):
                again[job_id] = FIRST_LOOK_S
                self._resend(job_id, "sent", done)
            else:
                again[job_id] = min(max(standing.sent_s, FIRST_LOOK_S), _LONGEST_WAIT_S)
        self._oversight.look_again(again)
        return done

    def _look_at_holder(self, job_id: str, standing: Standing, nodes: Mapping[str, Report], done: Counter[str]) -> None:
        gone = _is_gone(standing, nodes.get(standing.host))
        lapsed = standing.lapsed_s is not None and standing.lapsed_s > 0
        taken_at_ms = standing.taken_at_ms
        if lapsed and not gone and self._oversight.suspect(job_id, taken_at_ms=taken_at_ms) < self._grace_s:
            return
        if lapsed or gone:
            self._take(job_id, standing, gone=gone, done=done)
        self._oversight.clear([job_id])

    def _take(self, job_id: str, standing: Standing, *, gone: bool, done: Counter[str]) -> None:
        why = f"the worker on {standing.host} was lost"
        if standing.cancel:
            error = ErrorInfo(type="cancelled", message=f"cancelled, and {why}")
            ended = self._oversight.give_up(job_id, standing, "cancelled", error, gone=gone)
        elif standing.faults >= FAULT_BUDGET and standing.format <= FORMAT:
            count = standing.faults + 1
            error = ErrorInfo(type="lost", message=f"given up after {count} faults of the fleet; the last: {why}")
            ended = self._oversight.give_up(job_id, standing, "failed", error, gone=gone)
        else:
            if self._oversight.reclaim(job_id, standing, f"again: {why}", gone=gone):
                logger.warning("job %s is taken back: %s", job_id, why)
                self._resend(job_id, "taken", done)
            return
        if ended:
            logger.warning("job %s is given up: %s", job_id, why)
            self._resend(job_id, "ended", done)

    def _resend(self, job_id: str, why: str, done: Counter[str]) -> None:
        with suppress(BrokenKey):  # of one queue: it is looked at again
            self._send(job_id)
            done[why] += 1


def _too_old(standing: Standing, views: Iterable[HostView]) -> str:
    """Why no live host of its queue can read a job; empty: one can, or there is none."""
    formats = {view.name: view.job_format for view in views if view.serves(standing.queue)}
    if not formats or max(formats.values()) >= standing.format:
        return ""
    hosts = ", ".join(sorted(formats))
    return f"needs a worker that reads jobs of format {standing.format}; upgrade a host of {standing.queue}: {hosts}"


def _is_gone(standing: Standing, node: Report | None) -> bool:
    """Whether the process that took a job is no more, for certain: another one has reported as its host's jobs node
    after that. (A node adopts before it reports for the first time.)"""
    if node is None or not standing.node:
        return False
    return bool(node.get("node") != standing.node and node["beat_at_ms"] > standing.taken_at_ms)


def _is_lost(standing: Standing, taken: Mapping[tuple[str, int], int], waiting: Callable[[str], int]) -> bool:
    """Whether the message of a pending job is gone: a younger one of the same list was taken, or there is none."""
    if standing.sent_s < FIRST_LOOK_S:
        return False
    newest = taken.get((standing.queue, standing.priority), 0)
    return newest > standing.sent_at_ms + _OVERTAKEN_MS or waiting(standing.queue) == 0
