"""Who runs the jobs of a host: one worker at a time."""

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
    descriptor = os.open(directory / "jobs.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                os.close(descriptor)
                return None
            time.sleep(_LOOK_EVERY_S)
        else:
            return descriptor
