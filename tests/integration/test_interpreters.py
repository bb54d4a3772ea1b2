"""Interpreters that are started before their job: what a script finds and what becomes of it is as by a fresh one.

Each case runs the same job twice: by an interpreter that has waited, and in a container that is made for it.
"""

import json
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cronium_worker.execution.sandbox import Host, Sandbox
from cronium_worker.settings import Images, Pool
from tests.conftest import wait_until
from tests.integration.conftest import Bench, Ran
from tests.integration.interpreters import ENDS, FINDS
from tests.integration.shifts import Case
from tests.integration.test_adoption import AT_THE_GATE, MARKED, killed_worker
from tests.isolation.images import built, image_for

MIB = 1024 * 1024
STARTED = ("bash", "python", "node")
# Only /proc tells a script that it was started with another environment: by that a case knows.
HAS_WAITED = {
    "bash": r"$(grep -zq ^CRONIUM_GATE= /proc/$$/environ && echo true || echo false)",
    "python": "'CRONIUM_GATE=' in open('/proc/self/environ', errors='replace').read()",
    "node": "require('fs').readFileSync('/proc/self/environ', 'latin1').includes('CRONIUM_GATE=')",
}
SAYS = {"bash": "echo {}", "python": "print({})", "node": "console.log({})"}


def at_the_gate(sandbox: Sandbox) -> int | None:
    """The process of an interpreter that reads at the gate; see proc_pid_syscall(5)."""
    for process in sandbox.usage.processes():
        try:
            is_shell = Path(f"/proc/{process}/exe").readlink().name in ("dash", "sh", "busybox")
            if not is_shell and Path(f"/proc/{process}/syscall").read_text().startswith("0 0x3 "):
                return process
        except OSError:
            continue
    return None


def waiting(bench: Bench, language: str) -> list[Sandbox]:
    return [entry[2] for entry in list(bench.runner._pool._waiting) if entry[1].script_type == language]


class Both:
    """A bench whose interpreters wait, and one that has none."""

    def __init__(self, make_bench: Callable[..., Bench], **changed: Any) -> None:
        self.warm = make_bench(pool=Pool(size=3, minimum=1), **changed)
        self.cold = make_bench(pool=Pool(size=0), **changed)
        self.warm.runner.start()

    def wait_for(self, language: str) -> Sandbox:
        def stands() -> Sandbox | None:
            return next((sandbox for sandbox in waiting(self.warm, language) if at_the_gate(sandbox)), None)

        return wait_until(stands, timeout_s=30, what=f"{language} at its gate")

    def run(self, language: str, content: str, **fields: Any) -> tuple[Ran, Ran]:
        """By one that has waited, and by a fresh one."""
        job = {"script": {"type": language, "content": content, **fields.pop("script", {})}, **fields}
        self.wait_for(language)
        hits = self.warm.runner.pool_count().hits
        ran = self.warm.run(**job)
        assert self.warm.runner.pool_count().hits == hits + 1
        return ran, self.cold.run(**job)


@pytest.fixture
def both(make_bench: Callable[..., Bench]) -> Both:
    return Both(make_bench)


def known(text: str) -> str:
    """Without the names of this one container, job and process."""
    text = re.sub(r"\b[0-9a-f]{32}\b|\b[0-9a-f]{12}\b", "<id>", text)
    return re.sub(r"\(node:\d+\)|pid: \d+|0x[0-9a-f]+", "<number>", text)


def outcome(ran: Ran) -> dict[str, Any]:
    result = ran.result
    return {
        "status": result.status,
        "exit code": result.exit_code,
        "error": result.error and (result.error.type, result.error.message),
        "stdout": known(ran.text("stdout")),
        "stderr": known(ran.text("stderr")),
        "output": result.output.model_dump(exclude={"files"}),
        "files": sorted(result.output.files),
    }


# ---- what a script finds


