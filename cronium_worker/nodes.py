"""The two kinds of nodes of a host, as Celery boot steps: one runs jobs, the other keeps the host in order."""

import gc
import logging
import os
import threading
import time
from abc import ABCMeta, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

from celery import bootsteps
from celery.signals import worker_ready, worker_shutdown
from celery.worker.control import control_command
from kombu.exceptions import KombuError, OperationalError
from redis.exceptions import RedisError

from cronium_worker import __version__, metrics
from cronium_worker.agent import Agent
from cronium_worker.app import app
from cronium_worker.beat_schedule import CLEANUP, PREPULL
from cronium_worker.engine.cgroups import CpuBurst
from cronium_worker.engine.client import Engine
from cronium_worker.engine.confinement import confinement
from cronium_worker.engine.firewall import Firewall
from cronium_worker.engine.images import ImageManager
from cronium_worker.engine.inventory import engine_facts, in_use, own_containers
from cronium_worker.errors import ConfigurationError
from cronium_worker.execution.admission import Admission, Share
from cronium_worker.execution.runner import Runner
from cronium_worker.execution.sandbox import CLEANUP_TIMEOUT_S, Host
from cronium_worker.fleet.cancels import CancelListener
from cronium_worker.fleet.heartbeat import Heartbeat
from cronium_worker.fleet.keys import BOOKKEEPING
from cronium_worker.fleet.oversight import Oversight
from cronium_worker.housekeeping import broken_keys, hosts, send, waiting_messages
from cronium_worker.intake import Intake
from cronium_worker.janitor import Janitor
from cronium_worker.models.formats import FORMAT
from cronium_worker.models.job import AGENT_NODE, JOBS_NODE
from cronium_worker.settings import Settings, get_settings
from cronium_worker.stopping import Drain
from cronium_worker.tasks import execute_job, make_store
from cronium_worker.watchdog import Watchdog
from cronium_worker.workspace import directories
from cronium_worker.workspace.assignment import evidence
from cronium_worker.workspace.space import room

logger = logging.getLogger(__name__)

# A job that runs goes on while Redis is away: its worker tries again for about ten minutes.
_REDIS_RETRIES = 300
# Beats in the time after which a silent node counts as gone, and renewals of a lease.
_BEATS = 6
_SWEEP_FOR_ROOM_EVERY_S = 60
_FOR_JOBS = 0.9  # of the host's memory: the engine, the worker and the kernel need some


def install(celery: Any) -> None:
    """Let the workers of this process have our boot steps."""
    celery.steps["worker"].update({JobsStep, AgentStep})


def make_host(settings: Settings) -> Host:
    """Connect to the engine and make this host fit for jobs. Raises ConfigurationError, NetworkError."""
    # Every slot may have a call and a stream under way, and who waits has a stream.
    engine = Engine(connections=2 * settings.concurrency + settings.pool.size + 4)
    seccomp = confinement(engine, settings.security)
    if seccomp is None and settings.security.seccomp_profile is None:
        logger.warning("jobs have the engine's own seccomp profile: `cronium doctor` says why not Cronium's")
    host = Host(engine=engine, settings=settings, seccomp=seccomp, admission=Admission(capacity(engine, settings)))
    host.wiring.ensure()
    return host


def capacity(engine: Engine, settings: Settings) -> Share:
    """What this host has for jobs. Raises ConfigurationError when that is less than a job has by default."""
    facts, factors = engine_facts(engine), settings.capacity
    whole = Share(
        millicores=int(1000 * facts["cores"] * factors.cpu_overcommit),
        memory=int(_FOR_JOBS * facts["memory_bytes"] * factors.memory_overcommit),
    )
    if excess := Admission(whole).excess(Share.of(settings.defaults)):
        raise ConfigurationError(f"{excess}: lower CRONIUM_DEFAULTS__*, or raise CRONIUM_CAPACITY__*_OVERCOMMIT")
    return whole


class _NodeType(type(bootsteps.StartStopStep), ABCMeta):  # type: ignore[misc]
    """Celery's boot steps have a metaclass of their own."""


