"""Keeps a host's processes running: `python -m cronium_worker.cli.supervise [Procfile]`.

Small on purpose, and without Celery or Docker: on a server systemd or compose does this. One loop in the
main thread waits for what happens (a child ended, a signal came, a restart is due); a thread per child
copies its output, each line with the child's name before it.
"""

import json
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from queue import Empty, SimpleQueue
from types import FrameType
from typing import IO, cast

MAX_RESTART_DELAY_S = 30.0
# A child that has run this long did not die "at once": its next restart begins with the short delay again.
SETTLED_S = 30.0
# The signals to stop, and what the children get: Celery would take a closed terminal's SIGHUP for "restart".
_PASSED_ON = {
    signal.SIGTERM: signal.SIGTERM,
    signal.SIGINT: signal.SIGINT,
    signal.SIGQUIT: signal.SIGQUIT,
    signal.SIGHUP: signal.SIGTERM,
}
_COLOURS = (36, 33, 32, 35, 34, 31)
_USAGE = "usage: python -m cronium_worker.cli.supervise [Procfile]"


class ProcfileError(Exception):
    """A line of the Procfile is not `name: command`."""


@dataclass(kw_only=True)
class _Child:
    name: str
    command: Sequence[str]
    colour: int
    process: subprocess.Popen[bytes] | None = None
    reader: threading.Thread | None = None
    started_at: float = 0.0
    delay_s: float = 0.0
    due_at: float | None = field(default=0.0)


class _Output:
    """The terminal, or whatever stdout is: whole lines only, whichever thread they come from."""

    def __init__(self, stream: IO[bytes], *, width: int) -> None:
        self._stream = stream
        self._width = width
        self._coloured = stream.isatty()
        self._lock = threading.Lock()

    def write(self, child: _Child, line: bytes) -> None:
        name = f"{child.name:<{self._width}} | "
        if self._coloured:
            name = f"\x1b[{child.colour}m{name}\x1b[0m"
        with self._lock, suppress(OSError):
            self._stream.write(name.encode() + line.rstrip(b"\n") + b"\n")
            self._stream.flush()

    def note(self, child: _Child, text: str) -> None:
        self.write(child, f"supervisor: {text}".encode())


class _JsonOutput(_Output):
    """Of children whose lines are JSON objects: what is none is made one. `about`: what is in each."""

    def __init__(self, stream: IO[bytes], *, about: Mapping[str, str]) -> None:
        super().__init__(stream, width=0)
        self._about = about

    def write(self, child: _Child, line: bytes) -> None:
        if not line.strip():
            return
        if not line.startswith(b"{"):
            line = self._made(child, "WARNING", "output", line.decode(errors="replace").strip())
        with self._lock, suppress(OSError):
            self._stream.write(line.rstrip(b"\n") + b"\n")
            self._stream.flush()

    def note(self, child: _Child, text: str) -> None:
        self.write(child, self._made(child, "INFO", "supervisor", text))

    def _made(self, child: _Child, level: str, logger: str, message: str) -> bytes:
        about = {"timestamp": datetime.now(UTC).isoformat(), "level": level, "logger": logger, "message": message}
        return json.dumps({**about, **self._about, "node": child.name}).encode()


def supervise(
    commands: Mapping[str, Sequence[str]],
    *,
    env: Mapping[str, str] | None = None,
    restart_delay_s: float = 1.0,
    json_about: Mapping[str, str] | None = None,
) -> int:
    """Run each command and start again what ends. SIGTERM, SIGINT, SIGQUIT, SIGHUP: pass it on and wait for all.

    Every further one of these signals is passed on as well. A command that ends again and again is started with
    growing delays, up to MAX_RESTART_DELAY_S. To be called in the main thread. Returns 0 after such a stop.
    `json_about`: the children print JSON objects, and so does this, with these fields.
    """
    width = max((len(name) for name in commands), default=0)
    stream = sys.stdout.buffer
    output = _Output(stream, width=width) if json_about is None else _JsonOutput(stream, about=json_about)
    return _Supervisor(commands, env=env, restart_delay_s=restart_delay_s, output=output).run()


