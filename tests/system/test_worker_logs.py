"""A worker whose log is JSON: every line of it, from its start to its end."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import wait_until
from tests.rig import CRONIUM
from tests.system.local_host import LocalHost

WORKER = [CRONIUM, "worker"]


def lines(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines()]


@pytest.mark.timeout(180)
def test_every_line_is_json_and_says_whose_it_is(host: LocalHost) -> None:
    worker = host.start(CRONIUM_LOG_FORMAT="json")
    job = host.submit("echo hunter2; exit 3")
    wait_until(lambda: host.status(job) == "failed", timeout_s=60, what="the job has ended")
    wait_until(lambda: f'"task_id": "{job}"' in worker.log.read_text(), what="Celery has told of it")
    assert worker.stop() == 0

    found = lines(worker.log)
    assert all({"timestamp", "level", "logger", "message", "host", "node"} <= line.keys() for line in found)
    assert {line["host"] for line in found} == {host.name}
    assert {line["node"] for line in found} == {"jobs", "agent"}
    (ended,) = [line for line in found if line["message"] == f"job {job} failed"]
    assert (ended["job_id"], ended["attempt"], ended["node"], ended["status"]) == (job, 1, "jobs", "failed")
    assert [line["logger"] for line in found if "passing SIGTERM on" in line["message"]] == ["supervisor"] * 2
    assert "hunter2" not in worker.log.read_text()


@pytest.mark.timeout(180)
def test_of_one_node_as_well(host: LocalHost) -> None:
    worker = host.start(node="agent", CRONIUM_LOG_FORMAT="json")
    assert worker.stop() == 0

    assert {line["node"] for line in lines(worker.log)} == {"agent"}


def test_what_keeps_a_worker_from_starting_is_json_too(host: LocalHost) -> None:
    worker = host.process(*WORKER, CRONIUM_LOG_FORMAT="json", CRONIUM_REDIS_URL="redis://127.0.0.1:1/0")
    wait_until(lambda: worker.log.exists() and "ended, exit code" in worker.log.read_text(), what="its end")
    worker.stop()

    found = lines(worker.log)
    assert "output" in {line["logger"] for line in found}
    assert any("127.0.0.1:1" in line["message"] for line in found)
