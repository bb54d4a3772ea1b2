"""A jobs node starts on a host where another one has been."""

from collections.abc import Callable, Iterator
from contextlib import closing
from types import SimpleNamespace
from uuid import uuid4

import docker
import pytest

from cronium_worker import nodes
from cronium_worker.app import app
from cronium_worker.execution.sandbox import Host
from cronium_worker.fleet.heartbeat import Heartbeat
from cronium_worker.nodes import JobsStep
from cronium_worker.workspace import create
from tests.conftest import wait_until
from tests.integration.shifts import Case


@pytest.fixture
def start_node(host: Host, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], JobsStep]]:
    """The start of this host's jobs node, up to its first beat."""
    started: list[JobsStep] = []
    monkeypatch.setattr(nodes, "get_settings", lambda: host.settings)
    monkeypatch.setattr(nodes, "_send_again", lambda _: None)

    def start() -> JobsStep:
        worker = SimpleNamespace(hostname=f"jobs@{host.settings.host_name}", app=app, concurrency=2, consumer=None)
        step = JobsStep(worker)
        step.heartbeat = Heartbeat(step.beat, every_s=60)
        step.set_up(worker)
        started.append(step)
        return step

    yield start
    for step in started:
        step.tear_down()
    app.runner = None


def test_workspaces_without_a_container_are_removed_at_the_start(
    host: Host, case: Callable[..., Case], start_node: Callable[[], JobsStep]
) -> None:
    """Given what a worker leaves that is killed while it destroys a sandbox, a container that may not be adopted, and
    one whose job runs; when the next worker starts; then the first one's files go, and the others' stay."""
    base = host.settings.sandboxes_path
    gone, kept = (create(base, f"left-{uuid4().hex}", uid=1000, gid=1000).root for _ in range(2))
    elsewhere = create(base.with_name("another@host"), "theirs", uid=1000, gid=1000).root
    (gone / "output" / "half").write_text("written")
    labels = {"fleet": host.settings.fleet, "host": host.settings.host_name, "sandbox": kept.name}
    labels |= {"job.id": "no-record", "job.attempt": "1"}
    job = case(script={"type": "bash", "content": "echo begun; sleep 2; cat data/input.json"}, input_data="there")
    with closing(docker.from_env()) as client:
        container = client.containers.create(
            "cronium/runner:bash-debian", labels={f"cronium.{name}": value for name, value in labels.items()}
        )
        try:
            shift = job.start()
            job.wait_for("begun")
            assert shift.leave() is not None

            node = start_node()

            wait_until(lambda: not gone.exists(), what="the files without a container removed")
            wait_until(lambda: job.store.result(job.job.id), what="the adopted job's result")
            wait_until(lambda: node._runner.active.ids() == [], what="its end")
            wait_until(lambda: node._runner.pool_count().leaving == 0, what="its container destroyed")
            assert job.text() == 'begun\n"there"'
            assert {path.name for path in kept.parent.iterdir()} == {kept.name}
            assert (kept / "output").is_dir()
            assert (elsewhere / "output").is_dir()
            container.reload()  # left to the janitor
        finally:
            container.remove(force=True)
            for path in (kept, elsewhere):
                nodes._remove([nodes.directories.Workspace(path)])
