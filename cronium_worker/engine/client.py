"""The calls to the Docker Engine that a container's life takes, with errors translated to typed faults."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, cast

import docker
import requests
from docker.errors import APIError, DockerException, NotFound
from docker.utils import kwargs_from_env

from cronium_worker.engine.logs import AttachedStream
from cronium_worker.errors import (
    ConfigurationError,
    ContainerCreateError,
    ContainerStartError,
    DaemonError,
    Fault,
    ImagePullError,
)

CALL_TIMEOUT_S = 60
_TRANSPORT_ERRORS = (requests.exceptions.RequestException, DockerException, OSError)


@contextmanager
def faults(kind: type[Fault], doing: str) -> Iterator[None]:
    """Turn the SDK's errors into faults: of `kind` when the engine refused (worth a retry if the error is its
    own, 5xx), DaemonError when it did not answer."""
    try:
        yield
    except APIError as error:
        status = error.status_code or 500
        reason = str(error.explanation or error)
        raise kind(f"{doing}: {reason}", retryable=status >= 500, status=status) from error
    except _TRANSPORT_ERRORS as error:
        raise DaemonError(f"{doing}: the Docker Engine did not answer", retryable=True) from error


@dataclass(frozen=True)
class ContainerState:
    """The engine's word on a container that is there."""

    running: bool
    pid: int
    exit_code: int
    oom_killed: bool
    error: str


class Engine:
    """One host's Docker Engine (DOCKER_HOST and its companions, else the default socket). Safe for threads.

    Raises ConfigurationError when there is no engine to talk to.
    """

    def __init__(self, *, connections: int = 16) -> None:
        arguments: dict[str, Any] = {**kwargs_from_env(), "version": "auto", "max_pool_size": connections}
        try:
            self.api = docker.APIClient(**arguments, timeout=CALL_TIMEOUT_S)
            # The SDK's default read timeout would end quiet streams.
            self._stream_arguments = {**arguments, "version": self.api.api_version, "timeout": None}
            self.streams = docker.APIClient(**self._stream_arguments)
        except _TRANSPORT_ERRORS as error:
            raise ConfigurationError(
                f"Docker Engine: cannot connect ({error}); start it, or set DOCKER_HOST"
            ) from error

    def own_client(self) -> docker.APIClient:
        """Another client like `streams`, whose connections nobody else uses. The caller closes it."""
        return docker.APIClient(**self._stream_arguments)

    def close(self) -> None:
        self.api.close()
        self.streams.close()

    def info(self) -> dict[str, Any]:
        with faults(DaemonError, "engine info"):
            return self.api.info()

    def create(self, name: str, config: dict[str, Any]) -> str:
        """Create a container from the API's own structure (engine.spec) and return its id.

        A container of this name is a leftover of the same attempt: it is removed first. Raises ImagePullError
        when the image is not there, ContainerCreateError, DaemonError.
        """
        with faults(ContainerCreateError, "container create"):
            try:
                return self._create(name, config)
            except NotFound as error:
                # The only thing that a create call can miss: removed since it was seen. The next attempt pulls it.
                raise ImagePullError(f"image {config['Image']}: gone from this host", retryable=True) from error
            except APIError as error:
                if error.status_code != requests.codes.conflict:
                    raise
                self.remove(name)
                return self._create(name, config)

    def _create(self, name: str, config: dict[str, Any]) -> str:
        created = self.api.create_container_from_config(config, name)  # type: ignore[no-untyped-call]
        return cast(str, created["Id"])

    def attach(self, container_id: str) -> AttachedStream:
        """The output of a container that has not started yet: from its first byte."""
        with faults(ContainerStartError, "container attach"):
            parameters = {"stdout": 1, "stderr": 1, "stream": 1}
            return AttachedStream(self.streams.attach_socket(container_id, params=parameters))

    def start(self, container_id: str) -> None:
        with faults(ContainerStartError, "container start"):
            self.api.start(container_id)

    def state(self, container_id: str) -> ContainerState:
        with faults(DaemonError, "container inspect"):
            state = self.api.inspect_container(container_id)["State"]
        return ContainerState(
            running=bool(state["Running"]),
            pid=state["Pid"],
            exit_code=state["ExitCode"],
            oom_killed=bool(state["OOMKilled"]),
            error=state.get("Error") or "",
        )

    def wait(self, container_id: str, *, timeout_s: int) -> ContainerState:
        """The state of a container whose processes have ended. Raises DaemonError when that takes too long."""
        with faults(DaemonError, "container wait"):
            self.api.wait(container_id, timeout=timeout_s)
        return self.state(container_id)

    def kill(self, container_id: str, signal: str) -> None:
        """Send a signal; a container that is not running any more is left alone."""
        with faults(DaemonError, f"container kill {signal}"):
            try:
                self.api.kill(container_id, signal)
            except APIError as error:
                if error.status_code not in (requests.codes.not_found, requests.codes.conflict):
                    raise

    def remove(self, container_id: str) -> None:
        """Kill and remove a container with its anonymous volumes. Idempotent: gone, or going, is success."""
        with faults(DaemonError, "container remove"):
            try:
                self.api.remove_container(container_id, v=True, force=True)
            except NotFound:
                pass
            except APIError as error:
                if error.status_code != requests.codes.conflict:
                    raise
                # Another caller's removal is in progress: wait for its end.
                with suppress(NotFound):
                    self.api.wait(container_id, condition="removed", timeout=CALL_TIMEOUT_S)
