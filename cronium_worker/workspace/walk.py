"""Reading a tree that a hostile job may have left: by directory descriptors, following nothing.

Every object is opened relative to a descriptor that was itself opened without following links, and is judged
by `fstat` after it is open. Two directory descriptors are open at a time, however deep the tree is. "The same
device" is judged by the mount that a descriptor belongs to: it also tells a bind mount of the same device
apart, and, unlike `st_dev`, is the same for the files and directories of an overlay or a btrfs volume.
"""

import errno
import hashlib
import os
import re
import stat
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote_to_bytes

from cronium_worker.errors import OutputError
from cronium_worker.models.fields import KIB, MIB

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_CHUNK_BYTES = MIB
_NAMES_IN_A_NOTE = 5
_SHOWN_CHARACTERS = 120
_KIND = {stat.S_IFLNK: "symbolic link", stat.S_IFDIR: "directory", stat.S_IFIFO: "FIFO", stat.S_IFSOCK: "socket"}
# "./" cannot begin the name of a collected file, so it marks the names that are encoded.
_ENCODED = "./"
_UNDECODABLE = re.compile("[\udc80-\udcff]")  # what surrogateescape makes of bad bytes (PEP 383)


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What of a job's files is put into its result, and how much work is spent on finding it.

    `*_bytes` are sizes of files except `variables_json_bytes`, the size of the variables as compact JSON, and
    `hash_total_bytes`, what is read of all files together. `duration_s` bounds listing and hashing.
    """

    output_json_bytes: int = 8 * MIB
    condition_json_bytes: int = 64 * KIB
    variables_file_bytes: int = 4 * MIB
    variables_json_bytes: int = MIB
    file_inline_bytes: int = 8 * MIB
    total_inline_bytes: int = 32 * MIB
    hash_total_bytes: int = 2048 * MIB
    files: int = 1000
    directories: int = 10_000
    entries: int = 5_000_000
    depth: int = 100
    path_bytes: int = 4096  # PATH_MAX: a longer name cannot be opened by anyone who receives it
    duration_s: float = 45.0


def encode_name(path: bytes) -> str:
    """The name of a file as text: valid UTF-8 stays as it is, any other name is `./` and percent-encoded.

    In an encoded name the bytes that are not UTF-8 and `%` itself are `%XX`. `decode_name` reverses it.
    """
    try:
        return path.decode()
    except UnicodeDecodeError:
        text = path.decode(errors="surrogateescape").replace("%", "%25")
    return _ENCODED + _UNDECODABLE.sub(lambda match: f"%{ord(match[0]) - 0xDC00:02X}", text)


def decode_name(name: str) -> bytes:
    """The bytes of the path that `encode_name` was given."""
    return unquote_to_bytes(name.removeprefix(_ENCODED)) if name.startswith(_ENCODED) else name.encode()


def shown(path: bytes) -> str:
    """A name as it may stand in a message or a log line: quoted, control characters escaped, cut short."""
    name = encode_name(path)
    return repr(name if len(name) <= _SHOWN_CHARACTERS else name[:_SHOWN_CHARACTERS] + "…")


class Notes:
    """What was not collected and why: a few names of each reason, and the count of the others."""

    def __init__(self) -> None:
        self._names: dict[str, list[str]] = {}
        self._counts: dict[str, int] = {}

    def add(self, reason: str, path: bytes) -> None:
        names = self._names.setdefault(reason, [])
        if len(names) < _NAMES_IN_A_NOTE:
            names.append(shown(path))
        self._counts[reason] = self._counts.get(reason, 0) + 1

    def say(self, text: str) -> None:
        self._names.setdefault(text, [])

    def texts(self) -> tuple[str, ...]:
        return tuple(self._text(reason, names) for reason, names in self._names.items())

    def _text(self, reason: str, names: list[str]) -> str:
        if not names:
            return reason
        more = self._counts[reason] - len(names)
        return f"{reason}: {', '.join(names)}" + (f" and {more} more" if more else "")


@contextmanager
def closing(descriptor: int) -> Iterator[int]:
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def open_directory(name: str | bytes, *, dir_fd: int | None = None) -> int:
    """A descriptor of a directory that is no link. Raises NotADirectoryError for a link or anything else."""
    return os.open(name, _DIRECTORY, dir_fd=dir_fd)


def mount_id(descriptor: int) -> int:
    """Which mount an open file belongs to (`mnt_id`, Linux 3.15+, see proc_pid_fdinfo(5))."""
    fields = Path(f"/proc/self/fdinfo/{descriptor}").read_bytes().split()
    return int(fields[fields.index(b"mnt_id:") + 1])


def descend(root_fd: int, path: bytes) -> int:
    """A descriptor of a directory below `root_fd`, reached step by step so that no step follows a link."""
    current = os.dup(root_fd)
    for part in path.split(b"/") if path else ():
        try:
            below = os.open(part, _DIRECTORY, dir_fd=current)
        finally:
            os.close(current)
        current = below
    return current


def kind(mode: int) -> str | None:
    """What an object that is no regular file is called; None for a regular file."""
    return None if stat.S_ISREG(mode) else f"a {_KIND.get(stat.S_IFMT(mode), 'device')}"


def open_regular(name: bytes, *, dir_fd: int, mount: int, owner_uid: int) -> int:
    """A descriptor of a regular file with one link, on that mount, of that owner.

    Raises OutputError (`details["reason"]`) for anything else, FileNotFoundError when there is nothing.
    """
    try:
        reason = kind(os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_mode)
        if reason is None:
            descriptor = os.open(name, _FILE, dir_fd=dir_fd)
            reason = _objection(descriptor, mount=mount, owner_uid=owner_uid)
            if reason is None:
                return descriptor
            os.close(descriptor)
    except OSError as error:
        # ELOOP, ENXIO: it became a link or a socket between the two calls.
        if error.errno not in (errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENXIO):
            raise
        reason = "not readable"
    raise OutputError(f"{shown(name)} is unsafe output: {reason}", reason=reason)


def _objection(descriptor: int, *, mount: int, owner_uid: int) -> str | None:
    status = os.fstat(descriptor)
    if reason := kind(status.st_mode):
        return reason
    if mount_id(descriptor) != mount:
        return "on another device"
    if status.st_uid != owner_uid:
        return "owned by another user"
    return "a hard link" if status.st_nlink != 1 else None


@dataclass(frozen=True)
class Content:
    """What was read of a file: size in bytes, SHA-256 in hex ("" when not all of it was read), `data` when it
    is not over the limit. `changed`: its size was not the one it had when it was opened."""

    size: int
    sha256: str
    data: bytes | None
    changed: bool = False


def read_file(
    descriptor: int, *, keep_bytes: int, hash_bytes: int, deadline: float, see: Callable[[bytes], None] | None = None
) -> Content:
    """Read a file once: kept up to `keep_bytes`, hashed up to `hash_bytes` or until `deadline` (monotonic). `see` is
    given all that is read.

    The size that the file claims only serves to leave it alone, never to allocate or to go on.
    """
    claimed = os.fstat(descriptor).st_size
    if claimed > hash_bytes:
        return Content(claimed, "", None)
    digest, kept, size = hashlib.sha256(), bytearray(), 0
    while chunk := os.read(descriptor, _CHUNK_BYTES):
        size += len(chunk)
        if size > hash_bytes or time.monotonic() > deadline:
            return Content(max(size, claimed), "", None)
        digest.update(chunk)
        if see is not None:
            see(chunk)
        if size <= keep_bytes:
            kept += chunk
        else:
            kept.clear()
    data = bytes(kept) if size == claimed and size <= keep_bytes else None
    return Content(size, digest.hexdigest(), data, changed=size != claimed)


class Lister:
    """Lists the regular files below a directory: the `limits.files` smallest by depth and name.

    Memory is bounded by the limits, not by the tree; what is left out is in `notes`.
    """

    def __init__(self, root_fd: int, *, limits: Limits, notes: Notes, deadline: float, skip: re.Pattern[bytes]) -> None:
        self._root_fd = root_fd
        self._mount = mount_id(root_fd)
        self._limits = limits
        self._notes = notes
        self._deadline = deadline
        self._skip = skip
        self._found: list[tuple[int, bytes]] = []  # depth and path
        self._highest: tuple[int, bytes] | None = None
        self._pending: deque[bytes] = deque([b""])
        self._files = self._entries = 0
        self._directories = 1

    def run(self) -> list[bytes]:
        """The paths below the root, in the order of depth and name."""
        while self._pending and self._visit(self._pending.popleft()):
            pass
        self._trim()
        if left_out := self._files - len(self._found):
            self._notes.say(f"more than {self._limits.files} files: {left_out} others are not collected")
        return [path for _, path in self._found]

    def _visit(self, directory: bytes) -> bool:
        """List one directory; false when the limits say to stop."""
        try:
            opened = descend(self._root_fd, directory)
        except PermissionError:
            self._notes.add("a directory that is not readable", directory)
            return True
        with closing(opened) as descriptor:
            if mount_id(descriptor) != self._mount:
                self._notes.add("on another device, not collected", directory)
                return True
            with os.scandir(descriptor) as entries:
                for entry in entries:
                    self._entries += 1
                    if self._entries > self._limits.entries or time.monotonic() > self._deadline:
                        self._notes.say(f"the listing was ended after {self._entries - 1} names, without the rest")
                        return False
                    self._take(entry, directory)
        return True

    def _take(self, entry: "os.DirEntry[str]", directory: bytes) -> None:
        name = os.fsencode(entry.name)
        path = b"%b/%b" % (directory, name) if directory else name
        if self._skip.fullmatch(path):
            return
        is_directory = entry.is_dir(follow_symlinks=False)
        if not is_directory and not entry.is_file(follow_symlinks=False):
            self._notes.add(f"{_kind_of(entry)}, not collected", path)
        elif len(path) > self._limits.path_bytes:
            self._notes.add(f"a path of more than {self._limits.path_bytes} bytes, not collected", path)
        elif is_directory:
            self._remember(path)
        else:
            self._files += 1
            candidate = (path.count(b"/"), path)
            if self._highest is None or candidate < self._highest:
                self._found.append(candidate)
                if len(self._found) > 2 * self._limits.files:
                    self._trim()

    def _trim(self) -> None:
        self._found.sort()
        del self._found[self._limits.files :]
        if self._found and len(self._found) == self._limits.files:
            self._highest = self._found[-1]

    def _remember(self, directory: bytes) -> None:
        if directory.count(b"/") >= self._limits.depth:
            reason = f"more than {self._limits.depth} directories deep, not collected"
        elif self._directories >= self._limits.directories:
            reason = f"more than {self._limits.directories} directories, not collected"
        else:
            self._directories += 1
            self._pending.append(directory)
            return
        self._notes.add(reason, directory)


def _kind_of(entry: "os.DirEntry[str]") -> str:
    try:
        return kind(entry.stat(follow_symlinks=False).st_mode) or "a file that changed"
    except FileNotFoundError:
        return "a file that vanished"
