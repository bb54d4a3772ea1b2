"""One container and its workspace: made, started and waiting at its gate; used for one job; destroyed."""

import logging
import os
import select
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from uuid import uuid4

from cronium_worker import metrics
from cronium_worker.engine.cgroups import CpuBurst
from cronium_worker.engine.client import ContainerState, Engine, EngineHistory
from cronium_worker.engine.device import block_device
from cronium_worker.engine.image_config import ImageConfig
from cronium_worker.engine.images import Pulled
from cronium_worker.engine.inventory import OwnContainer
from cronium_worker.engine.logs import AttachedStream, StoredLog
from cronium_worker.engine.network import require_network
from cronium_worker.engine.spec import SandboxSpec, changeable_limits, container_config
from cronium_worker.engine.stats import UsageReader
from cronium_worker.engine.wiring import Wiring
from cronium_worker.errors import ContainerCreateError, ContainerStartError, DaemonError, Fault
from cronium_worker.execution.admission import Admission
from cronium_worker.execution.diskwatch import DiskWatcher
from cronium_worker.models import Job, Network, Resources, ScriptType
from cronium_worker.settings import Settings
from cronium_worker.workspace import directories, staging
from cronium_worker.workspace.assignment import Assignment, assign
from cronium_worker.workspace.directories import Workspace
from cronium_worker.workspace.gate import Gate
from cronium_worker.workspace.staging import command_line, stage_job, stage_launcher
from cronium_worker.workspace.uids import free_uid

logger = logging.getLogger(__name__)

CLEANUP_TIMEOUT_S = 60
# What an interpreter that waits takes is less (measured: 4 and 16 MB). With a limit below it, the kernel refuses the
# limit or ends the interpreter.
_LEAST_MEMORY_BYTES: Mapping[ScriptType, int] = {"bash": 0, "python": 16 * 2**20, "node": 64 * 2**20}


@dataclass(frozen=True, kw_only=True)
class Host:
    """What all sandboxes of this worker share."""

    engine: Engine
    settings: Settings
    seccomp: str | None = None
    disk: DiskWatcher = field(default_factory=DiskWatcher)
    admission: Admission = field(default_factory=Admission)

    @cached_property
    def wiring(self) -> Wiring:
        return Wiring(self.engine, self.settings)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """What cannot be changed in a container that is there. `image_id`: what the image's name meant when it was made."""

    script_type: ScriptType
    image: str
    image_id: str
    image_config: ImageConfig
    network: str = "isolated"


def kind_of(job: Job, image: Pulled, defaults: Resources) -> Kind | None:
    """Of which kind a sandbox must be to be used for a job; None: the job needs one that is made for it. `job`: with
    the fleet's defaults, which are given here as well."""
    if job.resources.memory < min(_LEAST_MEMORY_BYTES[job.script.type], defaults.memory):
        return None
    network = job.network
    of_its_own = image.config.refused or network.dns or network.extra_hosts or network.mode not in ("isolated", "none")
    # The rates of disk I/O are fixed when a container is made.
    if of_its_own or job.resources.disk_io != defaults.disk_io:
        return None
    return Kind(
        script_type=job.script.type,
        image=image.image,
        image_id=image.id,
        image_config=image.config,
        network=network.mode,
    )


