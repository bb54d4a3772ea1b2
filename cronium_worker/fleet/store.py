"""Job records and events in Redis: the truth about a job. Keys and channels: section 5 of the contract.

Every write of a worker carries its claim's fencing token and a number that counts the claim's writes, both
compared in Lua: a worker whose claim was taken over cannot write, and a write that is sent again because its
answer got lost is made once.
"""

import json
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from importlib.resources import files
from typing import Any, Literal, NamedTuple, cast
from uuid import uuid4

from pydantic import ValidationError
from redis import Redis
from redis.backoff import ExponentialBackoff
from redis.commands.core import Script as LuaScript
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from cronium_worker.errors import ClaimLost, JobConflict, JobNotFound, validation_message
from cronium_worker.fleet.events import Body, Event, claim_body, now_iso, status_body
from cronium_worker.models import TERMINAL, ErrorInfo, Job, JobResult, Script

CANCEL_CHANNEL = "cronium:cancel"
INDEX_KEY = "cronium:jobs"
_BLOCK_MS = 5000
_READ_COUNT = 1000
_PRUNE_COUNT = 1000
_SCRIPTS = ("register", "claim", "renew", "write", "finish", "cancel", "refuse")

Outcome = Literal["missing", "finished", "busy"]
CancelOutcome = Literal["finished", "cancelled", "requested"]


def record_key(job_id: str) -> str:
    return f"cronium:job:{{{job_id}}}"


def _keys(job_id: str) -> list[str]:
    key = record_key(job_id)
    return [key, f"{key}:events", f"{key}:secrets"]


def connect(url: str, *, retries: int = 3) -> "Redis":
    """A client that tries again over a lost connection: 3 times for callers (under a second), more for workers.

    The read timeout is longer than any blocking read, so that a dead link is noticed.
    """
    return Redis.from_url(
        url,
        decode_responses=True,
        retry=Retry(ExponentialBackoff(cap=2, base=0.05), retries),
        retry_on_error=[RedisConnectionError, RedisTimeoutError],
        socket_timeout=_BLOCK_MS / 1000 + 10,
        socket_connect_timeout=5,
        health_check_interval=30,
    )


class Standing(NamedTuple):
    """What a record says of its job, as far as others than its worker need it. `lapsed_s`: seconds since the
    end of its worker's lease, negative while it is live; None when nobody has the job."""

    status: str
    attempt: int
    lapsed_s: float | None


class Progress(NamedTuple):
    """How far an attempt had come when its worker lost it: bytes of each raw stream whose text is in the events,
    when the script was started (ISO 8601; None: it was not), and in what image."""

    stdout_offset: int
    stderr_offset: int
    started_at: str | None
    image: str | None


@dataclass(kw_only=True)
class Claim:
    """The right to run one attempt of a job. One claim is used by several threads of one worker."""

    job: Job
    token: str
    attempt: int
    host: str
    created_at: str
    queued_at: str
    cancel_requested: bool = False
    progress: Progress | None = None  # of an attempt that is adopted
    _writes: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)


