"""The gate: the FIFO at which a started container waits for its job, and the mark that it was opened.

At its end a container waits here as well, until the worker has read what it has used.
"""

import array
import fcntl
import os
import re
import termios
import time
from contextlib import suppress
from pathlib import Path

GATE_NAME = "gate"
MARK_NAME = "released"
ENDING_NAME = "ending"
_SAID = re.compile(r"(?P<mark>[^ ]+) (?P<code>\d{1,3}) (?P<told>1?)\n")
_SAID_BYTES = 256
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Gate:
    """Made by the worker in the control directory, which the container sees read-only.

    Held open for both reading and writing (fifo(7): that never blocks on Linux): the launcher's open returns
    at once, its read waits until `open()`. When the worker dies, the launcher reads the end of the file, or, if it
    has not come so far, waits for the next worker.

    The first line that comes through it is the end mark (workspace.staging). The launcher reads it before any other
    program runs in the container; then only its memory has it.

    The mark beside the gate decides whether a job was started: it is there, all at once, before the gate opens, and
    a launcher that reads the end of the file goes through if it is. So without the mark the script was not
    started and will not be; with it, it was, or will be once the next worker has opened the gate again.

    When the script has ended, the launcher writes a line to a second FIFO, `ending`, and waits for the end of this
    file: for `let_end()`, or the end of the worker. Until then the container's cgroup is there, with its counters; an
    engine with systemd's cgroup driver removes it at once. The line says with the end mark how the script has ended. A
    script can write there, too: then its metrics end there, and its launcher's word is not heard.
    """

    def __init__(self, control: Path, end_mark: str = "") -> None:
        self._mark = control / MARK_NAME
        self._end_mark = end_mark
        path = control / GATE_NAME
        os.mkfifo(path, 0o644)
        self._descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        os.fchmod(self._descriptor, 0o644)  # whatever the umask is: the container's user reads it
        os.write(self._descriptor, f"{end_mark}\n".encode())
        os.mkfifo(control / ENDING_NAME)
        self.ending = os.open(control / ENDING_NAME, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        os.fchmod(self.ending, 0o622)
        self._opened: tuple[float, str] | None = None
        self._first = True
        self._passed = False

    @classmethod
    def left_by_another(cls, control: Path) -> "Gate":
        """The gate that a worker which is gone has made; opened again if it was open. Raises OSError.

        The mark went with that worker if the launcher had not come so far: this launcher then writes none. If it had,
        the job could read whatever comes now, so that is not the mark.
        """
        gate = cls.__new__(cls)
        gate._mark = control / MARK_NAME
        gate._end_mark = ""
        gate._opened = None
        gate._first = gate._passed = False
        gate.ending = -1
        gate._descriptor = os.open(control / GATE_NAME, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            with suppress(FileNotFoundError):  # of an older worker
                gate.ending = os.open(control / ENDING_NAME, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
            with suppress(FileNotFoundError):
                at, boot = gate._mark.read_text().split()
                gate._opened = (float(at), boot)
                os.write(gate._descriptor, b"\ngo\n")
        except BaseException:
            gate.close()
            raise
        return gate

    @property
    def released(self) -> bool:
        return self._opened is not None

    @property
    def same_boot(self) -> bool:
        """Whether the host has not been started anew since the gate was opened."""
        return self._opened is not None and self._opened[1] == _boot_id()

    def open_for_s(self) -> float:
        """Seconds since the gate was opened first, by the time since the host's start: no step of a clock, no other
        worker and no sleep of the machine gives a job more time."""
        if self._opened is None or not self.same_boot:
            return 0.0
        return time.clock_gettime(time.CLOCK_BOOTTIME) - self._opened[0]

    def open(self) -> None:
        """Raises OSError; then it may be open, or not, as the mark says."""
        self._opened = (time.clock_gettime(time.CLOCK_BOOTTIME), _boot_id())
        unfinished = self._mark.with_suffix(".tmp")
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        with os.fdopen(descriptor, "w") as file:
            os.fchmod(descriptor, 0o644)  # whatever the umask is
            file.write(f"{self._opened[0]!r} {self._opened[1]}\n")
        unfinished.rename(self._mark)
        os.write(self._descriptor, b"go\n")

    def passed(self) -> bool:
        """Whether the launcher has gone through the gate after it was opened: nothing is left to read. Of another
        worker's gate only whether it was opened is known."""
        if not self._first:
            return self.released
        if self._descriptor < 0:
            return self._passed
        unread = array.array("i", [0])
        fcntl.ioctl(self._descriptor, termios.FIONREAD, unread)
        return unread[0] == 0

    def said(self) -> tuple[int, bool] | None:
        """The launcher's word, once `ending` is readable: its script's exit code, and whether a signal had told it to
        end. None: it is not the launcher's, or it cannot be told."""
        try:
            said = _SAID.fullmatch(os.read(self.ending, _SAID_BYTES).decode("ascii"))
        except (OSError, ValueError):
            return None
        if not said or said["mark"] != self._end_mark:
            return None
        return int(said["code"]), bool(said["told"])

    def let_end(self) -> None:
        """Let a launcher end whose script has. Who still writes to `ending` hears that nobody reads. Idempotent."""
        if self._descriptor >= 0:
            self._passed = self.passed()
            os.close(self._descriptor)
            self._descriptor = -1
        if self.ending >= 0:
            os.close(self.ending)
            self.ending = -1

    close = let_end


def _boot_id() -> str:
    return _BOOT_ID.read_text().strip()
