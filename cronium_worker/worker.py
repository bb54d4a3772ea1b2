"""Starts a Celery worker node of ours: what it has beyond Celery is in `nodes`."""

import logging
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from celery.signals import after_setup_logger, after_setup_task_logger
from celery.worker import state as worker_state

from cronium_worker import __version__, journal, metrics, nodes
from cronium_worker.app import app
from cronium_worker.engine.client import Engine
from cronium_worker.engine.confinement import confinement
from cronium_worker.engine.firewall import Firewall
from cronium_worker.engine.network import ensure_network
from cronium_worker.errors import ConfigurationError
from cronium_worker.models.job import JOBS_NODE
from cronium_worker.preflight import check_redis
from cronium_worker.settings import Settings, get_settings
from cronium_worker.workspace.lock import lock_host

_LOCK_TIMEOUT_S = 5
# How long a thread that computes goes on while others wait to. With Python's own 5 ms, 50 answers that a thread waits
# for took 2.7 s beside four that compute; with this, 0.06 s.
_TURN_S = 0.0005


def serve(name: str, arguments: Sequence[str]) -> None:
    """Run a node in the foreground until it is told to stop. Raises ConfigurationError before it starts."""
    runs_jobs = name.startswith(f"{JOBS_NODE}@")
    _check_engine(runs_jobs=runs_jobs)
    check_redis(get_settings())
    if runs_jobs:
        _require_fence(get_settings())
        _be_the_only_one()
    _answer_prometheus(get_settings(), name)
    quiet = _log_as_json(get_settings(), name) if get_settings().log_format == "json" else []
    nodes.install(app)
    sys.setswitchinterval(_TURN_S)
    # Workspaces belong to the container's user: the worker is root by design. Celery's advice is for pickle.
    warnings.filterwarnings("ignore", message="You're running the worker with superuser privileges")
    # Without gossip: nothing of ours needs what nodes tell each other, and one event that is no JSON ended a node.
    app.worker_main([*quiet, "worker", "--hostname", name, "--loglevel", "INFO", "--without-gossip", *arguments])
    sys.exit(worker_state.should_stop or 0)  # which Celery keeps to itself


def _answer_prometheus(settings: Settings, name: str) -> None:
    """Raises ConfigurationError."""
    node, _, host = name.partition("@")
    metrics.node.info({"fleet": settings.fleet, "host": host, "node": node, "version": __version__})
    if settings.metrics.port:
        metrics.serve(settings.metrics.address, settings.metrics.port + (node != JOBS_NODE))


def _log_as_json(settings: Settings, name: str) -> list[str]:
    """Returns what Celery's command line needs for it."""
    formatter = journal.Formatter(host=settings.host_name, node=name.partition("@")[0])

    def use(logger: logging.Logger, **_: Any) -> None:
        for handler in logger.handlers:
            handler.setFormatter(formatter)

    after_setup_logger.connect(use, weak=False)
    after_setup_task_logger.connect(use, weak=False)
    sys.__stdout__ = None  # type: ignore[misc]  # where Celery says, past all loggers, that it is about to end
    return ["--quiet"]  # no banner


def _check_engine(*, runs_jobs: bool) -> None:
    """One clear line now rather than a traceback from inside Celery."""
    engine = Engine()
    try:
        confinement(engine, get_settings().security)
        if runs_jobs:
            nodes.capacity(engine, get_settings())
    finally:
        engine.close()


def _require_fence(settings: Settings) -> None:
    """Without `require` the node says loudly what is wrong, and runs jobs."""
    if settings.security.firewall != "require":
        return
    engine = Engine()
    try:
        ensure_network(engine, fleet=settings.fleet)
        Firewall(engine, settings.security, fleet=settings.fleet).ensure()
    except ConfigurationError as problem:
        raise ConfigurationError(f"CRONIUM_SECURITY__FIREWALL=require: {problem}") from None
    finally:
        engine.close()


def _be_the_only_one() -> None:
    """As long as this process lives: its descriptor is never closed. What the worker before has left may be adopted."""
    settings = get_settings()
    if lock_host(settings.sandboxes_path, timeout_s=_LOCK_TIMEOUT_S) is None:
        host = settings.host_name
        raise ConfigurationError(
            f"another worker runs the jobs of {host}, or hangs: end it, or set CRONIUM_HOST_NAME for this one"
        )
