"""A user's schedule: a job, when it runs, and what becomes of a run that would overlap or was missed. No I/O."""

import re
from datetime import UTC, datetime
from typing import Annotated, Literal, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from cronium_worker.models.job import Job, Model
from cronium_worker.models.timetable import Interval, Timetable, parse_cron

Overlap = Literal["allow", "skip", "cancel-previous"]
Missed = Literal["skip", "run-once"]
# A run's id is NAME-20261128T215800Z, and ids have 63 characters at most.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,45}")
_EVERY = re.compile(r"(\d{1,9})([smhd]?)", re.ASCII)
_UNITS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
_LONGEST_S = 366 * 86400


def is_name(value: str) -> bool:
    return _NAME.fullmatch(value) is not None


def _name(value: str) -> str:
    if not is_name(value):
        raise ValueError(f"{value[:80]!r}: use 1 to 46 letters, digits, - and _, a letter or digit first")
    return value


def _parse_every(value: object) -> object:
    """`"90s"`, `"5m"`, `"12h"`, `"7d"` → seconds."""
    if not isinstance(value, str):
        return value
    match = _EVERY.fullmatch(value)
    if match is None:
        raise ValueError('not an interval: give seconds or a number with a unit, like "30s", "5m", "12h" or "7d"')
    return int(match[1]) * _UNITS[match[2]]


def _zone(name: str) -> str:
    try:
        ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise ValueError(f"{name[:80]!r} is no time zone: give a name like UTC or Europe/Berlin") from None
    return name


class JobSchedule(Model):
    """Fields: docs/schedules.md. The job has no id: each run gets one of its own."""

    name: Annotated[str, AfterValidator(_name)]
    cron: Annotated[str, Field(max_length=200)] | None = None
    every: Annotated[int, BeforeValidator(_parse_every), Field(strict=True, ge=1, le=_LONGEST_S)] | None = None
    timezone: Annotated[str, AfterValidator(_zone)] = "UTC"
    overlap: Overlap = "allow"
    missed: Missed = "skip"
    job: Job

    @field_validator("job")
    @classmethod
    def _has_no_id(cls, job: Job) -> Job:
        if "id" in job.model_fields_set:
            raise ValueError("id: leave it out: each run gets one of its own, of the schedule's name and the time")
        return job

    @model_validator(mode="after")
    def _is_due_some_time(self) -> Self:
        if (self.cron is None) == (self.every is None):
            raise ValueError("give either cron, like */5 * * * *, or every, like 30s")
        if self.cron is not None:
            try:
                parse_cron(self.cron, ZoneInfo(self.timezone))
            except ValueError as error:
                raise ValueError(f"cron: {error}") from None
        return self

    def timetable(self, since: datetime) -> Timetable:
        """`since`: from when on an interval is counted."""
        if self.cron is not None:
            return parse_cron(self.cron, ZoneInfo(self.timezone))
        return Interval(since, self.every or 1)

    def run_id(self, due: datetime) -> str:
        """The id of the job that is due then: the same for whoever finds it due."""
        return f"{self.name}-{due.astimezone(UTC):%Y%m%dT%H%M%SZ}"