@dataclass(kw_only=True)
class Sandbox:
    """A container that waits at its gate, or that another worker has left on either side of it.

    `end` is readable when its first process is gone; None where the worker cannot see the host's processes.
    `left`: its state when it was taken over. `stream`: its output, attached or stored; None: not opened yet.
    `end_mark`: what both streams end with (workspace.staging).
    `resources`: what it was made with, of one that waits for a job. `started`: with an interpreter that waits as well.
    """

    host: Host
    workspace: Workspace
    gate: Gate
    end_mark: str
    container_id: str
    stream: AttachedStream | None
    usage: UsageReader
    end: int | None
    left: ContainerState | None = None
    resources: Resources | None = None
    started: bool = False
    burst: CpuBurst = field(default_factory=CpuBurst)
    _closed: bool = field(default=False, repr=False)

    @classmethod
    def create(cls, host: Host, *, job: Job, attempt: int, image: Pulled) -> "Sandbox":
        """Make, attach and start a container for an attempt. Raises Fault; then nothing is left that the janitor
        would not remove."""
        return cls._make(
            host,
            name=_name(job, attempt),
            script_type=job.script.type,
            image=image.image,
            image_id=image.id,
            image_config=image.config,
            resources=job.resources,
            network=job.network,
            labels={"cronium.job.id": job.id, "cronium.job.attempt": str(attempt)},
        )

    @classmethod
    def prepare(cls, host: Host, kind: Kind) -> "Sandbox":
        """Make one that waits for whatever job of its kind comes, with the fleet's default limits. Raises Fault; then
        nothing is left that the janitor would not remove."""
        resources = host.settings.defaults
        started = host.settings.pool.interpreters
        sandbox = cls._make(
            host,
            name=None,
            script_type=kind.script_type,
            image=kind.image,
            image_id=kind.image_id,
            image_config=kind.image_config,
            resources=resources,
            network=Network(mode=kind.network),
            labels={},
            arguments=command_line(kind.script_type) if started else (),
        )
        sandbox.resources = resources
        sandbox.started = started
        return sandbox

    @classmethod
    def _make(
        cls,
        host: Host,
        *,
        name: str | None,
        script_type: ScriptType,
        image: str,
        image_id: str,
        image_config: ImageConfig,
        resources: Resources,
        network: Network,
        labels: Mapping[str, str],
        arguments: tuple[str, ...] = (),
    ) -> "Sandbox":
        settings = host.settings
        if image_config.refused:
            raise ContainerCreateError(f"image {image}: {image_config.refused}", image=image)
        isolated_by = "none"
        if network.mode == "isolated":
            isolated_by = host.wiring.ensure()
        elif network.mode != "none":
            require_network(host.engine, network.mode)
        sandbox_id = uuid4().hex
        made: list[str] = []
        with ExitStack() as on_error:
            try:
                with metrics.sandbox_phase("workspace"):
                    workspace = _make_workspace(settings, sandbox_id, volumes=len(image_config.volumes))
                    on_error.push(partial(_take_back, host.engine, workspace, made))
                    end_mark = stage_launcher(workspace)
                    gate = Gate(workspace.control, end_mark)
                    on_error.callback(gate.close)
                    device = block_device(workspace.root)
                    uid, gid = workspace.owner()
            except OSError as error:
                reason = error.strerror or type(error).__name__
                raise ContainerCreateError(f"workspace: {reason}", retryable=True) from error
            spec = SandboxSpec(
                sandbox_id=sandbox_id,
                script_type=script_type,
                image=image_id,  # the very one that was looked at: its name may be another's by now
                image_config=image_config,
                workspace=workspace.root,
                user=f"{uid}:{gid}",
                resources=resources,
                network=network,
                isolated_by=isolated_by,
                device=device,
                seccomp=host.seccomp,
                job_labels=labels,
                arguments=arguments,
            )
            with metrics.sandbox_phase("create"):
                name = name or f"cronium.{sandbox_id}"
                container_id = host.engine.create(
                    name, container_config(spec, settings), otherwise=_otherwise(name, sandbox_id), image=image
                )
            made.append(container_id)
            with metrics.sandbox_phase("start"):
                stream = host.engine.attach(container_id)
                on_error.callback(stream.close)
                host.engine.start(container_id)
            pid = visible_pid(host.engine.state(container_id).pid, container_id)
            end = os.pidfd_open(pid) if pid else None
            if pid and network.mode == "isolated":
                host.wiring.connect(pid)
            usage = UsageReader(pid)
            burst = CpuBurst(pid)
            burst.set(resources.cpu)
            on_error.pop_all()
        return cls(
            host=host,
            workspace=workspace,
            gate=gate,
            end_mark=end_mark,
            container_id=container_id,
            stream=stream,
            usage=usage,
            burst=burst,
            end=end,
        )

    def waits(self) -> bool:
        """Whether one that was prepared can still be used: its launcher is there, and so is the stream."""
        watched = select.poll()
        for descriptor in (self.end, self.stream):
            if descriptor is not None:
                watched.register(descriptor, select.POLLIN)
        return not watched.poll(0)

    def assign(self, job: Job, *, attempt: int) -> None:
        """Make one that was prepared the job's own. Raises Fault."""
        try:
            assign(self.workspace, Assignment(job.id, attempt))
        except OSError as error:
            raise ContainerStartError(f"assignment: {error.strerror}", retryable=True) from error
        if job.resources != self.resources:
            self.burst.set(0)
            self.host.engine.update(self.container_id, changeable_limits(job.resources))
            self.burst.set(job.resources.cpu)

    def rename(self, job: Job, *, attempt: int) -> None:
        """Give one that was prepared the job's name, if it is still there: for people."""
        if self._closed:
            return
        try:
            name = _name(job, attempt)
            self.host.engine.rename(self.container_id, name, otherwise=_otherwise(name, self.workspace.root.name))
        except Fault as fault:
            logger.warning("container not renamed: %s", str(fault), extra={"container": self.container_id})

    def release(self, job: Job, *, attempt: int) -> None:
        """Write the job's files and open the gate: the script starts. Raises ContainerStartError."""
        try:
            uid, gid = self.workspace.owner()
            host = self.host.settings.host_name
            # Node.js sizes its heap at its start, by the memory limit that it finds.
            resized = self.resources is None or job.resources.memory != self.resources.memory
            started = self.started and not (resized and job.script.type == "node")
            stage_job(self.workspace, job, attempt=attempt, host=host, uid=uid, gid=gid, started=started)
        except OSError as error:
            raise ContainerStartError(f"staging: {error.strerror}", retryable=True) from error
        self.usage.begin()
        self.gate.open()

    @classmethod
    def take_over(cls, host: Host, container: OwnContainer) -> "Sandbox":
        """A container that a worker which is gone has left. Raises Fault; then nothing is left of it, unless the
        engine does not answer: a ContainerStartError when its script was not started, and will not be."""
        with ExitStack() as on_error:
            on_error.callback(destroy, host, container)
            state = host.engine.state(container.id)
            workspace = directories.named(host.settings.sandboxes_path, container.sandbox_id)
            try:
                end_mark = staging.end_mark(workspace)
                gate = Gate.left_by_another(workspace.control)
            except (OSError, ValueError) as error:
                raise DaemonError("the container's workspace is gone or damaged", retryable=True) from error
            on_error.callback(gate.close)
            if not gate.released:
                raise ContainerStartError("its worker was lost before the script started", retryable=True)
            if not gate.same_boot and not state.running:
                raise DaemonError("the host was started anew and ended the container", retryable=True)
            pid = visible_pid(state.pid, container.id)
            end = None
            with suppress(ProcessLookupError):  # it has just ended
                end = os.pidfd_open(pid) if pid else None
            on_error.pop_all()
            return cls(
                host=host,
                workspace=workspace,
                gate=gate,
                end_mark=end_mark,
                container_id=container.id,
                stream=None,
                usage=UsageReader(pid if end is not None else None),
                end=end,
                left=state,
            )

    def terminate(self) -> None:
        """SIGTERM to the first process: without the engine, which starts a program for each signal, where the worker
        sees the host's processes. Raises DaemonError."""
        if not self._send(signal.SIGTERM):
            self.host.engine.kill(self.container_id, "SIGTERM")

    def kill(self) -> None:
        """SIGKILL through the engine, which ends a paused container as well; without it where it does not answer and
        the worker sees the host's processes. Raises DaemonError."""
        try:
            self.host.engine.kill(self.container_id, "SIGKILL")
        except DaemonError:
            if not self._send(signal.SIGKILL):
                raise

    def _send(self, number: signal.Signals) -> bool:
        """Without the engine. False: the worker does not see the host's processes."""
        if self.end is None:
            return False
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self.end, number)
        return True

    def state(self) -> ContainerState:
        """The engine's word within seconds. Raises ContainerGone, DaemonError."""
        return self.host.engine.state(self.container_id, quick=True)

    def history(self) -> EngineHistory:
        """Raises DaemonError."""
        return self.host.engine.history(self.container_id)

    def wait(self, *, timeout_s: int) -> ContainerState:
        return self.host.engine.wait(self.container_id, timeout_s=timeout_s)

    def read_stored(self, *, follow: bool) -> StoredLog:
        """Read the stored log from its first byte from now on. Raises ContainerGone, DaemonError."""
        self._close_stream()
        self.stream = stored = self.host.engine.logs(self.container_id, follow=follow)
        return stored

    def _close_stream(self) -> None:
        if self.stream is not None:
            self.stream.close()
            self.stream = None

    def ran_s(self, end: ContainerState | None) -> float:
        """Seconds from the opened gate to the end, or to now, whichever workers were there."""
        ago_s = max(0.0, time.time() - end.finished_s) if end is not None else 0.0
        return max(0.0, self.gate.open_for_s() - ago_s)

    def leave(self) -> None:
        """Let go of a container whose script has started: the next worker takes it over. Idempotent."""
        if not self._closed:
            self._closed = True
            self._close_stream()
            self.usage.close()
            self.gate.close()
            if self.end is not None:
                os.close(self.end)

    def destroy(self) -> None:
        """Remove container and workspace, whatever happened; what cannot be removed is left to the janitor."""
        self.leave()
        with metrics.sandbox_phase("destroy"):
            self._take_away()

    def _take_away(self) -> None:
        try:
            self.host.engine.remove(self.container_id)
        except Fault as fault:
            # Its processes may still write: the workspace stays as well.
            logger.warning("container not removed: %s", str(fault), extra={"container": self.container_id})
            return
        try:
            directories.remove(self.workspace, deadline_s=CLEANUP_TIMEOUT_S)
        except OSError:
            logger.exception("workspace not removed", extra={"container": self.container_id})


