"""One worker a host, whatever becomes of it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

from cronium_worker.workspace.lock import lock_host

HOLDER = """if True:
    import sys
    from pathlib import Path
    from cronium_worker.workspace.lock import lock_host
    print(lock_host(Path(sys.argv[1]), timeout_s=0) is not None, flush=True)
    sys.stdin.read()
"""


def test_a_second_one_does_not_get_it_until_the_first_is_gone(tmp_path: Path) -> None:
    directory = tmp_path / "fleet@host"
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(directory)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "True\n"
        assert lock_host(directory, timeout_s=0) is None
        os.kill(holder.pid, signal.SIGSTOP)  # one that hangs may go on at any moment
        assert lock_host(directory, timeout_s=0.2) is None
        holder.kill()
        holder.wait()
        lock = lock_host(directory, timeout_s=5)
    assert lock is not None
    assert lock_host(directory, timeout_s=0) is None
    os.close(lock)
