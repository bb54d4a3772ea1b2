"""The seccomp profile of Cronium: the default for jobs, on engines that can use it."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

PROFILE = Path(__file__).resolve().parents[1] / "assets" / "seccomp" / "cronium.json"
# The first that give each rule the error that the profile names for it.
_OLDEST = {"Engine": (20, 10, 10), "runc": (1, 0, 2)}
_MACHINES = ("x86_64", "aarch64")
_RUNTIMES = ("runc", "io.containerd.runc.v2")

Version = tuple[int, ...]


def version_of(text: str) -> Version:
    """The numbers at the beginning: 20.10.24+dfsg1 is (20, 10, 24)."""
    found = re.match(r"v?(\d+(?:\.\d+)*)", text)
    return tuple(map(int, found[1].split("."))) if found else ()


def runtime_of(info: Mapping[str, Any], wanted: str) -> str:
    """The runtime that jobs have: the one of the settings, or else the engine's default."""
    return wanted or str(info.get("DefaultRuntime") or "runc")


def why_not_ours(info: Mapping[str, Any], versions: Mapping[str, str], *, runtime: str) -> str:
    """Return why this engine cannot use the profile; empty when it can.

    `info`: the engine's own (`docker info`); `versions`: of its components; `runtime`: of the settings.
    """
    if not any("seccomp" in option for option in info.get("SecurityOptions") or ()):
        return "the engine has no seccomp"
    if (machine := str(info.get("Architecture"))) not in _MACHINES:
        return f"it has no system calls of {machine}"
    if (name := runtime_of(info, runtime)) not in _RUNTIMES:
        return f"it is tested with runc, not with {name}"
    for component, oldest in _OLDEST.items():
        if version_of(versions.get(component, "")) < oldest:
            return f"it needs {component} {'.'.join(map(str, oldest))} or newer"
    return ""
