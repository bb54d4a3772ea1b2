"""A job's files in its workspace, and the shell that starts it: run by the shells that images have."""

import json
import os
import select
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cronium_worker.models import Job
from cronium_worker.workspace import Workspace, create, remove
from cronium_worker.workspace.gate import Gate
from cronium_worker.workspace.staging import environment, stage_job, stage_launcher, start_script
from tests.conftest import wait_until

UID, GID = (4321, 4322) if os.geteuid() == 0 else (os.geteuid(), os.getegid())
SHELLS = [["/bin/sh"], ["bash", "--posix"], *([[found, "sh"]] if (found := shutil.which("busybox")) else [])]
SH = pytest.mark.parametrize("sh", SHELLS, ids=" ".join)


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    workspace = create(tmp_path, "sandbox", uid=UID, gid=GID)
    yield workspace
    remove(workspace)


def job(kind: str = "bash", content: str = "echo hello\n", **fields: Any) -> Job:
    return Job.model_validate({"id": "job-1", "script": {"type": kind, "content": content}, **fields})


def stage(workspace: Workspace, staged: Job) -> None:
    stage_job(workspace, staged, attempt=2, host="h1", uid=UID, gid=GID)


def files_in(workspace: Workspace) -> dict[str, bytes]:
    return {
        str(path.relative_to(workspace.root)): path.read_bytes()
        for path in workspace.root.rglob("*")
        if path.is_file() and path.parent != workspace.control
    }


# ---- files


@pytest.mark.parametrize(
    ("kind", "names"), [("bash", ["main.sh"]), ("python", ["main.py"]), ("node", ["main.js", "main.mjs"])]
)
@pytest.mark.parametrize(
    "content",
    ["", "echo", "a\r\nb\r\n", "\ufeffx", "#!/bin/false\n", "ü\u2028\x1b\x7f", "'\"$(x)`\\", "x" * 2**20],
    ids=["empty", "no newline", "crlf", "bom", "shebang", "controls", "quotes", "1 MiB"],
)
def test_the_script_is_written_byte_for_byte(workspace: Workspace, kind: str, names: list[str], content: str) -> None:
    stage(workspace, job(kind, content))

    assert sorted(path.name for path in workspace.scripts.iterdir()) == names
    assert all((workspace.scripts / name).read_bytes() == content.encode() for name in names)


def test_data_is_written_as_json(workspace: Workspace) -> None:
    stage(workspace, job(input_data={"ü": [1, None]}, variables={'k"': "v"}, event={"name": "n", "jobId": "forged"}))

    assert {name: json.loads(text) for name, text in files_in(workspace).items() if name.startswith("data/")} == {
        "data/input.json": {"ü": [1, None]},
        "data/variables.json": {'k"': "v"},
        "data/event.json": {"name": "n", "jobId": "job-1", "attempt": 2, "host": "h1"},
    }


@pytest.mark.parametrize("value", [None, 0, False, "", [], {}])
def test_falsy_input_is_input(workspace: Workspace, value: Any) -> None:
    stage(workspace, job(input_data=value))

    assert json.loads((workspace.data / "input.json").read_text()) == value


def test_without_input_there_is_no_input_file(workspace: Workspace) -> None:
    stage(workspace, job())

    assert sorted(files_in(workspace)) == ["data/event.json", "data/variables.json", "scripts/main.sh"]


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_modes_and_owners_hold_under_any_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        workspace = create(tmp_path, "sandbox", uid=UID, gid=GID)
        stage_launcher(workspace)
        stage(workspace, job("node", input_data=1))
    finally:
        os.umask(before)

    own = (os.geteuid(), os.getegid())
    for path in (path for path in workspace.root.rglob("*") if path.is_file()):
        status = path.stat()
        assert status.st_mode & 0o7777 == (0o600 if path.parent == workspace.root else 0o644), path
        assert (status.st_uid, status.st_gid) == ((UID, GID) if path.parent == workspace.data else own), path


