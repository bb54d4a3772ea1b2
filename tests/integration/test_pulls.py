"""Pulls by the real engine from a real registry: shared, cancelled, refused, stalled, and right about what is here."""

import base64
import json
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import docker
import pytest

from cronium_worker.engine.client import Engine
from cronium_worker.engine.images import ImageManager, Pulled, first_present
from cronium_worker.errors import Cancelled, CroniumError, ImagePullError
from cronium_worker.execution.sandbox import Host
from cronium_worker.settings import Images, Registry
from tests.conftest import wait_until
from tests.integration.conftest import Bench
from tests.registry import (
    PASSWORD,
    USERNAME,
    Holdup,
    RecordingRegistry,
    RegistryServer,
    forget,
    free_port,
    make_image,
    push_image,
    running_registry,
)

ECHO = {"type": "bash", "content": "echo hi"}
MB = 1_000_000
RIGHT = {"username": USERNAME, "password": PASSWORD}


@pytest.fixture(scope="module")
def engine(host: Host) -> Engine:
    return host.engine


@pytest.fixture(scope="module")
def api(engine: Engine) -> docker.APIClient:
    return engine.api


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryServer]:
    with running_registry(tmp_path_factory.mktemp("registry")) as server:
        yield server


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RegistryServer]:
    with running_registry(tmp_path_factory.mktemp("locked"), login=True) as server:
        yield server


@pytest.fixture(scope="module")
def parent(engine: Engine) -> str:
    """A runner image of this host."""
    here, _ = first_present(engine, Images().candidates("bash")) or pytest.fail(
        "no runner image: run the tests with `make test`"
    )
    return here


@pytest.fixture(scope="module")
def runner_name(api: docker.APIClient, registry: RegistryServer, parent: str) -> str:
    """An image in the open registry that jobs can run in."""
    push_image(api, registry, "team/runner:1", parent=parent)
    return "team/runner:1"


@pytest.fixture(autouse=True)
def _nothing_is_left(api: docker.APIClient, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """No image of a test's registry, no thread of a pull. The Docker config is an empty one, not the user's own."""
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker-config"))
    yield
    forget(api)
    wait_until(lambda: not pull_threads(), what="no pull is left")


def pull_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("pull ")]


def pull(manager: ImageManager, reference: str, policy: Any = "if-not-present", **changed: Any) -> Pulled:
    options: dict[str, Any] = {"cancelled": lambda: False, "progress": lambda message, **fields: None, **changed}
    return manager.pull(reference, policy=policy, **options)


class Waiter:
    """A thread that waits for an image; `outcome` is what it got."""

    def __init__(self, manager: ImageManager, reference: str, policy: Any = "always") -> None:
        self.outcome: Pulled | CroniumError | None = None
        self.progress: list[dict[str, Any]] = []
        self.cancel = threading.Event()
        self.thread = threading.Thread(target=self._run, args=(manager, reference, policy))
        self.thread.start()

    def _run(self, manager: ImageManager, reference: str, policy: Any) -> None:
        def note(message: str, **fields: Any) -> None:
            self.progress.append({"message": message, **fields})

        try:
            self.outcome = pull(manager, reference, policy, cancelled=self.cancel.is_set, progress=note)
        except CroniumError as error:
            self.outcome = error

    def end(self, timeout_s: float = 20) -> Any:
        self.thread.join(timeout_s)
        assert not self.thread.is_alive()
        return self.outcome


def waiting(manager: ImageManager) -> int:
    return sum(shared.waiting for shared in manager._pulls.values())


# --- Jobs ------------------------------------------------------------------------------------------------


