"""`cronium web`: the HTTP API."""

import click

from cronium_worker.cli.printing import echo
from cronium_worker.credentials import keep
from cronium_worker.settings import get_settings


@click.command()
@click.option("--address", help="where to listen  [default: CRONIUM_WEB__ADDRESS, 127.0.0.1]")
@click.option("--port", type=click.IntRange(0, 65535), help="[default: CRONIUM_WEB__PORT, 8700; 0: any]")
def web(address: str | None, port: int | None) -> None:
    """Serve the HTTP API, for programs in any language. Beyond loopback it asks for CRONIUM_WEB__TOKEN.

    \b
    Example:
      cronium web &
      curl -s localhost:8700/jobs --json '{"script": {"type": "bash", "content": "echo hello"}}'
    """
    keep("web")
    from cronium_worker.web.serve import serve

    settings = get_settings()
    given = {"address": address, "port": port}
    changed = {name: value for name, value in given.items() if value is not None}
    serve(settings.web.model_copy(update=changed), report=echo)
