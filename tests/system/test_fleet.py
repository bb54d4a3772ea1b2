"""A fleet of several hosts, each with an engine of its own: jobs, images and clean-up on all of them."""

import json
import os
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from docker.types import Mount

from cronium_worker import execute_job
from cronium_worker.fleet.connections import connect
from cronium_worker.fleet.hosts import HostRegistry, HostView
from cronium_worker.fleet.store import JobStore
from cronium_worker.models import Job
from cronium_worker.settings import Settings
from cronium_worker.tasks import store
from cronium_worker.workspace import create
from tests.conftest import wait_until
from tests.integration.scripts import says
from tests.registry import PASSWORD, USERNAME, RegistryServer, push_image, running_registry
from tests.rig import CRONIUM, Rig, RigHost

IMAGE = "cronium/runner:bash-debian"
TIMEOUT_S = 120
# What is made right before a sweep is young, however long that takes to begin on a busy machine.
RETENTION_S = 10


@pytest.fixture(scope="module")
def fleet(settings: Settings) -> Iterator[Rig]:
    """Three hosts; two of them have the runner image."""
    redis_url = settings.redis_url.get_secret_value()
    rig = Rig(redis_url=redis_url, fleet=f"{settings.fleet}-fleet", hosts=3).start()
    for host in rig.hosts:
        host.env |= {"CRONIUM_LEASE_TTL": "3", "CRONIUM_ORPHAN_RETENTION": str(RETENTION_S)}
    rig.a.load(IMAGE)
    rig.b.load(IMAGE)
    yield rig
    rig.stop()


@pytest.fixture(autouse=True)
def no_workers_left(fleet: Rig) -> Iterator[None]:
    yield
    for host in fleet.hosts:
        host.stop_workers()


@pytest.fixture
def registry(fleet: Rig, tmp_path: Path) -> Iterator[RegistryServer]:
    with running_registry(tmp_path, host=fleet.address, login=True) as server:
        yield server


def cronium(host: RigHost, *arguments: str) -> Any:
    """What the command prints as JSON, as an operator on that host sees it."""
    done = subprocess.run(
        [CRONIUM, *arguments, "--json"], env=host.env, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
    )
    assert done.stdout, done.stderr
    return json.loads(done.stdout)


def views(host: RigHost) -> dict[str, HostView]:
    with connect(host.env["CRONIUM_REDIS_URL"]) as redis:
        return {view.name: view for view in HostRegistry(redis, host_ttl_s=3).hosts()}


@pytest.mark.timeout(240)
def test_jobs_spread_over_the_hosts(fleet: Rig) -> None:
    queue = f"spread-{uuid4().hex[:8]}"
    with fleet.a.start_worker(queues=queue):
        jobs = [{"script": says("bash", str(n)), "queue": queue, "network": {"mode": "none"}} for n in range(200)]
        results = [execute_job.delay(job) for job in jobs]
        fleet.b.start_worker(queues=queue)  # what it finds, the first one has not kept for itself
        outcomes = [async_result.get(timeout=TIMEOUT_S) for async_result in results]
        assert {outcome["status"] for outcome in outcomes} == {"completed"}
        for n, async_result in enumerate(results):
            log = [event["data"] for event in store().events(async_result.id) if event["type"] == "log"]
            assert log == [f"{n}\n"]
        by_host = Counter(outcome["host"] for outcome in outcomes)
        assert by_host.keys() == {fleet.a.host_name, fleet.b.host_name}
        assert min(by_host.values()) >= 40


