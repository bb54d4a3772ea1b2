"""A uid of its own for each sandbox: the kernel counts some limits by uid, such as inotify instances, and two
containers of one uid would take from each other's."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cronium_worker.workspace.directories import Workspace, existing
from cronium_worker.workspace.lock import lock_file

_LOCK_NAME = "uids.lock"
_LOCK_TIMEOUT_S = 10
_LOOK_EVERY_S = 0.005


@contextmanager
def free_uid(base_path: Path, pool: range) -> Iterator[int]:
    """A uid that no sandbox below `base_path` has, of whatever fleet and host; nobody else is given it until the
    caller leaves, with the sandbox's directories made.

    Nothing is kept beside the workspaces themselves: each is made before its container and removed after it, so that
    the sandboxes of a worker that died keep their uids, and no list of ours can be out of date. Raises OSError with
    EUSERS when all are in use, and whatever the file system raises.
    """
    base_path.mkdir(mode=0o700, parents=True, exist_ok=True)
    lock = lock_file(base_path / _LOCK_NAME, timeout_s=_LOCK_TIMEOUT_S, look_every_s=_LOOK_EVERY_S)
    if lock is None:
        raise TimeoutError(errno.ETIMEDOUT, "another worker holds the lock of the uid pool and hangs")
    try:
        in_use = _uids_in_use(base_path)
        uid = next((uid for uid in pool if uid not in in_use), None)
        if uid is None:
            raise OSError(errno.EUSERS, "every uid of CRONIUM_SECURITY__UID_POOL is in use")
        yield uid
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
