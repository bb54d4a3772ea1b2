"""One pull for all who wait for it."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import requests
import urllib3
from docker import APIClient
from docker.errors import APIError, DockerException, ImageNotFound

from cronium_worker import metrics
from cronium_worker.engine.client import Engine, faults
from cronium_worker.engine.credentials import Credentials
from cronium_worker.engine.image_config import ImageConfig
from cronium_worker.engine.progress import PullProgress, Tally
from cronium_worker.engine.refusal import pull_error, refusal
from cronium_worker.errors import Cancelled, DaemonError, Fault
from cronium_worker.models.reference import repo_digest, split_reference
from cronium_worker.settings import Registry

_LOOK_FOR_CANCEL_S = 0.25
_PROGRESS_EVERY_S = 0.5
_DIGEST = "Digest: "


class Progress(Protocol):
    """Is told how a pull goes on: a line to read, and its parts (`image, layers, layers_done, bytes, bytes_total`)."""

    def __call__(self, message: str, **fields: Any) -> None: ...


@dataclass(frozen=True, kw_only=True)
class Pulled:
    """An image that is here now.

    `reference` is as it was asked for, `image` as the engine knows it; `digest` that of the manifest, None for an
    image that came from no registry. `pulled`: something changed. `replaced`: the id of the image that had this
    name before and has no tag any more; it is still here. `seconds`: how long that took. `config`: what it brings.
    """

    reference: str
    image: str
    id: str
    digest: str | None
    pulled: bool
    seconds: float
    config: ImageConfig
    replaced: str | None = None


def inspect(engine: Engine, reference: str) -> dict[str, Any] | None:
    """What the engine knows of an image; None if it is not here. Raises DaemonError.

    Asked anew each time: images are removed and retagged behind our back, and it takes a millisecond or two.
    """
    with faults(DaemonError, f"image inspect {reference}"), suppress(ImageNotFound):
        found: dict[str, Any] = engine.questions.inspect_image(reference)  # type: ignore[no-untyped-call]
        return found
    return None


class SharedPull:
    """A pull in a thread of its own, which many may wait for. It ends when it is done, when a limit is reached, or
    with `abandon()`: then the connection is dropped, and the engine stops pulling."""

    def __init__(self, engine: Engine, registry: Registry, image: str, credentials: Credentials) -> None:
        self.waiting = 0  # kept by the image manager
        self._engine = engine
        self._registry = registry
        self._image = image
        self._credentials = credentials
        self._line: _Line | None = None
        self._changed = threading.Condition()
        self._tally = Tally(image)
        self._outcome: Pulled | Fault | None = None
        self._started = self._last_progress = time.monotonic()

    @property
    def ended(self) -> bool:
        return self._outcome is not None

    def start(self) -> None:
        threading.Thread(target=self._run, name=f"pull {self._image}", daemon=True).start()

    def wait(self, cancelled: Callable[[], bool], progress: Progress) -> Pulled:
        """Raises Cancelled (the pull goes on for the others), and what ended the pull for all: ImagePullError,
        DaemonError."""
        shown: PullProgress | None = None
        next_at = 0.0
        while True:
            with self._changed:
                outcome, state = self._outcome, self._tally.progress()
            now = time.monotonic()
            if state != shown and now >= next_at:
                shown, next_at = state, now + _PROGRESS_EVERY_S
                progress(state.message, **state.fields)
            if outcome is not None:
                return _delivered(outcome)
            if cancelled():
                raise Cancelled("cancelled while its image was pulled")
            self._check_limits()
            with self._changed:
                self._changed.wait_for(lambda: self._outcome is not None, _LOOK_FOR_CANCEL_S)

    def abandon(self) -> None:
        """Idempotent; to be called when nobody waits any more."""
        self._end(Cancelled("nobody waits for this pull any more"))

    def _check_limits(self) -> None:
        now = time.monotonic()
        idle, total = self._registry.pull_idle_timeout, self._registry.pull_timeout
        if now - self._last_progress > idle:
            self._end(pull_error(self._image, f"no progress for {idle:g} s", "stalled", retryable=True))
        elif now - self._started > total:
            self._end(pull_error(self._image, f"not done after {total:g} s", "timeout", retryable=True))

    def _end(self, outcome: Pulled | Fault) -> None:
        with self._changed:
            if self._outcome is None:
                self._outcome = outcome
                self._measure(outcome)
            self._changed.notify_all()
            line = self._line
        if line is not None:
            line.drop()

    def _measure(self, outcome: Pulled | Fault) -> None:
        metrics.image_pull.observe(time.monotonic() - self._started)
        if isinstance(outcome, Fault):
            metrics.pull_failed(str(outcome.details.get("reason", outcome.type)))

    def _run(self) -> None:
        try:
            self._end(self._pull())
        except Fault as fault:
            self._end(fault)
        except APIError as error:
            self._end(refusal(self._image, str(error.explanation or error), error.status_code))
        except (requests.exceptions.RequestException, urllib3.exceptions.HTTPError, OSError):
            self._end(DaemonError(f"image {self._image}: the Docker Engine did not answer", retryable=True))
        except Exception as error:  # noqa: BLE001 - nobody else would hear of it
            # A credential helper, and whatever a connection that is dropped makes of the libraries below.
            kind = str(error) if isinstance(error, DockerException) else type(error).__name__
            self._end(pull_error(self._image, " ".join(kind.split()), "other", retryable=True))

    def _pull(self) -> Pulled:
        before = inspect(self._engine, self._image)
        digest = self._transfer()
        after = inspect(self._engine, self._image)
        if after is None:
            raise pull_error(self._image, "gone again right after its pull", "other", retryable=True)
        moved = before is not None and before["Id"] != after["Id"]
        old = inspect(self._engine, before["Id"]) if before is not None and moved else None
        return Pulled(
            reference=self._image,
            image=self._image,
            id=after["Id"],
            digest=digest or repo_digest(self._image, after["RepoDigests"] or []),
            pulled=before is None or moved,
            seconds=time.monotonic() - self._started,
            replaced=old["Id"] if old is not None and not old["RepoTags"] else None,
            config=ImageConfig.of(after),
        )

    def _transfer(self) -> str | None:
        """The digest, as the engine tells it at the end."""
        digest = None
        line = _Line(self._engine.own_client())
        try:
            with self._changed:
                self._line = line
                if self._outcome is not None:
                    raise Cancelled("nobody waits for this pull any more")
            for message in line.pull(self._image, self._credentials.resolve()):
                if "error" in message:
                    code = (message.get("errorDetail") or {}).get("code")
                    raise refusal(self._image, str(message["error"]), code)
                status = str(message.get("status", ""))
                digest = status.removeprefix(_DIGEST) if status.startswith(_DIGEST) else digest
                with self._changed:
                    if self._tally.take(message):
                        self._last_progress = time.monotonic()
        finally:
            line.close()
        return digest


def _delivered(outcome: Pulled | Fault) -> Pulled:
    """Each who waits gets an exception of their own: one that many threads raise collects all their tracebacks."""
    if isinstance(outcome, Pulled):
        return outcome
    raise type(outcome)(str(outcome), retryable=outcome.retryable, **outcome.details) from outcome


class _Line:
    """A connection to the engine for one pull, which can be dropped while the engine is silent.

    The engine answers nothing before the registry has, and the SDK hands out no socket before the engine has. So
    the socket is taken where the SDK's own adapters (docker.transport) make theirs: in the pool's `_new_conn`.
    """

    def __init__(self, client: APIClient) -> None:
        self._client = client
        self._socket: Any = None
        self._dropped = False
        self._lock = threading.Lock()
        adapter: Any = client.get_adapter(client.base_url)
        pool_for = adapter.get_connection_with_tls_context

        def watched_pool(*args: Any, **kwargs: Any) -> Any:
            pool = pool_for(*args, **kwargs)
            new_connection = pool._new_conn
            pool._new_conn = lambda: self._watched(new_connection())
            return pool

        adapter.get_connection_with_tls_context = watched_pool

    def _watched(self, connection: Any) -> Any:
        connect = connection.connect

        def connect_and_keep() -> None:
            connect()
            with self._lock:
                self._socket = connection.sock
                if self._dropped:
                    raise ConnectionAbortedError

        connection.connect = connect_and_keep
        return connection

    def pull(self, reference: str, credentials: dict[str, Any]) -> Iterator[dict[str, Any]]:
        name, version = split_reference(reference)
        messages: Iterator[dict[str, Any]] = self._client.pull(
            name, version, stream=True, decode=True, auth_config=credentials
        )
        return messages

    def drop(self) -> None:
        """From any thread: who reads from the connection has its end at once."""
        with self._lock:
            self._dropped = True
            if self._socket is not None:
                with suppress(OSError):
                    self._socket.shutdown(2)

    def close(self) -> None:
        with self._lock:
            self._socket = None
        self._client.close()
