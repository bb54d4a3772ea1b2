"""Making and removing a sandbox's directories."""

import os
import resource
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from cronium_worker.workspace import Workspace, create, directories, remove
from tests.unit.workspace.trees import chain, descriptors, fill

ALL = {"scripts", "data", "output", "tmp", "scratch", "control"}


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o277])
def test_modes_do_not_depend_on_the_umask(tmp_path: Path, umask: int) -> None:
    (tmp_path / "base").mkdir()
    before = os.umask(umask)
    try:
        workspace = create(tmp_path / "base", "job-1", uid=os.geteuid(), gid=os.getegid())
    finally:
        os.umask(before)
    assert workspace.root == tmp_path / "base" / "sandboxes" / "job-1"
    assert {path.name for path in workspace.root.iterdir()} == ALL
    assert _mode(workspace.root.parent) == 0o700
    assert _mode(workspace.root) == 0o700
    for name in ALL:
        assert _mode(getattr(workspace, name)) == 0o755
        assert getattr(workspace, name) == workspace.root / name
    assert {path.name: _mode(path) for path in workspace.scratch.iterdir()} == dict.fromkeys(
        ("scripts", "data", "output"), 0o755
    )


def test_the_job_owns_its_directories_and_no_other(tmp_path: Path) -> None:
    workspace = create(tmp_path, "job-1", uid=1234, gid=2345)
    owners = {path.name: (path.stat().st_uid, path.stat().st_gid) for path in workspace.root.iterdir()}
    assert owners == dict.fromkeys(("data", "output", "tmp", "scratch"), (1234, 2345)) | dict.fromkeys(
        ("scripts", "control"), (0, 0)
    )
    assert {path.stat().st_uid for path in workspace.scratch.iterdir()} == {0}
    assert workspace.root.stat().st_uid == workspace.root.parent.stat().st_uid == 0


def test_an_existing_base_keeps_its_mode_and_sandboxes_is_closed(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "sandboxes").mkdir(mode=0o777)
    create(tmp_path, "job-1", uid=os.geteuid(), gid=os.getegid())
    assert _mode(tmp_path) == 0o755
    assert _mode(tmp_path / "sandboxes") == 0o700


def test_a_missing_base_is_made_closed(tmp_path: Path) -> None:
    create(tmp_path / "a" / "b", "job-1", uid=os.geteuid(), gid=os.getegid())
    assert _mode(tmp_path / "a" / "b") == 0o700


@pytest.mark.parametrize(
    "sandbox_id", ["", ".", "..", "../x", "/abs", "a/b", "a\0b", "a\n", "a b", "-rf", "a.", "x\uff0fy", "a" * 300]
)
def test_an_id_that_is_no_name_is_refused_before_anything_is_made(tmp_path: Path, sandbox_id: str) -> None:
    with pytest.raises(ValueError, match="sandbox id"):
        create(tmp_path / "base", sandbox_id, uid=0, gid=0)
    assert list(tmp_path.iterdir()) == []


def test_a_sandbox_is_made_once(workspace: Workspace) -> None:
    (workspace.data / "kept").write_text("x")
    with pytest.raises(FileExistsError):
        create(workspace.root.parents[1], "job-1", uid=os.geteuid(), gid=os.getegid())
    assert (workspace.data / "kept").exists()


@pytest.mark.parametrize("planted", ["sandboxes", "sandboxes/job-1"])
def test_a_planted_link_is_not_followed(tmp_path: Path, planted: str) -> None:
    target = tmp_path / "target"
    target.mkdir(mode=0o751)
    base = tmp_path / "base"
    (base / planted).parent.mkdir(parents=True)
    (base / planted).symlink_to(target)
    with pytest.raises(OSError, match=r"Not a directory|File exists"):
        create(base, "job-1", uid=os.geteuid(), gid=os.getegid())
    assert list(target.iterdir()) == []
    assert _mode(target) == 0o751


def test_sandboxes_of_another_user_are_refused(tmp_path: Path) -> None:
    (tmp_path / "sandboxes").mkdir()
    os.chown(tmp_path / "sandboxes", 1234, 1234)
    with pytest.raises(PermissionError):
        create(tmp_path, "job-1", uid=0, gid=0)


@pytest.mark.parametrize("call", range(1, 9))
def test_a_failure_half_way_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int) -> None:
    calls = 0
    original = os.fchmod

    def fail(descriptor: int, mode: int) -> None:
        nonlocal calls
        calls += 1
        if calls == call + 1:  # the first is for `sandboxes`
            raise OSError(28, "No space left on device")
        original(descriptor, mode)

    monkeypatch.setattr(os, "fchmod", fail)
    before = descriptors()
    with pytest.raises(OSError, match="No space"):
        create(tmp_path, "job-1", uid=os.geteuid(), gid=os.getegid())
    assert list((tmp_path / "sandboxes").iterdir()) == []
    assert descriptors() == before


def test_unprivileged_worker_cannot_give_directories_away(unprivileged: Path) -> None:
    with pytest.raises(PermissionError):
        create(unprivileged, "job-1", uid=os.geteuid() + 1, gid=os.getegid())
    assert list((unprivileged / "sandboxes").iterdir()) == []


def _hostile(workspace: Workspace, canary: Path) -> None:
    output = workspace.output
    (output / "link").symlink_to(canary)
    (output / "directory link").symlink_to(canary.parent)
    (output / "loop").symlink_to("loop")
    os.link(canary, output / "hard")
    os.mkfifo(output / "fifo")
    os.mknod(output / "s", stat.S_IFSOCK | 0o600)
    for name in (b"-rf", b"a\nb", b"\x1b[31m", b"\xff\xfe", b"x" * 255, "\u202egpj".encode(), b" ", b"%00"):
        directory = workspace.data / os.fsdecode(name)
        directory.mkdir()
        (directory / os.fsdecode(name)).touch()
    for mode in (0o000, 0o500, 0o1777, 0o2775):
        closed = workspace.scratch / f"{mode:o}"
        closed.mkdir()
        (closed / "inner").mkdir()
        (closed / "inner" / "file").write_text("x")
        (closed / "inner").chmod(mode)
        closed.chmod(mode)
    workspace.tmp.chmod(0)


