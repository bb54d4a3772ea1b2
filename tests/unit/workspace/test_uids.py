"""A uid of its own for each sandbox of a host, told from the workspaces that are there."""

import errno
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cronium_worker.workspace import create, remove
from cronium_worker.workspace.directories import Workspace
from cronium_worker.workspace.uids import free_uid
from tests.conftest import wait_until

POOL = range(20000, 20004)


def make(base: Path, host: str, sandbox_id: str, pool: range = POOL, timeout_s: float = 20) -> Workspace:
    with free_uid(base, pool, timeout_s=timeout_s) as uid:
        return create(base / host, sandbox_id, uid=uid, gid=uid)


def test_each_sandbox_of_all_hosts_below_a_base_has_its_own(tmp_path: Path) -> None:
    made = [make(tmp_path, host, f"s{number}") for number, host in enumerate(("a@1", "a@1", "b@1", "b@2"))]

    assert [workspace.owner() for workspace in made] == [(uid, uid) for uid in POOL]
    for name in ("data", "output", "tmp", "scratch"):
        assert (made[1].root / name).stat().st_uid == 20001
    for name in ("scripts", "control"):
        assert (made[1].root / name).stat().st_uid == 0


def test_a_full_pool_is_told_and_a_uid_comes_back_with_the_end_of_its_sandbox(tmp_path: Path) -> None:
    made = [make(tmp_path, "a@1", f"s{number}") for number in range(4)]

    with pytest.raises(OSError, match="every uid of CRONIUM_SECURITY__UID_POOL") as caught:
        make(tmp_path, "a@1", "one-more", timeout_s=0)
    assert caught.value.errno == errno.EUSERS

    remove(made[2])
    assert make(tmp_path, "b@1", "one-more").owner() == (20002, 20002)


def test_who_comes_while_all_are_in_use_is_given_the_next_one(tmp_path: Path) -> None:
    """Given sandboxes that are about to be destroyed; then as many others can be made, each with a uid of its own."""
    made = [make(tmp_path, "a@1", f"s{number}") for number in range(4)]

    with ThreadPoolExecutor(4) as threads:
        following = [threads.submit(make, tmp_path, "a@1", f"f{number}") for number in range(4)]
        wait_until(lambda: all(one.running() for one in following), what="all four wait")
        for workspace in made:
            remove(workspace)
        uids = [one.result().owner()[0] for one in following]

    assert sorted(uids) == list(POOL)


def test_sandboxes_made_at_once_share_none(tmp_path: Path) -> None:
    pool, start = range(20000, 20032), threading.Barrier(16)

    def one(number: int) -> int:
        start.wait()
        return make(tmp_path, "a@1", f"s{number}", pool).owner()[0]

    with ThreadPoolExecutor(16) as threads:
        uids = list(threads.map(one, range(16)))

    assert sorted(uids) == list(range(20000, 20016))


def test_a_workspace_that_is_half_removed_and_other_files_are_no_trouble(tmp_path: Path) -> None:
    (tmp_path / "jobs.txt").write_text("x")
    (tmp_path / "link").symlink_to("/")
    workspace = make(tmp_path, "a@1", "s1")
    workspace.tmp.rmdir()

    assert make(tmp_path, "a@1", "s2").owner() == (20000, 20000)
