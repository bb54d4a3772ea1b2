"""Jobs through the runner, on the real engine: what a script gets, how it ends, what comes back."""

import hashlib
import time
from collections.abc import Callable

import pytest

from tests.conftest import wait_until
from tests.integration.conftest import Bench
from tests.integration.scripts import LANGUAGES, exits_with, says, script

HELPERS = {
    "bash": """
name=$(cronium_input | jq -r .name)
echo "hello $name"
echo "careful" >&2
cronium_set_variable count "$(( $(cronium_get_variable count) + 1 ))"
cronium_setVariable 'ke"y.$x' "va'lue"
cronium_set_condition yes
cronium_output "$(jq -n --arg n "$name" --arg e "$(cronium_event_field name)" '{greeted: $n, event: $e}')"
echo "in a file" > "$CRONIUM_OUTPUT_DIR/note.txt"
""",
    "python": """
name = cronium.input()["name"]
print("hello", name)
import sys
print("careful", file=sys.stderr)
cronium.set_variable("count", str(int(cronium.get_variable("count")) + 1))
cronium.setVariable('ke"y.$x', "va'lue")
cronium.set_condition(True)
cronium.output({"greeted": name, "event": cronium.event()["name"]})
open("/workspace/output/note.txt", "w").write("in a file\\n")
""",
    "node": """
const name = cronium.input().name;
console.log("hello", name);
console.error("careful");
cronium.setVariable("count", String(Number(cronium.getVariable("count")) + 1));
cronium.setVariable('ke"y.$x', "va'lue");
cronium.setCondition(true);
cronium.output({ greeted: name, event: cronium.event().name });
require("fs").writeFileSync("/workspace/output/note.txt", "in a file\\n");
""",
}


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_script_uses_everything_and_completes(bench: Bench, language: str) -> None:
    ran = bench.run(
        script={"type": language, "content": HELPERS[language]},
        input_data={"name": "Zoë"},
        variables={"count": "41"},
        event={"name": "nightly"},
    )

    assert ran.result.error is None
    assert (ran.result.status, ran.result.exit_code) == ("completed", 0)
    assert ran.text("stdout") == "hello Zoë\n"
    assert ran.text("stderr") == "careful\n"
    assert ran.result.output.data == {"greeted": "Zoë", "event": "nightly"}
    assert ran.result.output.variables == {"count": "42", 'ke"y.$x': "va'lue"}
    assert ran.result.output.condition is True
    note = ran.result.output.files["note.txt"]
    assert (note.size, note.content) == (10, "aW4gYSBmaWxlCg==")
    assert list(ran.result.output.files) == ["note.txt"]
    assert ran.statuses == ["pending", "preparing", "running", "completed"]
    assert [event["seq"] for event in ran.events] == list(range(len(ran.events)))
    assert ran.result.metrics.cpu_seconds
    assert ran.result.metrics.memory_peak_bytes
    assert ran.result.metrics.cpu_percent_peak
    assert ran.result.timings.run_s > 0


@pytest.mark.parametrize("value", [0, False, "", None, [], {}])
@pytest.mark.parametrize("language", LANGUAGES)
def test_falsy_values_come_back_as_they_went_in(bench: Bench, language: str, value: object) -> None:
    ran = bench.run(
        script=script(
            language,
            bash="cronium_input | cronium_output",
            python="cronium.output(cronium.input())",
            node="cronium.output(cronium.input())",
        ),
        input_data=value,
    )
    assert ran.result.output.data == value
    assert type(ran.result.output.data) is type(value)


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_exit_code_is_passed_on(bench: Bench, language: str) -> None:
    ran = bench.run(script=exits_with(language, 37))
    assert (ran.result.status, ran.result.exit_code) == ("failed", 37)
    assert ran.result.error is not None
    assert ran.result.error.type == "script"


