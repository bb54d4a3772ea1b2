"""`cronium run` and `rerun`: submit a script and follow it, as if it ran here."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import click

from cronium_worker.cli.printing import echo
from cronium_worker.cli.terminal import JobView
from cronium_worker.errors import JobNotFound
from cronium_worker.models.fields import parse_size
from cronium_worker.models.result import JobResult
from cronium_worker.settings import caller_variable

EXIT_TIMEOUT, EXIT_INFRASTRUCTURE, EXIT_CANCELLED = 124, 125, 130
_SUFFIXES = {
    ".sh": "bash",
    ".bash": "bash",
    ".py": "python",
    ".js": "node",
    ".mjs": "node",
    ".cjs": "node",
}


def _pairs(context: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> dict[str, str]:
    pairs = {}
    for value in values:
        name, equals, text = value.partition("=")
        if not equals:
            raise click.BadParameter(f"{value!r} has no value: write NAME=VALUE", context, parameter)
        pairs[name] = text
    return pairs


def _json_value(text: str) -> Any:
    """A variable's value: JSON when it is JSON, else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text
    except RecursionError:
        raise click.BadParameter("is nested too deeply", param_hint="--var") from None


def _input(context: click.Context, parameter: click.Parameter, value: str | None) -> Any:
    if value is None:
        return None
    try:
        text = Path(value[1:]).read_text() if value.startswith("@") else value
        return (json.loads(text),)
    except OSError as error:
        raise click.BadParameter(f"{value[1:]}: {error.strerror}", context, parameter) from None
    except RecursionError:
        raise click.BadParameter("is nested too deeply", context, parameter) from None
    except ValueError as error:
        raise click.BadParameter(f"is not JSON: {error}", context, parameter) from None


def _size(context: click.Context, parameter: click.Parameter, value: str | None) -> Any:
    try:
        return int(value) if value and value.isdigit() else parse_size(value)
    except ValueError as error:
        raise click.BadParameter(str(error), context, parameter) from None


def _secrets(context: click.Context, parameter: click.Parameter, names: tuple[str, ...]) -> dict[str, str]:
    values = {name: caller_variable(name) for name in names}
    for name, value in values.items():
        if value is None:
            raise click.BadParameter(f"{name} is not set in your environment", context, parameter)
    return {name: value for name, value in values.items() if value is not None}


def script(file: str, script_type: str | None) -> dict[str, str]:
    kind = script_type or _SUFFIXES.get(Path(file).suffix.lower())
    if kind is None:
        raise click.BadParameter(f"{file}: no type by this suffix; give --type bash, python or node", param_hint="FILE")
    try:
        data = sys.stdin.buffer.read() if file == "-" else Path(file).read_bytes()
        return {"type": kind, "content": data.decode()}
    except OSError as error:
        raise click.BadParameter(f"{file}: {error.strerror}", param_hint="FILE") from None
    except UnicodeDecodeError as error:
        raise click.BadParameter(f"{file}: not UTF-8 at byte {error.start}", param_hint="FILE") from None


_JOB_OPTIONS = (
    click.option("--type", "script_type", type=click.Choice(["bash", "python", "node"]), help="instead of by suffix"),
    click.option("--input", "input_data", metavar="JSON|@FILE", callback=_input, help="what cronium.input() returns"),
    click.option("--var", "variables", metavar="K=V", multiple=True, callback=_pairs, help="a variable; JSON or text"),
    click.option("--env", "environment", metavar="K=V", multiple=True, callback=_pairs, help="environment variable"),
    click.option(
        "--secret",
        "secrets",
        metavar="K",
        multiple=True,
        callback=_secrets,
        help="secret; value from your environment",
    ),
    click.option("--timeout", type=float, help="seconds of run time  [default: 3600]"),
    click.option("--cpu", type=float, help="cores  [default: 0.5]"),
    click.option("--memory", metavar="SIZE", callback=_size, help="like 512m or 2g  [default: 512m]"),
    click.option("--image", help="an image of the fleet's allow-list"),
    click.option("--network", metavar="MODE", help="isolated, none, or a network of the fleet's allow-list"),
    click.option("--queue", help="for workers started with this queue"),
)


