"""`cronium logs`, `status`, `result`, `cancel`, `ps`: look at jobs."""

import json
import sys
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from cronium_worker.cli.printing import Output, echo, one_line
from cronium_worker.cli.run import exit_code, follow_here

if TYPE_CHECKING:
    from cronium_worker.fleet.store import JobStore

_JSON_OPTION = click.option("--json", "as_json", is_flag=True, help="print JSON alone")


def store() -> "JobStore":
    # Late, so that `--help` does not wait for Celery.
    from cronium_worker.tasks import store as task_store

    return task_store()


@click.command()
@click.argument("job_id", metavar="ID")
@click.option("-f", "--follow", is_flag=True, help="go on to the end of the job; exit code as of `run`")
def logs(job_id: str, follow: bool) -> None:
    """Print a job's log: its stdout on stdout, its stderr on stderr.

    \b
    Example:
      cronium logs -f 3f2c9a
    """
    if follow:
        raise click.exceptions.Exit(exit_code(follow_here(job_id, own=False)))
    targets = {"stdout": Output(sys.stdout), "stderr": Output(sys.stderr)}
    for event in store().events(job_id):
        if event["type"] == "log":
            targets[event["stream"]].write(event["data"])


@click.command()
@click.argument("job_id", metavar="ID")
@_JSON_OPTION
def status(job_id: str, as_json: bool) -> None:
    """Say where a job is.

    \b
    Example:
      cronium status 3f2c9a
    """
    names = ("id", "status", "type", "attempt", "queue", "host", "created_at", "started_at", "finished_at", "note")
    record = store().fields(job_id, "job", *names)
    shown: dict[str, Any] = {name: record.get(name) for name in names}
    shown["metadata"] = json.loads(record["job"]).get("metadata", {})
    if as_json:
        echo(json.dumps(shown))
        return
    for name, value in shown.items():
        if value:
            echo(f"{name + ':':<13} {one_line(value)}")


@click.command()
@click.argument("job_id", metavar="ID")
@_JSON_OPTION
def result(job_id: str, as_json: bool) -> None:
    """Print a finished job's output, or its whole result as JSON. Exit code as of `run`.

    \b
    Example:
      cronium result 3f2c9a --json | jq .output.data
    """
    outcome = store().result(job_id)
    if outcome is None:
        raise click.ClickException(f"job {job_id} is not finished; follow it with `cronium logs -f {job_id}`")
    if as_json:
        echo(outcome.model_dump_json())
    else:
        echo(json.dumps(outcome.output.data, ensure_ascii=False, indent=2))
        if outcome.error is not None:
            echo(f"{outcome.status}: {outcome.error.type}: {one_line(outcome.error.message)}", err=True)
    raise click.exceptions.Exit(exit_code(outcome))


@click.command()
@click.argument("job_id", metavar="ID")
def cancel(job_id: str) -> None:
    """End a job in whatever state it is. A finished job is left as it is.

    \b
    Example:
      cronium cancel 3f2c9a
    """
    outcome = store().cancel(job_id)
    echo({"finished": "already finished", "requested": "cancelling"}.get(outcome, outcome))


@click.command()
@click.option("-n", "--last", default=20, show_default=True, type=click.IntRange(1, 10000), help="how many")
@_JSON_OPTION
def ps(last: int, as_json: bool) -> None:
    """List the newest jobs.

    \b
    Example:
      cronium ps -n 50
    """
    rows = store().recent(last)
    if as_json:
        echo(json.dumps(rows))
        return
    columns = ("id", "status", "type", "host", "attempt", "created_at", "finished_at")
    show_table(columns, [[row.get(column, "") for column in columns] for row in rows])


def make_table(columns: tuple[str, ...], rows: list[list[Any]]) -> Table:
    """A table of which no row is cut."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in columns:
        table.add_column(column.upper().replace("_", " "), overflow="fold", no_wrap=True)
    for row in rows:
        table.add_row(*map(one_line, row))
    return table


def show_table(columns: tuple[str, ...], rows: list[list[Any]]) -> None:
    """A table on stdout; no row is cut, also when it is not a terminal."""
    console = Console(highlight=False, markup=False)
    if not console.is_terminal:
        console.width = 4096
    console.print(make_table(columns, rows))
