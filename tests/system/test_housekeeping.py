"""What keeps a host in order, with real processes on this machine's engine: agents, beat, drain, want of room."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from uuid import uuid4

import docker
import pytest

from cronium_worker import housekeeping
from cronium_worker.app import app
from cronium_worker.beat_schedule import CLEANUP, ON_EVERY_HOST, PREPULL, RECOVER
from cronium_worker.fleet.connections import connect
from cronium_worker.fleet.hosts import HostRegistry
from cronium_worker.models.queues import FLEET_QUEUE
from tests.conftest import wait_until
from tests.mounts import mounts_below
from tests.own_redis import OwnRedis, own_redis
from tests.recorder import Recorder
from tests.rig import CRONIUM, RigWorker
from tests.system.local_host import IMAGE, LocalHost, is_there

__all__ = ["own_redis"]


@pytest.mark.timeout(120)
def test_hosts_tells_of_a_host_from_its_start_to_its_end(host: LocalHost) -> None:
    worker = host.start(concurrency=3)
    job = host.submit("sleep 60")
    wait_until(lambda: (v := host.view()) and v.nodes.get("jobs", {}).get("running") == 1, what="one runs")
    [shown] = [row for row in host.json("hosts") if row["name"] == host.name]
    assert shown["state"] == "live"
    jobs, agent = shown["nodes"]["jobs"], shown["nodes"]["agent"]
    assert (jobs["slots"], jobs["queues"], jobs["fleet"]) == (3, [host.queue], host.fleet)
    assert min(jobs["free_bytes"].values()) > 0
    with closing(docker.from_env()) as client:
        assert (agent["engine"], agent["cgroup"] in {"1", "2"}) == (client.version()["Version"], True)
    assert "runc" in agent["runtimes"]
    assert IMAGE in [image["image"] for image in agent["images"]]
    line = next(line for line in host.cronium("hosts").stdout.splitlines() if line.startswith(host.name))
    assert " live " in line
    assert " 1/3 " in line
    assert [row for row in host.json("images", "ls") if row["host"] == host.name and row["image"] == IMAGE]
    assert host.cronium("cancel", job).returncode == 0
    wait_until(lambda: host.status(job) == "cancelled")
    assert worker.stop() == 0
    assert host.state() == "gone"
    line = next(line for line in host.cronium("hosts").stdout.splitlines() if line.startswith(host.name))
    assert line.split()[1] == "gone"


@pytest.mark.timeout(120)
def test_a_host_that_dies_is_gone_when_its_lease_is_over(host: LocalHost) -> None:
    worker = host.start(node="jobs")
    assert host.state() == "live"
    worker.kill()
    wait_until(lambda: host.state() == "gone", timeout_s=6)


@pytest.mark.timeout(120)
def test_a_drained_host_takes_no_jobs_until_undo(host: LocalHost) -> None:
    host.env["CRONIUM_LEASE_TTL"] = "60"  # by itself it would look every ten seconds
    host.registry = HostRegistry(host.registry._redis, host_ttl_s=60)
    host.start()
    running = host.submit("sleep 6")
    wait_until(lambda: host.status(running) == "running")
    started = time.monotonic()
    done = host.cronium("drain", host.name)
    assert (done.returncode, done.stdout) == (0, f"{host.name} takes no more jobs\n")
    assert time.monotonic() - started < 5  # it was told
    assert host.state() == "draining"
    waiting = host.submit("true")
    wait_until(lambda: host.status(running) == "completed", what="what runs goes on")
    assert host.status(waiting) == "pending"
    undone = time.monotonic()
    assert host.cronium("drain", host.name, "--undo").stdout == f"{host.name} takes jobs again\n"
    assert time.monotonic() - undone < 5
    wait_until(lambda: host.status(waiting) == "completed")
    assert host.state() == "live"


@pytest.mark.timeout(120)
def test_a_drain_is_remembered_over_a_restart(host: LocalHost) -> None:
    worker = host.start(node="jobs")
    assert worker.stop() == 0
    assert "when it comes back, it takes no more jobs" in host.cronium("drain", host.name).stdout
    host.start(node="jobs")
    waiting = host.submit("true")
    agent = host.start(node="agent")  # time enough for a jobs node to take it
    assert host.status(waiting) == "pending"
    assert agent.process.poll() is None
    assert host.cronium("drain", host.name, "--undo").returncode == 0
    wait_until(lambda: host.status(waiting) == "completed")


@pytest.mark.timeout(120)
def test_a_drain_can_be_waited_for(host: LocalHost) -> None:
    host.start(node="jobs")
    job = host.submit("sleep 60")
    wait_until(lambda: host.status(job) == "running")
    command = [CRONIUM, "drain", host.name, "--wait"]
    with subprocess.Popen(command, env=host.env, stdout=subprocess.PIPE, text=True) as waiting:
        assert waiting.stdout is not None
        assert waiting.stdout.readline() == f"{host.name} takes no more jobs\n"
        told = time.monotonic()
        wait_until(lambda: time.monotonic() - told > 1)
        assert waiting.poll() is None
        assert host.cronium("cancel", job).returncode == 0
        assert waiting.communicate(timeout=60)[0] == f"{host.name} runs no jobs\n"
    assert host.status(job) == "cancelled"


def test_drain_of_a_host_that_is_not_there(host: LocalHost) -> None:
    done = host.cronium("drain", "nosuchhost")
    assert done.returncode == 1
    assert done.stderr == "Error: nosuchhost: no host of this name; see `cronium hosts`\n"
    assert "nosuchhost" not in host.registry.drained()


@pytest.fixture
def small_disk(host: LocalHost) -> Iterator[Path]:
    """Puts the host's base path on a file system of 64 MB."""
    path = host.base_path
    with mounts_below(path) as mount:
        mount(path, "-t", "tmpfs", "-o", "size=64m", "tmpfs")
        yield path
        host.close()


