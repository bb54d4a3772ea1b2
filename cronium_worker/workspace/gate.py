"""The gate: the FIFO at which a started container waits for its job."""

import array
import fcntl
import os
import termios
from pathlib import Path

GATE_NAME = "gate"


class Gate:
    """Made by the worker in the control directory, which the container sees read-only.

    Held open for both reading and writing (fifo(7): that never blocks on Linux): the launcher's open returns
    at once, its read waits until `open()`. When the worker dies, the launcher reads the end of the file.
    """

    def __init__(self, control: Path) -> None:
        path = control / GATE_NAME
        os.mkfifo(path, 0o644)
        self._descriptor = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        os.fchmod(self._descriptor, 0o644)  # whatever the umask is: the container's user reads it

    def open(self) -> None:
        os.write(self._descriptor, b"go\n")

    def passed(self) -> bool:
        """Whether the launcher has gone through the gate after it was opened: nothing is left to read."""
        unread = array.array("i", [0])
        fcntl.ioctl(self._descriptor, termios.FIONREAD, unread)
        return unread[0] == 0

    def close(self) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
