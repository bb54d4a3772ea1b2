"""What becomes of an attempt: the job's end, or another one, when, and on whose account."""

from types import SimpleNamespace
from typing import Any

import pytest

from cronium_worker.execution.runner import Runner
from cronium_worker.fleet.store import Claim
from cronium_worker.models import ErrorInfo, Job, JobResult
from cronium_worker.policy import FAULT_BUDGET
from cronium_worker.settings import Settings

RETRY = {"max_attempts": 4, "delay": 50, "backoff": 3, "on": ["failed"]}
FAULT = {"status": "failed", "error": ErrorInfo(type="start", message="why", retryable=True), "started_at": "now"}
FAILURE = {"status": "failed", "error": ErrorInfo(type="script", message="why"), "started_at": "now"}
NO_ENGINE = FAULT | {
    "error": ErrorInfo(type="daemon", message="why", retryable=True, details={"answered": False}),
    "started_at": None,
}
NEITHER = {"fault": False, "failure": False}


class Store:
    """Takes what the runner decides."""

    def __init__(self) -> None:
        self.decided: list[Any] = []

    def retry(self, claim: Claim, message: str, **how: Any) -> None:
        self.decided.append((message, how))

    def finish(self, claim: Claim, result: JobResult, message: str) -> None:
        self.decided.append(message)


@pytest.mark.parametrize(
    ("faults", "failures", "result", "expected"),
    [
        (0, 3, FAULT, ("again in 1 s: why", NEITHER | {"delay_s": 1, "fault": True})),
        (2, 0, FAULT, ("again in 4 s: why", NEITHER | {"delay_s": 4, "fault": True})),
        (FAULT_BUDGET - 1, 3, FAULT, ("again in 4 s: why", NEITHER | {"delay_s": 4, "fault": True})),
        (FAULT_BUDGET, 3, FAULT, "why"),
        (FAULT_BUDGET, 1, FAULT, ("again in 150 s: why", NEITHER | {"delay_s": 150, "failure": True})),
        (2, 0, FAILURE, ("again in 50 s: why", NEITHER | {"delay_s": 50, "failure": True})),
        (0, 2, FAILURE, ("again in 300 s: why", NEITHER | {"delay_s": 300, "failure": True})),
        (0, 3, FAILURE, "why"),
        (0, 0, FAILURE | {"status": "timeout"}, "why"),
        (0, 0, {"status": "completed"}, "completed"),
        (FAULT_BUDGET, 3, NO_ENGINE, ("again in 1 s: why", NEITHER | {"delay_s": 1})),
    ],
)
def test_the_end_of_an_attempt(faults: int, failures: int, result: dict[str, Any], expected: Any) -> None:
    host: Any = SimpleNamespace(engine=None, settings=Settings())
    store: Any = Store()
    away: list[bool] = []
    runner = Runner(host, store, on_engine_away=lambda: away.append(True))
    job = Job.model_validate({"id": "j", "script": {"type": "bash", "content": "true"}, "retry": RETRY})
    claim = Claim(
        job=job, token="t", attempt=1, host="h", created_at="", queued_at="", faults=faults, failures=failures
    )  # fmt: skip

    runner._conclude(claim, JobResult.model_validate({"job_id": "j"} | result))

    assert store.decided == [expected]
    assert away == [True] * (result is NO_ENGINE)
