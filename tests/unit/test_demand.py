"""How many sandboxes should wait, by the jobs that came lately."""

import pytest

from cronium_worker.execution.demand import MEMORY_S, WINDOW_S, Demand, shares


def demand(*times: float) -> Demand:
    made = Demand()
    for time in times:
        made.note(time)
    return made


def test_nobody_has_asked() -> None:
    assert demand().peak(0) == 0
    assert demand().last_s < 0


def test_jobs_one_after_the_other_need_one() -> None:
    times = [n * (WINDOW_S + 0.1) for n in range(20)]

    assert demand(*times).peak(times[-1]) == 1
    assert demand(*times).last_s == times[-1]


def test_jobs_at_once_need_one_each() -> None:
    assert demand(0, *[10 + n / 10 for n in range(8)], 20).peak(20) == 8


def test_a_peak_is_remembered_and_forgotten() -> None:
    burst = demand(1, 1, 1, 1, 1, 200, 200)

    assert burst.peak(200) == 5
    assert burst.peak(1 + MEMORY_S) == 5
    assert burst.peak(1.1 + MEMORY_S) == 2
    assert burst.peak(200.1 + MEMORY_S) == 0


def test_a_lower_peak_after_a_higher_one_counts_when_that_is_over() -> None:
    falling = demand(0, 0, 0, 100, 100, 200)

    assert [falling.peak(MEMORY_S + after) for after in (0, 1, 101, 201)] == [3, 2, 1, 0]


def test_a_window_slides() -> None:
    assert demand(0, 1.5, 3, 4.5, 6).peak(6) == 2


@pytest.mark.parametrize(
    ("wanted", "size", "given"),
    [
        ({"a": 3, "b": 1}, 8, {"a": 3, "b": 1}),
        ({"a": 9, "b": 2, "c": 0}, 4, {"a": 3, "b": 1, "c": 0}),
        ({"a": 9, "b": 2}, 1, {"a": 1, "b": 0}),
        ({"a": 2}, 0, {"a": 0}),
        ({}, 8, {}),
    ],
)
def test_what_is_to_be_had_is_shared(wanted: dict[str, int], size: int, given: dict[str, int]) -> None:
    assert shares(wanted, size) == given
