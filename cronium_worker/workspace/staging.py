"""What a job brings into its workspace: script, input, variables, event, and how to start."""

import json
import os
import secrets
import shlex
from collections.abc import Mapping
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from cronium_worker.models import Job, ScriptType
from cronium_worker.models.fields import json_bytes
from cronium_worker.workspace.directories import Workspace

DATA_DIRECTORY = "/workspace/data"
OUTPUT_DIRECTORY = "/workspace/output"
_SCRIPTS = "/workspace/scripts"
_LIBRARY = "/usr/local/lib/cronium"
LAUNCHER_NAME = "launcher.sh"
START_NAME = "start.sh"
_MARK_NAME, _MARK_SIGN = "mark", "\x1e"
ENVIRONMENT_NAME = "environment"
_FILES: dict[ScriptType, str] = {"bash": "main.sh", "python": "main.py", "node": "main.js"}
_ARGUMENTS: dict[ScriptType, tuple[str, ...]] = {
    "bash": ("-euo", "pipefail"),
    "python": (),
    "node": ("--require", "/node_modules/cronium/preload.js"),
}
# Names that some shell refuses, checks or changes on assignment: env(1) sets them, so that the script gets
# exactly what the job says.
_SHELL_NAMES = frozenset(
    {"OPTIND", "OPTARG", "PPID", "UID", "EUID", "GROUPS", "RANDOM", "SECONDS", "LINENO", "SHLVL", "_"}
    | {"SHELLOPTS", "DIRSTACK", "FUNCNAME", "HISTCMD", "EPOCHSECONDS", "EPOCHREALTIME", "SRANDOM", "POSIXLY_CORRECT"}
)
_UNSPECIAL = "BASH_ENV"  # which each Bash job has: env(1) would cost it a millisecond
_SHELL_PREFIXES = ("BASH", "LC_", "LANG")  # Bash, where the image's sh is that, warns of locales it does not know
# What Python, Node.js and the libraries below them read when they start (found by a getenv(3) that tells; of the C
# libraries, by their manuals): for an interpreter that was started before its job it is too late.
_READ_AT_START = (
    *("PYTHON", "__PYVENV", "NODE_", "UV_", "ICU_", "OPENSSL", "SSL_", "SIMDUTF_", "WATCH_", "LC_", "LANG", "TZ"),
    *("LD_", "MALLOC_", "MIMALLOC_", "GLIBC", "MUSL_", "GCONV_PATH", "LOCPATH", "NLSPATH", "HOME"),
)
# What Bash sets, clears or checks itself when it starts, or acts on when it is assigned (bash(1), Shell Variables).
_BASHS_OWN = (
    *("CHILD_MAX", "COLUMNS", "COMP", "COPROC", "EMACS", "EXECIGNORE", "FIGNORE", "FUNC", "GLOB", "HIST", "HOST"),
    *("IFS", "IGNOREEOF", "INPUTRC", "INSIDE_EMACS", "LINES", "MACHTYPE", "MAIL", "MAPFILE", "OLDPWD", "OPT", "OSTYPE"),
    *("PIPESTATUS", "PROMPT", "PS", "PWD", "READLINE", "REPLY", "SHELL", "TERM", "TEXTDOMAIN", "TIMEFORMAT", "TMOUT"),
    *("auto_resume", "histchars"),
)


def stage_launcher(workspace: Workspace) -> str:
    """Put the launcher where the container looks for it, before the container is made. Return its end mark."""
    with as_file(files("cronium_worker") / "assets" / "helpers" / LAUNCHER_NAME) as source:
        _write(workspace.control / LAUNCHER_NAME, source.read_bytes(), mode=0o644)
    mark = f"{_MARK_SIGN}{secrets.token_hex(16)}{_MARK_SIGN}"
    _write(workspace.root / _MARK_NAME, mark.encode(), mode=0o600)
    return mark


def stage_job(
    workspace: Workspace, job: Job, *, attempt: int, host: str, uid: int, gid: int, started: bool = False
) -> None:
    """Write the job's files. Nothing of the job is running yet: nobody else writes there. `started`: an interpreter
    waits for the job, and may become its script if that makes no difference."""
    script = workspace.scripts / _FILES[job.script.type]
    _write(script, job.script.content.encode(), mode=0o644)
    if job.script.type == "node":
        # The same file under the name that makes Node read it as an ES module (helpers/node/preload.js).
        os.link(script, workspace.scripts / "main.mjs")
    event = {**job.event, "jobId": job.id, "attempt": attempt, "host": host}
    data: dict[str, bytes | bytearray] = {"variables.json": json_bytes(job.variables), "event.json": json_bytes(event)}
    if "input_data" in job.model_fields_set:
        data["input.json"] = job.input_json()
    for name, text in data.items():
        _write(workspace.data / name, text, mode=0o644, owner=(uid, gid))
    values = environment(job, attempt=attempt, event=event)
    _write(workspace.control / START_NAME, start_script(job, values).encode(), mode=0o644)
    if started and not any(_matters_at_start(job.script.type, name) for name in values):
        _write(workspace.control / ENVIRONMENT_NAME, _for_one_that_waits(job, values).encode(), mode=0o644)


