"""Containers that look like this host's and are not: by their labels, by their names. None is touched or believed."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import docker
import pytest
from docker.models.containers import Container
from docker.models.images import Image
from docker.types import Mount

from cronium_worker.engine.images import ImageManager
from cronium_worker.execution.sandbox import Host, Sandbox, kind_of
from cronium_worker.fleet.store import JobStore
from cronium_worker.janitor import Janitor
from cronium_worker.nodes import JobsStep
from cronium_worker.policy import with_defaults
from cronium_worker.settings import Pool
from cronium_worker.workspace import create
from tests.conftest import wait_until
from tests.integration.conftest import Bench
from tests.integration.shifts import Case, own
from tests.integration.test_nodes import start_node

__all__ = ["start_node"]

pytestmark = pytest.mark.attack

IMAGE = "cronium/runner:bash-debian"
SLEEPS = ["sleep", "300"]


class Stranger:
    """Somebody else who uses the engine."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.client = docker.from_env()
        self._stack = ExitStack()
        self._stack.callback(self.client.close)

    def runs(self, image: str = IMAGE, *, labelled: dict[str, str] | None = None, **options: Any) -> Container:
        """A container; `labelled`: with labels of this host and these."""
        own_labels = {"fleet": self.host.settings.fleet, "host": self.host.settings.host_name}
        labels = {} if labelled is None else {f"cronium.{name}": text for name, text in (own_labels | labelled).items()}
        made = self.client.containers.run(
            image, SLEEPS, detach=True, labels=labels, entrypoint=[], network_mode="none", **options
        )
        self._stack.callback(self.removes, made)
        return made

    def removes(self, container: Container) -> None:
        with suppress(docker.errors.NotFound):
            container.remove(force=True)

    def has(self, image: Image) -> Image:
        """An image that goes when they go."""
        self._stack.callback(self.client.images.remove, image.id, force=True)
        return image

    def close(self) -> None:
        self._stack.close()


@pytest.fixture
def stranger(host: Host) -> Iterator[Stranger]:
    stranger = Stranger(host)
    yield stranger
    stranger.close()


def runs_still(container: Container) -> bool:
    container.reload()
    return str(container.status) == "running"


@pytest.fixture
def precious(host: Host) -> Path:
    """Beside the base path: from the sandboxes' directory it is at ../../../precious."""
    canary = host.settings.base_path.parent / f"precious-{uuid4().hex[:8]}" / "canary"
    canary.parent.mkdir()
    canary.write_text("alive")
    (host.settings.sandboxes_path / "sandboxes").mkdir(parents=True, exist_ok=True)
    return canary


@pytest.fixture
def sweep(host: Host, store: JobStore) -> Callable[[], dict[str, str]]:
    """Of a janitor that waits for nothing; returns what it has left alone."""
    janitor = Janitor(host.engine, store, host.settings.model_copy(update={"orphan_retention": 0.001}))
    return lambda: janitor.sweep().left_alone


@pytest.mark.parametrize("job", [{}, {"job.id": "nobodys", "job.attempt": "1"}, {"job.id": "../x", "job.attempt": "²"}])
def test_a_label_leads_nowhere(
    stranger: Stranger,
    precious: Path,
    start_node: Callable[[], JobsStep],
    sweep: Callable[[], dict[str, str]],
    job: dict[str, str],
) -> None:
    """Given containers whose label of a sandbox is a path to somebody's directory; when a worker starts and a janitor
    sweeps; then directory and containers are as they were, and it is told once why."""
    up = f"../../../{precious.parent.name}"
    link = stranger.host.settings.sandboxes_path / "sandboxes" / f"link-{uuid4().hex}"
    link.symlink_to(precious.parent)
    paths = (up, f"x/../{up}", str(precious.parent), link.name, "", ".", "..", "x\n", "é" * 200)
    there = [stranger.runs(labelled={"sandbox": path, **job}) for path in paths]
    try:
        node = start_node()
        wait_until(lambda: node._runner.pool_count().leaving == 0, what="nothing is being destroyed")
        left_alone = sweep()
    finally:
        link.unlink(missing_ok=True)

    assert precious.read_text() == "alive"
    assert all(runs_still(container) for container in there)
    assert {container.name for container in there} <= left_alone.keys()


