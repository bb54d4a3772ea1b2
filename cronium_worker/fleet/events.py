"""The format of events, in one place for writers and readers.

An event is one JSON object `{"v":1,"job_id","seq","ts","type",...}`. A writer makes the part after `seq` (the
*body*). The rest is put before it where the next `seq` is known: in Redis (lua/common.lua), or by the owner of a claim,
the only one who adds events meanwhile.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple

from pydantic_core import to_json

from cronium_worker.models import Status, Stream

Kind = Literal["status", "log", "metrics", "progress"]
Event = dict[str, Any]
# Of an event beside its body: `v`, `job_id`, `seq`, and what Redis keeps of a stream's entry (docs/scaling.md).
BESIDE_BODY_BYTES = 100
_MESSAGE_CHARACTERS = 2000


class Body(NamedTuple):
    """What a writer makes of an event: its type and its JSON from `ts` on, without the opening brace."""

    kind: Kind
    json: bytes


def whole(body: Body, job_id: str, seq: int) -> bytes:
    return b'{"v":1,"job_id":"%s","seq":%d,' % (job_id.encode(), seq) + body.json


def stored_bytes(body: Body) -> int:
    """What the event takes in Redis."""
    return len(body.json) + BESIDE_BODY_BYTES


def now_iso() -> str:
    """The time as all records and events write it: ISO 8601, UTC, microseconds."""
    return datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def shortened(text: str, characters: int) -> str:
    return text if len(text) <= characters else text[: characters - 1] + "…"


def _body(kind: Kind, fields: Mapping[str, Any]) -> Body:
    event = {"ts": now_iso(), "type": kind, **fields}
    return Body(kind, to_json(event, inf_nan_mode="null")[1:])


def status_body(status: Status, message: str, *, attempt: int, host: str | None, **more: Any) -> Body:
    message = shortened(message, _MESSAGE_CHARACTERS)
    return _body("status", {"status": status, "message": message, "attempt": attempt, "host": host, **more})


def claim_body(host: str) -> Body:
    """The `preparing` event, open at its end: only Redis knows the attempt."""
    body = _body("status", {"status": "preparing", "message": f"taken by {host}", "host": host})
    return Body(body.kind, body.json[:-1])


def cut_body() -> Body:
    """The `progress` event of earlier attempts' logs that were cut, open at its end: only Redis knows how far."""
    message = "the logs of earlier attempts were cut: up to event `to_seq`, status events alone are left"
    body = progress_body(message, truncated=True)
    return Body(body.kind, body.json[:-1])


def log_body(stream: Stream, data: str) -> Body:
    return _body("log", {"stream": stream, "data": data})


def metrics_body(sample: Mapping[str, Any]) -> Body:
    return _body("metrics", sample)


def progress_body(message: str, **more: Any) -> Body:
    return _body("progress", {"message": message, **more})
