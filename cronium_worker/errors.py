"""The one tree of exceptions.

CroniumError
├── ConfigurationError      a setting or this machine is not fit; one line for the operator
├── ImageBuildError         a runner image could not be built
├── BrokerUnavailable       nobody can be asked or told anything through Celery
├── JobNotFound             no record of that id
├── JobConflict             the id is taken by another job
├── ScheduleNotFound        no schedule of that name
├── ScheduleConflict        there is a schedule of that name already
├── JobFailed               the job ended other than `completed`; `.result` has everything
├── SecretsUnreadable       there is no key for a job's secrets, or another one; the message says what to do
├── ClaimLost               this worker no longer owns the attempt; it must write nothing more
├── Detached                this worker is to leave the attempt to the next one; its container runs on
└── Fault                   an attempt ended for a typed reason: becomes the result's `error`
    ├── InvalidJob
    ├── ImagePullError
    ├── ContainerCreateError
    ├── ContainerStartError
    ├── NetworkError
    ├── DaemonError
    │   └── ContainerGone   somebody else removed the container
    ├── Cancelled
    └── OutputError
"""

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from pydantic import ValidationError

from cronium_worker.models import ErrorInfo, ErrorType, JobResult


class CroniumError(Exception):
    """Base of all of this package's exceptions."""


class ConfigurationError(CroniumError):
    """A setting or a part of this machine is missing or wrong; the message names it and the remedy."""


class ImageBuildError(CroniumError):
    """A base or runner image could not be built; the message has the end of the build's output."""


class BrokerUnavailable(CroniumError):
    """Celery's broker does not answer."""


class TooBusy(CroniumError):
    """The server has no memory left for this now."""


class JobNotFound(CroniumError):
    """There is no record of this job: the id is wrong, or its time to live is over."""


class JobConflict(CroniumError):
    """A different job with the same id is registered."""


class ScheduleNotFound(CroniumError):
    """There is no schedule of this name."""


class ScheduleConflict(CroniumError):
    """Another schedule has this name."""


class SecretsUnreadable(CroniumError):
    """A job's secrets cannot be encrypted or decrypted here; the message has nothing of them, and says what to do."""


class NotSigned(CroniumError):
    """A job without a signature of the fleet's, where the fleet asks for one; the message says what to do."""


class ClaimLost(CroniumError):
    """The record is no longer this worker's: its fencing token is not the current one."""


class Detached(CroniumError):
    """The worker was told to end. `container_left`: the script runs on, for whoever adopts it; else it was not
    started, and nothing is left."""

    def __init__(self, message: str = "the worker is about to end", *, container_left: bool) -> None:
        super().__init__(message)
        self.container_left = container_left


class JobFailed(CroniumError):
    """A job ended as `failed`, `timeout` or `cancelled`.

    Its only argument is the result as a dict, so that Celery's JSON result backend can carry it.
    """

    def __init__(self, result: JobResult | Mapping[str, Any]) -> None:
        data = result.model_dump(mode="json") if isinstance(result, JobResult) else dict(result)
        super().__init__(data)
        self._given = result  # as long as this lives, so does an output that is ready

    @property
    def result(self) -> JobResult:
        return JobResult.model_validate(self.args[0])

    def __str__(self) -> str:
        result = self.result
        reason = result.error.message if result.error else "no reason recorded"
        return f"job {result.job_id} {result.status}: {reason}"

    def __repr__(self) -> str:
        result = self.result
        return f"JobFailed({result.job_id!r}, {result.status!r})"


class Fault(CroniumError):
    """Why an attempt ended. `retryable` faults are the fleet's own and are tried again by the worker."""

    type: ClassVar[ErrorType]

    def __init__(self, message: str, *, retryable: bool = False, **details: Any) -> None:
        super().__init__(message)
        self.retryable = retryable
        self.details = details

    def info(self) -> ErrorInfo:
        return ErrorInfo(type=self.type, message=str(self), retryable=self.retryable, details=dict(self.details))


class InvalidJob(Fault):
    """The worker's own check refused the job: its producer checked by other rules, or not at all."""

    type = "validation"


class ImagePullError(Fault):
    type = "image_pull"


class ContainerCreateError(Fault):
    type = "container_create"


class ContainerStartError(Fault):
    type = "container_start"


class NetworkError(Fault):
    type = "network"


class DaemonError(Fault):
    """The Docker Engine did not answer, or answered with an error of its own."""

    type = "daemon"


class ContainerGone(DaemonError):
    """The container was removed while it was the attempt's."""


class Cancelled(Fault):
    type = "cancelled"


class OutputError(Fault):
    """The files that the script left as its output are not what they must be."""

    type = "output"


_SHOWN_ERRORS = 20


def _shown(part: int | str) -> str:
    """A key of the caller's own: short, and nothing in it that could forge a line or steer a terminal."""
    text = str(part)[:80]
    return text if text.isprintable() else ascii(text)[1:-1]


def validation_message(error: ValidationError, *, prefix: str = "") -> str:
    """One line for a user: each wrong field with its reason, never its value.

    With a `prefix` the fields are written as environment variables (`CRONIUM_LOG__DRIVER`).
    """
    return details_message(error.errors(include_url=False, include_input=False), prefix=prefix)


def details_message(details: Iterable[Mapping[str, Any]], *, prefix: str = "") -> str:
    """The same of pydantic's list of what is wrong: `loc`, `type` and `msg` of each."""
    parts = []
    for detail in details:
        path = [_shown(part) for part in detail["loc"][:4]]
        name = prefix + "__".join(path).upper() if prefix else ".".join(path)
        unknown = detail["type"] == "extra_forbidden"
        reason = "unknown field" if unknown else detail["msg"].removeprefix("Value error, ")
        parts.append(f"{name}: {reason}" if name else reason)
    more = len(parts) - _SHOWN_ERRORS
    return "; ".join(parts[:_SHOWN_ERRORS]) + (f"; and {more} more" if more > 0 else "")
