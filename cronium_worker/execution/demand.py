"""How many sandboxes of a kind should wait, by the jobs that came lately. Pure."""

from collections import deque
from collections.abc import Mapping
from typing import TypeVar

_Kind = TypeVar("_Kind")

# About what it takes to make a few new ones: jobs that come closer together need one each.
WINDOW_S = 2.0
# A kind that nobody has asked for since then needs none.
MEMORY_S = 300.0


class Demand:
    """Of one kind. Times are monotonic seconds."""

    def __init__(self) -> None:
        self._window: deque[float] = deque()
        self._peaks: deque[tuple[float, int]] = deque()  # when, and how many had come within the window; falling
        self.last_s = float("-inf")  # when a job came last

    def note(self, now: float) -> None:
        self.last_s = now
        self._window.append(now)
        while self._window[0] < now - WINDOW_S:
            self._window.popleft()
        count = len(self._window)
        while self._peaks and self._peaks[-1][1] <= count:
            self._peaks.pop()
        self._peaks.append((now, count))

    def peak(self, now: float) -> int:
        """The most jobs that came within one window."""
        while self._peaks and self._peaks[0][0] < now - MEMORY_S:
            self._peaks.popleft()
        return self._peaks[0][1] if self._peaks else 0


def shares(wanted: Mapping[_Kind, int], size: int) -> dict[_Kind, int]:
    """What each kind gets of `size`: one each first, in the order given, then what is left of what they want."""
    given, left = dict.fromkeys(wanted, 0), size
    for at_most in (1, size):
        for kind, number in wanted.items():
            more = min(number - given[kind], at_most, left)
            given[kind] += more
            left -= more
    return given
