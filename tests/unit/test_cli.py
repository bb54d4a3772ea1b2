"""The command line without a fleet: help, arguments, exit codes, what is shown."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

from cronium_worker.cli.main import cli, main
from cronium_worker.cli.run import exit_code
from cronium_worker.errors import JobConflict, JobNotFound
from cronium_worker.models import ErrorInfo, Job, JobResult, LogSummary
from cronium_worker.settings import get_settings


def commands(group: click.Group, path: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    yield path
    for name, command in group.commands.items():
        if isinstance(command, click.Group):
            yield from commands(command, (*path, name))
        else:
            yield (*path, name)


COMMANDS = list(commands(cli))


def invoke(*arguments: str, stdin: bytes | None = None) -> Result:
    return CliRunner().invoke(cli, list(arguments), input=stdin)


# ---- help


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_command_has_a_help_with_an_example(command: tuple[str, ...]) -> None:
    ran = invoke(*command, "--help")

    assert ran.exit_code == 0
    assert "\n  Example:\n" in ran.output
    assert f"cronium {' '.join(command)}".strip() in ran.output.partition("Example:")[2]


def test_the_commands_of_the_contract_are_there() -> None:
    assert {" ".join(command) for command in COMMANDS} >= {
        "run",
        "logs",
        "status",
        "result",
        "cancel",
        "ps",
        "hosts",
        "drain",
        "worker",
        "images build",
        "images pull",
        "images ls",
        "doctor",
        "config",
        "firewall",
    }


# ---- `run`: from arguments to a job


class Fleet:
    """Stands in for the client: takes jobs, and replays the events and the result it was told."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []
        self.events: list[dict[str, Any]] = []
        self.result = JobResult(job_id="j", status="completed", exit_code=0)

    def submit(self, data: dict[str, Any]) -> Any:
        job = Job.model_validate(data)
        self.jobs.append(job)
        return SimpleNamespace(id=job.id)


@pytest.fixture
def fleet(monkeypatch: pytest.MonkeyPatch) -> Fleet:
    fleet = Fleet()
    monkeypatch.setattr("cronium_worker.client.submit", fleet.submit)
    monkeypatch.setattr("cronium_worker.client.follow", lambda _: iter(fleet.events))
    monkeypatch.setattr("cronium_worker.client.result", lambda _: fleet.result)
    return fleet


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "report.py"
    path.write_text("print(1)\n")
    return str(path)


def ran_job(fleet: Fleet, *arguments: str) -> Job:
    ran = invoke("run", *arguments)
    assert ran.exit_code == 0, ran.output
    return fleet.jobs[-1]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("a.sh", "bash"),
        ("a.bash", "bash"),
        ("a.py", "python"),
        ("A.PY", "python"),
        ("a.js", "node"),
        ("a.mjs", "node"),
        ("a.cjs", "node"),
    ],
)
def test_the_type_is_known_by_the_suffix(fleet: Fleet, tmp_path: Path, name: str, kind: str) -> None:
    (tmp_path / name).write_bytes(b"x\r\n")

    job = ran_job(fleet, str(tmp_path / name))

    assert (job.script.type, job.script.content) == (kind, "x\r\n")


def test_a_given_type_wins(fleet: Fleet, file: str) -> None:
    assert ran_job(fleet, file, "--type", "bash").script.type == "bash"


