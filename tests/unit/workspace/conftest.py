"""Workspaces on the real file system, and the two identities a worker may have."""

import ctypes
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from cronium_worker.workspace import Workspace, create, remove
from tests.mounts import mounts_below

NOBODY = 65534
_PR_SET_DUMPABLE = 4


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    """A workspace whose job is the user of the tests."""
    made = create(tmp_path / "base", "job-1", uid=os.geteuid(), gid=os.getegid())
    yield made
    with suppress(OSError):
        remove(made)


@pytest.fixture
def quick_workspace() -> Iterator[Workspace]:
    """A workspace in memory, where there is a file system for that: for trees that a disk is slow to make."""
    memory = Path("/dev/shm")
    base = Path(tempfile.mkdtemp(dir=memory if os.access(memory, os.W_OK) else None))
    made = create(base, "job-1", uid=os.geteuid(), gid=os.getegid())
    yield made
    remove(made)
    shutil.rmtree(base)


@pytest.fixture
def canary(tmp_path: Path) -> Iterator[Path]:
    """A file outside of the workspace: what it is and what it holds must never change or be seen."""
    path = tmp_path / "canary"
    path.write_text("CANARY-4711")
    path.chmod(0o640)
    before = path.stat()
    yield path
    after = path.stat()
    assert path.read_text() == "CANARY-4711"
    assert (after.st_mode, after.st_uid, after.st_mtime_ns) == (before.st_mode, before.st_uid, before.st_mtime_ns)


@pytest.fixture
def unprivileged() -> Iterator[Path]:
    """Run the test without root's powers; gives a directory that it may write in."""
    base = Path(tempfile.mkdtemp())
    if os.geteuid() != 0:
        yield base
        subprocess.run(["chmod", "-R", "u+rwx", base], check=True)
        shutil.rmtree(base)
        return
    os.chown(base, NOBODY, NOBODY)
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    # A change of user makes /proc/self root's (proc(5)); a program that was started as nobody would own it.
    ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)
    try:
        yield base
    finally:
        os.seteuid(0)
        os.setegid(0)
        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)
        shutil.rmtree(base)


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[..., None]]:
    """Mounts below `tmp_path` for the time of a test."""
    with mounts_below(tmp_path) as mount:
        yield mount
