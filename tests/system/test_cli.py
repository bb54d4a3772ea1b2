"""The command line against a real worker process, as a user has it."""

import json
import os
import pty
import signal
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from tests.conftest import wait_until
from tests.integration.scripts import LANGUAGES, script
from tests.system.conftest import CRONIUM, Fleet

SUFFIX = {"bash": "sh", "python": "py", "node": "js"}


def write(folder: Path, language: str, content: str) -> str:
    path = folder / f"job.{SUFFIX[language]}"
    path.write_text(content)
    return str(path)


@pytest.mark.parametrize("language", LANGUAGES)
def test_run_is_the_script_as_if_it_ran_here(fleet: Fleet, tmp_path: Path, language: str) -> None:
    content = script(
        language,
        bash='echo "to stdout $(cronium_input | jq -r .x)"; echo "to stderr" >&2; exit 3',
        python="import sys\nprint('to stdout', cronium.input()['x'])\nprint('to stderr', file=sys.stderr)\nsys.exit(3)",
        node="console.log('to stdout', cronium.input().x); console.error('to stderr'); process.exitCode = 3",
    )["content"]
    done = fleet.cronium("run", write(tmp_path, language, content), "--input", '{"x": 1}', "--queue", fleet.queue)
    assert done.returncode == 3
    assert done.stdout == "to stdout 1\n"
    assert "to stderr\n" in done.stderr
    assert "failed · the script exited with 3" in done.stderr


@pytest.mark.parametrize("language", LANGUAGES)
def test_output_is_live(fleet: Fleet, tmp_path: Path, language: str) -> None:
    """Each line is seen while the script still runs: it sleeps for a minute after the second one."""
    content = script(
        language,
        bash="echo one; sleep 0.5; echo two; sleep 60",
        python="import time\nprint('one')\ntime.sleep(0.5)\nprint('two')\ntime.sleep(60)",
        node="console.log('one'); setTimeout(() => console.log('two'), 500); setTimeout(() => {}, 60000)",
    )["content"]
    process = fleet.popen("run", write(tmp_path, language, content), "--queue", fleet.queue)
    assert process.stdout is not None
    first, second = process.stdout.readline(), process.stdout.readline()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=40)
    assert (first, second) == ("one\n", "two\n")
    assert process.returncode == 130


def test_json_is_alone_on_stdout(fleet: Fleet, tmp_path: Path) -> None:
    path = write(tmp_path, "bash", "echo noise; cronium_output '{\"a\": [1, null]}'")
    done = fleet.cronium("run", path, "--queue", fleet.queue, "--json", "--var", "n=1", "--var", "s=text")
    result = json.loads(done.stdout)
    assert done.returncode == 0
    assert (result["status"], result["output"]["data"]) == ("completed", {"a": [1, None]})
    assert result["output"]["variables"] == {"n": 1, "s": "text"}


def test_detach_then_look(fleet: Fleet, tmp_path: Path) -> None:
    path = write(tmp_path, "python", "import sys\nprint('out')\nprint('err', file=sys.stderr)\ncronium.output('ü')")
    job_id = fleet.cronium("run", path, "--queue", fleet.queue, "--detach").stdout.strip()
    followed = fleet.cronium("logs", "-f", job_id)
    assert (followed.returncode, followed.stdout) == (0, "out\n")
    again = fleet.cronium("logs", job_id)
    assert (again.stdout, again.stderr) == ("out\n", "err\n")
    assert json.loads(fleet.cronium("status", job_id, "--json").stdout)["status"] == "completed"
    assert fleet.cronium("result", job_id).stdout == '"ü"\n'
    assert job_id in [row["id"] for row in json.loads(fleet.cronium("ps", "--json").stdout)]
    assert fleet.cronium("cancel", job_id).stdout == "already finished\n"


def test_rerun_is_the_same_job_under_a_new_id(fleet: Fleet, tmp_path: Path) -> None:
    running = fleet.cronium("run", write(tmp_path, "bash", "sleep 60"), "--queue", fleet.queue, "--detach")
    early = fleet.cronium("rerun", running.stdout.strip())
    assert (early.returncode, early.stdout) == (1, "")
    assert "cancel it first, or wait for its end" in early.stderr
    fleet.cronium("cancel", running.stdout.strip())

    path = write(tmp_path, "bash", 'echo "$PLACE"; exit 3')
    job_id = fleet.cronium("run", path, "--queue", fleet.queue, "--env", "PLACE=Rome", "--detach").stdout.strip()
    assert fleet.cronium("logs", "-f", job_id).returncode == 3

    again = fleet.cronium("rerun", job_id)
    assert (again.returncode, again.stdout) == (3, "Rome\n")
    new_id = fleet.cronium("rerun", job_id, "--detach").stdout.strip()
    assert new_id != job_id
    assert fleet.cronium("logs", "-f", new_id).stdout == "Rome\n"
    whole = json.loads(fleet.cronium("rerun", new_id, "--json").stdout)
    assert (whole["status"], whole["exit_code"]) == ("failed", 3)