def test_twenty_jobs_that_need_one_absent_image_pull_it_once(
    make_bench: Callable[..., Bench], registry: RegistryServer, runner_name: str
) -> None:
    with closing(Holdup(registry, allowed=1000)) as holdup:
        bench = make_bench(images=Images(bash=f"{holdup.address}/{runner_name}"))
        before = registry.pulls("team/runner")
        jobs = [bench.start(script=ECHO, network={"mode": "none"}) for _ in range(20)]
        wait_until(lambda: waiting(bench.runner._images) == 20, what="all jobs wait")
        assert len(pull_threads()) == 1

        holdup.release()
        results = [wait_until(lambda job=job: bench.store.result(job.id), timeout_s=60) for job in jobs]

    assert [result.status for result in results] == ["completed"] * 20
    assert registry.pulls("team/runner") - before == 1, registry.manifests("team/runner")
    # All of them have seen that it was pulled.
    for job in jobs:
        told = [event for event in bench.store.events(job.id) if event["type"] == "progress"]
        assert told, job.id
        assert told[0]["message"].startswith(f"pulling {holdup.address}/{runner_name}")
        assert {"image", "layers", "layers_done", "bytes", "bytes_total"} <= told[0].keys()


def test_a_wrong_password_is_told_and_not_retried(
    make_bench: Callable[..., Bench], api: docker.APIClient, locked: RegistryServer, parent: str
) -> None:
    push_image(api, locked, "team/private:1", parent=parent)
    images = Images(bash=locked.reference("team/private:1"))
    login = {"server": locked.address, "username": USERNAME}

    refused = make_bench(images=images, registry=Registry(**login, password="wrong")).run(script=ECHO)
    right = make_bench(images=images, registry=Registry(**login, password=PASSWORD)).run(script=ECHO)

    error = refused.result.error
    assert error is not None
    assert (error.type, error.retryable, error.details["reason"]) == ("image_pull", False, "denied")
    assert error.details["image"] == locked.reference("team/private:1")
    assert "unauthorized" in error.message.lower()
    assert "CRONIUM_REGISTRY__USERNAME" in error.message
    assert refused.statuses == ["pending", "preparing", "failed"]
    assert right.result.status == "completed"


def test_a_registry_that_comes_back_lets_the_job_complete(
    make_bench: Callable[..., Bench], registry: RegistryServer, runner_name: str
) -> None:
    registry.stop()
    try:
        bench = make_bench(images=Images(bash=registry.reference(runner_name)))
        job = bench.start(script=ECHO)
        wait_until(lambda: "connection refused" in str(list(bench.store.events(job.id))), what="a first try")
    finally:
        registry.start()
    result = wait_until(lambda: bench.store.result(job.id), timeout_s=30)

    assert result.status == "completed"
    assert result.attempt > 1


def test_jobs_run_in_images_with_a_prefix_and_by_digest(
    make_bench: Callable[..., Bench], api: docker.APIClient, registry: RegistryServer, parent: str
) -> None:
    digest = push_image(api, registry, "fleet/tools:1", parent=parent)
    pinned = f"tools:1@{digest}"
    bench = make_bench(registry=Registry(prefix=registry.reference("fleet")), allowed_images=("tools:1", pinned))

    by_tag = bench.run(script=ECHO, image="tools:1")
    forget(api)
    by_digest = [bench.run(script=ECHO, image=pinned, pull_policy="always")]
    asked = registry.manifests("fleet/tools")
    by_digest.append(bench.run(script=ECHO, image=pinned, pull_policy="always"))
    not_listed = bench.run(script=ECHO, image=registry.reference("fleet/tools:1"))

    assert (by_tag.result.status, by_tag.result.image) == ("completed", registry.reference("fleet/tools:1"))
    assert {(ran.result.status, ran.result.image) for ran in by_digest} == {
        ("completed", registry.reference(f"fleet/{pinned}"))
    }
    assert registry.manifests("fleet/tools") == asked  # what is pinned and here is not asked for again
    assert not_listed.result.error is not None
    assert not_listed.result.error.type == "validation"


# --- What is here ----------------------------------------------------------------------------------------


