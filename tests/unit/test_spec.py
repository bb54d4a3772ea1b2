"""The container's configuration: the reviewed golden file, and what each option changes in it."""

import json
from pathlib import Path
from typing import Any

import pytest

from cronium_worker.engine.image_config import ImageConfig
from cronium_worker.engine.spec import SandboxSpec, container_config
from cronium_worker.models import Network, Resources
from cronium_worker.settings import Log, Security, Settings

GOLDEN = json.loads((Path(__file__).parent / "golden" / "container.json").read_text())


def config(spec: dict[str, Any] | None = None, **settings: Any) -> dict[str, Any]:
    fields: dict[str, Any] = {
        "sandbox_id": "5a9d",
        "script_type": "bash",
        "image": "cronium/runner:bash-alpine",
        "workspace": Path("/var/lib/cronium/sandboxes/5a9d"),
        "user": "1000:1000",
        "resources": Resources(),
        "network": Network(),
        "device": "/dev/sda",
        "job_labels": {"cronium.job.id": "job-1", "cronium.job.attempt": "1"},
        **(spec or {}),
    }
    made = container_config(
        SandboxSpec(**fields), Settings(_env_file=None, **{"fleet": "blue", "host_name": "h1", **settings})
    )
    assert json.loads(json.dumps(made)) == made
    return made


def changes(new: Any, old: Any = GOLDEN, path: str = "") -> dict[str, Any]:
    """What differs from the golden file, as path → new value (None: gone)."""
    if isinstance(new, dict) and isinstance(old, dict):
        found: dict[str, Any] = {}
        for key in {**old, **new}:
            found |= changes(new.get(key), old.get(key), f"{path}.{key}" if path else key)
        return found
    return {} if new == old else {path: new}


def test_the_default_container_is_the_reviewed_one() -> None:
    assert config() == GOLDEN


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (
            {"script_type": "python"},
            {
                "Cmd": ["/bin/sh", "/run/cronium/launcher.sh", "python3"],
                "Labels.cronium.script.type": "python",
            },
        ),
        (
            {"script_type": "node"},
            {
                "Cmd": ["/bin/sh", "/run/cronium/launcher.sh", "node"],
                "Labels.cronium.script.type": "node",
            },
        ),
        ({"arguments": ("-x", "y")}, {"Cmd": ["/bin/sh", "/run/cronium/launcher.sh", "bash", "-x", "y"]}),
        ({"image": "tools@sha256:00"}, {"Image": "tools@sha256:00"}),
        ({"user": "2000:3000"}, {"User": "2000:3000"}),
        ({"sandbox_id": "6b"}, {"Hostname": "6b", "Labels.cronium.sandbox": "6b"}),
        ({"job_labels": {}}, {"Labels.cronium.job.id": None, "Labels.cronium.job.attempt": None}),
        (
            {"network": Network(mode="none")},
            {"HostConfig.NetworkMode": "none", "HostConfig.ExtraHosts": ["5a9d:127.0.1.1"]},
        ),
        (
            {"isolated_by": "none"},
            {"HostConfig.NetworkMode": "none", "HostConfig.ExtraHosts": ["5a9d:127.0.1.1"]},
        ),
        ({"network": Network(mode="team")}, {"HostConfig.NetworkMode": "team"}),
        (
            {"network": Network.model_validate({"dns": ["10.0.0.53", "fd00::53"]})},
            {"HostConfig.Dns": ["10.0.0.53", "fd00::53"]},
        ),
        (
            {"network": Network.model_validate({"extra_hosts": {"db": "10.0.0.5", "api": "fd00::5"}})},
            {"HostConfig.ExtraHosts": ["db:10.0.0.5", "api:fd00::5"]},
        ),
        (
            {"seccomp": '{"defaultAction":"SCMP_ACT_ERRNO"}'},
            {
                "HostConfig.SecurityOpt": [
                    "no-new-privileges:true",
                    'seccomp={"defaultAction":"SCMP_ACT_ERRNO"}',
                ]
            },
        ),
        (
            {"device": None},
            {"HostConfig.BlkioDeviceReadBps": None, "HostConfig.BlkioDeviceWriteBps": None},
        ),
        (
            {"device": "/dev/nvme0n1", "resources": Resources(disk_io=4096)},
            {
                "HostConfig.BlkioDeviceReadBps": [{"Path": "/dev/nvme0n1", "Rate": 4096}],
                "HostConfig.BlkioDeviceWriteBps": [{"Path": "/dev/nvme0n1", "Rate": 4096}],
            },
        ),
        ({"resources": Resources(cpu=2)}, {"HostConfig.CpuQuota": 200_000}),
        ({"resources": Resources(cpu=0.333)}, {"HostConfig.CpuQuota": 33_300}),
        ({"resources": Resources(cpu=0.01)}, {"HostConfig.CpuQuota": 1000}),
        (
            {"resources": Resources(memory=64 * 2**20)},
            {"HostConfig.Memory": 64 * 2**20, "HostConfig.MemorySwap": 64 * 2**20},
        ),
        ({"resources": Resources(pids=7)}, {"HostConfig.PidsLimit": 7}),
    ],
)
def test_what_a_job_changes(spec: dict[str, Any], expected: dict[str, Any]) -> None:
    assert changes(config(spec)) == expected


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"fleet": "green"}, {"Labels.cronium.fleet": "green"}),
        ({"host_name": "h2"}, {"Labels.cronium.host": "h2"}),
        (
            {"security": Security(apparmor_profile="strict", selinux_label="type:x_t")},
            {"HostConfig.SecurityOpt": ["no-new-privileges:true", "apparmor=strict", "label=type:x_t"]},
        ),
        ({"security": Security(runtime="runsc")}, {"HostConfig.Runtime": "runsc"}),
        ({"log": Log(driver="json-file")}, {"HostConfig.LogConfig.Type": "json-file"}),
        ({"log": Log(max_bytes=2**20)}, {"HostConfig.LogConfig.Config.max-size": str(5 * 2**20)}),
    ],
)
def test_what_a_fleet_changes(settings: dict[str, Any], expected: dict[str, Any]) -> None:
    assert changes(config(**settings)) == expected


