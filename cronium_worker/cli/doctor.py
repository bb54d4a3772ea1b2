"""`cronium doctor`: is this host fit? One line a check."""

import os
import pwd
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import click
from redis.exceptions import RedisError

from cronium_worker.broker import is_amqp
from cronium_worker.cli import hardening
from cronium_worker.cli.finding import Finding
from cronium_worker.cli.printing import one_line
from cronium_worker.errors import BrokerUnavailable, CroniumError
from cronium_worker.fleet.connections import connect
from cronium_worker.fleet.keys import REMEDY
from cronium_worker.models.job import JOBS_NODE
from cronium_worker.models.sentinel import sentinel_address
from cronium_worker.preflight import RedisServer, broken_keys, look, redis_addresses, remedy
from cronium_worker.settings import Settings, get_settings, without_password

if TYPE_CHECKING:
    from cronium_worker.engine.client import Engine

_CANARY_S = 5.0
_MOUNT_FLAGS = {os.ST_RDONLY: "ro", os.ST_NOSUID: "nosuid", os.ST_NODEV: "nodev", os.ST_NOEXEC: "noexec"}


def _redis(settings: Settings) -> Iterator[Finding]:
    for name, address in redis_addresses(settings):
        part = "redis" if name == "CRONIUM_REDIS_URL" else "broker"
        shown = without_password(address)
        yield from hardening.redis_address(part, shown, address)
        try:
            with connect(address, retries=0) as redis:
                server = look(redis)
                broken = broken_keys(redis)
        except (RedisError, OSError) as error:
            yield Finding(part, f"{shown}: {error}", remedy(error, name))
            continue
        yield Finding(part, f"{shown}, version {server.version or 'not told'}: writes, runs scripts")
        yield from _keeping(part, server)
        if part == "redis" and settings.redis_wait_replicas and server.replicas is not None:
            yield hardening.replicas(server.replicas, settings.redis_wait_replicas)
        yield from (Finding(f"{part} keys", str(each), REMEDY) for each in broken)


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
    from cronium_worker.engine.firewall import name_servers
    from cronium_worker.engine.host_network import engine_pid, root
    from cronium_worker.engine.images import first_present
    from cronium_worker.engine.wiring import Wiring

    try:
        engine = Engine()
        info = engine.info()
    except CroniumError as error:
        yield Finding("docker", str(error), "start the Docker Engine, or set DOCKER_HOST")
        return
    yield Finding("docker", f"Engine {info['ServerVersion']}, cgroup v{info.get('CgroupVersion', '1')}")
    for kind in ("bash", "python", "node"):
        candidates = [settings.registry.resolve(name) for name in settings.images.candidates(kind)]
        found = first_present(engine, candidates)
        pulled = settings.registry.prefix or getattr(settings.images, kind)
        make = "run `cronium images pull --local`" if pulled else "run `make images` (or `cronium images build`)"
        remedy = "" if found else make
        yield Finding(f"image {kind}", found[0] if found else f"none of {', '.join(candidates)}", remedy)
    try:
        yield from _hardness(engine, info, settings)
        yield from _redis_for_jobs(engine, settings)
        yield hardening.wiring(Wiring(engine, settings).obstacle())
        yield hardening.name_servers([str(server) for server in name_servers(root(engine_pid(engine)))])
    except CroniumError as error:
        yield Finding("docker", str(error), "start the Docker Engine")
    engine.close()


def _hardness(engine: "Engine", info: Mapping[str, Any], settings: Settings) -> Iterator[Finding]:
    """Of the engine, and of who may use it."""
    versions = engine.components()
    for name in ("Engine", "containerd", "runc"):
        yield hardening.component(name, versions.get(name, ""))
    yield from hardening.engine(info, versions, settings.security)
    if (limit := _dirty_limit_bytes()) is not None:
        yield hardening.dirty_pages(limit, group=str(info.get("CgroupVersion", "1")))
    if engine.socket_path is None:
        address, verified = engine.address
        yield hardening.engine_address(address, verified=verified)
        return
    with suppress(OSError):
        yield hardening.engine_socket(engine.socket_path, Path(engine.socket_path).stat().st_mode)


