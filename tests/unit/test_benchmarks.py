"""Benchmarks measure what their environment says."""

import subprocess
import sys
from pathlib import Path

from benchmarks import ab

PROGRAM = "import os; before = dict(os.environ); import benchmarks.__main__; assert dict(os.environ) == before"


def test_their_import_sets_nothing() -> None:
    subprocess.run([sys.executable, "-c", PROGRAM], cwd=Path(__file__).parents[2], check=True)


def test_the_bounds_of_a_ratio_hold_its_median() -> None:
    assert ab.bounds([1.0] * 20) == (1, 1, 1)
    median, low, high = ab.bounds([0.9, 1.0, 1.1] * 30)
    assert low <= median == 1 <= high
    assert ab.bounds([1.2, 1.3, 1.4] * 30)[1] > 1.1
