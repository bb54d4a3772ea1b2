"""What of the web page needs no browser: its modules in Node.js, by Node's own test runner."""

import subprocess
from pathlib import Path

import pytest

_TESTS = sorted(Path(__file__, "..", "page").resolve().glob("*.test.mjs"))


@pytest.mark.parametrize("file", _TESTS, ids=lambda path: path.name)
def test_in_node(file: Path) -> None:
    done = subprocess.run(["node", "--test", str(file)], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stdout
