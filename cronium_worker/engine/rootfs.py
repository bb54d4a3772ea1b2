"""The parent of the Debian flavour where no registry can be reached: a root filesystem made from the
distribution's own packages with mmdebstrap and imported as an image."""

import hashlib
import json
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, cast

import docker
from docker.errors import APIError, ImageNotFound

from cronium_worker.engine.recipe import LABEL_DIGEST, labels
from cronium_worker.errors import ImageBuildError

REFERENCE = "cronium/rootfs:debian"
_COMPONENTS = {"debian": ("main",), "ubuntu": ("main", "universe")}
_SUITE_SUFFIXES = ("", "-updates", "-security")
_CHUNK_BYTES = 1 << 20
_ERROR_LINES = 12

# usrmerge would bring all of Perl (40 MB): the hook makes the merged layout without it where that is needed.
# The dpkg options stay in the image and so hold for what the Dockerfiles install as well.
_OPTIONS = (
    "--variant=apt",
    "--include=ca-certificates",
    "--hook-dir=/usr/share/mmdebstrap/hooks/maybe-merged-usr",
    "--dpkgopt=force-unsafe-io",
    "--dpkgopt=path-exclude=/usr/share/doc/*",
    "--dpkgopt=path-exclude=/usr/share/info/*",
    "--dpkgopt=path-exclude=/usr/share/locale/*",
    "--dpkgopt=path-exclude=/usr/share/man/*",
    "--customize-hook=rm -rf $1/usr/share/doc $1/usr/share/info $1/usr/share/locale $1/usr/share/man",
)


def ensure_rootfs(api: docker.APIClient, *, version: str, report: Callable[[str], None]) -> str:
    """Make sure that the image is there, of this machine's distribution; return its digest.

    The digest is of what it is made of, not of its bytes: newer packages alone don't make it anew.
    Raises ImageBuildError.
    """
    distribution, codename = _distribution()
    recipe = json.dumps([distribution, codename, platform.machine(), version, _OPTIONS])
    digest = f"sha256:{hashlib.sha256(recipe.encode()).hexdigest()}"
    old = find_image(api, REFERENCE)
    if old and (old["Config"]["Labels"] or {}).get(LABEL_DIGEST) == digest:
        return digest
    report(f"{REFERENCE}: making it from the packages of {distribution} {codename}")
    image_id = _import(api, distribution, codename, labels(flavour="debian", version=version, digest=digest))
    repository, tag = REFERENCE.split(":")
    api.tag(image_id, repository, tag)
    if old:
        # As long as the images made from it are there, the engine refuses; they take it with them.
        with suppress(APIError):
            api.remove_image(old["Id"])
    return digest


def find_image(api: docker.APIClient, reference: str) -> dict[str, Any] | None:
    """What the engine tells about an image, None if it is not there."""
    try:
        return cast("dict[str, Any]", api.inspect_image(reference))  # type: ignore[no-untyped-call]
    except ImageNotFound:
        return None


def _distribution() -> tuple[str, str]:
    try:
        release = platform.freedesktop_os_release()
    except OSError:
        release = {}
    names = [release.get("ID", ""), *release.get("ID_LIKE", "").split()]
    distribution = next((name for name in names if name in _COMPONENTS), None)
    codename = release.get(f"{distribution}_CODENAME".upper(), release.get("VERSION_CODENAME"))
    if distribution is None or not codename:
        raise ImageBuildError(
            f"the debian flavour is made from Debian's or Ubuntu's packages, and this machine runs "
            f"{release.get('PRETTY_NAME', 'neither')}: use the alpine flavour with a registry"
        )
    return distribution, codename


def _import(api: docker.APIClient, distribution: str, codename: str, image_labels: dict[str, str]) -> str:
    """Stream what mmdebstrap packs into the engine; the image has no name before both have succeeded."""
    program = shutil.which("mmdebstrap")
    if program is None:
        raise ImageBuildError("the debian flavour needs mmdebstrap: apt-get install mmdebstrap")
    components = _COMPONENTS[distribution]
    command = [program, "--quiet", *_OPTIONS, *_apt_proxy(), f"--components={','.join(components)}", codename, "-"]
    command += _own_mirrors(codename, components)
    changes = [f"LABEL {name}={json.dumps(value)}" for name, value in image_labels.items()]
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors)
        try:
            output = cast("IO[bytes]", process.stdout)
            answer = api.import_image_from_data(_chunks(output), changes=changes)
            image_id = _image_id(answer)
            if process.wait() != 0:
                api.remove_image(image_id)
                raise ImageBuildError(f"{REFERENCE}: mmdebstrap failed: {_tail(errors)}")
        except APIError as error:
            raise ImageBuildError(f"{REFERENCE}: the engine refused the import: {error.explanation}") from error
        finally:
            # On SIGTERM it removes its temporary directory.
            process.terminate()
            process.wait()
            cast("IO[bytes]", process.stdout).close()
    return image_id


def _chunks(stream: IO[bytes]) -> Iterator[bytes]:
    while chunk := stream.read(_CHUNK_BYTES):
        yield chunk


def _image_id(answer: str) -> str:
    message: dict[str, Any] = json.loads(answer.strip().splitlines()[-1])
    if "error" in message:
        raise ImageBuildError(f"{REFERENCE}: the engine could not import it: {message['error']}")
    return str(message["status"])


def _tail(errors: IO[bytes]) -> str:
    errors.seek(0)
    return "\n".join(errors.read().decode(errors="replace").splitlines()[-_ERROR_LINES:])


def _own_mirrors(codename: str, components: tuple[str, ...]) -> list[str]:
    """The mirrors that this machine's apt uses for the distribution itself, as lines of sources.list.

    Empty where apt does not tell: then mmdebstrap takes the distribution's default ones.
    """
    suites = {codename + suffix for suffix in _SUITE_SUFFIXES}
    layout = "$(ORIGIN)|$(REPO_URI)|$(RELEASE)|$(COMPONENT)|$(SIGNED_BY)"
    listing = _output("apt-get", "indextargets", "--format", layout, "Identifier: Packages")
    lines: dict[str, None] = {}
    for target in listing.splitlines():
        origin, uri, suite, component, key = [*target.split("|"), "", "", "", ""][:5]
        known = origin in ("Debian", "Ubuntu") and suite in suites and component in components
        if known and uri.startswith(("http://", "https://")):
            option = f"[signed-by={key}] " if Path(key).is_absolute() else ""
            lines[f"deb {option}{uri} {suite} {component}"] = None
    return list(lines)


def _apt_proxy() -> list[str]:
    """The proxy of this machine's apt. It goes into the image, because the Dockerfiles' apt-get needs it as well."""
    proxy = _output("apt-config", "shell", "PROXY", "Acquire::http::Proxy").strip()
    address = proxy.removeprefix("PROXY=").strip("'\"")
    return [f'--aptopt=Acquire::http::Proxy "{address}"'] if address.startswith("http") else []


def _output(*command: str) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout
    except (OSError, subprocess.SubprocessError):
        return ""
