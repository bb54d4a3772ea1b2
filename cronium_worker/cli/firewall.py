"""`cronium firewall`: the rules for a host whose worker may not install them."""

import click

from cronium_worker.cli.printing import echo
from cronium_worker.settings import get_settings


@click.command()
def firewall() -> None:
    """Print the firewall rules of this host's jobs. A worker with the right to do so loads them itself.

    \b
    Example:
      cronium firewall | sudo nft -f -
    """
    from cronium_worker.engine.client import Engine
    from cronium_worker.engine.firewall import Firewall

    settings = get_settings()
    engine = Engine()
    try:
        echo(Firewall(engine, settings.security, fleet=settings.fleet).text(), nl=False)
    finally:
        engine.close()