class _Supervisor:
    def __init__(
        self,
        commands: Mapping[str, Sequence[str]],
        *,
        env: Mapping[str, str] | None,
        restart_delay_s: float,
        output: _Output,
    ) -> None:
        self._children = [
            _Child(name=name, command=command, colour=_COLOURS[number % len(_COLOURS)], delay_s=restart_delay_s)
            for number, (name, command) in enumerate(commands.items())
        ]
        self._env = dict(env) if env is not None else None
        self._restart_delay_s = restart_delay_s
        self._output = output
        # A signal, or a child whose output has ended. SimpleQueue: its put may be called in a signal handler.
        self._events: SimpleQueue[signal.Signals | _Child] = SimpleQueue()
        self._stopping = False

    def run(self) -> int:
        with _handled(_PASSED_ON, self._events.put):
            while self._children and not (self._stopping and not self._running()):
                self._start_due()
                self._wait()
        return 0

    def _running(self) -> list[_Child]:
        return [child for child in self._children if child.process is not None]

    def _start_due(self) -> None:
        for child in self._children:
            if child.due_at is not None and child.due_at <= time.monotonic() and not self._stopping:
                child.due_at = None
                self._start(child)

    def _wait(self) -> None:
        """Until the next event, or the next restart is due."""
        due = [child.due_at for child in self._children if child.due_at is not None and not self._stopping]
        timeout_s = max(0.0, min(due) - time.monotonic()) if due else None
        try:
            event = self._events.get(timeout=timeout_s)
        except Empty:
            return
        if isinstance(event, signal.Signals):
            self._pass_on(_PASSED_ON[event])
        else:
            self._ended(event)

    def _start(self, child: _Child) -> None:
        child.started_at = time.monotonic()
        try:
            # A process group of its own: the terminal's Ctrl-C comes to the supervisor alone, which passes it on once.
            child.process = subprocess.Popen(
                [*_tied_to_parent(), *child.command],
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                process_group=0,
            )
        except OSError as error:
            self._restart_later(child, f"cannot be started: {error}")
            return
        child.reader = threading.Thread(target=self._copy, args=(child, child.process), daemon=True)
        child.reader.start()

    def _copy(self, child: _Child, process: subprocess.Popen[bytes]) -> None:
        """Copy the output, and tell when the process has ended.

        A process that it left behind may hold the pipe for ever, so the two ends are watched apart.
        """
        threading.Thread(target=self._report_end, args=(child, process), daemon=True).start()
        with cast("IO[bytes]", process.stdout) as stream:
            for line in stream:
                self._output.write(child, line)

    def _report_end(self, child: _Child, process: subprocess.Popen[bytes]) -> None:
        process.wait()
        self._events.put(child)

    def _ended(self, child: _Child) -> None:
        process, reader = cast("subprocess.Popen[bytes]", child.process), cast(threading.Thread, child.reader)
        child.process = None
        reader.join(timeout=1)  # its last lines come before the note of its end
        self._restart_later(child, f"ended, {_exit_text(process.returncode)}")

    def _restart_later(self, child: _Child, what: str) -> None:
        if self._stopping:
            self._output.note(child, what)
            return
        now = time.monotonic()
        if now - child.started_at >= SETTLED_S:
            child.delay_s = self._restart_delay_s
        self._output.note(child, f"{what}; starting it again in {child.delay_s:g} s")
        child.due_at = now + child.delay_s
        child.delay_s = min(child.delay_s * 2, MAX_RESTART_DELAY_S)

    def _pass_on(self, number: signal.Signals) -> None:
        self._stopping = True
        for child in self._running():
            self._output.note(child, f"passing {number.name} on")
            # Popen asks first whether it has ended, so no other process can be hit.
            cast("subprocess.Popen[bytes]", child.process).send_signal(number)


def _tied_to_parent() -> list[str]:
    """The words before a command that end it when the supervisor is killed and can pass nothing on.

    setpriv (util-linux) sets the kernel's parent-death signal between fork and exec. Doing so here would need a
    preexec_fn, which is not safe beside threads. The signal comes at the end of the thread that started the
    child: the main thread. Where setpriv is missing, children of a killed supervisor live on.
    """
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "TERM", "--"] if setpriv else []


def _exit_text(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"


@contextmanager
def _handled(numbers: Iterable[signal.Signals], act: Callable[[signal.Signals], None]) -> Iterator[None]:
    def handler(number: int, _frame: FrameType | None) -> None:
        act(signal.Signals(number))

    before = {number: signal.signal(number, handler) for number in numbers}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def parse_procfile(text: str) -> dict[str, list[str]]:
    """`name: command` a line, split like a shell does, without its expansions. Raises ProcfileError."""
    commands: dict[str, list[str]] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        name, colon, rest = line.partition(":")
        name = name.strip()
        if not line.strip() or name.startswith("#"):
            continue
        try:
            command = shlex.split(rest)
        except ValueError as error:
            raise ProcfileError(f"line {number}: {error}: {line}") from None
        if not colon or not command or not name.replace("-", "").replace("_", "").isalnum():
            raise ProcfileError(f"line {number} is not 'name: command': {line}")
        if name in commands:
            raise ProcfileError(f"line {number}: there are two processes {name}")
        commands[name] = command
    if not commands:
        raise ProcfileError("it names no process")
    return commands


def main(arguments: Sequence[str]) -> int:
    """Supervise the processes of a Procfile."""
    if len(arguments) > 1 or any(argument.startswith("-") for argument in arguments):
        print(_USAGE, file=sys.stderr)
        return 2
    path = Path(arguments[0] if arguments else "Procfile")
    try:
        commands = parse_procfile(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, ProcfileError) as error:
        print(f"{path}: {error}", file=sys.stderr)
        return 2
    return supervise(commands)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
