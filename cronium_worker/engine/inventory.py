"""What there is on a host's engine: its facts, and the objects that the janitor has to know of."""

import os
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol

import requests
from docker.errors import APIError, ImageNotFound

from cronium_worker.engine.client import Engine, faults
from cronium_worker.engine.image_config import CONTROL_DIRECTORY
from cronium_worker.engine.recipe import LABEL_DIGEST
from cronium_worker.errors import DaemonError
from cronium_worker.models.fields import JOB_ID_PATTERN

_JOB_ID = re.compile(JOB_ID_PATTERN)
_ATTEMPT = re.compile(r"[1-9][0-9]{0,8}")


@dataclass(frozen=True, kw_only=True)
class OwnContainer:
    """A container that a host of a fleet has made. `created_s`: seconds since the epoch, by the
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


class Evidence(Protocol):
    """What the host's own directories say of a sandbox (workspace.assignment)."""

    @property
    def control(self) -> str: ...

    @property
    def assignment(self) -> tuple[str, int] | None: ...


def own_containers(
    engine: Engine,
    *,
    fleet: str,
    host: str,
    evidence: Callable[[str], Evidence | None],
    left_alone: Callable[[str, str], object] = lambda _name, _reason: None,
) -> list[OwnContainer]:
    """Return the containers, running or not, that this host of this fleet has made. Raises DaemonError.

    Labels alone prove nothing: images and `docker commit` hand them on, and anybody may write them. A container is
    this host's if the workspace of its sandbox exists, and the container has that workspace's control directory where
    a worker mounts it. A copy of such a container was made after it: the oldest is believed. For each other container
    with the labels of this fleet and host, `left_alone` is called with its name and the reason.
    """
    found: dict[str, OwnContainer] = {}
    wanted = {"cronium.fleet": fleet, "cronium.host": host}
    rows = _containers(engine, [f"{name}={value}" for name, value in wanted.items()])
    for row in reversed(rows):  # the engine has the newest first
        labels = row["Labels"] or {}
        sandbox_id = labels.get("cronium.sandbox", "")
        # The engine has filtered already; what is to be removed is looked at twice.
        if not wanted.items() <= labels.items():
            continue
        known = evidence(sandbox_id)
        first = found.get(sandbox_id)
        if known is None:
            left_alone(_name(row), "this host has no workspace of its sandbox")
        elif known.control not in map(os.path.realpath, _bound(row, CONTROL_DIRECTORY)):
            left_alone(_name(row), "it does not have its sandbox's control directory")
        elif first is not None:
            left_alone(_name(row), f"{first.name} of the same sandbox is older")
        else:
            job_id, attempt = known.assignment or _job_by_labels(labels) or (None, None)
            found[sandbox_id] = OwnContainer(
                id=row["Id"],
                name=_name(row),
                sandbox_id=sandbox_id,
                created_s=row["Created"],
                job_id=job_id,
                attempt=attempt,
                running=row["State"] == "running",
            )
    return list(found.values())


def _name(row: Mapping[str, Any]) -> str:
    return str((row["Names"] or [row["Id"][:12]])[0]).lstrip("/")


def _job_by_labels(labels: Mapping[str, str]) -> tuple[str, int] | None:
    """Job and attempt of a container that was made for a job: at its making each label of ours was set or cleared."""
    job_id, attempt = labels.get("cronium.job.id", ""), labels.get("cronium.job.attempt", "")
    return (job_id, int(attempt)) if _JOB_ID.fullmatch(job_id) and _ATTEMPT.fullmatch(attempt) else None


def _bound(row: Mapping[str, Any], target: str | None = None) -> Iterator[str]:
    """The host's directories and files that a container has (at `target`)."""
    for mount in row.get("Mounts") or ():
        if mount["Type"] == "bind" and target in (None, mount["Destination"]):
            yield os.path.normpath(mount["Source"])


def in_use(engine: Engine, workspaces: Iterable[Path]) -> set[Path]:
    """Return those of which a container on this engine, of whatever fleet, has a part, or names the sandbox as its own.
    Raises DaemonError."""
    with faults(DaemonError, "container list"):
        rows = engine.api.containers(all=True)
    named = {(row["Labels"] or {}).get("cronium.sandbox") for row in rows}
    # By their text: what others have mounted is not looked at, it may hang (NFS).
    mounted = {part for row in rows for path in map(Path, _bound(row)) for part in (path, *path.parents)}
    return {
        path
        for path in workspaces
        if path.name in named or not mounted.isdisjoint({path, Path(os.path.realpath(path))})
    }


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
