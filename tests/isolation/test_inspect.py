"""What reaches the engine: the reviewed golden file of each image, and each option of the settings in turn."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cronium_worker.engine import seccomp
from cronium_worker.execution.sandbox import Host, Sandbox
from cronium_worker.settings import Log, Security
from tests.integration.scripts import LANGUAGES
from tests.isolation.images import found, image_for
from tests.isolation.inspection import differences, normalised

GOLDEN = {
    language: json.loads((Path(__file__).parent / "golden" / f"{language}.json").read_text()) for language in LANGUAGES
}
MINIMAL_SECCOMP = json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [
    {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}
]})  # fmt: skip


def changed(sandbox: Sandbox, language: str) -> dict[str, Any]:
    """What the engine says of the sandbox, as the differences from the golden file."""
    host, golden = sandbox.host, GOLDEN[language]
    root, fleet = sandbox.workspace.root, host.settings.fleet
    image = found(host, image_for(host, language)).id
    names = {f"seccomp={seccomp.PROFILE.read_text()}": "seccomp=<cronium.json>"}
    names |= {str(root): "<workspace>", root.name: "<sandbox>", root.name[:12]: "<host name>"}
    names |= {image: "<image>", fleet: "<fleet>"}
    seen = normalised(host.engine.api.inspect_container(sandbox.container_id), names=names)
    for paths in ("MaskedPaths", "ReadonlyPaths"):  # newer engines have more of them
        ours = seen["HostConfig"].get(paths, ())
        seen["HostConfig"][paths] = [path for path in golden["HostConfig"][paths] if path in ours]
    differing = differences(seen, golden)
    if "BlkioDeviceReadBps" not in seen["HostConfig"]:  # no disk of its own behind the workspace
        differing = {path: value for path, value in differing.items() if ".Blkio" not in path}
    # Where the host has AppArmor, the engine's own profile.
    if differing.get("AppArmorProfile") == "docker-default":
        del differing["AppArmorProfile"]
    return differing


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_sandbox_is_the_reviewed_one(make_sandbox: Callable[..., Sandbox], language: str) -> None:
    assert changed(make_sandbox(language, id="golden"), language) == {}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"security": Security(runtime="runc")}, {}),
        ({"log": Log(driver="json-file")}, {"HostConfig.LogConfig.Type": "json-file"}),
        ({"security": Security(uid_pool="20000-20063")}, {"Config.User": "20000:20000"}),
        ({"container_user": "2000:3000"}, {"Config.User": "2000:3000"}),
    ],
)
def test_a_setting_reaches_the_container(
    make_sandbox: Callable[..., Sandbox], host: Host, changes: dict[str, Any], expected: dict[str, Any]
) -> None:
    other = replace(host, settings=host.settings.model_copy(update=changes))

    assert changed(make_sandbox("bash", host=other, id="golden"), "bash") == expected


def test_a_job_has_what_it_asks_for_and_no_more(make_sandbox: Callable[..., Sandbox]) -> None:
    sandbox = make_sandbox(
        "bash",
        id="golden",
        network={"mode": "none", "extra_hosts": {"db": "10.0.0.5"}},
        resources={"cpu": 1, "memory": "64m", "pids": 7},
        environment={"HOME": "/", "Privileged": "true", "TOKEN": "open sesame"},
    )

    assert changed(sandbox, "bash") == {
        "HostConfig.CpuQuota": 100_000,
        "HostConfig.Memory": 64 * 2**20,
        "HostConfig.MemorySwap": 64 * 2**20,
        "HostConfig.PidsLimit": 7,
        "HostConfig.ExtraHosts": ["db:10.0.0.5", "<host name>:127.0.1.1"],
    }


def test_a_seccomp_profile_reaches_the_container_as_json_and_has_its_effect(
    make_bench: Callable[..., Any], make_sandbox: Callable[..., Sandbox], host: Host
) -> None:
    other = replace(host, seccomp=MINIMAL_SECCOMP)
    expected = {"HostConfig.SecurityOpt": ["no-new-privileges:true", f"seccomp={MINIMAL_SECCOMP}"]}
    assert changed(make_sandbox("bash", host=other, id="golden"), "bash") == expected

    ran = make_bench(on=other).run(
        script={"type": "bash", "content": "mkdir /tmp/x || echo denied"}, network={"mode": "none"}
    )
    assert (ran.text("stdout"), "not permitted" in ran.text("stderr")) == ("denied\n", True)