def test_a_sweep_tells_once_of_what_it_has_left_alone(
    stranger: Stranger, host: Host, store: JobStore, caplog: pytest.LogCaptureFixture
) -> None:
    janitor = Janitor(host.engine, store, host.settings)
    first = stranger.runs(labelled={"sandbox": uuid4().hex})
    reports = [janitor.sweep().report() for _ in range(2)]
    second = stranger.runs(labelled={"sandbox": uuid4().hex})
    janitor.sweep()

    assert [report["left_alone"] for report in reports] == [
        {first.name: "this host has no workspace of its sandbox"}
    ] * 2
    told = [record.getMessage() for record in caplog.records if "left alone" in record.getMessage()]
    assert len(told) == 2
    assert first.name in told[0]
    assert second.name in told[1]


def test_who_has_the_labels_of_a_job_does_not_have_the_job(
    stranger: Stranger,
    case: Callable[..., Case],
    start_node: Callable[[], JobsStep],
    sweep: Callable[[], dict[str, str]],
) -> None:
    """Given a running job, and containers with all of its labels, one of them a copy with its very mounts; when the
    next worker starts; then it adopts the job, whose script runs once, and touches no other."""
    job = case(script={"type": "bash", "content": "echo begun; until [ -e /tmp/go ]; do sleep 0.1; done; echo done"})
    shift = job.start()
    job.wait_for("begun")
    genuine = stranger.client.containers.get(job.container().id)
    labels = {
        name.removeprefix("cronium."): text for name, text in genuine.labels.items() if "cronium.image" not in name
    }
    sandbox = job.container().sandbox_id
    tmp = job.host.settings.sandboxes_path / "sandboxes" / sandbox / "tmp"
    copy = stranger.has(genuine.commit("cronium-test/copy", "1"))
    there = [
        stranger.runs(labelled=labels),
        stranger.runs(labelled=labels, mounts=[Mount("/run/cronium", str(tmp), type="bind")]),
        stranger.runs(copy.id, labelled=labels),
        stranger.runs(copy.id, labelled=labels, volumes_from=[genuine.id]),
    ]
    assert shift.leave() is not None
    assert job.container().id == genuine.id
    left_alone = sweep()

    node = start_node()
    (tmp / "go").touch()
    wait_until(lambda: job.store.result(job.job.id), what="the adopted job's result")
    wait_until(lambda: node._runner.pool_count().leaving == 0, what="its container destroyed")

    assert (job.store.result(job.job.id).status, job.text()) == ("completed", "begun\ndone\n")
    assert job.store.record(job.job.id)["attempt"] == "1"
    assert all(runs_still(container) for container in there)
    assert left_alone.keys() == {container.name for container in there}
    for container in there:
        stranger.removes(container)


def test_a_sandbox_has_no_job_of_its_image(
    stranger: Stranger, case: Callable[..., Case], start_node: Callable[[], JobsStep]
) -> None:
    """Given a running job, and a warm sandbox whose image has labels of that job; when the next worker starts; then
    it adopts the job's own container."""
    job = case(id=f"victim{uuid4().hex}", script={"type": "bash", "content": "echo begun; sleep 2; echo done"})
    base = stranger.client.containers.create(IMAGE)
    changes = [f"LABEL cronium.job.id={job.job.id}", "LABEL cronium.job.attempt=1"]
    stranger.has(base.commit("cronium-test/labels", "1", changes=changes))
    base.remove()
    image = ImageManager(job.host.engine, job.host.settings.registry).find(["cronium-test/labels:1"])
    assert image is not None
    shift = job.start()
    job.wait_for("begun")
    kind = kind_of(with_defaults(job.job, job.host.settings), image, job.host.settings.defaults)
    assert kind is not None
    waiting = Sandbox.prepare(job.host, kind)
    waiting.leave()
    assert shift.leave() is not None

    node = start_node()
    wait_until(lambda: job.store.result(job.job.id), what="the adopted job's result")
    wait_until(lambda: node._runner.pool_count().leaving == 0 and own(job.host) == [], what="nothing is left")
    assert (job.store.result(job.job.id).status, job.text()) == ("completed", "begun\ndone\n")
    assert job.store.record(job.job.id)["attempt"] == "1"


