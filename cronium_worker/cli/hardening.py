"""Where a host is weak: each check a function of what was read. Pure.

A failure is an open door. Everything else is a weakness: a distribution mends old versions without a new number, and
whose machine it is may have reasons.
"""

import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from cronium_worker.cli.finding import Finding
from cronium_worker.engine.seccomp import Version, runtime_of, version_of, why_not_ours
from cronium_worker.models.sentinel import sentinel_address
from cronium_worker.settings import Security, is_loopback

if TYPE_CHECKING:
    from cronium_worker.execution.trial import Trial

# The first good versions of each branch, the newest branch last: what is older has a known way out of a container.
# Engine: CVE-2024-41110. containerd: CVE-2024-40635. runc: CVE-2024-21626, CVE-2025-31133, -52565, -52881.
_GOOD: dict[str, tuple[Version, ...]] = {
    "Engine": ((23, 0, 15), (26, 1, 5), (27, 1, 1)),
    "containerd": ((1, 6, 38), (1, 7, 27), (2, 0, 4)),
    "runc": ((1, 2, 8), (1, 3, 3)),
}
# Its default profile and its own flaws are too old for anybody's patches.
_OLDEST_ENGINE: Version = (20, 10)
# The first whose networks do not lock up when containers end (moby issue 46661).
_STEADY_ENGINE: Version = (23,)
# The first whose default seccomp profile refuses AF_VSOCK (23.0), io_uring (25.0) and AF_ALG (29.4.2, CVE-2026-31431).
_GOOD_PROFILE: Version = (29, 4, 2)
_OWN_FILTERS = "runsc"  # a runtime that gives the host's kernel few system calls, whatever the profile says
# What a distribution puts behind a number of its own.
_PATCHED = re.compile(r"dfsg|[+~]ds|ubuntu|deb|\.el\d|\.fc\d|amzn")
# By name: the values that will do, and what the others let happen.
_SYSCTLS: dict[str, tuple[frozenset[str], str]] = {
    "fs.protected_hardlinks": (frozenset("1"), "links to files of others"),
    "fs.protected_symlinks": (frozenset("1"), "links planted in /tmp"),
    "fs.protected_fifos": (frozenset("12"), "FIFOs planted in /tmp"),
    "fs.protected_regular": (frozenset("12"), "files planted in /tmp"),
    "kernel.unprivileged_bpf_disabled": (frozenset("12"), "BPF programs of anybody"),
    "kernel.dmesg_restrict": (frozenset("1"), "the kernel's log read by anybody"),
    "kernel.yama.ptrace_scope": (frozenset("123"), "processes of the same user read each other"),
}
_BETTER = {"fs.protected_fifos": "2", "fs.protected_regular": "2"}
_NEEDED = frozenset({"kernel.yama.ptrace_scope"})  # a kernel without it is as weak as with 0
SYSCTLS = tuple(_SYSCTLS)
# Measured with 64 MiB (docs/performance.md, attacks); a disk that takes no 256 MiB in a few seconds is too slow anyway.
_MAX_DIRTY_BYTES = 256 * 2**20
_NO_SHELLS = ("nologin", "false", "sync", "halt", "shutdown")

ALLOW = "allow it in the worker's unit (docs/operations.md); ProtectControlGroups= forbids it"


def container(what: str, trial: "Trial") -> Iterator[Finding]:
    """One that was made as for a job."""
    text = f"{what}: started in {trial.seconds:.2f} s"
    if trial.not_in_force:
        wrong = ", ".join(f"{name} is {has}, not {asked}" for name, (asked, has) in trial.not_in_force.items())
        yield Finding("container", f"{text}; {wrong}", "jobs are not limited: look at the engine and its runtime")
    elif trial.unread:
        advice = "give the worker the host's processes and cgroups (docs/operations.md), or use runc"
        yield Finding("container", f"{text}; not to be read: {', '.join(trial.unread)}", advice, weak=True)
    else:
        yield Finding("container", f"{text}; its limits are in force")
    if trial.burst_refused:
        yield Finding("CPU burst", f"jobs start slower: {trial.burst_refused}", ALLOW, weak=True)


