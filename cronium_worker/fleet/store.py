"""Job records and events in Redis: the truth about a job. Keys and channels: section 5 of the contract.

Every write of a worker carries its claim's fencing token and a number that counts the claim's writes, both
compared in Lua: a worker whose claim was taken over cannot write, and a write that is sent again because its
answer got lost is made once.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from importlib.resources import files
from itertools import chain
from typing import Any, Literal, NamedTuple, cast
from uuid import UUID, uuid4

from pydantic import ValidationError
from redis import Redis
from redis.commands.core import Script as LuaScript
from redis.exceptions import NoPermissionError, RedisError

from cronium_worker.errors import ClaimLost, JobConflict, JobNotFound, NotSigned, SecretsUnreadable, validation_message
from cronium_worker.fleet.connections import BLOCK_MS
from cronium_worker.fleet.events import (
    Body,
    Event,
    claim_body,
    now_iso,
    progress_body,
    status_body,
    stored_bytes,
    whole,
)
from cronium_worker.fleet.keys import BrokenKey, fields_of, raise_others
from cronium_worker.fleet.pieces import get_pieces, in_pieces, set_pieces
from cronium_worker.fleet.replication import Replication
from cronium_worker.models import TERMINAL, ErrorInfo, Job, JobResult, Output, Script, formats
from cronium_worker.models.fields import is_job_id
from cronium_worker.models.queues import DEFAULT_QUEUE
from cronium_worker.models.result import with_ready_outputs
from cronium_worker.sealing import SecretBox
from cronium_worker.signing import Signer

CANCEL_CHANNEL = "cronium:cancel"
STATUS_CHANNEL = "cronium:status"  # lua/common.lua
INDEX_KEY = "cronium:jobs"
_GONE = "gone"  # in the place of secrets that are deleted
UNFINISHED_S = 3600  # a large result of a worker that loses the job before the end is written
_READ_COUNT = 1000
_SCRIPTS = (
    "register",
    "sending",
    "claim",
    "adopt",
    "renew",
    "write",
    "retry",
    "finish",
    "reclaim",
    "cancel",
    "refuse",
    "explain",
    "cut",
)
# Somebody acts on what these have written: a caller who is told so, or a worker that runs the job.
_REPLICATED = frozenset({"register", "claim", "adopt", "retry", "finish", "cancel", "refuse"})
# How many jobs have ended, by "status|type|type of error".
ENDED_KEY = "cronium:ended"
# Jobs that somebody has to look after, by the time (ms) at which to look next: until their result is with Celery.
ACTIVE_KEY = "cronium:active"
# A message that nobody has taken by then may be lost.
FIRST_LOOK_S = 5
# A worker that has had a job for this many leases did not die of it.
SETTLED_LEASES = 1 / 3

# What lists show of a job.
SUMMARY = ("id", "status", "type", "queue", "host", "attempt", "created_at", "started_at", "finished_at", "note")

# `unreadable`: a newer version has written the job; it is left to a worker of that version.
Outcome = Literal["missing", "finished", "busy", "unreadable"]
CancelOutcome = Literal["finished", "cancelled", "requested"]
Argument = str | int | bytes  # of a script


def _elsewhere(output: Output) -> Output:
    """What the record has of a large output; version 0.1.0 reads no more."""
    return Output(condition=output.condition, notes=("too large for this version to read: ask a newer one",))


def _numbered(claim: "Claim", bodies: Sequence[Body]) -> Iterator[Argument]:
    """The first seq, how many, and pairs of (kind, event)."""
    yield from (claim._seq, len(bodies))
    for seq, body in enumerate(bodies, start=claim._seq):
        yield from (body.kind, whole(body, claim.job.id, seq))


def record_key(job_id: str) -> str:
    """Raises JobNotFound for what is no id: no text of a caller's is put into a key."""
    if not is_job_id(job_id):
        raise JobNotFound(f"no job {ascii(job_id)[:80]}: unknown id, or its record has expired")
    return f"cronium:job:{{{job_id}}}"


