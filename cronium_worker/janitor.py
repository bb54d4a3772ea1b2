"""Removes from a host what nobody claims any more: containers, workspaces, networks, nameless images.

Only what carries the fleet's and the host's own marks is looked at, and only what has been nobody's for longer
than the retention is removed. Without the records there is no sweep: what cannot be asked for is no orphan.
"""

import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, get_args

from cronium_worker.engine import inventory
from cronium_worker.engine.client import Engine
from cronium_worker.engine.inventory import OwnContainer
from cronium_worker.engine.network import FIRST, names_beside
from cronium_worker.errors import Fault
from cronium_worker.fleet.oversight import Oversight, Standing
from cronium_worker.fleet.store import JobStore
from cronium_worker.policy import known_images
from cronium_worker.settings import Settings
from cronium_worker.workspace import directories
from cronium_worker.workspace.assignment import evidence
from cronium_worker.workspace.lock import is_locked

logger = logging.getLogger(__name__)

Kind = Literal["containers", "workspaces", "networks", "images"]

# The engine gains nothing from more removals at once.
_REMOVALS_AT_ONCE = 4
_WORKSPACE_TIMEOUT_S = 60


@dataclass(frozen=True)
class _Orphan:
    """Something that nobody claims, and for how long (seconds) nobody has. `remove`: False when it was there no
    more, or is in use again."""

    kind: Kind
    name: str
    age_s: float
    remove: Callable[[], bool | None]


@dataclass
class Sweep:
    """What one sweep did, or would do: names by kind. `failed`: the reason by name; `young`: how many orphans
    were left because their retention is not over; `left_alone`: the reason by the name of each container that has the
    labels of this host and is not its own; `records`: job ids taken off the index."""

    dry_run: bool
    removed: dict[Kind, list[str]] = field(default_factory=lambda: {kind: [] for kind in get_args(Kind)})
    failed: dict[str, str] = field(default_factory=dict)
    young: int = 0
    left_alone: dict[str, str] = field(default_factory=dict)
    records: int = 0

    def report(self) -> dict[str, Any]:
        """As JSON. The newest hundred names of a kind: a report is read by people."""
        return {
            "dry_run": self.dry_run,
            "removed": {kind: len(names) for kind, names in self.removed.items()} | {"records": self.records},
            "names": {kind: names[:100] for kind, names in self.removed.items() if names},
            "young": self.young,
            "left_alone": dict(list(self.left_alone.items())[:100]),
            "failed": self.failed,
        }


