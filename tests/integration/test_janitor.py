"""Orphans of every kind, planted on the real engine: exactly the right ones go."""

import io
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import docker
import pytest
import requests
from docker.models.containers import Container
from docker.types import Mount

from cronium_worker.engine.images import ImageManager
from cronium_worker.errors import DaemonError
from cronium_worker.execution.sandbox import Host, Sandbox
from cronium_worker.fleet.connections import connect
from cronium_worker.fleet.oversight import Oversight
from cronium_worker.fleet.store import INDEX_KEY, Claim, JobStore, record_key
from cronium_worker.janitor import Janitor, Sweep
from cronium_worker.models import Job, JobResult
from cronium_worker.policy import with_defaults
from cronium_worker.settings import Settings
from cronium_worker.workspace import create, existing, remove
from cronium_worker.workspace.directories import named
from tests.conftest import Leftovers, wait_until
from tests.integration.conftest import Bench
from tests.integration.scripts import says
from tests.registry import forget, push_image, running_registry

RETENTION_S = 5.0  # what is planted last is younger, also on a slow machine
SLEEPS = ["sleep", "300"]


class Planter:
    """Makes what a worker would have left behind."""

    def __init__(self, host: Host, store: JobStore) -> None:
        self.settings = host.settings
        self.engine = host.engine
        self.store = store
        self.docker = docker.from_env()
        self.image = "cronium/runner:bash-debian"
        self.planted: list[Container] = []

    def container(self, *, running: bool = False, mounted: str | None = None, **labels: str) -> str:
        """A container with the labels of this fleet and host, but for those given (`job_id` for cronium.job.id), and
        with the workspace of its sandbox (of `mounted`), made if there is none; empty: with none."""
        sandbox = labels.get("sandbox") or uuid4().hex
        own = {
            "cronium.fleet": self.settings.fleet,
            "cronium.host": self.settings.host_name,
            "cronium.sandbox": sandbox,
        }
        own |= {f"cronium.{name.replace('_', '.')}": value for name, value in labels.items()}
        name = f"cronium-planted-{uuid4().hex[:12]}"
        mounts = []
        if mounted != "":
            workspace = named(self.settings.sandboxes_path, mounted or sandbox)
            if not workspace.root.exists():
                self.workspace(workspace.root.name)
            mounts.append(Mount("/run/cronium", str(workspace.control), type="bind", read_only=True))
        container = self.docker.containers.create(
            self.image,
            SLEEPS,
            name=name,
            labels={k: v for k, v in own.items() if v},
            network_mode="none",
            mounts=mounts,
        )
        self.planted.append(container)
        if running:
            container.start()
        return name

    def workspace(self, sandbox: str | None = None) -> str:
        sandbox = sandbox or f"planted-{uuid4().hex}"
        create(self.settings.sandboxes_path, sandbox, uid=1000, gid=1000)
        return sandbox

    def old_workspace(self) -> str:
        sandbox = self.workspace()
        path = self.settings.sandboxes_path / "sandboxes" / sandbox
        then = time.time() - 3600
        os.utime(path, (then, then))
        return sandbox

    def job(self, **fields: Any) -> Job:
        job = Job.model_validate({"script": says("bash", "x")} | fields)
        self.store.register(job, task_id=job.id, queue="none")
        return job

    def claim(self, job: Job) -> Claim:
        """With a lease that outlasts the test, also on a slow machine."""
        lasting = JobStore(self.store.redis, result_ttl_s=600, lease_ttl_s=600)
        claim = lasting.claim(job.id, host=self.settings.host_name)
        assert isinstance(claim, Claim)
        return claim

    def there(self) -> set[str]:
        """Of what is planted; others may use this engine as well."""
        found = {c.name for c in self.docker.containers.list(all=True, ignore_removed=True)}
        return found & {c.name for c in self.planted}

    def grow_old(self) -> None:
        """Wait until all that is planted is older than the retention."""
        made = time.time()
        wait_until(lambda: time.time() - made > RETENTION_S + 1)


@pytest.fixture
def janitor(host: Host, store: JobStore) -> Janitor:
    settings = host.settings.model_copy(update={"orphan_retention": RETENTION_S})
    return Janitor(host.engine, store, settings)


@pytest.fixture
def planter(host: Host, store: JobStore, leftovers: Leftovers) -> Iterator[Planter]:
    planter = Planter(host, store)
    yield planter
    for container in planter.planted:
        try:
            container.remove(force=True, v=True)
        except docker.errors.NotFound:
            continue
    for workspace, _ in existing(host.settings.sandboxes_path):
        remove(workspace)
    planter.docker.close()
    leftovers.must_be_none()


