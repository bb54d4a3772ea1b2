"""Runs people's scripts (Bash, Python, Node.js), each alone in a locked-down Docker container, on a fleet of hosts.

    from cronium_worker import Job, Script, execute_job, follow

    async_result = execute_job.delay(Job(script=Script(type="bash", content="echo hello")))
    for event in follow(async_result.id):
        ...

Importing this package and enqueueing need no Docker and no root.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cronium_worker.client import cancel, follow, rerun, result, submit
    from cronium_worker.errors import JobConflict, JobFailed, JobNotFound
    from cronium_worker.models import Job, JobResult, Network, Resources, Retry, Script
    from cronium_worker.tasks import execute_job

__version__ = "0.1.0"
__all__ = [
    "Job",
    "JobConflict",
    "JobFailed",
    "JobNotFound",
    "JobResult",
    "Network",
    "Resources",
    "Retry",
    "Script",
    "cancel",
    "execute_job",
    "follow",
    "rerun",
    "result",
    "submit",
]

_HOMES = {
    "cronium_worker.client": ("cancel", "follow", "rerun", "result", "submit"),
    "cronium_worker.errors": ("JobConflict", "JobFailed", "JobNotFound"),
    "cronium_worker.models": ("Job", "JobResult", "Network", "Resources", "Retry", "Script"),
    "cronium_worker.tasks": ("execute_job",),
}


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def __getattr__(name: str) -> Any:
    # On demand (PEP 562): a program that only needs the models does not load Celery.
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(module), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
