"""What `cronium doctor` says of a host, by what was read of it: as it should be, and each weak point."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from cronium_worker.cli import hardening
from cronium_worker.cli.finding import Finding
from cronium_worker.execution.trial import Trial
from cronium_worker.settings import Security

FIRM = {
    "ServerVersion": "29.4.2",
    "Architecture": "x86_64",
    "DefaultRuntime": "runc",
    "CgroupVersion": "2",
    "LiveRestoreEnabled": True,
    "SecurityOptions": ["name=apparmor", "name=seccomp,profile=builtin", "name=userns"],
    "Warnings": None,
}
VERSIONS = {"Engine": "29.4.2", "containerd": "2.0.4", "runc": "1.3.3"}
SYSCTLS = dict.fromkeys(hardening.SYSCTLS, "1")


def judged(findings: Iterable[Finding]) -> dict[str, str]:
    """What is not well: `weak` or `fail`, by name. Each has a remedy of one line."""
    bad = [finding for finding in findings if finding.remedy]
    assert not [finding for finding in bad if "\n" in finding.text + finding.remedy]
    return {finding.name: "weak" if finding.weak else "fail" for finding in bad}


@pytest.mark.parametrize(
    ("name", "version", "verdict"),
    [
        ("Engine", "19.03.15", "fail"),
        ("Engine", "20.10", "weak"),
        ("Engine", "23.0.14", "weak"),
        ("Engine", "23.0.15", ""),
        ("Engine", "20.10.24", "weak"),
        ("Engine", "20.10.24+dfsg1", "weak"),
        ("Engine", "26.1.5", ""),
        ("Engine", "27.0.3", "weak"),
        ("Engine", "29.0.0", ""),
        ("containerd", "1.6.20~ds1", "weak"),
        ("containerd", "1.6.37", "weak"),
        ("containerd", "1.6.38", ""),
        ("containerd", "v1.7.27", ""),
        ("containerd", "2.0.3", "weak"),
        ("runc", "1.1.5+ds1", "weak"),
        ("runc", "1.1.11", "weak"),
        ("runc", "1.2.8", ""),
        ("runc", "1.3.2", "weak"),
        ("runc", "1.3.3", ""),
        ("runc", "", "weak"),
    ],
)
def test_versions(name: str, version: str, verdict: str) -> None:
    assert judged([hardening.component(name, version)]).get(name, "") == verdict


def test_who_has_to_act_on_an_old_version() -> None:
    assert "security updates" in hardening.component("runc", "1.1.5+ds1").remedy
    assert hardening.component("runc", "1.1.5").remedy.startswith("install runc 1.3.3 or newer")


def told(*findings: Finding) -> list[tuple[str, str]]:
    return [(finding.name, finding.text) for finding in findings]


def test_what_is_told_of_a_firm_engine_and_of_a_weak_one() -> None:
    assert told(*hardening.engine(FIRM, VERSIONS, Security())) == [
        ("cgroup version", "v2"),
        ("live-restore", "on"),
        ("seccomp", "Cronium's profile"),
        ("AppArmor or SELinux", "apparmor"),
        ("userns-remap", "on"),
    ]
    weak = {"LiveRestoreEnabled": False, "CgroupVersion": "1", "SecurityOptions": ["name=seccomp", "name=selinux"]}
    assert told(*hardening.engine(FIRM | weak, VERSIONS, Security())) == [
        ("cgroup version", "v1"),
        ("live-restore", "off"),
        ("seccomp", "Cronium's profile"),
        ("AppArmor or SELinux", "selinux"),
        ("userns-remap", "off: root in a container would be root here; no job is root"),
    ]


@pytest.mark.parametrize(
    ("finding", "text"),
    [
        (hardening.engine_address("https://e", verified=True), "https://e, TLS"),
        (hardening.engine_address("http://e", verified=False), "http://e, not verified"),
        (hardening.engine_socket("/s", 0o140660), "/s, mode 0660"),
        (hardening.wiring(""), "by the worker"),
        (hardening.wiring("why"), "by the engine, whose DNS tells them their neighbours' names: why"),
        (hardening.redis_for_jobs("a", 5, answers=True), "answers without a login at a:5"),
        (hardening.redis_for_jobs("a", 5, answers=False), "nothing without a login at a:5"),
        (hardening.name_servers(["a", "b"]), "a, b"),
        (hardening.dirty_pages(2**28, group="1"), "256 MiB may wait to be written"),
        (hardening.container_user(7, None), "uid 7, nobody of this host"),
        (hardening.container_user(7, ("ada", "")), "uid 7, here ada"),
        (hardening.umask(0o22), "0022"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_told(finding: Finding, text: str) -> None:
    assert finding.text == text


@pytest.mark.parametrize(("address", "tls"), [("rediss://w:pw@r.example/0", "on"), ("redis://w:pw@r.example/0", "off")])
def test_what_is_told_of_the_way_to_redis(address: str, tls: str) -> None:
    assert told(*hardening.redis_address("redis", "shown", address)) == [("redis TLS", tls)]
    without_login = address.replace("w:pw@", "")
    assert told(*hardening.redis_address("redis", "shown", without_login))[0] == ("redis login", "shown: none")


def test_who_connects_jobs_to_their_network() -> None:
    assert judged([hardening.wiring("")]) == {}
    assert judged([hardening.wiring("the worker does not see the engine's processes")]) == {
        "jobs are connected": "weak"
    }


def test_whom_jobs_ask_for_names() -> None:
    assert judged([hardening.name_servers(["192.0.2.53"])]) == {}
    assert judged([hardening.name_servers([])]) == {"name servers of jobs": "weak"}


def test_a_firm_engine() -> None:
    assert judged(hardening.engine(FIRM, VERSIONS, Security())) == {}


@pytest.mark.parametrize(
    ("changed", "verdict"),
    [
        ({"CgroupVersion": "1"}, {"cgroup version": "weak"}),
        ({"LiveRestoreEnabled": False}, {"live-restore": "weak"}),
        ({"SecurityOptions": ["name=apparmor"]}, {"seccomp": "fail"}),
        ({"SecurityOptions": ["name=seccomp,profile=default"]}, {"AppArmor or SELinux": "weak"}),
        ({"SecurityOptions": None}, {"seccomp": "fail", "AppArmor or SELinux": "weak"}),
        (
            {"Warnings": ["WARNING: API is accessible on http://0.0.0.0:2375 without encryption.\n  Access to …"]},
            {"engine API": "fail"},
        ),
    ],
)
def test_a_weak_engine(changed: dict[str, Any], verdict: dict[str, str]) -> None:
    assert judged(hardening.engine(FIRM | changed, VERSIONS, Security())) == verdict


OLD = FIRM | {"ServerVersion": "20.10.24"}
OLD_VERSIONS = VERSIONS | {"Engine": "20.10.24+dfsg1", "runc": "1.1.5+ds1"}
UNCONFINED = {"SecurityOptions": ["name=apparmor", "name=seccomp,profile=unconfined"]}


@pytest.mark.attack
@pytest.mark.parametrize(
    ("profile", "info", "versions", "verdict"),
    [
        (None, {}, {}, {}),
        (None, UNCONFINED, {}, {}),
        (Path("/etc/cronium/seccomp.json"), UNCONFINED, {}, {}),
        (Path("/etc/cronium/seccomp.json"), {}, {"Engine": "20.10.9"}, {}),
        ("engine", {}, {}, {"seccomp": "weak"}),
        ("engine", {}, {"Engine": "29.4.2"}, {}),
        ("engine", UNCONFINED, {}, {"seccomp": "fail"}),
        # One that the engine was started with is as good as whoever wrote it.
        ("engine", {"SecurityOptions": ["name=apparmor", "name=seccomp,profile=/etc/docker/seccomp.json"]}, {}, {}),
        # Where Cronium's cannot be used, and is not, whatever the engine's version.
        (None, {}, {"Engine": "20.10.9"}, {"seccomp": "weak"}),
        (None, {}, {"runc": "1.0.1"}, {"seccomp": "weak"}),
        (None, {}, {"Engine": "29.4.2", "runc": "not told"}, {"seccomp": "weak"}),
        (None, {"Architecture": "s390x"}, {}, {"seccomp": "weak"}),
        (None, {"DefaultRuntime": "crun"}, {}, {"seccomp": "weak"}),
        (None, {"DefaultRuntime": "crun"} | UNCONFINED, {}, {"seccomp": "fail"}),
        (None, {"DefaultRuntime": "runsc"}, {}, {}),
        # Without seccomp no profile has an effect.
        (Path("/p"), {"SecurityOptions": ["name=apparmor"]}, {}, {"seccomp": "fail"}),
    ],
)
def test_the_seccomp_profile(
    profile: Any, info: dict[str, Any], versions: dict[str, str], verdict: dict[str, str]
) -> None:
    security = Security(seccomp_profile=profile)

    assert judged(hardening.engine(OLD | info, OLD_VERSIONS | versions, security)) == verdict


def test_who_may_use_the_engine() -> None:
    assert judged([hardening.engine_socket("/s", 0o140660)]) == {}
    assert judged([hardening.engine_socket("/s", 0o140666)]) == {"engine socket": "fail"}
    assert judged([hardening.engine_address("https://e:2376", verified=True)]) == {}
    assert judged([hardening.engine_address("http://e:2375", verified=False)]) == {"engine address": "fail"}


SYSCTL_NAMES = [
    "fs.protected_hardlinks", "fs.protected_symlinks", "fs.protected_fifos", "fs.protected_regular",
    "kernel.unprivileged_bpf_disabled", "kernel.dmesg_restrict", "kernel.yama.ptrace_scope",
]  # fmt: skip


@pytest.mark.parametrize("name", SYSCTL_NAMES)
def test_sysctls(name: str) -> None:
    assert list(hardening.SYSCTLS) == SYSCTL_NAMES
    assert judged(hardening.sysctls(SYSCTLS)) == {}
    # Without Yama, processes of the same user read each other.
    assert judged(hardening.sysctls(SYSCTLS | {name: None})) == ({name: "weak"} if "yama" in name else {})
    assert judged(hardening.sysctls(SYSCTLS | {name: "0"})) == {name: "weak"}


def test_a_host_where_little_may_wait_to_be_written() -> None:
    assert judged([hardening.dirty_pages(64 * 2**20, group="1")]) == {}
    assert judged([hardening.dirty_pages(256 * 2**20, group="1")]) == {}
    assert judged([hardening.dirty_pages(256 * 2**20 + 1, group="1")]) == {"dirty pages": "weak"}
    assert judged([hardening.dirty_pages(4 * 2**30, group="1")]) == {"dirty pages": "weak"}
    assert judged([hardening.dirty_pages(4 * 2**30, group="2")]) == {}


@pytest.mark.parametrize(
    ("address", "verdict"),
    [
        ("redis://127.0.0.1:6379/0", {}),
        ("redis://[::1]:6379/0", {}),
        ("redis://localhost/0", {}),
        ("unix:///run/redis.sock", {}),
        ("rediss://worker:pw@redis.example:6379/0?ssl_ca_certs=/ca.pem", {}),
        ("redis://:pw@192.0.2.1:6379/0", {"redis TLS": "weak"}),
        ("redis://192.0.2.1:6379/0", {"redis login": "fail", "redis TLS": "weak"}),
        ("redis://192.0.2.1:6379/0?password=pw", {"redis TLS": "weak"}),
        ("rediss://redis.example/0", {"redis login": "fail"}),
        ("rediss://w:pw@redis.example/0?ssl_cert_reqs=none", {"redis TLS": "weak"}),
        ("sentinel://127.0.0.1,localhost/0?service=s", {}),
        ("sentinel://127.0.0.1,s2.example/0?service=s", {"redis login": "fail", "redis TLS": "weak"}),
        ("sentinel://w:pw@s1.example,s2.example/0?service=s", {"redis TLS": "weak"}),
        ("sentinel://w:pw@s1.example/0?service=s&ssl_cert_reqs=required", {}),
        ("sentinel://w:pw@s1.example/0?service=s&ssl_cert_reqs=none", {"redis TLS": "weak"}),
    ],
)
def test_the_way_to_redis(address: str, verdict: dict[str, str]) -> None:
    assert judged(hardening.redis_address("redis", "shown", address)) == verdict


@pytest.mark.parametrize(("connected", "verdict"), [(0, "fail"), (1, "weak"), (2, None)])
def test_replicas_that_are_waited_for(connected: int, verdict: str | None) -> None:
    expected = {"redis replicas": verdict} if verdict else {}
    assert judged([hardening.replicas(connected, 1)]) == expected


def test_redis_within_reach_of_jobs() -> None:
    assert judged([hardening.redis_for_jobs("172.18.0.1", 6379, answers=False)]) == {}
    open_to_jobs = hardening.redis_for_jobs("172.18.0.1", 6379, answers=True)
    assert judged([open_to_jobs]) == {"Redis from the containers' bridge": "fail"}


@pytest.mark.parametrize(
    ("account", "verdict"),
    [
        (None, {}),
        (("jobs", "/usr/sbin/nologin"), {}),
        (("jobs", "/bin/false"), {}),
        (("ada", "/bin/bash"), {"container user": "weak"}),
    ],
)
def test_the_user_of_the_jobs(account: tuple[str, str] | None, verdict: dict[str, str]) -> None:
    assert judged([hardening.container_user(1000, account)]) == verdict


PATH = {"mode": 0o40711, "owner": 0, "expected": 0, "own_file_system": True, "options": "nosuid,nodev"}


@pytest.mark.parametrize(
    ("changed", "verdict"),
    [
        ({}, {}),
        ({"mode": 0o40777}, {"base path rights": "fail"}),
        ({"mode": 0o40770}, {"base path rights": "fail"}),
        ({"owner": 1000}, {"base path rights": "fail"}),
        ({"owner": 1000, "expected": 1000}, {}),
        ({"options": "rw"}, {"base path file system": "weak"}),
        ({"own_file_system": False, "options": "rw"}, {"base path file system": "weak"}),
        ({"options": "ro,nosuid,nodev"}, {"base path mount": "fail"}),
    ],
)
def test_the_base_path(changed: dict[str, Any], verdict: dict[str, str]) -> None:
    assert judged(hardening.base_path("/p", **(PATH | changed))) == verdict


def test_what_is_told_of_the_base_path() -> None:
    rights = ("base path rights", "0711, uid 0")
    assert told(*hardening.base_path("/p", **PATH)) == [rights, ("base path file system", "of its own, nosuid,nodev")]
    shared = PATH | {"own_file_system": False}
    assert told(*hardening.base_path("/p", **shared))[1] == ("base path file system", "the host's own, nosuid,nodev")


@pytest.mark.parametrize(("mask", "fits"), [(0o022, True), (0o077, True), (0o027, True), (0, False), (0o002, False)])
def test_the_umask(mask: int, fits: bool) -> None:
    assert (judged([hardening.umask(mask)]) == {}) == fits


@pytest.mark.parametrize(
    ("trial", "bad"),
    [
        (Trial(0.3, {}, [], ""), {}),
        (Trial(0.3, {"PidsLimit": (256, 2**63 - 1)}, [], ""), {"container": "fail"}),
        (Trial(0.3, {}, ["Memory"], ""), {"container": "weak"}),
        (Trial(0.3, {}, [], "Read-only file system"), {"CPU burst": "weak"}),
    ],
)
def test_a_container_that_was_made_as_for_a_job(trial: Trial, bad: dict[str, str]) -> None:
    assert judged(hardening.container("runc, network none", trial)) == bad
