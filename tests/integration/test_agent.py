"""A host's agent: one run of a kind at a time, a report of each."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import pytest

from cronium_worker.agent import Agent
from cronium_worker.engine.images import ImageManager
from cronium_worker.errors import DaemonError
from cronium_worker.execution.sandbox import Host
from cronium_worker.fleet.connections import connect
from cronium_worker.fleet.hosts import HostRegistry
from cronium_worker.janitor import Janitor, Sweep
from tests.conftest import wait_until
from tests.registry import forget, push_image, running_registry


class SlowJanitor:
    """Sweeps when it is let."""

    def __init__(self) -> None:
        self.begun = 0
        self.go_on = threading.Event()
        self.error: Exception | None = None

    def sweep(self, *, dry_run: bool = False) -> Sweep:
        self.begun += 1
        assert self.go_on.wait(20)
        if self.error is not None:
            raise self.error
        return Sweep(dry_run=dry_run)


@pytest.fixture
def registry(redis_url: str) -> Iterator[HostRegistry]:
    redis = connect(redis_url)
    yield HostRegistry(redis, host_ttl_s=60)
    redis.close()


@pytest.fixture
def janitor() -> SlowJanitor:
    return SlowJanitor()


@pytest.fixture
def make_agent(host: Host, registry: HostRegistry, janitor: SlowJanitor) -> Callable[..., Agent]:
    def make(**changed: Any) -> Agent:
        settings = host.settings.model_copy(update={"host_name": f"agent-{uuid4().hex[:8]}"} | changed)
        images = ImageManager(host.engine, settings.registry)
        return Agent(host.engine, images, cast(Janitor, janitor), registry, settings)

    return make


def housekeeping(registry: HostRegistry, agent: Agent) -> dict[str, Any]:
    name = agent._settings.host_name
    return dict(next(view for view in registry.hosts() if view.name == name).housekeeping)


def test_a_turn_is_left_out_while_one_is_under_way(make_agent: Callable[..., Agent], janitor: SlowJanitor) -> None:
    agent = make_agent()
    first = threading.Thread(target=agent.cleanup)
    first.start()
    wait_until(lambda: janitor.begun == 1)
    agent.cleanup()  # comes back at once
    janitor.go_on.set()
    first.join()
    agent.cleanup()
    assert janitor.begun == 2


def test_a_run_that_somebody_waits_for_takes_its_turn(
    make_agent: Callable[..., Agent], janitor: SlowJanitor, registry: HostRegistry
) -> None:
    agent, run = make_agent(), uuid4().hex
    threads = [threading.Thread(target=agent.cleanup), threading.Thread(target=agent.cleanup, kwargs={"run": run})]
    threads[0].start()
    wait_until(lambda: janitor.begun == 1)
    threads[1].start()
    assert list(registry.answers(run, ["x"], timeout_s=0.3)) == []
    assert janitor.begun == 1
    janitor.go_on.set()
    [answer] = registry.answers(run, [agent._settings.host_name], timeout_s=20)
    assert answer["report"]["removed"]["containers"] == 0
    for thread in threads:
        thread.join()


def test_a_sweep_that_fails_is_a_report_and_not_the_last_one(
    make_agent: Callable[..., Agent], janitor: SlowJanitor, registry: HostRegistry
) -> None:
    agent = make_agent()
    janitor.go_on.set()
    janitor.error = DaemonError("container list: the Docker Engine did not answer")
    agent.cleanup()
    assert housekeeping(registry, agent)["cleanup"]["error"] == "container list: the Docker Engine did not answer"
    janitor.error = None
    agent.cleanup()
    assert "error" not in housekeeping(registry, agent)["cleanup"]


def test_a_dry_run_leaves_the_last_report(
    make_agent: Callable[..., Agent], janitor: SlowJanitor, registry: HostRegistry
) -> None:
    agent = make_agent()
    janitor.go_on.set()
    agent.cleanup()
    before = housekeeping(registry, agent)["cleanup"]
    agent.cleanup(dry_run=True)
    assert housekeeping(registry, agent)["cleanup"] == before


def test_nothing_is_pulled_by_the_policy_never(make_agent: Callable[..., Agent], registry: HostRegistry) -> None:
    here, absent = "cronium/runner:bash-debian", "127.0.0.1:9/absent:1"
    agent = make_agent(allowed_images=(here, absent), pull_policy="never")
    agent.prepull([here, absent])
    rows = {row.get("reference", row["image"]): row for row in housekeeping(registry, agent)["prepull"]["images"]}
    assert (rows[here]["pulled"], rows[here]["error"]) == (False, None)
    assert "pull_policy is never" in rows[absent]["error"]["message"]


def test_who_waits_for_a_pull_hears_how_far_it_is_and_a_tag_that_has_moved_on_is_brought(
    make_agent: Callable[..., Agent], host: Host, registry: HostRegistry, tmp_path: Path
) -> None:
    api, run = host.engine.api, uuid4().hex
    with running_registry(tmp_path) as server:
        push_image(api, server, "tools:1")
        reference = server.reference("tools:1")
        agent = make_agent(allowed_images=(reference,))
        try:
            agent.prepull([reference])
            old = api.inspect_image(reference)["Id"]
            digest = push_image(api, server, "tools:1")
            api.tag(old, server.reference("tools"), "1")  # here it is what it was
            agent.prepull([reference], run=run)
        finally:
            forget(api, server.address)
    *told, last = registry.answers(run, [agent._settings.host_name], timeout_s=5)
    assert told
    assert all(message["progress"].startswith(f"pulling {reference}") for message in told)
    [row] = last["report"]["images"]
    assert (row["image"], row["digest"], row["pulled"], row["error"]) == (reference, digest, True, None)


def test_runner_images_that_are_built_here_are_asked_of_no_registry(
    make_agent: Callable[..., Agent], registry: HostRegistry
) -> None:
    agent = make_agent()
    agent.prepull()
    assert housekeeping(registry, agent)["prepull"]["images"] == []


def test_what_the_host_is_and_has_is_told(make_agent: Callable[..., Agent], registry: HostRegistry) -> None:
    agent = make_agent()
    agent.beat()
    facts = next(view for view in registry.hosts() if view.name == agent._settings.host_name).nodes["agent"]
    assert facts["cores"] >= 1
    assert facts["runtimes"]
    bash = next(image for image in facts["images"] if image["image"].startswith("cronium/runner:bash-"))
    assert (bash["id"].startswith("sha256:"), bash["bytes"] > 10_000_000) == (True, True)
