"""The part of an event that its writer makes."""

import json
from datetime import UTC, datetime
from typing import Any

import pytest

from cronium_worker.fleet.events import (
    Body,
    claim_body,
    cut_body,
    log_body,
    metrics_body,
    now_iso,
    progress_body,
    status_body,
    stored_bytes,
    whole,
)


def event(body: Body) -> dict[str, Any]:
    """As it is completed."""
    return json.loads(whole(body, "job-1", 5))


@pytest.mark.parametrize(
    ("body", "kind", "fields"),
    [
        (
            status_body("running", "in x", attempt=2, host="h", more=[1]),
            "status",
            {"status": "running", "message": "in x", "attempt": 2, "host": "h", "more": [1]},
        ),
        (
            status_body("pending", "", attempt=1, host=None),
            "status",
            {"status": "pending", "message": "", "attempt": 1, "host": None},
        ),
        (
            status_body("completed", "", attempt=1, host="h", result={"data": 10**4299}),
            "status",
            {"status": "completed", "message": "", "attempt": 1, "host": "h", "result": {"data": 10**4299}},
        ),
        (log_body("stderr", 'ü"\n\0\u2028\x1b'), "log", {"stream": "stderr", "data": 'ü"\n\0\u2028\x1b'}),
        (metrics_body({"cpu_seconds": 0.5}), "metrics", {"cpu_seconds": 0.5}),
        (progress_body("pulling", percent=5), "progress", {"message": "pulling", "percent": 5}),
    ],
)
def test_bodies(body: Body, kind: str, fields: dict[str, Any]) -> None:
    made = event(body)

    assert body.kind == made["type"] == kind
    assert b"\n" not in body.json
    datetime.fromisoformat(made["ts"])
    head = {"v": 1, "job_id": "job-1", "seq": 5}
    assert {key: value for key, value in made.items() if key not in {"ts", "type"}} == head | fields


def test_the_body_of_a_claim_is_open_for_the_attempt() -> None:
    body = claim_body('h"1')

    made = json.loads(b'{"seq":0,' + body.json + b',"attempt":3}')

    assert (made["status"], made["host"], made["attempt"]) == ("preparing", 'h"1', 3)


def test_the_body_of_a_cut_is_open_for_how_far_it_went() -> None:
    body = cut_body()

    made = json.loads(b'{"seq":0,' + body.json + b',"to_seq":9}')

    assert (body.kind, made["type"], made["truncated"], made["to_seq"]) == ("progress", "progress", True, 9)
    assert made["message"].startswith("the logs of earlier attempts were cut")
    assert stored_bytes(body) == len(body.json) + 100


@pytest.mark.parametrize(("length", "kept"), [(1999, 1999), (2000, 2000), (2001, 1999)])
def test_a_message_has_an_end(length: int, kept: int) -> None:
    message = event(status_body("failed", "x" * length, attempt=1, host=None))["message"]

    assert message == "x" * kept + "…" * (length > 2000)


def test_no_event_is_invalid_json() -> None:
    assert event(metrics_body({"cpu_seconds": float("nan")}))["cpu_seconds"] is None


def test_times_are_utc_with_microseconds() -> None:
    before = datetime.now(UTC)

    text = now_iso()

    assert len(text) == len("2025-01-01T00:00:00.000000Z")
    assert text.endswith("Z")
    assert abs((datetime.fromisoformat(text) - before).total_seconds()) < 5
