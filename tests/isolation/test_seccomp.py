"""The seccomp profile that jobs have by default: what it refuses, and that ordinary work goes on."""

import json
import re
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cronium_worker.engine import seccomp
from cronium_worker.engine.confinement import confinement
from cronium_worker.execution.sandbox import Host
from cronium_worker.settings import Security
from tests.integration.conftest import Bench
from tests.integration.scripts import LANGUAGES
from tests.isolation.probes import ENGINES_OWN, Report, compiled, job

PROFILE = json.loads(seccomp.PROFILE.read_text())
ENOSYS, EPERM = 38, 1
TRAMPOLINES = (335, 336)  # uretprobe and uprobe: a signal to whoever calls them, past any filter
NEWEST = 470  # listns, of Linux 6.19


@pytest.fixture
def bench(make_bench: Callable[..., Bench]) -> Bench:
    """As a worker without settings makes it."""
    return make_bench()


def named(action: str) -> set[str]:
    return {name for group in PROFILE["syscalls"] if group["action"] == action for name in group["names"]}


def answers() -> dict[str, int]:
    """The error of what is refused by name."""
    return {name: group.get("errnoRet", EPERM) for group in PROFILE["syscalls"]
            if group["action"] == "SCMP_ACT_ERRNO" for name in group["names"]}  # fmt: skip


@pytest.fixture(scope="module")
def numbers() -> dict[str, int]:
    """Of this machine's system calls, by the headers of its C library."""
    macros = subprocess.run(
        ["gcc", "-dM", "-E", "-"], input="#include <sys/syscall.h>\n", capture_output=True, text=True, check=True
    )
    names = re.findall(r"#define SYS_(\w+)", macros.stdout)
    source = "#include <sys/syscall.h>\n" + "".join(f"= {name} SYS_{name}\n" for name in names)
    values = subprocess.run(["gcc", "-E", "-P", "-"], input=source, capture_output=True, text=True, check=True)
    return {name: int(number) for name, number in re.findall(r"= (\w+) (\d+)", values.stdout)}


def test_each_call_of_the_kernel_is_allowed_or_refused_by_name(numbers: dict[str, int]) -> None:
    allowed, refused = named("SCMP_ACT_ALLOW"), named("SCMP_ACT_ERRNO")

    assert allowed & refused == set()
    assert len(answers()) == sum(len(g["names"]) for g in PROFILE["syscalls"] if g["action"] == "SCMP_ACT_ERRNO")
    assert {name for name, number in numbers.items() if number <= NEWEST} - allowed - refused == set()
    assert all(group["comment"] for group in PROFILE["syscalls"])


def test_the_engines_own_profile_is_a_setting(
    make_bench: Callable[..., Bench], host: Host, tmp_path_factory: pytest.TempPathFactory
) -> None:
    security = Security(seccomp_profile="engine")
    bench = make_bench(on=replace(host, seccomp=confinement(host.engine, security)), security=security)
    probe = compiled(tmp_path_factory.mktemp("probe"))
    ran = bench.run(**job("bash", probe), timeout=60, resources={"cpu": 2}, network={"mode": "none"})

    report = Report.read(ran.text("stdout"))
    assert report.allowed(ENGINES_OWN) == {}
    assert report.calls["ptrace-first-process"] == "ok"


CALLS = """
import ctypes, os
mine = os.getpid()
libc = ctypes.CDLL(None, use_errno=True)
answers = []
for number, *arguments in cronium.input():
    ctypes.set_errno(0)
    padded = [ctypes.c_long(argument) for argument in (*arguments, 0, 0, 0, 0, 0, 0)[:6]]
    answer = libc.syscall(number, *padded)
    if os.getpid() != mine:
        os._exit(0)
    answers.append(ctypes.get_errno() if answer == -1 else 0)
cronium.output(answers)
"""


def called(bench: Bench, calls: list[list[int]]) -> list[int]:
    """The error of each call: its number and its arguments; 0 where there was none."""
    ran = bench.run(script={"type": "python", "content": CALLS}, input_data=calls, network={"mode": "none"})
    assert ran.result.status == "completed", ran.result.error
    found: list[int] = ran.result.output.data  # type: ignore[assignment]
    return found


@pytest.mark.attack
def test_all_other_calls_are_refused(bench: Bench, numbers: dict[str, int]) -> None:
    allowed = {numbers[name] for name in named("SCMP_ACT_ALLOW") if name in numbers}
    # What these headers do not know, and the profile may allow by name.
    unknown = {*range(max(numbers.values()) + 1, NEWEST + 1), *TRAMPOLINES}
    tried = [number for number in range(600) if number not in allowed | unknown]
    # A new one, unknown to everybody, is answered as by a kernel without it.
    expected = {number: {ENOSYS} if number > NEWEST else {EPERM, ENOSYS} for number in tried}
    expected |= {numbers[name]: {errno} for name, errno in answers().items() if name in numbers}

    got = dict(zip(tried, called(bench, [[number, *[-1] * 6] for number in tried]), strict=True))

    assert len(tried) > 150
    assert {number: errno for number, errno in got.items() if errno not in expected[number]} == {}