def test_a_viewers_ctrl_c_leaves_the_job_alone(fleet: Fleet, tmp_path: Path) -> None:
    path = write(tmp_path, "bash", "echo begun; sleep 4")
    job_id = fleet.cronium("run", path, "--queue", fleet.queue, "--detach").stdout.strip()
    viewer = fleet.popen("logs", "-f", job_id)
    assert viewer.stdout is not None
    assert viewer.stdout.readline() == "begun\n"
    viewer.send_signal(signal.SIGINT)
    viewer.communicate(timeout=20)
    assert viewer.returncode == 130
    assert fleet.cronium("logs", "-f", job_id).returncode == 0


def test_exit_codes_for_what_is_not_the_scripts_end(fleet: Fleet, tmp_path: Path) -> None:
    path = write(tmp_path, "bash", "sleep 60")
    assert fleet.cronium("run", path, "--queue", fleet.queue, "--timeout", "0.5").returncode == 124
    bad_output = write(tmp_path, "python", "open('output/output.json', 'w').write('{')")
    assert fleet.cronium("run", bad_output, "--queue", fleet.queue).returncode == 125


def test_a_secret_comes_from_the_callers_environment(fleet: Fleet, tmp_path: Path) -> None:
    path = write(tmp_path, "bash", 'echo "it is $TOKEN"; test "$TOKEN" = s3cr3t')
    done = fleet.cronium("run", path, "--queue", fleet.queue, "--secret", "TOKEN", extra={"TOKEN": "s3cr3t"})
    assert (done.returncode, done.stdout) == (0, "it is ***\n")
    assert "s3cr3t" not in fleet.log.read_text()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--timeout", "-1"], "timeout: Input should be greater than 0"),
        (["--cpu", "64"], "resources.cpu: 64.0 is above this fleet's maximum of 2"),
        (["--memory", "12 parsecs"], "not a size"),
        (["--memory", "1k"], "resources.memory: "),
        (["--image", "evil/image:1"], "image: evil/image:1 is not on this fleet's allow-list"),
        (["--network", "host"], "network.mode: host is neither isolated, none, nor on"),
        (["--env", "1A=x"], "environment: '1A' is not a name"),
        (["--env", "CRONIUM_X=x"], "environment: CRONIUM_X is reserved"),
        (["--env", "novalue"], "'novalue' has no value: write NAME=VALUE"),
        (["--secret", "NOT_SET_ANYWHERE"], "NOT_SET_ANYWHERE is not set in your environment"),
        (["--input", "{"], "is not JSON"),
        (["--input", "@/nowhere"], "/nowhere: No such file"),
        (["--queue", "cronium.host.x"], "names that begin with cronium.host. are for maintenance only"),
    ],
)
def test_bad_input_is_one_clear_line_and_nothing_is_started(
    fleet: Fleet, tmp_path: Path, arguments: list[str], reason: str
) -> None:
    before = json.loads(fleet.cronium("ps", "--json", "-n", "1").stdout)
    done = fleet.cronium("run", write(tmp_path, "bash", "true"), *arguments)
    assert done.returncode in (1, 2)
    assert reason in done.stderr
    assert len(done.stderr.strip().splitlines()[-1:]) == 1
    assert "Traceback" not in done.stderr
    assert json.loads(fleet.cronium("ps", "--json", "-n", "1").stdout) == before


def test_unknown_jobs_are_named(fleet: Fleet) -> None:
    for command in (["logs"], ["logs", "-f"], ["status"], ["result"], ["cancel"], ["rerun"]):
        done = fleet.cronium(*command, "nosuchjob")
        assert done.returncode == 1
        assert "no job nosuchjob" in done.stderr


def test_on_a_terminal_the_summary_stands_on_its_own_line(fleet: Fleet, tmp_path: Path) -> None:
    path = write(tmp_path, "bash", "printf 'no newline'")
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [CRONIUM, "run", path, "--queue", fleet.queue],
        env=fleet.environment | {"TERM": "xterm", "COLUMNS": "200"},
        stdout=follower,
        stderr=follower,
    )
    os.close(follower)
    seen = b""
    while True:
        try:
            data = os.read(leader, 4096)
        except OSError:
            break
        if not data:
            break
        seen += data
    assert process.wait(10) == 0
    os.close(leader)
    assert b"no newline\r\n" in seen
    assert "completed · run".encode() in seen


