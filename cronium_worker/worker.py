"""What a Celery worker node of ours has beyond Celery: the runner of jobs or the host's agent, and their heartbeat."""

import os
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from celery import bootsteps
from celery.signals import worker_shutdown
from celery.worker.control import control_command

from cronium_worker import __version__
from cronium_worker.agent import Agent
from cronium_worker.app import app
from cronium_worker.engine.client import Engine
from cronium_worker.engine.images import ImageManager
from cronium_worker.engine.inventory import engine_facts
from cronium_worker.engine.network import ensure_network
from cronium_worker.errors import ConfigurationError
from cronium_worker.execution.runner import Runner
from cronium_worker.execution.sandbox import Host
from cronium_worker.fleet.cancels import CancelListener
from cronium_worker.fleet.heartbeat import Heartbeat
from cronium_worker.housekeeping import hosts, send
from cronium_worker.intake import Intake
from cronium_worker.janitor import Janitor
from cronium_worker.models.job import AGENT_NODE, JOBS_NODE
from cronium_worker.schedule import CLEANUP, PREPULL
from cronium_worker.settings import Settings, get_settings
from cronium_worker.tasks import make_store
from cronium_worker.workspace.space import room

# A job that runs goes on while Redis is away: its worker tries again for about ten minutes.
_REDIS_RETRIES = 300
# Beats in the time after which a silent node counts as gone; a lease is renewed with each.
_BEATS = 6
_SWEEP_FOR_ROOM_EVERY_S = 60


def serve(name: str, arguments: Sequence[str]) -> None:
    """Run a node in the foreground until it is told to stop. Raises ConfigurationError before it starts."""
    Engine().close()  # one clear line now rather than a traceback from inside Celery
    # Workspaces belong to the container's user: the worker is root by design. Celery's advice is for pickle.
    warnings.filterwarnings("ignore", message="You're running the worker with superuser privileges")
    app.worker_main(["worker", "--hostname", name, "--loglevel", "INFO", *arguments])


def make_host(settings: Settings) -> Host:
    """Connect to the engine and make this host fit for jobs. Raises ConfigurationError, NetworkError."""
    profile = settings.security.seccomp_profile
    try:
        seccomp = profile.read_text() if profile else None
    except OSError as error:
        raise ConfigurationError(f"CRONIUM_SECURITY__SECCOMP_PROFILE: {error.strerror}: {profile}") from None
    # Every slot may have a call and a stream under way.
    engine = Engine(connections=2 * settings.concurrency + 4)
    ensure_network(engine, fleet=settings.fleet)
    return Host(engine=engine, settings=settings, seccomp=seccomp)


class _Node(bootsteps.StartStopStep):
    """One kind of node: started before it consumes, ended after its last task."""

    abstract = True
    requires = ("celery.worker.components:Pool",)
    node: str

    def __init__(self, worker: Any, **options: Any) -> None:
        super().__init__(worker, **options)
        self.enabled = worker.hostname.startswith(f"{self.node}@")
        self._settings = get_settings()

    def start(self, worker: Any) -> None:
        self.set_up(worker)
        self.heartbeat = Heartbeat(self.beat, every_s=self._settings.lease_ttl / _BEATS)
        self.heartbeat.start()
        app.beat_soon = self.heartbeat.soon
        # Not in stop(): that is called while the last tasks are still running.
        worker_shutdown.connect(self._shut_down, weak=False)

    def _shut_down(self, **_: Any) -> None:
        self.heartbeat.stop()
        hosts().leave(self._settings.host_name, self.node)
        self.tear_down()

    def set_up(self, worker: Any) -> None:
        raise NotImplementedError

    def beat(self) -> None:
        raise NotImplementedError

    def tear_down(self) -> None:
        raise NotImplementedError


class JobsStep(_Node):
    """A node that runs jobs."""

    node = JOBS_NODE

    def set_up(self, worker: Any) -> None:
        store = make_store(retries=_REDIS_RETRIES)
        self._worker = worker
        self._queues = tuple(worker.app.amqp.queues.consume_from)
        self._host = make_host(self._settings)
        self._runner = Runner(self._host, store)
        self._listener = CancelListener(store, active=self._runner.active.ids, cancel=self._runner.active.cancel)
        self._intake = Intake(worker, self._queues)
        self._places = [self._settings.base_path, Path(engine_facts(self._host.engine)["root"])]
        self._swept_at = float("-inf")
        self._listener.start()
        app.runner = self._runner

    def beat(self) -> None:
        self._runner.renew_leases()
        rooms = [found for found in map(room, self._places) if found is not None]
        shortages = [found.shortage(min_free_bytes=self._settings.min_free_disk) for found in rooms]
        report = {
            "fleet": self._settings.fleet,
            "version": __version__,
            "pid": os.getpid(),
            "slots": self._worker.concurrency,
            "running": len(self._runner.active.ids()),
            "queues": self._queues,
            "taking_jobs": self._intake.is_open,
            "no_room": "; ".join(filter(None, shortages)),
            "free_bytes": {str(found.path): found.free_bytes for found in rooms},
        }
        drained = hosts().beat(self._settings.host_name, self.node, report)
        if self._intake.set(is_open=not drained and not report["no_room"]):
            self.heartbeat.soon()  # whoever has asked for it reads the next report
        if report["no_room"] and time.monotonic() - self._swept_at > _SWEEP_FOR_ROOM_EVERY_S:
            self._swept_at = time.monotonic()
            send(CLEANUP, self._settings.host_name)

    def tear_down(self) -> None:
        self._listener.stop()
        self._host.engine.close()


class AgentStep(_Node):
    """A node that keeps its host in order."""

    node = AGENT_NODE

    def set_up(self, worker: Any) -> None:
        self._engine = Engine()
        store = make_store()
        janitor = Janitor(self._engine, store, self._settings)
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


app.steps["worker"].add(JobsStep)
app.steps["worker"].add(AgentStep)
