"""The container of a job as the Engine API wants it. Pure: from job, settings and paths to one dict.

Keys and meanings: `POST /containers/create` of the Engine API v1.41. Why each value is what it is: docs/security.md.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cronium_worker.engine.cgroups import CPU_PERIOD_US
from cronium_worker.engine.image_config import CONTROL_DIRECTORY, ImageConfig
from cronium_worker.models import Network, Resources, ScriptType
from cronium_worker.settings import Settings

NETWORK_NAME = "cronium-execution"
LAUNCHER = f"{CONTROL_DIRECTORY}/launcher.sh"
INTERPRETERS: dict[ScriptType, str] = {"bash": "bash", "python": "python3", "node": "node"}

_SHM_BYTES = 64 * 1024 * 1024
# Where each directory of the workspace is mounted (image_config.MOUNT_POINTS), and whether the job may write there.
_MOUNTS = {
    "scratch": ("/workspace", True),
    "scripts": ("/workspace/scripts", False),
    "data": ("/workspace/data", True),
    "output": ("/workspace/output", True),
    "tmp": ("/tmp", True),  # noqa: S108 - a path inside the container
    "control": (CONTROL_DIRECTORY, False),
}
_ENVIRONMENT = {"HOME": "/tmp", "LANG": "C.UTF-8", "TZ": "UTC", "CRONIUM_EXECUTION_MODE": "container"}  # noqa: S108


@dataclass(frozen=True, kw_only=True)
class SandboxSpec:
    """What must be known before a container is made: nothing of it is a user's data. `job_labels`: none in one that is
    made before its job comes. `image_config`: what the image brings, to be overruled. `arguments`: of the interpreter,
    if it is to be started before there is a job."""

    sandbox_id: str
    script_type: ScriptType
    image: str
    workspace: Path
    user: str  # uid:gid
    resources: Resources
    network: Network
    device: str | None = None  # of the block device behind the workspace, for the I/O limit
    seccomp: str | None = None  # the profile's JSON text; None: the engine's default
    image_config: ImageConfig = field(default_factory=ImageConfig)
    isolated_by: str = NETWORK_NAME  # the engine's network for `isolated`; "none": the worker connects it
    job_labels: Mapping[str, str] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()


def container_config(spec: SandboxSpec, settings: Settings) -> dict[str, Any]:
    """The body of the create call."""
    mode = spec.isolated_by if spec.network.mode == "isolated" else spec.network.mode
    host_name = spec.sandbox_id[:12]
    hosts = [f"{name}:{address}" for name, address in spec.network.extra_hosts.items()]
    if mode == "none":
        hosts.append(f"{host_name}:127.0.1.1")  # the engine tells a container with an address of its own network alone
    return {
        "Hostname": host_name,
        "Image": spec.image,
        "Entrypoint": ["/sbin/tini", "-g", "--"],
        "Cmd": ["/bin/sh", LAUNCHER, INTERPRETERS[spec.script_type], *spec.arguments],
        "User": spec.user,
        "WorkingDir": "/workspace",
        # A name alone: the image's variable is not set.
        "Env": [
            *(name for name in spec.image_config.variables if name not in _ENVIRONMENT),
            *(f"{name}={value}" for name, value in _ENVIRONMENT.items()),
        ],
        "Labels": {
            **dict.fromkeys(spec.image_config.labels, ""),
            "cronium.fleet": settings.fleet,
            "cronium.host": settings.host_name,
            "cronium.sandbox": spec.sandbox_id,
            "cronium.script.type": spec.script_type,
            **spec.job_labels,
        },
        "AttachStdin": False,
        "AttachStdout": True,
        "AttachStderr": True,
        "OpenStdin": False,
        "Tty": False,
        "Healthcheck": {"Test": ["NONE"]},
        "StopSignal": "SIGTERM",
        "HostConfig": {
            **_isolation(settings, spec.seccomp),
            **changeable_limits(spec.resources),
            **_disk_io(spec.resources, spec.device),
            "NetworkMode": mode,
            "Dns": [str(address) for address in spec.network.dns],
            "ExtraHosts": hosts,
            "Mounts": [
                *(_mount(spec.workspace / name, *target) for name, target in _MOUNTS.items()),
                # Where the engine would put volumes of its own, which nobody counts.
                *(
                    _mount(spec.workspace / "volumes" / str(number), target, writable=True)
                    for number, target in enumerate(spec.image_config.volumes)
                ),
            ],
            "LogConfig": _log_config(settings),
            "AutoRemove": False,
            "RestartPolicy": {"Name": "no"},
        },
    }


def _mount(source: Path, target: str, writable: bool) -> dict[str, Any]:
    return {
        "Type": "bind",
        "Source": str(source),
        "Target": target,
        "ReadOnly": not writable,
        "BindOptions": {"Propagation": "rprivate"},
    }


def _isolation(settings: Settings, seccomp: str | None) -> dict[str, Any]:
    security = settings.security
    options = ["no-new-privileges:true"]
    if seccomp is not None:
        options.append(f"seccomp={seccomp}")
    if security.apparmor_profile:
        options.append(f"apparmor={security.apparmor_profile}")
    if security.selinux_label:
        options.append(f"label={security.selinux_label}")
    isolation: dict[str, Any] = {
        "Privileged": False,
        "CapAdd": [],
        "CapDrop": ["ALL"],
        "SecurityOpt": options,
        "ReadonlyRootfs": True,
        "IpcMode": "private",
        "CgroupnsMode": "private",
        "PublishAllPorts": False,
        "ShmSize": _SHM_BYTES,
        "OomScoreAdj": 500,
        "Ulimits": [
            {"Name": "nofile", "Soft": 4096, "Hard": 4096},
            {"Name": "core", "Soft": 0, "Hard": 0},
        ],
    }
    if security.runtime:
        isolation["Runtime"] = security.runtime
    return isolation


def changeable_limits(resources: Resources) -> dict[str, Any]:
    """Those that a container can be given after it was made, as the body of the update call as well."""
    return {
        "CpuPeriod": CPU_PERIOD_US,
        "CpuQuota": max(1000, round(resources.cpu * CPU_PERIOD_US)),  # the kernel's minimum is 1 ms
        "Memory": resources.memory,
        "MemorySwap": resources.memory,
        "PidsLimit": resources.pids,
    }


def _disk_io(resources: Resources, device: str | None) -> dict[str, Any]:
    if device is None:
        return {}
    rate = [{"Path": device, "Rate": resources.disk_io}]
    return {"BlkioDeviceReadBps": rate, "BlkioDeviceWriteBps": rate}


def log_file_bytes(settings: Settings) -> int:
    """The size at which the engine goes on to the second, and last, file of a stored log.

    So that no rotation happens within the job's cap, with room for what the driver adds to each line.
    """
    return 4 * settings.log.max_bytes + 1024 * 1024


def _log_config(settings: Settings) -> dict[str, Any]:
    return {
        "Type": settings.log.driver,
        "Config": {"max-size": str(log_file_bytes(settings)), "max-file": "2"},
    }
