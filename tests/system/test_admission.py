"""A host that is full, among others, with real workers."""

import os
from collections.abc import Callable
from typing import Any

import pytest

from cronium_worker.housekeeping import waiting_messages
from tests.conftest import wait_until
from tests.system.local_host import LocalHost


def room_for_one(**_: Any) -> dict[str, str]:
    """Half a core, as a job has by default."""
    return {"CRONIUM_CAPACITY__CPU_OVERCOMMIT": str(0.5 / (os.cpu_count() or 1))}


def waiting(host: LocalHost) -> int | None:
    view = host.view()
    return view.nodes["jobs"]["capacity"]["waiting"] if view and "jobs" in view.nodes else None


@pytest.mark.timeout(180)
def test_a_full_host_leaves_what_comes_to_the_others(make_host: Callable[[], LocalHost]) -> None:
    full, other = make_host(), make_host()
    other.queue = full.queue
    full.start(node="jobs", concurrency=4, **room_for_one())
    first = full.submit("sleep 300")
    wait_until(lambda: full.status(first) == "running", what="one job runs")
    second = full.submit("echo hi")
    wait_until(lambda: waiting(full) == 1, what="the second waits")
    assert "1 wait for cores or memory" in full.cronium("hosts").stdout

    third = full.submit("echo hi")
    wait_until(lambda: waiting_messages(full.queue) == 1, what="the third stays in the queue")
    other.start(node="jobs")
    wait_until(lambda: full.status(third) == "completed", timeout_s=30, what="the third runs on the other host")
    assert full.json("status", third)["host"] == other.name
    assert full.status(second) == "preparing"

    full.cronium("cancel", first)
    wait_until(lambda: full.status(second) == "completed", timeout_s=30, what="the second has room")
    wait_until(lambda: waiting(full) == 0, what="nobody waits")


@pytest.mark.timeout(60)
def test_a_worker_whose_host_is_too_small_for_any_job_says_so(host: LocalHost) -> None:
    done = host.cronium(
        "worker", "--node", "jobs", "--queues", host.queue, CRONIUM_CAPACITY__MEMORY_OVERCOMMIT="0.0001"
    )
    assert done.returncode != 0
    [line] = [line for line in done.stderr.splitlines() if "resources.memory" in line]
    assert "lower CRONIUM_DEFAULTS__*, or raise CRONIUM_CAPACITY__*_OVERCOMMIT" in line
