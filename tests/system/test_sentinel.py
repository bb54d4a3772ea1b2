"""A fleet behind Sentinel whose primary is killed under load: nothing is lost, nothing runs twice, all go on."""

import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import docker
import pytest

from cronium_worker.fleet.connections import connect
from cronium_worker.fleet.store import JobStore
from cronium_worker.settings import Settings
from tests.conftest import wait_until
from tests.own_sentinel import OwnSentinel
from tests.rig import CRONIUM, RigWorker
from tests.system.local_host import LocalHost

pytestmark = pytest.mark.timeout(180)

# Each job until it is accepted, with a pause between two; at the end of its input it asks Celery for all results.
PRODUCER = """
import json, select, sys, time
from cronium_worker import submit

queue, prefix = sys.argv[1:]
script = {"type": "bash", "content": "sleep 0.2; echo $CRONIUM_JOB_ID"}
sent = []
while not select.select([sys.stdin], [], [], 0.1)[0]:
    job = {"id": f"{prefix}-{len(sent)}", "queue": queue, "script": script}
    while True:
        try:
            sent.append(submit(job))
            break
        except Exception as error:
            print(type(error).__name__, error, file=sys.stderr)
            time.sleep(0.05)
    print(job["id"], flush=True)
print(json.dumps([result.get(timeout=60)["job_id"] for result in sent]), flush=True)
"""
LINES = 300
TALKER = f"for n in $(seq {LINES}); do echo $n; sleep 0.03; done"
RECOVERY = "Sending due task cronium.recover_lost_jobs"


@pytest.fixture
def servers(tmp_path: Path) -> Iterator[OwnSentinel]:
    with OwnSentinel(tmp_path, replicas=2) as servers:
        yield servers


@pytest.fixture
def store(servers: OwnSentinel) -> Iterator[JobStore]:
    with connect(servers.url) as redis:
        yield JobStore(redis, result_ttl_s=600)


@pytest.fixture
def host(settings: Settings, servers: OwnSentinel, tmp_path: Path) -> Iterator[LocalHost]:
    own = settings.model_copy(update={"redis_url": Settings.model_validate({"redis_url": servers.url}).redis_url})
    host = LocalHost(own, tmp_path)
    host.env |= {
        "CRONIUM_REDIS_WAIT_REPLICAS": "1",
        "CRONIUM_LEASE_TTL": "10",
        "CRONIUM_SCHEDULE__RECOVERY": "1",
    }
    yield host
    host.close()
    host.remove_containers()


@pytest.fixture
def processes(host: LocalHost, tmp_path: Path) -> RigWorker:
    """Under the project's supervisor: beat ends when Redis is away, and is started again."""
    procfile = tmp_path / "Procfile"
    procfile.write_text(
        f"worker: {CRONIUM} worker --node jobs --queues {host.queue} --concurrency 4\n"
        f"agent: {CRONIUM} worker --node agent\n"
        f"beat: {sys.executable} -m celery --quiet -A cronium_worker.app beat --loglevel INFO\n"
    )
    supervised = host.process(sys.executable, "-m", "cronium_worker.cli.supervise", str(procfile))
    supervised.wait_ready(nodes=2)
    return supervised


class Producer:
    """A program that submits jobs, with its own connections."""

    def __init__(self, host: LocalHost, prefix: str) -> None:
        self._log = host.path / f"{prefix}.out"
        self.errors = host.path / f"{prefix}.err"
        with self._log.open("w") as out, self.errors.open("w") as errors:
            command = [sys.executable, "-c", PRODUCER, host.queue, prefix]
            self._process = subprocess.Popen(command, env=host.env, stdin=subprocess.PIPE, stdout=out, stderr=errors)

    def accepted(self) -> list[str]:
        return [line for line in self._log.read_text().splitlines() if not line.startswith("[")]

    def wait_for(self, more: int) -> None:
        wanted = len(self.accepted()) + more
        wait_until(lambda: len(self.accepted()) >= wanted, timeout_s=60, what=f"{more} more jobs accepted")

    def results(self) -> list[str]:
        """Ends it. Returns the ids of the results that Celery has brought it."""
        self._process.communicate(b"", timeout=90)
        assert self._process.returncode == 0, self.errors.read_text()[-2000:]
        found: list[str] = json.loads(self._log.read_text().splitlines()[-1])
        return found

    def close(self) -> None:
        self._process.kill()
        self._process.wait(10)


def runs(host: LocalHost, since: float) -> Counter[str]:
    """How many times the engine has started a container for each job."""
    filters = {"type": "container", "event": ["start"], "label": f"cronium.host={host.name}"}
    with closing(docker.from_env()) as client:
        events: Any = client.events(since=int(since) - 1, until=int(time.time()) + 1, filters=filters, decode=True)
        return Counter(event["Actor"]["Attributes"]["cronium.job.id"] for event in events)


def test_the_primary_is_killed_under_load(
    host: LocalHost, servers: OwnSentinel, store: JobStore, processes: RigWorker
) -> None:
    begun = time.time()
    talker = host.submit(TALKER)
    with (
        closing(Producer(host, host.name)) as producer,
        subprocess.Popen([CRONIUM, "logs", "-f", talker], env=host.env, stdout=subprocess.PIPE, text=True) as viewer,
    ):
        producer.wait_for(8)
        wait_until(lambda: store.fields(talker)["status"] == "running", what="the talker runs")
        killed = servers.kill_primary()
        servers.wait_for_another(killed)
        sent_by_beat = processes.log.read_text().count(RECOVERY)
        producer.wait_for(8)

        results = producer.results()
        seen, _ = viewer.communicate(timeout=60)
    accepted = producer.accepted()

    assert results == accepted
    ended = {job: store.result(job) for job in [*accepted, talker]}
    assert {(result.status, result.attempt) for result in ended.values() if result} == {("completed", 1)}
    assert None not in ended.values()
    assert runs(host, begun) == Counter([*accepted, talker])
    assert (viewer.returncode, seen.split()) == (0, [str(number) for number in range(1, LINES + 1)])
    wait_until(lambda: processes.log.read_text().count(RECOVERY) > sent_by_beat, timeout_s=40, what="beat sends")
    taken = {f"agent of {host.name}: takes messages", f"queue {host.queue}: taken by {host.name}"}
    wait_until(
        lambda: all(line in host.cronium("doctor", "--workers").stdout for line in taken),
        timeout_s=60,
        what="workers take messages",
    )
