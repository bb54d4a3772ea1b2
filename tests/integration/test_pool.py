"""Sandboxes that wait: what a job gets of them, and what becomes of them."""

import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import docker
import pytest
from docker.models.containers import Container

from cronium_worker.engine.images import first_present
from cronium_worker.errors import DaemonError
from cronium_worker.execution import pool as pools
from cronium_worker.execution.admission import Share
from cronium_worker.execution.sandbox import Host, Sandbox
from cronium_worker.janitor import Janitor
from cronium_worker.models import Resources
from cronium_worker.settings import Pool
from cronium_worker.workspace.lock import lock_host
from tests.conftest import wait_until
from tests.integration.conftest import Bench
from tests.integration.scripts import LANGUAGES, says
from tests.integration.shifts import own

MIB = 1024 * 1024
NO_NETWORK = {"network": {"mode": "none"}}


@pytest.fixture
def client() -> Iterator[docker.DockerClient]:
    client = docker.from_env()
    yield client
    client.close()


@pytest.fixture
def waiting(host: Host, client: docker.DockerClient) -> Callable[[], list[Container]]:
    """The containers of this host that have no job."""

    def look() -> list[Container]:
        filters = {"label": f"cronium.host={host.settings.host_name}"}
        return [
            c for c in client.containers.list(filters=filters, ignore_removed=True) if c.name.startswith("cronium.")
        ]

    return look


@pytest.fixture
def warm(make_bench: Callable[..., Bench]) -> Callable[..., Bench]:
    """A bench with sandboxes that wait; by default one for each type of script."""

    def make(*, size: int = 3, minimum: int = 1, expect: int | None = None, **changed: Any) -> Bench:
        bench = make_bench(pool=Pool(size=size, minimum=minimum), **changed)
        bench.runner.start()
        wait_for(bench, expect if expect is not None else min(size, 3 * minimum))
        return bench

    return make


def wait_for(bench: Bench, count: int) -> None:
    wait_until(lambda: bench.runner.pool_count().waiting == count, what=f"{count} sandboxes that wait")


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_job_gets_one_that_waits(warm: Callable[..., Bench], language: str) -> None:
    bench = warm()
    ran = bench.run(script=says(language, "hi"))

    assert (ran.result.status, ran.text("stdout")) == ("completed", "hi\n")
    assert (bench.runner.pool_count().hits, bench.runner.pool_count().misses) == (1, 0)
    assert bench.runner.pool_count().age_s > 0
    wait_for(bench, 3)  # another one is made


def test_it_is_the_jobs_own_with_name_and_limits(
    warm: Callable[..., Bench], client: docker.DockerClient, waiting: Callable[[], list[Container]]
) -> None:
    bench = warm()
    ids = {container.id for container in waiting()}
    assert all(labels_of(container).keys().isdisjoint({"cronium.job.id"}) for container in waiting())
    job = bench.start(
        script={"type": "bash", "content": "touch /tmp/begun; while [ ! -e /tmp/go ]; do sleep 0.05; done"},
        resources={"memory": "64m", "cpu": 1, "pids": 50},
        timeout=30,
    )
    container = wait_until(lambda: named(client, f"cronium-{job.id}"), what="the job's container")
    assert container.id in ids
    limits = container.attrs["HostConfig"]
    assert (limits["Memory"], limits["MemorySwap"], limits["PidsLimit"]) == (64 * MIB, 64 * MIB, 50)
    assert (limits["CpuQuota"], limits["CpuPeriod"]) == (100_000, 100_000)
    assert container.exec_run(["touch", "/tmp/go"]).exit_code == 0
    bench.settle()
    result = bench.store.result(job.id)
    assert result is not None
    assert result.status == "completed"
    assert named(client, f"cronium-{job.id}") is None


def labels_of(container: Container) -> dict[str, str]:
    labels: dict[str, str] = container.labels
    return labels


def named(client: docker.DockerClient, name: str) -> Container | None:
    try:
        return client.containers.get(name)
    except docker.errors.NotFound:
        return None


@pytest.mark.parametrize("cpu", [0.25, 0.5, 1])
def test_it_has_saved_the_processor_time_of_one_period(
    warm: Callable[..., Bench], waiting: Callable[[], list[Container]], cpu: float
) -> None:
    """As a v1 or a v2 kernel shows it to the job: limit and burst, in microseconds."""
    files = "/sys/fs/cgroup/cpu/cpu.cfs_quota_us /sys/fs/cgroup/cpu/cpu.cfs_burst_us"
    v2 = "cut -d' ' -f1 /sys/fs/cgroup/cpu.max; cat /sys/fs/cgroup/cpu.max.burst"
    content = f"hostname; cat {files} 2>/dev/null || ({v2})"
    bench = warm()
    names = {container.labels["cronium.sandbox"][:12] for container in waiting()}

    ran = bench.run(script={"type": "bash", "content": content}, resources={"cpu": cpu})

    name, *limit_and_burst = ran.text("stdout").split()
    assert limit_and_burst == [str(round(cpu * 100_000))] * 2
    assert name in names


