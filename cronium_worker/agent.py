"""A host's housekeeping: sweeps and pre-pulls, each with a report for the registry and for who asked for it."""

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

from redis.exceptions import RedisError

from cronium_worker.engine.client import Engine
from cronium_worker.engine.images import ImageManager, first_present
from cronium_worker.engine.inventory import engine_facts, present_images
from cronium_worker.errors import Fault, InvalidJob
from cronium_worker.fleet.events import now_iso
from cronium_worker.fleet.hosts import HostRegistry, Housekeeping
from cronium_worker.janitor import Janitor
from cronium_worker.policy import known_images, pull_policy, wanted_images
from cronium_worker.settings import Settings

logger = logging.getLogger(__name__)

_FACTS_EVERY_S = 60


class Agent:
    """Safe for threads: one run of each kind at a time."""

    def __init__(
        self, engine: Engine, images: ImageManager, janitor: Janitor, registry: HostRegistry, settings: Settings
    ) -> None:
        self._engine = engine
        self._images = images
        self._janitor = janitor
        self._registry = registry
        self._settings = settings
        self._running: dict[Housekeeping, threading.Lock] = {"cleanup": threading.Lock(), "prepull": threading.Lock()}
        self._facts: dict[str, Any] = {}
        self._facts_at = 0.0

    def beat(self) -> None:
        """Tell the registry what this host is. Engine and images are looked at once a minute, and after a run."""
        if time.monotonic() - self._facts_at >= _FACTS_EVERY_S:
            self._look()
        self._registry.beat(self._settings.host_name, "agent", self._facts)

    def _look(self) -> None:
        facts: dict[str, Any] = {"fleet": self._settings.fleet, "version": version("cronium-worker")}
        try:
            facts |= engine_facts(self._engine)
            known = sorted(map(self._settings.registry.resolve, known_images(self._settings)))
            facts["images"] = present_images(self._engine, known)
            self._facts_at = time.monotonic()
        except Fault as fault:
            facts["error"] = str(fault)
        self._facts = facts

    def cleanup(self, *, run: str | None = None, dry_run: bool = False) -> None:
        """Sweep this host. `run`: the name under which somebody waits for the report."""

        def work() -> dict[str, Any]:
            return self._janitor.sweep(dry_run=dry_run).report()

        self._report("cleanup", run, work, keep=not dry_run)

    def prepull(self, references: Sequence[str] | None = None, *, run: str | None = None) -> None:
        """Bring images to this host: those named, else the ones that its settings want here."""

        def work() -> dict[str, Any]:
            wanted = [(reference,) for reference in references] if references else wanted_images(self._settings)
            return {"images": [self._pull(candidates, run) for candidates in wanted]}

        self._report("prepull", run, work, keep=True)

    def _pull(self, candidates: Sequence[str], run: str | None) -> dict[str, Any]:
        """One image, as a row of the report."""

        def progress(message: str, **_: Any) -> None:
            if run is not None:
                with suppress(RedisError):
                    self._registry.answer(run, self._settings.host_name, {"progress": message})

        try:
            unknown = set(candidates) - known_images(self._settings)
            if unknown:
                raise InvalidJob(f"{unknown.pop()} is not on this host's allow-list (CRONIUM_ALLOWED_IMAGES)")
            # The flavour that is here is kept up to date, another one is not brought.
            resolved = [self._settings.registry.resolve(name) for name in candidates]
            here = first_present(self._engine, resolved)
            ordered = sorted(resolved, key=lambda image: here is None or image != here[0])
            policy = pull_policy("never" if self._settings.pull_policy == "never" else "always", resolved)
            pulled = self._images.pull_first(ordered, policy=policy, cancelled=lambda: False, progress=progress)
        except Fault as fault:
            logger.warning("image %s: %s", candidates[0], fault)
            return {"image": candidates[0], "error": fault.info().model_dump(mode="json")}
        return {**asdict(pulled), "error": None}

    def _report(self, kind: Housekeeping, run: str | None, work: Callable[[], dict[str, Any]], *, keep: bool) -> None:
        lock = self._running[kind]
        # Beat's own turn comes again; who waits for the report waits for the run before as well.
        if not lock.acquire(blocking=run is not None):
            logger.info("%s left out: one is under way", kind)
            return
        started = time.monotonic()
        report: dict[str, Any] = {"at": now_iso()}
        try:
            report |= work()
        except (Fault, OSError, RedisError) as error:
            logger.warning("%s failed: %s", kind, error)
            report["error"] = str(error) if isinstance(error, Fault) else type(error).__name__
        finally:
            lock.release()
        report["seconds"] = round(time.monotonic() - started, 3)
        logger.info("%s done in %.3f s", kind, report["seconds"], extra={"report": report})
        self._tell(kind, run, report, keep=keep)

    def _tell(self, kind: Housekeeping, run: str | None, report: Mapping[str, Any], *, keep: bool) -> None:
        host = self._settings.host_name
        if keep:
            self._registry.report(host, kind, report)
        self._facts_at = 0.0
        self.beat()
        if run is not None:
            self._registry.answer(run, host, {"report": report})