class _Node(bootsteps.StartStopStep, metaclass=_NodeType):
    """One kind of node: started before it consumes, ended after its last task."""

    abstract = True
    requires = ("celery.worker.components:Pool",)
    node: str

    def __init__(self, worker: Any, **options: Any) -> None:
        super().__init__(worker, **options)
        self.enabled = worker.hostname.startswith(f"{self.node}@")
        self._settings = get_settings()

    def start(self, worker: Any) -> None:
        self.heartbeat = Heartbeat(self.beat, every_s=self._settings.lease_ttl / _BEATS)
        self.set_up(worker)
        self.heartbeat.start()
        app.beat_soon = self.heartbeat.soon
        worker_ready.connect(self._ready, weak=False)
        # Not in stop(): that is called while the last tasks are still running.
        worker_shutdown.connect(self._shut_down, weak=False)

    def _ready(self, **_: Any) -> None:
        # What there is by now stays: to look through it for garbage, no thread would run for 50 to 100 ms.
        gc.collect()
        gc.freeze()
        self.ready()

    def _shut_down(self, **_: Any) -> None:
        self.heartbeat.stop()
        hosts().leave(self._settings.host_name, self.node)
        self.tear_down()

    @abstractmethod
    def set_up(self, worker: Any) -> None:
        """Before the node consumes."""

    @abstractmethod
    def beat(self) -> None:
        """Tell the fleet of the node."""

    def ready(self) -> None:
        """Celery has installed its signal handlers."""

    @abstractmethod
    def tear_down(self) -> None:
        """After the node's last task."""


class JobsStep(_Node):
    """A node that runs jobs."""

    node = JOBS_NODE

    def set_up(self, worker: Any) -> None:
        settings = self._settings
        store = make_store(retries=_REDIS_RETRIES, on_error=metrics.redis_error)
        self._worker = worker
        self._queues = tuple(worker.app.amqp.queues.consume_from)
        self._host = make_host(settings)
        self._firewall = Firewall(self._host.engine, settings.security, fleet=settings.fleet)
        self._firewall.keep()
        self._places = [settings.base_path, Path(engine_facts(self._host.engine)["root"])]
        self._node_id = uuid4().hex
        self._runner = Runner(
            self._host, store, node=self._node_id, send=_send_again, on_engine_away=self.heartbeat.soon
        )
        self._oversight = Oversight(make_store(on_error=metrics.redis_error))
        self._listener = CancelListener(store, active=self._runner.active.ids, cancel=self._runner.active.cancel)
        self._intake = Intake(worker, self._queues)
        self._host.admission.on_crowded = self._intake.crowded
        self._stopping = False
        self._drain = Drain(
            worker, self._runner.active, timeout_s=settings.drain_timeout, close_intake=self._close_intake
        )
        self._watchdog = Watchdog(self._messages, patience_s=2 * settings.lease_ttl)
        self._swept_at = float("-inf")
        # Apart from the beat, which asks the engine and the broker as well: a lease must not wait for those.
        self._leases = Heartbeat(self._runner.renew_leases, every_s=settings.lease_ttl / _BEATS)
        self._listener.start()
        self._adopt()
        self._leases.start()
        self._runner.start()
        app.runner = self._runner
        self._show()

    def _show(self) -> None:
        """What is true at the moment is asked when Prometheus does."""
        runner, admission = self._runner, self._host.admission

        def having(status: str) -> int:
            return sum(count for (each, _), count in runner.standing().items() if each == status)

        metrics.slots.set_function(lambda: self._worker.concurrency)
        metrics.taking_jobs.set_function(lambda: self._intake.takes)
        metrics.jobs_waiting.set_function(lambda: admission.waiting)
        metrics.claims_held.set_function(lambda: sum(runner.standing().values()))
        for status in ("preparing", "running"):
            metrics.jobs_active.labels(status).set_function(partial(having, status))
        metrics.pool_limit.set(self._settings.pool.size)
        metrics.pool_sandboxes.labels("waiting").set_function(lambda: runner.pool_count().waiting)
        metrics.pool_sandboxes.labels("leaving").set_function(lambda: runner.pool_count().leaving)

    def _adopt(self) -> None:
        """What the worker before has left goes on. Before the first beat tells of this process: from then on the
        jobs of the one before are anybody's."""
        settings = self._settings
        made = [workspace for workspace, _ in directories.existing(settings.sandboxes_path)]
        used = in_use(self._host.engine, [workspace.root for workspace in made])
        left = [workspace for workspace in made if workspace.root not in used]
        threading.Thread(target=_remove, args=(left,), name="left-over workspaces", daemon=True).start()
        for container in own_containers(
            self._host.engine,
            fleet=settings.fleet,
            host=settings.host_name,
            evidence=partial(evidence, settings.sandboxes_path),
        ):
            try:
                self._runner.adopt(container)
            except Exception:  # one that cannot be adopted must not keep the host from its work
                logger.exception("not adopted", extra={"container": container.name})

    def ready(self) -> None:
        self._drain.handle_signals()

    def _close_intake(self) -> None:
        self._stopping = True
        self._intake.set(is_open=False)
        self.heartbeat.soon()

    def _messages(self) -> int:
        try:
            if any(each.key in BOOKKEEPING for each in broken_keys(())):
                return 0  # then nobody can be taking any
            return sum(map(waiting_messages, self._queues))
        except (OperationalError, KombuError, RedisError):
            return 0

    def beat(self) -> None:
        rooms = [found for found in map(room, self._places) if found is not None]
        shortage = "; ".join(filter(None, (r.shortage(min_free_bytes=self._settings.min_free_disk) for r in rooms)))
        # Its slots would be free and its jobs fail, one after the other.
        engine = "" if self._host.engine.answers() else "the Docker Engine does not answer"
        # Others on the host may take network and rules away. While the engine is away there is nothing to ask.
        if not engine:
            self._host.wiring.keep()
        problem = "" if engine else self._firewall.keep()
        unfenced = problem if self._settings.security.firewall == "require" else ""
        running = len(self._runner.active.ids())
        report = {
            "fleet": self._settings.fleet,
            "version": __version__,
            "formats": {"job": FORMAT},
            "node": self._node_id,
            "pid": os.getpid(),
            "slots": self._worker.concurrency,
            "running": running,
            "jobs": _by_status(self._runner.standing()),
            "capacity": _capacity(self._host.admission),
            "pool": asdict(self._runner.pool_count()),
            "queues": self._queues,
            "taking_jobs": self._intake.is_open,
            "stopping": self._stopping,
            "unfit": engine or shortage or unfenced,
            "lacks": [f"CPU burst: {CpuBurst.refused}"] if CpuBurst.refused else [],
            "free_bytes": {str(found.path): found.free_bytes for found in rooms},
        }
        drained = hosts().beat(self._settings.host_name, self.node, report)
        if self._intake.set(is_open=not (drained or report["unfit"] or self._stopping)):
            self.heartbeat.soon()  # whoever has asked for it reads the next report
        if shortage and time.monotonic() - self._swept_at > _SWEEP_FOR_ROOM_EVERY_S:
            self._swept_at = time.monotonic()
            send(CLEANUP, self._settings.host_name)
        self._oversight.note_taken(self._runner.newest_taken())
        free = self._intake.takes and running < self._worker.concurrency
        if self._watchdog.starves(free=free, taken=self._runner.taken):
            logger.critical("jobs are waiting and this node takes none: it ends, to be started again")
            self._drain.give_up()

    def tear_down(self) -> None:
        self._runner.close()
        self._leases.stop()
        self._listener.stop()
        self._host.engine.close()