def test_nothing_is_written_over_or_through_what_is_there(workspace: Workspace, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    canary.write_text("untouched")
    (workspace.data / "event.json").symlink_to(canary)

    with pytest.raises(FileExistsError):
        stage(workspace, job())

    assert canary.read_text() == "untouched"


def test_secrets_are_in_the_control_directory_alone(workspace: Workspace) -> None:
    stage(workspace, job(secrets={"TOKEN": "hunter2"}, input_data=1))

    assert "hunter2" in (workspace.control / "start.sh").read_text()
    assert not any(b"hunter2" in content for content in files_in(workspace).values())


# ---- environment


def test_the_worker_tells_the_script_about_its_job() -> None:
    values = environment(job("node"), attempt=3, event={"name": "ü"})

    assert values == {
        "CRONIUM_JOB_ID": "job-1",
        "CRONIUM_JOB_TYPE": "node",
        "CRONIUM_ATTEMPT": "3",
        "CRONIUM_DATA_DIR": "/workspace/data",
        "CRONIUM_OUTPUT_DIR": "/workspace/output",
        "CRONIUM_EVENT_METADATA": '{"name": "ü"}',
    }


def test_bash_gets_the_preamble_and_keeps_the_users_own() -> None:
    plain = environment(job(), attempt=1, event={})
    own = environment(job(environment={"BASH_ENV": "/workspace/mine"}), attempt=1, event={})

    assert plain["BASH_ENV"] == own["BASH_ENV"] == "/usr/local/lib/cronium/preamble.bash"
    assert "CRONIUM_USER_BASH_ENV" not in plain
    assert own["CRONIUM_USER_BASH_ENV"] == "/workspace/mine"
    python = environment(job("python", environment={"BASH_ENV": "x"}), attempt=1, event={})
    assert python["BASH_ENV"] == "x"


@pytest.mark.parametrize(("size", "kept"), [(1000, True), (64 * 1024 - 9, True), (64 * 1024 - 8, False)])
def test_an_event_too_large_for_a_variable_is_in_its_file_only(size: int, kept: bool) -> None:
    text = environment(job(), attempt=1, event={"a": "x" * size})["CRONIUM_EVENT_METADATA"]

    assert json.loads(text) == ({"a": "x" * size} if kept else {})


# ---- the start script, executed


def delivered(sh: list[str], started: Job, tmp_path: Path) -> dict[str, str]:
    """The environment that a program gets: the interpreter is env(1), its script's name the option -0."""
    text = start_script(started, environment(started, attempt=1, event={})).replace("/workspace/scripts/main.py", "-0")
    path = tmp_path / "start.sh"
    path.write_bytes(text.encode())
    ran = subprocess.run(
        [*sh, str(path)],
        env={"CRONIUM_INTERPRETER": "/usr/bin/env", "PATH": "/usr/bin:/bin"},
        check=False,
        capture_output=True,
    )
    assert (ran.returncode, ran.stderr) == (0, b"")
    pairs = [pair.partition("=") for pair in ran.stdout.decode().split("\0") if pair]
    names = [name for name, _, _ in pairs]
    assert sorted(names) == sorted(set(names)), "exactly one entry of each name"
    return {name: value for name, _, value in pairs}


def python_job(values: dict[str, str], secrets: dict[str, str] | None = None) -> Job:
    script = {"type": "python", "content": "", "working_directory": "/tmp"}
    return Job.model_validate({"script": script, "environment": values, "secrets": secrets or {}})


AWKWARD = {
    "EMPTY": "",
    "BLANKS": "  a  b  ",
    "QUOTES": "it's \"quoted\" `x` \\ \\\\ '''",
    "SHELL": "$HOME ${x} $(exit 1) ; & | > < * ? [a] ~ ! # {a,b}",
    "NEWLINES": "\na\n\nb\n",
    "CONTROLS": "\t\r\x01\x1b[31m\x7f",
    "UNICODE": "Zoë 日本 \U0001f600 \u2028 \u202e",
    "EQUALS": "a=b=c",
    "EXPORT": "-n",
    "LONG": "x'" * 32 * 1024,
    "lower_case": "1",
    "_": "underscore",
    "__": "two",
}
# What shells treat in a way of their own, and what programs do.
SPECIAL = dict.fromkeys(
    [
        *["BASHOPTS", "BASHPID", "BASH_ENV", "BASH_VERSINFO", "CDPATH", "ENV", "EPOCHREALTIME", "EPOCHSECONDS", "EUID"],
        *["FUNCNAME", "GROUPS", "HISTSIZE", "HOME", "HOSTNAME", "IFS", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "LINENO"],
        *["MAIL", "MAILCHECK", "MAILPATH", "NODE_OPTIONS", "OLDPWD", "OPTARG", "OPTERR", "OPTIND", "PATH", "PPID"],
        *["PS1", "PS2", "PS4", "PWD", "PYTHONHOME", "PYTHONPATH", "RANDOM", "SECONDS", "SHELL", "SHELLOPTS", "SHLVL"],
        *["TERM", "TMPDIR", "TZ", "UID", "USER"],
        *["BASH_ALIASES", "BASH_ARGV0", "BASH_CMDS", "BASH_COMPAT", "DIRSTACK", "HISTCMD", "LC_CTYPE", "SRANDOM"],
    ],
    "5 odd",
)


@SH
def test_every_value_arrives_byte_for_byte(sh: list[str], tmp_path: Path) -> None:
    got = delivered(sh, python_job(AWKWARD), tmp_path)

    assert {name: got.get(name) for name in AWKWARD} == AWKWARD


@SH
@pytest.mark.parametrize("name", SPECIAL)
def test_a_name_that_shells_know_is_set_like_any_other(sh: list[str], tmp_path: Path, name: str) -> None:
    got = delivered(sh, python_job({name: SPECIAL[name]}), tmp_path)

    assert got[name] == SPECIAL[name]


@SH
def test_all_special_names_at_once(sh: list[str], tmp_path: Path) -> None:
    got = delivered(sh, python_job({}, secrets=SPECIAL), tmp_path)

    assert {name: got.get(name) for name in SPECIAL} == SPECIAL


@SH
def test_nothing_else_is_in_the_environment(sh: list[str], tmp_path: Path) -> None:
    got = delivered(sh, python_job({"A": "1"}), tmp_path)

    assert {name for name in got if not name.startswith("CRONIUM_")} <= {"A", "PATH", "PWD", "OLDPWD", "SHLVL", "_"}
    assert got["PATH"] == "/usr/bin:/bin"


_names = st.from_regex(r"[A-Za-z_][A-Za-z0-9_]{0,12}", fullmatch=True).filter(
    lambda name: not name.upper().startswith(("CRONIUM_", "LD_"))
)
_values = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30)


