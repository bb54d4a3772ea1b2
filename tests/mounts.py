"""File systems that a test mounts. They are unmounted whatever becomes of the test and of its process."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

_END_S = 30


@contextmanager
def mounts_below(root: Path) -> Iterator[Callable[..., None]]:
    """Yield `mount(target, *arguments)`, for targets below `root` or `root` itself.

    Another process unmounts them as soon as this one closes its end of a pipe: at the end of the block, and as well
    when a timeout or a signal ends the tests. A bind mount that stays fails every later run, because pytest clears its
    old directories.
    """
    command = [sys.executable, "-I", __file__, str(root)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True) as guard:

        def mount(target: Path, *arguments: str) -> None:
            subprocess.run(["mount", *arguments, str(target)], check=True, capture_output=True)

        try:
            yield mount
        finally:
            guard.communicate(timeout=_END_S)
    assert guard.returncode == 0


def unmount_below(root: Path) -> None:
    """Where they are now: the test may have moved the directories they are on."""
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for point in reversed([point for point in points if point == f"{root}" or point.startswith(f"{root}/")]):
        subprocess.run(["umount", "--lazy", point], check=True)


if __name__ == "__main__":
    sys.stdin.read()
    unmount_below(Path(sys.argv[1]))
