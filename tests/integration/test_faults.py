"""Faults of the fleet, not of the script: typed, retried where that can help, nothing left."""

import http.server
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing

import docker
import pytest
from docker.errors import APIError, NotFound

from cronium_worker.errors import ImagePullError
from cronium_worker.execution.sandbox import Host
from cronium_worker.settings import Images, Security
from cronium_worker.workspace.gate import Gate
from tests.conftest import wait_until
from tests.integration.conftest import Bench
from tests.integration.scripts import says
from tests.rig import runner_image

ECHO = {"type": "bash", "content": "echo hi"}


def test_an_absent_image_with_policy_never_is_not_retried(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(images=Images(bash="cronium/absent:1"))
    ran = bench.run(script=ECHO, pull_policy="never")
    assert ran.result.error is not None
    assert (ran.result.error.type, ran.result.error.retryable) == ("image_pull", False)
    assert ran.result.attempt == 1
    assert ran.result.exit_code is None


def test_an_unreachable_registry_is_retried_and_typed(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(images=Images(bash="127.0.0.1:9/nothing/here:1"))
    ran = bench.run(script=ECHO)
    assert ran.result.error is not None
    assert (ran.result.error.type, ran.result.error.retryable) == ("image_pull", True)
    assert ran.result.attempt == 4
    assert ran.statuses == ["pending", "preparing"] * 4 + ["failed"]


def test_a_required_runtime_that_is_missing_is_no_fall_back(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(security=Security(runtime="runsc"))
    ran = bench.run(script=ECHO)
    assert ran.result.error is not None
    assert (ran.result.error.type, ran.result.error.retryable, ran.result.attempt) == ("container_create", True, 4)
    assert ran.text("stdout") == ""


def test_a_network_of_the_allow_list_that_is_missing(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(allowed_networks=("office",))
    ran = bench.run(script=ECHO, network={"mode": "office"})
    assert ran.result.error is not None
    assert ran.result.error.type == "network"


def test_no_network_means_none(bench: Bench) -> None:
    ran = bench.run(
        script={"type": "bash", "content": "cat /proc/net/dev | tail -n +3 | cut -d: -f1 | tr -d ' '"},
        network={"mode": "none"},
    )
    assert ran.text("stdout") == "lo\n"


def test_an_image_without_the_interpreter_is_no_exit_code_of_the_user(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench()
    base = bench.run(script=ECHO).result.image
    assert base is not None
    bench = make_bench(images=Images(node=base))  # the bash image has no node
    ran = bench.run(script={"type": "node", "content": "console.log(1)"})
    assert ran.result.error is not None
    assert (ran.result.error.type, ran.result.exit_code) == ("container_start", None)
    assert "no node" in ran.text("stderr")


def test_a_container_that_is_killed_before_its_script_starts_costs_an_attempt(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Gate.open
    killed: list[str] = []

    def kill_first(gate: Gate) -> None:
        if not killed:
            with closing(docker.from_env()) as client:
                [container] = client.containers.list(filters={"label": f"cronium.job.id={job.id}"})
                killed.append(container.id)
                container.kill()
        opened(gate)

    monkeypatch.setattr(Gate, "open", kill_first)
    job = bench.register(script=ECHO)
    bench.take(job)
    result = bench.store.result(job.id)
    assert result is not None
    assert (result.status, result.attempt, len(killed)) == ("completed", 2, 1)


def test_what_the_worker_refuses_is_never_started(bench: Bench) -> None:
    ran = bench.run(script=ECHO, resources={"memory": "1t"})
    assert ran.result.error is not None
    assert ran.result.error.type == "validation"
    assert "resources.memory" in ran.result.error.message
    assert ran.statuses == ["pending", "preparing", "failed"]


@pytest.fixture
def silent_registry() -> Iterator[str]:
    """A registry that takes connections and never answers."""
    release = threading.Event()

    class Silent(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            release.wait(60)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Silent)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"127.0.0.1:{server.server_address[1]}"
    release.set()
    server.shutdown()
    thread.join()
    server.server_close()


def test_cancel_during_a_pull_is_heard(make_bench: Callable[..., Bench], silent_registry: str) -> None:
    bench = make_bench(images=Images(bash=f"{silent_registry}/slow/image:1"))
    job = bench.start(script=says("bash", "never"))
    wait_until(lambda: any(thread.name.startswith("pull") for thread in threading.enumerate()))
    started = time.monotonic()
    bench.store.cancel(job.id)
    bench.runner.active.cancel(job.id)
    list(bench.store.follow(job.id))
    result = bench.store.result(job.id)
    assert result is not None
    assert result.status == "cancelled"
    assert time.monotonic() - started < 5


def test_an_image_that_vanishes_before_the_create_is_worth_another_attempt(bench: Bench) -> None:
    with pytest.raises(ImagePullError) as caught:
        bench.runner._host.engine.create("x", {"Image": "cronium/vanished:1"}, otherwise="y", image="vanished:1")
    assert caught.value.retryable


def test_a_container_that_ends_while_it_is_removed_is_removed(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine, which has found it running and cannot kill it any more, refuses with this text, once."""
    with closing(docker.from_env()) as client:
        container = client.containers.create(runner_image("bash"))
        remove, calls = host.engine.api.remove_container, []

        def refuse_once(container_id: str, **options: bool) -> None:
            calls.append(container_id)
            if len(calls) == 1:
                text = f"Could not kill running container {container_id}, cannot remove - Container {container_id}"
                raise APIError("500", response=None, explanation=f"{text} is not running")
            remove(container_id, **options)

        monkeypatch.setattr(host.engine.api, "remove_container", refuse_once)
        host.engine.remove(container.id)
        with pytest.raises(NotFound):
            client.containers.get(container.id)
    assert len(calls) == 2