def _capacity(admission: Admission) -> dict[str, Any]:
    """What jobs may have of this host, what they have, and how many wait for some of it."""
    whole = admission.whole._asdict() if admission.whole else None
    return {"whole": whole, "reserved": admission.reserved._asdict(), "waiting": admission.waiting}


def _by_status(standing: Mapping[tuple[str, str], int]) -> dict[str, dict[str, int]]:
    """{status: {type: how many}}"""
    return {
        wanted: {kind: count for (status, kind), count in standing.items() if status == wanted}
        for wanted in ("preparing", "running")
    }


def _remove(workspaces: list[directories.Workspace]) -> None:
    """Those whose container is gone already: as a worker is killed while it destroys a sandbox."""
    for workspace in workspaces:
        try:
            directories.remove(workspace, deadline_s=CLEANUP_TIMEOUT_S)
        except OSError:
            logger.exception("workspace not removed")  # the janitor tries again


def _send_again(job_id: str) -> None:
    try:
        execute_job.send_again(job_id)
    except Exception:
        logger.exception("message not sent", extra={"job_id": job_id})  # recovery does it later


class AgentStep(_Node):
    """A node that keeps its host in order."""

    node = AGENT_NODE

    def set_up(self, worker: Any) -> None:
        self._engine = Engine()
        janitor = Janitor(self._engine, make_store(on_error=metrics.redis_error), self._settings)
        images = ImageManager(self._engine, self._settings.registry)
        self._agent = Agent(self._engine, images, janitor, hosts(), self._settings)
        app.agent = self._agent
        send(PREPULL, self._settings.host_name)  # a host that joins need not wait for the next turn

    def beat(self) -> None:
        self._agent.beat()

    def tear_down(self) -> None:
        self._engine.close()


@control_command()
def beat(state: Any) -> dict[str, str]:
    """Beat now: what the registry says of this host has changed."""
    app.beat_soon()
    return {"ok": "beating"}