def test_a_script_from_standard_input(fleet: Fleet) -> None:
    ran = invoke("run", "-", "--type", "bash", stdin="echo ü\n".encode())

    assert ran.exit_code == 0
    assert fleet.jobs[0].script.content == "echo ü\n"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], {}),
        (["--input", '{"a": [1]}'], {"input_data": {"a": [1]}}),
        (["--input", "null"], {"input_data": None}),
        (["--input", "0"], {"input_data": 0}),
        (["--var", "a=1", "--var", "b=x=y", "--var", "c="], {"variables": {"a": 1, "b": "x=y", "c": ""}}),
        (["--var", 'a={"k": null}'], {"variables": {"a": {"k": None}}}),
        (["--env", "A=1", "--env", "B="], {"environment": {"A": "1", "B": ""}}),
        (["--secret", "TOKEN"], {"secrets": {"TOKEN": "hunter2"}}),
        (["--timeout", "1.5"], {"timeout": 1.5}),
        (["--cpu", "1.5"], {"resources": {"cpu": 1.5}}),
        (["--memory", "256m"], {"resources": {"memory": 256 * 2**20}}),
        (["--memory", "268435456", "--cpu", "1"], {"resources": {"memory": 256 * 2**20, "cpu": 1.0}}),
        (["--image", "tools:1"], {"image": "tools:1"}),
        (["--network", "none"], {"network": {"mode": "none"}}),
        (["--queue", "reports"], {"queue": "reports"}),
    ],
)
def test_arguments_become_fields(
    fleet: Fleet, file: str, monkeypatch: pytest.MonkeyPatch, arguments: list[str], expected: dict[str, Any]
) -> None:
    monkeypatch.setenv("TOKEN", "hunter2")

    job = ran_job(fleet, file, *arguments)

    assert job.model_dump(mode="json", exclude_unset=True, exclude={"script"}) == expected


def test_input_from_a_file(fleet: Fleet, file: str, tmp_path: Path) -> None:
    (tmp_path / "in.json").write_text('["ü"]')

    assert ran_job(fleet, file, "--input", f"@{tmp_path}/in.json").input_data == ["ü"]


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["{dir}/a.txt"], "FILE"),
        (["{dir}/a"], "FILE"),
        (["{dir}/gone.py"], "FILE"),
        (["{dir}"], "FILE"),
        (["{dir}/binary.py"], "FILE"),
        (["-"], "FILE"),
        ([], "FILE"),
        (["{dir}/a.py", "--type", "ruby"], "--type"),
        (["{dir}/a.py", "--input", "{{a"], "--input"),
        (["{dir}/a.py", "--input", "@{dir}/gone.json"], "--input"),
        (["{dir}/a.py", "--input", "@{dir}/binary.py"], "--input"),
        (["{dir}/a.py", "--var", "x"], "--var"),
        (["{dir}/a.py", "--env", "A"], "--env"),
        (["{dir}/a.py", "--secret", "NO_SUCH_VARIABLE"], "--secret"),
        (["{dir}/a.py", "--timeout", "1m"], "--timeout"),
        (["{dir}/a.py", "--cpu", "many"], "--cpu"),
        (["{dir}/a.py", "--memory", "512x"], "--memory"),
        (["{dir}/a.py", "--memory", "²"], "--memory"),
        (["{dir}/a.py", "--unknown"], "--unknown"),
    ],
)
def test_a_wrong_argument_is_one_line_that_names_it(
    fleet: Fleet, tmp_path: Path, arguments: list[str], named: str
) -> None:
    for name in ("a.txt", "a", "a.py"):
        (tmp_path / name).write_text("x")
    (tmp_path / "binary.py").write_bytes(b"ab\xff")

    ran = invoke("run", *(argument.format(dir=tmp_path) for argument in arguments))

    errors = [line for line in ran.output.splitlines() if line.startswith("Error: ")]
    assert ran.exit_code == 2
    assert ran.output.rstrip().endswith(errors[0])
    assert named in errors[0]
    assert not fleet.jobs


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--timeout", "0"], "cronium: timeout: Input should be greater than 0\n"),
        (["--timeout", "nan"], "cronium: timeout: Input should be a finite number\n"),
        (["--memory", "1m"], "cronium: resources.memory: Input should be greater than or equal to 6291456\n"),
        (
            ["--env", "A-B=hunter2"],
            "cronium: environment: 'A-B' is not a name: use [A-Za-z_][A-Za-z0-9_]*\n",
        ),
        (["--queue", "a b", "--cpu", "0"], None),
    ],
)
def test_a_job_that_is_refused_is_one_line(
    fleet: Fleet,
    file: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    line: str | None,
) -> None:
    code, out, err = run_main(monkeypatch, capsys, "run", file, *arguments)

    assert (code, out) == (1, "")
    assert len(err.splitlines()) == 1
    assert line is None or err == line
    assert not fleet.jobs