@pytest.mark.parametrize("language", STARTED)
def test_a_script_finds_what_it_finds_in_a_fresh_one(both: Both, language: str) -> None:
    job = {
        "environment": {
            "A": "1\n=2 '\"ü",
            "PATH": "/opt/x:/usr/local/bin:/usr/bin:/bin",
            "__proto__": "x",
            "EMPTY": "",
        },
        "secrets": {"TOKEN": "correct horse"},
        "variables": {"v": 1},
        "event": {"name": "n"},
        "script": {"working_directory": "/tmp/new/it's here"},
    }
    warm, cold = both.run(language, FINDS[language], **job)
    assert (warm.text("stderr"), cold.text("stderr")) == ("", "")
    found, wanted = (json.loads(known(ran.text("stdout"))) for ran in (warm, cold))

    assert (found.pop("waited"), wanted.pop("waited")) == (True, False)
    assert found.keys() == wanted.keys()
    assert {name: (found[name], wanted[name]) for name in found if found[name] != wanted[name]} == {}


def test_a_module_finds_what_it_finds_in_a_fresh_one(both: Both) -> None:
    content = """
import fs from "node:fs";
import { createRequire } from "node:module";
const waited = fs.readFileSync("/proc/self/environ", "latin1").includes("CRONIUM_GATE=");
console.log(JSON.stringify({ waited, url: import.meta.url, argv: process.argv,
  globals: Object.getOwnPropertyNames(globalThis), main: typeof require,
  thisIs: typeof this, cwd: process.cwd(), env: { ...process.env }, input: cronium.input(),
  cache: Object.keys(createRequire(import.meta.url).cache), later: await Promise.resolve(1) }));
"""
    warm, cold = both.run("node", content, input_data={"n": 1})
    found, wanted = (json.loads(known(ran.text("stdout"))) for ran in (warm, cold))

    assert (found.pop("waited"), wanted.pop("waited")) == (True, False)
    assert found == wanted


def test_clocks_do_not_count_the_waiting(both: Both) -> None:
    content = """
const now = Date.now();
const soon = [process.uptime() * 1000, performance.now(), now - performance.timeOrigin];
setTimeout(() => console.log(JSON.stringify({ soon, fired: Date.now() - now })), 400);
"""
    sandbox = both.wait_for("node")
    began = sandbox.usage.read().cpu_seconds
    wait_until(lambda: sandbox.ran_s(None) == 0 and age_s(sandbox) > 4, timeout_s=20, what="a while at the gate")
    warm, _ = both.run("node", content)
    said = json.loads(warm.text("stdout"))

    assert all(0 < value < 3000 for value in said["soon"]), said
    assert 395 < said["fired"] < 3000
    # Nor do the metrics.
    assert began is not None
    assert warm.result.metrics.cpu_seconds is not None
    assert warm.result.metrics.cpu_seconds < began


def test_bash_counts_its_seconds_from_its_job(both: Both) -> None:
    sandbox = both.wait_for("bash")
    wait_until(lambda: age_s(sandbox) > 3, what="a while at the gate")
    warm, _ = both.run("bash", "echo $SECONDS")

    assert warm.text("stdout") in ("0\n", "1\n")


def age_s(sandbox: Sandbox) -> float:
    process = at_the_gate(sandbox)
    started = int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[19]) / 100
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started


# ---- how a script ends


@pytest.mark.timeout(400)
@pytest.mark.parametrize("language", STARTED)
def test_a_script_ends_as_in_a_fresh_one(both: Both, language: str) -> None:
    differing = {}
    for name, content in ENDS[language].items():
        warm, cold = map(outcome, both.run(language, content, input_data=[1], event={"name": "n"}))
        if warm != cold:
            differing[name] = {key: (warm[key], cold[key]) for key in warm if warm[key] != cold[key]}
    assert differing == {}


TOLD = {
    "bash": "trap 'exit 0' TERM; kill -15 0; sleep 10",
    "python": "import os, signal, sys; signal.signal(15, lambda *_: sys.exit(0)); os.killpg(0, 15); signal.pause()",
    "node": "process.on('SIGTERM', () => process.exit(0)); process.kill(0, 'SIGTERM'); setTimeout(() => {}, 10000)",
}


