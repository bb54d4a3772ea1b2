"""What keeps a host in order, with real processes on this machine's engine: agents, beat, drain, want of room."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from uuid import uuid4

import docker
import pytest
from redis.exceptions import RedisError

from cronium_worker.app import app
from cronium_worker.fleet.hosts import HostRegistry, HostView
from cronium_worker.fleet.store import connect
from cronium_worker.models.job import FLEET_QUEUE
from cronium_worker.settings import Settings
from tests.conftest import wait_until
from tests.registry import free_port
from tests.rig import CRONIUM, RigWorker

IMAGE = "cronium/runner:bash-debian"


class TestHost:
    """A host of this test alone on this machine's engine: its settings, its workers, its command line."""

    __test__ = False

    def __init__(self, settings: Settings, path: Path) -> None:
        self.name = f"hk-{uuid4().hex[:8]}"
        self.fleet = settings.fleet
        self.queue = f"queue-{self.name}"
        self.path = path
        self.base_path = path / "base"
        self.base_path.mkdir()
        keep = {name: value for name, value in os.environ.items() if not name.startswith("CRONIUM_")}
        self.env = keep | {
            "CRONIUM_REDIS_URL": settings.redis_url.get_secret_value(),
            "CRONIUM_FLEET": settings.fleet,
            "CRONIUM_HOST_NAME": self.name,
            "CRONIUM_BASE_PATH": str(self.base_path),
            "CRONIUM_RESULT_TTL": "600",
            "CRONIUM_LEASE_TTL": "3",
            "CRONIUM_ORPHAN_RETENTION": "1",
        }
        self.registry = HostRegistry(connect(self.env["CRONIUM_REDIS_URL"]), host_ttl_s=3)
        self._workers = ExitStack()
        self._started = 0

    def start(self, *, node: str | None = None, concurrency: int = 2, **env: str) -> RigWorker:
        command = [CRONIUM, "worker", "--queues", self.queue, "--concurrency", str(concurrency)]
        self._started += 1
        log = self.path / f"worker-{self._started}.log"
        worker = RigWorker(command + (["--node", node] if node else []), self.env | env, log)
        self._workers.enter_context(worker)
        worker.wait_ready(nodes=1 if node else 2)
        return worker

    def process(self, *command: str, **env: str) -> RigWorker:
        """Another process of the fleet, with its log."""
        self._started += 1
        process = RigWorker(list(command), self.env | env, self.path / f"process-{self._started}.log")
        self._workers.enter_context(process)
        return process

    def close(self) -> None:
        self._workers.close()
        self.registry.undrain(self.name)
        self.registry._redis.close()

    def view(self) -> HostView | None:
        return next((host for host in self.registry.hosts() if host.name == self.name), None)

    def state(self) -> str:
        view = self.view()
        return view.state if view else "unknown"

    def cronium(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [CRONIUM, *arguments], env=self.env, capture_output=True, text=True, timeout=60, check=False
        )

    def json(self, *arguments: str) -> Any:
        done = self.cronium(*arguments, "--json")
        assert done.stdout, done.stderr
        return json.loads(done.stdout)

    def submit(self, script: str) -> str:
        file = self.path / f"{uuid4().hex}.sh"
        file.write_text(script)
        done = self.cronium("run", str(file), "--detach", "--queue", self.queue)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def status(self, job_id: str) -> str:
        return str(self.json("status", job_id)["status"])

    def plant_orphan(self) -> str:
        """An old container that nobody claims."""
        name = f"cronium-orphan-{uuid4().hex[:8]}"
        labels = {"cronium.fleet": self.fleet, "cronium.host": self.name, "cronium.sandbox": uuid4().hex}
        client = docker.from_env()
        client.containers.create(IMAGE, ["true"], name=name, labels=labels, network_mode="none")
        client.close()
        return name


def is_there(name: str) -> bool:
    client = docker.from_env()
    try:
        return name in [c.name for c in client.containers.list(all=True, ignore_removed=True)]
    finally:
        client.close()


@pytest.fixture
def test_host(settings: Settings, tmp_path: Path, leftovers: Callable[[], list[str]]) -> Iterator[TestHost]:
    host = TestHost(settings, tmp_path)
    yield host
    host.close()
    client = docker.from_env()
    for container in client.containers.list(all=True, filters={"label": f"cronium.host={host.name}"}):
        container.remove(force=True)
    client.close()
    assert not list(host.base_path.glob("*/sandboxes/*"))


