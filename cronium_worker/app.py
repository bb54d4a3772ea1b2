"""The Celery application. Thin: the work is in `execution`, the configuration in `celeryconfig`."""

from typing import Any, Protocol

from celery import Celery

from cronium_worker.fleet.store import Outcome
from cronium_worker.models import JobResult


class JobRunner(Protocol):
    """What a node that runs jobs can do (execution.runner): producers share this module, so it is not named."""

    def run(self, job_id: str) -> JobResult | Outcome: ...


class CroniumApp(Celery):
    """The application; `runner` is set in a node that runs jobs."""

    runner: JobRunner | None = None


# Not the current app: a web application that imports this has a Celery app of its own.
app: Any = CroniumApp(
    "cronium",
    set_as_current=False,
    config_source="cronium_worker.celeryconfig",
    include=["cronium_worker.tasks"],
)