@pytest.mark.timeout(240)
def test_an_image_comes_to_all_hosts_and_to_the_one_that_joins(
    fleet: Rig, registry: RegistryServer, tmp_path: Path
) -> None:
    name = "team/tools:1"
    digest = push_image(fleet.a.client.api, registry, name, parent=IMAGE)
    reference = registry.reference(name)
    login = {
        "CRONIUM_ALLOWED_IMAGES": json.dumps([reference]),
        "CRONIUM_REGISTRY__SERVER": registry.address,
        "CRONIUM_REGISTRY__USERNAME": USERNAME,
        "CRONIUM_REGISTRY__PASSWORD": PASSWORD,
    }
    queue = f"images-{uuid4().hex[:8]}"
    hosts = [fleet.a, fleet.b]
    for host in hosts:
        host.start_worker(queues=queue, **login)
        # Away with what the start has brought.
        wait_until(lambda engine=host.client: engine.images.list(name=reference), what="the image at the start")
        wait_until(lambda name=host.host_name: reference in json.dumps(views(fleet.a)[name].housekeeping))
        host.client.images.remove(reference, force=True)
    answered = cronium(fleet.a, "images", "pull", reference)
    assert answered["silent"] == []
    assert answered["hosts"].keys() == {host.host_name for host in hosts}
    for report in answered["hosts"].values():
        [row] = report["images"]
        assert (row["image"], row["digest"], row["pulled"], row["error"]) == (reference, digest, True, None)
    for host in hosts:
        assert host.client.images.get(reference)

    fleet.hosts[2].start_worker(queues=queue, **login)
    joined = fleet.hosts[2].host_name
    wait_until(lambda: views(fleet.a)[joined].housekeeping.get("prepull"), what="the new host's report")
    [row] = views(fleet.a)[joined].housekeeping["prepull"]["images"]
    assert (row["image"], row["digest"], row["pulled"]) == (reference, digest, True)

    listed = {row["host"] for row in cronium(fleet.a, "images", "ls") if row["digest"] == digest}
    assert listed == {fleet.a.host_name, fleet.b.host_name, joined}
    for host in hosts:  # the job is for the one that joined
        host.stop_workers()
    script = tmp_path / "job.sh"
    script.write_text("echo from the registry")
    run = [CRONIUM, "run", str(script), "--queue", queue, "--image", reference]
    env = fleet.a.env | login
    done = subprocess.run(run, env=env, capture_output=True, text=True, timeout=TIMEOUT_S, check=False)
    assert (done.returncode, done.stdout) == (0, "from the registry\n"), done.stderr


@pytest.mark.timeout(120)
def test_a_wrong_password_is_told_by_every_host(fleet: Rig, registry: RegistryServer) -> None:
    reference = registry.reference(f"secret/{uuid4().hex[:8]}:1")
    wrong = {
        "CRONIUM_ALLOWED_IMAGES": json.dumps([reference]),
        "CRONIUM_REGISTRY__SERVER": registry.address,
        "CRONIUM_REGISTRY__USERNAME": USERNAME,
        "CRONIUM_REGISTRY__PASSWORD": "wrong",
    }
    with (
        fleet.a.start_worker(queues="none", node="agent", **wrong),
        fleet.b.start_worker(queues="none", node="agent", **wrong),
    ):
        answered = cronium(fleet.a, "images", "pull", reference)["hosts"]
    assert len(answered) == 2
    for report in answered.values():
        error = report["images"][0]["error"]
        assert (error["type"], error["retryable"], error["details"]["reason"]) == ("image_pull", False, "denied")


class Planted:
    """Orphans of every kind on one host, and what looks like them."""

    def __init__(self, host: RigHost, jobs: JobStore) -> None:
        self._host = host
        self._jobs = jobs
        lapsing = JobStore(jobs.redis, result_ttl_s=600, lease_ttl_s=0.05)
        self.orphans = {
            self._container(self._job(lapsing), running=True),
            self._container({}, running=False),
            self._container({"cronium.job.id": "gone", "cronium.job.attempt": "1"}, running=False),
        }
        self.others = {
            self._container(self._job(JobStore(jobs.redis, result_ttl_s=600, lease_ttl_s=600)), running=True),
            self._container({"cronium.fleet": "another"}, running=True, is_own=False),
            self._container({"cronium.fleet": ""}, running=False, is_own=False),
        }
        self.orphan_workspace = self._workspace(age_s=60)

    def plant_young(self) -> None:
        self.others.add(self._container({}, running=True))
        self.young_workspace = self._workspace(age_s=0)

    def _job(self, jobs: JobStore) -> dict[str, str]:
        """The labels of a job that this host has taken."""
        job = Job.model_validate({"script": says("bash", "x")})
        jobs.register(job, task_id=job.id, queue="none")
        jobs.claim(job.id, host=self._host.host_name)
        return {"cronium.job.id": job.id, "cronium.job.attempt": "1"}

    def _container(self, labels: dict[str, str], *, running: bool, is_own: bool = True) -> str:
        """`is_own`: it has the control directory of its sandbox, as one that a worker has made."""
        env = self._host.env
        sandbox = uuid4().hex
        own = {
            "cronium.fleet": env["CRONIUM_FLEET"],
            "cronium.host": env["CRONIUM_HOST_NAME"],
            "cronium.sandbox": sandbox,
        }
        mounts = []
        if is_own:
            control = create(self._sandboxes().parent, sandbox, uid=1000, gid=1000).control
            mounts.append(Mount("/run/cronium", str(control), type="bind", read_only=True))
        container = self._host.client.containers.create(
            IMAGE,
            ["sleep", "600"],
            labels={k: v for k, v in (own | labels).items() if v},
            network_mode="none",
            mounts=mounts,
        )
        if running:
            container.start()
        return str(container.name)

    def _sandboxes(self) -> Path:
        env = self._host.env
        return self._host.base_path / f"{env['CRONIUM_FLEET']}@{env['CRONIUM_HOST_NAME']}" / "sandboxes"

    def _workspace(self, *, age_s: float) -> Path:
        path = self._sandboxes() / uuid4().hex
        (path / "data").mkdir(parents=True)
        os.utime(path, (time.time() - age_s,) * 2)
        return path

    def there(self) -> set[str]:
        return {str(c.name) for c in self._host.client.containers.list(all=True, ignore_removed=True)}

    def remove(self) -> None:
        for container in self._host.client.containers.list(all=True, ignore_removed=True):
            container.remove(force=True)


