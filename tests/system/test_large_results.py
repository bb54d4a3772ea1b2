"""The largest job and the largest results that are allowed, from the caller through a worker and back."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from cronium_worker.fleet.connections import connect
from cronium_worker.fleet.store import JobStore
from cronium_worker.settings import Settings
from tests.own_redis import OwnRedis
from tests.system.local_host import LocalHost
from tests.system.test_web import served

pytestmark = [pytest.mark.attack, pytest.mark.timeout(400)]

MIB = 1024 * 1024
CONF = Path(__file__).parents[2] / "deploy" / "redis" / "cronium.conf"
# What `get()` returns, summed up: it is waited for by pub/sub, and a subscriber may be dropped for what it is sent.
CALLER = """
import json, sys
from cronium_worker import Job, execute_job
result = execute_job.delay(Job.model_validate(json.load(sys.stdin))).get(timeout=240)
files = {name: len(file["content"] or "") for name, file in result["output"]["files"].items()}
output = result["output"]
print(json.dumps({"id": result["job_id"], "data": len(output["data"]), "files": files, "notes": output["notes"]}))
"""
SCRIPT = """
import os
with open("/workspace/output/output.json", "w") as file:
    file.write('"' + "ä" * (4 * 2**20 - 1) + '"')
for name in "abcd":
    with open(f"/workspace/output/{name}", "wb") as file:
        file.write(os.urandom(8 * 2**20))
print(len(cronium.input()))
"""


class Place:
    """A worker beside a Redis that takes no larger value in one piece."""

    def __init__(self, settings: Settings, directory: Path, bulk: str) -> None:
        self.bulk = bulk
        self.redis = OwnRedis(directory, "--proto-max-bulk-len", bulk, "--appendfsync", "no")
        self.redis.start()
        self.host = LocalHost(settings, directory)
        self.host.env["CRONIUM_REDIS_URL"] = self.redis.url
        self.host.start(concurrency=1)
        self.store = JobStore(connect(self.redis.url), result_ttl_s=600)

    def close(self) -> None:
        self.host.close()
        self.host.remove_containers()
        self.store.redis.close()
        self.redis.kill()

    def call(self, *, input_bytes: int) -> Any:
        job = {
            "script": {"type": "python", "content": SCRIPT},
            "queue": self.host.queue,
            "network": {"mode": "none"},
            "resources": {"disk_io": "1g", "cpu": 2},
            "input_data": "x" * input_bytes,
        }
        command = [sys.executable, "-c", CALLER]
        done = subprocess.run(
            command, input=json.dumps(job), env=self.host.env, capture_output=True, text=True, timeout=260, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return json.loads(done.stdout)


@pytest.fixture(scope="module")
def place(
    request: pytest.FixtureRequest, settings: Settings, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Place]:
    shipped = next(line.split()[1] for line in CONF.read_text().splitlines() if line.startswith("proto-max-bulk-len"))
    place = Place(settings, tmp_path_factory.mktemp("large"), shipped if request.param == "shipped" else request.param)
    yield place
    place.close()


@pytest.mark.parametrize("place", ["shipped", "1mb"], indirect=True)
def test_all_that_is_allowed_arrives(place: Place) -> None:
    # Of Celery's own JSON, "ä" would have three times the bytes.
    got = place.call(input_bytes=8 * MIB - 2 if place.bulk != "1mb" else 1000)

    assert got["files"] == dict.fromkeys("abcd", (8 * MIB + 2) // 3 * 4)
    assert (got["data"], got["notes"]) == (4 * MIB - 1, [])
    result = place.store.result(got["id"])
    assert result is not None
    assert sorted(result.output.files) == list("abcd")
    with served(place.redis.url) as address:
        output = requests.get(f"{address}/jobs/{got['id']}", timeout=90).json()["result"]["output"]
        assert output["data"] == "ä" * (4 * MIB - 1)
        content = requests.get(f"{address}{output['files']['d']['url']}", timeout=90).content
        assert len(content) == 8 * MIB
