"""A uid of its own for each sandbox: the kernel counts some limits by uid, such as inotify instances, and two
containers of one uid would take from each other's."""

import errno
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cronium_worker.workspace.directories import Workspace, existing
from cronium_worker.workspace.lock import lock_file

_LOCK_NAME = "uids.lock"
_LOCK_TIMEOUT_S = 10
_LOOK_EVERY_S = 0.005
_TIMEOUT_S = 60
_FREE_EVERY_S = 0.05


@contextmanager
def free_uid(base_path: Path, pool: range, *, timeout_s: float = _TIMEOUT_S) -> Iterator[int]:
    """A uid that no sandbox below `base_path` has, of whatever fleet and host; no other caller is given it until this
    one leaves, with the sandbox's directories made. A sandbox that is being destroyed has its uid until the end: waits
    for one if there is none.

    Nothing is kept beside the workspaces themselves: each is made before its container and removed after it, so that
    the sandboxes of a worker that died keep their uids, and no list of ours can be out of date. Raises OSError with
    EUSERS when all stay in use, and whatever the file system raises.
    """
    base_path.mkdir(mode=0o700, parents=True, exist_ok=True)
    deadline = time.monotonic() + timeout_s
    while True:
        with _locked(base_path):
            in_use = _uids_in_use(base_path)
            uid = next((uid for uid in pool if uid not in in_use), None)
            if uid is not None:
                yield uid
                return
        if time.monotonic() >= deadline:
            raise OSError(errno.EUSERS, "every uid of CRONIUM_SECURITY__UID_POOL is in use")
        time.sleep(_FREE_EVERY_S)


@contextmanager
def _locked(base_path: Path) -> Iterator[None]:
    lock = lock_file(base_path / _LOCK_NAME, timeout_s=_LOCK_TIMEOUT_S, look_every_s=_LOOK_EVERY_S)
    if lock is None:
        raise TimeoutError(errno.ETIMEDOUT, "another worker holds the lock of the uid pool and hangs")
    try:
        yield
    finally:
        os.close(lock)


def _uids_in_use(base_path: Path) -> set[int]:
    found = set()
    with os.scandir(base_path) as entries:
        hosts = [Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)]
    for host in hosts:
        for workspace, _ in existing(host):
            found |= _uid(workspace)
    return found


def _uid(workspace: Workspace) -> set[int]:
    with suppress(FileNotFoundError):  # it is being removed: its container is gone
        return {workspace.owner()[0]}
    return set()