def test_default_limits_are_those_of_the_fleet(warm: Callable[..., Bench]) -> None:
    bench = warm(defaults=Resources(memory=96 * MIB))
    ran = bench.run(script={"type": "bash", "content": "cat /sys/fs/cgroup/memory/memory.limit_in_bytes"})

    assert ran.text("stdout") == f"{96 * MIB}\n"
    assert bench.runner.pool_count().hits == 1


@pytest.mark.parametrize(
    "fields",
    [
        {"network": {"mode": "none"}},
        {"network": {"dns": ["192.0.2.1"]}},
        {"network": {"extra_hosts": {"db": "192.0.2.1"}}},
        {"resources": {"disk_io": "20m"}},
    ],
    ids=lambda fields: next(iter(next(iter(fields.values())))),
)
def test_a_job_that_needs_another_kind_has_its_own_made(warm: Callable[..., Bench], fields: dict[str, Any]) -> None:
    bench = warm()
    ran = bench.run(script=says("bash", "hi"), **fields)

    assert (ran.result.status, ran.text("stdout")) == ("completed", "hi\n")
    assert bench.runner.pool_count().hits == 0


def test_what_is_asked_for_is_kept(warm: Callable[..., Bench]) -> None:
    """Given no standing kinds: a kind has as many as its jobs lately came at once, and no more than may wait."""
    bench = warm(size=2, minimum=0, expect=0)
    assert bench.run(script=says("bash", "hi"), **NO_NETWORK).result.status == "completed"
    wait_for(bench, 1)
    jobs = [bench.start(script=says("bash", "hi"), **NO_NETWORK) for _ in range(4)]
    for thread in bench.threads:
        thread.join(30)
    assert {bench.store.record(job.id)["status"] for job in jobs} == {"completed"}
    wait_for(bench, 2)
    bench.settle()
    assert bench.runner.pool_count().hits >= 1


def test_each_is_used_once(warm: Callable[..., Bench]) -> None:
    bench = warm(size=1, minimum=1, expect=1)
    leaves = "ls -A /tmp /workspace/data /workspace/output; touch /tmp/left; hostname"
    names = set()
    for _ in range(2):
        wait_for(bench, 1)
        names.add(bench.run(script={"type": "bash", "content": leaves}).text("stdout"))
    assert len(names) == 2
    assert all("left" not in name for name in names)

    wait_for(bench, 1)
    first = bench.start(script={"type": "bash", "content": "sleep 2"})
    wait_until(lambda: bench.store.record(first.id)["status"] == "running", what="the first runs")
    assert bench.run(script={"type": "bash", "content": "hostname"}).result.status == "completed"


