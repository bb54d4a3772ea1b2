"""The Bash functions as guests in a caller's shell, and the preamble of a Bash job."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.unit.helpers.languages import HELPERS, Bash, Workspace

STRICT = pytest.mark.parametrize("flags", [["-euo", "pipefail"], []], ids=["strict", "lax"])


def run(workspace: Workspace, script: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script in a Bash of its own after the library; `arguments` come before it."""
    return subprocess.run(
        ["bash", *arguments, "-c", f"source {HELPERS}/cronium.sh\n{script}"],
        env=os.environ | workspace.environment | environment,
        capture_output=True,
        encoding="utf-8",
        timeout=20,
        check=False,
    )


def test_text_is_stored_as_a_string_and_json_on_request(bash: Bash, workspace: Workspace) -> None:
    status, stdout, stderr = bash.run(
        workspace,
        "cronium_setVariable text 5; cronium_setVariable first --json; cronium_set_variable --json --json;"
        "cronium_setVariable --json number 5; cronium_set_variable list '[1]' --json;"
        "cronium_getVariable text; cronium_get_variable number; cronium_getVariable list; cronium_getVariable missing",
    )

    assert (status, stdout, stderr) == (0, "5\n5\n[1]\n", "")
    stored = json.loads((workspace.data / "variables.json").read_text())
    assert stored == {"text": "5", "first": "--json", "--json": "--json", "number": 5, "list": [1]}


@pytest.mark.parametrize(
    "text", ["", "007", "nan", "NaN", "Infinity", "1 2", "1.", "{'a': 1}", "two\nlines", "true false"]
)
def test_output_wraps_what_is_not_json(bash: Bash, workspace: Workspace, text: str) -> None:
    assert bash.run(workspace, f"cronium_output {shlex.quote(text)}") == (0, "", "")

    assert json.loads((workspace.output / "output.json").read_text()) == text


@pytest.mark.parametrize("text", ["[nan]", "007", "nan", "", "1 2", "{", "text"])
def test_json_values_must_be_json(bash: Bash, workspace: Workspace, text: str) -> None:
    status, _, stderr = bash.run(workspace, f"cronium_setVariable --json k '{text}'")

    if text == "[nan]" and status == 0:  # some versions of jq read it as null
        assert json.loads((workspace.data / "variables.json").read_text()) == {"k": [None]}
    else:
        assert (status, stderr) == (1, 'cronium: the value of "k" is not valid JSON\n')
        assert workspace.files() == set()


def test_output_reads_stdin(bash: Bash, workspace: Workspace) -> None:
    for command, value in (
        ("echo '{\"a\": [1]}' | cronium_output", {"a": [1]}),
        ("printf 'some text\\n\\n' | cronium_output", "some text"),
        ("cronium_output </dev/null", ""),
        ("printf 'a\\0b' | cronium_output", "ab"),
    ):
        assert bash.run(workspace, command) == (0, "", "")
        assert json.loads((workspace.output / "output.json").read_text()) == value


def test_large_values_go_in_by_argument_and_by_stdin(bash: Bash, workspace: Workspace) -> None:
    script = """
        big=x$(printf 'é€😀%.0s' {1..20000})
        cronium_setVariable big "$big"
        cronium_append_variable big "$big" -
        [[ $(cronium_getVariable big) == "$big-$big" ]]
        cronium_output <<<"$big"
        [[ $(jq -r . "$CRONIUM_OUTPUT_DIR/output.json") == "$big" ]]
    """
    assert bash.run(workspace, script) == (0, "", "")


def test_exists_append_and_event_field(bash: Bash, workspace: Workspace) -> None:
    workspace.lay("event.json", {"a.b": 'raw "text"', "n": 0, "null": None})
    status, stdout, stderr = bash.run(
        workspace,
        """
        ! cronium_variable_exists log
        cronium_append_variable log one ', '
        cronium_append_variable log two ', '
        cronium_append_variable log three
        cronium_append_variable log '' ', '
        cronium_variable_exists log
        cronium_getVariable log
        cronium_delete_variable log
        if cronium_variable_exists log; then exit 9; fi
        for field in a.b n null missing; do echo "<$(cronium_event_field "$field")>"; done
        """,
    )

    assert (status, stdout, stderr) == (0, 'one, twothree\n<raw "text">\n<0>\n<null>\n<>\n', "")


def test_append_to_something_else_is_an_error(bash: Bash, workspace: Workspace) -> None:
    workspace.lay("variables.json", {"n": 5})

    assert bash.run(workspace, "cronium_append_variable n x") == (1, "", 'cronium: variable "n" is not a string\n')
    assert bash.run(workspace, "cronium_getVariable n")[1] == "5\n"


def test_increment_takes_text_that_spells_a_number(bash: Bash, workspace: Workspace) -> None:
    status, stdout, _ = bash.run(
        workspace, "cronium_setVariable n 5; cronium_increment_variable n +2; cronium_increment_variable n 1e1"
    )

    assert (status, stdout) == (0, "7\n17\n")
    assert json.loads((workspace.data / "variables.json").read_text()) == {"n": 17}


