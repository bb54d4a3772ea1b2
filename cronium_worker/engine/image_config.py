"""What an image brings into each of its containers unasked. Pure.

The engine adds an image's labels, variables, ports and volumes to those that a container is created with. Ports are
not published; all else of an image's configuration is replaced by what engine.spec sets.
"""

import posixpath
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

CONTROL_DIRECTORY = "/run/cronium"
# Each has a directory of the workspace of its own: a volume there is covered.
MOUNT_POINTS = ("/workspace", "/workspace/scripts", "/workspace/data", "/workspace/output", "/tmp", CONTROL_DIRECTORY)  # noqa: S108
_KERNELS_AND_ENGINES = ("/proc", "/sys", "/dev", "/etc/hostname", "/etc/hosts", "/etc/resolv.conf")
_OUR_LABEL = re.compile(r"cronium\..*", re.DOTALL)
_OUR_VARIABLE = re.compile(r"cronium_\w*", re.ASCII | re.IGNORECASE)  # of the launcher's shell as well
_MAX_VOLUMES = 64
_MAX_PATH = 1024
_SHOWN_CHARACTERS = 120


@dataclass(frozen=True, kw_only=True)
class ImageConfig:
    """`labels` and `variables`: the names of those that look like ours. `volumes`: where it declares some, but for the
    mount points of the workspace. `refused`: why no container can be made of it; empty: one can."""

    labels: tuple[str, ...] = ()
    variables: tuple[str, ...] = ()
    volumes: tuple[str, ...] = ()
    refused: str = ""

    @classmethod
    def of(cls, inspected: Mapping[str, Any]) -> Self:
        """Read an image's configuration as the engine shows it."""
        config = inspected.get("Config") or {}
        variables = (entry.partition("=")[0] for entry in config.get("Env") or ())
        volumes, refused = _volumes(config.get("Volumes") or ())
        return cls(
            labels=tuple(sorted(filter(_OUR_LABEL.fullmatch, config.get("Labels") or ()))),
            variables=tuple(sorted(set(filter(_OUR_VARIABLE.fullmatch, variables)))),
            volumes=volumes,
            refused=refused,
        )


def _volumes(declared: Iterable[str]) -> tuple[tuple[str, ...], str]:
    """Return where they are, and what is wrong with one of them or with all."""
    found = set()
    for volume in declared:
        path = posixpath.normpath(f"/{volume.lstrip('/')}")  # as the engine does: a volume that we cover has its path
        if reason := _objection(volume, path):
            shown = ascii(volume if len(volume) <= _SHOWN_CHARACTERS else volume[:_SHOWN_CHARACTERS] + "…")
            return (), f"its volume {shown} {reason}"
        found.add(path)
    paths = tuple(sorted(found.difference(MOUNT_POINTS)))
    return (
        ((), f"it declares {len(paths)} volumes, more than {_MAX_VOLUMES}")
        if len(paths) > _MAX_VOLUMES
        else (paths, "")
    )


def _objection(volume: str, path: str) -> str:
    if not volume.startswith("/"):
        return "is no absolute path"
    if not path.isprintable() or len(path) > _MAX_PATH:
        return "is no usable path"
    if path in MOUNT_POINTS:
        return ""
    for taken in (*MOUNT_POINTS, *_KERNELS_AND_ENGINES):
        if path == taken or _is_below(path, taken) or _is_below(taken, path):
            return f"collides with {taken}"
    return ""


def _is_below(path: str, directory: str) -> bool:
    return path.startswith(f"{directory.rstrip('/')}/")
