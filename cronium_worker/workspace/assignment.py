"""Which job a sandbox is for that was made before there was one. Its container has no label of a job, and no way to
be given one: the worker writes it into the control directory before it releases the job."""

import json
import os
from pathlib import Path
from typing import NamedTuple

from cronium_worker.workspace.directories import Workspace, named

_NAME = "job"


class Assignment(NamedTuple):
    job_id: str
    attempt: int


def assign(workspace: Workspace, assignment: Assignment) -> None:
    """All at once, and for good. Raises OSError."""
    unfinished = workspace.control / f"{_NAME}.tmp"
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(assignment, file)
    unfinished.rename(workspace.control / _NAME)


def assigned(base_path: Path, sandbox_id: str) -> Assignment | None:
    """None: to none, as far as can be read."""
    try:
        text = (named(base_path, sandbox_id).control / _NAME).read_text()
        job_id, attempt = json.loads(text)
    except (OSError, ValueError, TypeError):
        return None
    return Assignment(str(job_id), int(attempt))