def test_the_workspace_is_mounted_directory_by_directory() -> None:
    mounts = config({"workspace": Path("/srv/a:b,c/sandboxes/x")})["HostConfig"]["Mounts"]

    assert [mount["Source"] for mount in mounts] == [
        f"/srv/a:b,c/sandboxes/x/{name}" for name in ("scratch", "scripts", "data", "output", "tmp", "control")
    ]


WIDEST = config(
    {
        "network": Network.model_validate({"mode": "team", "dns": ["10.0.0.53"], "extra_hosts": {"a": "10.0.0.1"}}),
        "seccomp": "{}",
        "resources": Resources(cpu=64, memory=2**40, pids=2**22),
    },
    security=Security(apparmor_profile="x", selinux_label="type:y", runtime="runsc"),
)


@pytest.mark.parametrize("made", [config(), config({"network": Network(mode="none")}), WIDEST])
def test_no_option_opens_the_container(made: dict[str, Any]) -> None:
    host = made["HostConfig"]

    # An engine ignores keys that it does not know, so what is left out must be left out under its own name.
    for absent in (
        "Binds",
        "Devices",
        "DeviceRequests",
        "DeviceCgroupRules",
        "GroupAdd",
        "Links",
        "MaskedPaths",
        "ReadonlyPaths",
        "PidMode",
        "PortBindings",
        "Sysctls",
        "UTSMode",
        "UsernsMode",
        "VolumesFrom",
        "CgroupParent",
    ):
        assert absent not in host
    for absent in ("Volumes", "ExposedPorts", "MacAddress"):
        assert absent not in made
    assert host["Privileged"] is False
    assert (host["CapAdd"], host["CapDrop"]) == ([], ["ALL"])
    assert host["SecurityOpt"][0] == "no-new-privileges:true"
    assert host["ReadonlyRootfs"] is True
    assert host["PublishAllPorts"] is False
    assert host["NetworkMode"] not in {"host", "default", "bridge"}
    assert (host["IpcMode"], host["CgroupnsMode"]) == ("private", "private")
    assert host["MemorySwap"] == host["Memory"] > 0
    assert host["PidsLimit"] > 0
    assert host["CpuQuota"] > 0
    assert host["RestartPolicy"] == {"Name": "no"}
    assert host["AutoRemove"] is False
    assert [made[key] for key in ("Tty", "OpenStdin", "AttachStdin")] == [False] * 3
    writable = {mount["Target"] for mount in host["Mounts"] if not mount["ReadOnly"]}
    assert writable == {"/workspace", "/workspace/data", "/workspace/output", "/tmp"}
    assert {mount["Type"] for mount in host["Mounts"]} == {"bind"}
    assert {mount["BindOptions"]["Propagation"] for mount in host["Mounts"]} == {"rprivate"}


def test_nothing_of_the_worker_is_in_the_environment() -> None:
    made = config(redis_url="redis://:hunter2@h/0", broker_url="redis://:hunter2@h/1")

    assert made["Env"] == ["HOME=/tmp", "LANG=C.UTF-8", "TZ=UTC", "CRONIUM_EXECUTION_MODE=container"]
    assert "hunter2" not in json.dumps(made)


def test_variables_of_an_image_that_look_like_ours_are_unset_but_for_those_that_are_set() -> None:
    made = config({"image_config": ImageConfig(variables=("CRONIUM_EXECUTION_MODE", "CRONIUM_X"))})

    assert made["Env"] == ["CRONIUM_X", "HOME=/tmp", "LANG=C.UTF-8", "TZ=UTC", "CRONIUM_EXECUTION_MODE=container"]
