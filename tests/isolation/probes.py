"""A program in every image that tries what a job must not be able to do (probe.c), and the reviewed answers."""

import base64
import subprocess
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# How a call ends that was refused: by seccomp, the capabilities that are missing, the mounts, or the masks.
REFUSED = frozenset({"EPERM", "EACCES", "ENOSYS", "EROFS", "EAFNOSUPPORT", "ESOCKTNOSUPPORT", "EPROTONOSUPPORT"})
NOT_THERE = frozenset({"ENOENT", "ENODATA", "ECONNREFUSED", "ENXIO"})

# What the own seccomp profile of this engine lets through, with CRONIUM_SECURITY__SECCOMP_PROFILE=engine. Reviewed: on
# a patched kernel none leaves the container. Cronium's profile, the default, refuses all of them.
ENGINES_OWN: dict[str, frozenset[str]] = {
    # Engines before 25 allow it; newer ones and kernels with io_uring_disabled=2 do not.
    "io-uring": frozenset({"ok"}),
    # Engines before 23 allow it: it reaches a hypervisor where the host is a virtual machine.
    "socket-vsock": frozenset({"ok"}),
    # Engines before 29.4.2 allow it, where the kernel has AF_ALG at all. Kernels without the patch for CVE-2026-31431
    # let it change cached files of an image, also for other containers.
    "socket-alg": frozenset({"ok"}),
    # Its own container's first process, of its own user: there is nobody else to trace.
    "ptrace-first-process": frozenset({"ok"}),
}

DEVICES = frozenset(f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom", "tty"))
WRITABLE = frozenset({"/workspace", "/workspace/data", "/workspace/output", "/tmp", "/dev/shm", "/dev/mqueue"})

_DELIVERY = {
    "bash": "cronium_input | jq -r . | base64 -d >/tmp/probe\nchmod 700 /tmp/probe\nexec /tmp/probe",
    "python": "import base64, os\nopen('/tmp/probe', 'wb').write(base64.b64decode(cronium.input()))\n"
    "os.chmod('/tmp/probe', 0o700)\nos.execv('/tmp/probe', ['probe'])",
    "node": "const fs = require('fs');\n"
    "fs.writeFileSync('/tmp/probe', Buffer.from(cronium.input(), 'base64'), {mode: 0o700});\n"
    "require('child_process').execFileSync('/tmp/probe', {stdio: 'inherit'})",
}


def compiled(directory: Path, name: str = "probe") -> str:
    """A program of this directory as base64."""
    source, target = Path(__file__).parent / f"{name}.c", directory / name
    subprocess.run(["gcc", "-static", "-Os", "-Wall", "-Werror", "-s", "-o", target, source], check=True)
    return base64.b64encode(target.read_bytes()).decode()


def job(language: str, probe: str) -> dict[str, Any]:
    return {"script": {"type": language, "content": _DELIVERY[language]}, "input_data": probe}


@dataclass(frozen=True)
class Report:
    """`calls`: the answer by name; `found`: paths by kind."""

    calls: dict[str, str]
    found: dict[str, set[str]]

    @classmethod
    def read(cls, text: str) -> "Report":
        calls: dict[str, str] = {}
        found: defaultdict[str, set[str]] = defaultdict(set)
        for line in text.splitlines():
            what, name, rest = line.split(" ", 2)
            if what == "call":
                calls[name] = rest
            else:
                found[name].add(rest)
        return cls(calls, found)

    def allowed(self, accepted: Mapping[str, frozenset[str]] | None = None) -> dict[str, str]:
        """The calls that were not refused and are not accepted."""
        fine = REFUSED | NOT_THERE
        return {name: answer for name, answer in self.calls.items()
                if answer not in fine | (accepted or {}).get(name, frozenset())}  # fmt: skip