@pytest.mark.timeout(120)
def test_hosts_tells_of_a_host_from_its_start_to_its_end(test_host: TestHost) -> None:
    worker = test_host.start(concurrency=3)
    job = test_host.submit("sleep 4")
    wait_until(lambda: (v := test_host.view()) and v.nodes.get("jobs", {}).get("running") == 1, what="one runs")
    [shown] = [host for host in test_host.json("hosts") if host["name"] == test_host.name]
    assert shown["state"] == "live"
    jobs, agent = shown["nodes"]["jobs"], shown["nodes"]["agent"]
    assert (jobs["slots"], jobs["queues"], jobs["fleet"]) == (3, [test_host.queue], test_host.fleet)
    assert min(jobs["free_bytes"].values()) > 0
    assert (agent["engine"], agent["cgroup"] in {"1", "2"}) == (docker.from_env().version()["Version"], True)
    assert "runc" in agent["runtimes"]
    assert IMAGE in [image["image"] for image in agent["images"]]
    line = next(line for line in test_host.cronium("hosts").stdout.splitlines() if line.startswith(test_host.name))
    assert " live " in line
    assert " 1/3 " in line
    assert [row for row in test_host.json("images", "ls") if row["host"] == test_host.name and row["image"] == IMAGE]
    wait_until(lambda: test_host.status(job) == "completed")
    assert worker.stop() == 0
    assert test_host.state() == "gone"
    assert f"{test_host.name}  gone" in test_host.cronium("hosts").stdout


@pytest.mark.timeout(120)
def test_a_host_that_dies_is_gone_when_its_lease_is_over(test_host: TestHost) -> None:
    worker = test_host.start(node="jobs")
    assert test_host.state() == "live"
    worker.kill()
    wait_until(lambda: test_host.state() == "gone", timeout_s=6)


@pytest.mark.timeout(120)
def test_a_drained_host_takes_no_jobs_until_undo(test_host: TestHost) -> None:
    test_host.start()
    running = test_host.submit("sleep 3")
    wait_until(lambda: test_host.status(running) == "running")
    started = time.monotonic()
    done = test_host.cronium("drain", test_host.name)
    assert (done.returncode, done.stdout) == (0, f"{test_host.name} takes no more jobs\n")
    assert time.monotonic() - started < 3  # it was told, and did not find out by itself
    assert test_host.state() == "draining"
    waiting = test_host.submit("true")
    wait_until(lambda: test_host.status(running) == "completed", what="what runs goes on")
    assert test_host.status(waiting) == "pending"
    assert test_host.cronium("drain", test_host.name, "--undo").stdout == f"{test_host.name} takes jobs again\n"
    wait_until(lambda: test_host.status(waiting) == "completed")
    assert test_host.state() == "live"


@pytest.mark.timeout(120)
def test_a_drain_is_remembered_over_a_restart(test_host: TestHost) -> None:
    worker = test_host.start(node="jobs")
    assert worker.stop() == 0
    assert "when it comes back, it takes no more jobs" in test_host.cronium("drain", test_host.name).stdout
    test_host.start(node="jobs")
    waiting = test_host.submit("true")
    agent = test_host.start(node="agent")  # time enough for a jobs node to take it
    assert test_host.status(waiting) == "pending"
    assert agent.process.poll() is None
    assert test_host.cronium("drain", test_host.name, "--undo").returncode == 0
    wait_until(lambda: test_host.status(waiting) == "completed")


def test_drain_of_a_host_that_is_not_there(test_host: TestHost) -> None:
    done = test_host.cronium("drain", "nosuchhost")
    assert done.returncode == 1
    assert done.stderr == "Error: nosuchhost: no host of this name; see `cronium hosts`\n"
    assert "nosuchhost" not in test_host.registry.drained()


@pytest.fixture
def small_disk(test_host: TestHost) -> Iterator[Path]:
    """Puts the host's base path on a file system of 64 MB."""
    path = test_host.base_path
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", path], check=True)
    yield path
    test_host.close()
    subprocess.run(["umount", path], check=True)


