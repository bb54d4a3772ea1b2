"""The processes that do for jobs what would keep the worker's threads from running: `python -m` this.

The first one has nothing of the fleet: no setting, no key, no connection. For each job that needs it, it forks one
that is told this job's secrets, and ends when the worker closes the connection, or is gone.
"""

import gc
import os
import pickle
import select
import signal
import socket
import struct
import sys
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from cronium_worker.execution.discretion import without_secrets
from cronium_worker.masking import Masker, StreamState
from cronium_worker.models import Job, JobResult, Output
from cronium_worker.models.fields import KIB
from cronium_worker.workspace.bounds import bounded
from cronium_worker.workspace.collection import collect
from cronium_worker.workspace.directories import Workspace
from cronium_worker.workspace.walk import Limits

_NICE = 10
_OOM_SCORE = "800"  # before the worker
_LENGTH = struct.Struct("!Q")
_PIECE_BYTES = 512 * KIB


def send(connection: socket.socket, *parts: bytes) -> None:
    """Parts, each with its length before it. Raises OSError."""
    for part in parts:
        connection.sendall(_LENGTH.pack(len(part)))
        connection.sendall(part)


def receive(connection: socket.socket) -> list[bytearray]:
    """One part, in pieces: to make or copy a large one at once would keep all other threads from running. Raises
    OSError, also at the end of the connection."""
    (length,) = _LENGTH.unpack(_exactly(connection, _LENGTH.size))
    return [_exactly(connection, min(_PIECE_BYTES, length - at)) for at in range(0, length, _PIECE_BYTES)]


def read_pickle(part: list[bytearray]) -> Any:
    return pickle.loads(b"".join(part))  # noqa: S301 - of a process of our own


def _exactly(connection: socket.socket, size: int) -> bytearray:
    data = bytearray(size)
    view, at = memoryview(data), 0
    while at < size:
        got = connection.recv_into(view[at:])
        if not got:
            raise ConnectionResetError("the other side is gone")
        at += got
    return data


class Work:
    """What can be asked of a process; each call's answer is bytes, in parts."""

    def __init__(self, secrets: tuple[str, ...]) -> None:
        self._masker = Masker(secrets)

    def feed(self, state: StreamState, data: bytes) -> tuple[bytes, ...]:
        stream = self._masker.stream(state)
        out = stream.feed(data)
        return out, pickle.dumps(stream.state)

    def finish(self, state: StreamState) -> tuple[bytes, ...]:
        stream = self._masker.stream(state)
        out = stream.finish()
        return out, pickle.dumps(stream.state)

    def message(self, text: str) -> tuple[bytes, ...]:
        return (pickle.dumps(self._masker.message(text)),)

    def json(self, value: Any) -> tuple[bytes, ...]:
        return (pickle.dumps(self._masker.json(value)),)

    def read_job(self, text: str) -> tuple[bytes, ...]:
        """A job but for its input, and that as JSON; nothing when it is no valid job."""
        try:
            job = Job.from_record(text, {})
        except ValueError:
            return b"", b""
        if "input_data" not in job.model_fields_set:
            return pickle.dumps(job), b""
        return pickle.dumps(job.with_input_json(b"")), bytes(job.input_json())

    def read_result(self, text: str) -> tuple[bytes, ...]:
        """A result but for its output, and that as `collect` gives it."""
        result = JobResult.model_validate_json(text)
        apart = result.model_copy(update={"output": Output(condition=result.output.condition)})
        return (pickle.dumps(apart), *_texts(result.output))

    def collect(self, root: str, limits: Limits, owner_uid: int) -> tuple[bytes, ...]:
        """The output as JSON, the same without the files' contents, its condition and the errors."""
        found = collect(Workspace(Path(root)), limits, owner_uid=owner_uid, masker=self._masker)
        output, too_large = bounded(without_secrets(found, self._masker))
        errors = [error.info() for error in (*found.errors, *too_large)]
        return (*_texts(output), pickle.dumps((output.condition, errors)))


def _texts(output: Output) -> tuple[bytes, bytes]:
    without_contents = output.model_dump_json(exclude={"files": {"__all__": {"content"}}})
    return output.model_dump_json().encode(), without_contents.encode()


def _serve(connection: socket.socket) -> None:
    """The questions of one job. A fault is answered with its name: it is the caller's to judge."""
    work = Work(read_pickle(receive(connection)))
    while True:
        name, arguments = read_pickle(receive(connection))
        try:
            parts = getattr(work, name)(*arguments)
        except OSError as error:
            send(connection, pickle.dumps(error.strerror or type(error).__name__), b"")
            continue
        send(connection, b"", pickle.dumps(len(parts)), *parts)


def _end_with(connection: socket.socket) -> None:
    """End this process as soon as the other side is gone, whatever it is doing."""
    watch = select.poll()
    watch.register(connection, 0)  # a hang-up is told always
    watch.poll()
    os._exit(1)


def _job(connection: socket.socket) -> None:
    gc.disable()  # nothing goes round in a circle here, and looking for that takes longer than the rest
    with suppress(OSError):
        os.nice(_NICE)
        Path("/proc/self/oom_score_adj").write_text(_OOM_SCORE)
    threading.Thread(target=_end_with, args=(connection,), daemon=True).start()
    with suppress(OSError):
        send(connection, b"")  # it is there
        _serve(connection)


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # they end when the worker has, not with it
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    Masker(("prepared",)).text("prepared")
    with suppress(OSError):
        # Where the kernel shares the processor between sessions, a process's own priority counts within its session.
        Path("/proc/self/autogroup").write_text(str(_NICE))
    with socket.socket(fileno=int(sys.argv[1])) as worker:
        while True:
            data, descriptors, *_ = socket.recv_fds(worker, 1, 1)
            if not data:
                return
            with socket.socket(fileno=descriptors[0]) as connection:
                if os.fork() == 0:
                    worker.close()
                    _job(connection)
                    os._exit(0)


if __name__ == "__main__":
    main()
