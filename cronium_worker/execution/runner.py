"""A job on this host, one attempt after its claim, and what becomes of it."""

import logging
import threading
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Literal, get_args

from redis.exceptions import RedisError, ResponseError

from cronium_worker import journal, metrics
from cronium_worker.engine.images import ImageManager
from cronium_worker.engine.inventory import OwnContainer
from cronium_worker.errors import ClaimLost, Detached
from cronium_worker.execution.attempt import Attempt
from cronium_worker.execution.pool import Pool, PoolCount
from cronium_worker.execution.sandbox import Host, Kind, destroy
from cronium_worker.execution.secrecy import read_job, read_result
from cronium_worker.execution.signals import ActiveJobs
from cronium_worker.fleet.events import now_iso, progress_body, shortened
from cronium_worker.fleet.store import Claim, JobStore, Outcome
from cronium_worker.models import ErrorInfo, JobResult, LogSummary, Output, ScriptType
from cronium_worker.models.queues import DEFAULT_QUEUE
from cronium_worker.policy import DEATH_BUDGET, FAULT_BUDGET

logger = logging.getLogger(__name__)

_FAULT_DELAY_S = 1.0
_MOST_UNREADABLE = 1000
NotNow = Outcome | Literal["later", "left"]


class Runner:
    """Takes jobs through their attempts. One for a worker; `run` is called by many threads at once.

    `node`: this process, as other workers know it. `send(job_id)`: have the job's message sent again.
    `on_engine_away()`: a job met an engine that does not answer. `taken`: how many jobs it has claimed.
    """

    def __init__(
        self,
        host: Host,
        store: JobStore,
        *,
        node: str = "",
        send: Callable[[str], None] = lambda _: None,
        on_engine_away: Callable[[], None] = lambda: None,
    ) -> None:
        self._host = host
        self._store = store
        store.read_job, store.read_result = read_job, read_result
        self._node = node
        self._send = send
        self._on_engine_away = on_engine_away
        self._images = ImageManager(host.engine, host.settings.registry)
        self._pool = Pool(host, standing=self._standing_kinds)
        self._claims: dict[str, Claim] = {}
        self._attempts: dict[str, Attempt] = {}
        self._newest_taken: dict[tuple[str, int], int] = {}
        self._unreadable: dict[str, None] = {}  # the latest ones, so that each is logged once
        self.taken = 0
        self.active = ActiveJobs()

    def start(self) -> None:
        """Keep sandboxes for jobs to come. Once what the worker before has left is adopted: what it had waiting is
        nobody's."""
        self._pool.start()

    def close(self) -> None:
        """After the last job: wait until nothing is left of what no job has, and of jobs that have ended."""
        self._pool.close()

    def pool_count(self) -> PoolCount:
        return self._pool.count()

    def _standing_kinds(self) -> list[Kind]:
        """One for each type of script whose image is here. Raises DaemonError."""
        settings, kinds = self._host.settings, []
        for script_type in get_args(ScriptType):
            candidates = tuple(map(settings.registry.resolve, settings.images.candidates(script_type)))
            found = self._images.find(candidates)
            if found is not None and not found.config.refused:
                kinds.append(
                    Kind(script_type=script_type, image=found.image, image_id=found.id, image_config=found.config)
                )
        return kinds

    def renew_leases(self) -> None:
        """To be called more often than a lease lasts. Raises redis errors."""
        claims = list(self._claims.copy().values())
        if claims:
            self._store.renew(claims)
        metrics.lease_renewed.set_to_current_time()

    def standing(self) -> Counter[tuple[str, str]]:
        """How many jobs this worker has, by status (preparing, running) and type."""
        return Counter((attempt.status, attempt.script_type) for attempt in self._attempts.copy().values())

    def newest_taken(self) -> dict[tuple[str, int], int]:
        """By queue and priority: when the newest message was sent of those that this worker has taken (ms)."""
        return self._newest_taken.copy()

    def run(self, job_id: str) -> JobResult | NotNow:
        """The job's result; or why there is none now: `busy` (a worker has it, or it is to wait), `missing`,
        `unreadable` (a newer version takes it), `later` (it will be sent again), `left` (to the next worker of this
        host). Raises redis errors."""
        claim = self._store.claim(job_id, host=self._host.settings.host_name, node=self._node)
        if claim == "finished":
            return self._store.result(job_id) or "missing"
        if claim == "unreadable":
            self._note_unreadable(job_id)
        if not isinstance(claim, Claim):
            return claim
        self._note_taken(claim)
        return self._complete(claim, Attempt.run)

    def _note_unreadable(self, job_id: str) -> None:
        """Recovery sends the job's message again and again: one line in the log is enough."""
        if job_id not in self._unreadable:
            logger.warning("job %s is left to a worker of a newer version", job_id, extra={"job_id": job_id})
        self._unreadable[job_id] = None
        if len(self._unreadable) > _MOST_UNREADABLE:
            del self._unreadable[next(iter(self._unreadable))]

    def _note_taken(self, claim: Claim) -> None:
        key = (claim.job.queue or DEFAULT_QUEUE, claim.job.priority)
        metrics.claims.labels("taken").inc()
        self.taken += 1
        self._newest_taken[key] = max(claim.sent_at_ms, self._newest_taken.get(key, 0))

    def adopt(self, container: OwnContainer) -> threading.Thread | None:
        """Take a container over that a worker of this host has left, and go on with its job in a thread.

        To be called while no other worker of this host can be running. A container of an attempt that is not the
        current one is destroyed, and one that waits for a job; one without a record is left to the janitor. None: it
        was not adopted.
        """
        if container.job_id is None or container.attempt is None:
            self._pool.destroy(partial(destroy, self._host, container))
            return None
        host = self._host.settings.host_name
        claim = self._store.adopt(container.job_id, attempt=container.attempt, host=host, node=self._node)
        if isinstance(claim, Claim):
            metrics.claims.labels("adopted").inc()
            logger.info("job %s is adopted", container.job_id, extra=_about(claim))
            thread = threading.Thread(target=self._resume, args=(claim, container), name=f"adopted {container.job_id}")
            thread.daemon = True
            thread.start()
            return thread
        if claim == "unreadable":
            self._note_unreadable(container.job_id)
        if claim != "missing":
            destroy(self._host, container)
        return None

    def _resume(self, claim: Claim, container: OwnContainer) -> None:
        try:
            if claim.adoptions > DEATH_BUDGET:
                destroy(self._host, container)
                self._give_up(claim)
            else:
                self._complete(claim, lambda attempt: attempt.resume(container))
            # Celery's own message was the lost worker's: whoever takes this one finds the result.
            self._send(claim.job.id)
        except (ClaimLost, RedisError):
            logger.exception("adopted job not completed", extra={"job_id": claim.job.id})

    def _give_up(self, claim: Claim) -> None:
        """The end of a job whose worker died again and again, each time soon after it had taken the job over."""
        message = f"given up after {claim.adoptions} workers in a row that died with it"
        progress = claim.progress
        if progress is not None and progress.started_at:
            self._store.write(
                claim, [progress_body("a part of the log may be missing: its container was given up", gap=True)]
            )
        result = JobResult(
            job_id=claim.job.id,
            status="failed",
            error=ErrorInfo(type="lost", message=message),
            attempt=claim.attempt,
            host=claim.host,
            image=progress.image if progress else None,
            log=LogSummary(gap=bool(progress and progress.started_at)),
            created_at=claim.created_at,
            started_at=progress.started_at if progress else None,
            finished_at=now_iso(),
        )
        self._finish(claim, result, message)

    def _complete(self, claim: Claim, run: Callable[[Attempt], JobResult]) -> JobResult | NotNow:
        with journal.about(**_about(claim)):
            return self._attempt(claim, run)

    def _attempt(self, claim: Claim, run: Callable[[Attempt], JobResult]) -> JobResult | NotNow:
        job_id = claim.job.id
        token = self.active.add(job_id)
        self._claims[job_id] = claim
        try:
            with Attempt(self._host, self._store, self._images, self._pool, claim, token) as attempt:
                self._attempts[job_id] = attempt
                result = run(attempt)
                logger.info("job %s %s", job_id, result.status, extra={"status": result.status})
                return self._conclude(claim, result)
        except Detached as detached:
            if detached.container_left:
                self._store.write(claim, [], {"detached": 1})
                self._store.renew([claim])  # the next worker has that long to come
                return "left"
            self._again(claim, "again: its worker is about to end")
            return "later"
        except ClaimLost:
            metrics.claims_lost.inc()
            logger.warning("job %s was taken over", job_id)
            return "busy"
        finally:
            self.active.discard(job_id)
            self._claims.pop(job_id, None)
            self._attempts.pop(job_id, None)

    def _conclude(self, claim: Claim, result: JobResult) -> JobResult | NotNow:
        message = result.error.message if result.error else "completed"
        retry = claim.job.retry
        if _found_no_engine(result):
            # This host must take no more, and the job is not to blame: any host may try it.
            self._on_engine_away()
            self._again(claim, message, delay_s=_FAULT_DELAY_S)
            return "later"
        error_type = result.error.type if result.error else None
        if result.error is not None and result.error.retryable and claim.faults < FAULT_BUDGET:
            metrics.retried(claim.job.script.type, error_type)
            self._again(claim, message, delay_s=_FAULT_DELAY_S * 2**claim.faults, fault=True)
            return "later"
        if result.status in retry.on and claim.failures + 1 < retry.max_attempts:
            metrics.retried(claim.job.script.type, error_type)
            self._again(claim, message, delay_s=retry.delay_before(claim.failures + 2), failure=True)
            return "later"
        return self._finish(claim, result, message)

    def _finish(self, claim: Claim, result: JobResult, message: str) -> JobResult:
        """Write the end. Where Redis does not take the whole of it, the job has failed, and has no outputs."""
        try:
            self._store.finish(claim, result, message)
        except ResponseError as refusal:
            if result.output == Output():
                raise
            logger.exception("the result of job %s is kept without its outputs", result.job_id)
            message = f"Redis did not take the outputs: {shortened(str(refusal), 200)}"
            error = ErrorInfo(type="output", message=message)
            result = result.model_copy(update={"status": "failed", "error": error, "output": Output()})
            self._store.finish(claim, result, message)
        metrics.finished(result.status, claim.job.script.type, result.error.type if result.error else None)
        return result

    def _again(
        self, claim: Claim, message: str, *, delay_s: float = 0, fault: bool = False, failure: bool = False
    ) -> None:
        text = f"again in {delay_s:g} s: {message}" if delay_s else message
        self._store.retry(claim, text, delay_s=delay_s, fault=fault, failure=failure)
        # In time if this worker lives; if it does not, recovery sends it.
        timer = threading.Timer(delay_s, self._send, [claim.job.id])
        timer.daemon = True
        timer.start()


def _about(claim: Claim) -> dict[str, str | int]:
    """For its lines in the log."""
    return {"job_id": claim.job.id, "attempt": claim.attempt}


def _found_no_engine(result: JobResult) -> bool:
    """Whether the engine was away before anything had been started."""
    error = result.error
    return error is not None and result.started_at is None and error.details.get("answered") is False