def component(name: str, text: str) -> Finding:
    """The Engine, containerd or runc, by the version that it tells."""
    version = version_of(text)
    if not version:
        return Finding(name, f"version {text or 'not told'}", f"look at the version of {name} yourself", weak=True)
    if name == "Engine" and version < _OLDEST_ENGINE:
        return Finding(name, text, "install Docker Engine 20.10 or newer: its seccomp profile and runc are too old")
    if name == "Engine" and version < _STEADY_ENGINE:
        advice = (
            "install Docker Engine 23 or newer; until then keep its security updates installed, and restart it when it "
            "does not answer: it can lock up when containers end (moby issue 46661)"
        )
        return Finding(name, text, advice, weak=True)
    if _is_good(version, _GOOD[name]):
        return Finding(name, text)
    if _PATCHED.search(text):
        return Finding(name, text, "keep the distribution's security updates installed: by its number it is old", True)
    newest = ".".join(map(str, _GOOD[name][-1]))
    return Finding(name, text, f"install {name} {newest} or newer: containers have known ways out of this one", True)


def _is_good(version: Version, branches: Sequence[Version]) -> bool:
    if version >= branches[-1]:
        return True
    return any(version[:2] == good[:2] and version >= good for good in branches)


def engine(info: Mapping[str, Any], versions: Mapping[str, str], security: Security) -> Iterator[Finding]:
    """`docker info` and the versions of the engine's components."""
    group = str(info.get("CgroupVersion", "1"))
    advice = "" if group == "2" else "boot with systemd.unified_cgroup_hierarchy=1: v1 limits direct disk I/O only"
    yield Finding("cgroup version", f"v{group}", advice, weak=True)
    restore = bool(info.get("LiveRestoreEnabled"))
    advice = (
        "" if restore else 'put "live-restore": true into /etc/docker/daemon.json: a restart of the engine ends jobs'
    )
    yield Finding("live-restore", "on" if restore else "off", advice, weak=True)
    options = [str(option) for option in info.get("SecurityOptions") or ()]
    yield _seccomp(info, versions, security)
    module = next((name for name in ("apparmor", "selinux") if any(name in option for option in options)), "")
    advice = "" if module else "boot with AppArmor or SELinux: a job has one fence less"
    yield Finding("AppArmor or SELinux", module or "neither", advice, weak=True)
    remapped = any("userns" in option for option in options)
    yield Finding("userns-remap", "on" if remapped else "off: root in a container would be root here; no job is root")
    exposed = [warning for warning in info.get("Warnings") or () if "API is accessible" in warning]
    if exposed:
        advice = "take -H tcp:// off dockerd, or give it --tlsverify: whoever reaches it is root here"
        yield Finding("engine API", exposed[0].partition(".")[0], advice)


def _seccomp(info: Mapping[str, Any], versions: Mapping[str, str], security: Security) -> Finding:
    name, profile = "seccomp", security.seccomp_profile
    engines = next((str(option) for option in info.get("SecurityOptions") or () if name in option), "")
    if not engines:
        return Finding(name, "not available", "use a kernel and an engine with seccomp: system calls are not filtered")
    reason = why_not_ours(info, versions, runtime=security.runtime)
    if isinstance(profile, Path) or (profile is None and not reason):
        return Finding(name, str(profile or "Cronium's profile"))
    if runtime_of(info, security.runtime) == _OWN_FILTERS:
        return Finding(name, f"{_OWN_FILTERS} filters system calls itself")
    way = f"Cronium's profile cannot be used ({reason})" if reason else "unset CRONIUM_SECURITY__SECCOMP_PROFILE"
    if "unconfined" in engines:
        return Finding(name, "unconfined", f"{way}: system calls of jobs are not filtered")
    _, _, path = engines.partition("profile=")
    if profile == "engine" and (path.startswith("/") or version_of(versions.get("Engine", "")) >= _GOOD_PROFILE):
        return Finding(name, f"the engine's own, {path or 'default'}")
    advice = f"{way}: before Engine 29.4.2 the engine's default lets io_uring, AF_VSOCK or AF_ALG through"
    return Finding(name, "the engine's own profile", advice, weak=True)