INSIDE = r"""
id -u; id -g; pwd
grep -E '^(Cap(Inh|Prm|Eff|Bnd|Amb)|NoNewPrivs|Seccomp):' /proc/self/status | tr -d '\t '
for d in / /usr /etc /opt /var /run /workspace/scripts /run/cronium; do
  if touch "$d/x" 2>/dev/null; then echo "writable $d"; fi
done
for d in /workspace /workspace/data /workspace/output /tmp; do
  if ! touch "$d/.x" 2>/dev/null; then echo "not writable $d"; fi
done
rm -f /workspace/output/.x
for mount in / /workspace/scripts /run/cronium; do
  grep " $mount " /proc/mounts | cut -d' ' -f2,4 | cut -d, -f1
done
cat /sys/fs/cgroup/memory/memory.limit_in_bytes 2>/dev/null || cat /sys/fs/cgroup/memory.max
cat /sys/fs/cgroup/pids/pids.max 2>/dev/null || cat /sys/fs/cgroup/pids.max
cat /sys/fs/cgroup/cpu/cpu.cfs_quota_us 2>/dev/null || cut -d' ' -f1 /sys/fs/cgroup/cpu.max
ulimit -n; ulimit -c
echo "$HOME $LANG $TZ $CRONIUM_JOB_TYPE $CRONIUM_ATTEMPT $CRONIUM_EXECUTION_MODE $CRONIUM_DATA_DIR $CRONIUM_OUTPUT_DIR"
"""
SEEN = """1000
1000
/workspace
CapInh:0000000000000000
CapPrm:0000000000000000
CapEff:0000000000000000
CapBnd:0000000000000000
CapAmb:0000000000000000
NoNewPrivs:1
Seccomp:2
/ ro
/workspace/scripts ro
/run/cronium ro
100663296
64
75000
4096
0
/tmp C.UTF-8 UTC {language} 1 container /workspace/data /workspace/output
"""


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_profile_is_what_it_says_as_read_from_inside(bench: Bench, language: str) -> None:
    ran = bench.run(
        script=script(
            language,
            bash=INSIDE,
            python=f"import subprocess\nsubprocess.run(['sh', '-c', {INSIDE!r}], check=True)",
            node=f"require('child_process').execFileSync('sh', ['-c', {INSIDE!r}], {{stdio: 'inherit'}})",
        ),
        resources={"memory": "96m", "pids": 64, "cpu": 0.75},
    )
    assert ran.text("stdout") == SEEN.replace("{language}", language)


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_script_of_one_mebibyte_arrives_byte_for_byte(bench: Bench, language: str) -> None:
    comment = "//" if language == "node" else "#"
    head = script(
        language,
        bash="sha256sum /workspace/scripts/main.sh | cut -d' ' -f1\nexit 0\n",
        python="import hashlib\nprint(hashlib.sha256(open(__file__, 'rb').read()).hexdigest())\n",
        node=(
            "const bytes = require('fs').readFileSync(__filename);\n"
            "console.log(require('crypto').createHash('sha256').update(bytes).digest('hex'));\n"
        ),
    )["content"]
    content = head + comment + "ü\r\n" * 10 + comment
    content += "x" * (2**20 - len(content.encode()))

    ran = bench.run(script={"type": language, "content": content})

    assert ran.text("stdout").strip() == hashlib.sha256(content.encode()).hexdigest()


@pytest.mark.parametrize(
    ("language", "content", "expected"),
    [
        ("bash", "true\n\nfalse\n", ""),
        ("bash", "true\n\nnosuchcommand\n", "/workspace/scripts/main.sh: line 3: nosuchcommand"),
        ("python", "x = 1\n\nraise ValueError('boom')\n", 'File "/workspace/scripts/main.py", line 3'),
        ("node", "const x = 1;\n\nthrow new Error('boom');\n", "/workspace/scripts/main.js:3"),
    ],
)
def test_line_numbers_are_the_users_own(bench: Bench, language: str, content: str, expected: str) -> None:
    ran = bench.run(script={"type": language, "content": content})
    assert ran.result.status == "failed"
    assert expected in ran.text("stderr")


ENVIRONMENT = {
    "QUOTES": 'it\'s "quoted" `x` $(y) \\ end',
    "LINES": "one\ntwo\n\nlast\n",
    "UNICODE": "Grüße ☃ 𝄞",
    "EMPTY": "",
    "IFS": "x",
    "OPTIND": "not a number",
    "SECONDS": "later",
    "PYTHONPATH": "/nowhere",
    "LARGE": "x" * 65536,
}


