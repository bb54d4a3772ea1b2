"""The Celery tasks of jobs. Producers import this module: it must not import Docker or `execution`."""

import json
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from typing import Any
from uuid import uuid4

from celery import Task
from celery.app.task import Context
from celery.exceptions import Ignore
from kombu.exceptions import OperationalError
from pydantic import ValidationError
from redis.exceptions import NoPermissionError, RedisError

from cronium_worker.app import app
from cronium_worker.broker import message_priority
from cronium_worker.errors import (
    JobConflict,
    JobFailed,
    JobNotFound,
    NotSigned,
    SecretsUnreadable,
    validation_message,
)
from cronium_worker.fleet.connections import connect
from cronium_worker.fleet.events import now_iso, shortened
from cronium_worker.fleet.hosts import HostRegistry
from cronium_worker.fleet.keys import BrokenKey
from cronium_worker.fleet.store import JobStore
from cronium_worker.links import NO_TASK, is_group, is_id, links_defect
from cronium_worker.models import ErrorInfo, Job, JobResult, formats
from cronium_worker.models.fields import JOB_ID_PATTERN
from cronium_worker.models.queues import DEFAULT_QUEUE, check_fleet_queue, is_queue
from cronium_worker.models.workflow import On, following, hindrance, not_taken
from cronium_worker.policy import admit, refused, with_known_fields
from cronium_worker.settings import get_settings
from cronium_worker.signing import is_signed

# What canvas puts into a message: a job that must be sent again goes on in its chain, chord or group.
_CANVAS = ("link", "link_error", "chain", "chord", "group_id", "group_index", "root_id", "parent_id")

_REFUSALS = (ValidationError, JobConflict, NotSigned, SecretsUnreadable)
_REASON_CHARACTERS = 4000  # a producer's text may be in it
_ONE_ARGUMENT = (
    "execute_job takes one argument: a Job, or a dict of the same shape; after another task than a job write "
    "execute_job.si(job), so that it is not given that one's result"
)
# In the place of hosts' names. The user's rights are of an older version.
_UNSEEN = "hosts that this Redis user may not see (give it the rights that deploy/redis/cronium.conf has)"
_IN_CLEAR = (
    "secrets: they came unencrypted, and whoever reads the broker may have them: change them, and send a Fernet token "
    'of {"job_id": …, "secrets": {…}} in their place, made with a key of CRONIUM_SECRET_KEYS'
)


def make_store(*, retries: int | None = None, on_error: Callable[[Exception], object] = lambda _: None) -> JobStore:
    """A store by the settings. `retries`, `on_error`: as of `connect`."""
    settings = get_settings()
    redis = connect(settings.redis_url.get_secret_value(), retries=retries, on_error=on_error)
    return JobStore(
        redis,
        result_ttl_s=settings.result_ttl,
        lease_ttl_s=settings.lease_ttl,
        secret_keys=[key.get_secret_value() for key in settings.secret_keys],
        signing_keys=[key.get_secret_value() for key in settings.signing_keys],
        secret_ttl_s=settings.secret_ttl,
        wait_replicas=settings.redis_wait_replicas,
    )


@cache
def store() -> JobStore:
    """The store of this process, for callers and the task's own use."""
    return make_store()


def as_hosts_read(job: Job, queue: str | None) -> Job:
    """Return the job as every live host of the queue reads it (None: of any queue); a job waits where there is no host.

    Asks Redis only for a job that needs more than the oldest format. Raises pydantic.ValidationError.
    """
    if formats.needed_format(job) == formats.OLDEST:
        return job
    registry = HostRegistry(store().redis, host_ttl_s=get_settings().lease_ttl)
    try:
        hosts = registry.job_formats(queue)
    except NoPermissionError:
        hosts = {_UNSEEN: formats.OLDEST}
    return with_known_fields(job, hosts)


