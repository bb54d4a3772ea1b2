"""Jobs that take all the memory, processes, descriptors and time they can get: contained, ended, and told truly."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cronium_worker.engine.client import Engine
from cronium_worker.engine.stats import UsageReader
from tests.integration.conftest import Bench
from tests.integration.scripts import LANGUAGES, script

MIB = 2**20

# ---- memory


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_kill_of_its_own_is_never_called_out_of_memory(bench: Bench, language: str) -> None:
    ran = bench.run(
        script=script(
            language,
            bash="kill -KILL $$",
            python="import os\nos.kill(os.getpid(), 9)",
            node="process.kill(process.pid, 'SIGKILL')",
        )
    )

    assert (ran.result.status, ran.result.exit_code) == ("failed", 137)
    assert ran.result.error is not None
    assert ran.result.error.type == "script"
    assert ran.result.error.details == {"exit_code": 137}
    assert "not seen to be out of memory" in ran.result.error.message


@pytest.mark.parametrize(
    ("by_kernel", "by_engine", "told"),
    [(True, False, "resource_limit"), (False, True, "resource_limit"), (False, False, "script")],
)
def test_either_evidence_of_an_out_of_memory_kill_is_enough_and_none_is_not(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, by_kernel: bool, by_engine: bool, told: str
) -> None:
    if not by_kernel:
        monkeypatch.setattr(UsageReader, "oom_kills", lambda _: 0)
    if not by_engine:
        state = Engine.state
        monkeypatch.setattr(Engine, "state", lambda *a, **k: replace(state(*a, **k), oom_killed=False))
    ran = bench.run(script={"type": "python", "content": "x = bytearray(10**9)"}, resources={"memory": "64m"})

    assert ran.result.exit_code == 137
    assert ran.result.error is not None
    assert ran.result.error.type == told


EATS = "dd if=/dev/zero of=/dev/null bs=1G count=1"  # in a buffer of that size


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("code", [0, 3])
def test_a_child_that_was_out_of_memory_leaves_the_scripts_own_end(bench: Bench, language: str, code: int) -> None:
    ran = bench.run(
        script=script(
            language,
            bash=f"{EATS} || echo $?; exit {code}",
            python=f"import subprocess, sys\nprint(128 - subprocess.run({EATS.split()}).returncode)\nsys.exit({code})",
            node=f"const [command, ...args] = {EATS.split()};"
            "console.log({SIGKILL: 137}[require('child_process').spawnSync(command, args).signal]);"
            f"process.exit({code})",
        ),
        resources={"memory": "96m"},
    )

    assert ran.text("stdout") == "137\n"
    assert ran.result.exit_code == code
    if code:
        assert ran.result.error is not None
        assert (ran.result.error.type, ran.result.error.details["exit_code"]) == ("script", code)
        assert ran.result.error.details["oom_kills"] >= 1
    else:
        assert (ran.result.status, ran.result.error) == ("completed", None)


@pytest.mark.parametrize("language", LANGUAGES)
def test_shared_memory_is_small_and_counts_as_memory(bench: Bench, language: str) -> None:
    ran = bench.run(
        script=script(
            language,
            bash="head -c 100M /dev/zero > /dev/shm/x || stat -c %s /dev/shm/x\n"
            "dd if=/dev/zero of=/dev/null bs=100M count=1",
            python="f = open('/dev/shm/x', 'wb', 0)\nn = 0\n"
            "try:\n    while True: n += f.write(bytes(2**20))\n"
            "except OSError: print(n, flush=True)\n"
            "x = b'x' * 100 * 2**20",
            node="const fs = require('fs'); const f = fs.openSync('/dev/shm/x', 'w'); let n = 0;"
            "try { for (;;) n += fs.writeSync(f, Buffer.alloc(2 ** 20)); } catch { console.log(n); }"
            "Buffer.alloc(100 * 2 ** 20, 1)",
        ),
        resources={"memory": "140m"},
    )

    assert ran.text("stdout") == f"{64 * MIB}\n"
    assert ran.result.error is not None
    assert (ran.result.error.type, ran.result.error.details["limit"]) == ("resource_limit", "memory")


def test_there_is_no_swap(bench: Bench) -> None:
    content = """
cd /sys/fs/cgroup
if [ -e memory.swap.max ]; then cat memory.swap.max
elif [ -e memory/memory.memsw.limit_in_bytes ]; then
  echo $(($(cat memory/memory.memsw.limit_in_bytes) - $(cat memory/memory.limit_in_bytes)))
