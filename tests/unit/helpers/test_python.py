"""The Python module by itself: what it refuses, what it costs, and how a job's interpreter gets it."""

from __future__ import annotations

import builtins
import importlib.util
import json
import math
import os
import subprocess
import sys
import threading
import venv
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.unit.helpers.languages import HELPERS, Workspace


@pytest.fixture(scope="module")
def cronium() -> ModuleType:
    spec = importlib.util.spec_from_file_location("cronium_helper", HELPERS / "cronium.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def job(cronium: ModuleType, workspace: Workspace) -> Any:
    return cronium.Cronium(workspace.data, str(workspace.output))


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (math.nan, "JSON has no NaN"),
        ({"a": [-math.inf]}, "JSON has no NaN"),
        ({"a": {1}}, "type set is not JSON serializable"),
        (b"x", "type bytes is not JSON serializable"),
        (object, "type type is not JSON serializable"),
        ({(1, 2): 3}, "not tuple"),
    ],
    ids=repr,
)
def test_values_that_json_lacks_are_refused(
    cronium: ModuleType, job: Any, workspace: Workspace, value: Any, reason: str
) -> None:
    with pytest.raises(cronium.CroniumError, match=reason):
        job.output(value)
    with pytest.raises(cronium.CroniumError, match=reason):
        job.set_variable("k", value)
    assert workspace.files() == set()


def test_cycles_and_depth_are_refused(cronium: ModuleType, job: Any, workspace: Workspace) -> None:
    cycle: list[Any] = []
    cycle.append(cycle)
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]

    with pytest.raises(cronium.CroniumError, match="Circular"):
        job.output(cycle)
    with pytest.raises(cronium.CroniumError, match="recursion"):
        job.output(deep)
    workspace.lay_text("input.json", "[" * 100_000)
    with pytest.raises(cronium.CroniumError, match="does not hold valid JSON"):
        job.input()


def test_a_failed_output_keeps_the_one_before(cronium: ModuleType, job: Any, workspace: Workspace) -> None:
    job.output("good")
    with pytest.raises(cronium.CroniumError):
        job.output({"bad": set()})

    assert json.loads((workspace.output / "output.json").read_text()) == "good"


@pytest.mark.parametrize("content", [b"NaN", b"[Infinity]", b'"\xff"'])
def test_documents_that_only_python_would_read_are_refused(
    cronium: ModuleType, job: Any, workspace: Workspace, content: bytes
) -> None:
    workspace.data.mkdir(parents=True)
    (workspace.data / "input.json").write_bytes(content)

    with pytest.raises(cronium.CroniumError, match="does not hold valid JSON"):
        job.input()


def test_text_is_utf8_and_half_a_surrogate_pair_is_escaped(job: Any, workspace: Workspace) -> None:
    """os.listdir gives such text for names that are not UTF-8."""
    job.output("größe")
    assert (workspace.output / "output.json").read_bytes() == '"größe"'.encode()
    job.output("größe \udcff")
    assert json.loads((workspace.output / "output.json").read_bytes()) == "größe \udcff"


def test_names_are_strings_and_booleans_no_numbers(cronium: ModuleType, job: Any, workspace: Workspace) -> None:
    with pytest.raises(cronium.CroniumError, match="name is a string, not int"):
        job.set_variable(5, 1)
    with pytest.raises(cronium.CroniumError, match="increment is not a number but bool"):
        job.increment_variable("n", True)
    assert workspace.files() == set()


def test_get_variable_has_a_default_for_missing_ones_only(job: Any) -> None:
    job.set_variable("none", None)

    assert job.get_variable("none", "default") is None
    assert job.get_variable("missing", "default") == "default"


def test_whole_numbers_are_exact(job: Any) -> None:
    job.set_variable("big", 2**70 + 1)

    assert job.increment_variable("big") == 2**70 + 2


def test_threads_lose_no_change(job: Any) -> None:
    def increment() -> None:
        for _ in range(25):
            job.increment_variable("n")

    threads = [threading.Thread(target=increment) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert job.get_variable("n") == 200


@pytest.mark.parametrize("write", ["output", "set_condition"])
def test_threads_write_the_same_file_at_once(
    job: Any, workspace: Workspace, monkeypatch: pytest.MonkeyPatch, write: str
) -> None:
    """Each has a temporary file of its own, and the last one wins."""
    all_have_written = threading.Barrier(4)
    replace = os.replace

    def replace_together(*paths: Any) -> None:
        all_have_written.wait(10)
        replace(*paths)

    monkeypatch.setattr(os, "replace", replace_together)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(getattr(job, write), [True] * 4))

    name = {"output": "output.json", "set_condition": "condition.json"}[write]
    assert [path.name for path in workspace.output.iterdir()] == [name]


