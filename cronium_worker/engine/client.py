"""The calls to the Docker Engine that a container's life takes, with errors translated to typed faults."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

import docker
import requests
from docker.errors import APIError, DockerException, NotFound
from docker.utils import kwargs_from_env

from cronium_worker import metrics
from cronium_worker.engine.logs import AttachedStream, StoredLog
from cronium_worker.engine.short_calls import ShortCallClient
from cronium_worker.errors import (
    ConfigurationError,
    ContainerCreateError,
    ContainerGone,
    ContainerStartError,
    DaemonError,
    Fault,
    ImagePullError,
)

CALL_TIMEOUT_S = 60
# For what a running job cannot wait for: whoever watches it looks after its deadline and its cancel in between.
QUICK_TIMEOUT_S = 5
# Of the events that an engine keeps in memory (256), with room for those that come while it is asked.
_EVENTS_KEPT = 240
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
        metrics.engine_errors.labels("failed" if status >= 500 else "refused").inc()
        raise kind(f"{doing}: {reason}", retryable=status >= 500, status=status) from error
    except _TRANSPORT_ERRORS as error:
        metrics.engine_errors.labels("unanswered").inc()
        raise DaemonError(f"{doing}: the Docker Engine did not answer", retryable=True, answered=False) from error


def _components(api: docker.APIClient) -> dict[str, str]:
    version = api.version(api_version=False)
    return {part["Name"]: part["Version"] for part in version.get("Components") or ()}


@dataclass(frozen=True)
class ContainerState:
    """The engine's word on a container that is there. `finished_s`: seconds since the epoch, by the clock of the
    engine's host. `exact_log`: the stored log has the bytes as they were written; json-file has U+FFFD for what is
    not UTF-8."""

    running: bool
    pid: int
    exit_code: int
    oom_killed: bool
    error: str
    finished_s: float
    exact_log: bool


def ended_with(exit_code: int) -> ContainerState:
    """What the engine will say of a container whose script has ended with this exit code, as its worker has seen."""
    return ContainerState(
        running=False, pid=0, exit_code=exit_code, oom_killed=False, error="", finished_s=0, exact_log=True
    )


@dataclass(frozen=True)
class EngineHistory:
    """`restarted`: this engine's process is not the one that started the container; None: too long ago to tell.
    `live_restore`: containers run on while the engine is away."""

    restarted: bool | None
    live_restore: bool


class Engine:
    """One host's Docker Engine (DOCKER_HOST and its companions, else the default socket). Safe for threads.

    Raises ConfigurationError when there is no engine to talk to, or when it is Podman, whose networks are others.
    """

    def __init__(self, *, connections: int = 16) -> None:
        arguments: dict[str, Any] = {**kwargs_from_env(), "version": "auto", "max_pool_size": connections}
        try:
            self.api = ShortCallClient(**arguments, timeout=CALL_TIMEOUT_S, keep_connections=False)
            arguments["version"] = self.api.api_version
            # The SDK's default read timeout would end quiet streams.
            self._stream_arguments = {**arguments, "timeout": None}
            self.streams = docker.APIClient(**self._stream_arguments)
            self._quick = ShortCallClient(**arguments, timeout=QUICK_TIMEOUT_S, keep_connections=False)
            # For questions of which no container's fate hangs: an engine that is about to end, and ends all containers
            # before, takes no new connections, but answers on those that it has.
            self.questions = ShortCallClient(**arguments, timeout=CALL_TIMEOUT_S, keep_connections=True)
            podman = _components(self.api).get("Podman Engine")
        except _TRANSPORT_ERRORS as error:
            raise ConfigurationError(
                f"Docker Engine: cannot connect ({error}); start it, or set DOCKER_HOST"
            ) from error
        if podman is not None:
            self.close()
            raise ConfigurationError(f"Docker Engine: this is Podman {podman}; set DOCKER_HOST to a Docker Engine")

    def own_client(self) -> docker.APIClient:
        """Another client like `streams`, whose connections nobody else uses. The caller closes it."""
        return docker.APIClient(**self._stream_arguments)

    def close(self) -> None:
        self.api.close()
        self.streams.close()
        self._quick.close()
        self.questions.close()

    @property
    def socket_path(self) -> str | None:
        """None: the engine is reached by TCP."""
        return getattr(self.api.get_adapter(self.api.base_url), "socket_path", None)

    def answers(self) -> bool:
        """Within 5 s. Not a ping: an engine whose networks are locked for good (before 23.0 two containers that end at
        once can do that, moby issue 46661) answers pings and lists, and starts and ends no container."""
        try:
            self._quick.inspect_network("none")
        except _TRANSPORT_ERRORS:
            metrics.engine_errors.labels("unanswered").inc()
            return False
        return True

    def info(self) -> dict[str, Any]:
        with faults(DaemonError, "engine info"):
            return self.api.info()

    def components(self) -> dict[str, str]:
        """Versions by name: Engine, containerd, runc. Raises DaemonError."""
        with faults(DaemonError, "engine version"):
            return _components(self.api)

    @property
    def address(self) -> tuple[str, bool]:
        """Of an engine that is reached by TCP; and whether its certificate is verified."""
        return self.api.base_url, self.api.base_url.startswith("https://") and bool(self.api.verify)

    def create(self, name: str, config: dict[str, Any], *, otherwise: str, image: str) -> str:
        """Create a container from the API's own structure (engine.spec) and return its id.

        A container that has the name already is somebody else's, whoever that is, and left alone: the new one is named
        `otherwise`. Raises ImagePullError when the image (by its name for people) is not there, ContainerCreateError,
        DaemonError.
        """
        with faults(ContainerCreateError, "container create"):
            try:
                return self._create(name, otherwise, config)
            except NotFound as error:
                # The only thing that a create call can miss: removed since it was seen. The next attempt pulls it.
                raise ImagePullError(f"image {image}: gone from this host", retryable=True) from error
            except APIError:
                self._check_runtime(config)
                raise

    def _check_runtime(self, config: dict[str, Any]) -> None:
        """The engine calls a runtime that it does not have a bad request: another host may have it."""
        runtime = config["HostConfig"].get("Runtime")
        if runtime and runtime not in self.info()["Runtimes"]:
            raise ContainerCreateError(f"the runtime {runtime} is not installed on this host", retryable=True)

    def _create(self, name: str, otherwise: str, config: dict[str, Any]) -> str:
        try:
            created = self.api.create_container_from_config(config, name)  # type: ignore[no-untyped-call]
        except APIError as error:
            if error.status_code != requests.codes.conflict:
                raise
            created = self.api.create_container_from_config(config, otherwise)  # type: ignore[no-untyped-call]
        return cast(str, created["Id"])

    def update(self, container_id: str, limits: Mapping[str, Any]) -> None:
        """Give a container other limits (engine.spec). Raises ContainerCreateError, DaemonError."""
        api: Any = self.api  # whose own call does not know of pids
        with faults(ContainerCreateError, "container update"):
            api._raise_for_status(api._post_json(api._url("/containers/{0}/update", container_id), data=dict(limits)))

    def rename(self, container_id: str, name: str, *, otherwise: str) -> None:
        """Rename a container, to `otherwise` if another one has the name. One that is gone is left alone. Raises
        DaemonError."""
        with faults(DaemonError, "container rename"), suppress(NotFound):
            try:
                self.api.rename(container_id, name)
            except APIError as error:
                if error.status_code != requests.codes.conflict:
                    raise
                self.api.rename(container_id, otherwise)

    def attach(self, container_id: str) -> AttachedStream:
        """The output of a container that has not started yet: from its first byte."""
        with faults(ContainerStartError, "container attach"):
            parameters = {"stdout": 1, "stderr": 1, "stream": 1}
            return AttachedStream(self.streams.attach_socket(container_id, params=parameters))

    def start(self, container_id: str) -> None:
        with faults(ContainerStartError, "container start"):
            self.api.start(container_id)

    def logs(self, container_id: str, *, follow: bool) -> StoredLog:
        """The stored output from its first byte; with `follow` on to the container's end. Raises ContainerGone,
        and DaemonError when the engine cannot read it."""
        url = f"{self.streams.base_url}/v{self.streams.api_version}/containers/{container_id}/logs"
        parameters = {"stdout": 1, "stderr": 1, "follow": int(follow)}
        with faults(DaemonError, "container logs"):
            response = self.streams.get(url, params=parameters, stream=True, timeout=QUICK_TIMEOUT_S)
            if response.ok:
                # From here on, silence means that the script is silent.
                connection: Any = response.raw.connection
                connection.sock.settimeout(None)
                return StoredLog(response)
            response.close()
        if response.status_code == requests.codes.not_found:
            raise ContainerGone("the container was removed", retryable=True)
        raise DaemonError("the engine cannot read the stored log", retryable=True, status=response.status_code)

    def state(self, container_id: str, *, quick: bool = False) -> ContainerState:
        """Raises ContainerGone, also when the removal has only begun, and DaemonError; with `quick` after 5 s."""
        with faults(DaemonError, "container inspect"):
            try:
                found = (self._quick if quick else self.api).inspect_container(container_id)
            except NotFound as error:
                raise ContainerGone("the container was removed", retryable=True) from error
        state = found["State"]
        # A forced removal is under way before it kills: the exit code is not the script's.
        if state["Status"] in ("removing", "dead"):
            raise ContainerGone("the container was removed", retryable=True)
        return ContainerState(
            running=bool(state["Running"]),
            pid=state["Pid"],
            exit_code=state["ExitCode"],
            oom_killed=bool(state["OOMKilled"]),
            error=state.get("Error") or "",
            finished_s=datetime.fromisoformat(state["FinishedAt"]).timestamp(),
            exact_log=found["HostConfig"]["LogConfig"]["Type"] == "local",
        )

    def wait(self, container_id: str, *, timeout_s: int) -> ContainerState:
        """The state of a container whose processes have ended. Raises ContainerGone, and DaemonError when that
        takes too long."""
        with faults(DaemonError, "container wait"):
            try:
                self.api.wait(container_id, timeout=timeout_s)
            except NotFound as error:
                raise ContainerGone("the container was removed", retryable=True) from error
        return self.state(container_id)

    def history(self, container_id: str) -> EngineHistory:
        """Whether the engine has been the same process since it started the container. Raises DaemonError.

        The engine does not tell when it was started, but it remembers its last 256 events, in memory alone: as
        long as they are not full, a start that is not among them was another process's.
        """
        with faults(DaemonError, "engine history"):
            info = self._quick.info()
            # With an end in the past the answer is what is remembered, and no stream. The SDK's own types know of
            # whole seconds only.
            until: Any = f"{datetime.fromisoformat(info['SystemTime']).timestamp():.6f}"
            events = list(self._quick.events(since=0, until=until, decode=True))
        starts = {event["id"] for event in events if event.get("status") == "start"}
        forgotten = None if len(events) >= _EVENTS_KEPT else True
        return EngineHistory(
            restarted=False if container_id in starts else forgotten,
            live_restore=bool(info["LiveRestoreEnabled"]),
        )

    def kill(self, container_id: str, signal: str) -> None:
        """Send a signal, to a paused container as well; one that is not running any more is left alone. Raises
        DaemonError, after 5 s."""
        with faults(DaemonError, f"container kill {signal}"):
            try:
                self._quick.kill(container_id, signal)
            except APIError as error:
                if error.status_code not in (requests.codes.not_found, requests.codes.conflict):
                    raise

    def remove(self, container_id: str) -> None:
        """Kill and remove a container with its anonymous volumes. Idempotent: gone, or going, is success."""
        with faults(DaemonError, "container remove"), suppress(NotFound):
            try:
                self.api.remove_container(container_id, v=True, force=True)
            except APIError as error:
                if "is not running" in str(error.explanation):
                    # It has ended between the engine's look at it and its kill: a failure (500) to the engine.
                    self.api.remove_container(container_id, v=True, force=True)
                elif error.status_code == requests.codes.conflict:
                    # Another caller's removal is in progress: wait for its end.
                    self.api.wait(container_id, condition="removed", timeout=CALL_TIMEOUT_S)
                else:
                    raise
