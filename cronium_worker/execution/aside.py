"""Work on what a job has left or prints, done aside: in a process of the job's own, without the fleet's keys.

Python runs one thread at a time. What takes long for one job, because of what it has written, would keep those of
all others waiting: their starts, deadlines and cancels.
"""

import atexit
import os
import pickle
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from typing import Any

from cronium_worker.execution.aside_process import read_pickle, receive, send

_TRIES = 2  # each in a new process
_START_S = 30.0


class AsideLost(Exception):
    """The process ended, or did not answer in time; the tries are used up."""


class _First:
    """The process that forks those of the jobs. One for a worker, started when the first job needs it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._control: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def connect(self) -> socket.socket:
        """A connection to a new process, which has said that it is there. Raises OSError."""
        with self._lock:
            try:
                return self._connected()
            except OSError:  # this process itself is gone
                self.end()
                return self._connected()

    def _connected(self) -> socket.socket:
        ours, theirs = socket.socketpair()
        try:
            with theirs:
                socket.send_fds(self._running(), [b"1"], [theirs.fileno()])
            ours.settimeout(_START_S)
            receive(ours)
        except BaseException:
            ours.close()
            raise
        return ours

    def _running(self) -> socket.socket:
        if self._control is None:
            self._control, theirs = socket.socketpair()
            with theirs:
                self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "cronium_worker.execution.aside_process", str(theirs.fileno())],
                    # Nothing of the worker's own, which has the fleet's keys.
                    env={"PATH": os.defpath, "PYTHONPATH": os.pathsep.join(filter(None, sys.path)), "LANG": "C.UTF-8"},
                    pass_fds=[theirs.fileno()],
                    cwd="/",
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    start_new_session=True,
                )
        return self._control

    def end(self) -> None:
        if self._control is not None:
            self._control.close()
            self._control = None
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


_first = _First()
atexit.register(_first.end)


class Aside:
    """One job's process, started when it is first asked. Not for several threads at once."""

    def __init__(self, secrets: tuple[str, ...]) -> None:
        self._secrets = secrets
        self._connection: socket.socket | None = None

    def ask(self, name: str, *arguments: Any, timeout_s: float) -> list[list[bytearray]]:
        """The answer of one of `Work`'s functions: parts, each in pieces. Raises AsideLost, and OSError for a fault of
        the host."""
        question = pickle.dumps((name, arguments))
        for _ in range(_TRIES):
            try:
                return self._ask(question, time.monotonic() + timeout_s)
            except _Told as fault:
                raise OSError(None, str(fault)) from None
            except OSError:
                self.close()
        raise AsideLost(name)

    def _ask(self, question: bytes, deadline: float) -> list[list[bytearray]]:
        if self._connection is None:
            self._connection = _first.connect()
            self._connection.settimeout(max(0.01, deadline - time.monotonic()))
            send(self._connection, pickle.dumps(self._secrets))
        self._connection.settimeout(max(0.01, deadline - time.monotonic()))
        send(self._connection, question)
        fault, count = receive(self._connection), receive(self._connection)
        if fault:
            raise _Told(read_pickle(fault))
        return [receive(self._connection) for _ in range(read_pickle(count))]

    def close(self) -> None:
        """The process ends at once, whatever it is doing. It may be asked again."""
        if self._connection is not None:
            with suppress(OSError):
                self._connection.close()
            self._connection = None


class _Told(Exception):
    """The process has answered that it could not."""