def _dirty_limit_bytes() -> int | None:
    """See proc_vmstat(5); None: not told."""
    with suppress(OSError):
        found = re.search(r"^nr_dirty_threshold (\d+)$", Path("/proc/vmstat").read_text(), re.MULTILINE)
        return int(found[1]) * os.sysconf("SC_PAGE_SIZE") if found else None
    return None


def _redis_for_jobs(engine: "Engine", settings: Settings) -> Iterator[Finding]:
    """Without its password, at the address that containers have for this host: the firewall is looked at apart."""
    from cronium_worker.engine.network import find_network

    network = find_network(engine, fleet=settings.fleet)
    url = settings.redis_url.get_secret_value()
    if network is None or url.startswith("unix:"):
        return
    address = str(network.gateway)
    sentinel = sentinel_address(url)
    scheme = "rediss" if url.startswith("rediss:") or (sentinel and sentinel.tls) else "redis"
    for port in sorted(_redis_ports(url)):
        try:
            with connect(f"{scheme}://{address}:{port}", retries=0, read_timeout_s=2) as redis:
                answers = bool(redis.ping())
        except (RedisError, OSError):
            answers = False
        yield hardening.redis_for_jobs(address, port, answers=answers)


def _redis_ports(url: str) -> set[int]:
    """Those of the sentinels too: whoever may talk to one may have another Redis made the primary."""
    sentinel = sentinel_address(url)
    if sentinel is None:
        return {urlsplit(url).port or 6379}
    ports = {port for _, port in sentinel.sentinels}
    with suppress(RedisError), connect(url, retries=0) as redis:
        pool: Any = redis.connection_pool
        ports.add(pool.get_master_address()[1])
    return ports


def _host(settings: Settings) -> Iterator[Finding]:
    """What the kernel and the accounts of this host let happen."""
    values: dict[str, str | None] = {}
    for name in hardening.SYSCTLS:
        values[name] = None
        with suppress(OSError):
            values[name] = Path("/proc/sys", *name.split(".")).read_text().strip()
    yield from hardening.sysctls(values)
    uid, _ = settings.container_uid_gid
    try:
        entry = pwd.getpwuid(uid)
        yield hardening.container_user(uid, (entry.pw_name, entry.pw_shell))
    except KeyError:
        yield hardening.container_user(uid, None)
    mask = os.umask(0o022)
    os.umask(mask)
    yield hardening.umask(mask)
    path = settings.base_path
    if path.is_dir():
        about, flags = path.stat(), os.statvfs(path).f_flag
        options = ",".join(name for flag, name in _MOUNT_FLAGS.items() if flags & flag) or "rw"
        own = about.st_dev != Path("/").stat().st_dev
        yield from hardening.base_path(
            str(path),
            mode=about.st_mode,
            owner=about.st_uid,
            expected=os.geteuid(),
            own_file_system=own,
            options=options,
        )


def _firewall(settings: Settings) -> Iterator[Finding]:
    from cronium_worker.engine.client import Engine
    from cronium_worker.engine.firewall import Firewall

    if settings.security.firewall == "off":
        yield Finding("firewall", "CRONIUM_SECURITY__FIREWALL=off: the rules are somebody else's")
        return
    try:
        engine = Engine()
    except CroniumError:
        return  # told already
    try:
        in_place = Firewall(engine, settings.security, fleet=settings.fleet).look()
    except CroniumError as error:
        reason, _, advice = str(error).partition("; ")
        yield Finding("firewall", reason, advice or "see `cronium firewall`")
        return
    finally:
        engine.close()
    if in_place is None:
        yield Finding("firewall", "nothing to fence: no job has run here yet")
        return
    yield Finding(
        "firewall",
        "jobs are fenced" if in_place else "rules are missing, or are not those of these settings",
        "" if in_place else "start the worker as root, or load them with `cronium firewall | nft -f -`",
    )


