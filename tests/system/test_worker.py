"""`cronium worker` as an operator starts it: two nodes, restarted when one dies, ended by one signal."""

import os
import signal
import subprocess
from pathlib import Path

import psutil
import pytest

from cronium_worker.app import app
from tests.conftest import wait_until
from tests.system.conftest import CRONIUM, Fleet


def nodes(process: subprocess.Popen[bytes]) -> dict[str, int]:
    """The pid of each node by its name, from the command lines of the process's children."""
    found = {}
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            arguments = child.cmdline()
        except psutil.Error:  # it has just ended
            continue
        if "--node" in arguments:
            found[arguments[arguments.index("--node") + 1]] = child.pid
    return found


@pytest.mark.timeout(180)
def test_both_nodes_serve_are_restarted_and_end(fleet: Fleet, tmp_path: Path) -> None:
    host = f"two-{fleet.environment['CRONIUM_HOST_NAME']}"
    names = {f"jobs@{host}", f"agent@{host}"}
    log = (tmp_path / "log").open("wb")
    process = subprocess.Popen(
        [CRONIUM, "worker", "--queues", f"queue-{host}", "--concurrency", "2"],
        env=fleet.environment | {"CRONIUM_HOST_NAME": host},
        stdout=log,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    log.close()

    def answering() -> set[str]:
        return {name for answer in app.control.ping(destination=list(names), timeout=1) for name in answer}

    try:
        wait_until(lambda: answering() == names, timeout_s=60, what="both nodes answer")
        queues = app.control.inspect(destination=list(names), timeout=2).active_queues()
        assert {name: {queue["name"] for queue in queues[name]} for name in names} == {
            f"jobs@{host}": {f"queue-{host}"},
            f"agent@{host}": {f"cronium.host.{host}", "cronium.fleet"},
        }

        first = nodes(process)["agent"]
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: nodes(process).get("agent") not in (None, first), timeout_s=30, what="agent restarted")
        wait_until(lambda: answering() == names, timeout_s=60, what="both nodes answer again")
    finally:
        process.send_signal(signal.SIGTERM)
        code = process.wait(60)
    assert code == 0
    assert answering() == set()