def destroy(host: Host, container: OwnContainer) -> None:
    """Remove a container that a worker of this host has left, and its workspace; what cannot be removed is left to
    the janitor."""
    workspace = directories.named(host.settings.sandboxes_path, container.sandbox_id)
    try:
        host.engine.remove(container.id)
        directories.remove(workspace, deadline_s=CLEANUP_TIMEOUT_S)
    except (Fault, OSError) as error:
        logger.warning("left-over container not removed: %s", str(error), extra={"container": container.id})


def _name(job: Job, attempt: int) -> str:
    """For people: nothing is found or removed by its name. The dot is in no job's id."""
    return f"cronium-{job.id}" if attempt == 1 else f"cronium-{job.id}.{attempt}"


def _otherwise(name: str, sandbox_id: str) -> str:
    """Where another fleet, a stranger, or a predecessor that is being removed has the name."""
    return f"{name}.{sandbox_id[:12]}"


def _make_workspace(settings: Settings, sandbox_id: str, *, volumes: int) -> Workspace:
    """Raises OSError."""
    pool = settings.security.uids
    if pool is None:
        uid, gid = settings.container_uid_gid
        return directories.create(settings.sandboxes_path, sandbox_id, uid=uid, gid=gid, volumes=volumes)
    with free_uid(settings.base_path, pool) as uid:
        return directories.create(settings.sandboxes_path, sandbox_id, uid=uid, gid=uid, volumes=volumes)


def _take_back(
    engine: Engine, workspace: Workspace, made: Sequence[str], _: object, error: object, *_trace: object
) -> None:
    """Remove what there is of a sandbox whose making has failed: its container, if one was made, and its workspace.

    Where the engine may still have the container, the workspace stays: it is what the janitor knows the container by.
    An engine that was killed while it made one did not answer, and has it after its start.
    """
    is_gone = bool(made) or not isinstance(error, Fault) or error.details.get("answered") is not False
    try:
        for container_id in made:
            engine.remove(container_id)
    except Fault:
        is_gone = False
    if is_gone:
        directories.remove(workspace)


def visible_pid(pid: int, container_id: str) -> int | None:
    """The container's first process, if it is the same process for this worker as for the engine: not in a
    worker that runs in a container without the host's processes."""
    with suppress(OSError):
        if pid and container_id in Path(f"/proc/{pid}/cgroup").read_text():
            return pid
    return None
