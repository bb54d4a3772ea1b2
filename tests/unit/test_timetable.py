"""When cron expressions and intervals are due, also where clocks are changed."""

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest

from cronium_worker.models.timetable import Interval, Timetable, parse_cron

UTC_ZONE, BERLIN, LORD_HOWE = ZoneInfo("UTC"), ZoneInfo("Europe/Berlin"), ZoneInfo("Australia/Lord_Howe")
EARLY = datetime(2000, 1, 1, tzinfo=UTC)


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def times(timetable: Timetable, start: str, count: int) -> list[str]:
    found, moment = [], at(start)
    for _ in range(count):
        due = timetable.after(moment)
        assert due is not None
        found.append(f"{due:%Y-%m-%d %H:%M}")
        moment = due
    return found


@pytest.mark.parametrize(
    ("expression", "start", "expected"),
    [
        ("* * * * *", "2026-11-28 21:58:30", ["2026-11-28 21:59", "2026-11-28 22:00"]),
        ("* * * * *", "2026-11-28 21:58:00", ["2026-11-28 21:59"]),
        ("*/20 * * * *", "2026-12-31 23:30", ["2026-12-31 23:40", "2027-01-01 00:00", "2027-01-01 00:20"]),
        ("5/25 3 * * *", "2026-01-01", ["2026-01-01 03:05", "2026-01-01 03:30", "2026-01-01 03:55"]),
        ("0 9-17/4 * * mon-fri", "2026-11-27 13:00", ["2026-11-27 17:00", "2026-11-30 09:00"]),
        ("0 0 31 * *", "2026-01-31 12:00", ["2026-03-31 00:00", "2026-05-31 00:00"]),
        ("0 0 29 2 *", "2096-03-01", ["2104-02-29 00:00"]),
        ("0 0 1 JAN,jul *", "2026-02-01", ["2026-07-01 00:00", "2027-01-01 00:00"]),
        ("0 0 * * 7", "2026-11-28", ["2026-11-29 00:00", "2026-12-06 00:00"]),
        ("0 0 13 * fri", "2026-11-10", ["2026-11-13 00:00", "2026-11-20 00:00"]),  # either day
        ("0 0 */2 * sun", "2026-11-02", ["2026-11-15 00:00", "2026-11-29 00:00"]),  # both
        ("@hourly", "2026-11-28 21:58", ["2026-11-28 22:00", "2026-11-28 23:00"]),
        ("@daily", "2026-11-28 21:58", ["2026-11-29 00:00", "2026-11-30 00:00"]),
        ("@midnight", "2026-11-28 21:58", ["2026-11-29 00:00", "2026-11-30 00:00"]),
        ("@weekly", "2026-11-28 21:58", ["2026-11-29 00:00", "2026-12-06 00:00"]),  # on Sundays
        ("@monthly", "2026-11-28 21:58", ["2026-12-01 00:00", "2027-01-01 00:00"]),
        ("@yearly", "2026-11-28 21:58", ["2027-01-01 00:00", "2028-01-01 00:00"]),
        (" @Annually ", "2026-11-28 21:58", ["2027-01-01 00:00", "2028-01-01 00:00"]),
    ],
)
def test_cron(expression: str, start: str, expected: list[str]) -> None:
    assert times(parse_cron(expression, UTC_ZONE), start, len(expected)) == expected


@pytest.mark.parametrize(
    ("expression", "zone", "start", "expected"),
    [
        # The winter's and the summer's offset.
        ("30 2 * * *", BERLIN, "2026-01-10", ["2026-01-10 01:30"]),
        ("30 2 * * *", BERLIN, "2026-07-10", ["2026-07-10 00:30"]),
        # 2026-03-29, 02:00 becomes 03:00: what is skipped is due then, once.
        ("30 2 * * *", BERLIN, "2026-03-28 12:00", ["2026-03-29 01:00", "2026-03-30 00:30"]),
        ("0 2,3 * * *", BERLIN, "2026-03-28 12:00", ["2026-03-29 01:00", "2026-03-30 00:00"]),
        # 2026-10-25, 03:00 becomes 02:00: what comes twice is due the first time.
        ("30 2 * * *", BERLIN, "2026-10-24 12:00", ["2026-10-25 00:30", "2026-10-26 01:30"]),
        # For every hour: by real time.
        ("30 * * * *", BERLIN, "2026-03-29 00:00", ["2026-03-29 00:30", "2026-03-29 01:30"]),
        ("30 * * * *", BERLIN, "2026-10-25 00:00", ["2026-10-25 00:30", "2026-10-25 01:30", "2026-10-25 02:30"]),
        # By half an hour, on 2026-10-04 at 02:00.
        ("15 2 * * *", LORD_HOWE, "2026-10-03 00:00", ["2026-10-03 15:30", "2026-10-04 15:15"]),
    ],
)
def test_clocks_that_are_changed(expression: str, zone: ZoneInfo, start: str, expected: list[str]) -> None:
    assert times(parse_cron(expression, zone), start, len(expected)) == expected


