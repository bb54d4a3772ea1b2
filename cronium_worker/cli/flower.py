"""`cronium flower`: the fleet's web page."""

import click

from cronium_worker.cli.printing import echo
from cronium_worker.credentials import keep
from cronium_worker.settings import get_settings


@click.command()
@click.option("--address", help="where to listen  [default: CRONIUM_FLOWER__ADDRESS, 127.0.0.1]")
@click.option("--port", type=click.IntRange(0, 65535), help="[default: CRONIUM_FLOWER__PORT, 5555; 0: any]")
def flower(address: str | None, port: int | None) -> None:
    """Serve the web page with jobs and workers. Beyond loopback it asks for CRONIUM_FLOWER__USERNAME and __PASSWORD.

    \b
    Example:
      cronium flower --port 8080
    """
    keep("flower")
    from cronium_worker.dashboard.app import serve

    settings = get_settings()
    given = {"address": address, "port": port}
    changed = {name: value for name, value in given.items() if value is not None}
    serve(settings.flower.model_copy(update=changed), report=echo)
