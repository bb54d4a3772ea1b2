"""`cronium doctor`: is this host fit? One line a check."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import click
from redis.exceptions import RedisError

from cronium_worker.broker import is_amqp
from cronium_worker.errors import BrokerUnavailable, CroniumError
from cronium_worker.fleet.store import connect
from cronium_worker.models.job import AGENT_NODE, JOBS_NODE
from cronium_worker.preflight import RedisServer, look, redis_addresses, remedy
from cronium_worker.settings import Settings, get_settings, without_password

_CANARY_S = 5.0


class Finding(NamedTuple):
    """What a check found. `remedy`: empty when all is well."""

    name: str
    text: str
    remedy: str = ""


def _redis(settings: Settings) -> Iterator[Finding]:
    for name, address in redis_addresses(settings):
        part = "redis" if name == "CRONIUM_REDIS_URL" else "broker"
        shown = without_password(address)
        try:
            with connect(address, retries=0) as redis:
                server = look(redis)
        except (RedisError, OSError) as error:
            yield Finding(part, f"{shown}: {error}", remedy(error, name))
            continue
        yield Finding(part, f"{shown}, version {server.version or 'not told'}: writes, runs scripts")
        yield from _keeping(part, server)


def _keeping(part: str, server: RedisServer) -> Iterator[Finding]:
    if server.eviction is not None:
        keeps = server.eviction == "noeviction"
        limited = "" if server.memory_limit_bytes else ", no maxmemory"
        advice = "" if keeps else "set maxmemory-policy noeviction: an evicted key is a lost job"
        yield Finding(f"{part} eviction", f"maxmemory-policy {server.eviction}{limited}", advice)
    if server.append_only is not None:
        yield Finding(
            f"{part} persistence",
            "append-only file on" if server.append_only else "append-only file off",
            "" if server.append_only else "set appendonly yes: without it a restart of Redis loses jobs",
        )


def _broker(settings: Settings) -> Iterator[Finding]:
    if not is_amqp(settings):
        return
    from cronium_worker.control import reach_broker

    shown = str(settings.masked()["broker_url"])
    try:
        server = reach_broker()
    except BrokerUnavailable as error:
        yield Finding("broker", f"{shown}: {error}", "start RabbitMQ, or set CRONIUM_BROKER_URL")
        return
    yield Finding("broker", f"{shown}, {server}")


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


def _workers(settings: Settings) -> Iterator[Finding]:
    """Not whether they live, but whether they take what is sent to them."""
    from cronium_worker.canary import ask_agents, ask_queue
    from cronium_worker.housekeeping import hosts

    try:
        nodes = [
            (node, host.name, report)
            for host in hosts().hosts()
            for node, report in host.nodes.items()
            if report["fleet"] == settings.fleet
        ]
        jobs = {host: report for node, host, report in nodes if node == JOBS_NODE}
        agents = [host for node, host, _ in nodes if node == AGENT_NODE]
        live = ", ".join(f"{node}@{host}" for node, host, _ in nodes)
        yield Finding("workers", live or "none", "" if jobs else "start one with `cronium worker`")
        for queue in sorted({queue for report in jobs.values() for queue in report["queues"]}):
            serving = {host: report for host, report in jobs.items() if queue in report["queues"]}
            yield _queue(queue, serving, ask_queue)
        heard = ask_agents(agents, timeout_s=_CANARY_S)
    except (BrokerUnavailable, RedisError) as error:
        yield Finding("workers", str(error), "start the broker and Redis, or set their addresses")
        return
    for host in agents:
        advice = "" if host in heard else "restart it: it lives, and takes no messages"
        yield Finding(f"agent of {host}", "takes messages" if host in heard else "took no message", advice)


def _queue(queue: str, serving: Mapping[str, Mapping[str, Any]], ask: Callable[..., str | None]) -> Finding:
    """Whether one of the hosts that serve a queue takes a message from it."""
    name = f"queue {queue}"
    taking = {host: report for host, report in serving.items() if report["taking_jobs"]}
    if not taking:
        return Finding(name, f"{', '.join(serving)}: drained, or without room", "see `cronium hosts`")
    host = ask(queue, timeout_s=_CANARY_S)
    if host is not None:
        return Finding(name, f"taken by {host}")
    if all(report["running"] >= report["slots"] for report in taking.values()):
        return Finding(name, f"{', '.join(taking)}: all slots are taken")
    return Finding(name, f"{', '.join(taking)}: took no message", "restart these workers: they live, and take no jobs")


@click.command()
@click.option("--workers", is_flag=True, help="check as well that workers take what is sent to them")
def doctor(workers: bool) -> None:
    """Check this host: one line a check, with the remedy. Exit code 1 if any failed.

    \b
    Example:
      cronium doctor --workers
    """
    settings = get_settings()
    checks: list[Callable[[Settings], Iterator[Finding]]] = [_redis, _broker, _docker, _base_path]
    failed = False
    for check in [*checks, _workers] if workers else checks:
        for finding in check(settings):
            failed = failed or bool(finding.remedy)
            mark = click.style("ok  ", fg="green") if not finding.remedy else click.style("FAIL", fg="red")
            click.echo(f"{mark} {finding.name}: {finding.text}" + (f" → {finding.remedy}" if finding.remedy else ""))
    raise click.exceptions.Exit(int(failed))
