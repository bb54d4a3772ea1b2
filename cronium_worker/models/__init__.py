"""The words of the contract: Job and JobResult with their parts. No I/O, no Docker, no Celery."""

from cronium_worker.models.job import Job, Network, Resources, Retry, Script, ScriptType
from cronium_worker.models.result import (
    TERMINAL,
    ErrorInfo,
    ErrorType,
    FinalStatus,
    JobResult,
    LogSummary,
    Metrics,
    Output,
    OutputFile,
    Status,
    Stream,
    Timings,
)

__all__ = [
    "TERMINAL",
    "ErrorInfo",
    "ErrorType",
    "FinalStatus",
    "Job",
    "JobResult",
    "LogSummary",
    "Metrics",
    "Network",
    "Output",
    "OutputFile",
    "Resources",
    "Retry",
    "Script",
    "ScriptType",
    "Status",
    "Stream",
    "Timings",
]
