"""How often a run is sampled."""

import time
from itertools import pairwise
from typing import Any

import pytest

from cronium_worker.execution.sampling import Sampler
from cronium_worker.models import Metrics

DAY_S = 86_400


class Reader:
    def read(self) -> Metrics:
        return Metrics()

    def now(self) -> dict[str, Any]:
        return {}

    def oom_kills(self) -> int:
        return 0


@pytest.mark.attack
@pytest.mark.parametrize("every_s", [0.001, 1, 10])
def test_the_samples_of_a_day_are_a_few_thousand(every_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    reader: Any = Reader()
    sampler = Sampler(reader, every_s=every_s)
    taken: list[float] = []
    while sampler.due_s < 1000 + DAY_S and len(taken) < 10_000:
        now[0] = sampler.due_s
        sampler.sample()
        taken.append(now[0] - 1000)

    assert len(taken) < 10_000
    first = [after - before for before, after in pairwise(taken) if after < 100 * every_s]
    assert first == pytest.approx([every_s] * len(first)), "at first as often as it is set"
