"""What a job can do, tried from inside, in every image; and that it sees nothing of its neighbour or the fleet."""

import os
import re
from collections.abc import Callable
from contextlib import suppress

import pytest

from tests.conftest import wait_until
from tests.integration.conftest import Bench, Ran
from tests.integration.scripts import LANGUAGES, script
from tests.isolation.probes import DEVICES, ENGINES_OWN, WRITABLE, Report, compiled, job

# Has what a neighbour could look for: a process, an abstract socket, a message queue, shared memory.
NEIGHBOUR = """
import ctypes, socket, time
libc = ctypes.CDLL(None, use_errno=True)
assert libc.mq_open(b'/cronium-neighbour', 0o102, 0o600, None) >= 0
assert libc.shmget(0x4711, 4096, 0o1600) >= 0
listener = socket.socket(socket.AF_UNIX)
listener.bind('\\0cronium-neighbour')
listener.listen()
print('ready', flush=True)
time.sleep(600)  # neighbour-of-the-probe
"""


@pytest.fixture(scope="module")
def probe(tmp_path_factory: pytest.TempPathFactory) -> str:
    return compiled(tmp_path_factory.mktemp("probe"))


@pytest.fixture(params=LANGUAGES)
def probed(bench: Bench, probe: str, request: pytest.FixtureRequest) -> Report:
    neighbour = bench.start(script={"type": "python", "content": NEIGHBOUR})
    wait_until(lambda: any(event["type"] == "log" for event in bench.store.events(neighbour.id)), what="the neighbour")
    try:
        ran = bench.run(**job(request.param, probe), timeout=60, resources={"cpu": 2})
    finally:
        bench.store.cancel(neighbour.id)
        bench.runner.active.cancel(neighbour.id)
    assert (ran.result.status, ran.text("stderr")) == ("completed", "")
    assert bench.runner.pool_count().misses == 0  # with a pool, it had waited
    return Report.read(ran.text("stdout"))


@pytest.mark.attack
def test_no_call_of_the_probe_is_allowed(probed: Report) -> None:
    assert probed.allowed() == {}
    assert len(probed.calls) > 70
    assert ENGINES_OWN.keys() <= probed.calls.keys()
    # All that can be seen, walked through.
    assert probed.found["writable-directory"] == WRITABLE
    assert probed.found["writable-file"] == set()
    assert probed.found["device"] <= DEVICES
    assert probed.found["socket"] == set()
    assert probed.found["setuid"] | probed.found["capability"] == set()
    # Its own processes and nobody else's.
    assert not [line for line in probed.found["process"] if "neighbour" in line or "dockerd" in line]
    assert len(probed.found["process"]) <= 4
    assert {name: probed.calls[name] for name in probed.calls if name.startswith("neighbours-")} == {
        "neighbours-queue": "ENOENT",
        "neighbours-memory": "ENOENT",
        "neighbours-abstract-socket": "ECONNREFUSED",
    }
    assert (probed.calls["read-kcore"], probed.calls["read-keys"]) in {("ENODATA", "ENODATA"), ("ENOENT", "ENODATA")}


SHOWN = r"""
cat /proc/self/status | grep -E '^(Uid|Gid|Groups|Cap(Inh|Prm|Eff|Bnd|Amb)|NoNewPrivs|Seccomp):' | tr -s ' \t' ' '
cat /proc/self/attr/current 2>/dev/null || echo none
echo '-- environment'
tr '\0' '\n' </proc/self/environ
tr '\0' '\n' </proc/1/environ
echo '-- mounts'
cat /proc/self/mountinfo /proc/self/cgroup /proc/1/cmdline | tr '\0' ' '
"""
PRIVILEGES = """\
Uid: 1000 1000 1000 1000
Gid: 1000 1000 1000 1000
Groups: 1000
CapInh: 0000000000000000
CapPrm: 0000000000000000
CapEff: 0000000000000000
CapBnd: 0000000000000000
CapAmb: 0000000000000000
NoNewPrivs: 1
Seccomp: 2
"""


@pytest.fixture(params=LANGUAGES)
def shown(bench: Bench, request: pytest.FixtureRequest) -> Ran:
    return bench.run(
        script=script(
            request.param,
            bash=SHOWN,
            python=f"import subprocess\nsubprocess.run(['sh', '-c', {SHOWN!r}], check=True)",
            node=f"require('child_process').execFileSync('sh', ['-c', {SHOWN!r}], {{stdio: 'inherit'}})",
        )
    )


def test_the_privileges_and_what_a_job_is_shown_of_the_host(
    shown: Ran, redis_url: str, make_bench: Callable[..., Bench]
) -> None:
    privileges, rest = shown.text("stdout").split("-- environment\n")
    environment, mounts = rest.split("-- mounts\n")
    lines = [line.strip() for line in privileges.splitlines()]
    assert "\n".join(lines[:-1]) + "\n" == PRIVILEGES
    apparmor = os.path.exists("/sys/kernel/security/apparmor/profiles")  # noqa: PTH110 - of the host
    assert lines[-1] == ("docker-default (enforce)" if apparmor else "none")

    names = {line.partition("=")[0] for line in environment.splitlines()}
    names -= {"PATH", "HOME", "LANG", "TZ", "HOSTNAME", "PWD", "OLDPWD", "SHLVL", "_", "NODE_PATH", "BASH_ENV"}
    assert {name for name in names if not name.startswith("CRONIUM_")} == set()
    assert names <= {f"CRONIUM_{name}" for name in (
        "JOB_ID", "JOB_TYPE", "ATTEMPT", "EXECUTION_MODE", "DATA_DIR", "OUTPUT_DIR", "EVENT_METADATA", "INTERPRETER"
    )}  # fmt: skip
    everything = shown.text("stdout")
    for private in (redis_url, redis_url.partition("//")[2].partition("/")[0], "docker.sock", "/var/run/redis"):
        assert private not in everything
    # The kernel shows where on the host the six directories are, and that is all it shows of the worker.
    settings = make_bench().runner._host.settings
    targets = {line.split()[4] for line in mounts.splitlines() if settings.sandboxes_path.name in line}
    with suppress(KeyError):
        targets.remove("/")
    assert targets == {"/workspace", "/workspace/scripts", "/workspace/data", "/workspace/output", "/tmp",
                       "/run/cronium"}  # fmt: skip
    assert not re.search(r"sandboxes/(?!" + _sandbox(mounts) + ")", mounts)


def _sandbox(mounts: str) -> str:
    found = re.search(r"sandboxes/([0-9a-f]+)/", mounts)
    assert found is not None
    return found[1]