@pytest.mark.timeout(120)
def test_a_host_without_room_sweeps_and_takes_no_jobs_until_there_is(host: LocalHost, small_disk: Path) -> None:
    orphan = host.plant_orphan()
    filler = small_disk / "filler"
    filler.write_bytes(bytes(40 * 1024 * 1024))
    host.start(CRONIUM_MIN_FREE_DISK="32m")
    wait_until(lambda: host.state() == "unfit")
    waiting = host.submit("true")
    wait_until(lambda: not is_there(orphan), what="swept at once")
    shown = host.cronium("hosts").stdout
    assert f"{small_disk}: " in shown
    assert "bytes are free, fewer than 33554432" in shown
    assert host.status(waiting) == "pending"
    filler.unlink()
    wait_until(lambda: host.status(waiting) == "completed")
    assert host.state() == "live"


@pytest.mark.timeout(120)
def test_a_host_whose_engine_has_locked_up_takes_no_jobs_until_it_is_mended(host: LocalHost) -> None:
    """It answers pings and lists, and starts no container."""
    engine = Recorder(host.path / "docker.sock")
    host.start(DOCKER_HOST=f"unix://{engine.path}")
    try:
        done = host.submit("true")
        wait_until(lambda: host.status(done) == "completed")
        engine.unlocked.clear()
        wait_until(lambda: "the Docker Engine does not answer" in host.cronium("hosts").stdout)
        assert host.state() == "unfit"
        waiting = host.submit("true")
        assert host.status(waiting) == "pending"
        engine.unlocked.set()
        wait_until(lambda: host.status(waiting) == "completed", timeout_s=30)
        assert (host.json("status", waiting)["attempt"], host.state()) == ("1", "live")
    finally:
        host.close()
        engine.close()


@pytest.mark.timeout(120)
def test_cleanup_on_all_hosts_now_and_as_a_dry_run(host: LocalHost) -> None:
    host.start(node="agent")
    orphan = host.plant_orphan()
    wait_until(lambda: orphan in json.dumps(host.json("cleanup", "--dry-run")["hosts"][host.name]["names"]))
    assert is_there(orphan)
    planned = host.json("cleanup", "--dry-run")["hosts"][host.name]
    assert (planned["dry_run"], planned["removed"]["containers"]) == (True, 1)
    done = host.cronium("cleanup")
    assert done.returncode == 0
    assert "1 containers" in done.stdout
    assert not is_there(orphan)
    view = host.view()
    assert view is not None
    assert view.housekeeping["cleanup"]["removed"]["containers"] == 1


