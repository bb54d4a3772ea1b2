"""One attempt of a job, from its claim to its outcome. `Attempt.run` is the way of a job, top to bottom."""

import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import datetime
from typing import Any, Literal, Self

from pydantic import ValidationError
from redis.exceptions import RedisError

from cronium_worker import metrics
from cronium_worker.engine.images import ImageManager, Pulled
from cronium_worker.engine.inventory import OwnContainer
from cronium_worker.engine.spec import log_file_bytes
from cronium_worker.errors import (
    Cancelled,
    ClaimLost,
    ContainerStartError,
    DaemonError,
    Detached,
    Fault,
    InvalidJob,
    validation_message,
)
from cronium_worker.execution.admission import Share, Ticket
from cronium_worker.execution.diskuse import DiskLimits, DiskUse, Excess, left_by
from cronium_worker.execution.follow import SIGKILL_EXIT, Follower, Watch
from cronium_worker.execution.joblog import JobLog
from cronium_worker.execution.pool import Pool
from cronium_worker.execution.sandbox import Host, Sandbox
from cronium_worker.execution.secrecy import JobMasker
from cronium_worker.execution.signals import CancelToken, Wake
from cronium_worker.fleet.events import now_iso, progress_body, shortened, status_body
from cronium_worker.fleet.share import make_room, with_others
from cronium_worker.fleet.store import Claim, JobStore
from cronium_worker.fleet.writer import LogWriter
from cronium_worker.models import (
    ErrorInfo,
    FinalStatus,
    Job,
    JobResult,
    LogSummary,
    Metrics,
    Output,
    ScriptType,
    Stream,
    Timings,
)
from cronium_worker.policy import admit, image_candidates, pull_policy, with_defaults

logger = logging.getLogger(__name__)

_NOT_FOUND_EXIT = 127
_SAID_CHARACTERS = 4000