UNIX, INET, INET6, NETLINK, PACKET, ALG, VSOCK = 1, 2, 10, 16, 17, 38, 40
STREAM, DGRAM, RAW, SEQPACKET, DCCP = 1, 2, 3, 5, 6
ICMP, TCP, UDP, ICMP6, SCTP, MPTCP = 1, 6, 17, 58, 132, 262
CLOEXEC = 0o2000000
ARGUMENTS: list[tuple[str, list[int], bool]] = [
    *(("socket", [UNIX, kind | CLOEXEC, 0], True) for kind in (STREAM, DGRAM, SEQPACKET)),
    *(("socket", [family, STREAM | CLOEXEC, protocol], True) for family in (INET, INET6) for protocol in (0, TCP)),
    *(("socket", [family, DGRAM | CLOEXEC, protocol], True) for family in (INET, INET6) for protocol in (0, UDP)),
    ("socket", [NETLINK, RAW, 0], True),
    *(("socket", [NETLINK, RAW, protocol], False) for protocol in (4, 6, 9, 12, 15, 16)),
    *(("socket", [INET, STREAM, protocol], False) for protocol in (SCTP, MPTCP, 256)),
    *(("socket", [family, kind, 0], False) for family in (INET, INET6) for kind in (SEQPACKET, DCCP)),
    *(("socket", [family, RAW, 255], False) for family in (INET, INET6)),
    *(("socket", [family, SEQPACKET, 0], False) for family in range(46) if family not in (UNIX, INET, INET6, NETLINK)),
    ("socket", [VSOCK | 1 << 32, STREAM, 0], False),  # the kernel looks at the lower half
    ("socketpair", [INET, STREAM, 0], False),
    ("socketpair", [30, STREAM, 0], False),
    *(("clone", [flag | 17], False) for flag in (1 << 17, *(1 << bit for bit in range(25, 31)))),
    ("clone", [1 << 28 | 1 << 32 | 17], False),
    ("clone", [17], True),
    *(("personality", [value], value in (0, 8, 0xFFFFFFFF)) for value in (0, 8, 0xFFFFFFFF, 0x40000, 0x400000, 6)),
    ("personality", [0x40000 | 1 << 32], False),
    ("mknodat", [-100, 0, 0o20600], False),
    ("mknodat", [-100, 0, 0o60600], False),
]


@pytest.mark.attack
def test_arguments_are_looked_at(bench: Bench, numbers: dict[str, int]) -> None:
    calls = [[numbers[name], *arguments] for name, arguments, _ in ARGUMENTS]
    got = called(bench, calls)

    assert [(name, arguments, errno != EPERM) for (name, arguments, _), errno in zip(ARGUMENTS, got, strict=True)] \
        == ARGUMENTS  # fmt: skip
    fine = [errno for (name, _, allowed), errno in zip(ARGUMENTS, got, strict=True) if allowed and name == "socket"]
    assert set(fine) <= {0, 97}  # a kernel without IPv6


@pytest.mark.attack
def test_a_program_of_another_architecture_is_ended(bench: Bench) -> None:
    """Its calls have other numbers, and `socketcall` would get past the rules for sockets."""
    x32_getpid = 0x40000000 + 39
    content = f"import ctypes\nprint(ctypes.CDLL(None).syscall({x32_getpid}))"
    ran = bench.run(script={"type": "python", "content": content}, network={"mode": "none"})

    assert (ran.result.status, ran.result.exit_code) == ("failed", 128 + 31)


WORK: dict[str, tuple[str, list[str]]] = {
    "bash": ("work.sh", ["pipes", "children", "files", "network"]),
    "python": ("work.py", [
        "threads", "subprocesses", "processes", "signals", "waiting", "tcp_and_udp", "a_server", "event_loop",
        "files", "its_own_limits", "ipc",
    ]),
    "node": ("work.js", [
        "threads", "subprocesses", "signals", "tcp_and_udp", "a_server", "files", "its_own_limits",
    ]),
}  # fmt: skip


@pytest.mark.parametrize("language", LANGUAGES)
def test_ordinary_work_goes_on(bench: Bench, language: str) -> None:
    name, expected = WORK[language]
    content = (Path(__file__).parent / "ordinary" / name).read_text()
    ran = bench.run(
        script={"type": language, "content": content}, network={"mode": "none"}, timeout=60, resources={"cpu": 2}
    )

    assert ran.text("stdout").splitlines() == expected, ran.text("stderr")
    assert (ran.result.status, ran.text("stderr")) == ("completed", "")