@pytest.mark.timeout(120)
def test_exactly_the_orphans_are_gone_on_both_hosts_one_sweep_later(fleet: Rig) -> None:
    hosts = [fleet.a, fleet.b]
    with fleet.a.start_worker(queues="none", node="agent"), fleet.b.start_worker(queues="none", node="agent"):
        planted = [Planted(host, store()) for host in hosts]
        old = time.monotonic()
        wait_until(lambda: time.monotonic() - old > RETENTION_S + 1.5)
        for each in planted:
            each.plant_young()
        answered = cronium(fleet.b, "cleanup")["hosts"]
        for host, each in zip(hosts, planted, strict=True):
            assert each.there() == each.others
            assert not each.orphan_workspace.exists()
            assert each.young_workspace.exists()
            report = answered[host.host_name]
            removed = {kind: count for kind, count in report["removed"].items() if kind != "records"}
            assert removed == {"containers": 3, "workspaces": 4, "networks": 0, "images": 0}
            assert (report["young"], report["failed"]) == (2, {})
            each.remove()


@pytest.mark.timeout(120)
def test_a_sweep_survives_an_engine_that_answers_slowly(fleet: Rig) -> None:
    with fleet.a.start_worker(queues="none", node="agent"):
        planted = Planted(fleet.a, store())
        old = time.monotonic()
        wait_until(lambda: time.monotonic() - old > RETENTION_S + 1.5)
        processes = fleet.a.engine.processes()
        for process in processes:
            process.suspend()
        command = subprocess.Popen([CRONIUM, "cleanup", "--json"], env=fleet.a.env, stdout=subprocess.PIPE, text=True)
        try:
            frozen = time.monotonic()
            wait_until(lambda: time.monotonic() - frozen > 4)
            assert command.poll() is None
        finally:
            for process in processes:
                process.resume()
        report = json.loads(command.communicate(timeout=60)[0])["hosts"][fleet.a.host_name]
        assert planted.there() == planted.others
        assert report["failed"] == {}
        planted.remove()


@pytest.mark.timeout(120)
def test_an_engine_that_is_away_is_told_and_comes_back(fleet: Rig) -> None:
    with fleet.b.start_worker(queues="none", node="agent"):
        fleet.b.kill_dockerd()
        report = cronium(fleet.a, "cleanup")["hosts"][fleet.b.host_name]
        assert "did not answer" in report["error"]
        wait_until(lambda: "did not answer" in views(fleet.a)[fleet.b.host_name].nodes["agent"].get("error", ""))
        fleet.b.restart_dockerd()
        assert "error" not in cronium(fleet.a, "cleanup")["hosts"][fleet.b.host_name]
        wait_until(lambda: "engine" in views(fleet.a)[fleet.b.host_name].nodes["agent"])


@pytest.mark.timeout(180)
def test_a_host_whose_engine_is_away_takes_no_jobs_and_costs_none_an_attempt(fleet: Rig) -> None:
    queue = f"away-{uuid4().hex[:8]}"
    with fleet.b.start_worker(queues=queue):
        fleet.b.kill_dockerd()
        try:
            # What is taken before the worker has seen it is given back.
            async_result = execute_job.delay({"script": says("bash", "hi"), "queue": queue})
            wait_until(lambda: views(fleet.a)[fleet.b.host_name].state == "unfit", timeout_s=10)
            job = store().record(async_result.id)
            with fleet.a.start_worker(queues=queue):
                outcome = async_result.get(timeout=TIMEOUT_S)
                assert (outcome["status"], outcome["attempt"], outcome["host"]) == ("completed", 1, fleet.a.host_name)
        finally:
            fleet.b.restart_dockerd()
        assert job["attempt"] == "1"
        wait_until(lambda: views(fleet.a)[fleet.b.host_name].state == "live", timeout_s=10)
        assert execute_job.delay({"script": says("bash", "hi"), "queue": queue}).get(timeout=TIMEOUT_S)["attempt"] == 1