class Attempt:
    """Runs one attempt and says how it ended. It does not write the end: that is the runner's decision, to be made
    before the attempt is left (`with`): only then container and workspace are destroyed. A worker that dies in
    between leaves the ended container, and the next one finds in it what was not written yet.
    """

    def __init__(
        self, host: Host, store: JobStore, images: ImageManager, pool: Pool, claim: Claim, token: CancelToken
    ) -> None:
        self._host = host
        self._pool = pool
        self._store = store
        self._images = images
        self._claim = claim
        self._token = token
        self._masker = JobMasker(tuple(claim.job.secrets.values()))
        self._image: str | None = None
        self._started_at: str | None = None
        self._metrics = Metrics()
        self._log = LogSummary()
        self._exit_code: int | None = None
        self._error: ErrorInfo | None = None
        self._output = Output()
        self._cleanup = ExitStack()
        self._cleanup.callback(self._masker.close)
        started_at = None
        if claim.progress is not None:
            self._image, self._started_at = claim.progress.image, claim.progress.started_at
            started_at = self._started_at
        self._timings = {"queue_s": _seconds_between(claim.queued_at, started_at or now_iso())}

    @property
    def status(self) -> Literal["preparing", "running"]:
        return "running" if self._started_at else "preparing"

    @property
    def script_type(self) -> ScriptType:
        return self._claim.job.script.type

    def run(self) -> JobResult:
        """The outcome, whatever it is. Raises ClaimLost, redis errors, and Detached when the worker is to leave the
        job: its container runs on, or nothing is left of it."""
        with self._told():
            make_room(self._store, self._claim, self._host.settings.log.max_bytes)
            with self._phase("setup_s"):
                job = self._admit()
                with self._phase("image"):
                    image = self._ensure_image(job)
                self._image = image.image
            with self._phase("queue_s"), self._phase("admission"):
                self._reserve(job)
            with self._phase("setup_s"):
                attempt, ticket = self._claim.attempt, self._ticket(job)
                with self._phase("sandbox"):
                    while (sandbox := self._pool.get(job, attempt=attempt, image=image, ticket=ticket)) is None:
                        self._raise_if_cancelled()
                self._cleanup.callback(self._pool.destroy, sandbox.destroy)
                self._announce_running()
            with self._phase("run_s"):
                sandbox.release(job, attempt=self._claim.attempt)
            self._complete(sandbox, job)
        return self._result()

    def resume(self, container: OwnContainer) -> JobResult:
        """The outcome of an attempt whose container another worker has left; as `run` from there on."""
        with self._told():
            make_room(self._store, self._claim, self._host.settings.log.max_bytes)
            if self._claim.cancel_requested:
                self._token.cancel()
            job = with_defaults(self._claim.job, self._host.settings)
            self._host.admission.reserve(Share.of(job.resources))
            self._cleanup.callback(self._host.admission.leave, Share.of(job.resources))
            sandbox = Sandbox.take_over(self._host, container)
            self._cleanup.callback(self._pool.destroy, sandbox.destroy)
            self._complete(sandbox, job)
        return self._result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            metrics.phases({**self._timings, "total": _seconds_between(self._claim.queued_at, now_iso())})
        self._cleanup.close()

    @contextmanager
    def _told(self) -> Iterator[None]:
        """What goes wrong in here becomes the attempt's error; but for what is not the attempt's fault."""
        try:
            yield
        except Fault as fault:
            self._error = fault.info()
        except (ClaimLost, Detached, RedisError):
            raise
        except Exception as unexpected:
            # A job never stays silent: what went wrong here is told, and the log has the rest.
            logger.exception("attempt failed", extra={"job_id": self._claim.job.id, "attempt": self._claim.attempt})
            reason = unexpected.strerror if isinstance(unexpected, OSError) else type(unexpected).__name__
            self._error = DaemonError(f"the worker failed: {reason}", retryable=True).info()

    def _complete(self, sandbox: Sandbox, job: Job) -> None:
        """From the opened gate to the outputs."""
        with self._phase("run_s"):
            try:
                watch = self._follow(sandbox, job)
            except Detached:
                self._cleanup.pop_all()
                self._masker.close()
                sandbox.leave()
                raise
            self._metrics = watch.metrics
            self._end(sandbox, watch)
        if sandbox.left is not None:
            self._timings["run_s"] = sandbox.ran_s(watch.state)
        with self._phase("collect_s"):
            output_error = self._collect(sandbox)
            excess = watch.excess or left_by(sandbox.workspace, self._disk_limits(job))
        self._error = self._judge(job, watch, excess) or output_error

    @contextmanager
    def _phase(self, name: str) -> Iterator[None]:
        started = time.monotonic()
        try:
            yield
        finally:
            self._timings[name] = self._timings.get(name, 0.0) + time.monotonic() - started

    def _admit(self) -> Job:
        """The caller's own check may have been another version's, or none at all."""
        if self._claim.cancel_requested:
            self._token.cancel()
        self._raise_if_cancelled()
        try:
            job = admit(self._claim.job, self._host.settings)
        except ValidationError as error:
            raise InvalidJob(validation_message(error)) from None
        if excess := self._host.admission.excess(Share.of(job.resources)):
            raise InvalidJob(excess)
        return job

    def _raise_if_cancelled(self) -> None:
        if self._token.cancelled():
            raise Cancelled("cancelled before the script started")
        if self._token.detached():
            raise Detached(container_left=False)

    def _ensure_image(self, job: Job) -> Pulled:
        settings = self._host.settings
        candidates = image_candidates(job, settings)
        asked = job.pull_policy if "pull_policy" in job.model_fields_set else settings.pull_policy
        try:
            return self._images.pull_first(
                candidates, policy=pull_policy(asked, candidates), cancelled=self._unwanted, progress=self._tell
            )
        except Cancelled:
            self._raise_if_cancelled()
            raise

    def _tell(self, message: str, **fields: Any) -> None:
        """A `progress` event, as long as the job's share has room for it."""
        if self._claim.stored < with_others(self._host.settings.log.max_bytes):
            self._store.write(self._claim, [progress_body(message, **fields)])

    def _unwanted(self) -> bool:
        return self._token.cancelled() or self._token.detached()

    def _reserve(self, job: Job) -> None:
        """The job's share of the host, when it is its turn."""
        admission, share = self._host.admission, Share.of(job.resources)

        if admission.enter(share, self._ticket(job), on_wait=self._tell):
            self._cleanup.callback(admission.leave, share)
        self._raise_if_cancelled()

    def _ticket(self, job: Job) -> Ticket:
        return Ticket(job.priority, datetime.fromisoformat(self._claim.queued_at).timestamp(), self._token)

    def _announce_running(self) -> None:
        self._started_at = now_iso()
        body = status_body("running", f"running in {self._image}", attempt=self._claim.attempt, host=self._claim.host)
        # The image as well, for whoever adopts the attempt.
        fields = {"status": "running", "started_at": self._started_at, "image": self._image or ""}
        if self._store.write(self._claim, [body], fields):
            self._token.cancel()
        self._raise_if_cancelled()

    def _follow(self, sandbox: Sandbox, job: Job) -> Watch:
        settings = self._host.settings.log
        wake = Wake()
        writer = LogWriter(
            self._store,
            self._claim,
            chunk=settings.chunk_bytes,
            max_bytes=settings.max_bytes,
            spool_in=self._host.settings.sandboxes_path,
            spool_bytes=settings.spool_bytes,
            on_room=wake.set,
        )
        log = self._job_log(writer, sandbox)
        disk = DiskUse(sandbox.workspace, self._disk_limits(job), counters=sandbox.usage, on_excess=wake.set)
        self._token.wakes(wake)
        detached = False
        try:
            with self._host.disk.watch(disk):
                return Follower(sandbox, job, log=log, writer=writer, token=self._token, disk=disk, wake=wake).run()
        except Detached:
            detached = True
            raise
        finally:
            self._token.wakes(None)
            try:
                if not detached:  # what is held back will be read again
                    self._log = log.finish()
            finally:
                writer.close()
                wake.close()

    def _job_log(self, writer: LogWriter, sandbox: Sandbox) -> JobLog:
        progress = self._claim.progress
        start: dict[Stream, int] = {}
        if progress is not None:
            start = {"stdout": progress.stdout_offset, "stderr": progress.stderr_offset}

        def tell_of_gap(reason: str) -> None:
            self._store.write(self._claim, [progress_body(f"a part of the log may be missing: {reason}", gap=True)])

        return JobLog(
            writer,
            self._masker,
            start=start,
            exact=sandbox.left is None or sandbox.left.exact_log,
            stored_bytes=log_file_bytes(self._host.settings),
            on_gap=tell_of_gap,
        )

    def _end(self, sandbox: Sandbox, watch: Watch) -> None:
        if watch.state is None:
            return  # the worker has ended it without the engine
        self._exit_code = watch.state.exit_code
        if watch.cause is None and not sandbox.gate.passed():
            self._exit_code = None
            code = watch.state.exit_code
            # The launcher's own word; whatever else ended the container here came from outside.
            no_interpreter = code == _NOT_FOUND_EXIT
            reason = "the image has no interpreter for it" if no_interpreter else f"the container ended with {code}"
            raise ContainerStartError(
                f"the script was not started: {watch.state.error or reason}",
                retryable=not no_interpreter,
                exit_code=code,
            )

    def _collect(self, sandbox: Sandbox) -> ErrorInfo | None:
        uid, _ = sandbox.workspace.owner()
        self._output, errors = self._masker.collect(sandbox.workspace, owner_uid=uid)
        if not errors:
            return None
        first, *others = errors
        also = {"also": [other.message for other in others]} if others else {}
        return first.model_copy(update={"details": {**first.details, **also}})

    def _disk_limits(self, job: Job) -> DiskLimits:
        settings = self._host.settings
        return DiskLimits(
            bytes=job.resources.disk, inodes=settings.maxima.inodes, min_free_bytes=settings.min_free_disk
        )

    def _judge(self, job: Job, watch: Watch, excess: Excess | None) -> ErrorInfo | None:
        """How the run itself ended; None: exit code 0."""
        if watch.cause == "cancelled":
            return Cancelled("cancelled while running").info()
        if watch.cause == "timeout" or self._overran(job, watch):
            return ErrorInfo(
                type="timeout",
                message=f"still running after its timeout of {job.timeout:g} s",
                details={"timeout_s": job.timeout},
            )
        if excess is not None:
            return excess.info()
        state = watch.state
        if state is None or state.exit_code == 0:
            return None
        oom = state.oom_killed or watch.oom_kills > 0
        if state.exit_code == SIGKILL_EXIT and oom:
            return ErrorInfo(
                type="resource_limit",
                message=f"out of memory: the limit is {job.resources.memory} bytes",
                details={"limit": "memory", "limit_bytes": job.resources.memory},
            )
        message = f"the script exited with {state.exit_code}"
        if state.exit_code == SIGKILL_EXIT:
            message += ": it was killed, and not seen to be out of memory"
        details = {"exit_code": state.exit_code} | ({"oom_kills": watch.oom_kills} if oom else {})
        return ErrorInfo(type="script", message=message, details=details)

    def _overran(self, job: Job, watch: Watch) -> bool:
        """Whether a worker that is gone has ended it for its timeout: that it did so, only its memory knew."""
        failed = watch.state is not None and watch.state.exit_code != 0
        return self._claim.progress is not None and failed and self._timings["run_s"] >= job.timeout

    def _result(self) -> JobResult:
        error = self._error
        if error is not None:
            details = self._masker.json({name: _bounded(value) for name, value in error.details.items()})
            error = error.model_copy(update={"message": self._public(_bounded(error.message)), "details": details})
        claim = self._claim
        return JobResult(
            job_id=claim.job.id,
            status=_status(error),
            exit_code=self._exit_code,
            error=error,
            output=self._output,
            metrics=self._metrics,
            log=self._log.model_copy(update={"earlier_cut": claim.earlier_cut}),
            attempt=claim.attempt,
            host=claim.host,
            image=self._image,
            created_at=claim.created_at,
            started_at=self._started_at,
            finished_at=now_iso(),
            timings=Timings(**self._timings),
        )

    def _public(self, message: str) -> str:
        """A message without secrets and without paths of the host."""
        return self._masker.message(message).replace(str(self._host.settings.base_path), "")


def _bounded(value: Any) -> Any:
    """What an engine or a registry says may be long."""
    return shortened(value, _SAID_CHARACTERS) if isinstance(value, str) else value


def _status(error: ErrorInfo | None) -> FinalStatus:
    if error is None:
        return "completed"
    if error.type == "timeout":
        return "timeout"
    return "cancelled" if error.type == "cancelled" else "failed"


def _seconds_between(earlier_iso: str, later_iso: str) -> float:
    """Of two hosts' clocks: never negative."""
    elapsed = datetime.fromisoformat(later_iso) - datetime.fromisoformat(earlier_iso)
    return max(0.0, elapsed.total_seconds())
