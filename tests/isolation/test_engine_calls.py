"""Every call that a worker makes to its engine: an allow-list between the two can be short."""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from cronium_worker.engine.client import Engine
from cronium_worker.execution.sandbox import Host
from cronium_worker.fleet.store import JobStore
from cronium_worker.janitor import Janitor
from cronium_worker.nodes import make_host
from tests.integration.conftest import Bench
from tests.integration.scripts import LANGUAGES, says
from tests.integration.shifts import cases
from tests.recorder import Recorder, is_needed


@pytest.fixture
def recorder(tmp_path: Path) -> Iterator[Recorder]:
    made = Recorder(tmp_path / "docker.sock")
    yield made
    made.close()


@pytest.fixture
def recorded(recorder: Recorder, host: Host, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    """The session's host, with an engine behind the proxy."""
    monkeypatch.setenv("DOCKER_HOST", f"unix://{recorder.path}")
    made = make_host(host.settings)
    yield replace(host, engine=made.engine)
    made.engine.close()


def test_a_workers_whole_life_needs_few_calls(
    recorder: Recorder, recorded: Host, make_bench: Callable[..., Bench], store: JobStore
) -> None:
    bench = make_bench(on=recorded)
    for language in LANGUAGES:
        assert bench.run(script=says(language, "hi")).result.status == "completed"
    late = bench.run(script=says("bash", "late", then_sleep_s=60), timeout=0.5, grace_period=0.2)
    assert late.result.status == "timeout"
    absent = bench.run(script=says("bash", "x"), image="cronium/absent:1", pull_policy="never")
    assert absent.result.status == "failed"
    with cases(store) as make:
        case = make(recorded, script=says("bash", "on", then_sleep_s=1))
        shift = case.start()
        case.wait_for("on")
        shift.leave()
        assert case.adopt().end().status == "completed"
    Janitor(recorded.engine, store, recorded.settings).sweep(dry_run=True)

    assert recorder.refused == []
    kinds = {_kind(call) for call in recorder.calls}
    assert {"POST /containers/create", "POST /containers/{id}/attach", "POST /containers/{id}/start"} <= kinds
    assert {"DELETE /containers/{id}", "GET /containers/{id}/json", "GET /containers/{id}/logs"} <= kinds
    assert len(recorder.created) == 5
    for body in recorder.created:
        host_config = body["HostConfig"]
        assert isinstance(host_config, dict)
        assert (host_config["Privileged"], host_config["CapDrop"]) == (False, ["ALL"])
        sources = [mount["Source"] for mount in host_config["Mounts"]]
        assert "Binds" not in host_config
        assert all(source.startswith(f"{recorded.settings.sandboxes_path}/sandboxes/") for source in sources)


def _kind(call: str) -> str:
    """Without version, parameters and names."""
    plain = re.sub(r"\?.*| /v[0-9.]+(?=/)", lambda found: " " if found[0].startswith(" ") else "", call)
    return re.sub(r"(containers|networks|images)/(?!create|json)[^/ ]+", r"\1/{id}", plain)


@pytest.mark.parametrize(
    "call",
    [
        "POST /v1.41/containers/0a1b/exec",
        "PUT /v1.41/containers/0a1b/archive?path=/",
        "POST /v1.41/build?t=x",
        "POST /v1.41/containers/0a1b/update",
        "POST /v1.41/commit?container=0a1b",
        "POST /v1.41/volumes/create",
        "GET /v1.41/secrets",
    ],
)
def test_the_list_has_no_room_for_more(call: str) -> None:
    assert not is_needed(call)


def test_what_is_not_on_the_list_is_refused(recorder: Recorder, recorded: Host) -> None:
    engine: Engine = recorded.engine
    with pytest.raises(Exception, match=r"403|forbidden"):
        engine.api.create_volume("x")
    assert recorder.refused == [f"POST /v{engine.api.api_version}/volumes/create"]