class JobStore:
    """Reads and writes of job records and events. Safe for threads; blocking; holds no state of jobs."""

    def __init__(self, redis: "Redis", *, result_ttl_s: int, lease_ttl_s: float = 30) -> None:
        self.redis = redis
        self._ttl_s = result_ttl_s
        self._lease_ms = int(lease_ttl_s * 1000)
        folder = files("cronium_worker.fleet") / "lua"
        common = (folder / "common.lua").read_text()
        self._scripts: dict[str, LuaScript] = {
            name: redis.register_script(common + (folder / f"{name}.lua").read_text()) for name in _SCRIPTS
        }

    def _run(self, script: str, job_id: str, *arguments: str | int) -> Any:
        return self._scripts[script](keys=_keys(job_id), args=arguments)

    # ---- callers

    def register(self, job: Job, *, task_id: str, queue: str) -> bool:
        """Write the record of a new job, `pending`. False: the same job was registered before.

        Raises JobConflict when another job has this id.
        """
        created_at = now_iso()
        text = job.to_json(secrets=False)
        fields: dict[str, str] = {
            "id": job.id,
            "job": text,
            "task_id": task_id,
            "queue": queue,
            "type": job.script.type,
            "created_at": created_at,
            "queued_at": created_at,
        }
        body = status_body("pending", "waiting for a worker", attempt=1, host=None)
        secrets = json.dumps(job.secrets) if job.secrets else ""
        self.redis.zadd(INDEX_KEY, {job.id: _epoch_ms(created_at)}, nx=True)
        flat = [part for pair in fields.items() for part in pair]
        existing = self._run("register", job.id, secrets, body.text, *flat)
        # The secrets of a job that has ended are gone: then there is nothing to compare.
        if existing and (existing[0] != text or existing[1] not in ("", secrets)):
            raise JobConflict(f"id: {job.id} is taken by another job; choose a new id")
        return not existing

    def record(self, job_id: str) -> dict[str, str]:
        """All fields of the record. Raises JobNotFound."""
        fields = cast("dict[str, str]", self.redis.hgetall(record_key(job_id)))
        if not fields:
            raise JobNotFound(f"no job {job_id}: unknown id, or its record has expired")
        return fields

    def result(self, job_id: str) -> JobResult | None:
        """The result, or None while the job is not finished. Raises JobNotFound."""
        key = record_key(job_id)
        status, text = cast("list[str | None]", self.redis.hmget(key, "status", "result"))
        if status is None:
            raise JobNotFound(f"no job {job_id}: unknown id, or its record has expired")
        return JobResult.model_validate_json(text) if text else None

    def events(self, job_id: str) -> Iterator[Event]:
        """The events there are now. Raises JobNotFound."""
        self.result(job_id)
        last = "-"
        while entries := cast(Any, self.redis.xrange(_keys(job_id)[1], min=last, count=_READ_COUNT)):
            for entry_id, fields in entries:
                last = f"({entry_id}"
                yield json.loads(fields["event"])

    def follow(self, job_id: str, *, after: str = "0") -> Iterator[Event]:
        """Every event from the first (or after the stream id `after`), then live, to the terminal status.

        Reads the stream alone, which has every event once and in order. Raises JobNotFound.
        """
        self.result(job_id)
        events_key = _keys(job_id)[1]
        while True:
            reply = cast(Any, self.redis.xread({events_key: after}, count=_READ_COUNT, block=_BLOCK_MS))
            entries = _stream_entries(reply)
            if not entries and not self.redis.exists(record_key(job_id)):
                raise JobNotFound(f"no job {job_id}: unknown id, or its record has expired")
            for entry_id, fields in entries:
                after = entry_id
                event: Event = json.loads(fields["event"])
                yield event
                if event["type"] == "status" and event["status"] in TERMINAL:
                    return

    def cancel(self, job_id: str) -> CancelOutcome:
        """Ask for the end of a job; at once when no worker has it. Idempotent. Raises JobNotFound."""
        record = self.record(job_id)
        attempt, finished_at, message = int(record["attempt"]), now_iso(), "cancelled before a worker took it"
        result = JobResult(
            job_id=job_id,
            status="cancelled",
            error=ErrorInfo(type="cancelled", message=message),
            attempt=attempt,
            created_at=record["created_at"],
            finished_at=finished_at,
        )
        body = status_body("cancelled", message, attempt=attempt, host=None, result=result.without_contents())
        outcome = self._run("cancel", job_id, result.model_dump_json(), finished_at, body.text, self._ttl_s)
        if outcome == "missing":
            raise JobNotFound(f"no job {job_id}: its record has expired")
        return cast(CancelOutcome, outcome)

    def recent(self, count: int) -> list[dict[str, str]]:
        """The records of the newest jobs, newest first, without job and result. Expired ones are forgotten."""
        ids = cast("list[str]", self.redis.zrange(INDEX_KEY, 0, count - 1, desc=True))
        names = ("id", "status", "type", "queue", "host", "attempt", "created_at", "started_at", "finished_at")
        with self.redis.pipeline(transaction=False) as pipe:
            for job_id in ids:
                pipe.hmget(record_key(job_id), names)
            rows = [dict(zip(names, values, strict=True)) for values in pipe.execute()]
        gone = [job_id for job_id, row in zip(ids, rows, strict=True) if row["id"] is None]
        if gone:
            self.redis.zrem(INDEX_KEY, *gone)
        return [{k: v for k, v in row.items() if v is not None} for row in rows if row["id"]]

    # ---- workers

    def claim(self, job_id: str, *, host: str) -> Claim | Outcome:
        """Take the job's current attempt for this worker, or say why not."""
        claimant = uuid4().hex
        reply = self._run("claim", job_id, claimant, host, claim_body(host).text, self._lease_ms)
        if reply[0] != "claimed":
            return cast(Outcome, reply[0])
        _, token, attempt, job, secrets, created_at, queued_at, cancel = reply
        claim = Claim(
            job=Job(id=job_id, script=Script(type="bash", content="")),
            token=token,
            attempt=int(attempt),
            host=host,
            created_at=created_at,
            queued_at=queued_at,
            cancel_requested=bool(cancel),
        )
        try:
            claim.job = Job.model_validate({**json.loads(job), "secrets": json.loads(secrets or "{}")})
        except ValueError as error:  # written by a newer version
            self._finish_unreadable(claim, error)
            return "finished"
        return claim

    def _finish_unreadable(self, claim: Claim, error: ValueError) -> None:
        reason = validation_message(error) if isinstance(error, ValidationError) else "is not JSON"
        result = JobResult(
            job_id=claim.job.id,
            status="failed",
            error=ErrorInfo(type="validation", message=f"this worker cannot read the job: {reason}"),
            attempt=claim.attempt,
            host=claim.host,
            created_at=claim.created_at,
            finished_at=now_iso(),
        )
        self.finish(claim, result, result.error.message if result.error else "")

    def renew(self, claims: Sequence[Claim]) -> None:
        """Extend the leases of this worker's claims; one that was lost meanwhile is left alone."""
        with self.redis.pipeline(transaction=False) as pipe:
            for claim in claims:
                self._scripts["renew"](keys=_keys(claim.job.id), args=[claim.token, self._lease_ms], client=pipe)
            pipe.execute()

    def write(self, claim: Claim, bodies: Sequence[Body], fields: Mapping[str, str | int] = {}) -> bool:
        """Append events and set fields of the record, together. True: a cancel has been asked for.

        Raises ClaimLost.
        """
        flat = [part for body in bodies for part in body]
        pairs = [part for pair in fields.items() for part in pair]
        with claim._lock:
            claim._writes += 1
            outcome = self._run("write", claim.job.id, claim.token, claim._writes, len(bodies), *flat, *pairs)
        if outcome == "lost":
            raise ClaimLost(f"job {claim.job.id} attempt {claim.attempt} is no longer this worker's")
        return bool(outcome == "cancel")

    def finish(self, claim: Claim, result: JobResult, message: str) -> None:
        """Write the terminal status, once; the secrets are gone with it. Raises ClaimLost."""
        body = status_body(
            result.status,
            message,
            attempt=claim.attempt,
            host=claim.host,
            result=result.without_contents(),
        )
        with claim._lock:
            claim._writes += 1
            outcome = self._run(
                "finish",
                claim.job.id,
                claim.token,
                claim._writes,
                result.status,
                result.model_dump_json(),
                result.finished_at or now_iso(),
                body.text,
                self._ttl_s,
            )
        if outcome == "lost":
            raise ClaimLost(f"job {claim.job.id} attempt {claim.attempt} is no longer this worker's")

    def refuse(self, result: JobResult) -> None:
        """Record a job that was refused before it could be registered. A record of this id is left alone."""
        created_at, finished_at = result.created_at or now_iso(), result.finished_at or now_iso()
        message = result.error.message if result.error else "refused"
        body = status_body(result.status, message, attempt=1, host=None, result=result.without_contents())
        self.redis.zadd(INDEX_KEY, {result.job_id: _epoch_ms(created_at)}, nx=True)
        text = result.model_dump_json()
        self._run("refuse", result.job_id, result.job_id, created_at, text, finished_at, body.text, self._ttl_s)

    def retry(self, claim: Claim, message: str) -> None:
        """Give the job back as `pending` with the next attempt. Raises ClaimLost."""
        attempt = claim.attempt + 1
        body = status_body("pending", message, attempt=attempt, host=None)
        self.write(claim, [body], {"status": "pending", "attempt": attempt, "queued_at": now_iso(), "lease": 0})

    def cancels(self) -> Any:
        """A subscription to the ids of jobs that are to end (redis.client.PubSub)."""
        pubsub = self.redis.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]
        pubsub.subscribe(CANCEL_CHANNEL)
        return pubsub

    def cancel_requested(self, job_ids: Sequence[str]) -> set[str]:
        """Those of the jobs whose cancel has been asked for or that have ended without their worker."""
        with self.redis.pipeline(transaction=False) as pipe:
            for job_id in job_ids:
                pipe.hmget(record_key(job_id), "cancel", "status")
            rows = pipe.execute()
        return {job_id for job_id, (cancel, status) in zip(job_ids, rows, strict=True) if cancel or status in TERMINAL}

    # ---- housekeeping

    def standing(self, job_ids: Sequence[str]) -> dict[str, Standing]:
        """Where the jobs are; one without a record is left out."""
        with self.redis.pipeline(transaction=False) as pipe:
            for job_id in job_ids:
                pipe.hmget(record_key(job_id), "status", "attempt", "lease")
            pipe.time()
            *rows, (seconds, microseconds) = pipe.execute()
        now_s = seconds + microseconds / 1e6
        return {
            job_id: Standing(status, int(attempt), now_s - int(lease) / 1000 if lease and lease != "0" else None)
            for job_id, (status, attempt, lease) in zip(job_ids, rows, strict=True)
            if status
        }

    def forget_expired(self) -> int:
        """Take jobs off the index whose records have expired; returns how many.

        A record lives for the result's time to live after the job's end, so only older entries are looked at.
        """
        oldest = _epoch_ms(now_iso()) - self._ttl_s * 1000
        forgotten = start = 0
        while ids := cast("list[str]", self.redis.zrange(
            INDEX_KEY, "-inf", oldest, byscore=True, offset=start, num=_PRUNE_COUNT
        )):  # fmt: skip
            with self.redis.pipeline(transaction=False) as pipe:
                for job_id in ids:
                    pipe.exists(record_key(job_id))
                gone = [job_id for job_id, there in zip(ids, pipe.execute(), strict=True) if not there]
            if gone:
                self.redis.zrem(INDEX_KEY, *gone)
            forgotten += len(gone)
            start += len(ids) - len(gone)
        return forgotten


def _epoch_ms(iso: str) -> int:
    return int(datetime.fromisoformat(iso).timestamp() * 1000)


def _stream_entries(reply: Any) -> list[tuple[str, dict[str, str]]]:
    """XREAD's reply for one stream: a dict in RESP3, a list of pairs in RESP2, None when nothing came."""
    if not reply:
        return []
    entries = next(iter(reply.values())) if isinstance(reply, dict) else reply[0][1]
    # RESP3 wraps the entries of each stream in one more list.
    return entries[0] if entries and isinstance(entries[0], list) else entries