def test_top_shows_hosts_and_jobs_under_way(fleet: Fleet, tmp_path: Path) -> None:
    path = write(tmp_path, "bash", "echo begun; sleep 60")
    running = fleet.popen("run", path, "--queue", fleet.queue)
    assert running.stdout is not None
    assert running.stdout.readline() == "begun\n"
    waiting = fleet.cronium("run", path, "--queue", f"{fleet.queue}-nobodys", "--detach").stdout.strip()
    try:
        host = fleet.environment["CRONIUM_HOST_NAME"]

        def rows() -> list[list[str]]:
            return [line.split() for line in fleet.cronium("top", "--once").stdout.splitlines()]

        # A host's own figures come with its next beat.
        wait_until(lambda: [host, "live", "1/8", "0.5/8"] in [row[:4] for row in rows()], what="the host's job")
        shown = rows()
        assert ["running", "bash", host] in [row[1:4] for row in shown]
        assert [waiting, "pending", "bash"] in [row[:3] for row in shown]

        leader, follower = pty.openpty()
        environment = fleet.environment | {"TERM": "xterm", "COLUMNS": "200", "LINES": "60"}
        live = subprocess.Popen([CRONIUM, "top"], env=environment, stdout=follower, stderr=follower)
        os.close(follower)
        seen = b""
        while seen.count(host.encode()) < 4:  # twice drawn: a row of the host, one of the job
            seen += os.read(leader, 4096)
        live.send_signal(signal.SIGINT)
        with suppress(OSError):  # the terminal's end; until then it may wait for its last words to be read
            while os.read(leader, 4096):
                pass
        assert live.wait(10) == 0
        os.close(leader)
    finally:
        fleet.cronium("cancel", waiting)
        running.send_signal(signal.SIGINT)
        running.communicate(timeout=30)


def test_bash_completes_commands_and_options(fleet: Fleet) -> None:
    script = f"""
        PATH={Path(CRONIUM).parent}:$PATH
        eval "$(cronium completion bash)"
        try() {{
            COMP_WORDS=("$@") COMP_CWORD=$(($# - 1)) COMPREPLY=()
            _cronium_completion cronium
            echo "${{COMPREPLY[*]}}"
        }}
        try cronium im
        try cronium images p
        try cronium run --det
        try cronium completion z
    """
    done = subprocess.run(["bash", "-c", script], env=fleet.environment, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["images", "pull", "--detach", "zsh"], done.stderr
    for shell in ("zsh", "fish"):
        assert "_CRONIUM_COMPLETE" in fleet.cronium("completion", shell).stdout


def test_a_worker_that_is_told_to_stop_lets_its_job_end(fleet: Fleet, tmp_path: Path) -> None:
    path = write(tmp_path, "bash", "echo begun; sleep 3; echo ended")
    process = fleet.popen("run", path, "--queue", fleet.queue)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    try:
        assert fleet.stop() == 0
        out, _ = process.communicate(timeout=30)
        assert (out, process.returncode) == ("ended\n", 0)
    finally:
        fleet.start()


def test_doctor_finds_this_machine_fit(fleet: Fleet) -> None:
    done = fleet.cronium("doctor", "--workers")
    assert done.returncode == 0, done.stdout
    assert f"jobs@{fleet.environment['CRONIUM_HOST_NAME']}" in done.stdout


def test_doctor_names_what_is_wrong_and_the_remedy(fleet: Fleet) -> None:
    wrong = {"CRONIUM_REDIS_URL": "redis://127.0.0.1:9/0", "DOCKER_HOST": "tcp://127.0.0.1:9"}
    done = fleet.cronium("doctor", extra=wrong)
    assert done.returncode == 1
    assert "FAIL redis: redis://127.0.0.1:9/0" in done.stdout
    assert "set CRONIUM_REDIS_URL" in done.stdout
    assert "FAIL docker" in done.stdout


def test_a_wrong_setting_ends_the_start_with_one_line(fleet: Fleet) -> None:
    done = fleet.cronium("worker", "--node", "jobs", extra={"CRONIUM_LOG__DRIVER": "syslog"})
    assert done.returncode == 1
    assert done.stderr.strip() == "cronium: CRONIUM_LOG__DRIVER: Input should be 'local' or 'json-file'"


def test_a_worker_without_an_engine_ends_with_one_line(fleet: Fleet) -> None:
    done = fleet.cronium("worker", "--node", "jobs", extra={"DOCKER_HOST": "tcp://127.0.0.1:9"})
    assert done.returncode == 1
    assert len(done.stderr.strip().splitlines()) == 1
    assert "DOCKER_HOST" in done.stderr