def engine_address(address: str, *, verified: bool) -> Finding:
    """DOCKER_HOST when it is no socket. `verified`: by TLS, both ways."""
    advice = "" if verified else "set DOCKER_TLS_VERIFY=1 and DOCKER_CERT_PATH: whoever reaches it is root there"
    return Finding("engine address", f"{address}, {'TLS' if verified else 'not verified'}", advice)


def engine_socket(path: str, mode: int) -> Finding:
    """The engine's socket: who may use it is root."""
    open_to_all = bool(mode & stat.S_IWOTH)
    advice = f"chmod o-rw {path}: any user of this host is root by it" if open_to_all else ""
    return Finding("engine socket", f"{path}, mode {stat.S_IMODE(mode):04o}", advice)


def sysctls(values: Mapping[str, str | None]) -> Iterator[Finding]:
    """None: this kernel does not have it."""
    for name, (good, harm) in _SYSCTLS.items():
        value = values.get(name)
        if value is None and name not in _NEEDED:
            yield Finding(name, "this kernel does not have it")
            continue
        better = _BETTER.get(name, "1")
        way = f"set {name} = {better} in /etc/sysctl.d/" if value is not None else "use a kernel with it"
        advice = "" if value in good else f"{way}: it lets happen: {harm}"
        yield Finding(name, value or "this kernel does not have it", advice, weak=True)


def dirty_pages(limit_bytes: int, *, group: str) -> Finding:
    """How much may wait in memory to be written, of all processes together (`nr_dirty_threshold`): who writes to the
    disk's journal then, as the engine does for each container, may have to wait until it is. `group`: the engine's
    cgroup version; v2 limits each container's own."""
    too_many = group != "2" and limit_bytes > _MAX_DIRTY_BYTES
    advice = "set vm.dirty_bytes = 67108864 and vm.dirty_background_bytes = 16777216 in /etc/sysctl.d/"
    text = f"{limit_bytes // 2**20} MiB may wait to be written"
    return Finding(
        "dirty pages", text, f"{advice}: a job can hold up the start of others" if too_many else "", weak=True
    )


def redis_address(name: str, shown: str, address: str) -> Iterator[Finding]:
    """What the setting `name` says of the way to a Redis."""
    if sentinel := sentinel_address(address):
        hosts = [host for host, _ in sentinel.sentinels]
        has_login, encrypted = bool(sentinel.login), bool(sentinel.tls)
        unchecked = sentinel.tls.get("ssl_cert_reqs") == "none"
        tls = "ssl_cert_reqs=required in the address"
    else:
        parts = urlsplit(address)
        hosts = ["127.0.0.1" if parts.scheme == "unix" else parts.hostname or "127.0.0.1"]
        has_login = bool(parts.password) or "password=" in parts.query
        encrypted = parts.scheme in ("rediss", "amqps")
        unchecked = re.search(r"ssl_cert_reqs=(cert_)?none", parts.query.lower()) is not None
        tls = "rediss://, deploy/redis/cronium.conf"
    if all(map(is_loopback, hosts)):
        return
    if not has_login:
        yield Finding(
            f"{name} login", f"{shown}: none", "give Redis users (deploy/redis/cronium.conf): it is open to all"
        )
    advice = "" if encrypted else f"use TLS ({tls}): jobs and passwords can be read on the way"
    if encrypted and unchecked:
        advice = "take ssl_cert_reqs out of the address: anybody can pretend to be this server"
        if sentinel:
            advice = "set ssl_cert_reqs=required in the address: anybody can pretend to be this server"
    yield Finding(f"{name} TLS", "on" if encrypted else "off", advice, weak=True)


