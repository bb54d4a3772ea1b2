"""Root directories of other Debian suites, made with mmdebstrap and kept in var/hosts."""

import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

from tests.labs import ROOT, NoLabs

PLACE = ROOT / "var" / "hosts"
_KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
_MIRROR = "http://deb.debian.org/debian"
_MADE_S = 900


def root_of(name: str, suite: str, packages: Iterable[str]) -> Path:
    """The root directory of that name; made if there is none. Raises NoLabs."""
    root = PLACE / name
    if root.is_dir():
        return root
    PLACE.mkdir(parents=True, exist_ok=True)
    making = PLACE / f"{name}.making"
    shutil.rmtree(making, ignore_errors=True)
    command = [
        "mmdebstrap", "--quiet", "--variant=minbase", "--mode=root", "--aptopt=APT::Install-Recommends \"false\"",
        '--aptopt=Acquire::Check-Valid-Until "false"',  # a mirror may lag behind
        f"--keyring={_KEYRING}", f"--include={','.join(packages)}", suite, str(making), f"deb {_MIRROR} {suite} main",
    ]  # fmt: skip
    if subprocess.run(command, check=False, timeout=_MADE_S).returncode:
        shutil.rmtree(making, ignore_errors=True)
        raise NoLabs(f"{suite}: mmdebstrap could not make it from {_MIRROR}")
    making.rename(root)
    return root
