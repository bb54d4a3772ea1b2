"""Any environment, working directory and data: what a script's program finds is what the job says, byte for byte."""

import os
import shutil
import subprocess
import tempfile
from itertools import count
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from cronium_worker.models import Job
from cronium_worker.models.fields import json_bytes
from cronium_worker.workspace import create, remove
from cronium_worker.workspace.gate import Gate
from cronium_worker.workspace.staging import environment, stage_job, stage_launcher
from tests.fuzz.profile import FUZZ
from tests.fuzz.strategies import any_text, any_value, anything, environments
from tests.fuzz.strict import strict

_SHELLS = [["/bin/sh"], ["bash", "--posix"], *([[found, "sh"]] if (found := shutil.which("busybox")) else [])]
_number = count()
_DIRECTORY = Path(tempfile.gettempdir()) / f"fuzz-{os.getpid()}"
# Names and values that shells have a use for of their own.
_of_bash = subprocess.run(["bash", "-c", "compgen -v"], check=True, capture_output=True, text=True).stdout.split()
_names = st.sampled_from(
    [
        *_of_bash,
        *["BASH_ARGV0", "BASH_COMPAT", "BASH_ENV", "BASH_LOADABLES_PATH", "CDPATH", "ENV", "FUNCNEST", "GLOBIGNORE"],
        *["HISTCONTROL", "HISTFILE", "HOME", "IGNOREEOF", "INPUTRC", "LANG", "LC_ALL", "LC_CTYPE", "MAILCHECK"],
        *["OPTARG", "POSIXLY_CORRECT", "PROMPT_COMMAND", "PS1", "PWD", "OLDPWD", "TERM", "TIMEFORMAT", "TMOUT", "__"],
    ]
).filter(lambda name: not name.startswith("CRONIUM_"))
_shell_text = st.text("'\"\\`$(){}[]!#~*?&|;<>=\n\r\t \x01\x1b\x7f-ü€ab", max_size=40)
_environments = environments | st.dictionaries(_names, _shell_text | any_value, max_size=6)


@FUZZ
@given(_environments, _environments, _shell_text | any_value, st.sampled_from(_SHELLS))
def test_any_value_arrives_byte_for_byte(
    directory: Path, values: dict[str, str], secrets: dict[str, str], name: str, shell: list[str]
) -> None:
    """Through the launcher and the gate, in a real shell; cat(1) is the interpreter."""
    working_directory = f"{_DIRECTORY}/{name}"
    fields = {"environment": values, "secrets": {k: v for k, v in secrets.items() if k not in values}}
    try:
        job = Job.model_validate(
            {"script": {"type": "python", "content": "", "working_directory": working_directory}, **fields}
        )
    except ValidationError:  # a directory's name that is refused
        return
    workspace = create(directory, f"s{next(_number)}", uid=os.geteuid(), gid=os.getegid())
    try:
        stage_launcher(workspace)
        gate = Gate(workspace.control)
        stage_job(workspace, job, attempt=1, host="h", uid=os.geteuid(), gid=os.getegid())
        start, launcher = workspace.control / "start.sh", workspace.control / "launcher.sh"
        start.write_bytes(start.read_bytes().replace(b"/workspace/scripts/main.py", b"/proc/self/environ"))
        text = launcher.read_text().replace("/run/cronium/ending", "/nobody/listens")
        launcher.write_text(text.replace("/run/cronium", str(workspace.control)))
        gate.open()
        ran = subprocess.run(
            [*shell, str(launcher), "cat"], env={"PATH": os.defpath}, check=False, capture_output=True, cwd="/"
        )
        gate.close()
        made = Path(job.script.working_directory).is_dir()
    finally:
        remove(workspace)
        shutil.rmtree(_DIRECTORY, ignore_errors=True)

    if any(len(os.fsencode(part)) > 255 for part in job.script.working_directory.split("/")):
        assert ran.returncode != 0
        return
    assert (ran.returncode, ran.stderr) == (0, b"")
    assert made
    found = [pair.partition(b"=") for pair in ran.stdout.split(b"\0") if pair]
    got = {name.decode(): value for name, _, value in found}
    assert len(got) == len(found)
    wanted = environment(job, attempt=1, event={"jobId": job.id, "attempt": 1, "host": "h"})
    assert {name: got.get(name) for name in wanted} == {name: value.encode() for name, value in wanted.items()}


@FUZZ
@given(
    st.fixed_dictionaries(
        {},
        optional={
            "input_data": anything,
            "variables": st.dictionaries(any_text, anything, max_size=3),
            "event": st.dictionaries(any_text, anything, max_size=3),
        },
    ),
    any_value,
    st.sampled_from(["bash", "python", "node"]),
)
def test_any_data_is_staged_as_it_is(directory: Path, data: dict[str, Any], content: str, kind: str) -> None:
    try:
        job = Job.model_validate({"script": {"type": kind, "content": content}, **data})
    except ValidationError:
        return
    workspace = create(directory, f"d{next(_number)}", uid=os.geteuid(), gid=os.getegid())
    try:
        stage_job(workspace, job, attempt=1, host="h", uid=os.geteuid(), gid=os.getegid())
        staged = {path.name: path.read_bytes() for path in workspace.data.iterdir()}
        scripts = [path.read_bytes() for path in workspace.scripts.iterdir()]
        start = (workspace.control / "start.sh").read_bytes()
    finally:
        remove(workspace)

    assert set(scripts) == {content.encode()}
    assert b"\0" not in start
    assert ("input.json" in staged) == ("input_data" in data)
    for name, value in (("input.json", job.input_data), ("variables.json", job.variables)):
        if name in staged:
            assert staged[name] == json_bytes(value)
            assert strict(staged[name].decode()) == value
    event = strict(staged["event.json"].decode())
    assert {**job.event, "jobId": job.id, "attempt": 1, "host": "h"} == event