def whole_result_key(job_id: str, name: str) -> str:
    """The list with the pieces of a large result; the record has its name."""
    return f"{record_key(job_id)}:result:{UUID(name).hex}"


def job_keys(job_id: str) -> list[str]:
    key = record_key(job_id)
    return [key, f"{key}:events", f"{key}:secrets"]


class Sending(NamedTuple):
    """What a message for a job needs. `message`: Celery's options of the first one (links, chord, …)."""

    task_id: str
    queue: str
    priority: int
    type: str
    message: dict[str, Any]


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
    faults: int = 0  # of the fleet, that have cost the job an attempt
    failures: int = 0  # of the script, that were retried
    sent_at_ms: int = 0
    progress: Progress | None = None  # of an attempt that is adopted
    adoptions: int = 0  # in a row, each after the death of a worker
    stored: int = 0  # bytes of Redis that the job's events take (fleet.share)
    earlier_cut: bool = False  # whether logs of attempts before this one were cut to make room
    taken_s: float = field(default_factory=time.monotonic)
    _writes: int = 0
    _seq: int = 0  # of the next event
    _lock: threading.RLock = field(default_factory=threading.RLock, repr=False)

    @property
    def seq(self) -> int:
        """Of the next event."""
        return self._seq


class JobStore:
    """Reads and writes of job records and events. Safe for threads; blocking; holds no state of jobs."""

    def __init__(
        self,
        redis: "Redis",
        *,
        result_ttl_s: int,
        lease_ttl_s: float = 30,
        secret_keys: Sequence[str] = (),
        signing_keys: Sequence[str] = (),
        secret_ttl_s: int = 7 * 24 * 3600,
        wait_replicas: int = 0,
    ) -> None:
        """`secret_keys`: the first one encrypts jobs' secrets, each decrypts them. `secret_ttl_s`: how long they are
        kept for a job that no worker has. `signing_keys`: the first one signs jobs, and no job is taken that is not
        signed with one of them. `wait_replicas`: how many of Redis's replicas must have what somebody acts on."""
        self.redis = redis
        self._replication = Replication(redis, wait_replicas) if wait_replicas else None
        self.result_ttl_s = result_ttl_s
        self.secrets = SecretBox(secret_keys)
        self.signer = Signer(signing_keys)
        self._secret_ttl_s = secret_ttl_s
        self._lease_ms = int(lease_ttl_s * 1000)
        # Of a record's text and the secrets. Raises ValueError, pydantic.ValidationError among them.
        self.read_result: Callable[[str], JobResult] = JobResult.model_validate_json
        self.read_job: Callable[[str, Mapping[str, str]], Job] = Job.from_record
        folder = files("cronium_worker.fleet") / "lua"
        common = (folder / "common.lua").read_text()
        self._scripts: dict[str, LuaScript] = {
            name: redis.register_script(common + (folder / f"{name}.lua").read_text()) for name in _SCRIPTS
        }

    def run(self, script: str, job_id: str, *arguments: Argument) -> Any:
        """One of the scripts in lua/ on a job's keys: for this package alone."""
        if self._replication is not None and script in _REPLICATED:
            return self._replication.run(self._scripts[script], job_keys(job_id), arguments)
        return self._scripts[script](keys=job_keys(job_id), args=arguments)

    # ---- callers

    def register(self, job: Job, *, task_id: str, queue: str, message: Mapping[str, Any] = {}) -> bool:
        """Write the record of a new job, `pending`. False: the same job was registered before.

        `message`: JSON of the message's own, in case it must be sent again. Raises JobConflict when another job has
        this id, SecretsUnreadable when there is no key for its secrets.
        """
        secrets = self.secrets.seal(job.id, job.secrets) if job.secrets else ""
        created_at = now_iso()
        text = job.to_json(secrets=False)
        fields: dict[str, str] = {
            "id": job.id,
            "job": text,
            "signature": self.signer.sign(text),
            "task_id": task_id,
            "queue": queue,
            "type": job.script.type,
            "priority": str(job.priority),
            "message": json.dumps(message),
            "created_at": created_at,
            "queued_at": created_at,
        }
        if (needed := formats.needed_format(job)) > formats.OLDEST:
            fields["format"] = str(needed)
        body = status_body("pending", "waiting for a worker", attempt=1, host=None)
        now = epoch_ms(created_at)
        with self.redis.pipeline(transaction=False) as pipe:
            pipe.zadd(INDEX_KEY, {job.id: now}, nx=True)
            pipe.zadd(ACTIVE_KEY, {job.id: now + FIRST_LOOK_S * 1000}, nx=True)
            pipe.execute()
        existing = self.run("register", job.id, secrets, self._secret_ttl_s, body.json, *chain(*fields.items()))
        if existing and not (existing[0] == text and self._are_secrets_of(job, existing[1])):
            raise JobConflict(f"id: {job.id} is taken by another job; choose a new id")
        return not existing

    def _are_secrets_of(self, job: Job, sealed: str) -> bool:
        """Those of a job that has ended are gone: then there is nothing to compare."""
        if not sealed or not job.secrets:
            return not sealed and not job.secrets
        try:
            return sealed == _GONE or self.secrets.open(job.id, sealed) == job.secrets
        except SecretsUnreadable:
            return False

    def record(self, job_id: str) -> dict[str, str]:
        """All fields of the record. Raises JobNotFound."""
        fields = cast("dict[str, str]", self.redis.hgetall(record_key(job_id)))
        if not fields:
            raise JobNotFound(f"no job {job_id}: unknown id, or its record has expired")
        return fields

    def fields(self, job_id: str, *names: str) -> dict[str, str]:
        """Those fields of the record that there are: without the result, a record is small. Raises JobNotFound."""
        status, *values = cast("list[str | None]", self.redis.hmget(record_key(job_id), "status", *names))
        if status is None:
            raise JobNotFound(f"no job {job_id}: unknown id, or its record has expired")
        found = {"status": status, **dict(zip(names, values, strict=True))}
        return {name: value for name, value in found.items() if value is not None}

    def result(self, job_id: str) -> JobResult | None:
        """The result, or None while the job is not finished. Raises JobNotFound."""
        text = self.result_json(job_id)
        return self.read_result(text) if text else None

    def result_json(self, job_id: str) -> str | None:
        """The same as JSON."""
        found = self.fields(job_id, "result", "whole_result")
        text = found.get("result")
        if "whole_result" in found:
            pieces = get_pieces(self.redis, whole_result_key(job_id, found["whole_result"]))
            text = b"".join(pieces).decode() or text
        return text

    def events(self, job_id: str) -> Iterator[Event]:
        """The events there are now. Raises JobNotFound."""
        self.fields(job_id)
        last = "-"
        while entries := cast(Any, self.redis.xrange(job_keys(job_id)[1], min=last, count=_READ_COUNT)):
            for entry_id, fields in entries:
                last = f"({entry_id}"
                yield json.loads(fields["event"])

    def follow(self, job_id: str, *, after: str = "0") -> Iterator[Event]:
        """Every event from the first (or after the stream id `after`), then live, to the terminal status.

        Reads the stream alone, which has every event once and in order. Raises JobNotFound.
        """
        self.fields(job_id)
        events_key = job_keys(job_id)[1]
        while True:
            reply = cast(Any, self.redis.xread({events_key: after}, count=_READ_COUNT, block=BLOCK_MS))
            entries = stream_entries(reply)
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
        record = self.fields(job_id, "attempt", "created_at", "type")
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
        outcome = self.run("cancel", job_id, result.model_dump_json(), finished_at, self.result_ttl_s, body.json)
        if outcome == "missing":
            raise JobNotFound(f"no job {job_id}: its record has expired")
        if outcome == "cancelled":
            self.count_end("cancelled", record.get("type", ""), "cancelled")
            self.look_at(job_id, in_s=0)  # one that was to wait has no message that could bring its result to Celery
        return cast(CancelOutcome, outcome)

    def recent(self, count: int, *, before: str | None = None) -> list[dict[str, str]]:
        """The records of the newest jobs (of those older than the job `before`), newest first, without job and result.
        Expired ones are forgotten."""
        first = 0
        if before is not None:
            rank = cast("int | None", self.redis.zrevrank(INDEX_KEY, before))
            if rank is None:
                raise JobNotFound(f"no job {before}: unknown id, or its record has expired")
            first = rank + 1
        names = SUMMARY
        while ids := cast("list[str]", self.redis.zrange(INDEX_KEY, first, first + count - 1, desc=True)):
            with self.redis.pipeline(transaction=False) as pipe:
                for job_id in ids:
                    pipe.hmget(record_key(job_id), names)
                rows = [dict(zip(names, values, strict=True)) for values in fields_of(pipe, names)]
            gone = [job_id for job_id, row in zip(ids, rows, strict=True) if row["id"] is None]
            if gone:
                try:
                    self.redis.zrem(INDEX_KEY, *gone)
                except NoPermissionError:  # of somebody who may only read
                    first += len(gone)
            if len(gone) < len(ids):
                return [{k: v for k, v in row.items() if v is not None} for row in rows if row["id"]]
        return []

    def sending(self, job_id: str) -> Sending | None:
        """To be asked right before a message for the job is sent again; None: it needs none now."""
        reply = self.run("sending", job_id)
        if not reply or reply[0] is None:
            return None
        task_id, queue, priority, kind, message = reply
        return Sending(task_id, queue, int(priority or 5), kind, json.loads(message or "{}"))

    def settle(self, job_id: str) -> None:
        """The job's result is with whoever waits for it: nobody need look after it any more."""
        self.redis.zrem(ACTIVE_KEY, job_id)

    # ---- workers

    def claim(self, job_id: str, *, host: str, node: str = "") -> Claim | Outcome:
        """Take the job's current attempt for this worker, or say why not. `node`: the worker's process."""
        claimant = uuid4().hex
        reply = self.run("claim", job_id, claimant, host, node, claim_body(host).json, self._lease_ms, formats.FORMAT)
        return self._claimed(job_id, host, reply)

    def adopt(self, job_id: str, *, attempt: int, host: str, node: str = "") -> Claim | Outcome:
        """Take over an attempt of this host whose worker is known to be gone; `progress` says how far it had come.

        `busy`: the attempt is not the current one, or not this host's.
        """
        reply = self.run("adopt", job_id, uuid4().hex, host, node, attempt, self._lease_ms, formats.FORMAT)
        claim = self._claimed(job_id, host, reply, is_running=True)
        if isinstance(claim, Claim):
            stdout, stderr, started_at, image, adoptions = reply[-5:]
            claim.progress = Progress(int(stdout or 0), int(stderr or 0), started_at or None, image or None)
            claim.adoptions = int(adoptions or 0)
        return claim

    def _claimed(self, job_id: str, host: str, reply: list[Any], *, is_running: bool = False) -> Claim | Outcome:
        if reply[0] != "claimed":
            return cast(Outcome, reply[0])
        _, token, attempt, job, signature, secrets, created_at, queued_at, *counts = reply[:13]
        cancel, faults, failures, sent_at, seq = counts
        claim = Claim(
            job=Job(id=job_id, script=Script(type="bash", content="")),
            token=token,
            attempt=int(attempt),
            host=host,
            created_at=created_at,
            queued_at=queued_at,
            cancel_requested=bool(cancel),
            faults=int(faults),
            failures=int(failures),
            sent_at_ms=int(sent_at),
            _seq=int(seq),
        )
        try:
            self.signer.verify(job, signature)
            claim.job = self.read_job(job, self._open(job_id, secrets))
        except ValidationError as error:
            if formats.is_from_newer(error):
                self._leave_to_newer(claim, validation_message(error), is_running=is_running)
                return "unreadable"
            self._finish_unreadable(claim, validation_message(error))
            return "finished"
        except ValueError:
            self._finish_unreadable(claim, "is not JSON")
            return "finished"
        except (NotSigned, SecretsUnreadable) as error:
            self._finish_unreadable(claim, str(error))
            return "finished"
        return claim

    def _open(self, job_id: str, sealed: str) -> dict[str, str]:
        if sealed == _GONE:
            raise SecretsUnreadable(
                "its secrets are deleted: no worker had it for longer than CRONIUM_SECRET_TTL; submit it again"
            )
        return self.secrets.open(job_id, sealed) if sealed else {}

    def _leave_to_newer(self, claim: Claim, reason: str, *, is_running: bool) -> None:
        """Give back a job whose record does not say that it needs a newer version, and say it there: no worker of this
        version takes it again. A running one is left to recovery: its container must be gone first."""
        self.write(claim, [], {"format": formats.FORMAT + 1})
        if not is_running:
            self.retry(claim, f"left to a newer version than that of {claim.host}: {reason}")

    def explain(self, job_id: str, note: str) -> bool:
        """Say in the record and in an event why no worker takes a pending job. False: it is said already."""
        return bool(self.run("explain", job_id, note, progress_body(note).json))

    def give_up(self, job_id: str, *, host: str, reason: str) -> None:
        """End a job that is pending, and that no worker can be sent."""
        claim = self.claim(job_id, host=host)
        if isinstance(claim, Claim):
            self._finish_unreadable(claim, reason)

    def _finish_unreadable(self, claim: Claim, reason: str) -> None:
        result = JobResult(
            job_id=claim.job.id,
            status="failed",
            error=ErrorInfo(type="validation", message=f"this worker cannot take the job: {reason}"),
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
                settled = time.monotonic() - claim.taken_s >= SETTLED_LEASES * self._lease_ms / 1000
                arguments: list[str | int] = [claim.token, self._lease_ms, "1" if settled else ""]
                self._scripts["renew"](keys=job_keys(claim.job.id), args=arguments, client=pipe)
            raise_others(pipe.execute(raise_on_error=False))

    def write(self, claim: Claim, bodies: Sequence[Body], fields: Mapping[str, str | int] = {}) -> bool:
        """Append events and set fields of the record, together. True: a cancel has been asked for.

        Raises ClaimLost.
        """
        with claim._lock:
            claim.stored += sum(map(stored_bytes, bodies))
            pairs = tuple(chain(*fields.items(), ("stored", claim.stored)))
            while (outcome := self._fenced("write", claim, *_numbered(claim, bodies), *pairs)).isdigit():
                claim._seq = int(outcome)  # of an earlier write nobody heard whether it was made
            claim._seq += len(bodies)
        return outcome == "cancel"

    def _fenced(self, script: str, claim: Claim, *arguments: Argument) -> str:
        with claim._lock:
            claim._writes += 1
            outcome = cast(str, self.run(script, claim.job.id, claim.token, claim._writes, *arguments))
        if outcome == "lost":
            raise ClaimLost(f"job {claim.job.id} attempt {claim.attempt} is no longer this worker's")
        return outcome

    def finish(self, claim: Claim, result: JobResult, message: str) -> None:
        """Write the terminal status, once; the secrets are gone with it. Raises ClaimLost."""
        body = status_body(
            result.status,
            message,
            attempt=claim.attempt,
            host=claim.host,
            result=result.without_contents(),
        )
        finished_at = result.finished_at or now_iso()
        event = in_pieces(with_ready_outputs(body.json, contents=False))
        about = (result.status, finished_at, self.result_ttl_s)
        name = ""
        if result.is_ready:
            name = uuid4().hex
            key, pieces = whole_result_key(claim.job.id, name), in_pieces(result.to_json())
            set_pieces(self.redis, key, pieces, into="list", ttl_s=UNFINISHED_S)
            result = result.model_copy(update={"output": _elsewhere(result.output)})
        try:
            self._fenced(
                "finish", claim, *about, name, result.model_dump_json(), *event
            )  # once: with its own number of the write
        except ClaimLost:
            if name:
                self.redis.unlink(whole_result_key(claim.job.id, name))
            raise
        self.count_end(result.status, claim.job.script.type, result.error.type if result.error else "")

    def refuse(self, result: JobResult, job: Job | None = None) -> None:
        """Record the end of a job that is not registered: it is no valid one, or will not run. A record of this id is
        left alone."""
        created_at, finished_at = result.created_at or now_iso(), result.finished_at or now_iso()
        message = result.error.message if result.error else "refused"
        body = status_body(result.status, message, attempt=1, host=None, result=result.without_contents())
        self.redis.zadd(INDEX_KEY, {result.job_id: epoch_ms(created_at)}, nx=True)
        fields = {"id": result.job_id, "job": "{}", "created_at": created_at}
        if job is not None:
            queue = job.queue or DEFAULT_QUEUE
            fields |= {"job": job.to_json(secrets=False), "type": job.script.type, "queue": queue}
        flat = [part for pair in fields.items() for part in pair]
        text = result.model_dump_json()
        outcome = self.run(
            "refuse", result.job_id, result.status, text, finished_at, self.result_ttl_s, body.json, *flat
        )
        if outcome == "ok":
            script_type = job.script.type if job is not None else ""
            self.count_end(result.status, script_type, result.error.type if result.error else "")

    def count_end(self, status: str, script_type: str, error_type: str) -> None:
        """One more job has ended. Once for each, but for one whose writer is lost right after its end: then never.
        Apart from the record's own write, whose keys are of one slot."""
        with suppress(RedisError):  # also of who may not: it is a count, and the job has ended
            self.redis.hincrby(ENDED_KEY, f"{status}|{script_type}|{error_type}", 1)

    def ended(self) -> dict[tuple[str, str, str], int]:
        """How many jobs have ended since the fleet's first, by status, type of script (empty: unknown), and type of
        error (empty: none)."""
        rows = cast("dict[str, str]", self.redis.hgetall(ENDED_KEY))
        parts = [(name.split("|"), int(count)) for name, count in rows.items()]
        return {(key[0], key[1], key[2]): count for key, count in parts if len(key) == 3}

    def retry(
        self, claim: Claim, message: str, *, delay_s: float = 0, fault: bool = False, failure: bool = False
    ) -> None:
        """Give the job back as `pending`, to be sent again in `delay_s` seconds: with the next attempt after a fault of
        the fleet or a failure of the script, which are counted, else with the same one. Raises ClaimLost."""
        attempt = claim.attempt + (fault or failure)
        body = status_body("pending", message, attempt=attempt, host=None)
        faults, failures = claim.faults + fault, claim.failures + failure
        self._fenced("retry", claim, attempt, body.json, int(delay_s * 1000), faults, failures, now_iso())
        self.look_at(claim.job.id, in_s=delay_s + FIRST_LOOK_S)

    def look_at(self, job_id: str, *, in_s: float) -> None:
        """When somebody has to look after the job next."""
        with suppress(BrokenKey):  # then nobody can; the log says so
            self.redis.zadd(ACTIVE_KEY, {job_id: epoch_ms(now_iso()) + int(in_s * 1000)})

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
            rows = fields_of(pipe, ("cancel", "status"))
        return {job_id for job_id, (cancel, status) in zip(job_ids, rows, strict=True) if cancel or status in TERMINAL}


def epoch_ms(iso: str) -> int:
    return int(datetime.fromisoformat(iso).timestamp() * 1000)


def stream_entries(reply: Any) -> list[tuple[str, dict[str, str]]]:
    """XREAD's reply for one stream: a dict in RESP3, a list of pairs in RESP2, None when nothing came."""
    if not reply:
        return []
    entries = next(iter(reply.values())) if isinstance(reply, dict) else reply[0][1]
    # RESP3 wraps the entries of each stream in one more list.
    return entries[0] if entries and isinstance(entries[0], list) else entries