else cat memory/memory.swappiness > /dev/null; grep -c . /proc/swaps | sed 's/^1$/0/'; fi
"""
    assert bench.run(script={"type": "bash", "content": content}).text("stdout") == "0\n"


# ---- processes


@pytest.mark.parametrize(
    ("language", "content"),
    [
        pytest.param(
            "bash", "trap '' TERM\nbomb() { bomb | bomb & }\nbomb 2>/dev/null\nwhile true; do :; done", id="bash-fork"
        ),
        pytest.param(
            "python",
            "import os, signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
            "while True:\n    try: os.fork()\n    except OSError: pass",
            id="python-fork",
        ),
        pytest.param(
            "python",
            "import signal, threading, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
            "while True:\n    try: threading.Thread(target=time.sleep, args=(99,)).start()\n"
            "    except RuntimeError: time.sleep(0.01)",
            id="python-threads",
        ),
        pytest.param(
            "python",
            "import os, signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
            "while True:\n    try:\n        if not os.fork(): os._exit(0)\n    except OSError: time.sleep(0.01)",
            id="python-zombies",
        ),
        pytest.param(
            "node",
            "const { spawn } = require('child_process'); process.on('SIGTERM', () => {});"
            "setInterval(() => { for (let n = 0; n < 20; n++) spawn('sleep', ['99']).on('error', () => {}); }, 10)",
            id="node-spawn",
        ),
    ],
)
def test_a_bomb_stays_in_its_container_and_goes_with_it(bench: Bench, language: str, content: str) -> None:
    began = time.monotonic()
    job = bench.start(
        script={"type": language, "content": content},
        resources={"pids": 60, "cpu": 0.5, "memory": "256m"},
        timeout=1.5,
        grace_period=0.5,
    )
    neighbour = bench.run(script={"type": "bash", "content": "for n in 1 2 3; do (echo $n); sleep 0.3; done"})
    list(bench.store.follow(job.id))
    result = bench.store.result(job.id)

    assert neighbour.text("stdout") == "1\n2\n3\n"
    assert result is not None
    assert result.status in {"timeout", "failed"}  # Node's own threads may end it for want of others
    if language != "node":
        assert result.status == "timeout"
    assert (result.metrics.pids_peak or 0) <= 60
    assert time.monotonic() - began < 20


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_job_that_stops_itself_is_ended_by_its_timeout(bench: Bench, language: str) -> None:
    ran = bench.run(
        script=script(
            language,
            bash="echo on; kill -STOP $$",
            python="import os\nprint('on', flush=True)\nos.kill(os.getpid(), 19)",
            node="console.log('on'); process.kill(process.pid, 'SIGSTOP')",
        ),
        timeout=1,
        grace_period=0.5,
    )

    assert (ran.result.status, ran.result.exit_code) == ("timeout", 137)
    assert ran.text("stdout") == "on\n"
    assert ran.result.timings.run_s < 10


# ---- files


@pytest.mark.parametrize("language", LANGUAGES)
def test_descriptors_are_limited(bench: Bench, language: str) -> None:
    ran = bench.run(
        script=script(
            language,
            bash="ulimit -n 9999 2>/dev/null || echo fixed\n"
            "while exec {fd}</dev/null; do n=$fd; done 2>/dev/null; echo $n",
            python="import errno, os, resource\ntry: resource.setrlimit(resource.RLIMIT_NOFILE, (9999, 9999))\n"
            "except ValueError: print('fixed')\n"
            "try:\n    while True: n = os.open('/dev/null', os.O_RDONLY)\nexcept OSError as e: print(n)",
            node="const fs = require('fs'); console.log('fixed'); let n;"
            "try { for (;;) n = fs.openSync('/dev/null', 'r') } catch (e) { console.log(n) }",
        ),
        resources={"cpu": 2},
    )

    assert ran.text("stdout").split() == ["fixed", "4095"]


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_crash_leaves_no_core_file(bench: Bench, language: str) -> None:
    ran = bench.run(
        script=script(
            language,
            bash="cd output; ulimit -c 1 2>/dev/null && echo raised; kill -ABRT $$",
            python="import os\nos.chdir('output')\nos.abort()",
            node="process.chdir('output'); process.abort()",
        )
    )

    assert ran.result.exit_code == 134
    assert ran.text("stdout") == ""
    assert ran.result.output.files == {}


# ---- disk I/O


def test_disk_io_is_limited_on_the_device_behind_the_workspace(
    make_bench: Callable[..., Bench], make_disk: Callable[..., Path]
) -> None:
    bench = make_bench(base_path=make_disk(64), min_free_disk=MIB)
    content = """
t() { local s=${EPOCHREALTIME/./}; "$@" 2>/dev/null; echo $(( (${EPOCHREALTIME/./} - s) / 1000 )); }
t dd if=/dev/zero of=/tmp/x bs=1M count=4 oflag=direct
t dd if=/tmp/x of=/dev/null bs=1M iflag=direct
"""
    ran = bench.run(script={"type": "bash", "content": content}, resources={"disk_io": "4m"})

    written_ms, read_ms = map(int, ran.text("stdout").split())
    assert 600 <= written_ms < 5000
    assert 600 <= read_ms < 5000
    assert (ran.result.metrics.disk_write_bytes or 0) >= 4 * MIB
