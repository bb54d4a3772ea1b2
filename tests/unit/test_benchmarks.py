"""Benchmarks measure what their environment says."""

import subprocess
import sys
from pathlib import Path

PROGRAM = "import os; before = dict(os.environ); import benchmarks.__main__; assert dict(os.environ) == before"


def test_their_import_sets_nothing() -> None:
    subprocess.run([sys.executable, "-c", PROGRAM], cwd=Path(__file__).parents[2], check=True)
