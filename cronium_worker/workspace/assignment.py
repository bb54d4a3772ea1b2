"""Which job a sandbox is for that was made before there was one. Its container has no label of a job, and no way to
be given one: the worker writes it into the control directory before it releases the job."""

import json
import os
import re
from pathlib import Path
from typing import NamedTuple

from cronium_worker.models.fields import JOB_ID_PATTERN
from cronium_worker.workspace.directories import Workspace, find

_NAME = "job"
_JOB_ID = re.compile(JOB_ID_PATTERN)


class Assignment(NamedTuple):
    job_id: str
    attempt: int


class Evidence(NamedTuple):
    """What the host's own directories say of a sandbox. `control`: the path of its control directory, without links.
    `assignment`: None: it was made for a job, or waits for one."""

    control: str
    assignment: Assignment | None


def assign(workspace: Workspace, assignment: Assignment) -> None:
    """All at once, and for good. Raises OSError."""
    unfinished = workspace.control / f"{_NAME}.tmp"
    descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        json.dump(assignment, file)
    unfinished.rename(workspace.control / _NAME)


def evidence(base_path: Path, sandbox_id: str) -> Evidence | None:
    """Return what is known of a sandbox whose id may come from anywhere; None if it has no workspace of ours."""
    workspace = find(base_path, sandbox_id)
    return Evidence(os.path.realpath(workspace.control), _assigned(workspace)) if workspace else None


def _assigned(workspace: Workspace) -> Assignment | None:
    """None: to none, as far as can be read."""
    try:
        job_id, attempt = json.loads((workspace.control / _NAME).read_text())
        return Assignment(job_id, int(attempt)) if _JOB_ID.fullmatch(job_id) else None
    except (OSError, ValueError, TypeError):
        return None