def test_what_has_died_is_not_given_to_a_job(
    warm: Callable[..., Bench], waiting: Callable[[], list[Container]], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = warm()
    monkeypatch.setattr(pools, "_LOOK_EVERY_S", 60)
    killed = {container.id for container in waiting()}
    for container in waiting():
        container.kill()
    assert bench.run(script=says("bash", "hi")).result.status == "completed"
    assert bench.runner.pool_count().hits == 0
    wait_until(lambda: killed.isdisjoint(container.id for container in waiting()), what="the dead to be gone")


def test_what_has_died_is_replaced(warm: Callable[..., Bench], waiting: Callable[[], list[Container]]) -> None:
    bench = warm()
    before = {container.id for container in waiting()}
    for container in waiting():
        container.kill()
    wait_until(lambda: len({c.id for c in waiting()} - before) == 3, what="three others")
    assert bench.run(script=says("python", "hi")).result.status == "completed"
    assert bench.runner.pool_count().hits == 1


def test_another_image_of_the_same_name(
    warm: Callable[..., Bench], host: Host, client: docker.DockerClient, waiting: Callable[[], list[Container]]
) -> None:
    found = first_present(host.engine, host.settings.images.candidates("bash"))
    assert found is not None
    image = "cronium-test/changing:1"
    assert client.api.tag(found[1], *image.split(":"))
    images = host.settings.images.model_copy(update={"bash": image, "python": image, "node": image})
    try:
        bench = warm(images=images)
        assert bench.run(script=says("bash", "hi")).result.status == "completed"
        wait_for(bench, 3)  # jobs ask for it
        old = {container.id for container in waiting()}
        base = client.containers.create(found[1], ["true"])
        try:
            base.commit(*image.split(":"))  # the name means another image from now on
        finally:
            base.remove()
        assert bench.run(script=says("bash", "hi")).result.status == "completed"
        assert bench.runner.pool_count().hits == 1
        wait_until(lambda: old.isdisjoint(container.id for container in waiting()), what="the old ones to be gone")
        bench.settle()
    finally:
        client.images.remove(image, force=True)


def test_jobs_go_first(warm: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch) -> None:
    """While a job's own sandbox is made, none is made in advance."""
    bench = warm(size=1, minimum=0, expect=0)
    create, hold, held = Sandbox.create, threading.Event(), threading.Event()

    def held_back(*arguments: Any, **options: Any) -> Sandbox:
        held.set()
        assert hold.wait(20)
        return create(*arguments, **options)

    made = threading.Event()
    prepare = Sandbox.prepare

    def noted(*arguments: Any) -> Sandbox:
        made.set()
        return prepare(*arguments)

    monkeypatch.setattr(Sandbox, "create", held_back)
    monkeypatch.setattr(Sandbox, "prepare", noted)
    bench.start(script=says("bash", "hi"))
    assert held.wait(20)
    assert not made.wait(0.5)
    hold.set()
    assert made.wait(20)


def test_a_job_that_waits_for_its_turn_to_have_one_made_hears_a_cancel(
    make_bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pools, "_START", Share(1000 * (os.cpu_count() or 1), 0))
    bench = make_bench()
    create, hold, held = Sandbox.create, threading.Event(), threading.Event()

    def held_back(*arguments: Any, **options: Any) -> Sandbox:
        held.set()
        assert hold.wait(20)
        return create(*arguments, **options)

    monkeypatch.setattr(Sandbox, "create", held_back)
    first = bench.start(script=says("bash", "hi"))
    assert held.wait(20)
    second = bench.start(script=says("bash", "hi"))
    wait_until(lambda: bench.runner._pool._starts.waiting == 1, what="the second job waits")
    bench.runner.active.cancel(second.id)

    cancelled = wait_until(lambda: bench.store.result(second.id), what="the second job's end")
    hold.set()
    bench.settle()
    assert cancelled.status == "cancelled"
    assert bench.store.result(first.id).status == "completed"


def test_short_memory_lets_them_go(warm: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch) -> None:
    bench = warm()
    monkeypatch.setattr(pools, "_memory_is_short", lambda: True)
    wait_for(bench, 0)
    assert bench.run(script=says("bash", "hi")).result.status == "completed"
    monkeypatch.undo()
    wait_for(bench, 3)


def test_an_engine_that_refuses_is_not_asked_at_once_again(
    warm: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[int] = []

    def refused(*_: Any) -> Sandbox:
        tried.append(1)
        raise DaemonError("container start: no", retryable=True)

    monkeypatch.setattr(Sandbox, "prepare", refused)
    bench = warm(expect=0)
    wait_until(lambda: tried, what="a try")
    assert bench.run(script=says("bash", "hi")).result.status == "completed"
    assert len(tried) <= 3


def test_nothing_is_left_when_the_worker_ends(
    warm: Callable[..., Bench], waiting: Callable[[], list[Container]]
) -> None:
    bench = warm()
    assert len(waiting()) == 3
    bench.runner.close()
    assert waiting() == []


def test_without_a_pool_nothing_is_made(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(pool=Pool(size=0))
    bench.runner.start()
    assert bench.run(script=says("bash", "hi")).result.status == "completed"
    assert (bench.runner.pool_count().waiting, bench.runner.pool_count().hits) == (0, 0)


# ---- whose they are


def test_the_next_worker_destroys_what_waited(
    warm: Callable[..., Bench], make_bench: Callable[..., Bench], host: Host, waiting: Callable[[], list[Container]]
) -> None:
    warm()
    left = own(host)
    assert [container.job_id for container in left] == [None] * 3
    following = make_bench()
    for container in left:
        assert following.runner.adopt(container) is None
    following.settle()
    assert waiting() == []


def test_the_janitor_leaves_what_waits_for_a_worker_that_lives(
    warm: Callable[..., Bench], host: Host, waiting: Callable[[], list[Container]], tmp_path: Path
) -> None:
    bench = warm()
    janitor = Janitor(host.engine, bench.store, host.settings.model_copy(update={"orphan_retention": 0.001}))
    lock = lock_host(host.settings.sandboxes_path, timeout_s=0)
    assert lock is not None
    try:
        assert janitor.sweep().removed["containers"] == []
        assert len(waiting()) == 3
    finally:
        os.close(lock)
    assert len(janitor.sweep().removed["containers"]) == 3