def _container(settings: Settings) -> Iterator[Finding]:
    """Make one as for a job, where there is an image for it."""
    from cronium_worker.engine.client import Engine
    from cronium_worker.engine.confinement import confinement
    from cronium_worker.engine.images import ImageManager
    from cronium_worker.engine.network import find_network
    from cronium_worker.execution.sandbox import Host
    from cronium_worker.execution.trial import try_container

    try:
        engine = Engine()
    except CroniumError:
        return  # told already
    try:
        candidates = [settings.registry.resolve(name) for name in settings.images.candidates("bash")]
        image = ImageManager(engine, settings.registry).find(candidates)
        if image is None:
            return  # told already
        # Doctor makes no network: the worker does, and fences it.
        network = "isolated" if find_network(engine, fleet=settings.fleet) else "none"
        runtime = settings.security.runtime or engine.info()["DefaultRuntime"]
        host = Host(engine=engine, settings=settings, seccomp=confinement(engine, settings.security))
        yield from hardening.container(f"{runtime}, network {network}", try_container(host, image, network=network))
    except CroniumError as error:
        yield Finding("container", str(error), "jobs cannot run here: see docs/troubleshooting.md")
    finally:
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


def _workers(_settings: Settings) -> Iterator[Finding]:
    """Not whether they live, but whether they take what is sent to them."""
    from cronium_worker.canary import ask_agents, ask_queue
    from cronium_worker.housekeeping import hosts

    try:
        views = hosts().hosts()
        agents = [view.name for view in views if view.has_agent]
        live = ", ".join(f"{node}@{view.name}" for view in views for node in view.nodes)
        serve = any(view.serves(None) for view in views)
        for view in views:
            if view.lacks:
                yield Finding(f"host {view.name}", "; ".join(view.lacks), hardening.ALLOW, weak=True)
        yield Finding("workers", live or "none", "" if serve else "start one with `cronium worker`")
        for queue in sorted({queue for view in views for queue in view.queues}):
            serving = {view.name: view.nodes[JOBS_NODE] for view in views if view.serves(queue)}
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
    taking = {host: report for host, report in serving.items() if report.get("taking_jobs")}
    if not taking:
        return Finding(name, f"{', '.join(serving)}: drained, or without room", "see `cronium hosts`")
    host = ask(queue, timeout_s=_CANARY_S)
    if host is not None:
        return Finding(name, f"taken by {host}")
    if all(report.get("running", 0) >= report.get("slots", 1) for report in taking.values()):
        return Finding(name, f"{', '.join(taking)}: all slots are taken")
    return Finding(name, f"{', '.join(taking)}: took no message", "restart these workers: they live, and take no jobs")


_OK, _WEAK, _FAILED = (
    click.style(mark, fg=colour) for mark, colour in (("ok  ", "green"), ("weak", "yellow"), ("FAIL", "red"))
)

_CHECKS: tuple[Callable[[Settings], Iterator[Finding]], ...] = (
    _redis, _broker, _docker, _firewall, _container, _base_path, _host,
)  # fmt: skip


@click.command()
@click.option("--workers", is_flag=True, help="check as well that workers take what is sent to them")
def doctor(workers: bool) -> None:
    """Check this host: one line a check, with the remedy. Exit code 1 if any failed; not for what is only weak.

    \b
    Example:
      cronium doctor --workers
    """
    settings = get_settings()
    failed = False
    for check in (*_CHECKS, _workers) if workers else _CHECKS:
        for finding in check(settings):
            failed = failed or bool(finding.remedy and not finding.weak)
            mark = _WEAK if finding.weak else _FAILED
            mark = mark if finding.remedy else _OK
            text = f"{finding.name}: {finding.text}" + (f" → {finding.remedy}" if finding.remedy else "")
            click.echo(f"{mark} {one_line(text)}")  # noqa: TID251 - the marks are coloured
    raise click.exceptions.Exit(int(failed))
