"""Jobs that take more than they may, on the real engine: each is ended, told why, and nobody else is harmed."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cronium_worker.execution.diskuse import DiskUse
from cronium_worker.execution.sandbox import Host
from cronium_worker.models import ErrorInfo, JobResult, Resources
from cronium_worker.settings import Maxima
from tests.conftest import wait_until
from tests.integration.conftest import Bench
from tests.integration.scripts import LANGUAGES, script
from tests.integration.shifts import Case

MIB = 2**20
PLACES = ("/workspace", "/workspace/data", "/workspace/output", "/tmp")
INODES = 1000
FAST = {"disk_io": "1g", "cpu": 2}


@pytest.fixture
def bench(make_bench: Callable[..., Bench]) -> Bench:
    return make_bench(maxima=Maxima(inodes=INODES))


def error_of(result: JobResult | None) -> ErrorInfo:
    assert result is not None
    assert result.status == "failed"
    assert result.error is not None
    return result.error


def assert_disk_limit(result: JobResult | None, limit_bytes: int) -> ErrorInfo:
    error = error_of(result)
    assert (error.type, error.retryable) == ("resource_limit", False)
    assert (error.details["limit"], error.details["limit_bytes"]) == ("disk", limit_bytes)
    assert error.details["used_bytes"] > limit_bytes
    assert str(limit_bytes) in error.message
    return error


# ---- bytes and inodes


def fills(language: str, place: str, mebibytes: int) -> dict[str, str]:
    """Says so, writes a file, then waits."""
    return script(
        language,
        bash=f"echo 1 | cronium_output; echo begun; head -c {mebibytes}M /dev/zero > {place}/big; sleep 60",
        python="import time\ncronium.output(1)\nprint('begun', flush=True)\n"
        f"open('{place}/big', 'wb').write(bytes({mebibytes} * 2**20))\ntime.sleep(60)",
        node="cronium.output(1); console.log('begun');"
        f"require('fs').writeFileSync('{place}/big', Buffer.alloc({mebibytes} * 2**20)); setTimeout(() => {{}}, 60000)",
    )


@pytest.mark.parametrize(
    ("language", "place"), [("bash", place) for place in PLACES] + [("python", "/tmp"), ("node", "/workspace/output")]
)
def test_a_job_that_fills_the_disk_is_ended_and_keeps_log_and_output(bench: Bench, language: str, place: str) -> None:
    ran = bench.run(script=fills(language, place, 24), resources={"disk": "20m", **FAST})

    error = assert_disk_limit(ran.result, 20 * MIB)
    assert error.details["used_bytes"] < 25 * MIB
    assert ran.text("stdout") == "begun\n"
    assert ran.result.output.data == 1
    assert ran.result.timings.run_s < 10


@pytest.mark.parametrize(
    ("language", "place"), [("bash", "/workspace"), ("python", "/workspace/data"), ("node", "/tmp")]
)
def test_a_job_with_too_many_files_is_ended(bench: Bench, language: str, place: str) -> None:
    ran = bench.run(
        script=script(
            language,
            bash=f"cd {place}; echo begun; touch $(seq {INODES + 100}); sleep 60",
            python="import os, time\nprint('begun', flush=True)\n"
            f"for n in range({INODES + 100}): os.link(open(f'{place}/{{n // 100}}', 'w').name, f'{place}/l{{n}}')\n"
            "time.sleep(60)",
            node="console.log('begun'); const fs = require('fs');"
            f"for (let n = 0; n <= {INODES + 100}; n++) fs.mkdirSync('{place}/' + n); setTimeout(() => {{}}, 60000)",
        )
    )

    error = error_of(ran.result)
    assert error.type == "resource_limit"
    assert (error.details["limit"], error.details["limit_inodes"]) == ("inodes", INODES)
    assert INODES < error.details["used_inodes"] < INODES + 200
    assert ran.text("stdout") == "begun\n"
    assert ran.result.timings.run_s < 10


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_sparse_file_is_not_over_the_limit(bench: Bench, language: str) -> None:
    ran = bench.run(
        script=script(
            language,
            bash="truncate -s 1T output/sparse; sleep 1.5",
            python="import os, time\nos.truncate(open('output/sparse', 'w').name, 2**40)\ntime.sleep(1.5)",
            node="const fs = require('fs'); fs.writeFileSync('output/sparse', ''); fs.truncateSync('output/sparse',"
            "2 ** 40); setTimeout(() => {}, 1500)",
        ),
        resources={"disk": "1m"},
    )

    assert ran.result.error is None
    assert ran.result.output.files["sparse"].size == 2**40


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_file_that_grows_without_a_name_counts(bench: Bench, language: str) -> None:
    ran = bench.run(
        script=script(
            language,
            bash="exec 3> /tmp/x; rm /tmp/x; head -c 24M /dev/zero >&3; sleep 60",
            python="import os, time\nf = open('/tmp/x', 'wb')\nos.unlink('/tmp/x')\nf.write(bytes(24 * 2**20))\n"
            "f.flush(); time.sleep(60)",
            node="const fs = require('fs'); const f = fs.openSync('/tmp/x', 'w'); fs.unlinkSync('/tmp/x');"
            "fs.writeSync(f, Buffer.alloc(24 * 2 ** 20)); setTimeout(() => {}, 60000)",
        ),
        resources={"disk": "20m", **FAST},
    )

    assert_disk_limit(ran.result, 20 * MIB)
    assert ran.result.timings.run_s < 10


DEEP = """
import os, time
for _ in range(3000):
    os.mkdir("d"); os.chdir("d")
