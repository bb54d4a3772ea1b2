"""The supervisor with real processes: started, restarted, told to stop, and gone with their supervisor."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cronium_worker.cli.supervise import ProcfileError, parse_procfile
from tests.conftest import wait_until

# A process that writes down each signal, and ends at the LAST_SIGNAL-th.
_CHILD = """
import os, pathlib, signal, sys
notes, last = pathlib.Path(sys.argv[1]), int(sys.argv[2])
seen = []
def note(number, frame):
    seen.append(signal.Signals(number).name)
    notes.write_text(" ".join([str(os.getpid()), *seen]))
    if len(seen) >= last:
        os._exit(0)
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
    signal.signal(number, note)
notes.write_text(str(os.getpid()))
while True:
    signal.pause()
"""


class Supervisor:
    """One that runs apart from the tests; `lines` is what it has printed so far."""

    def __init__(
        self,
        commands: dict[str, list[str]],
        restart_delay_s: float,
        path: str | None,
        json_about: dict[str, str] | None,
    ) -> None:
        code = (
            "import json, sys\n"
            "from cronium_worker.cli.supervise import supervise\n"
            "commands, delay_s, about = map(json.loads, sys.argv[1:])\n"
            "sys.exit(supervise(commands, restart_delay_s=delay_s, json_about=about))\n"
        )
        arguments = [sys.executable, "-c", code, *map(json.dumps, (commands, restart_delay_s, json_about))]
        environment = {**os.environ, "PATH": path} if path is not None else None
        self.process = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, env=environment)
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout
        with self.process.stdout as stream:
            for line in stream:
                self.lines.append(line.rstrip("\n"))

    def has(self, pattern: str, times: int = 1) -> bool:
        return len([line for line in list(self.lines) if re.search(pattern, line)]) >= times

    def end(self) -> int:
        code = self.process.wait(timeout=10)
        self._reader.join(timeout=20)
        return code


Start = Callable[..., Supervisor]


@pytest.fixture
def start() -> Iterator[Start]:
    started: list[Supervisor] = []

    def run(
        commands: dict[str, list[str]],
        *,
        restart_delay_s: float = 0.01,
        path: str | None = None,
        json_about: dict[str, str] | None = None,
    ) -> Supervisor:
        supervisor = Supervisor(commands, restart_delay_s, path, json_about)
        started.append(supervisor)
        return supervisor

    yield run
    for supervisor in started:
        supervisor.process.terminate()
        try:
            supervisor.end()
        except subprocess.TimeoutExpired:
            supervisor.process.kill()  # its children end with it
            supervisor.end()
            raise


def child(notes: Path, *, last_signal: int = 1) -> list[str]:
    return [sys.executable, "-c", _CHILD, str(notes), str(last_signal)]


def written(notes: Path) -> list[str]:
    """The process id, then the signals it got; empty before it runs."""
    return notes.read_text().split() if notes.exists() else []


def gone(pid: int) -> bool:
    """Nothing but a zombie's entry, at most."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.mark.parametrize(
    ("number", "passed_on"),
    [
        (signal.SIGTERM, "SIGTERM"),
        (signal.SIGINT, "SIGINT"),
        (signal.SIGQUIT, "SIGQUIT"),
        (signal.SIGHUP, "SIGTERM"),
    ],
)
def test_a_signal_is_passed_on_once_to_all_and_it_waits_for_them(
    start: Start, tmp_path: Path, number: signal.Signals, passed_on: str
) -> None:
    notes = [tmp_path / "one", tmp_path / "two"]
    supervisor = start({"one": child(notes[0]), "two": child(notes[1])})
    wait_until(lambda: all(written(note) for note in notes))
    for note in notes:
        pid = int(written(note)[0])
        assert os.getpgid(pid) == pid, "the terminal's Ctrl-C must not reach it twice"

    supervisor.process.send_signal(number)

    assert supervisor.end() == 0
    for note in notes:
        number_of, *signals = written(note)
        assert signals == [passed_on]
        assert gone(int(number_of))
    assert not supervisor.has("starting it again")


def test_of_children_that_print_json_every_line_is_json(start: Start) -> None:
    prints = 'print(\'{"message": "one"}\'); print(); print(\'grö\xdfer "two"\')'
    supervisor = start({"a": [sys.executable, "-c", prints]}, restart_delay_s=60, json_about={"host": "h1"})
    wait_until(lambda: supervisor.has("ended"))
    supervisor.process.terminate()
    assert supervisor.end() == 0

    first, *made = [json.loads(line) for line in supervisor.lines]
    assert first == {"message": "one"}
    assert [(line["logger"], line["message"]) for line in made] == [
        ("output", 'grö\xdfer "two"'),
        ("supervisor", "ended, exit code 0; starting it again in 60 s"),
    ]
    assert {(line["host"], line["node"]) for line in made} == {("h1", "a")}


