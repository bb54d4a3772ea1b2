"""Takes a host out of its fleet: nothing of the fleet stays on the host's engine, and the fleet forgets the host."""

import shutil
from functools import partial

from cronium_worker.engine import inventory
from cronium_worker.engine.client import Engine
from cronium_worker.engine.firewall import Firewall
from cronium_worker.errors import ConfigurationError
from cronium_worker.fleet.hosts import HostRegistry
from cronium_worker.fleet.store import JobStore
from cronium_worker.janitor import Janitor
from cronium_worker.settings import Settings
from cronium_worker.workspace.assignment import evidence
from cronium_worker.workspace.lock import is_locked


def leave(engine: Engine, store: JobStore, hosts: HostRegistry, settings: Settings) -> None:
    """Remove the host's containers and directory, the fleet's network and its firewall rules. Images stay. Raises
    ConfigurationError when the host's worker or a job runs; DaemonError, NetworkError, OSError, redis errors."""
    if is_locked(settings.sandboxes_path):
        raise ConfigurationError("this host's worker runs; end it first (systemctl disable --now cronium-worker)")
    sweep = Janitor(engine, store, settings.model_copy(update={"orphan_retention": 0})).sweep()
    for name, reason in sweep.failed.items():
        raise ConfigurationError(f"{name} was not removed: {reason}; try again")
    left = inventory.own_containers(
        engine,
        fleet=settings.fleet,
        host=settings.host_name,
        evidence=partial(evidence, settings.sandboxes_path),
        left_alone=lambda name, reason: None,
    )
    if left:
        raise ConfigurationError(
            f"{len(left)} jobs run here; let them end (start the worker, `cronium drain {settings.host_name} --wait`)"
        )
    Firewall(engine, settings.security, fleet=settings.fleet).remove()
    for network in inventory.unused_networks(engine, fleet=settings.fleet):
        inventory.remove_network(engine, network.id)
    shutil.rmtree(settings.sandboxes_path)
    hosts.forget(settings.host_name)
