"""The Celery tasks of jobs. Producers import this module: it must not import Docker or `execution`."""

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from typing import Any
from uuid import uuid4

from celery import Task
from celery.exceptions import Ignore
from pydantic import ValidationError
from redis.exceptions import RedisError

from cronium_worker.app import app
from cronium_worker.broker import message_priority
from cronium_worker.errors import JobConflict, JobFailed, SecretsUnreadable, validation_message
from cronium_worker.fleet.events import now_iso
from cronium_worker.fleet.store import JobStore, connect
from cronium_worker.models import ErrorInfo, Job, JobResult
from cronium_worker.models.fields import JOB_ID_PATTERN
from cronium_worker.models.job import DEFAULT_QUEUE
from cronium_worker.policy import admit
from cronium_worker.settings import get_settings

# What canvas puts into a message: a job that must be sent again goes on in its chain, chord or group.
_CANVAS = ("link", "link_error", "chain", "chord", "group_id", "group_index", "root_id", "parent_id")

_IN_CLEAR = (
    "secrets: they came unencrypted, and whoever reads the broker may have them: change them, and send a Fernet token "
    'of {"job_id": …, "secrets": {…}} in their place, made with a key of CRONIUM_SECRET_KEYS'
)


def make_store(*, retries: int = 3) -> JobStore:
    """A store by the settings. `retries`: as of `connect`."""
    settings = get_settings()
    redis = connect(settings.redis_url.get_secret_value(), retries=retries)
    return JobStore(
        redis,
        result_ttl_s=settings.result_ttl,
        lease_ttl_s=settings.lease_ttl,
        secret_keys=[key.get_secret_value() for key in settings.secret_keys],
        secret_ttl_s=settings.secret_ttl,
    )


@cache
def store() -> JobStore:
    """The store of this process, for callers and the task's own use."""
    return make_store()


def _register(data: Job | Mapping[str, Any], task_id: str | None, canvas: Mapping[str, Any]) -> tuple[Job, str, str]:
    """Check a job and write its record. Returns the job, its task id and its queue.

    The job is kept as it was given: the worker fills in the defaults of its own fleet. Its secrets may be encrypted.
    Raises pydantic.ValidationError, JobConflict, SecretsUnreadable.
    """
    job = data if isinstance(data, Job) else Job.model_validate(_opened(data, task_id))
    if task_id is not None and "id" not in job.model_fields_set:
        # Canvas has chosen the task's id already: the job takes it, so that both are one.
        job = Job.model_validate({**job.model_dump(exclude_unset=True), "id": task_id})
    admit(job, get_settings())
    task_id = task_id or job.id
    queue = job.queue or DEFAULT_QUEUE
    store().register(job, task_id=task_id, queue=queue, message=canvas)
    return job, task_id, queue


def _opened(data: Any, task_id: str | None) -> Any:
    """What was sent, its secrets decrypted. Raises SecretsUnreadable."""
    sealed = data.get("secrets") if isinstance(data, Mapping) else None
    if not isinstance(sealed, str):
        return data
    return {**data, "secrets": store().secrets.open(str(data.get("id", task_id)), sealed)}


def _for_message(value: Any) -> Any:
    """A job as it may stand in a message, its secrets encrypted; anything else as it is."""
    is_clear = isinstance(value, Mapping) and isinstance(value.get("secrets"), Mapping)
    job = Job.model_validate(value) if is_clear else value
    if not isinstance(job, Job):
        return value
    if not job.secrets:
        return job.__json__()
    admit(job, get_settings())
    return {**json.loads(job.to_json(secrets=False)), "secrets": store().secrets.seal(job.id, job.secrets)}


