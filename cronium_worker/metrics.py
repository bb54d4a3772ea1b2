"""What a node measures of itself, for Prometheus: each name, its labels, what it tells. Observing takes microseconds
and does no I/O. What the fleet's Redis knows is told by `web.metrics`.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import get_args

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Info,
    ProcessCollector,
    disable_created_metrics,
    start_http_server,
)

from cronium_worker.errors import ConfigurationError
from cronium_worker.models.job import ScriptType

registry = CollectorRegistry()
_counter = partial(Counter, registry=registry)
_gauge = partial(Gauge, registry=registry)
_histogram = partial(Histogram, registry=registry)
# From a job that finds all ready (milliseconds) to one that runs for hours.
_PHASE_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 7200)
_WAIT_BUCKETS = (0.1, 0.5, 1, 5, 10, 30, 60, 300, 600, 1800)
_NO_ERROR = ""

node = Info("cronium_node", "Which node this is.", registry=registry)

# ---- jobs

slots = _gauge("cronium_slots", "Jobs that this node runs at once, at most.")
jobs_active = _gauge("cronium_jobs_active", "Jobs that this node has, by status.", ["status"])
taking_jobs = _gauge("cronium_taking_jobs", "1 while this node takes jobs, 0 while it is drained, unfit or stopping.")
jobs_waiting = _gauge("cronium_jobs_waiting_for_room", "Jobs that wait for cores or memory of this host.")
_jobs_finished = _counter(
    "cronium_jobs_finished_total",
    "Jobs that this node has brought to their end; error_type is empty for completed ones.",
    ["status", "type", "error_type"],
)
for _type in get_args(ScriptType):  # so that the first one is an increase
    _jobs_finished.labels("completed", _type, _NO_ERROR)
    _jobs_finished.labels("failed", _type, "script")
_attempts_retried = _counter(
    "cronium_attempts_retried_total",
    "Attempts that ended with an error and are made again.",
    ["type", "error_type"],
)
_job_phase = _histogram(
    "cronium_job_phase_seconds",
    "Of each attempt: queue (for a worker and for room), of that admission (for room); setup, of that image and "
    "sandbox; run (the script); collect (outputs); total (from queued to recorded).",
    ["phase"],
    buckets=_PHASE_BUCKETS,
)
_PHASES = ("queue", "admission", "setup", "image", "sandbox", "run", "collect", "total")
_job_phases = {name: _job_phase.labels(name) for name in _PHASES}  # looking one up takes longer than observing

# ---- claims

claims_held = _gauge("cronium_claims_held", "Jobs whose leases this node renews.")
claims = _counter("cronium_claims_total", "Jobs taken from a queue, and adopted from the worker before.", ["how"])
claims_lost = _counter("cronium_claims_lost_total", "Jobs that were taken from this node: it was held for gone.")
lease_renewed = _gauge("cronium_lease_renewed_timestamp_seconds", "When leases were last renewed; seconds since 1970.")

# ---- sandboxes

_sandbox_phase = _histogram(
    "cronium_sandbox_phase_seconds",
    "Making a sandbox for a job or in advance: workspace, create, start; and destroy.",
    ["phase"],
    buckets=_PHASE_BUCKETS,
)
pool_sandboxes = _gauge("cronium_pool_sandboxes", "Sandboxes that wait for a job, and that are leaving.", ["state"])
pool_limit = _gauge("cronium_pool_limit", "Sandboxes that wait, at most.")
pool_jobs = _counter(
    "cronium_pool_jobs_total",
    "Jobs that found a sandbox (hit), that found none (miss), that need one made for them (own).",
    ["type", "outcome"],
)
pool_age = _histogram(
    "cronium_pool_age_seconds", "How long a sandbox had waited that a job got.", buckets=_WAIT_BUCKETS
)
pool_failures = _counter("cronium_pool_failures_total", "Sandboxes that could not be made in advance.")

# ---- images, logs

image_pull = _histogram(
    "cronium_image_pull_seconds",
    "Pulls of images from a registry, whatever came of them; those of many who wait are one.",
    buckets=_WAIT_BUCKETS,
)
_image_pull_failures = _counter(
    "cronium_image_pull_failures_total", "Pulls that brought no image, and why.", ["reason"]
)
log_bytes = _counter("cronium_log_bytes_total", "Bytes that scripts have printed.")
log_lines = _counter("cronium_log_lines_total", "Lines that scripts have printed.")
log_dropped = _counter("cronium_log_dropped_bytes_total", "Of them, bytes over the cap of a job's log.")

# ---- what a node needs

_redis_errors = _counter(
    "cronium_redis_errors_total", "Tries to reach Redis that failed; most are made again.", ["error"]
)
engine_errors = _counter(
    "cronium_engine_errors_total",
    "Calls to the Docker Engine without an answer (unanswered), with an error of its own (failed), or refused.",
    ["outcome"],
)
for _outcome in ("unanswered", "failed", "refused"):
    engine_errors.labels(_outcome)


def phases(timings: Mapping[str, float]) -> None:
    """Of an attempt that is over. `timings`: seconds by phase; a name may end with `_s`."""
    for name, seconds in timings.items():
        _job_phases[name.removesuffix("_s")].observe(seconds)


def finished(status: str, script_type: str, error_type: str | None) -> None:
    _jobs_finished.labels(status, script_type, error_type or _NO_ERROR).inc()


def retried(script_type: str, error_type: str | None) -> None:
    _attempts_retried.labels(script_type, error_type or _NO_ERROR).inc()


def sandbox_phase(name: str) -> AbstractContextManager[object]:
    """Measures its `with` block: workspace, create, start, destroy."""
    return _sandbox_phase.labels(name).time()


def pull_failed(reason: str) -> None:
    _image_pull_failures.labels(reason).inc()


def redis_error(error: Exception) -> None:
    _redis_errors.labels(type(error).__name__).inc()


def serve(address: str, port: int) -> None:
    """Answer Prometheus from now on, in a thread of its own, to the process's end. Raises ConfigurationError."""
    disable_created_metrics()  # type: ignore[no-untyped-call]
    ProcessCollector(registry=registry)
    try:
        start_http_server(port, address, registry)
    except OSError as error:
        where = f"{address}:{port}"
        raise ConfigurationError(f"CRONIUM_METRICS__PORT: cannot listen on {where}: {error.strerror}") from None