def test_exists_tells_a_corrupt_file_on_stderr(bash: Bash, workspace: Workspace) -> None:
    path = workspace.lay_text("variables.json", "{")

    result = bash.run(workspace, "cronium_variable_exists k")

    assert result == (1, "", f"cronium: {path} does not hold valid JSON\n")


@pytest.mark.parametrize(
    "command",
    [
        "cronium_getVariable",
        "cronium_setVariable k",
        "cronium_setVariable a b c",
        "cronium_output a b",
        "cronium_setCondition",
        "cronium_event_field",
        "cronium_delete_variable",
        "cronium_variable_exists",
        "cronium_increment_variable",
        "cronium_append_variable k",
        "cronium_input x",
        "cronium_event x",
    ],
)
def test_wrong_usage_is_one_line_and_status_1(bash: Bash, workspace: Workspace, command: str) -> None:
    status, stdout, stderr = bash.run(workspace, command)

    assert (status, stdout, stderr.count("\n")) == (1, "", 1)
    assert stderr.startswith(f"cronium: usage: {command.partition(' ')[0]}")


def test_an_error_ends_a_strict_script_and_only_that(workspace: Workspace) -> None:
    workspace.lay_text("variables.json", "{")
    script = "cronium_getVariable k\necho after"

    strict = run(workspace, script, "-euo", "pipefail")
    lax = run(workspace, script)

    assert (strict.returncode, strict.stdout) == (1, "")
    assert (lax.returncode, lax.stdout) == (0, "after\n")


@STRICT
def test_the_callers_shell_stays_as_it_is(workspace: Workspace, flags: list[str]) -> None:
    """Options, traps, variables, IFS and positional parameters, over every function and a second source."""
    script = f"""
        state() {{ set +o; shopt -p || true; trap; declare -p | grep -v -e ' _=' -e BASH_ -e FUNCNAME -e PIPESTATUS \
            -e LINENO -e SECONDS -e RANDOM -e EPOCH -e before -e after || true; echo "$*"; }}
        trap 'true' ERR; trap 'true' EXIT; set -E
        IFS=,
        set -- one two
        before=$(state "$@")
        source {HELPERS}/cronium.sh
        cronium_input; cronium_output x; echo x | cronium_output; cronium_setVariable k v; cronium_set_variable k v
        cronium_getVariable k; cronium_get_variable k; cronium_variable_exists k; cronium_increment_variable n
        cronium_append_variable k w; cronium_delete_variable k; cronium_setCondition on; cronium_set_condition on
        cronium_getCondition; cronium_get_condition; cronium_event; cronium_event_field x
        cronium_setCondition maybe || true
        after=$(state "$@")
        diff <(echo "$before") <(echo "$after") >&2
        trap - EXIT
        echo fine
    """
    result = run(workspace, script, *flags)

    assert result.stdout.endswith("fine\n"), result.stderr
    assert result.stderr == "cronium: a condition is one of true, 1, yes, on, false, 0, no, off\n"


def test_the_callers_names_do_not_get_in_the_way(workspace: Workspace) -> None:
    """Read-only variables, functions and options of a script that knows nothing of ours."""
    script = """
        readonly file=x text=x key=x k=x n=1 value=x filter=x temp=x directory=x result=x json=x number=1 default=x
        jq() { echo mine; }; mv() { echo mine; }; mkdir() { echo mine; }
        set -CfExu; trap 'echo trapped' ERR; shopt -s lastpipe nocasematch; exec 2>/dev/null 9>/dev/null
        cronium_setVariable k v; cronium_increment_variable n; cronium_append_variable k w; cronium_getVariable k
        cronium_output '*'; cronium_output '*'; cronium_setCondition NO
        cronium_getCondition; cronium_event; cronium_input
    """
    result = run(workspace, script)

    assert result.stdout == "1\nvw\nfalse\n{}\n{}\n"
    assert workspace.files() == {"data/variables.json", "output/output.json", "output/condition.json"}


def test_reading_does_not_eat_the_scripts_stdin(workspace: Workspace) -> None:
    script = """
        while read -r line; do
            cronium_increment_variable "$line" >/dev/null; cronium_setVariable x y
            cronium_getVariable "$line"; cronium_event
        done < <(printf 'a\\nb\\nc\\n')
    """
    assert run(workspace, script).stdout == "1\n{}\n" * 3


def test_background_jobs_lose_no_change(workspace: Workspace) -> None:
    script = "for _ in {1..8}; do cronium_increment_variable n >/dev/null & done; wait; cronium_getVariable n"

    assert run(workspace, script).stdout == "8\n"


