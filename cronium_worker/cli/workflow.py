"""`cronium workflow`: jobs that follow each other."""

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from cronium_worker.cli.jobs import show_table
from cronium_worker.cli.printing import echo, one_line
from cronium_worker.cli.run import exit_code, follow_here, script
from cronium_worker.errors import JobNotFound

_JSON_OPTION = click.option("--json", "as_json", is_flag=True, help="print JSON alone")
_POLL_S = 0.1


@click.group()
def workflow() -> None:
    """Run jobs that follow each other, on success, failure or a condition.

    \b
    Example:
      cronium workflow run nightly.json
    """


def _steps(path: Path) -> Any:
    """What the file says, with each step's `file`, beside it, for the job's script. Raises click.BadParameter."""
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise click.BadParameter(f"{path}: {error.strerror}", param_hint="FILE") from None
    except (ValueError, RecursionError) as error:
        raise click.BadParameter(f"{path}: is not JSON: {error}", param_hint="FILE") from None
    steps = content.get("steps") if isinstance(content, dict) else None
    for step in steps if isinstance(steps, list) else []:
        if isinstance(step, dict) and isinstance(step.get("file"), str):
            step["job"] = {**step.get("job", {}), "script": script(str(path.parent / step.pop("file")), None)}
    return content


@workflow.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--detach", is_flag=True, help="print the workflow's id and do not wait")
@_JSON_OPTION
def run(file: Path, detach: bool, as_json: bool) -> None:
    """Run the workflow of FILE, and follow its steps one after the other. Ctrl-C leaves it alone.

    FILE is JSON: {"steps": [{"name": …, "file": "check.py" or "job": {…}, "after": …, "on": …}, …]}. The exit code is
    that of the last step that was taken.

    \b
    Example:
      cronium workflow run nightly.json
    """
    from cronium_worker.models.workflow import was_not_taken
    from cronium_worker.workflows import start, steps

    content = _steps(file)
    if not isinstance(content, dict):
        raise click.BadParameter('is no object {"steps": […]}', param_hint="FILE")
    views = start(content)
    workflow_id = views[0].job_id
    if detach:
        echo(json.dumps([asdict(view) for view in views]) if as_json else workflow_id)
        return
    code = 0
    for view in views:
        if not as_json:
            echo(f"── {one_line(view.name)}", err=True)
        _wait_for_record(view.job_id)
        outcome = follow_here(view.job_id, quiet=as_json, own=False)
        code = code if was_not_taken(outcome) else exit_code(outcome)
    if as_json:
        echo(json.dumps([asdict(view) for view in steps(workflow_id)]))
    raise click.exceptions.Exit(code)


def _wait_for_record(job_id: str) -> None:
    """A step gets its record when the one before it has ended, in milliseconds; in seconds if its worker died then."""
    from cronium_worker.client import result

    while True:
        try:
            result(job_id)
        except JobNotFound:
            time.sleep(_POLL_S)
        else:
            return


@workflow.command()
@click.argument("workflow_id", metavar="ID")
@_JSON_OPTION
def show(workflow_id: str, as_json: bool) -> None:
    """List a workflow's steps. ID is that of its first job.

    \b
    Example:
      cronium workflow show 3f2c9a
    """
    from cronium_worker.workflows import steps

    views = steps(workflow_id)
    if as_json:
        echo(json.dumps([asdict(view) for view in views]))
        return
    rows = [[v.name, v.after or "", v.on, v.status or "waiting", v.job_id] for v in views]
    show_table(("step", "after", "on", "status", "job"), rows)