class Janitor:
    """One host's. `sweep` must not run twice at once."""

    def __init__(self, engine: Engine, store: JobStore, settings: Settings) -> None:
        self._engine = engine
        self._oversight = Oversight(store)
        self._settings = settings
        self._told: dict[str, str] = {}

    def sweep(self, *, dry_run: bool = False) -> Sweep:
        """Raises DaemonError and redis errors when it cannot be told what is an orphan; what cannot be removed is
        in the sweep's `failed`, and left to the next one."""
        sweep = Sweep(dry_run=dry_run)
        containers = self._containers(sweep)
        self._remove(sweep, containers.values())
        self._remove(sweep, self._workspaces(containers.keys() if dry_run else ()))
        self._remove(sweep, self._networks())
        self._remove(sweep, self._images())
        if not dry_run:
            sweep.records = self._oversight.forget_expired()
        return sweep

    def _remove(self, sweep: Sweep, orphans: Iterable[_Orphan]) -> None:
        orphans = list(orphans)
        due = [orphan for orphan in orphans if orphan.age_s >= self._settings.orphan_retention]
        sweep.young += len(orphans) - len(due)
        if sweep.dry_run:
            for orphan in due:
                sweep.removed[orphan.kind].append(orphan.name)
            return
        with ThreadPoolExecutor(_REMOVALS_AT_ONCE, thread_name_prefix="janitor") as threads:
            for orphan, outcome in zip(due, threads.map(_try_to_remove, due), strict=True):
                if isinstance(outcome, str):
                    sweep.failed[orphan.name] = outcome
                elif outcome:
                    sweep.removed[orphan.kind].append(orphan.name)

    def _containers(self, sweep: Sweep) -> dict[str, _Orphan]:
        """By sandbox."""
        settings = self._settings
        found = inventory.own_containers(
            self._engine,
            fleet=settings.fleet,
            host=settings.host_name,
            evidence=partial(evidence, settings.sandboxes_path),
            left_alone=sweep.left_alone.__setitem__,
        )
        self._tell(sweep.left_alone)
        served = is_locked(settings.sandboxes_path)
        standings = self._oversight.standing([container.job_id for container in found if container.job_id])
        orphans = {}
        for container in found:
            if served and container.job_id is None and container.running:
                continue  # it waits for a job: its worker would have taken it along
            age_s = _orphan_for_s(container, settings.host_name, standings)
            if age_s is not None:
                remove = _remover(self._engine.remove, container.id)
                orphans[container.sandbox_id] = _Orphan("containers", container.name, age_s, remove)
        return orphans

    def _tell(self, left_alone: Mapping[str, str]) -> None:
        """Once, not at each sweep."""
        if new := {name: reason for name, reason in left_alone.items() if self._told.get(name) != reason}:
            shown = "; ".join(f"{name}: {reason}" for name, reason in list(new.items())[:5])
            logger.warning("%d containers with this host's labels are not its own, left alone: %s", len(new), shown)
        self._told = dict(left_alone)

    def _workspaces(self, as_if_gone: Collection[str]) -> list[_Orphan]:
        """Those without a container. A workspace is there before its container, so that a young one may be in use."""
        made = directories.existing(self._settings.sandboxes_path)
        in_use = inventory.in_use(self._engine, [workspace.root for workspace, _ in made])

        def remove(workspace: directories.Workspace) -> None:
            directories.remove(workspace, deadline_s=_WORKSPACE_TIMEOUT_S)

        return [
            _Orphan("workspaces", workspace.root.name, time.time() - made_s, _remover(remove, workspace))
            for workspace, made_s in made
            if workspace.root not in in_use or workspace.root.name in as_if_gone
        ]

    def _networks(self) -> list[_Orphan]:
        """Left-over ones of the fleet. The one that jobs of this host use stays: every job would wait for a new one."""

        def remove(network_id: str) -> None:
            inventory.remove_network(self._engine, network_id)

        return [
            _Orphan("networks", network.name, time.time() - network.created_s, _remover(remove, network.id))
            for network in inventory.unused_networks(self._engine, fleet=self._settings.fleet)
            if network.name not in (FIRST.network, names_beside(self._settings.fleet).network)
        ]

    def _images(self) -> list[_Orphan]:
        """Nameless ones: nobody can ask for them, and the engine keeps those that a container uses."""
        images = {self._settings.registry.resolve(image) for image in known_images(self._settings)}
        pinned = {image for image in images if "@" in image}
        repositories = {inventory.repository(image) for image in images}
        found = inventory.nameless_images(self._engine, repositories=repositories, pinned=pinned)

        def remove(image_id: str) -> bool:
            return inventory.remove_nameless_image(self._engine, image_id)

        return [_Orphan("images", image_id, float("inf"), _remover(remove, image_id)) for image_id in found]


def _orphan_for_s(container: OwnContainer, host: str, standings: Mapping[str, Standing]) -> float | None:
    """For how long nobody has claimed a container, None when somebody does: this host's worker, whose lease on this
    very attempt is live. A lease that lapsed a moment ago may be renewed in the next one: its end counts, not the
    container's age."""
    age_s = time.time() - container.created_s
    standing = standings.get(container.job_id) if container.job_id else None
    if standing is None or (standing.host, standing.attempt) != (host, container.attempt):
        return age_s
    if standing.lapsed_s is None:  # it has ended, or waits for its next attempt
        return age_s
    return None if standing.lapsed_s <= 0 else min(age_s, standing.lapsed_s)


def _remover(remove: Callable[[Any], bool | None], what: Any) -> Callable[[], bool | None]:
    return lambda: remove(what)


def _try_to_remove(orphan: _Orphan) -> bool | str:
    try:
        return orphan.remove() is not False
    except (Fault, OSError) as error:
        logger.warning("orphan not removed", extra={"kind": orphan.kind, "orphan": orphan.name})
        return str(error) if isinstance(error, Fault) else error.strerror or type(error).__name__
