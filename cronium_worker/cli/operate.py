"""`cronium worker`, `config`, `key`: a host's own nodes and settings."""

import json
import sys
from collections.abc import Sequence
from typing import Any

import click

from cronium_worker.cli.printing import echo
from cronium_worker.credentials import Process, keep
from cronium_worker.models.job import AGENT_NODE, JOBS_NODE
from cronium_worker.models.queues import DEFAULT_QUEUE, FLEET_QUEUE, HOST_QUEUE_PREFIX, check_fleet_queue
from cronium_worker.settings import get_settings, override

# A node keeps its own credentials alone.
_KEPT: dict[str | None, tuple[Process, ...]] = {JOBS_NODE: ("jobs",), AGENT_NODE: ("agent",)}
# A sweep, a pull, the fan-out; and one that waits for its turn.
_AGENT_SLOTS = 4


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
    keep(*_KEPT.get(node, ("jobs", "agent")))
    settings = get_settings() if concurrency is None else override(concurrency=concurrency)
    slots = settings.concurrency
    served = _checked(queues or DEFAULT_QUEUE, settings.queues)
    if node is None:
        raise click.exceptions.Exit(_both_nodes(slots, served))
    arguments = {
        JOBS_NODE: ["--concurrency", str(slots), "--queues", served],
        AGENT_NODE: [
            "--concurrency",
            str(_AGENT_SLOTS),
            "--queues",
            f"{HOST_QUEUE_PREFIX}{settings.host_name},{FLEET_QUEUE}",
        ],
    }
    from cronium_worker.worker import serve

    serve(f"{node}@{settings.host_name}", arguments[node])


def _checked(queues: str, allowed: Sequence[str]) -> str:
    """Refuses before any process is started."""
    try:
        return ",".join(check_fleet_queue(name.strip(), allowed) for name in queues.split(","))
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--queues") from None


def _both_nodes(slots: int, queues: str) -> int:
    from cronium_worker.cli.supervise import supervise

    command = [sys.executable, "-m", "cronium_worker", "worker", "--node"]  # also where `cronium` is not on the PATH
    settings = get_settings()
    return supervise(
        {
            JOBS_NODE: [*command, JOBS_NODE, "--concurrency", str(slots), "--queues", queues],
            AGENT_NODE: [*command, AGENT_NODE],
        },
        json_about={"host": settings.host_name} if settings.log_format == "json" else None,
    )


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
        echo(json.dumps(settings))
        return
    for name, value in _flat("CRONIUM", settings):
        echo(f"{name}={value if isinstance(value, str) else json.dumps(value)}")


@click.command()
def key() -> None:
    """Print a new key for jobs' secrets. All of the fleet needs it, producers and workers, in CRONIUM_SECRET_KEYS.

    To change it: put the new key, and a comma, before the old one, everywhere; take the old one away when no job from
    before is waiting.

    \b
    Example:
      echo "CRONIUM_SECRET_KEYS=$(cronium key)" >>/etc/cronium/cronium.env
    """
    from cronium_worker.sealing import new_key

    echo(new_key())


def _flat(prefix: str, values: dict[str, Any], join: str = "_") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for key, value in values.items():
        name = f"{prefix}{join}{key.upper()}"
        pairs += _flat(name, value, "__") if isinstance(value, dict) else [(name, "" if value is None else value)]
    return pairs
