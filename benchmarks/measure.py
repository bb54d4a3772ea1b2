"""Figures: a median and a 95th percentile of samples, and their ratio to a floor of the same run."""

import statistics
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass
from time import perf_counter, sleep
from typing import Self

_LOOK_EVERY_S = 0.02


@dataclass(frozen=True, kw_only=True)
class Figure:
    """One row of the table. `ratio`: p50 divided by the floor's p50."""

    name: str
    unit: str
    p50: float
    p95: float
    count: int
    ratio: float | None = None

    def as_dict(self) -> dict[str, object]:
        return asdict(self)


def figure(name: str, unit: str, samples: list[float], floor: Figure | None = None) -> Figure:
    ordered = sorted(samples)
    p50 = statistics.median(ordered)
    p95 = ordered[min(len(ordered) - 1, round(0.95 * len(ordered)))]
    ratio = p50 / floor.p50 if floor is not None else None
    return Figure(name=name, unit=unit, p50=p50, p95=p95, count=len(ordered), ratio=ratio)


def timed_ms(action: Callable[[], object], rounds: int, *, pause_s: float = 0) -> list[float]:
    """Milliseconds of each round, after one that does not count. `pause_s`: before each, not counted."""
    action()
    samples = []
    for _ in range(rounds):
        sleep(pause_s)
        started = perf_counter()
        action()
        samples.append((perf_counter() - started) * 1000)
    return samples


class Lookout:
    """Looks again and again in a thread of its own, while it is entered."""

    def __init__(self) -> None:
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name=type(self).__name__, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def look(self) -> None:
        """What there is to see."""

    def _run(self) -> None:
        while not self._ended.wait(_LOOK_EVERY_S):
            self.look()