@pytest.mark.parametrize("language", LANGUAGES)
def test_environment_values_arrive_exactly(bench: Bench, language: str) -> None:
    ran = bench.run(
        script=script(
            language,
            bash="env -0 | base64 -w0",
            python="import os, base64\nd=b'\\0'.join(k+b'='+v for k,v in os.environb.items())\n"
            "print(base64.b64encode(d).decode())",
            node="const d=Object.entries(process.env).map(([k,v])=>`${k}=${v}`).join('\\0');"
            "console.log(Buffer.from(d).toString('base64'))",
        ),
        environment=ENVIRONMENT,
    )
    import base64

    entries = base64.b64decode(ran.text("stdout")).decode().split("\0")
    seen = dict(entry.split("=", 1) for entry in entries if entry)
    # Bash has variables of its own by these names.
    expected = {k: v for k, v in ENVIRONMENT.items() if language != "bash" or k not in ("IFS", "OPTIND", "SECONDS")}
    assert {name: seen.get(name) for name in expected} == expected


def test_utf8_cut_across_writes_is_put_together(bench: Bench) -> None:
    content = """
import os, time
for byte in "aé☃𝄞".encode() + b"\\xff|":
    os.write(1, bytes([byte])); time.sleep(0.02)
"""
    ran = bench.run(script={"type": "python", "content": content})
    assert ran.text("stdout") == "aé☃𝄞\ufffd|"


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_script_that_ignores_sigterm_is_killed_after_its_grace(bench: Bench, language: str) -> None:
    started = time.monotonic()
    ran = bench.run(
        script=script(
            language,
            bash="trap '' TERM; echo begun; while true; do sleep 0.1; done",
            python="import signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('begun', flush=True)\n"
            "time.sleep(60)",
            node="process.on('SIGTERM', () => {}); console.log('begun'); setInterval(() => {}, 1000)",
        ),
        timeout=1.5,
        grace_period=0.5,
    )
    assert (ran.result.status, ran.result.exit_code) == ("timeout", 137)
    assert ran.result.error is not None
    assert ran.result.error.type == "timeout"
    assert ran.text("stdout") == "begun\n"
    assert time.monotonic() - started < 30


@pytest.mark.parametrize("language", LANGUAGES)
def test_sigterm_reaches_the_script_before_the_grace_is_over(bench: Bench, language: str) -> None:
    ran = bench.run(
        script=script(
            language,
            bash="trap 'echo tidied; exit 9' TERM; echo begun; sleep 60 & wait",
            python="import signal, sys, time\n"
            "def tidy(*_): print('tidied', flush=True); sys.exit(9)\n"
            "signal.signal(signal.SIGTERM, tidy)\nprint('begun', flush=True)\ntime.sleep(60)",
            node="process.on('SIGTERM', () => { console.log('tidied'); process.exit(9) });"
            "console.log('begun'); setInterval(() => {}, 1000)",
        ),
        timeout=1.5,
        grace_period=30,
    )
    assert (ran.result.status, ran.result.exit_code) == ("timeout", 9)
    assert ran.text("stdout") == "begun\ntidied\n"


def test_a_line_of_a_script_that_ends_at_once_is_never_missed(bench: Bench) -> None:
    for number in range(10):
        assert bench.run(script={"type": "bash", "content": f"echo {number}"}).text("stdout") == f"{number}\n"


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_background_child_that_holds_stdout_does_not_hold_the_job(bench: Bench, language: str) -> None:
    ran = bench.run(
        script=script(
            language,
            bash="sleep 300 & echo bye",
            python="import subprocess\nsubprocess.Popen(['sleep', '300'])\nprint('bye')",
            node="const c = require('child_process').spawn('sleep', ['300'], {stdio: 'inherit', detached: true});"
            "c.unref(); console.log('bye')",
        ),
        timeout=60,
    )
    assert ran.result.status == "completed"
    assert ran.text("stdout") == "bye\n"
    assert ran.result.timings.run_s < 20


