"""The container that `cronium doctor` makes: as a job's, on the real engine."""

import sys
from typing import Any

import pytest

from cronium_worker.engine.client import Engine
from cronium_worker.engine.images import ImageManager, Pulled
from cronium_worker.errors import ContainerCreateError
from cronium_worker.execution.sandbox import Host
from cronium_worker.execution.trial import try_container
from cronium_worker.workspace import existing
from tests.conftest import Leftovers


@pytest.fixture
def image(host: Host) -> Pulled:
    found = ImageManager(host.engine, host.settings.registry).find(["cronium/runner:bash-debian"])
    assert found is not None
    return found


@pytest.mark.parametrize("network", ["isolated", "none"])
def test_the_limits_of_a_job_are_in_force(host: Host, image: Pulled, network: str, leftovers: Leftovers) -> None:
    trial = try_container(host, image, network=network)
    assert 0 < trial.seconds < 30
    assert trial[1:] == ({}, [], "")
    assert existing(host.settings.sandboxes_path) == []
    leftovers.must_be_none()


def test_a_limit_that_the_engine_has_ignored(host: Host, image: Pulled, monkeypatch: pytest.MonkeyPatch) -> None:
    create = Engine.create

    def without_limit(engine: Engine, name: str, config: dict[str, Any], **options: Any) -> str:
        del config["HostConfig"]["PidsLimit"]
        return create(engine, name, config, **options)

    monkeypatch.setattr(Engine, "create", without_limit)
    trial = try_container(host, image, network="none")
    assert trial.not_in_force == {"PidsLimit": (host.settings.defaults.pids, sys.maxsize)}


def test_a_runtime_that_is_not_there(host: Host, image: Pulled, leftovers: Leftovers) -> None:
    security = host.settings.security.model_copy(update={"runtime": "nonesuch"})
    broken = Host(engine=host.engine, settings=host.settings.model_copy(update={"security": security}))
    with pytest.raises(ContainerCreateError, match="the runtime nonesuch is not installed on this host"):
        try_container(broken, image, network="none")
    leftovers.must_be_none()