def run_main(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[int, str, str]:
    monkeypatch.setattr("sys.argv", ["cronium", *arguments])
    with pytest.raises(SystemExit) as caught:
        main()
    out, err = capsys.readouterr()
    assert isinstance(caught.value.code, int)
    return caught.value.code, out, err


# ---- `run`: what is shown


def log_event(stream: str, data: str, seq: int) -> dict[str, Any]:
    return {"seq": seq, "type": "log", "stream": stream, "data": data}


def test_stdout_is_the_scripts_stdout_and_stderr_its_stderr(fleet: Fleet, file: str) -> None:
    fleet.events = [
        {"seq": 0, "type": "status", "status": "pending", "message": "waiting"},
        {"seq": 1, "type": "progress", "message": "pulling 50%"},
        log_event("stdout", "one\n[red]two", 2),
        log_event("stderr", "oops\n", 3),
        {"seq": 4, "type": "status", "status": "completed", "message": "completed"},
    ]

    ran = invoke("run", file)

    assert ran.exit_code == 0
    assert ran.stdout == "one\n[red]two"
    assert "oops\n" in ran.stderr
    assert ran.stderr.startswith("pending: waiting\npulling 50%\n")
    assert "completed · run 0.00 s" in ran.stderr


def test_json_alone_is_on_stdout(fleet: Fleet, file: str) -> None:
    fleet.events = [log_event("stdout", "one\n", 0), log_event("stderr", "two\n", 1)]

    ran = invoke("run", file, "--json")

    assert json.loads(ran.stdout) == fleet.result.model_dump(mode="json")
    assert ran.stderr == ""


def test_detached_prints_the_id_alone(fleet: Fleet, file: str) -> None:
    assert invoke("run", file, "--detach").stdout == f"{fleet.jobs[0].id}\n"
    assert json.loads(invoke("run", file, "--detach", "--json").stdout) == {"job_id": fleet.jobs[1].id}


def test_a_failure_is_told_with_its_reason(fleet: Fleet, file: str) -> None:
    fleet.result = JobResult(
        job_id="j",
        status="failed",
        exit_code=3,
        host="h1",
        error=ErrorInfo(type="script", message="the script exited with 3"),
        log=LogSummary(bytes=9, truncated=True),
    )

    ran = invoke("run", file)

    assert ran.exit_code == 3
    assert ran.stdout == ""
    assert "failed · the script exited with 3 · " in ran.stderr
    assert "log truncated, 9 bytes in all · job j on h1" in ran.stderr


def test_ctrl_c_cancels_the_job_and_follows_it_to_its_end(
    fleet: Fleet, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    replays: list[Callable[[], Iterator[dict[str, Any]]]] = []
    cancelled: list[str] = []
    first, last = log_event("stdout", "one\n", 0), log_event("stdout", "two\n", 1)

    def interrupted() -> Iterator[dict[str, Any]]:
        yield first
        raise KeyboardInterrupt

    replays[:] = [interrupted, lambda: iter([first, last])]
    monkeypatch.setattr("cronium_worker.client.follow", lambda _: replays.pop(0)())
    monkeypatch.setattr("cronium_worker.client.cancel", cancelled.append)
    fleet.result = JobResult(job_id="j", status="cancelled")

    ran = invoke("run", file)

    assert ran.exit_code == 130
    assert ran.stdout == "one\ntwo\n"
    assert cancelled == [fleet.jobs[0].id]


def test_a_second_ctrl_c_leaves_it_alone(
    fleet: Fleet, file: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(_: str) -> Iterator[dict[str, Any]]:
        raise KeyboardInterrupt
        yield {}

    cancelled: list[str] = []
    monkeypatch.setattr("cronium_worker.client.follow", interrupted)
    monkeypatch.setattr("cronium_worker.client.cancel", cancelled.append)

    code, _, err = run_main(monkeypatch, capsys, "run", file)

    assert code == 130
    assert len(cancelled) == 1
    assert "Ctrl-C again" in err


# ---- exit codes


@pytest.mark.parametrize(
    ("status", "script_exit", "error", "code"),
    [
        ("completed", 0, None, 0),
        ("failed", 1, "script", 1),
        ("failed", 3, "script", 3),
        ("failed", 255, "script", 255),
        ("failed", 137, "resource_limit", 137),
        ("failed", 0, "output", 125),
        ("failed", None, "image_pull", 125),
        ("failed", None, "validation", 125),
        ("failed", None, "lost", 125),
        ("timeout", 143, "timeout", 124),
        ("timeout", None, "timeout", 124),
        ("cancelled", 143, "cancelled", 130),
        ("cancelled", None, "cancelled", 130),
    ],
)
def test_exit_codes(status: Any, script_exit: int | None, error: Any, code: int) -> None:
    info = ErrorInfo(type=error, message="m") if error else None

    assert exit_code(JobResult(job_id="j", status=status, exit_code=script_exit, error=info)) == code


# ---- other commands


class Store:
    """One finished job, and what is asked about it."""

    def __init__(self, result: JobResult | None) -> None:
        self._result = result

    def result(self, job_id: str) -> JobResult | None:
        if job_id != "j":
            raise JobNotFound(f"no job {job_id}: unknown id, or its record has expired")
        return self._result

    def events(self, job_id: str) -> Iterator[dict[str, Any]]:
        self.result(job_id)
        yield log_event("stdout", "out", 0)
        yield {"seq": 1, "type": "status", "status": "running", "message": ""}
        yield log_event("stderr", "err", 2)

    def cancel(self, job_id: str) -> str:
        self.result(job_id)
        return "finished" if self._result else "requested"

    def fields(self, job_id: str, *names: str) -> dict[str, str]:
        self.result(job_id)
        return {"id": job_id, "status": "running", "attempt": "1", "job": '{"metadata": {"a": "b"}}'}

    def recent(self, count: int) -> list[dict[str, str]]:
        return [{"id": "j", "status": "running", "type": "bash"}] * min(count, 3)


@pytest.fixture
def use_store(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    def use(result: JobResult | None = None) -> None:
        monkeypatch.setattr("cronium_worker.cli.jobs.store", lambda: Store(result))

    return use


def test_logs_of_a_job(use_store: Callable[..., None]) -> None:
    use_store()

    ran = invoke("logs", "j")

    assert (ran.stdout, ran.stderr) == ("out", "err")


def test_status_of_a_job(use_store: Callable[..., None]) -> None:
    use_store()

    shown = json.loads(invoke("status", "j", "--json").stdout)

    assert (shown["id"], shown["status"], shown["metadata"]) == ("j", "running", {"a": "b"})
    assert "status:       running" in invoke("status", "j").stdout


def test_result_of_a_job(use_store: Callable[..., None]) -> None:
    finished = JobResult(
        job_id="j", status="failed", exit_code=4, error=ErrorInfo(type="script", message="exited with 4")
    )
    use_store(finished)

    as_json, as_text = invoke("result", "j", "--json"), invoke("result", "j")

    assert JobResult.model_validate_json(as_json.stdout) == finished
    assert (as_text.stdout, as_text.stderr) == ("null\n", "failed: script: exited with 4\n")
    assert as_json.exit_code == as_text.exit_code == 4


def test_result_of_a_job_that_runs_says_how_to_follow_it(use_store: Callable[..., None]) -> None:
    use_store()

    ran = invoke("result", "j")

    assert ran.exit_code == 1
    assert ran.stderr == "Error: job j is not finished; follow it with `cronium logs -f j`\n"


def test_cancel_says_what_happens(use_store: Callable[..., None]) -> None:
    use_store()
    assert invoke("cancel", "j").stdout == "cancelling\n"

    use_store(JobResult(job_id="j", status="completed"))
    assert invoke("cancel", "j").stdout == "already finished\n"


def test_ps(use_store: Callable[..., None]) -> None:
    use_store()

    assert len(json.loads(invoke("ps", "-n", "2", "--json").stdout)) == 2
    assert invoke("ps").stdout.split()[:2] == ["ID", "STATUS"]
    assert invoke("ps", "-n", "0").exit_code == 2


@pytest.mark.parametrize("command", ["logs", "status", "result", "cancel"])
def test_an_unknown_job_is_one_line(
    use_store: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
) -> None:
    use_store()

    code, out, err = run_main(monkeypatch, capsys, command, "other")

    assert (code, out) == (1, "")
    assert err == "cronium: no job other: unknown id, or its record has expired\n"


def test_a_conflict_is_one_line(
    fleet: Fleet, file: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def conflict(_: Any) -> Any:
        raise JobConflict("id: x is taken by another job; choose a new id")

    monkeypatch.setattr("cronium_worker.client.submit", conflict)

    assert run_main(monkeypatch, capsys, "run", file) == (
        1,
        "",
        "cronium: id: x is taken by another job; choose a new id\n",
    )
    assert not fleet.jobs


@pytest.fixture
def fresh_settings() -> Iterator[None]:
    get_settings.cache_clear()
    yield
    get_settings.cache_clear()


@pytest.mark.usefixtures("fresh_settings")
def test_config_prints_the_effective_settings_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRONIUM_REDIS_URL", "redis://:hunter2@h/0")
    monkeypatch.setenv("CRONIUM_MAXIMA__CPU", "7")

    as_text, as_json = invoke("config").stdout, invoke("config", "--json").stdout

    assert "CRONIUM_REDIS_URL=redis://:***@h/0\n" in as_text
    assert "CRONIUM_MAXIMA__CPU=7.0\n" in as_text
    assert json.loads(as_json)["maxima"]["cpu"] == 7
    assert "hunter2" not in as_text + as_json


@pytest.mark.usefixtures("fresh_settings")
def test_a_wrong_setting_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("CRONIUM_MAXIMA__MEMORY", "lots")

    code, out, err = run_main(monkeypatch, capsys, "config")

    assert (code, out) == (1, "")
    assert err.startswith("cronium: CRONIUM_MAXIMA__MEMORY: ")
    assert len(err.splitlines()) == 1


def test_redis_away_is_one_line_and_infrastructure(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from redis import Redis

    from cronium_worker.fleet.store import JobStore

    # The port of the discard service on this machine: nobody listens there.
    client = Redis.from_url("redis://127.0.0.1:9/0", decode_responses=True)
    monkeypatch.setattr("cronium_worker.cli.jobs.store", lambda: JobStore(client, result_ttl_s=1))

    code, out, err = run_main(monkeypatch, capsys, "status", "j")

    assert (code, out) == (125, "")
    assert err.startswith("cronium: Redis: ")
    assert "CRONIUM_REDIS_URL" in err
    assert len(err.splitlines()) == 1


@pytest.mark.parametrize("arguments", [["--input", "[" * 100_000], ["--var", "x=" + "[" * 100_000]])
def test_json_that_is_too_deep_is_a_wrong_argument(tmp_path: Any, arguments: list[str]) -> None:
    (tmp_path / "a.sh").write_text("")
    ran = CliRunner().invoke(cli, ["run", str(tmp_path / "a.sh"), *arguments])
    assert not isinstance(ran.exception, RecursionError)


@pytest.mark.usefixtures("fresh_settings")
def test_there_are_uids_for_all_slots_of_the_command_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CRONIUM_SECURITY__UID_POOL", "20000-20011")
    monkeypatch.setenv("CRONIUM_POOL__SIZE", "4")

    code, _, err = run_main(monkeypatch, capsys, "worker", "--concurrency", "9")

    assert code == 1
    assert err.startswith("cronium: CRONIUM_CONCURRENCY: 9 slots and CRONIUM_POOL__SIZE=4 sandboxes that wait are more")


@pytest.mark.parametrize("command", [["hosts"], ["drain", "x"]])
def test_a_broker_that_is_away_is_one_line(
    command: list[str],
) -> None:
    import subprocess
    import sys

    ran = subprocess.run(
        [sys.executable, "-c", "from cronium_worker.cli.main import main; main()", *command],
        env={"CRONIUM_REDIS_URL": "redis://127.0.0.1:9/0", "PATH": "/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 125
    assert len(ran.stderr.splitlines()) == 1
