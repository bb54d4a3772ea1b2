"""What a schedule may be, and what is said of one that may not."""

from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from pydantic import ValidationError

from cronium_worker.errors import validation_message
from cronium_worker.models.schedule import JobSchedule

JOB = {"script": {"type": "bash", "content": "true"}}


def made(**changes: Any) -> JobSchedule:
    given = {"name": "nightly", "cron": "30 2 * * *", "job": JOB} | changes
    return JobSchedule.model_validate({name: value for name, value in given.items() if value is not None})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "a b"}, "name: 'a b': use 1 to 46 letters"),
        ({"name": "x" * 47}, "name: "),
        ({"cron": "99 * * * *"}, "cron: bad minute in '99 * * * *': give minute 0-59"),
        ({"cron": "1," * 200 + "1 * * * *"}, "cron: String should have at most 200 characters"),
        ({"cron": None}, "give either cron, like */5 * * * *, or every, like 30s"),
        ({"every": 5}, "give either cron, like */5 * * * *, or every, like 30s"),
        ({"cron": None, "every": "5 parsecs"}, "every: not an interval: give seconds or a number with a unit"),
        ({"cron": None, "every": 0}, "every: Input should be greater than or equal to 1"),
        ({"timezone": "Europe/Atlantis"}, "timezone: 'Europe/Atlantis' is no time zone: give a name like UTC"),
        ({"timezone": "../../etc/passwd"}, "timezone: "),
        ({"overlap": "maybe"}, "overlap: Input should be 'allow', 'skip' or 'cancel-previous'"),
        ({"missed": "all"}, "missed: Input should be 'skip' or 'run-once'"),
        ({"job": JOB | {"id": "mine"}}, "job: id: leave it out: each run gets one of its own"),
        ({"job": JOB | {"timeout": -1}}, "job.timeout: "),
    ],
)
def test_what_is_refused_names_field_and_remedy(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as caught:
        made(**changes)
    assert validation_message(caught.value).startswith(message)


@pytest.mark.parametrize(("every", "seconds"), [("30", 30), ("30s", 30), ("5m", 300), ("12h", 43200), ("7d", 604800)])
def test_intervals(every: str, seconds: int) -> None:
    assert made(cron=None, every=every).every == seconds


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "2026-11-29T02:30:00+00:00"),
        ({"timezone": "Europe/Berlin"}, "2026-11-29T01:30:00+00:00"),
        ({"timezone": "America/New_York"}, "2026-11-28T07:30:00+00:00"),
        ({"cron": None, "every": "12h"}, "2026-11-28T15:00:00+00:00"),
        ({"cron": None, "every": "12h", "timezone": "Europe/Berlin"}, "2026-11-28T15:00:00+00:00"),
    ],
)
def test_its_times_are_those_of_its_zone(changes: dict[str, Any], expected: str) -> None:
    due = made(**changes).timetable(datetime(2026, 11, 28, 3, tzinfo=UTC)).after(datetime(2026, 11, 28, 3, tzinfo=UTC))
    assert due is not None
    assert due.isoformat() == expected


@pytest.mark.parametrize("zone", [UTC, timezone(timedelta(hours=9))], ids=str)
def test_the_longest_name_makes_a_job_id(zone: timezone) -> None:
    name = "x" * 46
    run_id = made(name=name).run_id(datetime(2026, 11, 28, 21, 58, tzinfo=UTC).astimezone(zone))
    assert run_id == f"{name}-20261128T215800Z"
    assert len(run_id) == 63  # as long as an id may be