@pytest.mark.timeout(120)
def test_a_host_without_room_sweeps_and_takes_no_jobs_until_there_is(test_host: TestHost, small_disk: Path) -> None:
    orphan = test_host.plant_orphan()
    filler = small_disk / "filler"
    filler.write_bytes(bytes(40 * 1024 * 1024))
    test_host.start(CRONIUM_MIN_FREE_DISK="32m")
    wait_until(lambda: test_host.state() == "no room")
    waiting = test_host.submit("true")
    wait_until(lambda: not is_there(orphan), what="swept at once")
    shown = test_host.cronium("hosts").stdout
    assert f"{small_disk}: " in shown
    assert "bytes are free, fewer than 33554432" in shown
    assert test_host.status(waiting) == "pending"
    filler.unlink()
    wait_until(lambda: test_host.status(waiting) == "completed")
    assert test_host.state() == "live"


@pytest.mark.timeout(120)
def test_cleanup_on_all_hosts_now_and_as_a_dry_run(test_host: TestHost) -> None:
    test_host.start(node="agent")
    orphan = test_host.plant_orphan()
    wait_until(lambda: orphan in json.dumps(test_host.json("cleanup", "--dry-run")["hosts"][test_host.name]["names"]))
    assert is_there(orphan)
    planned = test_host.json("cleanup", "--dry-run")["hosts"][test_host.name]
    assert (planned["dry_run"], planned["removed"]["containers"]) == (True, 1)
    done = test_host.cronium("cleanup")
    assert done.returncode == 0
    assert "1 containers" in done.stdout
    assert not is_there(orphan)
    view = test_host.view()
    assert view is not None
    assert view.housekeeping["cleanup"]["removed"]["containers"] == 1


@pytest.mark.timeout(120)
def test_housekeeping_does_not_wait_behind_jobs(test_host: TestHost) -> None:
    test_host.start(concurrency=1)
    jobs = [test_host.submit("sleep 5") for _ in range(2)]
    wait_until(lambda: test_host.status(jobs[0]) == "running")
    assert test_host.name in test_host.json("cleanup")["hosts"]
    assert [test_host.status(job) for job in jobs] == ["running", "pending"]
    for job in jobs:
        assert test_host.cronium("cancel", job).returncode == 0
    wait_until(lambda: [test_host.status(job) for job in jobs] == ["cancelled"] * 2)


@pytest.mark.timeout(120)
def test_a_host_that_was_away_does_no_backlog(test_host: TestHost) -> None:
    """Given turns that were sent while nobody took them; when the agent is back, then it drops them."""
    queue = f"cronium.host.{test_host.name}"
    runs = [uuid4().hex for _ in range(3)]
    for run in runs:
        app.send_task("cronium.cleanup_orphans", kwargs={"run": run}, queue=queue, expires=0.5)
    current = uuid4().hex
    app.send_task("cronium.cleanup_orphans", kwargs={"run": current}, queue=queue, expires=60)
    sent = time.monotonic()
    wait_until(lambda: time.monotonic() - sent > 0.6)
    test_host.start(node="agent")
    assert [answer["host"] for answer in test_host.registry.answers(current, [test_host.name], timeout_s=20)] == [
        test_host.name
    ]
    assert [list(test_host.registry.answers(run, ["x"], timeout_s=0.1)) for run in runs] == [[], [], []]


@pytest.mark.timeout(180)
def test_beats_take_over_from_each_other(test_host: TestHost) -> None:
    """Given two beats; when the leading one is killed; then sweeps go on within the lock's time."""
    test_host.start(node="agent")
    beat = ("celery", "--quiet", "-A", "cronium_worker.app", "beat", "--loglevel", "INFO")
    schedule = {"CRONIUM_SCHEDULE__CLEANUP": "1", "PATH": f"{Path(CRONIUM).parent}:{os.environ['PATH']}"}
    beats = [test_host.process(*beat, **schedule) for _ in range(2)]

    def leads(process: RigWorker) -> bool:
        return "Acquired lock" in process.log.read_text()

    wait_until(lambda: any(map(leads, beats)), timeout_s=40)
    first = test_host.plant_orphan()
    wait_until(lambda: not is_there(first), what="a sweep")
    leader, follower = sorted(beats, key=leads, reverse=True)
    assert not leads(follower)
    killed = time.monotonic()
    leader.kill()
    wait_until(lambda: leads(follower), timeout_s=40)
    second = test_host.plant_orphan()
    wait_until(lambda: not is_there(second), what="the next beat's sweep")
    assert time.monotonic() - killed < 30


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator["OwnRedis"]:
    redis = OwnRedis(tmp_path)
    redis.start()
    yield redis
    redis.kill()


