"""With CRONIUM_SECURITY__UID_POOL each sandbox has a uid of its own while it lives."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from cronium_worker.execution.sandbox import Host, Sandbox
from cronium_worker.fleet.store import JobStore
from cronium_worker.settings import Pool, Security, Settings
from tests.conftest import wait_until
from tests.integration.conftest import Bench
from tests.integration.scripts import LANGUAGES, script
from tests.integration.shifts import cases

POOL = Security(uid_pool="20000-20007")
LIMIT = int(Path("/proc/sys/fs/inotify/max_user_instances").read_text())

# Takes all the inotify instances it can get, says how many, and keeps them for KEEP_S seconds.
HOG = """
import ctypes, os, time
libc, taken = ctypes.CDLL(None), 0
while libc.inotify_init1(0) >= 0:
    taken += 1
print(taken, flush=True)
time.sleep(KEEP_S)
"""


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_job_is_another_user_and_all_of_it_works(make_bench: Callable[..., Bench], language: str) -> None:
    bench = make_bench(security=POOL)
    ran = bench.run(
        script=script(
            language,
            bash='cronium_output "[$(id -u), $(id -g), $(cronium_input)]"; echo x >output/x; umask 077; echo y >/tmp/y',
            python="import os\ncronium.output([os.getuid(), os.getgid(), cronium.input()])\n"
            "open('output/x', 'w').write('x\\n'); open('/tmp/y', 'w')",
            node="cronium.output([process.getuid(), process.getgid(), cronium.input()]);"
            "require('fs').writeFileSync('output/x', 'x\\n'); require('fs').writeFileSync('/tmp/y', '')",
        ),
        input_data=7,
    )
    assert ran.result.error is None
    assert ran.result.output.data == [20000, 20000, 7]
    assert ran.result.output.files["x"].size == 2


def test_the_smallest_pool_is_enough_for_any_burst(
    host: Host, make_bench: Callable[..., Bench], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each sandbox has its uid until it is destroyed, which no job waits for: it waits for the uid."""
    monkeypatch.setattr("cronium_worker.execution.runner._FAULT_DELAY_S", 0.01)
    changed = {"pool": Pool(size=2, minimum=0), "concurrency": 6}
    fields = host.settings.model_dump() | {"pool": {"size": 2}, "concurrency": 6}
    with pytest.raises(ValueError, match="give it more"):
        Settings.model_validate(fields | {"security": {"uid_pool": "20000-20006"}})
    bench = make_bench(security=Security(uid_pool="20000-20007"), **changed)
    bench.runner.start()
    script, network = {"type": "bash", "content": "id -u"}, {"mode": "none"}
    jobs = [bench.register(script=script, network=network) for _ in range(60)]
    with ThreadPoolExecutor(6) as slots:
        list(slots.map(bench.take, jobs))
    bench.settle()

    results = [bench.store.result(job.id) for job in jobs]
    assert [(result.status, result.error) for result in results if result] == [("completed", None)] * 60
    assert {result.attempt for result in results if result} == {1}


@pytest.mark.parametrize(("security", "shared"), [(Security(), True), (POOL, False)])
def test_jobs_take_nothing_from_each_others_limits(
    make_bench: Callable[..., Bench], security: Security, shared: bool
) -> None:
    bench = make_bench(security=security)

    def logged(job_id: str) -> str:
        return "".join(event["data"] for event in bench.store.events(job_id) if event["type"] == "log")

    hog = bench.start(script={"type": "python", "content": HOG.replace("KEEP_S", "600")}, network={"mode": "none"})
    taken = int(wait_until(lambda: logged(hog.id), what="the first job's count"))
    other = bench.run(script={"type": "python", "content": HOG.replace("KEEP_S", "0")}, network={"mode": "none"})
    bench.store.cancel(hog.id)
    bench.runner.active.cancel(hog.id)

    left = int(other.text("stdout"))
    print(f"inotify instances: limit {LIMIT}, first job {taken}, second job {left}")  # noqa: T201
    if shared:  # of one uid: what one has, the other has not
        assert taken + left <= LIMIT
    else:
        assert (taken, left) == (LIMIT, LIMIT)


def test_a_uid_stays_with_its_sandbox_over_adoption_and_other_settings(
    host: Host, store: JobStore, make_sandbox: Callable[..., Sandbox]
) -> None:
    pooled = replace(host, settings=host.settings.model_copy(update={"security": POOL}))
    content = "echo on; while [ ! -e /tmp/go ]; do sleep 0.02; done; echo 1 >output/output.json; echo x >output/x"
    with cases(store) as make:
        case = make(pooled, script={"type": "bash", "content": content})
        first = case.start()
        case.wait_for("on")
        assert first.leave() is not None

        other = make_sandbox("bash", host=pooled)  # of the same host, while nobody has the first
        assert other.workspace.owner() == (20001, 20001)

        case.host = host  # the next worker has been started without the pool
        second = case.adopt()
        (host.settings.sandboxes_path / "sandboxes" / case.container().sandbox_id / "tmp" / "go").touch()
        result = second.end()
    assert (result.status, result.output.data, list(result.output.files)) == ("completed", 1, ["x"])
