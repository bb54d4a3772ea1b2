"""The directories of a sandbox on the host: made before its container, removed after it."""

import errno
import os
import re
import secrets
import stat
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from cronium_worker.workspace.walk import closing, mount_id, open_directory, shown

_SANDBOXES = "sandboxes"
_SANDBOX_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")
OF_THE_JOB = ("data", "output", "tmp", "scratch")
VOLUMES = "volumes"  # of the job as well; only for an image that declares some
_OF_THE_WORKER = ("scripts", "control")
MOUNT_POINTS = ("scripts", "data", "output")  # in scratch, which is /workspace in the container
_PASSES = 10
_HOLDER = ".erase-"
_HOLDER_MAX_ENTRIES = 1000


@dataclass(frozen=True)
class Workspace:
    """Where the files of one sandbox are. `root` is closed to other users of the host; the directories below
    it are mounted into the container one by one."""

    root: Path

    @property
    def scripts(self) -> Path:
        return self.root / "scripts"

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def output(self) -> Path:
        return self.root / "output"

    @property
    def tmp(self) -> Path:
        return self.root / "tmp"

    @property
    def scratch(self) -> Path:
        return self.root / "scratch"

    @property
    def control(self) -> Path:
        return self.root / "control"

    def owner(self) -> tuple[int, int]:
        """The host's uid and gid of the container's user, whatever the settings say by now: the worker gave them the
        directory, and its owner is what a job cannot change. Raises OSError."""
        found = self.tmp.lstat()
        return found.st_uid, found.st_gid


def create(base_path: Path, sandbox_id: str, *, uid: int, gid: int, volumes: int = 0) -> Workspace:
    """Make the directories of a new sandbox; `uid` and `gid` are the user of the container, `volumes` is how many its
    image declares.

    An existing `base_path` keeps its mode, `sandboxes` in it is always closed to other users. Raises
    ValueError for an id that is no safe name, FileExistsError when the sandbox exists, PermissionError when
    the worker may not give directories to `uid` or `sandboxes` belongs to somebody else, and any other
    OSError of the file system. Whatever is raised, nothing of the sandbox is left.
    """
    workspace = named(base_path, sandbox_id)
    base_path.mkdir(mode=0o700, parents=True, exist_ok=True)
    with ExitStack() as stack:
        base = stack.enter_context(closing(os.open(base_path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)))
        sandboxes = stack.enter_context(closing(_open_sandboxes(base)))
        os.mkdir(sandbox_id, 0o700, dir_fd=sandboxes)
        try:
            _make_leaves(sandbox_id, sandboxes, uid=uid, gid=gid, volumes=volumes)
        except BaseException:
            with suppress(OSError):
                remove(workspace)
            raise
    return workspace


def named(base_path: Path, sandbox_id: str) -> Workspace:
    """The workspace of a sandbox, whether it exists or not. Raises ValueError for an id that is no safe name."""
    if not _SANDBOX_ID.fullmatch(sandbox_id):
        raise ValueError(f"{sandbox_id[:80]!r} is no sandbox id")
    return Workspace(base_path / _SANDBOXES / sandbox_id)


def find(base_path: Path, sandbox_id: str) -> Workspace | None:
    """Return the workspace of a sandbox if it exists: directories that this worker made, below `base_path` without a
    link between. None for anything else, whatever the id is: it may come from a label."""
    try:
        workspace = named(base_path, sandbox_id)
        with _sandboxes(base_path) as sandboxes, closing(_open_own(sandbox_id, sandboxes)) as root:
            os.close(_open_own("control", root))
    except (OSError, ValueError):
        return None
    return workspace


def existing(base_path: Path) -> list[tuple[Workspace, float]]:
    """The workspaces there are, each with the time of its making (seconds since the epoch). Raises OSError."""
    found = []
    with suppress(FileNotFoundError), _sandboxes(base_path) as sandboxes, os.scandir(sandboxes) as entries:
        for entry in entries:
            if _SANDBOX_ID.fullmatch(entry.name):
                # Nothing is made in or removed from the root itself while its sandbox lives.
                made_s = entry.stat(follow_symlinks=False).st_mtime
                found.append((named(base_path, entry.name), made_s))
    return found