@pytest.mark.parametrize("language", STARTED)
def test_that_it_went_well_is_known_without_the_engine(both: Both, waits: list[str], language: str) -> None:
    both.wait_for(language)
    ran = both.warm.run(script={"type": language, "content": SAYS[language].format(HAS_WAITED[language])})
    assert (ran.result.status, ran.text("stdout").lower(), waits) == ("completed", "true\n", [])
    both.wait_for(language)
    ran = both.warm.run(script={"type": language, "content": TOLD[language]})
    assert (ran.result.exit_code, ran.text("stdout"), len(waits)) == (0, "", 1)


LISTENS = {
    "bash": """
trap 'echo bye; exit 3' TERM
echo on {waited}
sleep 60 &
wait
""",
    "python": """
import signal, sys, time
signal.signal(15, lambda *_: (print('bye'), sys.exit(3)))
print('on', {waited}, flush=True)
time.sleep(60)
""",
    "node": """
process.on('SIGTERM', () => {{ console.log('bye'); process.exit(3); }});
console.log('on', {waited});
setTimeout(() => {{}}, 60000);
""",
}


@pytest.mark.parametrize("language", STARTED)
def test_a_cancel_and_a_timeout_reach_it(both: Both, language: str) -> None:
    script = {"type": language, "content": LISTENS[language].format(waited=HAS_WAITED[language])}
    both.wait_for(language)
    ran = both.warm.run(script=script, timeout=1)
    assert (ran.result.status, ran.result.exit_code) == ("timeout", 3)
    assert ran.text("stdout").lower() == "on true\nbye\n"
    both.wait_for(language)
    job = both.warm.start(script=script)
    said = lambda: "".join(e["data"] for e in both.warm.store.events(job.id) if e["type"] == "log")  # noqa: E731
    wait_until(lambda: "on" in said(), what="its first word")
    assert both.warm.store.cancel(job.id) == "requested"
    both.warm.runner.active.cancel(job.id)
    wait_until(lambda: both.warm.store.result(job.id), what="its end")
    result = both.warm.store.result(job.id)
    assert result is not None
    assert (result.status, result.exit_code, said().lower()) == ("cancelled", 3, "on true\nbye\n")


# ---- which jobs need a fresh one

HEAP = "require('v8').getHeapStatistics().heap_size_limit"


@pytest.mark.parametrize(
    ("language", "content", "environment", "said"),
    [
        ("bash", "$(printf '%(%Z)T' 0)", {"TZ": "Asia/Tokyo"}, "JST"),
        ("bash", "$(shopt -q nullglob && echo on)", {"BASHOPTS": "nullglob"}, "on"),
        ("bash", "~", {"HOME": "/workspace"}, "/workspace"),
        ("bash", "${IFS@Q}", {"IFS": "x"}, r"$' \t\n'"),
        ("bash", "$(set -x; : 2>&1)", {"PS4": "> "}, None),
        ("bash", '"${GLOBIGNORE-}"', {"GLOBIGNORE": "*"}, "*"),
        ("python", "hash('a') == 4644230208847339140 or hash('a')", {"PYTHONHASHSEED": "0"}, None),
        ("python", "__import__('sys').flags.optimize", {"PYTHONOPTIMIZE": "2"}, "2"),
        ("python", "'/tmp/x' in __import__('sys').path", {"PYTHONPATH": "/tmp/x"}, "True"),
        ("python", "__import__('time').tzname[0]", {"TZ": "Asia/Tokyo"}, "JST"),
        ("python", "__import__('site').USER_BASE", {"HOME": "/workspace"}, "/workspace/.local"),
        ("node", HEAP + " < 1.5e8", {"NODE_OPTIONS": "--max-old-space-size=64"}, "true"),
        ("node", "require('module').globalPaths[0]", {"NODE_PATH": "/tmp/x"}, "/tmp/x"),
        ("node", "new Date(0).getHours()", {"TZ": "Asia/Tokyo"}, "9"),
        ("node", "Intl.DateTimeFormat().resolvedOptions().locale", {"LC_ALL": "de_DE.UTF-8"}, "de-DE"),
    ],
)  # fmt: skip
def test_what_an_interpreter_reads_when_it_starts_is_honoured(
    both: Both, language: str, content: str, environment: dict[str, str], said: str | None
) -> None:
    script = SAYS[language].format(content) + "\n" + SAYS[language].format(HAS_WAITED[language])
    warm, cold = both.run(language, script, environment=environment)

    assert outcome(warm) == outcome(cold)
    assert warm.result.status == "completed"
    *words, waited = warm.text("stdout").splitlines()
    assert waited.lower() == "false"
    assert said is None or words == [said]


