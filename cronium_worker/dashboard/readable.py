"""Celery's words for what happened, in ours: what an event may tell the page, and a task as one line. No I/O."""

import json
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

import msgspec
from flower.utils.template import format_duration

from cronium_worker.models import TERMINAL
from cronium_worker.models.job import JOBS_NODE

JOB_TASK = "cronium.execute_job"
# `argsrepr` as tasks.py and request.py write it.
_JOB_LINE = re.compile(r"([A-Za-z0-9][A-Za-z0-9_-]{0,62}) (bash|python|node|\?)")
# The reprs of JobResult and JobFailed.
_ENDED = re.compile(r"Job(?:Result|Failed)\('[^']*', '(\w+)'\)")
_LONGEST = 200
_STATUS_OF = {"PENDING": "pending", "RECEIVED": "pending", "STARTED": "running", "SUCCESS": "completed"}


def one_line(text: str) -> str:
    """The first line, at most 200 characters of it."""
    line = text.strip().partition("\n")[0]
    return line if len(line) <= _LONGEST else line[: _LONGEST - 1] + "…"


def readable(event: dict[str, Any]) -> dict[str, Any]:
    """A task's event with one short line for arguments and result, and without traceback.

    The traceback of a failed job is always the same few lines of ours, with this host's paths; another one is in
    the worker's log. A foreign producer may have put anything into the arguments.
    """
    if not event["type"].startswith("task-"):
        return event
    cleaned = {name: value for name, value in event.items() if name != "traceback"}
    if event.get("name") == JOB_TASK:
        known = _JOB_LINE.fullmatch(str(event.get("args")))
        cleaned |= {"args": known[0] if known else f"{event['uuid']} ?", "kwargs": "{}"}
    if "exception" in event:
        cleaned["exception"] = cleaned["result"] = _outcome(event["exception"])
    elif "result" in event:
        cleaned["result"] = _outcome(event["result"])
    return cleaned


def _outcome(text: object) -> str:
    ended = _ENDED.fullmatch(str(text))
    return ended[1] if ended else one_line(str(text))


def line(task: Any) -> dict[str, Any]:
    """A task (celery.events.state.Task) as the page's one line. Times are seconds since 1970, or None."""
    is_job = task.name == JOB_TASK
    name, _, kind = (task.args or "").partition(" ") if is_job else ("", "", "")
    return {
        "uuid": task.uuid,
        "job": name or task.uuid,
        "type": kind if is_job else (task.name or "?").removeprefix("cronium."),
        "status": _status(task),
        "host": host_of(task.worker.hostname) if task.worker else "",
        "received": task.sent or task.received or task.started or task.timestamp,
        "started": task.started,
        "runtime": _runtime(task),
        "is_job": is_job,
        "worker": task.worker.hostname if task.worker else "",
        "result": task.result or "",
    }


def of_row(row: Mapping[str, Any]) -> dict[str, object]:
    """Heading and text of what its events say of a task."""
    return {
        ("Job" if row["is_job"] else "Task"): row["job"],
        "Type": row["type"],
        "State": row["status"],
        "Host": row["host"],
        "Submitted": _time(row["received"]),
        "Started": _time(row["started"]),
        "Took": format_duration(row["runtime"]) if row["runtime"] is not None else "",
        "Result": row["result"] if row["result"] != row["status"] else "",
    }


class _Error(msgspec.Struct):
    type: str
    message: str


class _Timings(msgspec.Struct):
    run_s: float = 0.0


class _Result(msgspec.Struct):
    """What the page shows of a result: the rest is not made into objects."""

    exit_code: int | None = None
    error: _Error | None = None
    started_at: str | None = None
    timings: _Timings = msgspec.field(default_factory=_Timings)


def of_record(record: Mapping[str, str]) -> dict[str, object]:
    """Heading and text of what its record says of a job: neither its script nor its data."""
    result = msgspec.json.decode(record["result"], type=_Result) if record.get("result") else None
    error = result.error if result else None
    metadata: dict[str, str] = json.loads(record.get("job") or "{}").get("metadata") or {}
    return {
        "Job": record["id"],
        "Type": record.get("type", ""),
        "State": record["status"],
        "Result": one_line(f"{error.type}: {error.message}") if error else "",
        "Exit code": "" if result is None or result.exit_code is None else result.exit_code,
        "Host": record.get("host", ""),
        "Queue": record.get("queue", ""),
        "Attempt": record.get("attempt", ""),
        "Submitted": _time(_seconds(record.get("created_at"))),
        "Started": _time(_seconds(record.get("started_at"))),
        "Finished": _time(_seconds(record.get("finished_at"))),
        "Run time": format_duration(result.timings.run_s) if result and result.started_at else "",
        "Metadata": one_line(", ".join(f"{name}={value}" for name, value in metadata.items())),
    }


def _seconds(iso: str | None) -> float | None:
    return datetime.fromisoformat(iso).timestamp() if iso else None


def _time(seconds: float | None) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M:%S} UTC" if seconds else ""


def host_of(node: str) -> str:
    """`jobs@build-7` → `build-7`."""
    return node.partition("@")[2] or node


def _status(task: Any) -> str:
    if task.state == "FAILURE":
        return task.result if task.result in TERMINAL else "failed"
    return _STATUS_OF.get(task.state, str(task.state).lower())


def _runtime(task: Any) -> float | None:
    if task.runtime is not None:
        return float(task.runtime)
    ended = task.failed or task.succeeded  # Celery measures only tasks that succeed
    return max(0.0, ended - task.started) if ended and task.started else None


def past(record: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """The events that a job's record stands for: for a page that was not there when they happened."""
    host, status = record.get("host"), record["status"]
    created_at, finished_at = record["created_at"], record.get("finished_at")
    started_at = record.get("started_at")

    def event(kind: str, at: str, **fields: Any) -> dict[str, Any]:
        timestamp = datetime.fromisoformat(at).timestamp()
        common = {"uuid": record["id"], "timestamp": timestamp, "local_received": timestamp, "clock": 0}
        return {**common, "type": kind, "hostname": f"{JOBS_NODE}@{host}" if host else "", **fields}

    yield event("task-sent", created_at, name=JOB_TASK, args=f"{record['id']} {record.get('type', '?')}", kwargs="{}")
    if started_at or (host and status in {"preparing", "running"}):
        yield event("task-started", started_at or created_at)
    if finished_at and status == "completed":
        yield event("task-succeeded", finished_at, result=status)
    elif finished_at:
        yield event("task-failed", finished_at, exception=status, result=status)
