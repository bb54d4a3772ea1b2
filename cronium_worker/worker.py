"""What a Celery worker node of ours has beyond Celery: the runner of jobs, and the ear for cancels."""

import warnings
from collections.abc import Sequence
from typing import Any

from celery import bootsteps
from celery.signals import worker_shutdown

from cronium_worker.app import app
from cronium_worker.engine.client import Engine
from cronium_worker.engine.network import ensure_network
from cronium_worker.errors import ConfigurationError
from cronium_worker.execution.runner import Runner
from cronium_worker.execution.sandbox import Host
from cronium_worker.fleet.cancels import CancelListener
from cronium_worker.fleet.store import JobStore, connect
from cronium_worker.models.job import AGENT_NODE
from cronium_worker.settings import Settings, get_settings

# A job that runs goes on while Redis is away: its worker tries again for about ten minutes.
_REDIS_RETRIES = 300


def serve(name: str, arguments: Sequence[str]) -> None:
    """Run a node in the foreground until it is told to stop. Raises ConfigurationError before it starts."""
    if not name.startswith(f"{AGENT_NODE}@"):
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


class JobsStep(bootsteps.StartStopStep):
    """Started before the node consumes, ended after its last job."""

    requires = ("celery.worker.components:Pool",)

    def __init__(self, worker: Any, **options: Any) -> None:
        super().__init__(worker, **options)
        self.enabled = not worker.hostname.startswith(f"{AGENT_NODE}@")
        self._listener: CancelListener | None = None
        self._host: Host | None = None

    def start(self, worker: Any) -> None:
        settings = get_settings()
        url = settings.redis_url.get_secret_value()
        store = JobStore(connect(url, retries=_REDIS_RETRIES), result_ttl_s=settings.result_ttl)
        self._host = make_host(settings)
        runner = Runner(self._host, store)
        self._listener = CancelListener(store, active=runner.active.ids, cancel=runner.active.cancel)
        self._listener.start()
        app.runner = runner
        # Not in stop(): that is called while the last jobs are still running.
        worker_shutdown.connect(self._shut_down, weak=False)

    def _shut_down(self, **_: Any) -> None:
        if self._listener is not None:
            self._listener.stop()
        if self._host is not None:
            self._host.engine.close()


app.steps["worker"].add(JobsStep)