def _register(
    data: Job | Mapping[str, Any],
    task_id: str | None,
    canvas: Mapping[str, Any],
    queue: str | None = None,
    *,
    is_accepted: bool = False,
) -> tuple[Job, str, str]:
    """Check a job and write its record. Returns the job, its task id and its queue: the given one before the job's own.

    The job is kept as it was given: the worker fills in the defaults of its own fleet. Its secrets may be encrypted.
    `is_accepted`: a producer has checked it against the hosts; if one has become too old since, the job waits.
    Raises pydantic.ValidationError, JobConflict, SecretsUnreadable.
    """
    job = _parse(data, task_id)
    admit(job, get_settings())
    if defect := _canvas_defect(canvas):
        raise refused("link", defect)
    task_id = task_id or job.id
    queue = queue or job.queue or DEFAULT_QUEUE
    if not is_accepted:
        job = as_hosts_read(job, queue)
    store().register(job, task_id=task_id, queue=queue, message=canvas)
    return job, task_id, queue


def _canvas_defect(canvas: Mapping[str, Any]) -> str:
    """Why what stands around a task in Celery's canvas must not be used; empty: it may be."""
    ids = ("root_id", "parent_id")
    if not all(is_id(canvas[name]) for name in ids if canvas.get(name) is not None):
        return NO_TASK
    if canvas.get("group_id") is not None and not is_group(canvas["group_id"]):
        return NO_TASK
    return links_defect(*(canvas.get(name) for name in ("link", "link_error", "chain", "chord")))


def _chosen_queue(options: Mapping[str, Any]) -> str | None:
    """The queue that the task's options name. Raises pydantic.ValidationError."""
    for name in ("exchange", "routing_key"):
        if options.get(name):
            raise refused(name, "name a queue instead: the job's field queue, or the option queue")
    queue = getattr(options.get("queue"), "name", options.get("queue"))
    try:
        return check_fleet_queue(queue, get_settings().queues) if queue is not None else None
    except ValueError as error:
        raise refused("queue", str(error)) from None


def _parse(data: Job | Mapping[str, Any], task_id: str | None) -> Job:
    job = data if isinstance(data, Job) else Job.model_validate(_opened(data, task_id))
    if task_id is not None and "id" not in job.model_fields_set:
        # Canvas has chosen the task's id already: the job takes it, so that both are one.
        job = Job.model_validate({**job.model_dump(exclude_unset=True), "id": task_id})
    return job


def _previous(given: Any) -> JobResult | list[JobResult]:
    """What a job is given of those before it: a link the result, a link_error the task's id, a chord's body a list of
    results. Raises TypeError and JobNotFound."""
    if isinstance(given, list):
        return [result for each in given for result in [_previous(each)] if isinstance(result, JobResult)]
    if isinstance(given, str):
        given = store().result(given)
    if isinstance(given, Mapping) and {"job_id", "status"} <= given.keys():
        given = JobResult.model_validate(given)
    if not isinstance(given, JobResult):
        raise TypeError(_ONE_ARGUMENT)
    return (given.is_ready and store().result(given.job_id)) or given


def _leave_out(job: Job, why: str) -> JobResult:
    """Record that a workflow does not come to this job."""
    result = not_taken(job.id, why, now_iso())
    store().refuse(result, job)
    return result


def _opened(data: Any, task_id: str | None) -> Any:
    """What was sent, its secrets decrypted. Raises SecretsUnreadable."""
    sealed = data.get("secrets") if isinstance(data, Mapping) else None
    if not isinstance(sealed, str):
        return data
    return {**data, "secrets": store().secrets.open(str(data.get("id", task_id)), sealed)}


