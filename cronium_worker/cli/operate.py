"""`cronium worker`, `hosts`, `drain`, `images`, `config`: run the fleet."""

import json
import sys
from typing import Any

import click

from cronium_worker.cli.jobs import show_table
from cronium_worker.errors import ConfigurationError
from cronium_worker.models.job import AGENT_NODE, DEFAULT_QUEUE, HOST_QUEUE_PREFIX, JOBS_NODE
from cronium_worker.settings import get_settings

_AGENT_SLOTS = 2


@click.command()
@click.option("--concurrency", type=click.IntRange(1, 1024), help="jobs at once  [default: CRONIUM_CONCURRENCY, 8]")
@click.option("--queues", metavar="Q,Q", help="queues to serve, the first one first  [default: cronium.jobs]")
@click.option("--node", type=click.Choice([JOBS_NODE, AGENT_NODE]), help="only this one of the host's two nodes")
def worker(concurrency: int | None, queues: str | None, node: str | None) -> None:
    """Serve this host: a node for jobs, a node for maintenance. SIGTERM lets running jobs end first.

    \b
    Example:
      cronium worker --concurrency 16 --queues cronium.jobs,reports
    """
    settings = get_settings()
    slots = concurrency or settings.concurrency
    served = queues or DEFAULT_QUEUE
    if node is None:
        raise click.exceptions.Exit(_both_nodes(slots, served))
    arguments = {
        JOBS_NODE: ["--concurrency", str(slots), "--queues", served],
        AGENT_NODE: ["--concurrency", str(_AGENT_SLOTS), "--queues", HOST_QUEUE_PREFIX + settings.host_name],
    }
    from cronium_worker.worker import serve

    serve(f"{node}@{settings.host_name}", arguments[node])


def _both_nodes(slots: int, queues: str) -> int:
    from cronium_worker.cli.supervise import supervise

    command = [sys.executable, "-m", "cronium_worker", "worker", "--node"]  # also where `cronium` is not on the PATH
    return supervise(
        {
            JOBS_NODE: [*command, JOBS_NODE, "--concurrency", str(slots), "--queues", queues],
            AGENT_NODE: [*command, AGENT_NODE],
        }
    )


@click.command()
@click.option("--json", "as_json", is_flag=True, help="print JSON alone")
def hosts(as_json: bool) -> None:
    """List the hosts whose workers answer.

    \b
    Example:
      cronium hosts
    """
    from cronium_worker.control import ask

    stats, active, queues = ask("stats"), ask("active"), ask("active_queues")
    rows = [
        {
            "host": name.partition("@")[2],
            "running": len(active.get(name, [])),
            "slots": stats[name]["pool"]["max-concurrency"],
            "queues": [queue["name"] for queue in queues.get(name, [])],
            "state": "live" if queues.get(name) else "draining",
        }
        for name in sorted(stats)
        if name.startswith(f"{JOBS_NODE}@")
    ]
    if as_json:
        click.echo(json.dumps(rows))
        return
    columns = ("host", "state", "running", "slots", "queues")
    show_table(
        columns,
        [[row["host"], row["state"], row["running"], row["slots"], " ".join(row["queues"])] for row in rows],
    )


@click.command()
@click.argument("host")
def drain(host: str) -> None:
    """Let HOST take no more jobs; those that run there go on. A restart of its worker ends the drain.

    \b
    Example:
      cronium drain build-7
    """
    from cronium_worker.control import ask, stop_intake

    node = f"{JOBS_NODE}@{host}"
    queues = ask("active_queues")
    if node not in queues:
        raise click.ClickException(f"{host}: no worker of this name answers; see `cronium hosts`")
    stop_intake(node, [queue["name"] for queue in queues[node]])
    click.echo(f"{host} takes no more jobs")


@click.command()
@click.option("--json", "as_json", is_flag=True, help="print JSON alone")
def config(as_json: bool) -> None:
    """Print the effective settings, secrets masked.

    \b
    Example:
      CRONIUM_CONCURRENCY=16 cronium config
    """
    settings = get_settings().masked()
    if as_json:
        click.echo(json.dumps(settings))
        return
    for name, value in _flat("CRONIUM", settings):
        click.echo(f"{name}={value if isinstance(value, str) else json.dumps(value)}")


def _flat(prefix: str, values: dict[str, Any], join: str = "_") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for key, value in values.items():
        name = f"{prefix}{join}{key.upper()}"
        pairs += _flat(name, value, "__") if isinstance(value, dict) else [(name, "" if value is None else value)]
    return pairs


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

    for image in build_images(Engine().api, flavour=flavour, report=click.echo):
        click.echo(image.reference)


@images.command("pull")
@click.argument("references", metavar="[IMAGE]...", nargs=-1)
def images_pull(references: tuple[str, ...]) -> None:
    """Pull IMAGEs to this host; without any, the fleet's own by its settings.

    \b
    Example:
      cronium images pull registry.example/team/tools:3
    """
    from cronium_worker.engine.client import Engine
    from cronium_worker.engine.images import ImageManager

    settings = get_settings()
    chosen = references or tuple(name for name in settings.images.model_dump().values() if name)
    if not chosen:
        raise ConfigurationError("no image to pull: name one, or set CRONIUM_IMAGES__BASH, __PYTHON, __NODE")
    manager = ImageManager(Engine(), settings.registry)
    for reference in chosen:
        manager.ensure(
            (reference,), "always", cancelled=lambda: False, progress=lambda text: click.echo(text, err=True)
        )
        click.echo(reference)


@images.command("ls")
@click.option("--json", "as_json", is_flag=True, help="print JSON alone")
def images_ls(as_json: bool) -> None:
    """List this host's runner images.

    \b
    Example:
      cronium images ls
    """
    from cronium_worker.engine.client import Engine
    from cronium_worker.engine.images import list_runner_images

    rows = list_runner_images(Engine())
    if as_json:
        click.echo(json.dumps(rows))
        return
    columns = ("image", "flavour", "version", "size_mb")
    show_table(columns, [[row[column] for column in columns] for row in rows])