@pytest.mark.parametrize("environment", [{}, {"FORCE_COLOR": "1"}])
def test_node_prints_colours_as_a_fresh_one(both: Both, environment: dict[str, str]) -> None:
    warm, cold = both.run("node", "console.log({ a: 1 }); console.error([null])", environment=environment)

    assert outcome(warm) == outcome(cold)
    assert ("\x1b[" in warm.text("stdout")) == bool(environment)


def test_node_sizes_its_heap_by_the_jobs_memory(both: Both) -> None:
    content = f"console.log({HEAP})"
    for memory in ("256m", "1g"):
        warm, cold = both.run("node", content, resources={"memory": memory})
        assert outcome(warm) == outcome(cold)


@pytest.mark.parametrize(("language", "memory"), [("python", "12m"), ("node", "48m")])
def test_too_little_memory_for_one_that_waits(both: Both, language: str, memory: str) -> None:
    """It has its own made, instead of one after the other whose limit cannot be lowered so far."""
    both.wait_for(language)
    ran = both.warm.run(script={"type": language, "content": ""}, resources={"memory": memory})

    assert (both.warm.runner.pool_count().hits, len(waiting(both.warm, language))) == (0, 1)
    assert ran.result.error is None or ran.result.error.type != "container_start"


@pytest.mark.parametrize("language", STARTED)
@pytest.mark.parametrize("directory", ["/workspace/scripts/new", "/workspace/data/event.json", "/tmp/" + "x" * 300])
def test_a_directory_that_cannot_be_made(both: Both, language: str, directory: str) -> None:
    warm, cold = both.run(language, "1", script={"working_directory": directory})

    assert outcome(warm) == outcome(cold)
    assert warm.result.exit_code not in (0, None)