@settings(deadline=None, database=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(_names, _values, max_size=8))
def test_any_environment_arrives(tmp_path: Path, values: dict[str, str]) -> None:
    for sh in SHELLS:
        got = delivered(sh, python_job(values), tmp_path)

        assert {name: got.get(name) for name in values} == values


@SH
@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        ("bash", ["-euo", "pipefail", "/workspace/scripts/main.sh"]),
        ("python", ["/workspace/scripts/main.py"]),
        ("node", ["--require", "/node_modules/cronium/preload.js", "/workspace/scripts/main.js"]),
    ],
)
@pytest.mark.parametrize("special", [{}, {"UID": "x"}], ids=["plain", "through env"])
def test_the_interpreter_gets_its_arguments_and_directory(
    sh: list[str], tmp_path: Path, kind: str, arguments: list[str], special: dict[str, str]
) -> None:
    directory = f"{tmp_path}/it's a $new one"  # jobs may name directories in /tmp only, where this is
    interpreter = tmp_path / "interpreter"
    interpreter.write_text("#!/bin/sh\npwd\nprintf '%s\\n' \"$@\"\n")
    interpreter.chmod(0o755)
    script = {"type": kind, "content": "", "working_directory": directory}
    started = Job.model_validate({"script": script, "environment": special})
    path = tmp_path / "start.sh"
    path.write_text(start_script(started, environment(started, attempt=1, event={})))

    ran = subprocess.run(
        [*sh, str(path)],
        env={"CRONIUM_INTERPRETER": str(interpreter), "PATH": os.defpath},
        check=True,
        capture_output=True,
        text=True,
    )

    assert ran.stdout.splitlines() == [directory, *arguments]


# ---- the launcher at its gate


MARK = f"\x1e{'ab' * 16}\x1e"