open("big", "wb").write(bytes(24 * 2**20))
time.sleep(60)
"""


def test_what_lies_deep_counts(make_bench: Callable[..., Bench]) -> None:
    ran = make_bench().run(script={"type": "python", "content": DEEP}, resources={"disk": "34m", **FAST})

    # The directories have a block each.
    assert error_of(ran.result).details["used_inodes"] >= 3001
    assert_disk_limit(ran.result, 34 * MIB)
    assert ran.result.timings.run_s < 10


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_job_that_goes_on_filling_gets_no_grace(bench: Bench, language: str) -> None:
    ran = bench.run(
        script=script(
            language,
            bash="trap '' TERM; while true; do head -c 2M /dev/zero >> /tmp/x; sleep 0.02; done",
            python="import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nf = open('/tmp/x', 'wb')\n"
            "while True: f.write(bytes(2**21)); time.sleep(0.02)",
            node="process.on('SIGTERM', () => {}); const fs = require('fs');"
            "setInterval(() => fs.appendFileSync('/tmp/x', Buffer.alloc(2 ** 21)), 20)",
        ),
        resources={"disk": "8m", **FAST},
        grace_period=60,
    )

    assert_disk_limit(ran.result, 8 * MIB)
    assert ran.result.exit_code == 137
    assert ran.result.timings.run_s < 10


def test_a_job_that_only_does_not_go_has_its_grace(bench: Bench) -> None:
    content = "trap 'echo asked' TERM; head -c 9M /dev/zero > /tmp/x; while true; do sleep 0.1 || true; done"
    ran = bench.run(script={"type": "bash", "content": content}, resources={"disk": "8m", **FAST}, grace_period=1)

    assert_disk_limit(ran.result, 8 * MIB)
    assert (ran.result.exit_code, ran.text("stdout")) == (137, "asked\n")
    assert ran.result.timings.run_s > 1


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_job_that_is_over_the_limit_when_it_ends_has_failed(
    bench: Bench, language: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(DiskUse, "step", lambda *_: False)  # nobody has looked while it ran
    ran = bench.run(
        script=script(
            language,
            bash="head -c 3M /dev/zero > output/big; echo 1 | cronium_output",
            python="open('output/big', 'wb').write(bytes(3 * 2**20))\ncronium.output(1)",
            node="require('fs').writeFileSync('output/big', Buffer.alloc(3 * 2 ** 20)); cronium.output(1)",
        ),
        resources={"disk": "2m", **FAST},
    )

    assert_disk_limit(ran.result, 2 * MIB)
    assert ran.result.exit_code == 0
    assert ran.result.output.data == 1
    assert ran.result.output.files["big"].size == 3 * MIB


# ---- from worker to worker


FILLS_WHEN_TOLD = "echo on; until [ -e /tmp/go ]; do sleep 0.05; done; head -c 24M /dev/zero > /tmp/big; sleep 60"


def test_an_adopted_job_is_watched_by_the_fleets_default(case: Callable[..., Case]) -> None:
    defaults = Resources(disk=20 * MIB)
    job = case({"defaults": defaults}, script={"type": "bash", "content": FILLS_WHEN_TOLD}, resources=FAST)
    shift = job.start()
    job.wait_for("on")
    sandbox = job.container().sandbox_id
    assert shift.leave() is not None
    shift = job.adopt()
    (job.host.settings.sandboxes_path / "sandboxes" / sandbox / "tmp" / "go").touch()

    result = shift.end()
    assert_disk_limit(result, 20 * MIB)
    assert result.exit_code == 143


def test_a_job_that_its_worker_ended_for_its_disk_and_did_not_judge(case: Callable[..., Case]) -> None:
    """As a worker dies between its SIGTERM and the result."""
    job = case(script={"type": "bash", "content": "head -c 3M /dev/zero > /tmp/big; echo on; sleep 60"},
               resources={"disk": "2m", **FAST}, grace_period=60)  # fmt: skip
    with stopped_watch(job.host):
        shift = job.start()
        job.wait_for("on")
        assert shift.leave() is not None
    job.host.engine.kill(job.container().id, "SIGTERM")

    assert_disk_limit(job.adopt().end(), 2 * MIB)


@contextmanager
def stopped_watch(host: Host) -> Iterator[None]:
    """A host that does not look at the disk."""
    watcher = host.disk
    watcher._round, looks = lambda _: 0.1, watcher._round  # type: ignore[method-assign]
    try:
        yield
    finally:
        watcher._round = looks  # type: ignore[method-assign]


# ---- the host's own room


@pytest.fixture
def small_disk(make_disk: Callable[..., Path]) -> Path:
    return make_disk(400, "-N", "16000")


def test_the_job_that_fills_the_hosts_disk_is_ended_before_others_fail(
    make_bench: Callable[..., Bench], small_disk: Path
) -> None:
    bench = make_bench(base_path=small_disk, min_free_disk=200 * MIB)
    neighbour = bench.start(
        script={"type": "bash", "content": "for n in $(seq 20); do head -c 100k /dev/zero >> /tmp/x; sleep 0.1; done"}
    )
    wait_until(lambda: bench.store.record(neighbour.id)["status"] == "running", what="the neighbour")
    ran = bench.run(
        script={"type": "bash", "content": "trap '' TERM; while sleep 0.01; do head -c 1M /dev/zero >> /tmp/x; done"},
        resources=FAST,
        grace_period=60,
    )

    error = error_of(ran.result)
    assert (error.type, error.details["limit"]) == ("resource_limit", "disk")
    assert "the host's disk ran full" in error.message
    assert str(small_disk) not in error.message
    assert ran.result.exit_code == 137
    list(bench.store.follow(neighbour.id))
    result = bench.store.result(neighbour.id)
    assert result is not None
    assert (result.status, result.error) == ("completed", None)


HIDDEN = """
import ctypes, os, time
mmap = ctypes.CDLL(None).mmap  # Python's own keeps a descriptor
mmap.restype = ctypes.c_void_p
mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long]
while True:  # each is mapped, and has neither a name nor a descriptor
    f = open("/tmp/x", "wb+")
    os.unlink("/tmp/x")
    f.truncate(2**21)
    at = mmap(None, 2**21, 3, 1, f.fileno(), 0)
    f.close()
    ctypes.memset(at, 1, 2**21)
    time.sleep(0.02)
"""


def test_what_no_walk_can_find_is_found_by_what_was_written(make_bench: Callable[..., Bench], small_disk: Path) -> None:
    bench = make_bench(base_path=small_disk, min_free_disk=200 * MIB)
    ran = bench.run(
        script={"type": "python", "content": HIDDEN}, resources={**FAST, "memory": "1g"}, grace_period=60, timeout=20
    )

    assert "the host's disk ran full" in error_of(ran.result).message
    assert ran.result.timings.run_s < 15


def test_the_job_that_takes_the_hosts_inodes_is_ended(make_bench: Callable[..., Bench], small_disk: Path) -> None:
    bench = make_bench(base_path=small_disk, min_free_disk=MIB)
    content = "for n in $(seq 100); do mkdir $n; (cd $n; touch $(seq 150)); done; sleep 60"
    ran = bench.run(script={"type": "bash", "content": content}, resources=FAST)

    error = error_of(ran.result)
    assert (error.type, error.details["limit"]) == ("resource_limit", "inodes")
    assert "the host's disk ran full" in error.message