@pytest.mark.parametrize("day", ["2026-03-29", "2026-10-25"])
def test_every_five_minutes_is_so_on_a_day_of_change(day: str) -> None:
    timetable = parse_cron("*/5 * * * *", BERLIN)
    moments = [at(time) for time in times(timetable, day, 200)]
    assert {later - earlier for earlier, later in pairwise(moments)} == {timedelta(minutes=5)}


@pytest.mark.parametrize("expression", ["*/7 * * * *", "30 2 * * *", "0 0 29 2 *", "15 4 * * mon", "0 0 1 1 *"])
def test_the_latest_is_the_one_before_the_next(expression: str) -> None:
    timetable = parse_cron(expression, BERLIN)
    first = timetable.after(at("2026-03-20 05:17"))
    assert first is not None
    second = timetable.after(first)
    assert second is not None
    just_before = second - timedelta(seconds=1)
    assert timetable.latest(first, after=EARLY) == first
    assert timetable.latest(just_before, after=EARLY) == first
    assert timetable.latest(just_before, after=first) is None
    assert timetable.latest(second, after=first) == second


@pytest.mark.parametrize("zone", [BERLIN, ZoneInfo("America/New_York"), UTC_ZONE], ids=str)
@pytest.mark.parametrize("expression", ["30 2 * * *", "*/20 */2 * * *", "15 * * * *", "30 1-3 * * *", "*/5 2 * * *"])
@pytest.mark.parametrize("day", ["2026-03-28", "2026-10-24", "2026-03-07", "2026-10-31"])
def test_no_time_is_left_out_or_comes_twice_where_clocks_are_changed(zone: ZoneInfo, expression: str, day: str) -> None:
    """Whoever looks every quarter of an hour, and fires the latest, fires each of them."""
    timetable, moment = parse_cron(expression, zone), at(day)
    expected = timetable.after(moment)
    for _ in range(3 * 96):
        moment += timedelta(minutes=15)
        latest = timetable.latest(moment, after=moment - timedelta(minutes=15))
        following = timetable.after(moment)
        assert following is not None
        assert following > moment
        if latest is not None:
            assert expected is not None
            assert expected <= latest <= moment
            expected = timetable.after(latest)
        assert expected == following


def test_in_an_hour_that_comes_twice_the_latest_is_of_the_first_time() -> None:
    timetable = parse_cron("30 2 * * *", BERLIN)
    for moment in ("2026-10-25 00:31", "2026-10-25 01:10", "2026-10-25 01:31"):
        assert timetable.latest(at(moment), after=EARLY) == at("2026-10-25 00:30")
        assert timetable.after(at(moment)) == at("2026-10-26 01:30")


def test_an_interval_counts_from_its_start() -> None:
    timetable = Interval(at("2026-11-28 12:00:05"), 90)
    assert timetable.after(at("2026-11-28 11:00:00")) == at("2026-11-28 12:01:35")
    assert timetable.after(at("2026-11-28 12:01:35")) == at("2026-11-28 12:03:05")
    assert timetable.latest(at("2026-11-28 12:03:04"), after=EARLY) == at("2026-11-28 12:01:35")
    assert timetable.latest(at("2026-11-28 12:01:34"), after=EARLY) is None
    assert timetable.latest(at("2026-11-28 12:03:04"), after=at("2026-11-28 12:01:35")) is None


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        ("* * * *", "has 4 fields: give minute, hour, day of month, month, day of week"),
        ("* * * * * *", "has 6 fields: give minute, hour, day of month, month, day of week"),
        ("60 * * * *", "bad minute in '60 * * * *': give minute 0-59"),
        ("* 24 * * *", "bad hour in"),
        ("* * 0 * *", "bad day-of-month in"),
        ("* * * 13 *", "bad month in"),
        ("* * * * 8", "bad day-of-week in"),
        ("* * * * someday", "bad day-of-week in"),
        ("*/0 * * * *", "bad minute in"),
        ("50-10 * * * *", "bad minute in"),
        ("1,,2 * * * *", "bad minute in"),
        ("-5 * * * *", "bad minute in"),
        ("0 0 31 2,4 *", "bad day-of-month in"),
        ("0 0 */20 * 1L", "never comes"),
    ],
)
def test_what_is_no_cron_expression(expression: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason.replace("*", r"\*").replace("(", r"\(")):
        parse_cron(expression, UTC_ZONE)
