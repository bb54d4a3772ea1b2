"""Formats: which fields of a job a version reads, so that versions can run side by side. No I/O.

Format 1 is every field of version 0.1.0. A new field of a job, or a new value of an old one, is one row of
`ADDITIONS`: a job that uses it carries the row's format, and versions with a lower one leave the job alone.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from pydantic import BaseModel, ValidationError

from cronium_worker.models.job import Job

OLDEST = 1
# What pydantic says of a key or value that this version does not know. A new field may also replace a required one.
_UNKNOWN = {"extra_forbidden", "literal_error"}
_REPLACED = {"missing"}


class Addition(NamedTuple):
    """A field that `format` has added to jobs. `value`: only this value of it, when others are older.
    `is_optional`: where a host does not know the field, it is left out and the job is sent without it."""

    field: str  # with dots: "script.arguments"
    format: int
    value: Any = None
    is_optional: bool = False

    def is_in(self, job: Job) -> bool:
        """Return whether the job uses the field: a field that is not given is not sent."""
        part: Any = job
        for name in self.field.split("."):
            if not isinstance(part, BaseModel) or name not in part.model_fields_set:
                return False
            part = getattr(part, name)
        return self.value is None or bool(part == self.value)


ADDITIONS: tuple[Addition, ...] = ()
# The newest format that this version reads.
FORMAT = max((addition.format for addition in ADDITIONS), default=OLDEST)


def newer_than(format_number: int, job: Job) -> list[Addition]:
    """Return what the job uses and a reader of this format does not know."""
    return [addition for addition in ADDITIONS if addition.format > format_number and addition.is_in(job)]


def needed_format(job: Job) -> int:
    """Return the lowest format with which the job can be read whole."""
    return max((addition.format for addition in ADDITIONS if addition.is_in(job)), default=OLDEST)


def without(job: Job, additions: Sequence[Addition]) -> Job:
    """Return the job without these fields."""
    fields = job.model_dump(exclude_unset=True) | {"id": job.id}
    for addition in additions:
        *path, name = addition.field.split(".")
        part = fields
        for each in path:
            part = part[each]
        del part[name]
    return Job.model_validate(fields)


def is_from_newer(error: ValidationError) -> bool:
    """Return whether a stored job fails only on keys and values that a newer version may know."""
    kinds = {detail["type"] for detail in error.errors(include_url=False, include_context=False, include_input=False)}
    return bool(kinds & _UNKNOWN) and kinds <= _UNKNOWN | _REPLACED