def test_python_and_bash_lock_the_same_thing(job: Any, workspace: Workspace) -> None:
    script = f"source {HELPERS}/cronium.sh; for _ in {{1..8}}; do cronium_increment_variable n; done"
    with subprocess.Popen(
        ["bash", "-c", script], env=os.environ | workspace.environment, stdout=subprocess.PIPE
    ) as process:
        done = 0
        while process.poll() is None:
            done += 1
            job.increment_variable("n")

    assert job.get_variable("n") == done + 8


def test_both_spellings_and_the_whole_public_surface(cronium: ModuleType) -> None:
    snake = {name for name in cronium.__all__ if "_" in name}
    for name in snake:
        first, second = name.split("_")
        assert getattr(cronium, first + second.capitalize()) == getattr(cronium, name)
    assert snake == {f"{verb}_variable" for verb in ("get", "set", "delete", "increment")} | {
        "get_condition",
        "set_condition",
    }
    for name in cronium.__all__:
        assert getattr(cronium, name).__doc__, f"{name} is not documented"


def test_the_import_is_cheap(tmp_path: Path) -> None:
    """The interpreter's own start has os; whatever else is slow waits for its first use."""
    code = (
        f"import os, sys; before = set(sys.modules); sys.path.insert(0, {str(HELPERS)!r}); import cronium;"
        "print(sorted(set(sys.modules) - before))"
    )
    found = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True).stdout

    assert found == "['cronium']\n"


class Interpreter:
    """A virtual environment with the .pth file, and a stand-in for /usr/local/lib/cronium."""

    def __init__(self, root: Path) -> None:
        venv.create(root / "venv", symlinks=True)
        self.library = root / "library"
        self.packages = next((root / "venv").glob("lib/python*/site-packages"))
        self.use((HELPERS / "cronium.py").read_text())

    def use(self, module: str | None) -> None:
        """Install a module, or no library directory at all."""
        if module is not None:
            self.library.mkdir(exist_ok=True)
            (self.library / "cronium.py").write_text(module)
        elif self.library.exists():
            (self.library / "cronium.py").unlink()
            self.library.rmdir()
        line = (HELPERS / "cronium.pth").read_text()
        assert line.startswith("/usr/local/lib/cronium\n")
        (self.packages / "cronium.pth").write_text(line.replace("/usr/local/lib/cronium", str(self.library)))

    def run(self, code: str, *flags: str) -> str:
        """Run code and return what it says; any complaint is an error."""
        result = subprocess.run(
            [str(self.packages.parents[2] / "bin/python"), "-B", *flags, "-c", code],
            env={name: value for name, value in os.environ.items() if not name.startswith("CRONIUM_")},
            capture_output=True,
            text=True,
            check=True,
        )
        assert result.stderr == ""
        return result.stdout


@pytest.fixture(scope="module")
def interpreter(tmp_path_factory: pytest.TempPathFactory) -> Interpreter:
    return Interpreter(tmp_path_factory.mktemp("interpreter"))


@pytest.mark.parametrize("flags", [[], ["-I"]])
def test_a_job_has_cronium_with_no_import(interpreter: Interpreter, flags: list[str]) -> None:
    interpreter.use((HELPERS / "cronium.py").read_text())

    assert interpreter.run("print(cronium.event()); import cronium as c; print(c is cronium)", *flags) == "{}\nTrue\n"


@pytest.mark.parametrize("module", [None, "raise RuntimeError('broken')", "not python", "raise SystemExit(3)"])
def test_a_broken_library_never_breaks_the_interpreter(interpreter: Interpreter, module: str | None) -> None:
    interpreter.use(module)

    assert interpreter.run("print('fine')") == "fine\n"


def test_input_stays_pythons_own(cronium: ModuleType) -> None:
    """The module has a name `input`; the built-in of that name is another."""
    assert cronium.input is not builtins.input
    assert input is builtins.input