def test_exactly_the_right_containers_go(
    planter: Planter, janitor: Janitor, settings: Settings, redis_url: str
) -> None:
    """Given orphans and what looks like them; when all is old and swept; then only the orphans are gone."""
    lapsing = JobStore(connect(redis_url), result_ttl_s=600, lease_ttl_s=0.05)
    held, lapsed, ended, waiting, pending, second, elsewhere = (planter.job() for _ in range(7))
    planter.claim(held)
    planter.store.claim(elsewhere.id, host="another")
    lapsing.claim(lapsed.id, host=settings.host_name)
    lapsing.redis.close()
    planter.store.finish(planter.claim(ended), JobResult(job_id=ended.id, status="completed"), "completed")
    planter.store.retry(planter.claim(waiting), "given back as it was")
    planter.store.retry(planter.claim(second), "again", fault=True)
    planter.claim(second)
    gone = {
        planter.container(running=True, job_id=lapsed.id, job_attempt="1"),
        planter.container(job_id=ended.id, job_attempt="1"),
        planter.container(running=True, job_id=waiting.id, job_attempt="1"),
        planter.container(running=True, job_id="no-record", job_attempt="1"),
        planter.container(running=True, job_id=second.id, job_attempt="1"),
        planter.container(running=True, job_id=pending.id, job_attempt="1"),
        planter.container(running=True, job_id=elsewhere.id, job_attempt="1"),
        planter.container(running=True),
        planter.container(job_id=held.id, job_attempt="nonsense"),
    }
    stay = {
        planter.container(running=True, job_id=held.id, job_attempt="1"),
        planter.container(running=True, job_id=second.id, job_attempt="2"),
        planter.container(running=True, fleet="another"),
        planter.container(fleet=settings.fleet + "x"),
        planter.container(host="another"),
        planter.container(host="", fleet="", sandbox=""),
        planter.container(fleet=""),
    }
    planter.grow_old()
    young = planter.container(job_id="no-record", job_attempt="1")
    before = planter.there()

    planned = janitor.sweep(dry_run=True)
    assert set(planned.removed["containers"]) == gone
    assert planter.there() == before

    sweep = janitor.sweep()
    assert set(sweep.removed["containers"]) == gone
    assert (sweep.young, sweep.failed) == (1, {})
    assert planter.there() == before - gone
    assert {young, *stay} <= planter.there()


def test_a_lease_that_lapsed_a_moment_ago_may_be_renewed(planter: Planter, host: Host, redis_url: str) -> None:
    lapsing = JobStore(connect(redis_url), result_ttl_s=600, lease_ttl_s=2)
    job = planter.job()
    claim = lapsing.claim(job.id, host=host.settings.host_name)
    assert isinstance(claim, Claim)
    name = planter.container(running=True, job_id=job.id, job_attempt="1")
    janitor = Janitor(host.engine, lapsing, host.settings.model_copy(update={"orphan_retention": 2}))
    wait_until(lambda: (Oversight(lapsing).standing([job.id])[job.id].lapsed_s or 0) > 0)
    assert janitor.sweep().removed["containers"] == []
    lapsing.renew([claim])
    wait_until(lambda: (Oversight(lapsing).standing([job.id])[job.id].lapsed_s or 0) > 2, timeout_s=10)
    assert janitor.sweep().removed["containers"] == [name]
    lapsing.redis.close()


def test_workspaces_without_a_container_go(planter: Planter, janitor: Janitor, settings: Settings) -> None:
    old, young, claimed = planter.old_workspace(), planter.workspace(), planter.old_workspace()
    planter.container(fleet="another", sandbox=claimed, mounted="")
    foreign = settings.sandboxes_path.with_name("another@host") / "sandboxes" / "theirs"
    foreign.mkdir(parents=True)
    os.utime(foreign, (0, 0))
    sweep = janitor.sweep()
    assert sweep.removed["workspaces"] == [old]
    assert sweep.young == 1
    there = settings.sandboxes_path / "sandboxes"
    assert {path.name for path in there.iterdir()} == {young, claimed}
    assert foreign.exists()
    for name in (young, claimed):
        os.utime(there / name, (0, 0))
    planter.planted.pop().remove(force=True)
    foreign.rmdir()
    assert set(janitor.sweep().removed["workspaces"]) == {young, claimed}


