"""Builds the base and runner images on this host's engine; one that is up to date is left as it is."""

import io
import re
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib.metadata import version

import docker
import requests
from docker.errors import APIError, DockerException

from cronium_worker.engine import nodejs, recipe, rootfs
from cronium_worker.engine.recipe import LABEL_DIGEST, RUNNERS, Recipe
from cronium_worker.engine.rootfs import find_image
from cronium_worker.errors import ImageBuildError
from cronium_worker.settings import FLAVOURS

Report = Callable[[str], None]

# How long to wait for a registry's word on the Alpine image before it counts as out of reach.
REGISTRY_TIMEOUT_S = 10.0
_ERROR_LINES = 12
_ERROR_PIECES = 100
# The classic builder's own notes between a step's output; the first form names the image that a step has left.
_STEP_IMAGE = re.compile(r"^ ---> ([0-9a-f]{12})$")
_NOTES = (" ---> ", "Removing intermediate container ")
_COLOUR = re.compile(r"\x1b\[\d*m")  # it prints what comes from stderr in red


@dataclass(frozen=True, kw_only=True)
class BuiltImage:
    """An image that is up to date now; `built` is False if it was so before."""

    reference: str
    id: str
    digest: str
    built: bool
    seconds: float


def build_images(api: docker.APIClient, *, flavour: str | None, report: Report) -> list[BuiltImage]:
    """Build what is missing or out of date: base first, then the runners side by side.

    Flavour None: the one that is built here already; else alpine if its base image can be pulled; else debian.
    Raises ImageBuildError with the end of the failing step's output; an engine that does not answer is one too.
    """
    try:
        chosen = flavour or _choose_flavour(api, report)
        if chosen not in FLAVOURS:
            raise ImageBuildError(f"unknown flavour {chosen!r}: {' or '.join(FLAVOURS)}")
        parent_digest = _parent_digest(api, chosen, report)
        base = _ensure(api, recipe.load("base", chosen), chosen, parent_digest, report)
        with ThreadPoolExecutor(max_workers=len(RUNNERS), thread_name_prefix="image-build") as threads:
            runners = [
                threads.submit(_ensure, api, recipe.load(name, chosen), chosen, base.digest, report) for name in RUNNERS
            ]
        return [base, *(runner.result() for runner in runners)]
    except (DockerException, requests.exceptions.RequestException) as error:
        raise ImageBuildError(f"the Docker Engine failed while images were built: {error}") from error


def _version() -> str:
    return version("cronium-worker")


def _choose_flavour(api: docker.APIClient, report: Report) -> str:
    for flavour in FLAVOURS:
        if all(find_image(api, recipe.reference(name, flavour)) for name in ("base", *RUNNERS)):
            return flavour
    alpine = recipe.load("base", "alpine").parent
    if find_image(api, alpine) or _registry_has(api, alpine):
        return "alpine"
    report(f"{alpine} cannot be pulled from here: building the debian flavour")
    return "debian"


def _registry_has(api: docker.APIClient, reference: str) -> bool:
    """Whether the engine can reach the image's registry. The question has no limit of its own in the engine,
    which tries an unreachable address for minutes; the thread that asked is left to end by itself."""
    answers: list[bool] = []

    def ask() -> None:
        with suppress(DockerException, requests.exceptions.RequestException):
            answers.append(bool(api.inspect_distribution(reference)))  # type: ignore[no-untyped-call]

    thread = threading.Thread(target=ask, name="registry-probe", daemon=True)
    thread.start()
    thread.join(REGISTRY_TIMEOUT_S)
    return answers == [True]


def _parent_digest(api: docker.APIClient, flavour: str, report: Report) -> str:
    """Make sure of the image that the base image is made from, and return what stands for its content."""
    if flavour == "debian":
        return rootfs.ensure_rootfs(api, version=_version(), report=report)
    parent = recipe.load("base", flavour).parent
    image = find_image(api, parent)
    if image is None:
        report(f"{parent}: pulling")
        failures = [m["error"] for m in api.pull(parent, stream=True, decode=True) if "error" in m]
        if failures:
            raise ImageBuildError(f"{parent}: {failures[0]}")
        image = find_image(api, parent)
    if image is None:
        raise ImageBuildError(f"{parent}: pulled, but the engine does not know it")
    return str(image["Id"])


def _ensure(api: docker.APIClient, wanted: Recipe, flavour: str, parent_digest: str, report: Report) -> BuiltImage:
    """Build the image unless the one of that name carries its digest."""
    started = time.monotonic()
    digest = recipe.digest(wanted, parent_digest=parent_digest, version=_version())
    old = find_image(api, wanted.reference)
    fresh = old is not None and (old["Config"]["Labels"] or {}).get(LABEL_DIGEST) == digest
    if not fresh:
        report(f"{wanted.reference}: building")
        _build(api, wanted, recipe.labels(flavour=flavour, version=_version(), digest=digest))
    image = old if fresh else find_image(api, wanted.reference)
    if image is None:
        raise ImageBuildError(f"{wanted.reference}: built, but it was removed by someone at once")
    if old is not None and old["Id"] != image["Id"]:
        _discard(api, old["Id"])
    seconds = time.monotonic() - started
    report(f"{wanted.reference}: " + ("up to date" if fresh else f"built in {seconds:.1f} s"))
    return BuiltImage(reference=wanted.reference, id=image["Id"], digest=digest, built=not fresh, seconds=seconds)


def _build(api: docker.APIClient, wanted: Recipe, labels: dict[str, str]) -> None:
    step_output: deque[str] = deque(maxlen=_ERROR_PIECES)
    last_image, failure = None, None
    requirements = wanted.files.get(recipe.REQUIREMENTS)
    whole = replace(wanted, files={**wanted.files, **nodejs.node_files(requirements)}) if requirements else wanted
    # The labels become the last step, so a change of one file does not run the earlier steps again.
    messages = api.build(
        fileobj=io.BytesIO(recipe.context(whole)),
        custom_context=True,
        tag=wanted.reference,
        labels=labels,
        rm=True,
        forcerm=True,
        decode=True,
    )
    for message in messages:
        text = str(message.get("stream", ""))
        if text.startswith("Step "):
            step_output.clear()
        if found := _STEP_IMAGE.match(text.rstrip("\n")):
            last_image = found[1]
        if not text.startswith(_NOTES):
            step_output.append(text)
        failure = failure or message.get("error")
    # Read to its end, the stream gives its connection back.
    if failure:
        if last_image:
            _discard(api, last_image)
        raise ImageBuildError(f"{wanted.reference}: {failure}\n{_tail(step_output)}")


def _tail(pieces: Iterable[str]) -> str:
    lines = _COLOUR.sub("", "".join(pieces)).splitlines()
    return "\n".join([line for line in lines if line.strip()][-_ERROR_LINES:])


def _discard(api: docker.APIClient, image_id: str) -> None:
    """Remove an image without a name, and those without a name that it was made from.

    One with a name stays (removing it by its id would take the name away), and so does one that is in use.
    """
    image = find_image(api, image_id)
    if image is None or image["RepoTags"]:
        return
    with suppress(APIError):
        api.remove_image(image["Id"])
