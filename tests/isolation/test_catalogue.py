"""The catalogue of bad input and hostile scripts, in every language: as expected, nothing read, changed or left."""

from collections.abc import Callable, Iterator

import pytest

from cronium_worker.settings import Settings
from tests.integration.conftest import Bench
from tests.integration.scripts import LANGUAGES
from tests.isolation.catalogue import REFUSALS, grouped
from tests.isolation.trial import Trial, peak_bytes, refuse, reset_peak

QUICK = [group for group in grouped() if not any(attack.takes_long for attack in group)]


@pytest.fixture
def trial(bench: Bench, settings: Settings, leftovers: Callable[[], list[str]]) -> Iterator[Trial]:
    trial = Trial(bench, settings.base_path, leftovers)
    yield trial
    for canary in trial.canaries:
        canary.remove()
    assert (trial.canary_reads, trial.canary_writes, trial.residue, trial.crashes) == (0, 0, [], [])


@pytest.mark.parametrize("language", LANGUAGES)
def test_bad_input_is_refused_by_the_name_of_its_field(language: str) -> None:
    verdicts = [refuse(case, language) for case in REFUSALS]
    assert [verdict for verdict in verdicts if not verdict.as_expected] == []
    assert len(verdicts) > 80


@pytest.mark.parametrize("language", LANGUAGES)
def test_hostile_scripts_harm_nobody(bench: Bench, trial: Trial, language: str) -> None:
    reset_peak()
    before = peak_bytes()

    verdicts = trial.run_all(QUICK, [language])

    assert [verdict for verdict in verdicts if not verdict.as_expected] == []
    assert len(verdicts) > 55
    assert trial.peak_bytes - before < 200 * 2**20
    assert bench.runner.pool_count().misses == 0  # with a pool, each had waited