class Launched:
    """A launcher's process."""

    process: subprocess.Popen[str]
    gate: Gate
    said: tuple[int, bool] | None = None

    def end(self) -> tuple[int, str, str]:
        """Do as the worker does at the end."""
        wait_until(lambda: self.is_ending() or self.process.poll() is not None, what="the script's end")
        self.said = self.gate.said()
        self.gate.let_end()
        out, err = self.process.communicate(timeout=10)
        return self.process.returncode, out, err

    def is_ending(self) -> bool:
        return self.gate.ending >= 0 and bool(select.select([self.gate.ending], [], [], 0)[0])


class Waiting(Launched):
    """The launcher in a shell of this host, with the paths of a workspace and a telling interpreter."""

    def __init__(
        self, sh: list[str], workspace: Workspace, tmp_path: Path, *, interpreter: str = "python3", before: str = ":"
    ) -> None:
        stage_launcher(workspace)
        self.gate = Gate(workspace.control, MARK)
        stage(workspace, job("python"))
        start = workspace.control / "start.sh"
        start.write_text(start.read_text().replace("/workspace", str(workspace.scratch)))
        launcher = workspace.control / "launcher.sh"
        launcher.write_text(f"{before}\n{launcher.read_text().replace('/run/cronium', str(workspace.control))}")
        programs = tmp_path / "programs"
        programs.mkdir()
        program = programs / "python3"
        self.opened = tmp_path / "opened"
        program.write_text(f"#!/bin/sh\n[ -e {self.opened} ] || echo too early\necho started\nexit 7\n")
        program.chmod(0o755)
        self.process = subprocess.Popen(
            [*sh, str(launcher), interpreter],
            env={"PATH": f"{programs}:{os.defpath}"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self._control = workspace.control

    def open_the_gate(self) -> None:
        self.opened.touch()
        self.gate.open()

    def at_the_gate(self) -> bool:
        opened = []
        with suppress(OSError):  # it closes others at the same time
            for link in Path(f"/proc/{self.process.pid}/fd").iterdir():
                opened.append(str(link.readlink()))  # noqa: PERF401 - keeps those before an error
        return {str(self._control / "gate"), str(self._control / "ending")} <= set(opened)


@pytest.fixture
def started(workspace: Workspace, tmp_path: Path) -> Iterator[Any]:
    made: list[Waiting] = []

    def start(sh: list[str], **options: str) -> Waiting:
        made.append(Waiting(sh, workspace, tmp_path, **options))
        return made[-1]

    yield start
    for waiting in made:
        waiting.gate.close()
        waiting.process.kill()
        waiting.process.communicate()


@SH
def test_the_script_starts_when_the_gate_opens(started: Any, sh: list[str]) -> None:
    waiting = started(sh)
    wait_until(waiting.at_the_gate, what="the launcher at its gate")
    assert waiting.process.poll() is None

    waiting.open_the_gate()

    assert waiting.end() == (7, "started\n", "")
    assert waiting.gate.passed()


@SH
def test_the_gate_may_open_before_the_launcher_is_there(started: Any, sh: list[str]) -> None:
    waiting = started(sh)

    waiting.open_the_gate()

    assert waiting.end() == (7, "started\n", "")
    assert waiting.gate.passed()


@SH
def test_the_launcher_ends_when_its_worker_is_gone(started: Any, sh: list[str]) -> None:
    waiting = started(sh)
    wait_until(waiting.at_the_gate, what="the launcher at its gate")

    waiting.gate.close()

    assert waiting.end() == (75, "", "")


@SH
def test_a_launcher_whose_worker_died_after_the_mark_starts(started: Any, sh: list[str]) -> None:
    waiting = started(sh)
    wait_until(waiting.at_the_gate, what="the launcher at its gate")
    waiting.gate._mark.touch()
    waiting.opened.touch()

    waiting.gate.close()

    assert waiting.end() == (7, "started\n", "")


@SH
def test_the_next_worker_opens_a_gate_that_was_open(started: Any, sh: list[str], workspace: Workspace) -> None:
    waiting = started(sh)
    waiting.process.send_signal(signal.SIGSTOP)
    waiting.open_the_gate()
    waiting.gate.close()
    waiting.gate = gate = Gate.left_by_another(workspace.control)
    waiting.process.send_signal(signal.SIGCONT)

    assert waiting.end() == (7, "started\n", "")
    assert gate.released
    assert gate.same_boot
    assert 0 <= gate.open_for_s() < 60
    gate.close()


def test_a_launcher_that_comes_after_its_worker_died_is_let_through(workspace: Workspace) -> None:
    gate = Gate(workspace.control)
    gate.open()
    gate.close()  # with it goes what nobody has read
    left = Gate.left_by_another(workspace.control)

    with (workspace.control / "gate").open("rb", buffering=0) as launcher:
        assert select.select([launcher], [], [], 0)[0]
        assert launcher.read(16) == b"\ngo\n"
    left.close()


def test_a_gate_that_was_not_opened_stays_shut_for_the_next_worker(workspace: Workspace) -> None:
    gate = Gate(workspace.control)
    left = Gate.left_by_another(workspace.control)

    assert not left.released
    assert not left.passed()
    assert os.read(left._descriptor, 16) == b"\n"
    assert select.select([left._descriptor], [], [], 0) == ([], [], [])
    left.close()
    gate.close()


@SH
def test_without_an_interpreter_nothing_passes_the_gate(started: Any, sh: list[str]) -> None:
    waiting = started(sh, interpreter="no-such-interpreter")
    waiting.open_the_gate()

    code, out, err = waiting.end()

    assert (code, out) == (127, "")
    assert err == "cronium: this image has no no-such-interpreter\n"
    assert not waiting.gate.passed()


# ---- an interpreter that waits at the gate itself

# Says what it is asked (-c), or waits as cronium_gate.py and node/gate.js do, and does what $BEHAVIOUR names.
WAITING = """#!/bin/sh
if [ "$1" = -c ]; then
    [ "$BEHAVIOUR" = "is another" ] || printf waits
    exit 0
fi
if [ -z "${{CRONIUM_GATE+x}}" ]; then
    echo "fresh $*"
    exit 7
fi
echo $$ >{pid}
[ "$BEHAVIOUR" != "dies early" ] || exit 1
printf a >&4
[ "$BEHAVIOUR" != "dies at the gate" ] || kill -9 $$
read -r _ <&3 || [ -e "$CRONIUM_GATE/released" ] || exit 75
[ "$BEHAVIOUR" != "dies behind the gate" ] || kill -9 $$
if [ "$BEHAVIOUR" = "is of no use" ]; then printf f >&4; exit 0; fi
printf s >&4
exec 3<&- 4>&-
[ "$BEHAVIOUR" != "is told" ] || {{ trap 'echo told; exit 0' TERM; echo begun; while :; do :; done; }}
echo "waited $*"
exit ${{CODE:-0}}
"""


class WaitingInterpreter(Launched):
    """The launcher with an interpreter that was started in advance, in a process group of its own as in a container."""

    def __init__(self, sh: list[str], workspace: Workspace, tmp_path: Path, behaviour: str, **environ: str) -> None:
        self.mark = stage_launcher(workspace)
        self.gate = Gate(workspace.control, self.mark)
        stage_job(workspace, job("python"), attempt=2, host="h1", uid=UID, gid=GID, started=True)
        for name in ("start.sh", "launcher.sh"):
            path = workspace.control / name
            text = path.read_text().replace("/run/cronium", str(workspace.control))
            path.write_text(text.replace("/workspace", str(workspace.scratch)))
        program = tmp_path / "python3"
        self.pid = tmp_path / "pid"
        program.write_text(WAITING.format(pid=self.pid))
        program.chmod(0o755)
        self.process = subprocess.Popen(
            [*sh, str(workspace.control / "launcher.sh"), "python3", "main.py"],
            env={"PATH": f"{tmp_path}:{os.defpath}", "BEHAVIOUR": behaviour, **environ},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def wait_until_started(self) -> None:
        wait_until(lambda: self.pid.exists() and self.pid.read_text(), what="the interpreter")

    def wait_until_dead(self) -> None:
        self.wait_until_started()
        wait_until(lambda: not Path(f"/proc/{int(self.pid.read_text())}").exists(), what="its end")


@pytest.fixture
def interpreter(workspace: Workspace, tmp_path: Path) -> Iterator[Any]:
    made: list[WaitingInterpreter] = []

    def start(sh: list[str], behaviour: str = "", **environ: str) -> WaitingInterpreter:
        made.append(WaitingInterpreter(sh, workspace, tmp_path, behaviour, **environ))
        return made[-1]

    yield start
    for waiting in made:
        waiting.gate.close()
        with suppress(ProcessLookupError):
            os.killpg(waiting.process.pid, signal.SIGKILL)
        waiting.process.communicate()


@SH
@pytest.mark.parametrize("code", [0, 9])
def test_an_interpreter_that_waits_becomes_the_script(interpreter: Any, sh: list[str], code: int) -> None:
    waiting = interpreter(sh, CODE=str(code))
    waiting.wait_until_started()
    waiting.gate.open()
    end = waiting.end()

    # Other processes of the user may be there: then there is no mark.
    assert end[0] == code
    assert end[1].removesuffix(waiting.mark) == "waited main.py\n"
    assert end[2] in ("", waiting.mark)
    assert code == 0 or (waiting.mark not in end[1] and not end[2])
    assert waiting.gate.passed()


@SH
@pytest.mark.parametrize("behaviour", ["dies early", "dies at the gate"])
def test_one_that_dies_before_the_gate_opens_costs_nothing(
    interpreter: Any, sh: list[str], behaviour: str, workspace: Workspace
) -> None:
    waiting = interpreter(sh, behaviour)
    waiting.wait_until_dead()
    assert waiting.process.poll() is None
    waiting.gate.open()

    assert waiting.end() == (7, f"fresh {workspace.scratch}/scripts/main.py\n", "")
    assert waiting.gate.passed()


@SH
def test_one_that_dies_early_behind_an_open_gate_costs_nothing(
    interpreter: Any, sh: list[str], workspace: Workspace
) -> None:
    waiting = interpreter(sh, "dies early")
    waiting.gate.open()

    assert waiting.end() == (7, f"fresh {workspace.scratch}/scripts/main.py\n", "")
    assert waiting.gate.passed()


@SH
def test_where_it_may_have_read_the_word_nothing_else_is_started(interpreter: Any, sh: list[str]) -> None:
    """The gate says whether it had."""
    waiting = interpreter(sh, "dies behind the gate")
    waiting.gate.open()

    assert waiting.end() == (137, "", "")
    assert waiting.gate.passed()


@SH
def test_one_that_is_of_no_use_leaves_the_job_to_a_fresh_one(
    interpreter: Any, sh: list[str], workspace: Workspace
) -> None:
    waiting = interpreter(sh, "is of no use")
    waiting.wait_until_started()
    waiting.gate.open()

    assert waiting.end() == (7, f"fresh {workspace.scratch}/scripts/main.py\n", "")
    assert waiting.gate.passed()


@SH
def test_one_that_would_not_wait_is_not_started(interpreter: Any, sh: list[str], workspace: Workspace) -> None:
    waiting = interpreter(sh, "is another")
    waiting.gate.open()

    assert waiting.end() == (7, f"fresh {workspace.scratch}/scripts/main.py\n", "")
    assert not waiting.pid.exists()


@SH
def test_an_image_cannot_say_that_it_is_the_gate(interpreter: Any, sh: list[str], workspace: Workspace) -> None:
    waiting = interpreter(sh, "is another", CRONIUM_GATE="/forged")
    waiting.gate.open()

    assert waiting.end() == (7, f"fresh {workspace.scratch}/scripts/main.py\n", "")


@SH
def test_both_end_when_their_worker_is_gone(interpreter: Any, sh: list[str]) -> None:
    waiting = interpreter(sh)
    waiting.wait_until_started()
    waiting.gate.close()

    assert waiting.end() == (75, "", "")


@SH
def test_one_whose_worker_died_after_the_mark_becomes_the_script(interpreter: Any, sh: list[str]) -> None:
    waiting = interpreter(sh, CODE="9")
    waiting.wait_until_started()
    waiting.gate._mark.touch()
    waiting.gate.close()

    assert waiting.end() == (9, "waited main.py\n", "")


@SH
def test_both_end_when_they_are_told_at_the_gate(interpreter: Any, sh: list[str]) -> None:
    waiting = interpreter(sh)
    waiting.wait_until_started()
    os.killpg(waiting.process.pid, signal.SIGTERM)

    assert waiting.end() == (143, "", "")


@SH
def test_a_script_that_was_told_to_end_is_not_marked(interpreter: Any, sh: list[str]) -> None:
    waiting = interpreter(sh, "is told")
    waiting.gate.open()
    assert waiting.process.stdout is not None
    assert waiting.process.stdout.readline() == "begun\n"
    os.killpg(waiting.process.pid, signal.SIGTERM)

    assert waiting.end() == (0, "told\n", "")


# ---- which jobs an interpreter that waits may become


def offered(workspace: Workspace, staged: Job) -> list[str] | None:
    stage_job(workspace, staged, attempt=1, host="h1", uid=UID, gid=GID, started=True)
    path = workspace.control / "environment"
    return path.read_text().split("\0") if path.exists() else None


def test_it_gets_directory_and_environment(workspace: Workspace) -> None:
    values = {"A": "1\n=2 'ü", "PATH": "/x", "PWD": "/y"}
    [directory, *variables] = offered(workspace, python_job(values, secrets={"TOKEN": "hunter2"})) or []

    assert directory == "/tmp"
    assert {"A=1\n=2 'ü", "PATH=/x", "PWD=/y", "TOKEN=hunter2", "CRONIUM_JOB_TYPE=python"} <= set(variables)
    assert len(variables) == 10


@pytest.mark.parametrize(
    "name",
    [
        *["PYTHONHASHSEED", "PYTHON_COLORS", "NODE_OPTIONS", "NODE_EXTRA_CA_CERTS", "UV_THREADPOOL_SIZE", "ICU_DATA"],
        *["OPENSSL_CONF", "SSL_CERT_FILE", "LANG", "LANGUAGE", "LC_ALL", "TZ", "TZDIR", "HOME", "LD_PRELOAD"],
        *["MALLOC_ARENA_MAX", "GLIBC_TUNABLES", "LOCPATH", "UID", "_"],
    ],
)
@pytest.mark.parametrize("secret", [False, True])
def test_what_is_read_at_the_start_needs_a_fresh_start(workspace: Workspace, name: str, secret: bool) -> None:
    values = {name: "1"}

    assert offered(workspace, python_job({} if secret else values, values if secret else {})) is None


def bash_job(values: dict[str, str]) -> Job:
    return Job.model_validate({"script": {"type": "bash", "content": ""}, "environment": values})


def test_bash_gets_them_as_commands(workspace: Workspace, tmp_path: Path) -> None:
    staged = bash_job({"A": "1\n=2 'ü", "PATH": "/x", "BASH_ENV": "/own"}).model_dump(mode="json")
    staged["script"]["working_directory"] = str(tmp_path / "it's new")
    [commands] = offered(workspace, Job.model_validate(staged)) or []
    shown = 'printf "%s|" "$PWD" "$A" "$PATH" "$BASH_ENV" "$CRONIUM_USER_BASH_ENV" "$OLDPWD"; hash'
    done = subprocess.run(["bash", "-c", f"{commands}{shown}"], cwd="/", capture_output=True, text=True, check=True)

    *values, hashed = done.stdout.split("|")
    assert values == [f"{tmp_path}/it's new", "1\n=2 'ü", "/x", "/usr/local/lib/cronium/preamble.bash", "/own", "/"]
    assert hashed == "hash: hash table empty\n"


@pytest.mark.parametrize(
    "name", ["IFS", "PS4", "GLOBIGNORE", "BASHOPTS", "SECONDS", "TMOUT", "HISTFILE", "LC_ALL", "TZ"]
)
def test_what_is_bashs_own_needs_a_fresh_start_of_bash(workspace: Workspace, name: str) -> None:
    assert offered(workspace, bash_job({name: "1"})) is None


def test_without_an_interpreter_that_waits_nothing_is_written_for_it(workspace: Workspace) -> None:
    stage(workspace, python_job({}))

    assert not (workspace.control / "environment").exists()


def test_an_open_gate_is_not_passed_before_somebody_went_through(workspace: Workspace) -> None:
    gate = Gate(workspace.control)
    gate.open()
    assert not gate.passed()

    with (workspace.control / "gate").open("rb", buffering=0) as launcher:
        assert launcher.read(16) == b"\ngo\n"

    assert gate.passed()
    gate.close()
    gate.close()


def test_the_container_may_read_the_gate_but_not_write(workspace: Workspace) -> None:
    before = os.umask(0)
    try:
        gate = Gate(workspace.control)
    finally:
        os.umask(before)

    assert (workspace.control / "gate").stat().st_mode & 0o777 == 0o644
    gate.close()


def test_a_second_gate_is_refused(workspace: Workspace) -> None:
    gate = Gate(workspace.control)

    with pytest.raises(FileExistsError):
        Gate(workspace.control)
    gate.close()


def test_the_container_may_read_the_gate_under_any_umask(tmp_path: Any) -> None:
    import os

    from cronium_worker.workspace.gate import Gate

    before = os.umask(0o077)
    try:
        gate = Gate(tmp_path)
    finally:
        os.umask(before)
    assert (tmp_path / "gate").stat().st_mode & 0o777 == 0o644
    gate.close()


@SH
def test_the_launcher_waits_at_its_end_until_its_worker_lets_it(started: Any, sh: list[str]) -> None:
    waiting = started(sh)
    waiting.open_the_gate()
    wait_until(waiting.is_ending, what="the script's end")
    assert waiting.process.poll() is None

    assert waiting.gate.passed()
    assert waiting.end() == (7, "started\n", "")
    assert waiting.said == (7, False)
    assert waiting.gate.passed()


SAID = f"{MARK} 7 \n"


@pytest.mark.parametrize(
    ("written", "mark", "said"),
    [
        (SAID, MARK, (7, False)),
        (f"{MARK} 143 1\n", MARK, (143, True)),
        ("\n", MARK, None),  # of a launcher of version 0.1.0
        (f"\n{SAID}", MARK, None),
        (SAID + SAID, MARK, None),
        (f"{MARK} 0\n", MARK, None),
        (f"{MARK[:-1]} 0 \n", MARK, None),
        (f"x{MARK} 0 \n", MARK, None),
        (f"{MARK} 0 0\n", MARK, None),
        (f"{MARK} ² \n", MARK, None),
        ("x" * 4096, MARK, None),
        (" 0 \n", "", None),  # of one whose worker, with the mark, is gone
        ("x 0 \n", "", None),
    ],
)
def test_a_launchers_word_is_believed_with_the_mark_alone(
    workspace: Workspace, written: str, mark: str, said: object
) -> None:
    with closing(Gate(workspace.control, mark)) as gate:
        os.write(gate.ending, written.encode())
        assert gate.said() == said


def test_a_gate_of_another_worker_knows_no_word(workspace: Workspace) -> None:
    with closing(Gate(workspace.control, MARK)), closing(Gate.left_by_another(workspace.control)) as left:
        os.write(left.ending, SAID.encode())
        assert left.said() is None


@SH
def test_a_launcher_does_not_wait_for_a_worker_that_is_gone(started: Any, sh: list[str], workspace: Workspace) -> None:
    waiting = started(sh)
    waiting.open_the_gate()
    wait_until(waiting.is_ending, what="the script's end")

    left = Gate.left_by_another(workspace.control)  # its line is no end of the file
    waiting.gate.close()
    assert waiting.process.poll() is None
    left.close()

    assert waiting.end() == (7, "started\n", "")


@SH
def test_a_launcher_does_not_wait_for_a_worker_that_reads_no_end(started: Any, sh: list[str]) -> None:
    """One of version 0.1.0 that has taken over holds the gate until the container has ended."""
    waiting = started(sh)
    wait_until(waiting.at_the_gate, what="the launcher at its gate")
    os.close(waiting.gate.ending)
    waiting.gate.ending = -1

    waiting.open_the_gate()

    assert waiting.process.wait(10) == 7


@SH
def test_a_launcher_that_comes_to_the_gate_of_one_that_reads_no_end_starts(
    started: Any, sh: list[str], workspace: Workspace, tmp_path: Path
) -> None:
    """The worker that had opened the gate died before the launcher had read anything."""
    comes = tmp_path / "comes"
    waiting = started(sh, before=f"while [ ! -e {comes} ]; do sleep 0.01; done")
    waiting.open_the_gate()
    waiting.gate.close()
    left = os.open(workspace.control / "gate", os.O_RDWR | os.O_NONBLOCK)
    os.write(left, b"go\n")
    comes.touch()

    assert waiting.process.wait(10) == 7
    os.close(left)
