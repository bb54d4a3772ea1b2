"""What there is on a host's engine: its facts, and the objects that the janitor has to know of."""

from collections.abc import Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import requests
from docker.errors import APIError, ImageNotFound

from cronium_worker.engine.client import Engine, faults
from cronium_worker.engine.recipe import LABEL_DIGEST
from cronium_worker.errors import DaemonError


@dataclass(frozen=True, kw_only=True)
class OwnContainer:
    """A container that a host of a fleet has made, by its labels. `created_s`: seconds since the epoch, by the
    clock of the engine's host. `job_id`: None in one that waits for a job. `running`: not ended."""

    id: str
    name: str
    sandbox_id: str
    created_s: float
    job_id: str | None
    attempt: int | None
    running: bool


@dataclass(frozen=True, kw_only=True)
class OwnNetwork:
    id: str
    name: str
    created_s: float


def engine_facts(engine: Engine) -> dict[str, Any]:
    """Version, cgroup version, runtimes and root directory of the engine. Raises DaemonError."""
    info = engine.info()
    return {
        "engine": info["ServerVersion"],
        "cgroup": info.get("CgroupVersion", "1"),
        "runtimes": sorted(info.get("Runtimes") or ()),
        "cores": info["NCPU"],
        "memory_bytes": info["MemTotal"],
        "root": info["DockerRootDir"],
    }


def present_images(engine: Engine, references: Iterable[str]) -> list[dict[str, Any]]:
    """Those of the images that are here: image, id, digest (None: not from a registry), size in bytes.

    Raises DaemonError.
    """
    rows = []
    for reference in references:
        with faults(DaemonError, f"image inspect {reference}"), suppress(ImageNotFound):
            found = engine.api.inspect_image(reference)  # type: ignore[no-untyped-call]
            digests = [digest.partition("@")[2] for digest in found["RepoDigests"] or ()]
            rows.append({
                "image": reference, "id": found["Id"], "digest": next(iter(digests), None), "bytes": found["Size"],
            })  # fmt: skip
    return rows


def own_containers(
    engine: Engine, *, fleet: str, host: str, assigned: Callable[[str], tuple[str, int] | None] = lambda _: None
) -> list[OwnContainer]:
    """Running or not. `assigned`: job and attempt by the id of a sandbox that was made before its job came, and has no
    label of one. Raises DaemonError."""
    wanted = {"cronium.fleet": fleet, "cronium.host": host}
    found = []
    for row in _containers(engine, [f"{name}={value}" for name, value in wanted.items()]):
        labels = row["Labels"] or {}
        # The engine has filtered already; what is to be removed is looked at twice.
        if wanted.items() <= labels.items() and "cronium.sandbox" in labels:
            sandbox_id, label = labels["cronium.sandbox"], labels.get("cronium.job.attempt", "")
            by_label = labels.get("cronium.job.id"), int(label) if label.isdigit() else None
            job_id, attempt = by_label if by_label[0] else assigned(sandbox_id) or (None, None)
            found.append(
                OwnContainer(
                    id=row["Id"],
                    name=(row["Names"] or [row["Id"][:12]])[0].lstrip("/"),
                    sandbox_id=sandbox_id,
                    created_s=row["Created"],
                    job_id=job_id,
                    attempt=attempt,
                    running=row["State"] == "running",
                )
            )
    return found


def sandbox_ids(engine: Engine) -> set[str]:
    """The sandboxes, of whatever fleet, that have a container on this engine. Raises DaemonError."""
    return {row["Labels"]["cronium.sandbox"] for row in _containers(engine, ["cronium.sandbox"])}


def _containers(engine: Engine, labels: list[str]) -> list[dict[str, Any]]:
    with faults(DaemonError, "container list"):
        rows: list[dict[str, Any]] = engine.api.containers(all=True, filters={"label": labels})
        return rows


def unused_networks(engine: Engine, *, fleet: str) -> list[OwnNetwork]:
    """The fleet's networks that no container, running or not, is attached to. Raises DaemonError."""
    with faults(DaemonError, "network list"):
        rows = engine.api.networks(filters={"label": f"cronium.fleet={fleet}"})
        used = {
            name
            for row in engine.api.containers(all=True)
            for name in ((row.get("NetworkSettings") or {}).get("Networks") or ())
        }
    return [
        OwnNetwork(id=row["Id"], name=row["Name"], created_s=datetime.fromisoformat(row["Created"]).timestamp())
        for row in rows
        if row["Name"] not in used
    ]


def remove_network(engine: Engine, network_id: str) -> None:
    """Idempotent. Raises DaemonError, also when a container has been attached meanwhile."""
    with faults(DaemonError, "network remove"):
        try:
            engine.api.remove_network(network_id)
        except APIError as error:
            if error.status_code != requests.codes.not_found:
                raise


def repository(reference: str) -> str:
    """The name of an image without tag and digest."""
    name = reference.partition("@")[0]
    return name.rpartition(":")[0] if ":" in name.rpartition("/")[2] else name


def nameless_images(engine: Engine, *, repositories: Collection[str], pinned: Collection[str]) -> list[str]:
    """Ids of images without a name that were built here as ours, or pulled from one of the `repositories` before
    their tag moved on. `pinned` references (`name@sha256:…`) need no name. Raises DaemonError."""
    with faults(DaemonError, "image list"):
        rows = engine.api.images(filters={"dangling": True})
        return [row["Id"] for row in rows if _was_pulled(row, repositories, pinned) or _was_built(engine, row)]


def _was_pulled(row: dict[str, Any], repositories: Collection[str], pinned: Collection[str]) -> bool:
    digests = set(row["RepoDigests"] or ())
    return digests.isdisjoint(pinned) and any(repository(digest) in repositories for digest in digests)


def _was_built(engine: Engine, row: dict[str, Any]) -> bool:
    """Whether this is a runner image of ours. Whoever builds on one inherits its labels, the digest among them:
    only in ours it differs from that of the step before."""
    digest = (row["Labels"] or {}).get(LABEL_DIGEST)
    if digest is None or not row["ParentId"]:
        return False
    with suppress(ImageNotFound):
        parent = engine.api.inspect_image(row["ParentId"])  # type: ignore[no-untyped-call]
        return bool((parent["Config"]["Labels"] or {}).get(LABEL_DIGEST) != digest)
    return False


def remove_nameless_image(engine: Engine, image_id: str) -> bool:
    """False when it is in use, has a name again, or another removal came first. Raises DaemonError."""
    with faults(DaemonError, "image remove"):
        try:
            engine.api.remove_image(image_id)
        except APIError as error:
            if error.status_code in (requests.codes.not_found, requests.codes.conflict):
                return False
            raise
    return True
