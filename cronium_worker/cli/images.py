"""`cronium images`: build here, pull to all hosts, list on all hosts."""

import json
from typing import Any

import click

from cronium_worker.cli.fleet import HostReports, ask_every_host
from cronium_worker.cli.jobs import show_table
from cronium_worker.cli.printing import echo
from cronium_worker.errors import ConfigurationError
from cronium_worker.settings import get_settings

_LOCAL_OPTION = click.option("--local", is_flag=True, help="this machine's engine alone; needs no worker")
_JSON_OPTION = click.option("--json", "as_json", is_flag=True, help="print JSON alone")
_ANSWER_MARGIN_S = 30


@click.group()
def images() -> None:
    """Build, pull and list the images that jobs run in.

    \b
    Example:
      cronium images build --flavour debian
    """


@images.command("build")
@click.option("--flavour", type=click.Choice(["alpine", "debian"]), help="[default: alpine if its base can be pulled]")
def images_build(flavour: str | None) -> None:
    """Build base and runner images on this host. What is unchanged is left as it is.

    \b
    Example:
      cronium images build
    """
    from cronium_worker.engine.build import build_images
    from cronium_worker.engine.client import Engine

    for image in build_images(Engine().api, flavour=flavour, report=echo):
        echo(image.reference)


@images.command("pull")
@click.argument("references", metavar="[IMAGE]...", nargs=-1)
@click.option("--timeout", type=click.FloatRange(min=1), help="seconds to wait  [default: the fleet's limit of a pull]")
@_LOCAL_OPTION
@_JSON_OPTION
def images_pull(references: tuple[str, ...], timeout: float | None, local: bool, as_json: bool) -> None:
    """Pull IMAGEs to all hosts now and wait for each host's report; without any, those that the hosts' settings name.

    Exit code 1 if a host failed or did not answer.

    \b
    Example:
      cronium images pull registry.example/team/tools:3
    """
    from cronium_worker.beat_schedule import PREPULL

    if local:
        _pull_here(references)
        return
    wait_s = timeout or get_settings().registry.pull_timeout + _ANSWER_MARGIN_S
    answered = ask_every_host(PREPULL, timeout_s=wait_s, references=references or None)
    if as_json:
        echo(json.dumps({"hosts": answered.reports, "silent": answered.silent}))
    else:
        _show_pulled(answered)
    failed = [
        row for report in answered.reports.values() for row in report.get("images", [{"error": report}]) if row["error"]
    ]
    raise click.exceptions.Exit(int(bool(answered.silent or failed)))


def _pull_here(references: tuple[str, ...]) -> None:
    from cronium_worker.engine.client import Engine
    from cronium_worker.engine.images import ImageManager
    from cronium_worker.policy import wanted_images

    settings = get_settings()
    chosen = [(reference,) for reference in references] or wanted_images(settings)
    if not chosen:
        raise ConfigurationError("no image to pull: name one, or set CRONIUM_IMAGES__BASH, __PYTHON, __NODE")
    manager = ImageManager(Engine(), settings.registry)
    for candidates in chosen:
        pulled = manager.pull_first(candidates, policy="always", cancelled=lambda: False, progress=_show_progress)
        echo(pulled.image)


def _show_progress(message: str, **_: Any) -> None:
    echo(message, err=True)


def _show_pulled(answered: HostReports) -> None:
    rows = []
    for host, report in answered.reports.items():
        if "error" in report:
            rows.append([host, "", report["error"], "", report["seconds"]])
        for row in report.get("images", ()):
            if row["error"]:
                rows.append([host, row["image"], f"failed: {row['error']['message']}", "", ""])
            else:
                outcome = "pulled" if row["pulled"] else "up to date"
                rows.append([host, row["image"], outcome, row["digest"] or row["id"], f"{row['seconds']:.1f}"])
    rows += [[host, "", "did not answer", "", ""] for host in answered.silent]
    show_table(("host", "image", "outcome", "digest", "seconds"), rows)


@images.command("ls")
@_LOCAL_OPTION
@_JSON_OPTION
def images_ls(local: bool, as_json: bool) -> None:
    """List the fleet's images on each live host, as the hosts have reported them.

    \b
    Example:
      cronium images ls --local
    """
    rows = _images_here() if local else _images_of_hosts()
    if as_json:
        echo(json.dumps(rows))
        return
    columns = ("image", "flavour", "version", "size_mb") if local else ("host", "image", "digest", "size_mb")
    show_table(columns, [[row[column] for column in columns] for row in rows])


def _images_here() -> list[dict[str, Any]]:
    from cronium_worker.engine.client import Engine
    from cronium_worker.engine.images import list_runner_images

    return list_runner_images(Engine())


def _images_of_hosts() -> list[dict[str, Any]]:
    from cronium_worker.housekeeping import hosts
    from cronium_worker.models.job import AGENT_NODE

    return [
        {
            "host": host.name,
            "image": image["image"],
            "digest": image["digest"] or image["id"],
            "size_mb": round(image["bytes"] / 1e6),
        }
        for host in hosts().hosts()
        for image in host.nodes.get(AGENT_NODE, {}).get("images", ())
    ]
