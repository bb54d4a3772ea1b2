"""Images of jobs: present on the host, or pulled by the job's policy, once for all who wait."""

import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import requests
from docker.errors import ImageNotFound

from cronium_worker.engine.client import Engine, faults
from cronium_worker.errors import Cancelled, DaemonError, ImagePullError
from cronium_worker.models.job import PullPolicy
from cronium_worker.settings import Registry

Progress = Callable[[str], None]
_LOOK_FOR_CANCEL_S = 0.25
_PROGRESS_EVERY_S = 0.5
_BUILD_HINT = "build it with `make images`, or name one that can be pulled"


class ImageManager:
    """Makes sure that an image is there. Safe for threads: one pull at a time of one reference."""

    def __init__(self, engine: Engine, registry: Registry) -> None:
        self._engine = engine
        self._registry = registry
        self._pulls: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()

    def ensure(
        self,
        candidates: Sequence[str],
        policy: PullPolicy,
        *,
        cancelled: Callable[[], bool],
        progress: Progress,
    ) -> str:
        """The first of the candidates that is here, else the first that can be had, pulled by the policy.

        Raises ImagePullError, DaemonError, Cancelled.
        """
        if policy != "always":
            here = first_present(self._engine, candidates)
            if here is not None:
                return here
        if policy == "never":
            raise ImagePullError(f"image {candidates[0]} is not on this host and pull_policy is never; {_BUILD_HINT}")
        return self._pull_once(candidates[0], policy, cancelled, progress)

    def _pull_once(self, reference: str, policy: PullPolicy, cancelled: Callable[[], bool], progress: Progress) -> str:
        with self._lock:
            lock = self._pulls.setdefault(reference, threading.Lock())
        while not lock.acquire(timeout=_LOOK_FOR_CANCEL_S):
            _raise_if(cancelled)
        try:
            # Another job may have pulled it while this one waited.
            if policy == "always" or first_present(self._engine, (reference,)) is None:
                _Pull(self._engine, self._registry, reference).run(cancelled, progress)
            return reference
        finally:
            lock.release()


def first_present(engine: Engine, references: Sequence[str]) -> str | None:
    """The first of the references that this host has. Raises DaemonError."""
    for reference in references:
        with faults(DaemonError, f"image inspect {reference}"), suppress(ImageNotFound):
            engine.api.inspect_image(reference)  # type: ignore[no-untyped-call]
            return reference
    return None


def _raise_if(cancelled: Callable[[], bool]) -> None:
    if cancelled():
        raise Cancelled("cancelled while its image was pulled")


class _Pull:
    """One pull. The engine's messages are read by a thread, so that a cancel is heard during silence; when the
    connection is dropped, the engine stops pulling."""

    def __init__(self, engine: Engine, registry: Registry, reference: str) -> None:
        self._engine = engine
        self._registry = registry
        self._reference = reference
        self._messages: queue.SimpleQueue[dict[str, Any] | Exception | None] = queue.SimpleQueue()
        self._abandoned = threading.Event()

    def run(self, cancelled: Callable[[], bool], progress: Progress) -> None:
        threading.Thread(target=self._read, name=f"pull {self._reference}", daemon=True).start()
        started = last_message = time.monotonic()
        last_shown = 0.0
        try:
            while True:
                now = time.monotonic()
                if now - last_message > self._registry.pull_idle_timeout:
                    raise self._fault(f"no progress for {self._registry.pull_idle_timeout:g} s", retryable=True)
                if now - started > self._registry.pull_timeout:
                    raise self._fault(f"not done after {self._registry.pull_timeout:g} s", retryable=True)
                _raise_if(cancelled)
                try:
                    message = self._messages.get(timeout=_LOOK_FOR_CANCEL_S)
                except queue.Empty:
                    continue
                if message is None:
                    return
                last_message = now
                self._check(message)
                if isinstance(message, dict) and now - last_shown >= _PROGRESS_EVERY_S:
                    last_shown = now
                    progress(_line(self._reference, message))
        finally:
            self._abandoned.set()

    def _read(self) -> None:
        try:
            stream = self._engine.streams.pull(
                *_split(self._reference), stream=True, decode=True, auth_config=self._credentials()
            )
            for message in stream:
                self._messages.put(message)
                if self._abandoned.is_set():
                    stream.close()
                    return
            self._messages.put(None)
        except Exception as error:  # noqa: BLE001 - handed to the thread that waits
            self._messages.put(error)

    def _credentials(self) -> dict[str, str] | None:
        if not self._registry.username:
            return None
        return {"username": self._registry.username, "password": self._registry.password.get_secret_value()}

    def _check(self, message: dict[str, Any] | Exception) -> None:
        if isinstance(message, Exception):
            with faults(ImagePullError, f"image {self._reference}"):
                raise message
        if "error" in message:
            # The engine reports what the registry said, with the status code where there was one.
            code = message.get("errorDetail", {}).get("code")
            refused = code in (
                requests.codes.unauthorized,
                requests.codes.forbidden,
                requests.codes.not_found,
            )
            raise self._fault(str(message["error"]), retryable=not refused)

    def _fault(self, reason: str, *, retryable: bool) -> ImagePullError:
        return ImagePullError(f"image {self._reference}: {reason}", retryable=retryable)


def _split(reference: str) -> tuple[str, str]:
    """Name and tag (or digest) as the pull call wants them; without a tag, the API would pull all of them."""
    if "@" in reference:
        name, _, digest = reference.partition("@")
        return name.rpartition(":")[0] if ":" in name.rpartition("/")[2] else name, digest
    name, colon, tag = reference.rpartition(":")
    return (name, tag) if colon and "/" not in tag else (reference, "latest")


def _line(reference: str, message: dict[str, Any]) -> str:
    parts = [message.get("id", ""), message.get("status", ""), message.get("progress", "")]
    return f"{reference}: " + " ".join(part for part in parts if part)


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