def _for_message(value: Any) -> Any:
    """A job as it may stand in a message, its secrets encrypted, the whole signed if there is a key for that; anything
    else as it is."""
    if isinstance(value, Mapping) and not is_signed(value):
        is_clear = isinstance(value.get("secrets"), Mapping)
        value = Job.model_validate(_opened(value, None)) if is_clear or store().signer.in_use else value
    if not isinstance(value, Job):
        return _as_all_hosts_read(value)
    value = as_hosts_read(value, None)  # any host may register it
    content = json.loads(value.to_json(secrets=False))
    if value.secrets:
        admit(value, get_settings())
        content["secrets"] = store().secrets.seal(value.id, value.secrets)
    return store().signer.wrap(json.dumps(content)) if store().signer.in_use else content


def _as_all_hosts_read(value: Any) -> Any:
    """The same of what may be a job, and stays in the form in which it was given."""
    if not formats.ADDITIONS or not isinstance(value, Mapping) or is_signed(value):
        return value
    try:
        job = Job.model_validate(value)
    except ValidationError:  # the worker that registers it says why
        return value
    known = as_hosts_read(job, None)
    exclude = set() if "id" in value else {"id"}  # one that is not given is the task's
    return value if known is job else known.model_dump(mode="json", exclude_unset=True, exclude=exclude)


def _settled_id(value: Any) -> str | None:
    """The id of a job in a message that is of use under this id alone."""
    if is_signed(value):
        return str(json.loads(value["job"])["id"])
    is_sealed = isinstance(value, Mapping) and isinstance(value.get("secrets"), str)
    return value.get("id") if is_sealed else None


