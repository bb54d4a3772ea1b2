"""When a user's schedule is due, what runs of it, and why not. The system tests do the same with Redis and beats."""

import json
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from cronium_worker import schedules
from cronium_worker.app import app
from cronium_worker.errors import JobConflict, JobNotFound
from cronium_worker.models.schedule import JobSchedule
from cronium_worker.schedules import LATE, Entry, Fired, fire

NOW = datetime(2026, 11, 28, 12, 0, 30, tzinfo=UTC)
DUE = "2026-11-28T12:00:00+00:00"
RUN = "nightly-20261128T120000Z"
JOB = {"script": {"type": "bash", "content": "true"}, "metadata": {"team": "a"}}


class Fleet:
    """Stands in for Redis: what ran last, the statuses of jobs, what was submitted, cancelled and noted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.last = Fired()
        self.statuses: dict[str, str] = {}
        self.submitted: list[Any] = []
        self.cancelled: list[str] = []
        self.noted: list[Fired] = []
        self.refusal: Exception | None = None
        self.secrets = SimpleNamespace(open=lambda owner, sealed: {"KEY": f"{owner} {sealed}"})
        monkeypatch.setattr(schedules, "store", lambda: self)
        monkeypatch.setattr(schedules, "datetime", Clock)
        monkeypatch.setattr(schedules, "_fired", lambda _: self.last)
        monkeypatch.setattr(schedules, "_if_there", lambda entry, write: write(self, entry))
        monkeypatch.setattr(schedules, "_note", lambda pipe, entry, fired: pipe.noted.append(fired))
        monkeypatch.setattr(schedules, "execute_job", SimpleNamespace(delay=self.delay, name="cronium.execute_job"))

    def record(self, job_id: str) -> dict[str, str]:
        if job_id not in self.statuses:
            raise JobNotFound(job_id)
        return {"status": self.statuses[job_id]}

    def cancel(self, job_id: str) -> None:
        self.cancelled.append(job_id)

    def delay(self, job: Any) -> Any:
        if self.refusal:
            raise self.refusal
        self.submitted.append(job)
        return job


class Clock(datetime):
    @classmethod
    def now(cls, tz: Any = None) -> Any:
        return NOW.astimezone(tz)


@pytest.fixture
def fleet(monkeypatch: pytest.MonkeyPatch) -> Fleet:
    return Fleet(monkeypatch)


def entry(
    last: datetime = NOW - timedelta(seconds=90), *, enabled: bool = True, secrets: str = "", **fields: Any
) -> Entry:
    """A schedule of every minute that was dealt with until `last`."""
    schedule = JobSchedule.model_validate({"name": "nightly", "cron": "* * * * *", "job": JOB} | fields)
    made = Entry(
        name="schedule:nightly", task="cronium.execute_job", schedule=60, enabled=enabled, last_run_at=last, app=app
    )
    plan = schedules._Plan(schedule, schedule.timetable(last), secrets)
    made.plan = lambda: plan  # type: ignore[method-assign]
    return made


@pytest.mark.parametrize(
    ("last", "fields", "expected"),
    [
        (NOW - timedelta(seconds=30), {}, (False, 30)),
        (NOW - timedelta(seconds=31), {}, (True, 30)),
        (NOW - timedelta(hours=3), {}, (True, 30)),
        (NOW - timedelta(seconds=60), {"cron": None, "every": "1m"}, (True, 60)),
        (NOW - timedelta(seconds=59), {"cron": None, "every": "1m"}, (False, 1)),
        (NOW - timedelta(hours=1), {"cron": "0 13 * * *", "timezone": "Europe/Berlin"}, (True, 86370)),
        (NOW - timedelta(hours=1), {"cron": "0 13 * * *"}, (False, 3570)),
        (NOW - timedelta(hours=1), {"enabled": False}, (False, None)),
    ],
)
def test_when_it_is_due_and_when_to_ask_again(
    fleet: Fleet, last: datetime, fields: dict[str, Any], expected: tuple[bool, float | None]
) -> None:
    made = entry(last, **fields)

    assert made.is_due() == expected
    assert (made.due_at is None) is (expected[1] is None)


def test_what_is_due_runs_under_the_id_of_its_time_and_is_noted(fleet: Fleet) -> None:
    due = entry(secrets="sealed")

    fire(due)

    [job] = fleet.submitted
    assert job.id == RUN
    assert job.metadata == {"team": "a", "cronium.schedule": "nightly", "cronium.due": DUE}
    assert job.secrets == {"KEY": "schedule:nightly sealed"}
    assert fleet.noted == [Fired(DUE, RUN)]
    assert due.last_run_at == NOW.replace(second=0)


def test_what_is_not_due_does_nothing(fleet: Fleet) -> None:
    fire(entry(NOW - timedelta(seconds=30)))

    assert (fleet.submitted, fleet.noted) == ([], [])


@pytest.mark.parametrize(
    ("fields", "status", "ran", "cancelled", "note"),
    [
        ({}, "running", True, False, None),
        ({"overlap": "skip"}, "running", False, False, f"skipped at {DUE}: before had not ended"),
        ({"overlap": "skip"}, "pending", False, False, f"skipped at {DUE}: before had not ended"),
        ({"overlap": "skip"}, "completed", True, False, None),
        ({"overlap": "skip"}, "cancelled", True, False, None),
        ({"overlap": "skip"}, None, True, False, None),
        ({"overlap": "cancel-previous"}, "running", True, True, None),
        ({"overlap": "cancel-previous"}, "failed", True, False, None),
    ],
)
def test_a_run_that_would_overlap(
    fleet: Fleet, fields: dict[str, Any], status: str | None, ran: bool, cancelled: bool, note: str | None
) -> None:
    fleet.last = Fired("2026-11-28T11:59:00+00:00", "before")
    fleet.statuses = {"before": status} if status else {}
    due = entry(**fields)

    fire(due)

    assert [job.id for job in fleet.submitted] == [RUN] * ran
    assert fleet.cancelled == ["before"] * cancelled
    assert fleet.noted == [Fired(DUE, RUN) if ran else Fired(fleet.last.due_at, "before", note)]
    assert due.last_run_at == NOW.replace(second=0)


@pytest.mark.parametrize(("late", "missed", "ran"), [(0, "skip", True), (1, "skip", False), (1, "run-once", True)])
def test_a_run_that_was_missed(fleet: Fleet, late: int, missed: str, ran: bool) -> None:
    due_at = NOW - LATE - timedelta(seconds=late)
    made = entry(due_at - timedelta(hours=24), cron=None, every="24h", missed=missed)

    fire(made)

    assert len(fleet.submitted) == ran
    [noted] = fleet.noted
    assert (noted.note is None) is ran
    assert made.last_run_at == due_at


def test_a_job_that_is_refused_is_noted_and_not_tried_again(fleet: Fleet) -> None:
    fleet.refusal = JobConflict("its id is taken")
    due = entry()

    fire(due)

    assert fleet.noted == [Fired(note="refused: its id is taken")]
    assert due.last_run_at == NOW.replace(second=0)


def test_what_could_not_be_submitted_is_due_again(fleet: Fleet) -> None:
    fleet.refusal = ConnectionError()
    due = entry()

    with pytest.raises(ConnectionError):
        fire(due)

    assert (fleet.noted, due.last_run_at) == ([], NOW - timedelta(seconds=90))


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        (None, Fired()),
        ({"due_at": "a", "job_id": "b", "note": "c"}, Fired("a", "b", "c")),
        ({"due_at": "a", "from_a_newer_version": 1}, Fired("a")),
    ],
)
def test_what_is_noted_is_read_again(
    monkeypatch: pytest.MonkeyPatch, stored: dict[str, Any] | None, expected: Fired
) -> None:
    kept = {"fired": json.dumps(stored)} if stored else {}
    monkeypatch.setattr(schedules, "connect", lambda: SimpleNamespace(hget=lambda key, name: kept.get(name)))

    assert schedules._fired(entry()) == expected