def test_container_and_workspace_go_in_one_sweep(planter: Planter, janitor: Janitor) -> None:
    sandbox = planter.old_workspace()
    name = planter.container(sandbox=sandbox)
    planter.grow_old()
    assert janitor.sweep(dry_run=True).removed["workspaces"] == [sandbox]
    sweep = janitor.sweep()
    assert (sweep.removed["containers"], sweep.removed["workspaces"]) == ([name], [sandbox])


@pytest.mark.parametrize("silent", [("create_container_from_config",), ("start", "remove_container")])
def test_a_container_that_an_engine_has_after_all_goes(
    planter: Planter, janitor: Janitor, host: Host, monkeypatch: pytest.MonkeyPatch, silent: tuple[str, ...]
) -> None:
    """Given an engine that ends while it makes a container, or before a failed one is removed, and that has it after
    its start; then it is this host's, and goes with its workspace."""
    job = with_defaults(Job.model_validate({"script": says("bash", "x")}), host.settings)
    image = ImageManager(host.engine, host.settings.registry).find([planter.image])
    assert image is not None
    done: list[str] = []

    def unanswered(name: str) -> Callable[..., Any]:
        call = getattr(host.engine.api, name)

        def ends(*arguments: Any, **options: Any) -> Any:
            if name not in done:
                done.append(name)
                if name != "remove_container":
                    call(*arguments, **options)
                raise requests.ConnectionError("Remote end closed connection without response")
            return call(*arguments, **options)

        return ends

    for name in silent:
        monkeypatch.setattr(host.engine.api, name, unanswered(name))
    with pytest.raises(DaemonError, match="did not answer"):
        Sandbox.create(host, job=job, attempt=1, image=image)
    assert done == list(silent)
    (container,) = planter.docker.containers.list(all=True, filters={"label": f"cronium.job.id={job.id}"})
    planter.planted.append(container)
    planter.grow_old()
    sweep = janitor.sweep()
    assert (sweep.removed["containers"], sweep.left_alone) == ([container.name], {})
    assert existing(host.settings.sandboxes_path) == []


def test_networks_that_are_left_over_go(planter: Planter, janitor: Janitor, settings: Settings) -> None:
    def network(name: str, fleet: str) -> Any:
        return planter.docker.networks.create(f"{name}-{settings.fleet}", labels={"cronium.fleet": fleet})

    unused, used, theirs = network("unused", settings.fleet), network("used", settings.fleet), network("x", "another")
    wanted = network("wanted", settings.fleet)  # by a container that may be started again: the engine would let it go
    containers = [planter.docker.containers.create(planter.image, SLEEPS, network=made.name) for made in (used, wanted)]
    planter.planted += containers
    containers[0].start()
    planter.grow_old()
    young = network("young", settings.fleet)
    try:
        assert unused.name in janitor.sweep(dry_run=True).removed["networks"]
        sweep = janitor.sweep()
        assert (sweep.removed["networks"], sweep.failed) == ([unused.name], {})
        left = {found.name for found in planter.docker.networks.list()}
        assert {used.name, wanted.name, theirs.name, young.name, "cronium-execution"} <= left
        assert unused.name not in left
    finally:
        for container in containers:
            container.remove(force=True)
        for made in (used, wanted, theirs, young):
            made.remove()


def test_images_whose_name_has_moved_on_go(planter: Planter, janitor: Janitor, settings: Settings) -> None:
    def build(label: str) -> str:
        """What is built on ours has our labels, too."""
        context = f"FROM cronium/base:debian\nLABEL {label}={uuid4().hex}\n"
        image, _ = planter.docker.images.build(fileobj=io.BytesIO(context.encode()), rm=True)
        return str(image.id)

    ours, theirs, used = (
        build("cronium.image.digest"),
        build("somebody"),
        build("cronium.image.digest"),
    )
    container = planter.docker.containers.create(used, SLEEPS)
    planter.planted.append(container)
    try:
        sweep = janitor.sweep()
        assert ours in sweep.removed["images"]
        assert not {theirs, used} & set(sweep.removed["images"])
        assert sweep.failed == {}
        container.remove()
        planter.planted.remove(container)
        assert janitor.sweep().removed["images"] == [used]
    finally:
        planter.docker.images.remove(theirs)


