"""`cronium doctor`: is this host fit? One line a check."""

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import click
from redis.exceptions import RedisError

from cronium_worker.errors import BrokerUnavailable, CroniumError
from cronium_worker.fleet.store import connect
from cronium_worker.models.job import JOBS_NODE
from cronium_worker.settings import Settings, get_settings


class Finding(NamedTuple):
    """What a check found. `remedy`: empty when all is well."""

    name: str
    text: str
    remedy: str = ""


def _redis(settings: Settings) -> Iterator[Finding]:
    address = str(settings.masked()["redis_url"])
    try:
        redis = connect(settings.redis_url.get_secret_value(), retries=0)
        info = redis.info()
    except (RedisError, OSError) as error:
        yield Finding("redis", f"{address}: {error}", "start Redis, or set CRONIUM_REDIS_URL")
        return
    yield Finding("redis", f"{address}, version {info['redis_version']}")
    policy = info.get("maxmemory_policy")
    yield Finding(
        "redis eviction",
        f"maxmemory-policy {policy}",
        "" if policy == "noeviction" else "set maxmemory-policy noeviction: an evicted key is a lost job",
    )
    persistent = bool(info.get("aof_enabled"))
    yield Finding(
        "redis persistence",
        "append-only file on" if persistent else "append-only file off",
        "" if persistent else "set appendonly yes: without it a restart of Redis loses jobs",
    )


def _docker(settings: Settings) -> Iterator[Finding]:
    from cronium_worker.engine.client import Engine
    from cronium_worker.engine.images import first_present

    try:
        engine = Engine()
        info = engine.info()
    except CroniumError as error:
        yield Finding("docker", str(error), "start the Docker Engine, or set DOCKER_HOST")
        return
    yield Finding("docker", f"Engine {info['ServerVersion']}, cgroup v{info.get('CgroupVersion', '1')}")
    seccomp = any("seccomp" in option for option in info.get("SecurityOptions") or ())
    yield Finding(
        "seccomp",
        "on" if seccomp else "not available",
        "" if seccomp else "use a kernel and an engine with seccomp: system calls of jobs are not filtered",
    )
    for kind in ("bash", "python", "node"):
        candidates = [settings.registry.resolve(name) for name in settings.images.candidates(kind)]
        found = first_present(engine, candidates)
        pulled = settings.registry.prefix or getattr(settings.images, kind)
        make = "run `cronium images pull --local`" if pulled else "run `make images` (or `cronium images build`)"
        remedy = "" if found else make
        yield Finding(f"image {kind}", found or f"none of {', '.join(candidates)}", remedy)
    engine.close()


def _base_path(settings: Settings) -> Iterator[Finding]:
    path = settings.base_path
    place = next(parent for parent in (path, *path.parents) if parent.exists())
    fit = os.access(place, os.W_OK) and (place.is_dir())
    remedy = "" if fit else "run the worker as root, or set CRONIUM_BASE_PATH to a directory of its user"
    yield Finding("base path", f"{path}" if fit else f"{path}: not writable", remedy)
    uid, _ = settings.container_uid_gid
    with suppress(OSError):
        uid_fit = os.geteuid() in (0, uid)
        remedy = (
            "" if uid_fit else f"run the worker as root (or as uid {uid}): workspaces belong to the container's user"
        )
        yield Finding("user", f"uid {os.geteuid()}", remedy)
    yield (
        Finding("cgroups", "readable")
        if Path("/sys/fs/cgroup").is_dir()
        else Finding("cgroups", "not mounted", "mount /sys/fs/cgroup: without it jobs have no metrics")
    )


def _workers(_: Settings) -> Iterator[Finding]:
    from cronium_worker.control import ask

    try:
        jobs = sorted(name for name in ask("ping") if name.startswith(f"{JOBS_NODE}@"))
    except BrokerUnavailable as error:
        yield Finding("workers", str(error), "start Redis, or set CRONIUM_REDIS_URL")
        return
    yield Finding("workers", ", ".join(jobs) or "none answers", "" if jobs else "start one with `cronium worker`")


@click.command()
@click.option("--workers", is_flag=True, help="check as well that a worker answers")
def doctor(workers: bool) -> None:
    """Check this host: one line a check, with the remedy. Exit code 1 if any failed.

    \b
    Example:
      cronium doctor --workers
    """
    settings = get_settings()
    checks: list[Callable[[Settings], Iterator[Finding]]] = [_redis, _docker, _base_path]
    failed = False
    for check in [*checks, _workers] if workers else checks:
        for finding in check(settings):
            failed = failed or bool(finding.remedy)
            mark = click.style("ok  ", fg="green") if not finding.remedy else click.style("FAIL", fg="red")
            click.echo(f"{mark} {finding.name}: {finding.text}" + (f" → {finding.remedy}" if finding.remedy else ""))
    raise click.exceptions.Exit(int(failed))