class OwnRedis:
    """A Redis with an append-only file that may be killed."""

    def __init__(self, directory: Path) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._directory = directory
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = ["redis-server", "--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self._directory)]
        command += ["--save", "", "--appendonly", "yes", "--maxmemory-policy", "noeviction"]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        wait_until(self._answers, what="Redis answers")

    def _answers(self) -> bool:
        with connect(self.url, retries=0) as redis:
            try:
                return bool(redis.ping())
            except RedisError:
                return False

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()


@pytest.mark.timeout(180)
def test_a_restart_of_redis_stops_no_schedule(test_host: TestHost, own_redis: OwnRedis, tmp_path: Path) -> None:
    test_host.env["CRONIUM_REDIS_URL"] = own_redis.url
    test_host.env["PATH"] = f"{Path(CRONIUM).parent}:{os.environ['PATH']}"
    procfile = tmp_path / "Procfile"
    wanted = [line for line in Path("Procfile").read_text().splitlines() if line.startswith(("agent:", "beat:"))]
    assert len(wanted) == 2
    procfile.write_text("\n".join(wanted))
    supervise = (sys.executable, "-m", "cronium_worker.cli.supervise", str(procfile))
    test_host.process(*supervise, CRONIUM_SCHEDULE__CLEANUP="1")
    before = test_host.plant_orphan()
    wait_until(lambda: not is_there(before), timeout_s=60, what="a sweep")
    own_redis.kill()
    down = time.monotonic()
    wait_until(lambda: time.monotonic() - down > 3)
    own_redis.start()
    after = test_host.plant_orphan()
    wait_until(lambda: not is_there(after), timeout_s=60, what="a sweep after the restart")


def test_the_fan_out_reaches_the_hosts_by_the_fleet_queue(test_host: TestHost) -> None:
    test_host.start(node="agent")
    orphan = test_host.plant_orphan()
    time_made = time.monotonic()
    wait_until(lambda: time.monotonic() - time_made > 1.5)
    app.send_task("cronium.on_every_host", args=["cronium.cleanup_orphans"], queue=FLEET_QUEUE)
    wait_until(lambda: not is_there(orphan))


def test_no_results_of_housekeeping_are_stored(test_host: TestHost) -> None:
    test_host.start(node="agent")
    async_result = app.send_task("cronium.on_every_host", args=["cronium.cleanup_orphans"], queue=FLEET_QUEUE)
    assert test_host.cronium("cleanup").returncode == 0
    redis = connect(test_host.env["CRONIUM_REDIS_URL"])
    assert redis.exists(f"celery-task-meta-{async_result.id}") == 0
    redis.close()


def test_images_pull_names_the_host_that_refuses(test_host: TestHost) -> None:
    test_host.start(node="agent")
    done = test_host.cronium("images", "pull", "somebody/elses:1")
    assert done.returncode == 1
    assert "failed: somebody/elses:1 is not on this host's allow-list (CRONIUM_ALLOWED_IMAGES)" in done.stdout
    assert "prepull failed: somebody/elses:1" in test_host.cronium("hosts").stdout


def test_images_pull_names_the_host_that_does_not_answer(test_host: TestHost) -> None:
    worker = test_host.start(node="agent")
    for process in worker.processes():
        process.suspend()
    try:
        done = test_host.cronium("images", "pull", "--timeout", "2", IMAGE)
    finally:
        for process in worker.processes():
            process.resume()
    assert done.returncode == 1
    [line] = [line for line in done.stdout.splitlines() if test_host.name in line]
    assert "did not answer" in line


def test_without_hosts_there_is_nobody_to_ask(test_host: TestHost) -> None:
    wait_until(lambda: not [host for host in test_host.registry.hosts() if host.has_agent], timeout_s=40)
    done = test_host.cronium("cleanup")
    assert done.returncode == 1
    assert done.stderr == "Error: no host answers: start one with `cronium worker`; see `cronium hosts`\n"