def test_policies(engine: Engine, api: docker.APIClient, registry: RegistryServer) -> None:
    digest = push_image(api, registry, "team/policies:1")
    manager, reference = ImageManager(engine, Registry()), registry.reference("team/policies:1")

    with pytest.raises(ImagePullError, match="pull_policy is never"):
        pull(manager, reference, "never")
    assert registry.pulls("team/policies") == 0
    first = pull(manager, reference, "if-not-present")
    again = [pull(manager, reference, policy) for policy in ("if-not-present", "never")]
    assert registry.pulls("team/policies") == 1
    asked = pull(manager, reference, "always")

    assert (first.pulled, first.digest, first.id) == (True, digest, api.inspect_image(reference)["Id"])
    assert [row.pulled for row in (*again, asked)] == [False] * 3
    assert {(row.id, row.digest) for row in (*again, asked)} == {(first.id, digest)}


def test_what_somebody_removed_or_retagged_behind_our_back_is_noticed(
    engine: Engine, api: docker.APIClient, registry: RegistryServer
) -> None:
    push_image(api, registry, "team/behind:1")
    manager, reference = ImageManager(engine, Registry()), registry.reference("team/behind:1")
    first = pull(manager, reference)

    api.remove_image(reference)
    assert pull(manager, reference).pulled

    other = make_image(api, registry.reference("team/other:1"))
    api.tag(other, registry.reference("team/behind"), "1")
    retagged = pull(manager, reference)
    assert (retagged.pulled, retagged.id) == (False, other)

    back = pull(manager, reference, "always")
    assert (back.pulled, back.id, back.replaced) == (True, first.id, None)  # the other has a name still


def test_the_image_that_a_moved_tag_leaves_behind_is_named(
    engine: Engine, api: docker.APIClient, registry: RegistryServer
) -> None:
    manager, reference = ImageManager(engine, Registry()), registry.reference("team/moved:1")
    push_image(api, registry, "team/moved:1")
    old = pull(manager, reference)
    new_digest = push_image(api, registry, "team/moved:1")
    api.tag(old.id, registry.reference("team/moved"), "1")

    new = pull(manager, reference, "always")

    assert (new.pulled, new.digest, new.replaced) == (True, new_digest, old.id)
    assert api.inspect_image(old.id)["RepoTags"] == []


# --- Who asks --------------------------------------------------------------------------------------------


def test_the_password_goes_to_its_own_registry_only(engine: Engine) -> None:
    with closing(RecordingRegistry()) as own, closing(RecordingRegistry()) as other:
        manager = ImageManager(engine, Registry(server=own.address, **RIGHT))
        for server in (own, other):
            with pytest.raises(ImagePullError) as caught:
                pull(manager, f"{server.address}/team/x:1")
            assert caught.value.details["reason"] == "denied"

        assert set(own.authorizations) == {f"{USERNAME}:{PASSWORD}"}
        assert other.requests > 0
        assert other.authorizations == []


def test_the_prefix_is_the_passwords_registry_too(
    engine: Engine, api: docker.APIClient, locked: RegistryServer
) -> None:
    push_image(api, locked, "team/prefixed:1")

    assert pull(ImageManager(engine, Registry(prefix=locked.reference("team"), **RIGHT)), "prefixed:1").pulled


def test_a_later_docker_login_is_seen(
    engine: Engine, api: docker.APIClient, locked: RegistryServer, tmp_path: Path
) -> None:
    push_image(api, locked, "team/login:1")
    manager, reference = ImageManager(engine, Registry()), locked.reference("team/login:1")
    with pytest.raises(ImagePullError, match="no basic auth credentials") as caught:
        pull(manager, reference)
    assert (caught.value.details["reason"], caught.value.retryable) == ("denied", False)

    auth = base64.b64encode(f"{USERNAME}:{PASSWORD}".encode()).decode()
    write_docker_config(tmp_path, {"auths": {locked.address: {"auth": auth}}})

    assert pull(manager, reference).pulled