def test_removes_what_a_hostile_job_leaves(workspace: Workspace, canary: Path) -> None:
    _hostile(workspace, canary)
    before = descriptors()
    remove(workspace)
    assert not workspace.root.exists()
    assert workspace.root.parent.exists()
    assert canary.stat().st_nlink == 1
    remove(workspace)
    assert descriptors() == before


def test_removes_it_without_roots_powers(unprivileged: Path) -> None:
    canary = unprivileged / "canary"
    canary.write_text("x")
    workspace = create(unprivileged, "job-1", uid=os.geteuid(), gid=os.getegid())
    _hostile(workspace, canary)
    remove(workspace)
    assert sorted(path.name for path in unprivileged.iterdir()) == ["canary", "sandboxes"]
    assert list((unprivileged / "sandboxes").iterdir()) == []


def test_nothing_to_remove_is_fine(tmp_path: Path) -> None:
    remove(Workspace(tmp_path / "sandboxes" / "job-1"))


def test_a_link_in_place_of_the_sandbox_is_removed_alone(tmp_path: Path, canary: Path) -> None:
    (tmp_path / "sandboxes").mkdir()
    (tmp_path / "sandboxes" / "job-1").symlink_to(canary.parent)
    remove(Workspace(tmp_path / "sandboxes" / "job-1"))
    assert list((tmp_path / "sandboxes").iterdir()) == []


def test_removes_a_tree_3000_deep_with_few_descriptors(quick_workspace: Workspace) -> None:
    chain(quick_workspace.output, 3000, leaf=b"x")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))  # noqa: PTH208
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 16, hard))
    try:
        remove(quick_workspace)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert not quick_workspace.root.exists()


@pytest.mark.parametrize("deadline_s", [3.0, 4.0, 5.0, 10.0, 23.0])
def test_goes_on_where_the_deadline_ended_it(
    quick_workspace: Workspace, monkeypatch: pytest.MonkeyPatch, deadline_s: float
) -> None:
    chain(quick_workspace.output, 20)
    fill(quick_workspace.data, 20)
    for number in range(20):
        (quick_workspace.tmp / f"{number % 5}" / f"{number}" / "a" / "b").mkdir(parents=True)
        (quick_workspace.tmp / f"{number % 5}" / f"{number}" / "file").touch()
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += 1.0
        return now

    monkeypatch.setattr(directories.time, "monotonic", clock)
    before = descriptors()
    ended = 0
    while quick_workspace.root.exists():
        try:
            remove(quick_workspace, deadline_s=deadline_s)
        except TimeoutError:
            ended += 1
        assert ended < 300
        assert descriptors() == before
    assert ended >= 5


def test_a_mount_is_not_entered_and_the_rest_is_removed(
    workspace: Workspace, canary: Path, mounted: Callable[..., None]
) -> None:
    kept = canary.parent / "kept"
    (kept / "below").mkdir(parents=True)
    (kept / "below" / "file").write_text("x")
    for target in (workspace.output / "a" / "bound", workspace.data / "other"):
        target.mkdir(parents=True)
    mounted(workspace.output / "a" / "bound", "--bind", str(kept))
    mounted(workspace.data / "other", "-t", "tmpfs", "none")
    (workspace.data / "other" / "file").write_text("x")
    (workspace.data / "z").mkdir()
    (workspace.data / "z" / "file").write_text("x")
    with pytest.raises(OSError, match=r"2 entries of a sandbox cannot be removed; '(bound|other)'"):
        remove(workspace)
    assert (kept / "below" / "file").read_text() == "x"
    left = [path for path in workspace.root.rglob("*") if path.is_file()]
    assert sorted(path.name for path in left) == ["file", "file"]
    assert not any(path.name == "z" for path in workspace.root.rglob("*"))


def test_removes_on_a_file_system_without_a_free_inode(tmp_path: Path, mounted: Callable[..., None]) -> None:
    base = tmp_path / "small"
    base.mkdir()
    mounted(base, "-t", "tmpfs", "-o", "nr_inodes=60", "none")
    workspace = create(base, "job-1", uid=os.geteuid(), gid=os.getegid())
    (workspace.control / "start.sh").write_text("x")
    chain(workspace.output, 3)
    with pytest.raises(OSError, match="No space"):
        fill(workspace.output / "d" / "d", 100)
    remove(workspace)
    assert not workspace.root.exists()


def test_what_cannot_be_removed_is_named_and_does_not_stop_the_rest(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "stuck", "z"):
        (workspace.output / "d" / name).mkdir(parents=True)
        (workspace.output / "d" / name / name).write_text("x")
    chain(workspace.data, 10)
    original = os.unlink

    def fail(name: str, *, dir_fd: int) -> None:
        if name == "stuck":
            raise PermissionError(1, "Operation not permitted")
        original(name, dir_fd=dir_fd)

    with monkeypatch.context() as patched:
        patched.setattr(os, "unlink", fail)
        with pytest.raises(PermissionError, match="an entry of a sandbox cannot be removed; 'stuck'"):
            remove(workspace)
    assert [path.name for path in workspace.root.rglob("*") if path.is_file()] == ["stuck"]
    remove(workspace)
    assert not workspace.root.exists()
