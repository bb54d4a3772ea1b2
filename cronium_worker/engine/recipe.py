"""What an image of ours is made of, and the digest that decides if it must be built. Pure but for `load`."""

import hashlib
import io
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

ASSETS = Path(__file__).resolve().parents[1] / "assets"

# The files of helpers/ that each image copies. What is not listed here is no part of its digest.
_HELPERS: Mapping[str, tuple[str, ...]] = {
    "base": (),
    "bash": ("cronium.sh", "preamble.bash"),
    "python": ("cronium.py", "cronium.pth", "cronium_gate.py", "0-cronium.pth"),
    "node": ("node",),
}
RUNNERS = ("bash", "python", "node")

# What an image has from a wheel, where it has something from one: part of its digest by the hashes in there.
REQUIREMENTS = "requirements.txt"

LABEL_VERSION = "org.opencontainers.image.version"
LABEL_FLAVOUR = "cronium.image.flavour"
LABEL_DIGEST = "cronium.image.digest"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One image: its name and its build context, by path. The Dockerfile is in it as `Dockerfile`."""

    reference: str
    files: Mapping[str, bytes]

    @property
    def parent(self) -> str:
        """The image that the Dockerfile begins with."""
        for line in self.files["Dockerfile"].decode().splitlines():
            if line.startswith("FROM "):
                return line.split()[1]
        raise ValueError(f"{self.reference}: the Dockerfile has no FROM")


def reference(name: str, flavour: str) -> str:
    """The image's name: cronium/base:debian, cronium/runner:bash-debian."""
    return f"cronium/base:{flavour}" if name == "base" else f"cronium/runner:{name}-{flavour}"


def load(name: str, flavour: str, assets: Path = ASSETS) -> Recipe:
    """Read the recipe of an image from the package's assets."""
    directory = assets / "images" / flavour
    files = {"Dockerfile": (directory / f"{name}.Dockerfile").read_bytes()}
    requirements = directory / f"{name}.{REQUIREMENTS}"
    if requirements.exists():
        files[REQUIREMENTS] = requirements.read_bytes()
    for helper in _HELPERS[name]:
        source = assets / "helpers" / helper
        for path in sorted(source.rglob("*")) if source.is_dir() else [source]:
            if path.is_file():
                files[path.relative_to(assets).as_posix()] = path.read_bytes()
    return Recipe(reference=reference(name, flavour), files=files)


def digest(recipe: Recipe, *, parent_digest: str, version: str) -> str:
    """The hash of everything that goes into the image, as `sha256:…`."""
    sha = hashlib.sha256()
    for part in (parent_digest, version, recipe.reference):
        sha.update(f"{part}\0".encode())
    for path, content in sorted(recipe.files.items()):
        sha.update(f"{path}\0{_mode(path):o}\0{len(content)}\0".encode())
        sha.update(content)
    return f"sha256:{sha.hexdigest()}"


def labels(*, flavour: str, version: str, digest: str) -> dict[str, str]:
    """The labels of an image of ours."""
    return {LABEL_VERSION: version, LABEL_FLAVOUR: flavour, LABEL_DIGEST: digest}


def context(recipe: Recipe) -> bytes:
    """The build context as a tar archive: the same bytes for the same files, whatever their owner and age."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path, content in sorted(recipe.files.items()):
            member = tarfile.TarInfo(path)
            member.size = len(content)
            member.mode = _mode(path)
            archive.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def _mode(path: str) -> int:
    # By name, not by the file's own mode: a wheel does not keep modes.
    return 0o755 if path.endswith(".sh") or "/bin/" in path else 0o644
