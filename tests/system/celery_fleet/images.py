"""The images of this folder's containers, built from what is on this machine: no registry is needed.

They stay, so that the next run takes them as they are; a label tells what they were made from.
"""

import hashlib
import io
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import docker
from docker.errors import APIError, ImageNotFound
from docker.models.images import Image
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[3]
# What is here already where the debian flavour is; where it is not, the Alpine one was pulled, so this can be, too.
_BASES = ("cronium/base:debian", "debian:bookworm-slim")
WORKER = "cronium-test/worker"
REDIS = "cronium-test/redis"
_PYTHON = "cronium-test/python"
_DIGEST = "cronium-test.digest"
_DOCKERFILE = "deploy/worker.Dockerfile"
_SOURCES = (
    "LICENSE", "README.md", "cronium_worker", "deploy/seccomp", "helpers", "images", "pyproject.toml",
    "requirements.txt",
)  # fmt: skip
_REDIS = """\
ARG BASE
FROM ${BASE}
RUN apt-get update && apt-get install --yes --no-install-recommends redis-server && rm -rf /var/lib/apt/lists/*
"""


def worker_image(client: docker.DockerClient, wheels: Path) -> str:
    """deploy/worker.Dockerfile with the packages that pip gets outside: inside, its settings are not known."""
    base = _base(client)
    files = {name: path for source in (_DOCKERFILE, *_SOURCES) for name, path in _files(source)}
    digest = _digest(base.id, *(f"{name} {_content(path)}" for name, path in files.items()))
    if not _is_made_of(client, WORKER, digest):
        python = _build(client, _PYTHON, {_DOCKERFILE: ROOT / _DOCKERFILE}, base, digest, target="python")
        _download(wheels, version=_python_version(client, python))
        files |= {f"deploy/wheels/{path.name}": path for path in wheels.iterdir()}
        _build(client, WORKER, files, base, digest)
        client.images.remove(_PYTHON)
    return WORKER


def redis_image(client: docker.DockerClient) -> str:
    base = _base(client)
    digest = _digest(base.id, _REDIS)
    if not _is_made_of(client, REDIS, digest):
        file, arguments = io.BytesIO(_REDIS.encode()), {"BASE": base.tags[0]}
        old = client.images.list(name=REDIS)
        image, _ = client.images.build(fileobj=file, tag=REDIS, buildargs=arguments, labels={_DIGEST: digest}, rm=True)
        _discard(client, old, image)
    return REDIS


def _base(client: docker.DockerClient) -> Image:
    for reference in _BASES:
        with suppress(ImageNotFound):
            return client.images.get(reference)
    return client.images.pull(_BASES[-1])


def _is_made_of(client: docker.DockerClient, tag: str, digest: str) -> bool:
    try:
        return bool(client.images.get(tag).labels.get(_DIGEST) == digest)
    except ImageNotFound:
        return False


def _digest(*parts: str | None) -> str:
    return hashlib.sha256("\n".join(map(str, parts)).encode()).hexdigest()


def _files(source: str) -> Iterator[tuple[str, Path]]:
    """Links are taken as such: with their targets, which are copied as well."""
    top = ROOT / source
    for path in sorted([top, *top.rglob("*")]):
        if (path.is_file() or path.is_symlink()) and "__pycache__" not in path.parts:
            yield str(path.relative_to(ROOT)), path


def _content(path: Path) -> str:
    return str(path.readlink()) if path.is_symlink() else hashlib.sha256(path.read_bytes()).hexdigest()


def _build(
    client: docker.DockerClient, tag: str, files: dict[str, Path], base: Image, digest: str, target: str | None = None
) -> Image:
    context = io.BytesIO()
    with tarfile.open(fileobj=context, mode="w") as archive:
        for name, path in files.items():
            archive.add(path, name)
    context.seek(0)
    old = client.images.list(name=tag)
    image, _ = client.images.build(
        fileobj=context,
        custom_context=True,
        dockerfile=_DOCKERFILE,
        tag=tag,
        target=target,
        buildargs={"BASE": base.tags[0], "PIP_NO_INDEX": "1"},
        labels={_DIGEST: digest},
        rm=True,
        forcerm=True,
    )
    _discard(client, old, image)
    return image


def _discard(client: docker.DockerClient, old: list[Image], image: Image) -> None:
    """The images that have just lost their name to this one."""
    for each in old:
        if each.id != image.id:
            with suppress(APIError):  # what is built on it keeps it
                client.images.remove(each.id)


def _python_version(client: docker.DockerClient, image: Image) -> str:
    code = "import platform; print(platform.python_version())"
    return bytes(client.containers.run(image, ["python3", "-c", code], remove=True)).decode().strip()


def _download(directory: Path, *, version: str) -> None:
    """The wheels of requirements.txt and of what builds this package, for another Python than this one."""
    lines = (line.partition("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines())
    wanted = [Requirement(line) for line in lines if line]
    markers = {"python_full_version": version, "python_version": ".".join(version.split(".")[:2])}
    needed = [f"{each.name}{each.specifier}" for each in wanted if not each.marker or each.marker.evaluate(markers)]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(directory)]
    command += ["--only-binary", ":all:", "--python-version", version, *needed, "hatchling"]
    subprocess.run(command, check=True, stderr=subprocess.PIPE, text=True)
