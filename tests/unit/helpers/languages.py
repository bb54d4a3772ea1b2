"""One helper process per language, kept running, that calls helper functions as a job's script would.

A call goes in as one line of JSON and comes back as one, so that hundreds of them take a second. Every call carries
its directories: the helpers read the environment at each call.
"""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HELPERS = Path(__file__).resolve().parents[3] / "helpers"

PYTHON = """
import json, os, sys
sys.path.insert(0, sys.argv[1])
import cronium
for line in sys.stdin:
    call = json.loads(line)
    os.environ.update(call["env"])
    try:
        reply = {"value": getattr(cronium, call["name"])(*call["arguments"])}
    except cronium.CroniumError as error:
        reply = {"error": str(error)}
    print(json.dumps(reply), flush=True)
"""

NODE = """
const cronium = require(process.argv[1]);
require("node:readline").createInterface({ input: process.stdin }).on("line", (line) => {
  const call = JSON.parse(line);
  Object.assign(process.env, call.env);
  let reply;
  try {
    reply = { value: cronium[call.name](...call.arguments) };
  } catch (error) {
    if (!(error instanceof cronium.CroniumError)) throw error;
    reply = { error: error.message };
  }
  console.log(JSON.stringify(reply));
});
"""

# Runs each NUL-ended command in a subshell and replies with its status; stdout and stderr are in files.
BASH = """
set -euo pipefail
source "$1/cronium.sh"
while IFS= read -r -d '' command; do
    set +e
    (set -e; eval "$command") </dev/null >"$2/stdout" 2>"$2/stderr"
    echo "$?"
    set -e
done
"""


class HelperError(Exception):
    """What CroniumError is in Python and Node.js, and exit status 1 with a line on stderr in Bash."""


@dataclass
class Workspace:
    """The directories of one job."""

    root: Path

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def output(self) -> Path:
        return self.root / "output"

    @property
    def environment(self) -> dict[str, str]:
        return {"CRONIUM_DATA_DIR": str(self.data), "CRONIUM_OUTPUT_DIR": str(self.output)}

    def lay(self, name: str, value: Any) -> Path:
        """Put a data file there as the worker does."""
        return self.lay_text(name, json.dumps(value, ensure_ascii=False))

    def lay_text(self, name: str, text: str) -> Path:
        self.data.mkdir(parents=True, exist_ok=True)
        path = self.data / name
        path.write_text(text, encoding="utf-8")
        return path

    def files(self) -> set[str]:
        """Names of all files, hidden ones too: no temporary file may stay."""
        return {str(path.relative_to(self.root)) for path in self.root.rglob("*") if path.is_file()}


@dataclass
class Language:
    """Calls by the names of Python; `names` says what another language calls a function."""

    name: str
    command: list[str]
    names: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.process = subprocess.Popen(
            self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, encoding="utf-8", errors="surrogatepass"
        )

    def close(self) -> None:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.close()
        assert self.process.wait(timeout=10) == 0, f"the {self.name} process failed"
        self.process.stdout.close()

    def exchange(self, request: str) -> Any:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(request)
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def call(self, workspace: Workspace, name: str, *arguments: Any, **environment: str) -> Any:
        """Return a function's value or raise HelperError."""
        env = {"CRONIUM_EVENT_METADATA": ""} | workspace.environment | environment
        request = {"env": env, "name": self.names.get(name, name), "arguments": arguments}
        reply = self.exchange(json.dumps(request) + "\n")
        if "error" in reply:
            raise HelperError(reply["error"])
        return reply.get("value")


class Bash(Language):
    """Turns values into command lines and what is printed into values."""

    # Where a string is printed raw; everything else that is printed is JSON.
    RAW = frozenset({"get_variable", "getVariable", "event_field"})

    def run(self, workspace: Workspace, command: str, **environment: str) -> tuple[int, str, str]:
        exports = {"CRONIUM_EVENT_METADATA": ""} | workspace.environment | environment
        lines = [f"export {name}={shlex.quote(value)}" for name, value in exports.items()]
        status = self.exchange("\n".join([*lines, command]) + "\0")
        scratch = Path(self.command[-1])
        # Bytes, because text mode would turn a carriage return into a line feed.
        return status, (scratch / "stdout").read_bytes().decode(), (scratch / "stderr").read_bytes().decode()

    def call(self, workspace: Workspace, name: str, *arguments: Any, **environment: str) -> Any:
        words = [f"cronium_{name}"]
        if name in {"set_variable", "setVariable"}:
            words += ["--json", arguments[0], json.dumps(arguments[1])]
        elif name in {"output", "set_condition", "setCondition"}:
            words += [json.dumps(arguments[0])]
        else:
            words += [str(argument) for argument in arguments]
        status, stdout, stderr = self.run(workspace, shlex.join(words), **environment)
        if status:
            assert (status, stdout) == (1, "")
            assert stderr.startswith("cronium: ")
            assert stderr.count("\n") == 1, f"one line expected: {stderr}"
            raise HelperError(stderr)
        assert stderr == ""
        text = stdout.removesuffix("\n")
        return parsed(text) if name not in self.RAW else RawText(text)


class RawText(str):
    """What Bash printed for a value: equal to a string, and to any other value whose JSON it is."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        if isinstance(other, str):
            return str.__eq__(self, other)
        return self == "" if other is None and self == "" else identical(parsed(self), other)

    __hash__ = str.__hash__


def parsed(text: str) -> Any:
    return json.loads(text) if text else None


def identical(left: Any, right: Any) -> bool:
    """Equality that tells true from 1, also within lists and objects."""
    if isinstance(left, RawText):
        return bool(left == right)
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(identical(left[key], right[key]) for key in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(identical, left, right))
    return isinstance(left, bool) == isinstance(right, bool) and bool(left == right)


def start(name: str, scratch: Path) -> Language:
    if name == "python":
        return Language(name, [sys.executable, "-c", PYTHON, str(HELPERS)])
    if name == "node":
        names = {
            "get_variable": "getVariable",
            "set_variable": "setVariable",
            "delete_variable": "deleteVariable",
            "increment_variable": "incrementVariable",
            "get_condition": "getCondition",
            "set_condition": "setCondition",
        }
        return Language(name, ["node", "-e", NODE, str(HELPERS / "node")], names)
    return Bash(name, ["bash", "-c", BASH, "bash", str(HELPERS), str(scratch)])