@pytest.mark.filterwarnings("ignore:.* not installed or not available in PATH")
def test_a_credential_helper_is_asked(
    engine: Engine, api: docker.APIClient, locked: RegistryServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    push_image(api, locked, "team/helped:1")
    manager, reference = ImageManager(engine, Registry()), locked.reference("team/helped:1")
    write_docker_config(tmp_path, {"credHelpers": {locked.address: "cronium-tests"}})
    with pytest.raises(ImagePullError, match="docker-credential-cronium-tests") as caught:
        pull(manager, reference)
    assert caught.value.details["reason"] == "other"

    helper = tmp_path / "docker-credential-cronium-tests"
    helper.write_text(f"#!/bin/sh\necho '{json.dumps({'Username': USERNAME, 'Secret': PASSWORD})}'\n")
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    assert pull(manager, reference).pulled


def write_docker_config(tmp_path: Path, config: dict[str, Any]) -> None:
    directory = tmp_path / "docker-config"
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps(config))


# --- Shared, cancelled, limited ----------------------------------------------------------------------------


def test_a_cancel_of_one_does_not_disturb_the_other_and_late_ones_see_progress(
    engine: Engine, api: docker.APIClient, registry: RegistryServer
) -> None:
    push_image(api, registry, "team/shared:1", size=6 * MB)
    manager = ImageManager(engine, Registry())
    with closing(Holdup(registry, allowed=4 * MB)) as holdup:
        reference = f"{holdup.address}/team/shared:1"
        leaver, stayer = Waiter(manager, reference), Waiter(manager, reference)
        wait_until(lambda: any(row["bytes"] for row in stayer.progress), what="progress")
        late = Waiter(manager, reference, "if-not-present")
        wait_until(lambda: late.progress, timeout_s=2, what="progress for the late one")

        cancelled_at = time.monotonic()
        leaver.cancel.set()
        assert isinstance(leaver.end(), Cancelled)
        assert time.monotonic() - cancelled_at < 5
        holdup.release()
        outcomes = [stayer.end(), late.end()]

    assert [outcome.pulled for outcome in outcomes] == [True, True]
    assert registry.pulls("team/shared") == 1
    assert late.progress[0]["bytes"] > 0
    assert late.progress[0]["bytes_total"] == pytest.approx(6 * MB, rel=0.01)
    assert late.progress[0]["message"].startswith(f"pulling {reference}: 0 of 1 layers, ")
    assert late.progress[0]["message"].endswith(" of 6 MB")


def test_when_the_last_one_leaves_the_engine_stops_pulling(
    engine: Engine, api: docker.APIClient, registry: RegistryServer
) -> None:
    push_image(api, registry, "team/left:1", size=6 * MB)
    manager = ImageManager(engine, Registry())
    with closing(Holdup(registry, allowed=MB)) as holdup:
        waiters = [Waiter(manager, f"{holdup.address}/team/left:1") for _ in range(2)]
        wait_until(lambda: waiting(manager) == 2 and any(row["layers"] for row in waiters[0].progress), what="a pull")
        assert holdup.open_connections() > 0

        for waiter in waiters:
            waiter.cancel.set()
            assert isinstance(waiter.end(1), Cancelled)

        wait_until(lambda: not pull_threads(), timeout_s=2, what="no thread")
        # The engine sees that only when something comes.
        holdup.release()
        wait_until(lambda: holdup.open_connections() == 0, timeout_s=5, what="the engine has hung up")
    assert first_present(engine, [f"{holdup.address}/team/left:1"]) is None
    assert manager._pulls == {}


def test_a_pull_that_the_registry_never_answered_is_dropped_at_once(engine: Engine) -> None:
    with closing(RecordingRegistry(silent=True)) as silent:
        waiter = Waiter(ImageManager(engine, Registry()), f"{silent.address}/team/x:1")
        wait_until(lambda: silent.requests, what="a request")

        waiter.cancel.set()

        assert isinstance(waiter.end(1), Cancelled)
        wait_until(lambda: not pull_threads(), timeout_s=2, what="no thread")