class JobTask(Task):
    """Checks and registers the job in the caller's process; the message carries the job's id alone.

    So nothing of a script, its environment or its input is ever in an event, in Flower or in a log.
    """

    Request = "cronium_worker.request:JobRequest"  # revoke and terminate are our cancel

    def signature(self, args: Any = None, kwargs: Any = None, *more: Any, **options: Any) -> Any:
        """As Celery's. It may travel in the message of another task: a job's secrets are encrypted for it, the job is
        signed, and for that its id is settled here. Raises pydantic.ValidationError for a job that needs that."""
        args, kwargs = tuple(map(_for_message, args or ())), {k: _for_message(v) for k, v in (kwargs or {}).items()}
        for job_id in filter(None, map(_settled_id, (*args, *kwargs.values()))):
            options.setdefault("task_id", job_id)
        return super().signature(args, kwargs, *more, **options)

    subtask = signature

    def apply_async(
        self,
        args: Any = None,
        kwargs: Any = None,
        task_id: str | None = None,
        on: On | None = None,
        **options: Any,
    ) -> Any:
        """Raises pydantic.ValidationError, JobConflict and NotSigned, before anything is sent.

        In a node the job came in the message of another task, as a link or the rest of a chain: nobody would hear of
        an error, so it ends as failed, for whoever waits for it. There it may be given the result before it, and `on`:
        of which outcomes it is to run (workflows).
        """
        arguments = [*(args or ()), *(kwargs or {}).values()]
        canvas = {name: options[name] for name in _CANVAS if options.get(name)}
        try:
            *before, data = arguments or [None]
            if len(before) > self.app.is_node or not isinstance(data, Job | Mapping):
                raise TypeError(_ONE_ARGUMENT)
            if on and not before:
                raise TypeError("on: only a job that is given the result before it can depend on that: workflows.then")
            queue = _chosen_queue(options)
            data = store().signer.unwrap(data, required=self.app.is_node)
            if before:
                previous = _previous(before[0])
                job = _parse(data, task_id)
                data = following(job, previous, workflow=str(canvas.get("root_id", "")), on=on or "success")
                why_not = hindrance(on, previous) if on and isinstance(previous, JobResult) else ""
                if why_not:
                    return self._fail(_leave_out(data, why_not), task_id, canvas)
            job, task_id, queue = _register(data, task_id, canvas, queue, is_accepted=self.app.is_node)
        except (TypeError, JobNotFound, *_REFUSALS) as error:
            if not self.app.is_node:
                raise
            return self._fail(_refuse(arguments[-1] if arguments else None, task_id, error), task_id, canvas)
        return self._send(job.id, job.script.type, job.priority, task_id=task_id, **(options | {"queue": queue}))

    def _fail(self, result: JobResult, task_id: str | None, canvas: Mapping[str, Any]) -> Any:
        """The end of a task for Celery, and of what was to follow it, without a message."""
        task_id = task_id or result.job_id
        names = {"link": "callbacks", "link_error": "errbacks", "group_id": "group"}
        about = {names.get(name, name): value for name, value in canvas.items()}
        request = Context({"id": task_id, "task": self.name, "delivery_info": {}} | about)
        self.backend.mark_as_failure(task_id, JobFailed(result), request=request)
        self._follow_failure(request, result)
        return self.AsyncResult(task_id)

    def on_failure(self, exc: Any, task_id: str, args: Any, kwargs: Any, einfo: Any) -> None:
        if isinstance(exc, JobFailed):
            self._follow_failure(self.request, exc.result)

    def _follow_failure(self, request: Any, result: JobResult) -> None:
        """Call what follows on more than a success, which is all that Celery calls links for. Raises kombu and redis
        errors: then the job is not settled, and recovery has it done again."""
        for link in map(self.app.signature, request.callbacks or ()):
            if "on" in link.options:
                link.apply_async((result,), parent_id=request.id, root_id=request.root_id or request.id)

    def send_again(self, job_id: str) -> None:
        """Send the message of a registered job once more, if it has use for one. Raises kombu and redis errors."""
        sending = store().sending(job_id)
        if sending is None:
            return
        canvas = {name: value for name, value in sending.message.items() if name in _CANVAS}
        queue = sending.queue or DEFAULT_QUEUE
        defect = _canvas_defect(canvas) if is_queue(queue) else f"queue: {ascii(queue)[:80]} is not allowed"
        if defect:
            # Written by an older version, or by another program: the message only brings the end of the job.
            store().give_up(job_id, host=get_settings().host_name, reason=defect)
            queue, canvas = DEFAULT_QUEUE, {}
        self._send(
            job_id, sending.type, sending.priority, task_id=sending.task_id, queue=queue, add_to_parent=False,
            **{"root_id": sending.task_id} | canvas,
        )  # fmt: skip

    def _send(self, job_id: str, script_type: str, priority: int, **options: Any) -> Any:
        options |= {
            "priority": message_priority(priority, get_settings()),
            "argsrepr": f"{job_id} {script_type}",
            "kwargsrepr": "{}",
        }
        try:
            return super().apply_async((job_id,), {}, **options)
        except OperationalError as error:
            if isinstance(error.__cause__, BrokenKey):
                raise error.__cause__ from None
            raise

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
        data = store().signer.unwrap(data, required=True)
        if isinstance(data, Mapping) and data.get("secrets") and not isinstance(data["secrets"], str):
            raise SecretsUnreadable(_IN_CLEAR)
        job, _, _ = _register(data, task_id, {name: value for name, value in sent.items() if value})
    except _REFUSALS as error:
        raise JobFailed(_refuse(data, task_id, error)) from None
    return job.id


def _refuse(data: Any, task_id: str | None, error: Exception) -> JobResult:
    """Record that a job is refused, under its own id or its task's."""
    ids = (data.get("id") if isinstance(data, Mapping) else None, task_id)
    job_id = next((i for i in ids if isinstance(i, str) and re.fullmatch(JOB_ID_PATTERN, i)), uuid4().hex)
    message = validation_message(error) if isinstance(error, ValidationError) else str(error)
    result = _refused(job_id, "validation", message)
    store().refuse(result)
    return result


def _refused(job_id: str, kind: Any, message: str) -> JobResult:
    error = ErrorInfo(type=kind, message=shortened(message, _REASON_CHARACTERS))
    return JobResult(job_id=job_id, status="failed", error=error, created_at=now_iso(), finished_at=now_iso())
