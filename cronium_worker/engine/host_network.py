"""Where an engine's bridges are: its network namespace, which need not be this process's."""

import socket
import struct
from contextlib import suppress
from pathlib import Path

from cronium_worker.engine.client import Engine

_TIMEOUT_S = 10
_CREDENTIALS = struct.Struct("3i")  # pid, uid, gid: unix(7), SO_PEERCRED


def engine_pid(engine: Engine) -> int | None:
    """The process behind the engine's socket: with socket activation systemd, in the same network. None when that is
    not to be seen from here."""
    if engine.socket_path is None:
        return None
    with suppress(OSError), socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(_TIMEOUT_S)
        connection.connect(engine.socket_path)
        raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        pid: int = _CREDENTIALS.unpack(raw)[0]
        if pid:  # 0: of another PID namespace
            namespace(pid).stat()  # not without the right to look into that process
            return pid
    return None


def namespace(pid: int | None) -> Path:
    """The network namespace of a process; None: of this one."""
    return Path(f"/proc/{pid or 'self'}/ns/net")


def root(pid: int | None) -> Path:
    """The root directory of a process; None: of this one."""
    return Path(f"/proc/{pid or 'self'}/root")


def is_running(pid: int) -> bool:
    """Not one that has ended and that its parent has not asked for: proc_pid_stat(5)."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    return False


def has_link(pid: int | None, name: str) -> bool:
    with suppress(OSError):
        lines = Path(f"/proc/{pid or 'self'}/net/dev").read_text().splitlines()
        return any(line.strip().startswith(f"{name}:") for line in lines)
    return False
