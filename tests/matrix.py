"""Runs the tests that are about the engine on other hosts: `python -m tests.matrix [--row ROW] PYTEST-ARGUMENTS`.

`make test-hosts` calls it, with an engine that has the images.

A row is a host: a Debian suite with its engine, kernel tools, Redis and Python, and how the engine is set up. The root
directory of a suite is made with mmdebstrap, and kept in var/hosts with its virtual environment. A lab (tests.labs) of
that root has the row's engine and Redis. The kernel, and with it cgroup v1 or v2, is this machine's.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.labs import ROOT, Lab, NoLabs, directory_in, entering, inside, save_images, way_out
from tests.roots import PLACE, root_of

_PACKAGES = (
    "docker.io", "docker-cli", "containerd", "runc", "crun", "iptables", "nftables", "iproute2", "kmod", "mount",
    "procps", "redis-server", "python3", "python3-venv", "nodejs", "docker-registry", "gcc", "libc6-dev", "e2fsprogs",
    "ca-certificates", "curl", "git", "jq", "make", "openssl",
)  # fmt: skip
_NUMBER = 9  # beside the labs of `make test`
_ROW_S = 1800
# What is about the engine. Apart: what tests the project's own tools, and programs that these roots do not have.
_TESTS = (
    "tests/integration",
    "--ignore=tests/integration/test_gvisor.py",
    "--ignore=tests/integration/test_images_build.py",
    "--ignore=tests/integration/test_load_model.py",
    "--ignore=tests/integration/test_interpreters.py",
)


@dataclass(frozen=True)
class Row:
    """A host. `daemon`: the engine's daemon.json."""

    suite: str
    daemon: Mapping[str, Any] = field(default_factory=dict)


_CRUN = {"default-runtime": "crun", "runtimes": {"crun": {"path": "/usr/bin/crun"}}}
ROWS: Mapping[str, Row] = {
    "trixie": Row("trixie"),
    "trixie-crun": Row("trixie", _CRUN),
    "forky": Row("forky"),
    "forky-crun": Row("forky", _CRUN),
    "forky-containerd-store": Row("forky", {"features": {"containerd-snapshotter": True}}),
}


def root_and_environment(suite: str) -> tuple[Path, Path]:
    """The root directory of a suite, and its virtual environment of the project. Raises NoLabs."""
    root, environment = root_of(suite, suite, _PACKAGES), PLACE / f"{suite}-venv"
    environment.mkdir(exist_ok=True)
    inside(root, environment, "deploy/local/setup.sh", "venv")
    return root, environment


def test(row: Row, arguments: Iterable[str]) -> int:
    """Run the tests on a row. Returns pytest's exit code. Raises NoLabs."""
    root, environment = root_and_environment(row.suite)
    (root / "etc" / "docker").mkdir(parents=True, exist_ok=True)
    (root / "etc" / "docker" / "daemon.json").write_text(json.dumps(row.daemon))
    with directory_in("/var/lib") as directory, way_out() as mtu:
        (directory / "tmp").mkdir(mode=0o1777)
        (directory / "tmp").chmod(0o1777)
        images = save_images(directory / "images.tar")
        lab = Lab(_NUMBER, directory, images, mtu, root=entering(root, environment))
        try:
            lab.start()
            python = lab.wait()
            command = [python, "-m", "pytest", *_TESTS, "-o", "timeout_method=signal", *arguments]
            return subprocess.run(command, cwd=ROOT, check=False, timeout=_ROW_S).returncode
        finally:
            lab.stop()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.matrix", description=__doc__)
    parser.add_argument("--row", action="append", choices=ROWS, help="may be given more than once; default: all")
    options, arguments = parser.parse_known_args()
    failed = []
    for name in options.row or ROWS:
        began = time.monotonic()
        try:
            code = test(ROWS[name], arguments)
        except NoLabs as reason:
            sys.stderr.write(f"{name}: {reason}\n")
            code = 1
        sys.stdout.write(f"{name}: exit code {code} after {(time.monotonic() - began) / 60:.1f} minutes\n")
        failed += [name] if code else []
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
