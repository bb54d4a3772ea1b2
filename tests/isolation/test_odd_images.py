"""Images that somebody has made in an odd way: nothing of what they ask for is given to them."""

from collections.abc import Callable, Iterator
from typing import Any

import docker
import pytest

from cronium_worker.execution.sandbox import Host, Sandbox
from cronium_worker.settings import Images
from tests.integration.conftest import Bench
from tests.isolation.images import built, image_for

SHOWN = """
id -u; echo "$HOME $CRONIUM_JOB_ID $CRONIUM_EXECUTION_MODE"
ls -a /anonymous; touch /anonymous/mine; cat /workspace/data/input.json
"""


def volumes() -> set[str]:
    client = docker.from_env()
    try:
        return {volume["Name"] for volume in client.api.volumes()["Volumes"] or ()}
    finally:
        client.close()


@pytest.fixture(scope="module")
def odd_image(host: Host) -> Iterator[str]:
    """Its own entry, command, health check, signal, user, port and volumes, and a trigger for whoever builds on it."""
    dockerfile = f"""
FROM {image_for(host, "bash")}
USER 0:0
RUN mkdir /anonymous && touch /anonymous/from-the-image && chmod 777 /anonymous
VOLUME ["/anonymous", "/workspace/data"]
ENTRYPOINT ["/bin/sh", "-c", "echo entrypoint; exit 3"]
CMD ["never"]
HEALTHCHECK --interval=1s CMD touch /anonymous/health
STOPSIGNAL SIGUSR1
EXPOSE 80
ENV HOME=/root CRONIUM_JOB_ID=forged CRONIUM_EXECUTION_MODE=host
LABEL cronium.fleet=forged cronium.job.id=forged cronium.sandbox=forged
ONBUILD RUN false
"""
    with built("cronium-test/odd:1", dockerfile) as name:
        yield name


def test_an_image_with_ideas_of_its_own(odd_image: str, make_bench: Callable[..., Bench]) -> None:
    before = volumes()
    bench = make_bench(images=Images(bash=odd_image))
    ran = bench.run(
        script={"type": "bash", "content": SHOWN},
        input_data="kept",
    )
    assert ran.result.error is None
    assert ran.text("stdout") == f'1000\n/tmp {ran.job.id} container\n.\n..\n"kept"'
    assert volumes() <= before


def test_what_it_asks_for_is_not_in_its_container(
    odd_image: str, host: Host, make_sandbox: Callable[..., Sandbox], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.isolation.conftest.image_for", lambda *_: odd_image)
    sandbox = make_sandbox("bash", id="odd")
    found: dict[str, Any] = host.engine.api.inspect_container(sandbox.container_id)
    config = found["Config"]
    assert config["Entrypoint"] == ["/sbin/tini", "-g", "--"]
    assert config["Cmd"] == ["/bin/sh", "/run/cronium/launcher.sh", "bash"]
    assert config["Healthcheck"]["Test"] == ["NONE"]
    assert "Health" not in found["State"]
    assert (config["User"], config["StopSignal"]) == ("1000:1000", "SIGTERM")
    assert config["Labels"]["cronium.fleet"] == host.settings.fleet
    assert config["Labels"]["cronium.job.id"] == "odd"
    assert config["Labels"]["cronium.sandbox"] == sandbox.workspace.root.name
    assert not (found["NetworkSettings"]["Ports"] or {}).get("80/tcp")
    data = next(mount for mount in found["Mounts"] if mount["Destination"] == "/workspace/data")
    assert data["Type"] == "bind"


def test_an_interpreter_that_is_not_executable(host: Host, make_bench: Callable[..., Bench]) -> None:
    dockerfile = f"FROM {image_for(host, 'bash')}\nUSER 0:0\nRUN printf x >/usr/local/bin/node\n"
    with built("cronium-test/broken:1", dockerfile) as name:
        ran = make_bench(images=Images(node=name)).run(script={"type": "node", "content": "1"})
    error = ran.result.error
    assert error is not None
    assert (error.type, error.retryable, ran.result.exit_code) == ("container_start", False, None)
    assert "the image has no interpreter for it" in error.message


def test_an_image_of_another_architecture(
    host: Host, make_bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its programs, the init among them, are none of this machine's: another host may have the right one."""
    monkeypatch.setattr("cronium_worker.execution.runner._FAULT_DELAY_S", 0.01)
    header = b"\x7fELF\x02\x01\x01" + bytes(9) + b"\x02\x00\x16\x00\x01" + bytes(107)  # of an IBM mainframe
    other = "".join(f"\\\\{byte:03o}" for byte in header)
    dockerfile = f"FROM {image_for(host, 'bash')}\nUSER 0:0\nRUN printf '{other}' >/sbin/tini && chmod 755 /sbin/tini\n"
    with built("cronium-test/foreign:1", dockerfile) as name:
        ran = make_bench(images=Images(bash=name)).run(script={"type": "bash", "content": "echo ran"})
    error = ran.result.error
    assert error is not None
    assert (error.type, ran.result.exit_code, ran.text("stdout")) == ("container_start", None, "")