def test_a_second_signal_is_passed_on_as_well(start: Start, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    supervisor = start({"slow": child(notes, last_signal=2)})
    wait_until(lambda: written(notes))

    supervisor.process.send_signal(signal.SIGTERM)
    wait_until(lambda: written(notes)[1:] == ["SIGTERM"])
    assert supervisor.process.poll() is None, "it must wait for its children"
    supervisor.process.send_signal(signal.SIGINT)

    assert supervisor.end() == 0
    assert written(notes)[1:] == ["SIGTERM", "SIGINT"]


def test_what_ends_is_started_again_with_growing_delays(start: Start, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    supervisor = start({"brief": ["sh", "-c", "echo working; exit 3"], "steady": child(notes)})
    wait_until(lambda: written(notes))

    wait_until(lambda: supervisor.has(r"^brief +\| working$", times=4))
    pid = written(notes)[0]
    supervisor.process.terminate()

    assert supervisor.end() == 0
    delays = [float(found[1]) for line in supervisor.lines if (found := re.search("exit code 3; .* in (.*) s$", line))]
    assert delays[:3] == [0.01, 0.02, 0.04]
    assert written(notes) == [pid, "SIGTERM"], "the other process must not be touched"


def test_it_stops_while_it_waits_to_start_something_again(start: Start) -> None:
    supervisor = start({"brief": ["true"]}, restart_delay_s=600)
    wait_until(lambda: supervisor.has("exit code 0; starting it again in 600 s"))

    supervisor.process.terminate()

    assert supervisor.end() == 0


def test_the_end_by_a_signal_is_named(start: Start) -> None:
    supervisor = start({"shot": ["sh", "-c", "kill -KILL $$"]}, restart_delay_s=600)
    wait_until(lambda: supervisor.has(r"^shot \| supervisor: ended, killed by SIGKILL; "))


@pytest.mark.parametrize("path", [None, "/nowhere"], ids=["with setpriv", "without setpriv"])
def test_a_command_that_is_not_there_is_tried_again_and_holds_nothing_up(
    start: Start, tmp_path: Path, path: str | None
) -> None:
    notes = tmp_path / "notes"
    supervisor = start({"absent": ["/no/such/program"], "present": child(notes)}, path=path)

    wait_until(lambda: supervisor.has(r"^absent +\| supervisor: .*starting it again", times=2))
    wait_until(lambda: written(notes))


def test_a_grandchild_that_keeps_the_output_open_does_not_hide_the_end(start: Start, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    supervisor = start({"parent": ["sh", "-c", f"sleep 60 & echo $! >'{pid_file}'; exit 4"]}, restart_delay_s=600)

    wait_until(lambda: supervisor.has("exit code 4"))
    os.kill(int(pid_file.read_text()), signal.SIGKILL)


def test_children_end_when_the_supervisor_is_killed(start: Start, tmp_path: Path) -> None:
    notes = tmp_path / "notes"
    supervisor = start({"orphan": child(notes)})
    wait_until(lambda: written(notes))

    supervisor.process.kill()

    wait_until(lambda: gone(int(written(notes)[0])))
    # The kernel tells when the parent's thread ends, and perhaps again for the next thread that took its place.
    assert set(written(notes)[1:]) == {"SIGTERM"}


def test_a_procfile_is_read_like_a_shell_would() -> None:
    text = "# comment\n\nweb: run --name 'two words' \"$HOME\"\n  # indented comment\nbeat-2:beat\n"
    assert parse_procfile(text) == {"web": ["run", "--name", "two words", "$HOME"], "beat-2": ["beat"]}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("web run", "line 1 is not 'name: command'"),
        ("# first\nweb:", "line 2 is not 'name: command'"),
        ("a b: run", "line 1 is not 'name: command'"),
        ("web: run 'open", "line 1: No closing quotation"),
        ("web: run\nweb: run", "line 2: there are two processes web"),
        ("# nothing\n", "it names no process"),
    ],
)
def test_a_bad_procfile_is_refused(text: str, reason: str) -> None:
    with pytest.raises(ProcfileError, match=f"^{re.escape(reason)}"):
        parse_procfile(text)


@pytest.mark.parametrize(("content", "message"), [("oops\n", "line 1 is not"), (None, "No such file")])
def test_the_command_line_says_what_is_wrong_in_one_line(tmp_path: Path, content: str | None, message: str) -> None:
    procfile = tmp_path / "Procfile"
    if content is not None:
        procfile.write_text(content)

    ran = subprocess.run(
        [sys.executable, "-m", "cronium_worker.cli.supervise", procfile], capture_output=True, text=True, check=False
    )

    assert ran.returncode == 2
    assert message in ran.stderr
    assert len(ran.stderr.splitlines()) == 1


def test_it_starts_without_celery_and_docker() -> None:
    code = "import sys, cronium_worker.cli.supervise; print({'celery', 'docker'} & sys.modules.keys())"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "set()"
