"""What a run uses: peaks and totals for its result, and from time to time a sample for whoever follows it."""

import time
from typing import Any

from cronium_worker.engine.stats import UsageReader
from cronium_worker.models import Metrics

# Over less time a percentage says little: the kernel gives a limited container its share every 100 ms.
_SHORTEST_S = 0.5
_AT_MOST_EVERY_S = 0.5
# Of a run that is long, samples come further apart, so that those of a day are some 3,000.
_PART_OF_RUN = 1 / 500


class Sampler:
    """Of one run. `every_s`: between two samples at first; 0: none are taken. `metrics`: as of the last look; where the
    kernel told nothing at that moment, of the one before."""

    def __init__(self, reader: UsageReader, *, every_s: float) -> None:
        self._reader = reader
        self._every_s = every_s
        self.metrics = Metrics()
        self.oom_kills = 0
        self._peak_percent: float | None = None
        self._percent: float | None = None
        self._began = now = time.monotonic()
        self._looked_at = float("-inf")
        self._since, self._cpu_s = now, reader.read().cpu_seconds
        self.due_s = now + every_s if every_s else float("inf")

    def look(self, *, at_end: bool = False) -> None:
        """Read the counters. `at_end`: of a container whose processes are gone, or about to be."""
        found, now = self._reader.read(), time.monotonic()
        self._looked_at = now
        if found.cpu_seconds is None:
            return
        elapsed_s = now - self._since
        enough = elapsed_s >= _SHORTEST_S or (at_end and self._peak_percent is None and elapsed_s > 0)
        if enough and self._cpu_s is not None:
            self._percent = round(100 * (found.cpu_seconds - self._cpu_s) / elapsed_s, 1)
            self._peak_percent = max(self._percent, self._peak_percent or 0.0)
            self._since, self._cpu_s = now, found.cpu_seconds
        known = self.metrics.model_dump(exclude_none=True)
        told = found.model_dump(exclude_none=True)
        self.metrics = Metrics.model_construct(**{**known, **told, "cpu_percent_peak": self._peak_percent})
        self.oom_kills = self._reader.oom_kills()

    def look_sometimes(self) -> None:
        """In case nobody comes in time for the counters at the end."""
        if time.monotonic() - self._looked_at >= _AT_MOST_EVERY_S:
            self.look()

    def sample(self) -> dict[str, Any]:
        """What a `metrics` event has: percent of one core since the sample before, bytes and processes of this moment,
        and the totals."""
        self.look()
        now = time.monotonic()
        self.due_s = now + max(self._every_s, (now - self._began) * _PART_OF_RUN)
        totals = self.metrics.model_dump(exclude={"cpu_percent_peak"})
        return {"cpu_percent": self._percent, **self._reader.now(), **totals}
