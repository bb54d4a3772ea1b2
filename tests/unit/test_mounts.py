"""What the tests mount does not outlive them."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import wait_until
from tests.mounts import mounts_below

ROOT = Path(__file__).parents[2]
MOUNTS_AND_WAITS = """
import sys
from pathlib import Path
from tests.mounts import mounts_below

root = Path(sys.argv[1])
with mounts_below(root) as mount:
    mount(root / "here", "--bind", "/etc")
    print("mounted", flush=True)
    sys.stdin.read()
"""


def mounted(path: Path) -> bool:
    return f" {path} " in Path("/proc/self/mountinfo").read_text()


@pytest.fixture
def here(tmp_path: Path) -> Path:
    path = tmp_path / "here"
    path.mkdir()
    return path


def test_mounts_end_with_the_test(here: Path) -> None:
    with mounts_below(here.parent) as mount:
        mount(here, "-t", "tmpfs", "none")
        (here / "deeper").mkdir()
        mount(here / "deeper", "--bind", "/etc")
        assert mounted(here / "deeper")
    assert not mounted(here / "deeper")
    assert not mounted(here)


def test_mounts_end_with_tests_that_are_killed(here: Path) -> None:
    command = [sys.executable, "-c", MOUNTS_AND_WAITS, str(here.parent)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as tests:
        assert tests.stdout is not None
        assert tests.stdout.readline() == b"mounted\n"
        assert mounted(here)
        tests.send_signal(signal.SIGKILL)
    wait_until(lambda: not mounted(here), what="its mount is gone")