def end_mark(workspace: Workspace) -> str:
    """What the launcher of a sandbox writes at the end of both streams when its script has ended.

    A secret between the launcher and its worker: it goes through the gate (workspace.gate), and is kept for the next
    worker in a directory that the container does not have. Launchers of before 0.1.0 write the sandbox's id, which the
    job can read: this takes it out of the log, and the next worker believes no mark. Raises OSError.
    """
    try:
        return (workspace.root / _MARK_NAME).read_text()
    except FileNotFoundError:
        return f"{_MARK_SIGN}{workspace.root.name}{_MARK_SIGN}"


def environment(job: Job, *, attempt: int, event: Mapping[str, Any]) -> dict[str, str]:
    """What the script's environment has beyond the container's own."""
    own = {
        "CRONIUM_JOB_ID": job.id,
        "CRONIUM_JOB_TYPE": job.script.type,
        "CRONIUM_ATTEMPT": str(attempt),
        "CRONIUM_DATA_DIR": DATA_DIRECTORY,
        "CRONIUM_OUTPUT_DIR": OUTPUT_DIRECTORY,
        "CRONIUM_EVENT_METADATA": _event_metadata(event),
    }
    values = {**job.environment, **job.secrets}
    if job.script.type == "bash":
        if "BASH_ENV" in values:
            own["CRONIUM_USER_BASH_ENV"] = values["BASH_ENV"]
        own["BASH_ENV"] = f"{_LIBRARY}/preamble.bash"
    return {**values, **own}


def command_line(script_type: ScriptType) -> tuple[str, ...]:
    """What follows the interpreter's name."""
    return (*_ARGUMENTS[script_type], f"{_SCRIPTS}/{_FILES[script_type]}")


def start_script(job: Job, values: Mapping[str, str]) -> str:
    """How a process of the launcher becomes the script, as POSIX shell: environment, directory, interpreter.

    The values are in a file, not in arguments: no limit of 128 KiB each, and nothing in the process list.
    """
    directory = shlex.quote(job.script.working_directory)
    lines, special = [f"[ -d {directory} ] || mkdir -p {directory}", f"cd {directory} || exit"], []
    for name, value in values.items():
        if _is_special(name):
            special.append(f"{name}={shlex.quote(value)}")
        else:
            lines.append(_export(name, value))
    prefix = f"/usr/bin/env {' '.join(special)} " if special else ""
    lines.append(f'exec {prefix}"$CRONIUM_INTERPRETER" {shlex.join(command_line(job.script.type))}')
    return "\n".join(lines) + "\n"


def _for_one_that_waits(job: Job, values: Mapping[str, str]) -> str:
    """Directory and environment: for Bash as commands, which fail where a fresh one has something to say."""
    directory = job.script.working_directory
    if job.script.type == "bash":
        quoted = shlex.quote(directory)
        lines = [f"[[ -d {quoted} ]] || {{ mkdir -p {quoted} && hash -r; }} || return", f"cd {quoted} || return"]
        return "\n".join([*lines, *(_export(name, value) for name, value in values.items())]) + "\n"
    return "\0".join([directory, *(f"{name}={value}" for name, value in values.items())])


def _export(name: str, value: str) -> str:
    return f"export {name}={shlex.quote(value)}"


def _is_special(name: str) -> bool:
    return name in _SHELL_NAMES or (name.startswith(_SHELL_PREFIXES) and name != _UNSPECIAL)


def _matters_at_start(script_type: ScriptType, name: str) -> bool:
    """Whether a process that gets this variable later may differ from one that is started with it."""
    of_bash = script_type == "bash" and name.startswith(_BASHS_OWN)
    return of_bash or name.startswith(_READ_AT_START) or _is_special(name)


def _event_metadata(event: Mapping[str, Any]) -> str:
    """The event for the environment, where the kernel takes 128 KiB a value; a larger one is in event.json."""
    text = json.dumps(event, ensure_ascii=False, allow_nan=False)
    return text if len(text.encode()) <= 64 * 1024 else "{}"


def _write(path: Path, content: bytes | bytearray, *, mode: int, owner: tuple[int, int] | None = None) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(path, flags, mode)
    with os.fdopen(descriptor, "wb") as file:
        if owner is not None:
            os.fchown(descriptor, *owner)
        os.fchmod(descriptor, mode)  # whatever the umask is
        file.write(content)