def test_pulled_images_whose_tag_has_moved_on_go(planter: Planter, store: JobStore, tmp_path: Path) -> None:
    """But those that jobs name by their digest, which need no tag, and those that nobody of this fleet has pulled."""
    api = planter.engine.api
    with running_registry(tmp_path) as registry:
        try:
            digests = [push_image(api, registry, name) for name in ("tools:1", "tools:1", "theirs:1", "theirs:1")]
            tools, theirs = registry.reference("tools:1"), registry.reference("theirs:1")
            pinned = registry.reference(f"tools@{digests[0]}")
            for reference in (pinned, registry.reference(f"theirs@{digests[2]}"), tools, theirs):
                api.pull(reference)
            before = {digest for image in api.images(filters={"dangling": True}) for digest in image["RepoDigests"]}
            assert {pinned, registry.reference(f"theirs@{digests[2]}")} <= before

            def sweep(*allowed: str) -> Sweep:
                changed = {"allowed_images": allowed, "orphan_retention": RETENTION_S}
                return Janitor(planter.engine, store, planter.settings.model_copy(update=changed)).sweep()

            old = api.inspect_image(pinned)["Id"]
            assert sweep(tools, pinned).removed["images"] == []
            assert sweep(tools).removed["images"] == [old]
            assert api.inspect_image(tools)["RepoDigests"] == [registry.reference(f"tools@{digests[1]}")]
            assert api.inspect_image(registry.reference(f"theirs@{digests[2]}"))
        finally:
            forget(api, registry.address)


def test_the_index_forgets_expired_records(planter: Planter, janitor: Janitor, store: JobStore) -> None:
    expired, stuck, recent = planter.job(), planter.job(), planter.job()
    for job in (expired, stuck):
        store.redis.zadd(INDEX_KEY, {job.id: 1})
    store.redis.delete(record_key(expired.id))
    store.redis.delete(record_key(recent.id))
    assert janitor.sweep(dry_run=True).records == 0
    assert janitor.sweep().records == 1
    assert store.redis.zscore(INDEX_KEY, expired.id) is None
    assert store.redis.zscore(INDEX_KEY, stuck.id) == 1
    store.redis.zrem(INDEX_KEY, stuck.id, recent.id)


def test_a_running_job_survives_a_sweep(bench: Bench, planter: Planter, janitor: Janitor, store: JobStore) -> None:
    job = bench.start(script=says("bash", "begun", then_sleep_s=RETENTION_S + 3))
    wait_until(lambda: any(e["type"] == "log" for e in store.events(job.id)))
    planter.grow_old()
    sweep = janitor.sweep()
    assert sweep.removed["containers"] == sweep.removed["workspaces"] == []
    list(store.follow(job.id))
    result = store.result(job.id)
    assert result is not None
    assert result.status == "completed"
    bench.settle()  # the container goes after the result is out


def test_without_the_records_nothing_is_removed(planter: Planter, host: Host) -> None:
    name = planter.container(job_id="any", job_attempt="1")
    away = JobStore(connect("redis://127.0.0.1:9/0", retries=0), result_ttl_s=1)
    janitor = Janitor(host.engine, away, host.settings.model_copy(update={"orphan_retention": 0.001}))
    with pytest.raises(Exception, match="refused"):
        janitor.sweep()
    assert name in planter.there()
    away.redis.close()


def test_what_cannot_be_removed_is_told_and_the_rest_goes(
    planter: Planter, janitor: Janitor, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [planter.container() for _ in range(3)]
    planter.grow_old()
    stubborn = planter.docker.containers.get(names[1]).id
    remove = janitor._engine.remove

    def removal(container_id: str) -> None:
        if container_id == stubborn:
            raise DaemonError("container remove: the Docker Engine did not answer", retryable=True)
        remove(container_id)

    monkeypatch.setattr(janitor._engine, "remove", removal)
    sweep = janitor.sweep()
    assert set(sweep.removed["containers"]) == {names[0], names[2]}
    assert sweep.failed == {names[1]: "container remove: the Docker Engine did not answer"}


def test_a_removal_that_is_under_way_counts_as_done(planter: Planter, janitor: Janitor) -> None:
    names = [planter.container(running=True) for _ in range(6)]
    planter.grow_old()

    def remove(container: Container) -> None:
        with suppress(docker.errors.APIError):  # the sweep may be the first
            container.remove(force=True)

    others = [threading.Thread(target=remove, args=(planter.docker.containers.get(name),)) for name in names]
    for thread in others:
        thread.start()
    sweep: Sweep = janitor.sweep()
    for thread in others:
        thread.join()
    assert sweep.failed == {}
    assert not set(names) & planter.there()
