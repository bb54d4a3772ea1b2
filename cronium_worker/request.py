"""A worker's side of Celery's revoke and terminate: for a job they mean our own cancel.

Celery ends a task from outside: it drops the message or kills a process, and stores REVOKED. A job has more to
it: a grace period, outputs, a container, a record. So here the record is told to end, and the task always runs to
its end, which finds that and stores the job's own result.

Celery imports this module in every node of ours, by the name in `JobTask.Request`.
"""

import logging
import re
import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from celery.utils.functional import maybe_list
from celery.worker import state as worker_state
from celery.worker.control import control_command
from celery.worker.request import Request
from redis.exceptions import RedisError

from cronium_worker.errors import JobFailed, JobNotFound
from cronium_worker.models.fields import JOB_ID_PATTERN
from cronium_worker.models.job import ScriptType
from cronium_worker.tasks import register_foreign, store

logger = logging.getLogger(__name__)


class JobRequest(Request):
    """A received message of `cronium.execute_job`."""

    _to_cancel = False

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if len(self.args) != 1 or not isinstance(self.args[0], str):
            # A foreign producer sends the whole job, and says of it what it likes: that is shown nowhere.
            self._argsrepr = self._request_dict["argsrepr"] = f"{self._job_id()} {_script_type(self._job())}"
        self._kwargsrepr = self._request_dict["kwargsrepr"] = "{}"

    def info(self, safe: bool = False) -> Any:
        """What `inspect` and Flower see of it: never the job itself."""
        return super().info(safe=True)

    def _job(self) -> Any:
        """Its id, or all of it as a foreign producer has sent it."""
        named = self.kwargs.get("job") if isinstance(self.kwargs, Mapping) else None
        return self.args[0] if self.args else named

    def _job_id(self) -> str:
        job = self._job()
        given = str(job.get("id") if isinstance(job, Mapping) else job)
        return given if re.fullmatch(JOB_ID_PATTERN, given) else str(self.id)

    def terminate(self, pool: Any, signal: Any = None) -> None:
        """The job gets SIGTERM and its grace period whatever the signal. Called in the event loop."""
        self._to_cancel = True  # in case there is no record yet
        _in_background([self._job_id()])

    def cancel(self, pool: Any, signal: Any = None, emit_retry: bool = True) -> None:
        """Celery calls this when the node itself must end at once: then the job's lease decides."""

    def revoked(self) -> bool:
        """Never: a revoked or expired message is taken, to end its job."""
        self._to_cancel = self._to_cancel or super().revoked()
        return False

    def _announce_revoked(self, reason: str, terminated: bool, signum: Any, expired: bool) -> None:
        """No REVOKED, which would take the result's place."""

    def on_accepted(self, pid: int, time_accepted: float) -> None:
        """Called in the thread that is about to run the task."""
        if self._to_cancel:
            job = self._job()
            if isinstance(job, Mapping):
                with suppress(JobFailed, RedisError):  # the task itself will say so
                    register_foreign(job, self._context)
            end_jobs([self._job_id()])
        super().on_accepted(pid, time_accepted)


def _script_type(job: Any) -> str:
    script = job.get("script") if isinstance(job, Mapping) else None
    given = str(script.get("type")).lower() if isinstance(script, Mapping) else ""
    known: dict[str, ScriptType] = {"bash": "bash", "python": "python", "node": "node", "nodejs": "node"}
    return known.get(given, "?")


def end_jobs(job_ids: Iterable[str], *, running: bool = True) -> None:
    """Cancel each of the jobs that has a record, or only those that no worker has taken. Blocks for Redis."""
    for job_id in job_ids:
        try:
            if running or store().record(job_id)["status"] == "pending":
                store().cancel(job_id)
        except JobNotFound:
            logger.info("revoked: there is no record of job %s", job_id)
        except RedisError as error:
            logger.warning("revoked, but job %s is not cancelled: Redis: %s", job_id, error)


def _in_background(job_ids: Iterable[str], *, running: bool = True) -> None:
    """The event loop must not wait for Redis."""
    threading.Thread(
        target=end_jobs, args=(list(job_ids),), kwargs={"running": running}, name="revoke", daemon=True
    ).start()


@control_command(
    variadic="task_id",
    signature="[id1 [id2 [... [idN]]]]",
)
def revoke(state: Any, task_id: Any, terminate: bool = False, signal: Any = None, **options: Any) -> dict[str, str]:
    """Revoke task by task id (or list of ids).

    In the place of Celery's command of this name, which stores REVOKED as the result of every task that it finds
    queued. As there, a running job goes on unless `terminate` is set; the signal is the job's own.
    """
    ids: set[str] = set(maybe_list(task_id) or [])
    # Also what no node has taken and no record tells of: whoever takes it ends it.
    worker_state.revoked.update(ids)
    requests = [worker_state.requests[known] for known in ids if known in worker_state.requests]
    for request in requests:
        if isinstance(request, JobRequest) and (terminate or request not in worker_state.active_requests):
            request.terminate(state.consumer.pool, signal=signal)
    _in_background(ids - {request.id for request in requests}, running=terminate)
    return {"ok": f"tasks {', '.join(sorted(ids))} flagged as revoked"}