def test_by_setting_none_is_started(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(pool=Pool(size=3, minimum=1, interpreters=False))
    bench.runner.start()
    wait_until(lambda: bench.runner.pool_count().waiting == 3, what="sandboxes that wait")
    assert all(at_the_gate(sandbox) is None for language in STARTED for sandbox in waiting(bench, language))
    for language in STARTED:
        ran = bench.run(script={"type": language, "content": SAYS[language].format(HAS_WAITED[language])})
        assert ran.text("stdout").strip().lower() == "false"
    assert bench.runner.pool_count().hits == len(STARTED)


# ---- images, and interpreters that die

OTHERS = {
    "without the gate": {
        "bash": "RUN sed -i s/CRONIUM_GATE/CRONIUM_OTHER/ /usr/local/lib/cronium/preamble.bash",
        "python": "RUN rm $(python3 -c 'import site; print(site.getsitepackages()[0])')/0-cronium.pth",
        "node": "RUN rm /node_modules/cronium/gate.js",
    },
    "with a setting": {
        "bash": "ENV POSIXLY_CORRECT=1",
        "python": "ENV PYTHONVERBOSE=1",
        "node": "ENV NODE_OPTIONS=--no-warnings",
    },
    "that cannot start so": {
        "bash": "RUN sed -i 's/printf a/exit 1/' /usr/local/lib/cronium/preamble.bash",
        "python": "ENV PYTHONHOME=/nowhere",
        "node": "RUN echo 'process.exit(1)' > /node_modules/cronium/gate.js",
    },
}


@pytest.mark.parametrize("language", STARTED)
@pytest.mark.parametrize("kind", OTHERS)
def test_an_image_whose_interpreter_does_not_wait(
    make_bench: Callable[..., Bench], host: Host, language: str, kind: str
) -> None:
    dockerfile = f"FROM {image_for(host, language)}\nUSER 0:0\n{OTHERS[kind][language]}\nUSER 1000:1000\n"
    with built(f"cronium-test/{language}-as-it-is:1", dockerfile) as image:
        images = Images(**{language: image})
        both = Both(make_bench, images=images)
        wait_until(lambda: both.warm.runner.pool_count().waiting == 3, what="sandboxes that wait")
        job = {"script": {"type": language, "content": SAYS[language].format(HAS_WAITED[language])}}
        warm, cold = both.warm.run(**job), both.cold.run(**job)
        for bench in (both.warm, both.cold):
            bench.runner.close()

    assert outcome(warm)["status"] == outcome(cold)["status"]
    assert known(warm.text("stdout")) == known(cold.text("stdout"))
    assert both.warm.runner.pool_count().hits == 1


@pytest.mark.parametrize("language", STARTED)
def test_one_that_has_died_at_its_gate_costs_the_job_nothing(both: Both, language: str) -> None:
    sandbox = both.wait_for(language)
    process = at_the_gate(sandbox)
    assert process is not None
    os.kill(process, signal.SIGKILL)
    wait_until(lambda: not Path(f"/proc/{process}").exists(), what="its end")
    ran = both.warm.run(script={"type": language, "content": SAYS[language].format(HAS_WAITED[language])})

    assert (ran.result.status, ran.text("stdout").strip().lower(), ran.text("stderr")) == ("completed", "false", "")
    assert both.warm.runner.pool_count().hits == 1


# ---- a worker that is killed

FROM_THE_POOL = """
from cronium_worker.execution.sandbox import kind_of
from tests.conftest import wait_until
from tests.integration.test_interpreters import at_the_gate

def get(pool, job, *, attempt, image, **_):
    sandbox = Sandbox.prepare(host, kind_of(job, image, settings.defaults))
    wait_until(lambda: at_the_gate(sandbox), what="the interpreter at its gate")
    sandbox.assign(job, attempt=attempt)
    return sandbox

Pool.get = get
"""


ONCE = {
    "bash": "echo once {waited}; printf x >>/workspace/output/runs",
    "python": "print('once', {waited}); open('/workspace/output/runs', 'a').write('x')",
    "node": "console.log('once', {waited}); require('fs').appendFileSync('/workspace/output/runs', 'x')",
}


@pytest.mark.parametrize("language", STARTED)
def test_killed_between_assignment_and_gate_the_script_is_not_started(case: Callable[..., Case], language: str) -> None:
    job = case({"pool": Pool(size=1)}, script={"type": language, "content": ONCE[language].format(waited=1)})
    with killed_worker(job, FROM_THE_POOL + AT_THE_GATE) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "at the gate\n"
        container = job.container()
        worker.send_signal(signal.SIGKILL)
    wait_until(lambda: not job.host.engine.state(container.id).running, what="the launcher's end")
    assert job.host.engine.state(container.id).exit_code == 75
    result = job.adopt().end()

    assert result.error is not None
    assert (result.error.type, result.error.retryable) == ("container_start", True)
    assert (result.exit_code, job.text(), job.text("stderr")) == (None, "", "")


@pytest.mark.parametrize("language", STARTED)
def test_killed_behind_the_mark_the_script_runs_once(case: Callable[..., Case], language: str) -> None:
    job = case(
        {"pool": Pool(size=1)}, script={"type": language, "content": ONCE[language].format(waited=HAS_WAITED[language])}
    )
    with killed_worker(job, FROM_THE_POOL + MARKED) as worker:
        assert worker.wait(30) == -signal.SIGKILL
    result = job.adopt().end()

    assert (result.status, result.error) == ("completed", None)
    assert (job.text().lower(), result.output.files["runs"].size) == ("once true\n", 1)
