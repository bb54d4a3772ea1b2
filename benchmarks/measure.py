"""Figures: a median and a 95th percentile of samples, and their ratio to a floor of the same run."""

import statistics
from collections.abc import Callable
from dataclasses import asdict, dataclass
from time import perf_counter, sleep


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