def test_a_failure_is_shared(engine: Engine, registry: RegistryServer) -> None:
    manager = ImageManager(engine, Registry())
    with closing(Holdup(registry, allowed=0)) as holdup:
        waiters = [Waiter(manager, f"{holdup.address}/team/absent:1") for _ in range(3)]
        wait_until(lambda: waiting(manager) == 3, what="all wait")
        holdup.release()
        errors = [waiter.end() for waiter in waiters]

    assert [error.details["reason"] for error in errors] == ["not_found"] * 3
    assert registry.asked("team/absent", "1") == 1


def test_a_registry_that_dies_in_a_pull_is_stalled_however_often_the_engine_tries_again(
    engine: Engine, api: docker.APIClient, registry: RegistryServer
) -> None:
    push_image(api, registry, "team/dying:1", size=6 * MB)
    manager = ImageManager(engine, Registry(pull_idle_timeout=2.5, pull_timeout=8))
    holdup = Holdup(registry, allowed=3 * MB)
    with closing(holdup):
        waiter = Waiter(manager, f"{holdup.address}/team/dying:1")
        wait_until(lambda: any(row["bytes"] for row in waiter.progress), what="progress")
    error = waiter.end()

    assert (error.details["reason"], error.retryable) == ("stalled", True)


def test_a_pull_has_a_limit_in_all(engine: Engine, registry: RegistryServer) -> None:
    with closing(Holdup(registry, allowed=0)) as holdup:
        waiter = Waiter(ImageManager(engine, Registry(pull_timeout=0.5)), f"{holdup.address}/team/x:1")
        error = waiter.end(2)

    assert (error.details["reason"], error.retryable) == ("timeout", True)


# --- Why it failed: what the engine really answers -----------------------------------------------------------


@pytest.mark.parametrize("name", ["team/none:1", "team/there:2", f"team/there@sha256:{'0a' * 32}"])
def test_what_is_not_there_is_not_tried_again(
    engine: Engine, api: docker.APIClient, registry: RegistryServer, name: str
) -> None:
    push_image(api, registry, "team/there:1")

    with pytest.raises(ImagePullError, match=r"manifest unknown|: not found") as caught:
        pull(ImageManager(engine, Registry()), registry.reference(name))

    assert (caught.value.details["reason"], caught.value.retryable) == ("not_found", False)


def test_a_registry_that_is_down(engine: Engine) -> None:
    assert failure(engine, f"127.0.0.1:{free_port()}") == ("unreachable", True)


def test_a_registry_that_breaks_the_connection(engine: Engine, tmp_path: Path) -> None:
    with closing(Holdup(RegistryServer(tmp_path), allowed=0)) as holdup:
        assert failure(engine, holdup.address) == ("unreachable", True)


@pytest.mark.parametrize(
    ("status", "expected"), [(0, ("unreachable", True)), (503, ("unreachable", True)), (403, ("denied", False))]
)
def test_a_registry_that_answers_with_an_error_or_hangs_up(
    engine: Engine, status: int, expected: tuple[str, bool]
) -> None:
    with closing(RecordingRegistry(status=status)) as server:
        assert failure(engine, server.address) == expected


@pytest.mark.parametrize("tls", [False, True])
def test_a_registry_whose_tls_the_engine_does_not_trust(engine: Engine, tmp_path: Path, tls: bool) -> None:
    # Not on loopback, where the engine insists on nothing: on the host's address of a bridge.
    address = engine.api.inspect_network("cronium-execution")["IPAM"]["Config"][0]["Gateway"]
    pair = (tmp_path / "certificate", tmp_path / "key")
    if tls:
        command = ["openssl", "req", "-x509", "-newkey", "ed25519", "-nodes", "-days", "2", "-subj", "/CN=tests"]
        subprocess.run([*command, "-out", pair[0], "-keyout", pair[1]], check=True, capture_output=True)
    with running_registry(tmp_path, host=address, tls=pair if tls else None) as server:
        assert failure(engine, server.address) == ("unreachable", False)


def failure(engine: Engine, address: str) -> tuple[str, bool]:
    with pytest.raises(ImagePullError) as caught:
        pull(ImageManager(engine, Registry()), f"{address}/team/x:1")
    return caught.value.details["reason"], caught.value.retryable
