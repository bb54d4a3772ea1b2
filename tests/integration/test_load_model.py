"""The load model is of use as long as it does what hosts do: jobs end, each once, by whoever has room."""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from cronium_worker.fleet.connections import connect
from cronium_worker.fleet.store import JobStore
from tests.own_redis import OwnRedis

_RUN = """
import json
from benchmarks.model import Load, call, simulated
with simulated(2, slots=2):
    answer = call(Load(rate=10, seconds=2, job_seconds=0.3, lines=3))
print(json.dumps({"completed": answer.completed, "failed": answer.failed}))
"""
_ASK = """
import json
from benchmarks.model import redis
from cronium_worker.housekeeping import waiting_messages
with redis() as client:
    made = lambda: client.info("stats")["total_connections_received"]
    waiting_messages("anything")
    before = made()
    for _ in range(3):
        waiting_messages("anything")
    print(json.dumps({"made": made() - before}))
"""


@pytest.fixture
def quick_redis(tmp_path: Path) -> Any:
    with OwnRedis(tmp_path, "--appendonly", "no") as redis:
        yield redis


def _python(code: str, url: str) -> dict[str, Any]:
    env = os.environ | {"CRONIUM_REDIS_URL": url, "CRONIUM_FLEET": "model"}
    done = subprocess.run([sys.executable, "-c", code], env=env, check=True, stdout=subprocess.PIPE, timeout=60)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_simulated_hosts_end_every_job_once(quick_redis: OwnRedis) -> None:
    assert _python(_RUN, quick_redis.url) == {"completed": 20, "failed": 0}

    with connect(quick_redis.url) as redis:
        store = JobStore(redis, result_ttl_s=60)
        rows = store.recent(100)
        assert len(rows) == 20
        assert {row["host"] for row in rows} == {"model-0-0", "model-0-1"}
        for row in rows:
            assert store.record(row["id"])["token"] == "1"
            events = list(store.events(row["id"]))
            statuses = [event["status"] for event in events if event["type"] == "status"]
            assert statuses == ["pending", "preparing", "running", "completed"]
            printed = "".join(event["data"] for event in events if event["type"] == "log")
            assert Counter(printed.splitlines()).most_common(1)[0][1] == 1
            assert len(printed.splitlines()) == 3
        assert not redis.zcard("cronium:active")


def test_asking_how_many_messages_wait_makes_no_connections(quick_redis: OwnRedis) -> None:
    assert _python(_ASK, quick_redis.url) == {"made": 0}