def replicas(connected: int, wanted: int) -> Finding:
    """Of Redis. `wanted`: CRONIUM_REDIS_WAIT_REPLICAS."""
    text = f"{connected} connected, CRONIUM_REDIS_WAIT_REPLICAS={wanted}"
    if connected < wanted:
        return Finding("redis replicas", text, "start the replicas: until then no job is accepted, taken or ended")
    spare = "" if connected > wanted else "add a replica: when one Redis is gone, jobs wait until it is back"
    return Finding("redis replicas", text, spare, weak=True)


def redis_for_jobs(address: str, port: int, *, answers: bool) -> Finding:
    """Whether Redis talks to anybody at the address that containers have for this host."""
    advice = "give Redis users and a password, or bind it to 127.0.0.1: only the firewall is between jobs and it"
    where = f"{address}:{port}"
    text = f"answers without a login at {where}" if answers else f"nothing without a login at {where}"
    return Finding("Redis from the containers' bridge", text, advice if answers else "")


def wiring(obstacle: str) -> Finding:
    """Who connects jobs to the isolated network. `obstacle`: why the worker cannot."""
    text = f"by the engine, whose DNS tells them their neighbours' names: {obstacle}" if obstacle else "by the worker"
    advice = "run the worker on the engine's host, as root or with CAP_NET_ADMIN, CAP_SYS_ADMIN and CAP_SYS_PTRACE"
    return Finding("jobs are connected", text, advice if obstacle else "", weak=True)


def name_servers(addresses: Sequence[str]) -> Finding:
    """`addresses`: what the engine writes into containers' resolv.conf; none: its default ones."""
    advice = 'the host\'s are on loopback: set "dns" in /etc/docker/daemon.json to one that containers reach'
    text = ", ".join(addresses) or "the engine's default ones, 8.8.8.8 and 8.8.4.4"
    return Finding("name servers of jobs", text, "" if addresses else advice, weak=True)


def container_user(uid: int, account: tuple[str, str] | None) -> Finding:
    """`account`: name and shell of this host's user with the jobs' uid; None: there is none."""
    if account is None:
        return Finding("container user", f"uid {uid}, nobody of this host")
    user, shell = account
    can_log_in = bool(shell) and shell.rpartition("/")[2] not in _NO_SHELLS
    advice = "set CRONIUM_CONTAINER_USER to a uid that nobody has: out of its container a job would be this user"
    return Finding("container user", f"uid {uid}, here {user}", advice if can_log_in else "", weak=True)


def base_path(
    path: str, *, mode: int, owner: int, expected: int, own_file_system: bool, options: str
) -> Iterator[Finding]:
    """The directory of the jobs' files. `options`: of its mount; `expected`: the uid of the worker."""
    writable = bool(mode & (stat.S_IWGRP | stat.S_IWOTH))
    advice = f"chmod go-w {path}: others can put files in the way of jobs" if writable else ""
    if owner not in (0, expected):
        advice = f"chown {expected} {path}: uid {owner} can change the files of every job"
    yield Finding("base path rights", f"{stat.S_IMODE(mode):04o}, uid {owner}", advice)
    if "ro" in options.split(","):
        yield Finding("base path mount", "read-only", "mount it read-write, or set CRONIUM_BASE_PATH")
        return
    missing = [option for option in ("nosuid", "nodev") if option not in options.split(",")]
    advice = "" if own_file_system else "give it a file system of its own: jobs that fill it fill this host's"
    if own_file_system and missing:
        advice = f"mount it with {','.join(missing)}"
    text = "of its own" if own_file_system else "the host's own"
    yield Finding("base path file system", f"{text}, {options}", advice, weak=True)


def umask(value: int) -> Finding:
    """The one that the worker starts with."""
    advice = "" if value & 0o022 == 0o022 else "start the worker with umask 0022: others could write its files"
    return Finding("umask", f"{value:04o}", advice)
