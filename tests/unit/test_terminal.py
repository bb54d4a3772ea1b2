"""A job on the terminal of `cronium run`: which line says what."""

from typing import Any

import pytest

from cronium_worker.cli.terminal import JobView
from cronium_worker.models import ErrorInfo, JobResult, LogSummary
from cronium_worker.models.result import Timings

TIMINGS = Timings(queue_s=1.25, setup_s=2.5, run_s=3.75, collect_s=4.5, total_s=12)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({}, "completed · run 3.75 s, set-up 2.50 s, queue 1.25 s · job j"),
        ({"host": "h1"}, "completed · run 3.75 s, set-up 2.50 s, queue 1.25 s · job j on h1"),
        (
            {"status": "failed", "error": ErrorInfo(type="script", message="exit code 3")},
            "failed · exit code 3 · run 3.75 s, set-up 2.50 s, queue 1.25 s · job j",
        ),
        (
            {"log": LogSummary(bytes=70, lines=5, truncated=True)},
            "completed · run 3.75 s, set-up 2.50 s, queue 1.25 s · log truncated, 70 bytes in all · job j",
        ),
        ({"log": LogSummary(bytes=70, lines=5)}, "completed · run 3.75 s, set-up 2.50 s, queue 1.25 s · job j"),
    ],
)
def test_the_summary(changes: dict[str, Any], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    result = JobResult.model_validate({"job_id": "j", "status": "completed", "timings": TIMINGS} | changes)

    JobView(quiet=False).summary(result)

    assert capsys.readouterr() == ("", f"{line}\n")


EVENTS: list[dict[str, Any]] = [
    {"seq": 1, "type": "status", "status": "pending", "message": "queued"},
    {"seq": 2, "type": "progress", "message": "pulling x: 1 of 2 layers"},
    {"seq": 3, "type": "status", "status": "running", "message": "started"},
    {"seq": 4, "type": "log", "stream": "stdout", "data": "out\n"},
    {"seq": 5, "type": "log", "stream": "stderr", "data": "err\n"},
    {"seq": 6, "type": "metrics", "cpu": 1},
    {"seq": 7, "type": "status", "status": "completed", "message": "completed"},
]


def test_events_go_to_their_streams(capsys: pytest.CaptureFixture[str]) -> None:
    view = JobView(quiet=False)

    for event in EVENTS:
        view.show(event)

    said = "pending: queued\npulling x: 1 of 2 layers\nrunning: started\nerr\n"
    assert capsys.readouterr() == ("out\n", said)


def test_quiet_shows_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    view = JobView(quiet=True)

    for event in EVENTS:
        view.show(event)
    view.summary(JobResult(job_id="j", status="completed"))

    assert capsys.readouterr() == ("", "")


def test_a_replay_goes_on_where_the_last_one_was_left() -> None:
    view = JobView(quiet=True)
    for event in EVENTS[:4]:
        view.show(event)

    assert [event["seq"] for event in view.resume(iter(EVENTS))] == [5, 6, 7]
