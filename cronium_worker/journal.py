"""The lines of a node's log as JSON objects, each with the job that it belongs to."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from logging import LogRecord
from typing import Any

from pythonjsonlogger.core import RESERVED_ATTRS
from pythonjsonlogger.json import JsonFormatter

_job: ContextVar[Mapping[str, Any]] = ContextVar("job", default={})  # noqa: B039 - nobody changes it
_FORMAT = ["levelname", "name", "message"]
_NAMES = {"levelname": "level", "name": "logger"}
# Celery's own of a task: its arguments are in it, which may be somebody's script.
_OF_A_TASK = "data"


@contextmanager
def about(**fields: Any) -> Iterator[None]:
    """What is logged in this thread until the end of the block is about this job."""
    token = _job.set(fields)
    try:
        yield
    finally:
        _job.reset(token)


class Formatter(JsonFormatter):
    """`timestamp`, `level`, `logger`, `message`; what is given here (the host, the node); `job_id`, `attempt`; what was
    logged as `extra`; `exc_info`. Of Celery's lines about a task `task_id`."""

    def __init__(self, **always: str) -> None:
        reserved = [*RESERVED_ATTRS, _OF_A_TASK]
        super().__init__(
            _FORMAT,
            rename_fields=_NAMES,
            static_fields=always,
            reserved_attrs=reserved,
            timestamp=True,
            json_ensure_ascii=False,
        )

    def add_fields(self, log_data: dict[str, Any], record: LogRecord, message_dict: dict[str, Any]) -> None:
        super().add_fields(log_data, record, message_dict)
        for name, value in _job.get().items():
            log_data.setdefault(name, value)
        task = getattr(record, _OF_A_TASK, None)
        if isinstance(task, Mapping) and "id" in task:
            log_data["task_id"] = task["id"]