def test_a_label_does_not_say_whose_the_sandbox_is(
    stranger: Stranger, host: Host, sweep: Callable[[], dict[str, str]]
) -> None:
    """Given a workspace that a worker left; and a stranger's container that names it and does not have it; when swept;
    then the container stays, and its workspace as long as it is named."""
    sandbox = uuid4().hex
    root = create(host.settings.sandboxes_path, sandbox, uid=1000, gid=1000).root
    container = stranger.runs(labelled={"sandbox": sandbox})
    assert own(host) == []
    assert sweep().keys() == {container.name}
    assert root.exists()
    assert runs_still(container)
    stranger.removes(container)
    sweep()
    assert not root.exists()


# ---- names

COUNTS = "echo start; until [ -e /tmp/go ]; do sleep 0.1; done; echo end"


def starts(bench: Bench, job_id: str) -> int:
    return sum(event["data"].count("start") for event in bench.store.events(job_id) if event["type"] == "log")


def go(stranger: Stranger, container_id: str) -> None:
    assert stranger.client.containers.get(container_id).exec_run(["touch", "/tmp/go"]).exit_code == 0


@pytest.mark.parametrize("size", [0, 2], ids=["pool off", "pool on"])
def test_no_name_costs_another_job_its_container(
    make_bench: Callable[..., Bench], stranger: Stranger, size: int
) -> None:
    """Given jobs whose ids look like other jobs' later attempts; when those come to these attempts; then each script is
    started once."""
    bench = make_bench(pool=Pool(size=size, minimum=size))
    bench.runner.start()
    name = f"b{uuid4().hex[:8]}"
    others = [bench.start(id=f"{name}-{number}", script={"type": "bash", "content": COUNTS}) for number in (2, 3)]
    wait_until(lambda: all(starts(bench, job.id) for job in others), what="the others run")

    retry = {"max_attempts": 3, "delay": 0}
    ran = bench.run(id=name, script={"type": "bash", "content": "echo start; exit 3"}, retry=retry)

    assert (ran.result.status, ran.result.attempt, starts(bench, name)) == ("failed", 3, 3)
    for container in own(bench.runner._host):
        go(stranger, container.id)
    bench.settle()
    results = [bench.store.result(job.id) for job in others]
    assert [(result.status, result.attempt) for result in results if result] == [("completed", 1)] * 2
    assert [starts(bench, job.id) for job in others] == [1, 1]


@pytest.mark.parametrize("size", [0, 1], ids=["pool off", "pool on"])
def test_a_name_that_a_stranger_has_is_left_to_them(
    make_bench: Callable[..., Bench], stranger: Stranger, size: int
) -> None:
    """Given a stranger's container with the name of a job's; then both run, and the job's is named otherwise."""
    bench = make_bench(pool=Pool(size=size, minimum=size))
    bench.runner.start()
    bench.wait_for_pool()
    name = f"foo{uuid4().hex[:8]}"
    theirs = stranger.runs(name=f"cronium-{name}")
    job = bench.start(id=name, script={"type": "bash", "content": COUNTS})
    wait_until(lambda: starts(bench, job.id), what="the job runs")

    def named() -> list[Container]:
        return [c for c in stranger.client.containers.list() if c.name.startswith(f"cronium-{name}.")]

    [container] = wait_until(named, what="its container has its other name")
    assert container.name == f"cronium-{name}.{container.labels['cronium.sandbox'][:12]}"
    go(stranger, container.id)
    bench.settle()
    result = bench.store.result(job.id)
    assert result is not None
    assert (result.status, result.attempt, starts(bench, job.id)) == ("completed", 1, 1)
    assert runs_still(theirs)
