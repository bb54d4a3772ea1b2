"""Versions of the product, each with Python packages of its own: an older commit, this check-out, one of the future."""

import fcntl
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]
BASE = "4c0e1b9"
CACHE = ROOT / "var" / "upgrade"
# Otherwise Python takes the package from the current directory.
_SAFE_PATH = {"PYTHONSAFEPATH": "1"}


@dataclass(frozen=True)
class Version:
    """How to call one: its interpreter, and what that needs in its environment."""

    name: str
    python: Path
    env: dict[str, str] = field(default_factory=lambda: dict(_SAFE_PATH))

    def cronium(self, *arguments: str) -> list[str]:
        return [str(self.python), "-m", "cronium_worker", *arguments]

    def __str__(self) -> str:
        return self.name


def today() -> Version:
    return Version("today", Path(sys.executable))


def older(commit: str) -> Version:
    """Return the version of a commit, installed from a wheel that is built from Git, with that commit's locked
    requirements. It is kept in var/upgrade for the next time."""
    found = _git("rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}")
    if not found:
        raise LookupError(f"there is no commit {commit} here: fetch the whole history (git fetch --unshallow)")
    place = CACHE / found[:12]
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{place.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (place / "complete").exists():
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
            _install(found, place)
            (place / "complete").touch()
    return Version(commit, place / "venv" / "bin" / "python")


def _install(commit: str, place: Path) -> None:
    source, pip = place / "source", ["-m", "pip", "--disable-pip-version-check", "--no-input", "-q"]
    source.mkdir()
    archive = subprocess.run(["git", "archive", commit], cwd=ROOT, check=True, capture_output=True).stdout
    subprocess.run(["tar", "-x", "-C", source], input=archive, check=True)
    wheel = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(place)]
    subprocess.run([sys.executable, *pip, *wheel, source], check=True)
    subprocess.run([sys.executable, "-m", "venv", place / "venv"], check=True)
    python = place / "venv" / "bin" / "python"
    subprocess.run([python, *pip, "install", "-r", source / "requirements.txt"], check=True)
    subprocess.run([python, *pip, "install", "--no-deps", *place.glob("*.whl")], check=True)


# What the future adds to the files of today: a field `label` of a job, in the next format.
_FUTURE = {
    "models/job.py": (
        "    metadata: Annotated[",
        "    label: str | None = None\n    metadata: Annotated[",
    ),
    "models/formats.py": (
        "# The newest format that this version reads.",
        """ADDITIONS = (*ADDITIONS, Addition("label", max([1, *(row.format for row in ADDITIONS)]) + 1))
# The newest format that this version reads.""",
    ),
}


def future(directory: Path) -> Version:
    """Return this check-out with one more field of a job, in a directory of its own."""
    shutil.copytree(ROOT / "cronium_worker", directory / "cronium_worker", ignore=shutil.ignore_patterns("__pycache__"))
    for name, (old, new) in _FUTURE.items():
        file = directory / "cronium_worker" / name
        text = file.read_text()
        assert text.count(old) == 1, f"{name} has changed: where does a new field go?"
        file.write_text(text.replace(old, new))
    return Version("future", Path(sys.executable), _SAFE_PATH | {"PYTHONPATH": str(directory)})


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()


def chosen() -> list[str]:
    """Return the commits that BASE names, with commas between."""
    return [commit.strip() for commit in os.environ.get("BASE", "").split(",") if commit.strip()] or [BASE]