@pytest.mark.timeout(120)
def test_housekeeping_does_not_wait_behind_jobs(host: LocalHost) -> None:
    host.start(concurrency=1)
    jobs = [host.submit("sleep 60") for _ in range(2)]
    wait_until(lambda: host.status(jobs[0]) == "running")
    assert host.name in host.json("cleanup")["hosts"]
    assert [host.status(job) for job in jobs] == ["running", "pending"]
    for job in jobs:
        assert host.cronium("cancel", job).returncode == 0
    wait_until(lambda: [host.status(job) for job in jobs] == ["cancelled"] * 2)


@pytest.mark.timeout(120)
def test_a_host_that_was_away_does_no_backlog(host: LocalHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """Given turns that were sent while nobody took them, and beat's next turn came; when the agent is back, then it
    drops them."""
    runs = [uuid4().hex for _ in range(3)]
    with monkeypatch.context() as every:
        every.setattr(housekeeping, "housekeeping_every_s", lambda _: {CLEANUP: 0.5})
        for run in runs:
            housekeeping.send(CLEANUP, host.name, run=run)
    current = uuid4().hex
    housekeeping.send(CLEANUP, host.name, run=current)
    sent = time.monotonic()
    wait_until(lambda: time.monotonic() - sent > 0.6)
    host.start(node="agent")
    assert [answer["host"] for answer in host.registry.answers(current, [host.name], timeout_s=20)] == [host.name]
    assert [list(host.registry.answers(run, ["x"], timeout_s=0.1)) for run in runs] == [[], [], []]


@pytest.mark.timeout(180)
def test_beats_take_over_from_each_other(host: LocalHost) -> None:
    """Given two beats; when the leading one is killed; then sweeps go on within the lock's time."""
    host.start(node="agent")
    beat = ("celery", "--quiet", "-A", "cronium_worker.app", "beat", "--loglevel", "INFO")
    schedule = {"CRONIUM_SCHEDULE__CLEANUP": "1", "PATH": f"{Path(CRONIUM).parent}:{os.environ['PATH']}"}
    beats = [host.process(*beat, **schedule) for _ in range(2)]

    def leads(process: RigWorker) -> bool:
        return "Acquired lock" in process.log.read_text()

    wait_until(lambda: any(map(leads, beats)), timeout_s=40)
    first = host.plant_orphan()
    wait_until(lambda: not is_there(first), what="a sweep")
    leader, follower = sorted(beats, key=leads, reverse=True)
    assert not leads(follower)
    killed = time.monotonic()
    leader.kill()
    wait_until(lambda: leads(follower), timeout_s=40)
    second = host.plant_orphan()
    wait_until(lambda: not is_there(second), what="the next beat's sweep")
    assert time.monotonic() - killed < 30
    wait_until(lambda: not list(host.base_path.glob("*/sandboxes/*")), what="the end of the sweep")


@pytest.mark.timeout(60)
@pytest.mark.parametrize("moment", ["setup_schedule", "tick"])
def test_beat_ends_cleanly_whenever_it_is_told_to(host: LocalHost, moment: str) -> None:
    """Given SIGTERM during its scheduler's start, or a turn; in a finalizer, where Python swallows what its handler
    raises; then it ends without an error, and its lock is free for the next beat."""
    code = f"""if True:
        import os, signal
        from cronium_worker.app import app
        from cronium_worker.beat import Scheduler

        class Finalized:
            def __del__(self):
                os.kill(os.getpid(), signal.SIGTERM)

        def told(self, *args, moment=Scheduler.{moment}, **options):
            assert not hasattr(self, "told"), "called again"
            self.told = Finalized()
            del self.told
            self.told = True
            return moment(self, *args, **options)

        Scheduler.{moment} = told
        app.Beat(loglevel="INFO", quiet=True).run()
    """
    python = str(Path(CRONIUM).parent / "python")
    for _ in range(2):
        beat = host.process(python, "-c", code)
        assert beat.process.wait(20) == 0, beat.log.read_text()


@pytest.mark.timeout(180)
def test_a_restart_of_redis_stops_no_schedule(host: LocalHost, own_redis: OwnRedis, tmp_path: Path) -> None:
    host.env["CRONIUM_REDIS_URL"] = own_redis.url
    host.env["PATH"] = f"{Path(CRONIUM).parent}:{os.environ['PATH']}"
    procfile = tmp_path / "Procfile"
    wanted = [line for line in Path("Procfile").read_text().splitlines() if line.startswith(("agent:", "beat:"))]
    assert len(wanted) == 2
    procfile.write_text("\n".join(wanted))
    supervise = (sys.executable, "-m", "cronium_worker.cli.supervise", str(procfile))
    host.process(*supervise, CRONIUM_SCHEDULE__CLEANUP="1")
    before = host.plant_orphan()
    wait_until(lambda: not is_there(before), timeout_s=60, what="a sweep")
    own_redis.kill()
    down = time.monotonic()
    wait_until(lambda: time.monotonic() - down > 3)
    own_redis.start()
    after = host.plant_orphan()
    wait_until(lambda: not is_there(after), timeout_s=60, what="a sweep after the restart")


def test_the_fan_out_reaches_the_hosts_by_the_fleet_queue(host: LocalHost) -> None:
    host.start(node="agent")
    orphan = host.plant_orphan()
    time_made = time.monotonic()
    wait_until(lambda: time.monotonic() - time_made > 1.5)
    app.send_task("cronium.on_every_host", args=["cronium.cleanup_orphans"], queue=FLEET_QUEUE)
    wait_until(lambda: not is_there(orphan))


def test_no_results_of_housekeeping_are_stored(host: LocalHost) -> None:
    agent = host.start(node="agent")
    own_queue, runs = f"cronium.host.{host.name}", {task: uuid4().hex for task in (CLEANUP, PREPULL)}
    sent = [app.send_task(ON_EVERY_HOST, args=[CLEANUP], queue=FLEET_QUEUE), app.send_task(RECOVER, queue=FLEET_QUEUE)]
    sent += [app.send_task(task, kwargs={"run": run}, queue=own_queue) for task, run in runs.items()]
    for run in runs.values():
        assert list(host.registry.answers(run, [host.name], timeout_s=20))
    assert agent.stop() == 0  # what it has taken has ended
    with connect(host.env["CRONIUM_REDIS_URL"]) as redis:
        assert redis.exists(*(f"celery-task-meta-{async_result.id}" for async_result in sent)) == 0


def test_images_pull_names_the_host_that_refuses(host: LocalHost) -> None:
    host.start(node="agent")
    done = host.cronium("images", "pull", "somebody/elses:1")
    assert done.returncode == 1
    assert "failed: somebody/elses:1 is not on this host's allow-list (CRONIUM_ALLOWED_IMAGES)" in done.stdout
    assert "prepull failed: somebody/elses:1" in host.cronium("hosts").stdout


def test_images_pull_names_the_host_that_does_not_answer(host: LocalHost) -> None:
    worker = host.start(node="agent")
    for process in worker.processes():
        process.suspend()
    try:
        done = host.cronium("images", "pull", "--timeout", "2", IMAGE)
    finally:
        for process in worker.processes():
            process.resume()
    assert done.returncode == 1
    [line] = [line for line in done.stdout.splitlines() if host.name in line]
    assert "did not answer" in line


def test_without_hosts_there_is_nobody_to_ask(host: LocalHost) -> None:
    wait_until(lambda: not [view for view in host.registry.hosts() if view.has_agent], timeout_s=40)
    done = host.cronium("cleanup")
    assert done.returncode == 1
    assert done.stderr == "Error: no host answers: start one with `cronium worker`; see `cronium hosts`\n"
