"""Images of jobs: present on the host, or pulled by the job's policy, once for all who wait."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from cronium_worker.engine.client import Engine, faults
from cronium_worker.engine.credentials import Credentials, find_credentials
from cronium_worker.engine.image_config import ImageConfig
from cronium_worker.engine.pull import Progress, Pulled, SharedPull, inspect
from cronium_worker.engine.refusal import pull_error
from cronium_worker.errors import DaemonError, ImagePullError
from cronium_worker.models.job import PullPolicy
from cronium_worker.models.reference import repo_digest, split_reference
from cronium_worker.settings import Registry

__all__ = ["ImageManager", "Progress", "Pulled", "first_present", "list_runner_images"]

_BUILD_HINT = "build it with `make images`, or name one that can be pulled"


class ImageManager:
    """Makes sure that an image is there. Safe for threads; one for a process, so that its jobs share their pulls."""

    def __init__(self, engine: Engine, registry: Registry) -> None:
        self._engine = engine
        self._registry = registry
        self._pulls: dict[tuple[str, str, Credentials], SharedPull] = {}
        self._found: dict[tuple[str, ...], str] = {}
        self._lock = threading.Lock()

    def pull_first(
        self, candidates: Sequence[str], *, policy: PullPolicy, cancelled: Callable[[], bool], progress: Progress
    ) -> Pulled:
        """The one of the candidates that is here, else the first that can be had, pulled by the policy.

        Raises ImagePullError (of the first candidate if all are refused), DaemonError, Cancelled.
        """
        here = self.find(candidates) if policy != "always" else None
        if here is not None:
            return here
        refused: list[ImagePullError] = []
        for candidate in candidates:
            try:
                return self.pull(candidate, policy=policy, cancelled=cancelled, progress=progress)
            except ImagePullError as error:
                if error.details["reason"] not in {"not_found", "denied"}:
                    raise
                refused.append(error)
        raise refused[0]

    def find(self, candidates: Sequence[str]) -> Pulled | None:
        """The one of the candidates that was here the last time, if it still is; else the first that is; None: none.
        Raises DaemonError."""
        known = self._found.get(tuple(candidates))
        for candidate in sorted(candidates, key=lambda name: name != known):
            if (here := self._present(candidate)) is not None:
                self._found[tuple(candidates)] = candidate
                return here
        return None

    def pull(self, reference: str, *, policy: PullPolicy, cancelled: Callable[[], bool], progress: Progress) -> Pulled:
        """Have one image here, by the policy. The prefix is put before a reference that names no registry.

        Who comes while it is pulled with the same credentials shares that pull and its outcome.
        Raises ImagePullError (`details.reason`: see engine.refusal), DaemonError, Cancelled.
        """
        started = time.monotonic()
        image = self._registry.resolve(reference)
        here = self._present(reference) if policy != "always" or "@" in image else None  # a digest is never newer
        if here is not None:
            return here
        if policy == "never":
            text = f"is not on this host and pull_policy is never; {_BUILD_HINT}"
            raise pull_error(image, text, "not_found", retryable=False)
        shared = self._share(image, cancelled, progress)
        return replace(shared, reference=reference, seconds=time.monotonic() - started)

    def _present(self, reference: str) -> Pulled | None:
        started = time.monotonic()
        image = self._registry.resolve(reference)
        found = inspect(self._engine, image)
        if found is None:
            return None
        digest = repo_digest(image, found["RepoDigests"] or [])
        seconds = time.monotonic() - started
        return Pulled(
            reference=reference,
            image=image,
            id=found["Id"],
            digest=digest,
            pulled=False,
            seconds=seconds,
            config=ImageConfig.of(found),
        )

    def _share(self, image: str, cancelled: Callable[[], bool], progress: Progress) -> Pulled:
        credentials = find_credentials(image, self._registry)
        key = (*split_reference(image), credentials)
        with self._lock:
            pull = self._pulls.get(key)
            if pull is None or pull.ended:
                pull = self._pulls[key] = SharedPull(self._engine, self._registry, image, credentials)
                pull.start()
            pull.waiting += 1
        try:
            return pull.wait(cancelled, progress)
        finally:
            with self._lock:
                pull.waiting -= 1
                alone = pull.waiting == 0
                if alone and self._pulls.get(key) is pull:
                    del self._pulls[key]
            if alone:
                pull.abandon()


def first_present(engine: Engine, references: Sequence[str]) -> tuple[str, str] | None:
    """Name and id of the first of the references that this host has. Raises DaemonError."""
    for reference in references:
        if (found := inspect(engine, reference)) is not None:
            return reference, str(found["Id"])
    return None


def list_runner_images(engine: Engine) -> list[dict[str, Any]]:
    """Our images on this host: image, flavour, version, id, size in MB."""
    with faults(DaemonError, "image list"):
        found = engine.api.images(filters={"label": "cronium.image.flavour"})
    rows = [
        {
            "image": tag,
            "flavour": image["Labels"]["cronium.image.flavour"],
            "version": image["Labels"].get("org.opencontainers.image.version", ""),
            "id": image["Id"],
            "size_mb": round(image["Size"] / 1e6),
        }
        for image in found
        for tag in image["RepoTags"] or ()
    ]
    return sorted(rows, key=lambda row: str(row["image"]))
