"""Locks among the processes of a host: who runs its jobs (one worker at a time), who gives a uid to a sandbox."""

import fcntl
import os
import time
from pathlib import Path

_LOOK_EVERY_S = 0.1


def lock_host(directory: Path, *, timeout_s: float) -> int | None:
    """Take the lock on a host's directory; None: another worker holds it, also one that hangs or is frozen.

    The kernel gives it back when the holder is gone, however it went: who gets it knows that what the worker
    before has left is nobody's. It is held as long as the descriptor that is returned is open.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    return lock_file(directory / "jobs.lock", timeout_s=timeout_s, look_every_s=_LOOK_EVERY_S)


def is_locked(directory: Path) -> bool:
    """Whether a worker serves the host of this directory."""
    descriptor = lock_host(directory, timeout_s=0)
    if descriptor is not None:
        os.close(descriptor)
    return descriptor is None


def lock_file(path: Path, *, timeout_s: float, look_every_s: float) -> int | None:
    """Take the lock on a file, which is made if it is not there; held until the descriptor is closed. None: in time
    its holder has not given it back. Raises OSError."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                os.close(descriptor)
                return None
            time.sleep(look_every_s)
        else:
            return descriptor
