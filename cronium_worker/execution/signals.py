"""What wakes a thread that waits for its container: a cancel, room in the log's buffer."""

import os
import threading
from contextlib import suppress


class Wake:
    """An eventfd that goes into a selector. `set()` is safe from any thread, also after `close()`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._descriptor = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)

    def fileno(self) -> int:
        return self._descriptor

    def set(self) -> None:
        with self._lock:
            if self._descriptor >= 0:
                os.eventfd_write(self._descriptor, 1)

    def clear(self) -> None:
        with suppress(BlockingIOError):
            os.eventfd_read(self._descriptor)

    def close(self) -> None:
        with self._lock:
            os.close(self._descriptor)
            self._descriptor = -1


class CancelToken:
    """Says that a job is to end, or that this worker is to leave it; wakes whoever waits for it."""

    def __init__(self) -> None:
        self._event = threading.Event()
        self._lock = threading.Lock()
        self._wake: Wake | None = None
        self._detached = False

    def cancel(self) -> None:
        with self._lock:
            self._event.set()
            if self._wake is not None:
                self._wake.set()

    def detach(self) -> None:
        """The worker is about to end: the job's container is left to the next one."""
        with self._lock:
            self._detached = True
            if self._wake is not None:
                self._wake.set()

    def detached(self) -> bool:
        return self._detached

    def cancelled(self) -> bool:
        return self._event.is_set()

    def wait(self, timeout_s: float) -> bool:
        """Wait for a cancel. True: it came."""
        return self._event.wait(timeout_s)

    def wakes(self, wake: Wake | None) -> None:
        """Also set this from now on (and at once if the cancel was before); None: no more."""
        with self._lock:
            self._wake = wake
            if wake is not None and (self._detached or self._event.is_set()):
                wake.set()


class ActiveJobs:
    """The jobs that run in this process, each with its token."""

    def __init__(self) -> None:
        self._tokens: dict[str, CancelToken] = {}
        self._lock = threading.Lock()
        self._detaching = False

    def add(self, job_id: str) -> CancelToken:
        with self._lock:
            token = self._tokens.setdefault(job_id, CancelToken())
            if self._detaching:
                token.detach()
            return token

    def discard(self, job_id: str) -> None:
        with self._lock:
            self._tokens.pop(job_id, None)

    def ids(self) -> list[str]:
        with self._lock:
            return list(self._tokens)

    def cancel(self, job_id: str) -> None:
        with self._lock:
            token = self._tokens.get(job_id)
        if token is not None:
            token.cancel()

    def detach(self) -> None:
        """Leave all of them, and each one that comes after."""
        with self._lock:
            self._detaching = True
            tokens = list(self._tokens.values())
        for token in tokens:
            token.detach()