def test_fifty_megabytes_are_cut_at_the_cap_and_the_status_is_kept(bench: Bench) -> None:
    line = "0123456789" * 9 + "012345678\n"
    content = f"import sys\nfor _ in range(5000): sys.stdout.write({line!r} * 100)\nsys.exit(5)"
    ran = bench.run(script={"type": "python", "content": content}, resources={"cpu": 2})
    cap = 16 * 2**20
    assert (ran.result.status, ran.result.exit_code) == ("failed", 5)
    assert ran.result.log.truncated
    assert (ran.result.log.bytes, ran.result.log.lines) == (50_000_000, 500_000)
    kept = ran.text("stdout")
    assert (line * (cap // 100 + 1)).startswith(kept)
    assert 0.97 * cap < len(kept) <= cap  # what is counted is the JSON of events: a line's end is two bytes there


def test_half_a_million_lines_arrive_complete_and_in_order(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench()
    log = bench.runner._host.settings.log.model_copy(update={"max_bytes": 2**28})
    bench = make_bench(log=log)
    content = "import sys\nfor n in range(500000): sys.stdout.write(f'{n:099d}\\n')"
    ran = bench.run(script={"type": "python", "content": content}, resources={"cpu": 2})
    assert ran.result.log.lines == 500_000
    assert not ran.result.log.truncated
    lines = ran.text("stdout").split("\n")
    assert [int(line) for line in lines[:-1]] == list(range(500_000))


@pytest.mark.parametrize("language", LANGUAGES)
def test_out_of_memory_is_told_from_evidence(bench: Bench, language: str) -> None:
    ran = bench.run(
        script=script(
            language,
            bash="x=$(head -c 200000000 /dev/zero | tr '\\0' x); echo \"${#x}\"",
            python="x = bytearray(10**9)",
            node="const a = []; while (true) a.push(Buffer.alloc(10_000_000, 1))",
        ),
        resources={"memory": "64m"},
    )
    assert ran.result.status == "failed"
    assert ran.result.error is not None
    assert ran.result.error.type == "resource_limit"
    assert ran.result.error.details["limit"] == "memory"


def test_exit_137_alone_is_not_out_of_memory(bench: Bench) -> None:
    ran = bench.run(script={"type": "bash", "content": "kill -KILL $$"})
    assert ran.result.exit_code == 137
    assert ran.result.error is not None
    assert ran.result.error.type == "script"


def test_an_out_of_memory_child_does_not_fail_a_script_that_copes(bench: Bench) -> None:
    content = "import subprocess, sys\nsubprocess.run([sys.executable, '-c', 'x = bytearray(10**9)'])\nprint('coped')"
    ran = bench.run(script={"type": "python", "content": content}, resources={"memory": "64m"})
    assert (ran.result.status, ran.text("stdout")) == ("completed", "coped\n")


@pytest.mark.parametrize("language", LANGUAGES)
def test_bad_output_is_a_typed_error_that_keeps_log_and_exit_code(bench: Bench, language: str) -> None:
    ran = bench.run(
        script=script(
            language,
            bash="echo kept; printf '{\"a\":' > output/output.json",
            python="print('kept')\nopen('output/output.json', 'w').write('{\"a\":')",
            node="console.log('kept'); require('fs').writeFileSync('output/output.json', '{\"a\":')",
        )
    )
    assert (ran.result.status, ran.result.exit_code) == ("failed", 0)
    assert ran.result.error is not None
    assert ran.result.error.type == "output"
    assert "output.json" in ran.result.error.message
    assert ran.text("stdout") == "kept\n"


def test_secrets_reach_the_script_and_nobody_else(bench: Bench) -> None:
    secret = "gE!heim$'\"x"
    content = (
        "printf '%s' \"${TOKEN:0:5}\"; sleep 0.2; printf '%s\\n' \"${TOKEN:5}\"\n"
        'cronium_output "got $TOKEN"; cronium_set_variable t "$TOKEN"; test ${#TOKEN} = 11\n'
    )
    ran = bench.run(script={"type": "bash", "content": content}, secrets={"TOKEN": secret})
    assert ran.result.status == "completed"
    assert ran.text("stdout") == "***\n"
    assert ran.result.output.data == "got ***"
    assert ran.result.output.variables == {"t": "***"}
    redis = bench.store.redis
    assert redis.exists(f"cronium:job:{{{ran.job.id}}}:secrets") == 0
    assert secret not in str(redis.hgetall(f"cronium:job:{{{ran.job.id}}}"))


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_job_that_asks_for_retries_gets_them(bench: Bench, language: str) -> None:
    ran = bench.run(
        script=script(
            language,
            bash='echo "try $CRONIUM_ATTEMPT"; test "$CRONIUM_ATTEMPT" = 3',
            python="import os, sys\nprint('try', os.environ['CRONIUM_ATTEMPT'])\n"
            "sys.exit(os.environ['CRONIUM_ATTEMPT'] != '3')",
            node="console.log('try', process.env.CRONIUM_ATTEMPT);"
            "process.exit(process.env.CRONIUM_ATTEMPT === '3' ? 0 : 1)",
        ),
        retry={"max_attempts": 3, "delay": 0.05},
    )
    assert (ran.result.status, ran.result.attempt) == ("completed", 3)
    assert ran.text("stdout") == "try 1\ntry 2\ntry 3\n"
    assert ran.statuses == ["pending", "preparing", "running"] * 3 + ["completed"]
    assert [event["seq"] for event in ran.events] == list(range(len(ran.events)))


@pytest.mark.parametrize("language", LANGUAGES)
def test_cancel_while_running(bench: Bench, language: str) -> None:
    job = bench.start(script=says(language, "begun", then_sleep_s=60), grace_period=5)
    bench.runner.active.cancel("another job")
    for event in bench.store.follow(job.id):
        if event["type"] == "log":
            assert bench.store.cancel(job.id) == "requested"
            bench.runner.active.cancel(job.id)  # what the listener does
    result = bench.store.result(job.id)
    assert result is not None
    assert result.status == "cancelled"
    assert bench.store.cancel(job.id) == "finished"


def test_cancel_before_any_worker_took_the_job(bench: Bench) -> None:
    job = bench.register(script=says("bash", "never"))
    assert bench.store.cancel(job.id) == "cancelled"
    result = bench.runner.run(job.id)
    assert result == bench.store.result(job.id)
    assert [e["status"] for e in bench.store.events(job.id)] == ["pending", "cancelled"]


def test_a_job_in_the_wrong_working_directory_is_refused_and_elsewhere_made(bench: Bench) -> None:
    ran = bench.run(script={"type": "bash", "content": "pwd", "working_directory": "/tmp/a b/c"})
    assert ran.text("stdout") == "/tmp/a b/c\n"


def test_a_second_delivery_does_not_run_the_job_again(bench: Bench) -> None:
    job = bench.start(script=says("bash", "once", then_sleep_s=1))
    wait_until(lambda: bench.store.record(job.id)["status"] != "pending")
    assert bench.runner.run(job.id) == "busy"
    list(bench.store.follow(job.id))
    assert bench.runner.run(job.id) == bench.store.result(job.id)
    assert [e["data"] for e in bench.store.events(job.id) if e["type"] == "log"] == ["once\n"]


def test_samples_of_what_it_uses_are_events(make_bench: Callable[..., Bench]) -> None:
    bench = make_bench(metrics_interval=0.5)
    spin = "import time\nuntil = time.monotonic() + 2.5\nwhile time.monotonic() < until: pass"
    ran = bench.run(script={"type": "python", "content": spin}, resources={"cpu": 0.5})
    samples = [event for event in ran.events if event["type"] == "metrics"]

    assert len(samples) >= 2
    assert 0 < samples[-1]["cpu_percent"] <= 70
    assert samples[-1]["memory_bytes"] > 1024 * 1024
    assert samples[-1]["pids"] >= 2
    seconds = [sample["cpu_seconds"] for sample in samples]
    assert seconds == sorted(seconds)
    peak = ran.result.metrics.cpu_percent_peak
    assert peak is not None
    assert peak == max(peak, *(sample["cpu_percent"] or 0 for sample in samples))


def test_without_an_interval_there_are_no_samples(make_bench: Callable[..., Bench]) -> None:
    ran = make_bench(metrics_interval=0).run(script={"type": "bash", "content": "sleep 1"})

    assert [event for event in ran.events if event["type"] == "metrics"] == []
    assert ran.result.metrics.cpu_percent_peak is not None


# ---- the end, as the launcher marks it

END_MARK = "\x1e"


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_script_that_went_well_needs_no_word_of_the_engine(bench: Bench, waits: list[str], language: str) -> None:
    ran = bench.run(script=says(language, "hi"))

    assert (ran.result.status, ran.result.exit_code) == ("completed", 0)
    assert (ran.text("stdout"), ran.text("stderr")) == ("hi\n", "")
    assert (ran.result.log.bytes, ran.result.log.lines) == (3, 1)
    assert waits == []


@pytest.mark.parametrize(("content", "code"), [("exit 3", 3), ("kill -SEGV $$", 139), ("kill -TERM $$", 143)])
def test_nor_does_one_that_failed(bench: Bench, waits: list[str], content: str, code: int) -> None:
    ran = bench.run(script={"type": "bash", "content": f"echo hi; {content}"})

    assert (ran.result.status, ran.result.exit_code) == ("failed", code)
    assert (ran.text("stdout"), ran.text("stderr"), waits) == ("hi\n", "", [])


TIDIES = """
import signal, sys, time
def tidy(*_):
    print("tidied", flush=True)
    sys.exit(9)
signal.signal(signal.SIGTERM, tidy)
print("begun", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("status", ["timeout", "cancelled"])
def test_nor_does_one_that_its_worker_tells_to_end(bench: Bench, waits: list[str], status: str) -> None:
    job = bench.start(script={"type": "python", "content": TIDIES}, timeout=1.5 if status == "timeout" else 60)
    for event in bench.store.follow(job.id):
        if event["type"] == "log" and status == "cancelled":
            bench.runner.active.cancel(job.id)
    result = bench.store.result(job.id)

    assert result is not None
    assert (result.status, result.exit_code, waits) == (status, 9, [])
    assert [e["data"] for e in bench.store.events(job.id) if e["type"] == "log"] == ["begun\n", "tidied\n"]


@pytest.mark.parametrize(
    "content",
    [
        *("kill -KILL $$", "sleep 60 & echo hi", "(trap '' TERM HUP; setsid sleep 60) & sleep 0.1"),
        "trap 'exit 0' TERM; kill -TERM 0; sleep 1",
    ],
    ids=["was killed", "left a process", "left a daemon", "was told to end"],
)
def test_otherwise_the_engine_is_asked(bench: Bench, waits: list[str], content: str) -> None:
    ran = bench.run(script={"type": "bash", "content": content})

    assert len(waits) == 1
    assert END_MARK not in ran.text("stdout") + ran.text("stderr")


@pytest.mark.parametrize(("content", "code"), [("kill -KILL $$", 137), ("kill -SEGV $$", 139), ("kill -TERM $$", 143)])
def test_the_launcher_says_nothing_of_how_a_script_died(bench: Bench, content: str, code: int) -> None:
    ran = bench.run(script={"type": "bash", "content": content})

    assert ran.result.exit_code == code
    assert (ran.text("stdout"), ran.text("stderr")) == ("", "")


def test_streams_that_are_closed_or_unfinished_end_as_well(bench: Bench) -> None:
    ran = bench.run(script={"type": "bash", "content": "printf 'no newline'; exec 2>&- 1>&-"})

    assert (ran.result.status, ran.text("stdout")) == ("completed", "no newline")


SIGNALS = """
import signal
for number in (1, 2, 3, 10, 12, 13, 14, 15):
    print(number, signal.getsignal(number) not in (signal.SIG_IGN, None), end=" ")
"""


def test_the_script_has_the_signals_of_a_fresh_start(bench: Bench) -> None:
    ran = bench.run(script={"type": "python", "content": SIGNALS})
    # Python itself ignores SIGPIPE (13).
    assert ran.text("stdout") == " ".join(f"{n} {n != 13}" for n in (1, 2, 3, 10, 12, 13, 14, 15)) + " "