def test_background_jobs_write_the_same_file_at_once(workspace: Workspace, tmp_path: Path) -> None:
    """Each has a temporary file of its own, and the last one wins."""
    programs, writers = tmp_path / "programs", tmp_path / "writers"
    for directory in (programs, writers):
        directory.mkdir()
    move = programs / "mv"  # once both have written
    move.write_text(
        f"#!/bin/sh\n: >{writers}/$$\nuntil [ $(ls {writers} | wc -l) = 2 ]; do sleep 0.01; done\n"
        f'exec {shutil.which("mv")} "$@"\n'
    )
    move.chmod(0o755)

    script = "for n in 1 2; do cronium_output $n & done; wait"
    result = run(workspace, script, PATH=f"{programs}:{os.environ['PATH']}")

    assert (result.returncode, result.stderr) == (0, "")
    assert [path.name for path in workspace.output.iterdir()] == ["output.json"]


def test_a_full_disk_is_an_error_and_leaves_nothing(workspace: Workspace) -> None:
    script = """
        cronium_output old
        trap '' XFSZ; ulimit -f 8
        cronium_output "$(printf 'x%.0s' {1..100000})" || echo "status $?"
    """
    result = run(workspace, script)

    assert result.stdout == "status 1\n"
    assert json.loads((workspace.output / "output.json").read_text()) == "old"
    assert workspace.files() == {"output/output.json"}


@STRICT
def test_without_flock_the_functions_still_work(workspace: Workspace, tmp_path: Path, flags: list[str]) -> None:
    """It fails within the function, which must reach neither the caller's ERR trap nor its errexit."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("bash", "jq", "mkdir", "mv", "rm"):
        found = shutil.which(name)
        assert found
        (tools / name).symlink_to(found)
    script = "trap 'echo trapped' ERR; cronium_setVariable k v; cronium_increment_variable n; cronium_getVariable k"

    result = run(workspace, script, *flags, "-E", PATH=str(tools))

    assert (result.returncode, result.stdout, result.stderr) == (0, "1\nv\n", "")


def test_a_missing_jq_is_named(workspace: Workspace) -> None:
    result = run(workspace, "PATH=/nowhere; cronium_input")

    assert (result.returncode, result.stderr) == (1, "cronium: jq is not installed\n")


def run_job(workspace: Workspace, tmp_path: Path, script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a script the way a job's script is run."""
    path = tmp_path / "main.sh"
    path.write_text(script)
    return subprocess.run(
        ["bash", "-euo", "pipefail", str(path)],
        env=os.environ | workspace.environment | {"BASH_ENV": f"{HELPERS}/preamble.bash"} | environment,
        capture_output=True,
        encoding="utf-8",
        timeout=20,
        check=False,
    )


def test_a_job_has_the_functions_and_keeps_its_own_face(workspace: Workspace, tmp_path: Path) -> None:
    result = run_job(
        workspace,
        tmp_path,
        'cronium_setVariable k v\necho "$0 ${BASH_SOURCE[*]} $LINENO $- ${BASH_ENV-unset} $#"\n'
        "bash -c 'echo \"${BASH_ENV-unset} $(type -t cronium_input)\"'\nset -o | grep pipefail\n"
        "compgen -v | grep -i -e cronium -e _c_ | sort | tr '\\n' ' '\nfalse\n",
    )

    path = tmp_path / "main.sh"
    lines = result.stdout.splitlines()
    assert lines[0] == f"{path} {path} 2 ehuB unset 0"
    assert lines[1] == "unset "
    assert lines[2].split() == ["pipefail", "on"]
    assert lines[3].split() == ["CRONIUM_DATA_DIR", "CRONIUM_OUTPUT_DIR", "_CRONIUM_JQ"]
    assert result.returncode == 1


def test_an_error_names_the_scripts_own_line(workspace: Workspace, tmp_path: Path) -> None:
    result = run_job(workspace, tmp_path, 'echo one\necho "$missing"\n')

    assert (result.returncode, result.stdout) == (1, "one\n")
    assert result.stderr == f"{tmp_path}/main.sh: line 2: missing: unbound variable\n"


def test_the_users_bash_env_is_restored_and_read(workspace: Workspace, tmp_path: Path) -> None:
    own = tmp_path / "own env.sh"
    own.write_text("echo read in $1 >&2\n".replace("$1", "${BASH_SOURCE[0]##*/}"))

    result = run_job(
        workspace,
        tmp_path,
        'cronium_event\necho "$BASH_ENV ${CRONIUM_USER_BASH_ENV-unset}"\nbash -c true\n',
        CRONIUM_USER_BASH_ENV=str(own),
    )

    assert result.returncode == 0
    assert result.stdout == f"{{}}\n{own} unset\n"
    assert result.stderr == "read in own env.sh\n" * 2


@pytest.mark.parametrize("value", ["/nowhere/env.sh", ""])
def test_a_users_bash_env_that_is_not_there_is_no_error(workspace: Workspace, tmp_path: Path, value: str) -> None:
    result = run_job(workspace, tmp_path, 'echo "<$BASH_ENV>"\n', CRONIUM_USER_BASH_ENV=value)

    assert (result.returncode, result.stdout, result.stderr) == (0, f"<{value}>\n", "")
