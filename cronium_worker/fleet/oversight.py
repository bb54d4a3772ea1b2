"""Jobs as others than their worker see them: who holds a job and for how long, and taking it from who is gone."""

import re
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

from cronium_worker.fleet.events import now_iso, progress_body, status_body
from cronium_worker.fleet.keys import fields_of
from cronium_worker.fleet.store import ACTIVE_KEY, INDEX_KEY, JobStore, epoch_ms, record_key
from cronium_worker.models import TERMINAL, ErrorInfo, FinalStatus, JobResult, LogSummary
from cronium_worker.models.fields import is_job_id
from cronium_worker.models.formats import OLDEST
from cronium_worker.models.queues import is_queue

_PRUNE_COUNT = 1000
_SUSPECTS_KEY = "cronium:suspects"
_NEWEST_TAKEN_KEY = "cronium:taken"
# Queues in which jobs wait, by when that was seen last (seconds since 1970).
_QUEUES_KEY = "cronium:queues"
_QUEUE_TTL_S = 24 * 3600
# Who holds a job is looked at each time: such jobs are always due.
_OVERDUE_S = 60
# A job that is taken from its worker is so long before; one that has ended meanwhile stays in the list.
_SUSPECTED_S = 300
_FIELDS = (
    "status", "type", "attempt", "token", "lease", "host", "node", "taken_at", "queue", "priority", "sent_at", "due_at",
    "format",
)  # fmt: skip
_COUNTS = ("faults", "failures")


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Where a job is.

    `lapsed_s`: seconds since the end of its worker's lease, negative while it is live; None when nobody has the job.
    `sent_s`, `due_s`: seconds since its last message, and since it was due (negative: it is to wait).
    `sent_at_ms`, `taken_at_ms`: of its last message, and of its claim or adoption. All by Redis's clock.
    """

    status: str
    type: str
    attempt: int
    token: str
    host: str
    node: str
    taken_at_ms: int
    queue: str
    priority: int
    faults: int
    failures: int
    cancel: bool
    created_at: str
    started_at: str | None
    image: str | None
    format: int
    lapsed_s: float | None
    sent_s: float
    sent_at_ms: int
    due_s: float

    @property
    def ended(self) -> bool:
        return self.status in TERMINAL


class Backlog(NamedTuple):
    """Numbers of jobs: not ended, or ended and their result not yet with Celery; of those, that should have been looked
    at a minute ago; and whose lease was first seen lapsed in the last five minutes."""

    unsettled: int
    overdue: int
    suspected: int


class Oversight:
    """Safe for threads."""

    def __init__(self, store: JobStore) -> None:
        self._store = store
        self._redis = store.redis

    def standing(self, job_ids: Sequence[str]) -> dict[str, Standing]:
        """Where the jobs are; one without a record is left out."""
        names = (*_FIELDS, *_COUNTS, "cancel", "created_at", "started_at", "image")
        seconds, microseconds = self._redis.time()
        now_ms = seconds * 1000 + microseconds // 1000
        job_ids = list(filter(is_job_id, job_ids))
        with self._redis.pipeline(transaction=False) as pipe:
            for job_id in job_ids:
                pipe.hmget(record_key(job_id), names)
            rows = fields_of(pipe, names)
        records = {job_id: dict(zip(names, row, strict=True)) for job_id, row in zip(job_ids, rows, strict=True)}
        return {job_id: _standing(record, now_ms) for job_id, record in records.items() if record["status"]}

    def to_look_at(self, count: int) -> list[str]:
        """Jobs whose time has come, the longest due first."""
        seconds, _ = self._redis.time()
        ids = self._redis.zrange(ACTIVE_KEY, "-inf", seconds * 1000, byscore=True, offset=0, num=count)
        return cast("list[str]", ids)

    def look_again(self, at_s: Mapping[str, float]) -> None:
        """In how many seconds each of the jobs is to be looked at next. One that was settled meanwhile stays so."""
        if at_s:
            now = epoch_ms(now_iso())
            self._redis.zadd(ACTIVE_KEY, {job: now + int(s * 1000) for job, s in at_s.items()}, xx=True)

    def suspect(self, job_id: str, *, taken_at_ms: int = 0) -> float:
        """For how many seconds this has been said of the job, without `clear` between: 0 the first time. What was said
        before the job was taken (by Redis's clock) was of another worker, and counts for nothing.

        After an outage of Redis every lease has lapsed, until its worker comes to renew it: who is to be taken
        for gone must be seen so for a while.
        """
        seconds, microseconds = self._redis.time()
        now_s = seconds + microseconds / 1e6
        self._redis.zadd(_SUSPECTS_KEY, {job_id: now_s}, nx=True)
        since_s = self._redis.zscore(_SUSPECTS_KEY, job_id)
        if since_s is not None and since_s * 1000 < taken_at_ms:
            self._redis.zadd(_SUSPECTS_KEY, {job_id: now_s})
            since_s = now_s
        return now_s - since_s if since_s is not None else 0

    def clear(self, job_ids: Sequence[str]) -> None:
        """Nothing is to be suspected of these any more."""
        if job_ids:
            self._redis.zrem(_SUSPECTS_KEY, *job_ids)

    def reclaim(self, job_id: str, held: Standing, message: str, *, gone: bool) -> bool:
        """Take a job from a worker that is gone, and give it back as `pending` with the next attempt.

        `gone`: that is certain, whatever the lease says. False: somebody has it after all.
        """
        attempt = held.attempt + 1
        body = status_body("pending", message, attempt=attempt, host=None)
        arguments = ("again", attempt, body.json, 0, held.faults + 1, held.failures, now_iso())
        return self._reclaim(job_id, held, gone, *arguments)

    def give_up(self, job_id: str, held: Standing, status: FinalStatus, error: ErrorInfo, *, gone: bool) -> bool:
        """The same, but the job ends. False: somebody has it after all.

        What its script may have printed since its worker was heard last, nobody has: a gap is told before the end.
        """
        gap = b""
        if held.started_at is not None:
            gap = progress_body("a part of the log may be missing: its worker was lost", gap=True).json
        result = JobResult(
            job_id=job_id,
            status=status,
            error=error,
            attempt=held.attempt,
            host=held.host,
            image=held.image,
            log=LogSummary(gap=bool(gap)),
            created_at=held.created_at,
            started_at=held.started_at,
            finished_at=now_iso(),
        )
        content = result.without_contents()
        body = status_body(status, error.message, attempt=held.attempt, host=held.host, result=content)
        text = result.model_dump_json()
        ttl_s = self._store.result_ttl_s
        ended = self._reclaim(job_id, held, gone, "finish", gap, status, text, now_iso(), ttl_s, body.json)
        if ended:
            self._store.count_end(status, held.type, error.type)
        return ended

    def _reclaim(self, job_id: str, held: Standing, gone: bool, *arguments: Any) -> bool:
        return bool(self._store.run("reclaim", job_id, held.token, "1" if gone else "", *arguments) == "ok")

    def note_taken(self, newest_ms: Mapping[tuple[str, int], int]) -> None:
        """The newest message (by its time) that a worker has taken from a queue at a priority: lists are taken in
        order, so what is older and still pending has lost its message."""
        if newest_ms:
            taken = self.newest_taken()
            newer: dict[Any, Any] = {f"{q}|{p}": ms for (q, p), ms in newest_ms.items() if ms > taken.get((q, p), 0)}
            if newer:
                self._redis.hset(_NEWEST_TAKEN_KEY, mapping=newer)

    def newest_taken(self) -> dict[tuple[str, int], int]:
        rows = cast("dict[str, str]", self._redis.hgetall(_NEWEST_TAKEN_KEY))
        parts = {name: name.rpartition("|") for name in rows}
        return {
            (queue, int(priority)): int(rows[name])
            for name, (queue, _, priority) in parts.items()
            if re.fullmatch(r"[0-9]", priority)
        }

    def note_queues(self, queues: Collection[str]) -> None:
        """Jobs wait in these."""
        queues = set(filter(is_queue, queues))
        if queues:
            now_s = int(time.time())
            with self._redis.pipeline(transaction=False) as pipe:
                pipe.zadd(_QUEUES_KEY, dict.fromkeys(queues, now_s))
                pipe.zremrangebyscore(_QUEUES_KEY, "-inf", now_s - _QUEUE_TTL_S)
                pipe.execute()

    def queues(self, count: int) -> list[str]:
        """Those in which jobs have waited in the last day, whether anybody serves them or not: the newest."""
        names = cast("list[str]", self._redis.zrange(_QUEUES_KEY, 0, count - 1, desc=True))
        return list(filter(is_queue, names))

    def backlog(self) -> Backlog:
        """What there is to look after, whatever the number of jobs."""
        seconds, _ = self._redis.time()
        with self._redis.pipeline(transaction=False) as pipe:
            pipe.zcard(ACTIVE_KEY)
            pipe.zcount(ACTIVE_KEY, "-inf", (seconds - _OVERDUE_S) * 1000)
            pipe.zcount(_SUSPECTS_KEY, seconds - _SUSPECTED_S, "+inf")
            return Backlog(*pipe.execute())

    def forget_expired(self) -> int:
        """Take jobs off the index whose records have expired; returns how many.

        A record lives for the result's time to live after the job's end, so only older entries are looked at.
        """
        oldest = epoch_ms(now_iso()) - self._store.result_ttl_s * 1000
        forgotten = start = 0
        while ids := cast("list[str]", self._redis.zrange(
            INDEX_KEY, "-inf", oldest, byscore=True, offset=start, num=_PRUNE_COUNT
        )):  # fmt: skip
            with self._redis.pipeline(transaction=False) as pipe:
                for job_id in ids:
                    pipe.exists(record_key(job_id))
                gone = [job_id for job_id, there in zip(ids, pipe.execute(), strict=True) if not there]
            if gone:
                self._redis.zrem(INDEX_KEY, *gone)
            forgotten += len(gone)
            start += len(ids) - len(gone)
        return forgotten


def _standing(record: Mapping[str, str | None], now_ms: int) -> Standing:
    def number(name: str) -> int:
        return int(record[name] or 0)

    held = record["status"] in ("preparing", "running")
    return Standing(
        status=record["status"] or "",
        type=record["type"] or "",
        attempt=number("attempt"),
        token=record["token"] or "",
        host=record["host"] or "",
        node=record["node"] or "",
        taken_at_ms=number("taken_at"),
        queue=record["queue"] or "",
        priority=number("priority"),
        faults=number("faults"),
        failures=number("failures"),
        cancel=bool(record["cancel"]),
        created_at=record["created_at"] or "",
        started_at=record["started_at"],
        image=record["image"],
        format=number("format") or OLDEST,
        lapsed_s=(now_ms - number("lease")) / 1000 if held else None,
        sent_s=(now_ms - number("sent_at")) / 1000,
        sent_at_ms=number("sent_at"),
        due_s=(now_ms - number("due_at")) / 1000,
    )