@contextmanager
def _sandboxes(base_path: Path) -> Iterator[int]:
    """A descriptor of the directory that has the workspaces. Raises OSError, also when it is a link or belongs to
    somebody else."""
    with (
        closing(os.open(base_path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as base,
        closing(_open_own(_SANDBOXES, base)) as sandboxes,
    ):
        yield sandboxes


def _open_sandboxes(base: int) -> int:
    with suppress(FileExistsError):
        os.mkdir(_SANDBOXES, 0o700, dir_fd=base)
    descriptor = _open_own(_SANDBOXES, base)
    try:
        os.fchmod(descriptor, 0o700)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _open_own(name: str, parent: int) -> int:
    """Raises NotADirectoryError for a link, PermissionError for a directory of somebody else."""
    descriptor = open_directory(name, dir_fd=parent)
    if os.fstat(descriptor).st_uid != os.geteuid():
        os.close(descriptor)
        raise PermissionError(errno.EPERM, "belongs to another user", name)
    return descriptor


def _make_leaves(sandbox_id: str, sandboxes: int, *, uid: int, gid: int, volumes: int) -> None:
    with closing(open_directory(sandbox_id, dir_fd=sandboxes)) as root:
        os.fchmod(root, 0o700)  # the umask may have taken bits from mkdir's mode
        for name in _OF_THE_WORKER:
            _make(name, root)
        for name in OF_THE_JOB:
            # Owned by the worker: the job cannot rename or remove what its mounts hide.
            mount_points = MOUNT_POINTS if name == "scratch" else ()
            _make(name, root, owner=(uid, gid), inside=mount_points)
        if volumes:
            _make(VOLUMES, root)
            with closing(open_directory(VOLUMES, dir_fd=root)) as parent:
                for number in range(volumes):
                    _make(str(number), parent, owner=(uid, gid))


def _make(name: str, parent: int, *, owner: tuple[int, int] | None = None, inside: tuple[str, ...] = ()) -> None:
    os.mkdir(name, 0o700, dir_fd=parent)
    with closing(open_directory(name, dir_fd=parent)) as descriptor:
        os.fchmod(descriptor, 0o755)  # before anything is made in it: the umask may forbid even the owner
        for child in inside:
            _make(child, descriptor)
        if owner is not None and owner != (os.geteuid(), os.getegid()):
            os.fchown(descriptor, *owner)


def remove(workspace: Workspace, *, deadline_s: float | None = None) -> None:
    """Delete the sandbox's directories with everything a job may have left there; twice is once.

    Follows no link and enters no mount point. What cannot be removed is left, the rest is removed, and then
    OSError is raised with the first reason. Raises TimeoutError `deadline_s` seconds after the call
    (monotonic): call again to go on. Raises ValueError for a directory that is no workspace.
    """
    deadline = None if deadline_s is None else time.monotonic() + deadline_s
    parent, name = workspace.root.parent, workspace.root.name
    if named(parent.parent, name) != workspace:
        raise ValueError(f"{str(workspace.root)[:200]!r} is no workspace")
    with ExitStack() as stack:
        try:
            sandboxes = stack.enter_context(_sandboxes(parent.parent))
        except FileNotFoundError:
            return
        try:
            root = open_directory(name, dir_fd=sandboxes)
        except FileNotFoundError:
            return
        except NotADirectoryError:
            os.unlink(name, dir_fd=sandboxes)
            return
        with closing(root):
            _Eraser(root, deadline).run()
        with suppress(FileNotFoundError):
            os.rmdir(name, dir_fd=sandboxes)


class _Eraser:
    """Empties a directory in constant memory and descriptors, however deep, wide or hostile its tree is.

    It goes by generations. A directory is emptied of what is no directory, and its subdirectories are moved
    into the holder of the next generation: two directories of ours in the root take turns. So each directory is
    scanned where it is at hand, and no path, no stack and no `..` is needed. Nothing is entered before it was
    moved: rename(2) refuses mount points (EBUSY) and what is on another mount (EXDEV), be it a bind mount of
    the same device.
    """

    def __init__(self, root: int, deadline: float | None) -> None:
        self._root = root
        self._deadline = deadline
        self._token = secrets.token_hex(8)
        self._names = 0
        self._first: tuple[OSError, str] | None = None
        self._failures = 0

    def run(self) -> None:
        """Raises OSError when something could not be removed, TimeoutError at the deadline."""
        self._make_room()
        with os.scandir(self._root) as entries:
            names = sorted(entry.name for entry in entries if entry.name.startswith(_HOLDER))[:2]
        # What an earlier call left in its holders is gone on with, not wrapped in new ones.
        held, waiting = (_HOLDER_MAX_ENTRIES + 1 if len(names) > index else 0 for index in range(2))
        names += [self._new_holder() for _ in range(2 - len(names))]
        holder, following = names
        with closing(open_directory(holder, dir_fd=self._root)) as target:
            held += self._empty(self._root, target, keep=frozenset(names))
        while held:
            moved = self._erase_generation(holder, following)
            # A holder that was large stays slow to scan (ext4), one with a failure holds what is left.
            if held > _HOLDER_MAX_ENTRIES or self._failures:
                self._rmdir(holder, self._root)
                holder = self._new_holder()
            holder, following = following, holder
            held, waiting = waiting + moved, 0
        for name in (holder, following):
            self._rmdir(name, self._root)
        if self._first is not None:
            error, name = self._first
            count = f"{self._failures} entries" if self._failures > 1 else "an entry"
            text = f"{count} of a sandbox cannot be removed; {shown(os.fsencode(name))}: {error.strerror}"
            raise OSError(error.errno, text) from error

    def _new_holder(self) -> str:
        self._names += 1
        name = f"{_HOLDER}{self._token}-{self._names}"
        os.mkdir(name, 0o700, dir_fd=self._root)
        return name

    def _make_room(self) -> None:
        """Remove the worker's own flat directories first: on a full disk there is no inode for a holder."""
        mount = mount_id(self._root)
        for name in _OF_THE_WORKER:
            with suppress(OSError), closing(open_directory(name, dir_fd=self._root)) as descriptor:
                if mount_id(descriptor) == mount:
                    with os.scandir(descriptor) as entries:
                        for entry in entries:
                            os.unlink(entry.name, dir_fd=descriptor)
                    os.rmdir(name, dir_fd=self._root)

    def _erase_generation(self, holder: str, following: str) -> int:
        """Remove every directory in `holder`; returns how many subdirectories were moved to `following`."""
        moved = 0
        with (
            closing(open_directory(holder, dir_fd=self._root)) as source,
            closing(open_directory(following, dir_fd=self._root)) as target,
            os.scandir(source) as entries,
        ):
            for entry in entries:
                self._check_deadline()
                try:
                    directory = open_directory(entry.name, dir_fd=source)
                except FileNotFoundError:
                    continue
                except OSError as error:
                    self._fail(error, entry.name)
                    continue
                with closing(directory):
                    moved += self._empty(directory, target)
                self._rmdir(entry.name, source)
        return moved

    def _empty(self, directory: int, target: int, *, keep: frozenset[str] = frozenset()) -> int:
        """Unlink what is in a directory and move its subdirectories to `target`; returns how many were moved.

        A scan need not show everything while entries are removed (readdir(3)), so it is repeated until it
        finds nothing, or nothing that can be removed.
        """
        moved = 0
        for _ in range(_PASSES):
            before, removed = self._failures, 0
            with os.scandir(directory) as entries:
                for entry in entries:
                    if entry.name in keep:
                        continue
                    self._check_deadline()
                    try:
                        moved += self._take(entry, directory, target)
                        removed += 1
                    except FileNotFoundError:
                        continue
                    except OSError as error:
                        self._fail(error, entry.name)
            if not removed or self._failures > before:
                break
        return moved

    def _take(self, entry: "os.DirEntry[str]", directory: int, target: int) -> bool:
        """Remove an entry; true when it is a directory that was moved instead, because it is not empty."""
        if not entry.is_dir(follow_symlinks=False):
            os.unlink(entry.name, dir_fd=directory)
            return False
        try:
            os.rmdir(entry.name, dir_fd=directory)
            return False
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                raise
        if os.geteuid() != 0:
            unlock(entry.name, directory)
        self._names += 1
        # The token: a name that an earlier call gave must not be replaced.
        os.rename(entry.name, f"{self._token}-{self._names}", src_dir_fd=directory, dst_dir_fd=target)
        return True

    def _rmdir(self, name: str, parent: int) -> None:
        try:
            os.rmdir(name, dir_fd=parent)
        except OSError as error:
            # After a failure it holds what could not be removed, which is counted already.
            if not (self._failures and error.errno in (errno.ENOTEMPTY, errno.EEXIST)):
                self._fail(error, name)

    def _fail(self, error: OSError, name: str) -> None:
        self._failures += 1
        self._first = self._first or (error, name)

    def _check_deadline(self) -> None:
        if self._deadline is not None and time.monotonic() > self._deadline:
            raise TimeoutError("the sandbox could not be removed in time")


def unlock(name: str, parent: int) -> None:
    """Let the owner read, enter and change a directory: root may do so anyway, others need the mode bits.

    O_PATH opens a directory of any mode, and the link in /proc leads to exactly what was opened.
    """
    flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    with closing(os.open(name, flags, dir_fd=parent)) as descriptor, suppress(PermissionError):
        Path(f"/proc/self/fd/{descriptor}").chmod(stat.S_IRWXU)
