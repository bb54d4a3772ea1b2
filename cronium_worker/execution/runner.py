"""A job on this host, attempt by attempt, to its terminal status."""

import logging

from cronium_worker.engine.images import ImageManager
from cronium_worker.execution.attempt import Attempt
from cronium_worker.execution.sandbox import Host
from cronium_worker.execution.signals import ActiveJobs, CancelToken
from cronium_worker.fleet.store import Claim, JobStore, Outcome
from cronium_worker.models import JobResult

logger = logging.getLogger(__name__)

INFRASTRUCTURE_RETRIES = 3
_INFRASTRUCTURE_DELAY_S = 1.0


class Runner:
    """Takes jobs through their life. One for a worker; `run` is called by many threads at once."""

    def __init__(self, host: Host, store: JobStore) -> None:
        self._host = host
        self._store = store
        self._images = ImageManager(host.engine, host.settings.registry)
        self._claims: dict[str, Claim] = {}
        self.active = ActiveJobs()

    def renew_leases(self) -> None:
        """To be called more often than a lease lasts. Raises redis errors."""
        claims = list(self._claims.copy().values())
        if claims:
            self._store.renew(claims)

    def run(self, job_id: str) -> JobResult | Outcome:
        """The job's result; or why there was nothing to do: `busy` (a worker has it), `missing`.

        Raises ClaimLost when another worker has taken the job over meanwhile, and redis errors.
        """
        faults = failures = 0
        while True:
            claim = self._store.claim(job_id, host=self._host.settings.host_name)
            if claim == "finished":
                return self._store.result(job_id) or "missing"
            if not isinstance(claim, Claim):
                return claim
            token = self.active.add(job_id)
            self._claims[job_id] = claim
            try:
                result = Attempt(self._host, self._store, self._images, claim, token).run()
                logger.info("job %s %s", job_id, result.status, extra={"attempt": claim.attempt})
                if result.error is not None and result.error.retryable and faults < INFRASTRUCTURE_RETRIES:
                    faults += 1
                    delay = _INFRASTRUCTURE_DELAY_S * 2 ** (faults - 1)
                elif result.status in claim.job.retry.on and failures + 1 < claim.job.retry.max_attempts:
                    failures += 1
                    delay = claim.job.retry.delay_before(failures + 1)
                else:
                    self._store.finish(claim, result, _message(result))
                    return result
                self._wait_and_retry(claim, token, result, delay)
            finally:
                self.active.discard(job_id)
                self._claims.pop(job_id, None)

    def _wait_and_retry(self, claim: Claim, token: CancelToken, result: JobResult, delay_s: float) -> None:
        self._store.retry(claim, f"again in {delay_s:g} s: {_message(result)}")
        token.wait(delay_s)  # a cancel of a pending job has ended it: the next claim finds that


def _message(result: JobResult) -> str:
    return result.error.message if result.error else "completed"
