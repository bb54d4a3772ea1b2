"""`cronium schedule`: jobs that run again and again."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from cronium_worker.cli.jobs import show_table
from cronium_worker.cli.printing import echo
from cronium_worker.cli.run import job_fields, job_options

if TYPE_CHECKING:
    from cronium_worker.schedules import ScheduleView

_JSON_OPTION = click.option("--json", "as_json", is_flag=True, help="print JSON alone")
_COLUMNS = ("name", "when", "zone", "next", "last", "status", "job", "note")


@click.group()
def schedule() -> None:
    """Run jobs again and again, by cron expression or interval. It needs beat: `make up` starts one.

    \b
    Example:
      cronium schedule add nightly report.py --cron '30 2 * * *' --timezone Europe/Berlin
    """


@schedule.command()
@click.argument("name")
@job_options
@click.option("--cron", metavar="EXPRESSION", help="minute hour day month weekday, like '*/5 * * * *'")
@click.option("--every", metavar="INTERVAL", help="instead: like 30s, 5m, 12h, 7d")
@click.option("--timezone", metavar="ZONE", help="of the cron expression, like Europe/Berlin  [default: UTC]")
@click.option("--overlap", type=click.Choice(["allow", "skip", "cancel-previous"]), help="[default: allow]")
@click.option("--missed", type=click.Choice(["skip", "run-once"]), help="[default: skip]")
@_JSON_OPTION
def add(
    name: str,
    cron: str | None,
    every: str | None,
    timezone: str | None,
    overlap: str | None,
    missed: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Keep FILE as a job to be run again and again under NAME.

    --overlap says what happens when the last run has not ended: another one, none this time, or the last one is
    cancelled. --missed: whether what was due while no beat ran is made up for, once.

    \b
    Example:
      cronium schedule add tidy tidy.sh --every 12h --overlap skip
    """
    from cronium_worker.schedules import add as add_schedule

    given = {"cron": cron, "every": every, "timezone": timezone, "overlap": overlap, "missed": missed}
    fields = {field: value for field, value in given.items() if value is not None}
    _show(add_schedule({"name": name, **fields, "job": job_fields(**options)}), as_json=as_json)


@schedule.command()
@_JSON_OPTION
def ls(as_json: bool) -> None:
    """List the schedules, with their next and their last run.

    \b
    Example:
      cronium schedule ls
    """
    from cronium_worker.schedules import schedules

    views = schedules()
    if as_json:
        echo(json.dumps([asdict(view) for view in views]))
        return
    show_table(_COLUMNS, [_row(view) for view in views])
    if views:
        _warn_without_beat()


@schedule.command()
@click.argument("name")
def rm(name: str) -> None:
    """Forget a schedule. A run that has begun goes on: `cronium cancel` ends it.

    \b
    Example:
      cronium schedule rm nightly
    """
    from cronium_worker.schedules import remove

    remove(name)
    echo(f"{name} is removed")


@schedule.command()
@click.argument("name")
@_JSON_OPTION
def pause(name: str, as_json: bool) -> None:
    """Let a schedule rest.

    \b
    Example:
      cronium schedule pause nightly
    """
    from cronium_worker.schedules import pause as pause_schedule

    _show(pause_schedule(name), as_json=as_json)


@schedule.command()
@click.argument("name")
@_JSON_OPTION
def resume(name: str, as_json: bool) -> None:
    """Go on with a schedule that rests. What was due meanwhile is not made up for.

    \b
    Example:
      cronium schedule resume nightly
    """
    from cronium_worker.schedules import resume as resume_schedule

    _show(resume_schedule(name), as_json=as_json)


def _show(view: "ScheduleView", *, as_json: bool) -> None:
    if as_json:
        echo(json.dumps(asdict(view)))
    else:
        echo(f"{view.name} is paused" if view.paused else f"{view.name} runs next at {view.next_at}")
        _warn_without_beat()


def _warn_without_beat() -> None:
    from cronium_worker.schedules import beat_leads

    if not beat_leads():
        echo("no beat runs, so nothing is due: start one with `celery -A cronium_worker.app beat`", err=True)


def _row(view: "ScheduleView") -> list[str]:
    cells = (
        view.name,
        view.cron or (view.every and f"every {view.every}s"),
        view.timezone,
        "paused" if view.paused else view.next_at,
        view.last_due_at,
        view.status,
        view.last_job_id,
        view.note,
    )
    return [str(cell or "") for cell in cells]