class JobTask(Task):
    """Checks and registers the job in the caller's process; the message carries the job's id alone.

    So nothing of a script, its environment or its input is ever in an event, in Flower or in a log.
    """

    Request = "cronium_worker.request:JobRequest"  # revoke and terminate are our cancel

    def signature(self, args: Any = None, kwargs: Any = None, *more: Any, **options: Any) -> Any:
        """As Celery's. It may travel in the message of another task: a job's secrets are encrypted for it, and for
        that the job's id is settled here. Raises pydantic.ValidationError for a job with secrets."""
        args, kwargs = tuple(map(_for_message, args or ())), {k: _for_message(v) for k, v in (kwargs or {}).items()}
        for value in (*args, *kwargs.values()):
            if isinstance(value, Mapping) and isinstance(value.get("secrets"), str) and "id" in value:
                options.setdefault("task_id", value["id"])
        return super().signature(args, kwargs, *more, **options)

    subtask = signature

    def apply_async(
        self,
        args: Any = None,
        kwargs: Any = None,
        task_id: str | None = None,
        **options: Any,
    ) -> Any:
        """Raises pydantic.ValidationError and JobConflict, before anything is sent."""
        arguments = [*(args or ()), *(kwargs or {}).values()]
        if len(arguments) != 1 or not isinstance(arguments[0], Job | Mapping):
            raise TypeError("execute_job takes one argument: a Job, or a dict of the same shape")
        canvas = {name: options[name] for name in _CANVAS if options.get(name)}
        job, task_id, queue = _register(arguments[0], task_id, canvas)
        options.setdefault("queue", queue)
        return self._send(job.id, job.script.type, job.priority, task_id=task_id, **options)

    def send_again(self, job_id: str) -> None:
        """Send the message of a registered job once more, if it has use for one. Raises kombu and redis errors."""
        sending = store().sending(job_id)
        if sending is not None:
            canvas = {"root_id": sending.task_id} | sending.message
            self._send(
                job_id, sending.type, sending.priority, task_id=sending.task_id, queue=sending.queue,
                add_to_parent=False, **canvas,
            )  # fmt: skip

    def _send(self, job_id: str, script_type: str, priority: int, **options: Any) -> Any:
        options |= {
            "priority": message_priority(priority, get_settings()),
            "argsrepr": f"{job_id} {script_type}",
            "kwargsrepr": "{}",
        }
        return super().apply_async((job_id,), {}, **options)

    def after_return(self, status: str, retval: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        """Celery has the result now. (Not called when the task was ignored.)"""
        result = retval.result if isinstance(retval, JobFailed) else retval
        if isinstance(result, JobResult):
            with suppress(RedisError):  # then recovery finds it unsettled, and sends it once more
                store().settle(result.job_id)


@app.task(name="cronium.execute_job", base=JobTask, bind=True, throws=(JobFailed,), typing=False)
def execute_job(self: Any, job: str | Mapping[str, Any]) -> JobResult:
    """Run a job: its id when it is registered, the whole job from a producer in another language.

    Returns the JobResult when the job completed (`get()` has it as a dict), raises JobFailed with it otherwise.
    """
    job_id = job if isinstance(job, str) else register_foreign(job, self.request)
    runner = self.app.runner
    if runner is None:
        raise RuntimeError("this node runs no jobs: start one with `cronium worker`")
    result = runner.run(job_id)
    if result == "missing":
        raise JobFailed(_refused(job_id, "lost", "there is no record of this job; submit it again"))
    if not isinstance(result, JobResult):
        raise Ignore  # another worker has it, and will store the result under the same id
    if result.status != "completed":
        raise JobFailed(result)
    return result


def register_foreign(data: Any, request: Any) -> str:
    """Register what a producer has sent without doing so: whatever it is. `request`: of its message. Raises
    JobFailed."""
    task_id = request.id
    if not task_id.isprintable():  # of control characters and lone surrogates: no key of Redis, no line of a log
        raise JobFailed(_refused(uuid4().hex, "validation", "the message's id is not printable text"))
    sent = {"link": request.callbacks, "link_error": request.errbacks, "group_id": request.group}
    sent |= {name: getattr(request, name, None) for name in ("chain", "chord", "group_index", "root_id", "parent_id")}
    try:
        if isinstance(data, Mapping) and data.get("secrets") and not isinstance(data["secrets"], str):
            raise SecretsUnreadable(_IN_CLEAR)
        job, _, _ = _register(data, task_id, {name: value for name, value in sent.items() if value})
    except (ValidationError, JobConflict, SecretsUnreadable) as error:
        ids = (data.get("id") if isinstance(data, Mapping) else None, task_id)
        job_id = next((i for i in ids if isinstance(i, str) and re.fullmatch(JOB_ID_PATTERN, i)), uuid4().hex)
        message = validation_message(error) if isinstance(error, ValidationError) else str(error)
        result = _refused(job_id, "validation", message)
        store().refuse(result)
        raise JobFailed(result) from None
    return job.id


def _refused(job_id: str, kind: Any, message: str) -> JobResult:
    error = ErrorInfo(type=kind, message=message)
    return JobResult(job_id=job_id, status="failed", error=error, created_at=now_iso(), finished_at=now_iso())
