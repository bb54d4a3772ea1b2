"""When something is due: a cron expression in a time zone, or an interval. Pure.

Cron as Debian's does it, by CronSim; also where the clocks are changed (its crontab(5): a time that is skipped is due
right after the jump, one that comes twice is due the first time, and what is for every hour goes on by real time).
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

_MACROS = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
_FIELDS = 5
_SOME_TIME = datetime(2000, 1, 1, tzinfo=UTC)


class Timetable(Protocol):
    """Times are aware, in UTC, of whole seconds."""

    def after(self, moment: datetime) -> datetime | None:
        """The first time later than this; None: there is none."""
        ...

    def latest(self, moment: datetime, *, after: datetime) -> datetime | None:
        """The last time until this moment, itself included, that is later than `after`."""
        ...


@dataclass(frozen=True)
class Interval:
    """Every `seconds` from `since` on, which is none of its times."""

    since: datetime
    seconds: int

    def after(self, moment: datetime) -> datetime | None:
        turns = max((moment - self.since) // timedelta(seconds=self.seconds), 0) + 1
        return self.since + timedelta(seconds=turns * self.seconds)

    def latest(self, moment: datetime, *, after: datetime) -> datetime | None:
        turns = (moment - self.since) // timedelta(seconds=self.seconds)
        time = self.since + timedelta(seconds=turns * self.seconds)
        return time if turns > 0 and time > after else None


@dataclass(frozen=True)
class Cron:
    """An expression of five fields, by the clocks of its zone."""

    expression: str
    zone: ZoneInfo

    def after(self, moment: datetime) -> datetime | None:
        return next((time for time in self._times(moment) if time > moment), None)

    def latest(self, moment: datetime, *, after: datetime) -> datetime | None:
        back = self._times(moment + timedelta(seconds=1), reverse=True)
        found = next((time for time in back if time <= moment), None)
        # Backwards CronSim leaves out a time or two where the clocks are changed.
        while found is not None and (following := self.after(found)) is not None and following <= moment:
            found = following
        return found if found is not None and found > after else None

    def _times(self, start: datetime, *, reverse: bool = False) -> Iterator[datetime]:
        return (time.astimezone(UTC) for time in CronSim(self.expression, start.astimezone(self.zone), reverse))


def parse_cron(expression: str, zone: ZoneInfo) -> Cron:
    """Raises ValueError, which says what is wrong."""
    fields = _MACROS.get(expression.strip().lower(), expression).split()
    if len(fields) != _FIELDS:
        raise ValueError(
            f"{expression[:80]!r} has {len(fields)} fields: give minute, hour, day of month, month, day of week, "
            'like "*/5 * * * *"'
        )
    cron = Cron(" ".join(fields), zone)
    try:
        first = cron.after(_SOME_TIME)
    except CronSimError as error:
        what = str(error).lower()
        raise ValueError(
            f"{what} in {expression[:80]!r}: give minute 0-59, hour 0-23, day of month 1-31 that one of the months "
            "has, month 1-12 or jan-dec, day of week 0-7 or sun-sat"
        ) from None
    if first is None:
        raise ValueError(f"{expression[:80]!r} never comes: no month has such a day")
    return cron
