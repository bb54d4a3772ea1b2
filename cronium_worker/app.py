"""The Celery application. Thin: the work is in `execution`, the configuration in `celeryconfig`."""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Protocol

from celery import Celery

from cronium_worker.fleet.store import Outcome
from cronium_worker.models import JobResult


class JobRunner(Protocol):
    """What a node that runs jobs can do (execution.runner): producers share this module, so it is not named."""

    def run(self, job_id: str) -> JobResult | Outcome: ...


class Housekeeper(Protocol):
    """What a node that serves a host's own queue can do (agent)."""

    def cleanup(self, *, run: str | None, dry_run: bool) -> None: ...

    def prepull(self, references: Sequence[str] | None, *, run: str | None) -> None: ...


class CroniumApp(Celery):
    """The application; `runner` is set in a node that runs jobs, `agent` in one that keeps its host in order;
    `beat_soon`, in both, tells the fleet of this node at once."""

    amqp_cls = "cronium_worker.routing:AMQP"
    runner: JobRunner | None = None
    agent: Housekeeper | None = None
    beat_soon: Callable[[], None] | None = None

    @cached_property
    def Beat(self) -> Any:  # noqa: N802 - Celery's name
        return self.subclass_with_self("cronium_worker.beat:Beat")

    @property
    def is_node(self) -> bool:
        """Whether this process takes the fleet's messages: what it sends on came in one."""
        return self.beat_soon is not None


# Not the current app: a web application that imports this has a Celery app of its own.
app: Any = CroniumApp(
    "cronium",
    set_as_current=False,
    config_source="cronium_worker.celeryconfig",
    include=["cronium_worker.tasks", "cronium_worker.housekeeping", "cronium_worker.canary"],
)
