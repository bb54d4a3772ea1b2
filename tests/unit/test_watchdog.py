"""A node that takes nothing although it could."""

import pytest

from cronium_worker.watchdog import Watchdog


class Clock:
    now = 100.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("cronium_worker.watchdog.time.monotonic", lambda: clock.now)
    return clock


def test_it_barks_when_jobs_wait_and_none_is_taken_for_too_long(clock: Clock) -> None:
    watchdog = Watchdog(lambda: 3, patience_s=60)
    assert not watchdog.starves(free=True, taken=7)  # from now on 7 is nothing new
    for _ in range(3):
        assert not watchdog.starves(free=True, taken=7)
        clock.now += 25
    assert watchdog.starves(free=True, taken=7)


@pytest.mark.parametrize("change", ["taken", "busy", "empty"])
def test_any_sign_of_life_begins_the_time_anew(clock: Clock, change: str) -> None:
    waiting = [3]
    watchdog = Watchdog(lambda: waiting[0], patience_s=60)
    watchdog.starves(free=True, taken=7)
    watchdog.starves(free=True, taken=7)
    clock.now += 59
    waiting[0] = 0 if change == "empty" else 3
    taken = 8 if change == "taken" else 7
    assert not watchdog.starves(free=change != "busy", taken=taken)
    waiting[0] = 3
    assert not watchdog.starves(free=True, taken=taken)
    clock.now += 59
    assert not watchdog.starves(free=True, taken=taken)
    clock.now += 2
    assert watchdog.starves(free=True, taken=taken)