def job_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """FILE and the options that say what job is to be made of it: for `job_fields`."""
    for option in reversed(_JOB_OPTIONS):
        command = option(command)
    return click.argument("file")(command)


def job_fields(
    *,
    file: str,
    script_type: str | None,
    input_data: tuple[Any] | None,
    variables: dict[str, str],
    environment: dict[str, str],
    secrets: dict[str, str],
    timeout: float | None,
    cpu: float | None,
    memory: int | None,
    image: str | None,
    network: str | None,
    queue: str | None,
) -> dict[str, Any]:
    """The job's fields that were given. Raises click.BadParameter."""
    fields: dict[str, Any] = {
        "script": script(file, script_type),
        "environment": environment,
        "secrets": secrets,
        "variables": {name: _json_value(value) for name, value in variables.items()},
        "timeout": timeout,
        "resources": {k: v for k, v in (("cpu", cpu), ("memory", memory)) if v is not None} or None,
        "image": image,
        "network": {"mode": network} if network else None,
        "queue": queue,
    }
    fields = {name: value for name, value in fields.items() if value not in (None, {})}
    if input_data is not None:
        fields["input_data"] = input_data[0]
    return fields


_DETACH_OPTION = click.option("--detach", is_flag=True, help="print the job's id and do not wait")
_JSON_OPTION = click.option(
    "--json", "as_json", is_flag=True, help="print the result as JSON, and nothing of the script"
)


@click.command()
@job_options
@_DETACH_OPTION
@_JSON_OPTION
def run(detach: bool, as_json: bool, **options: Any) -> None:
    """Run FILE on the fleet and follow it. FILE may be - for standard input, with --type.

    The script's stdout and stderr are yours. The exit code is the script's; 124 for a timeout, 125 when it
    could not be run, 130 when it was cancelled (Ctrl-C cancels the job).

    \b
    Example:
      cronium run report.py --input @orders.json --var region=eu --timeout 60
    """
    from cronium_worker.client import submit

    _see_through(submit(job_fields(**options)).id, detach=detach, as_json=as_json)


@click.command()
@click.argument("job_id", metavar="ID")
@_DETACH_OPTION
@_JSON_OPTION
def rerun(job_id: str, detach: bool, as_json: bool) -> None:
    """Run a job that has ended once more, under a new id, and follow it. Exit code as of `run`.

    A job with secrets is refused: they went with its end.

    \b
    Example:
      cronium rerun 3f2c9a
    """
    from cronium_worker.client import rerun as rerun_job

    _see_through(rerun_job(job_id).id, detach=detach, as_json=as_json)


def _see_through(job_id: str, *, detach: bool, as_json: bool) -> NoReturn:
    """Follow a job of this command's to its end, unless nobody is to wait; then exit."""
    if detach:
        echo(json.dumps({"job_id": job_id}) if as_json else job_id)
        raise click.exceptions.Exit(0)
    outcome = follow_here(job_id, quiet=as_json, own=True)
    if as_json:
        echo(outcome.model_dump_json())
    raise click.exceptions.Exit(exit_code(outcome))


def follow_here(job_id: str, *, quiet: bool = False, own: bool) -> JobResult:
    """Show a job's events until its end and return its result.

    `own`: the first Ctrl-C cancels the job and follows it to its end; else it only ends the view (click.Abort).
    """
    from cronium_worker.client import cancel, follow, result

    events = follow(job_id)
    interrupted = False
    with JobView(quiet=quiet) as view:
        while True:
            try:
                for event in events:
                    view.show(event)
                break
            except KeyboardInterrupt:
                if interrupted or not own:
                    raise click.Abort from None
                interrupted = True
                view.notice("cancelling; Ctrl-C again leaves it alone")
                cancel(job_id)
                events = view.resume(follow(job_id))
        outcome = result(job_id)
        if outcome is None:  # its record expired between the terminal event and now
            raise JobNotFound(f"no job {job_id}: its record has expired")
        view.summary(outcome)
    return outcome


def exit_code(outcome: JobResult) -> int:
    if outcome.status == "timeout":
        return EXIT_TIMEOUT
    if outcome.status == "cancelled":
        return EXIT_CANCELLED
    if outcome.status == "completed" or outcome.exit_code:
        return outcome.exit_code or 0
    return EXIT_INFRASTRUCTURE
