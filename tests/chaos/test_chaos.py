"""A short run of `make chaos`, as CI makes it."""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

# One kind of each sort; those of the rig's engines are for the long run.
KINDS = (
    *("jobs node killed", "agent killed", "upgrade"),
    *("killed at: claimed", "killed at: started", "killed at: marked", "killed at: log written"),
    *("killed at: finishing", "killed at: finished", "killed at: adopted"),
    *("message", "redis killed", "redis full", "connections", "container killed", "container removed"),
)
LIMIT_S = 200


@pytest.mark.timeout(LIMIT_S + 20)
@pytest.mark.parametrize(
    ("pool", "kinds"), [(0, KINDS), (4, (*KINDS, "killed at: assigned"))], ids=["pool off", "pool on"]
)
def test_nothing_is_lost_and_nothing_comes_twice(tmp_path: Path, pool: int, kinds: Sequence[str]) -> None:
    results = tmp_path / "chaos.json"
    command = [sys.executable, "-m", "tests.chaos", "--seed", "7", "--faults", str(len(kinds)), "--no-engines"]
    command += ["--pool", str(pool), "--kinds", ",".join(kinds), "--results", str(results)]
    with subprocess.Popen(
        command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as run:
        try:
            output, _ = run.communicate(timeout=LIMIT_S)
        except subprocess.TimeoutExpired:
            run.terminate()  # then it takes its fleet down
            output, _ = run.communicate()
    assert run.returncode == 0, output
    outcome = json.loads(results.read_text())
    assert outcome["faults"] == len(kinds)
    assert outcome["totals"]["completed"] > len(kinds) / 2
    assert outcome["totals"]["recovered"] > 0
