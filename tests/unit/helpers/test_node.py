"""The Node.js package as scripts import it, and the preload that runs a job's script, against plain Node.js."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.unit.helpers.languages import HELPERS, Workspace

FUNCTIONS = [
    "deleteVariable",
    "event",
    "getCondition",
    "getVariable",
    "incrementVariable",
    "input",
    "output",
    "setCondition",
    "setVariable",
    "variables",
]


@dataclass
class Scripts:
    """/workspace/scripts of a container below a directory that has the package in its node_modules."""

    root: Path
    workspace: Workspace

    @property
    def directory(self) -> Path:
        return self.root / "workspace/scripts"

    @property
    def main(self) -> Path:
        return self.directory / "main.js"

    def lay(self, source: str) -> None:
        """Write main.js and main.mjs, two names of one file."""
        self.main.write_text(source, encoding="utf-8")
        self.main.with_suffix(".mjs").hardlink_to(self.main)

    def run(self, source: str) -> subprocess.CompletedProcess[str]:
        """Run a script as the worker does."""
        self.lay(source)
        return self.run_main()

    def run_main(self, *arguments: str, preload: bool = True) -> subprocess.CompletedProcess[str]:
        flags = ["--require", str(self.root / "node_modules/cronium/preload.js")] if preload else []
        return subprocess.run(
            ["node", *flags, str(self.main), *arguments],
            env=os.environ | self.workspace.environment,
            capture_output=True,
            encoding="utf-8",
            timeout=20,
            check=False,
        )

    def prints(self, source: str) -> list[str]:
        """Run a script that must not fail and return the lines it prints."""
        result = self.run(source)
        assert (result.returncode, result.stderr) == (0, "")
        return result.stdout.splitlines()


@pytest.fixture
def scripts(tmp_path: Path, workspace: Workspace) -> Scripts:
    scripts = Scripts(tmp_path / "root", workspace)
    shutil.copytree(HELPERS / "node", scripts.root / "node_modules/cronium")
    scripts.directory.mkdir(parents=True)
    return scripts


def test_the_package_has_all_its_faces(scripts: Scripts) -> None:
    """require, import, the global, the class, the instance and functions taken apart are one and the same."""
    lines = scripts.prints(
        """
        import cronium, { Cronium, CroniumError, cronium as c, input, setVariable } from "cronium";
        import * as all from "cronium";
        const required = require("cronium");
        setVariable("k", 1);
        const { getVariable } = c;
        const own = new required.Cronium({ dataDir: "/nowhere" });
        const { getVariable: ofOwn } = own;
        console.log(getVariable("k"), required.getVariable("k"), globalThis.cronium.getVariable("k"), ofOwn("k"));
        console.log(JSON.stringify(input()), new cronium().getVariable("k"), await new Cronium().getVariable("k"));
        console.log(required === cronium, globalThis.cronium === cronium, required.default === cronium,
          required.cronium === c, required.CroniumError === CroniumError, c instanceof Cronium);
        try { cronium.output(undefined); } catch (error) { console.log(error instanceof CroniumError, String(error)); }
        console.log(JSON.stringify(Object.keys(all).sort()));
        """
    )

    assert lines[0] == "1 1 1 null"
    assert lines[1] == "{} 1 1"
    assert lines[2] == "true true true true true true"
    assert lines[3] == "true CroniumError: cannot write output.json: JSON has no undefined"
    assert json.loads(lines[4]) == sorted([*FUNCTIONS, "Cronium", "CroniumError", "cronium", "default"])


def test_the_types_name_the_same_functions() -> None:
    for name in ("cronium.d.ts", "cronium.d.mts", "cronium.mjs", "cronium.js"):
        text = (HELPERS / "node" / name).read_text()
        for function in FUNCTIONS:
            assert re.search(rf"\b{function}\b", text), f"{name} lacks {function}"


def test_values_that_json_lacks_are_refused(scripts: Scripts) -> None:
    lines = scripts.prints(
        """
        const cycle = {}; cycle.cycle = cycle;
        for (const call of [() => cronium.output(() => 1), () => cronium.output(1n), () => cronium.output(cycle),
            () => cronium.setVariable("k", undefined), () => cronium.setVariable(5, 1),
            () => cronium.incrementVariable("n", NaN), () => cronium.incrementVariable("n", "1")]) {
          try { call(); console.log("written"); } catch (error) { console.log(error.name, error.message); }
        }
        """
    )

    assert lines == [
        "CroniumError cannot write output.json: JSON has no function",
        "CroniumError cannot write output.json: Do not know how to serialize a BigInt",
        "CroniumError cannot write output.json: Converting circular structure to JSON",
        'CroniumError cannot write variable "k": JSON has no undefined',
        "CroniumError a variable's name is a string, not number",
        "CroniumError the increment is not a number",
        "CroniumError the increment is not a number",
    ]
    assert scripts.workspace.files() == set()


def test_bad_utf8_is_not_written_back(scripts: Scripts) -> None:
    path = scripts.workspace.lay_text("variables.json", "{}")
    path.write_bytes(b'{"k": "\xff"}')

    result = scripts.run("cronium.setVariable('a', 1)")

    assert result.returncode == 1
    assert "CroniumError: " in result.stderr
    assert path.read_bytes() == b'{"k": "\xff"}'


PLAIN = {
    "everyday": """
        const cronium = "a name of the script's own";
        console.log(require.main === module, module.id, __filename, process.argv, this === exports, cronium);
        console.log(Object.keys(globalThis), typeof globalThis.require, process.mainModule === module);
        console.log(require("node:module").runMain.name);
        console.log("import x from y", /export default/.source, typeof import("node:fs").then);
        x = { await() {} }; x.await (8);
        (async () => console.log(await (5), await [6]))();
        with ({ a: 08 }) console.log(a, delete globalThis.x);
        return 5;
    """,
    "await as a name": "var await = 1; console.log(await); async function f() { await 1; } f();",
    "hashbang": "#!/usr/bin/env node\nconsole.log('hashbang')",
    "byte order mark": "\ufeffconsole.log('mark')",
    "injection": "}); console.log('outside'); (function () {",
    "exit code": "process.exitCode = 7; process.on('exit', (code) => console.log(code))",
    "exit": "console.log(1); process.exit(3); console.log(2)",
    "throw": "console.log(1);\n\nfunction broken() {\n  throw new TypeError('at line 4');\n}\nbroken();",
    "rejection": "\nPromise.reject(new Error('at line 2'))",
    "syntax error": "console.log(1);\nconst a = ;\n",
    "unfinished": "function f() {\n  console.log(1);\n",
    "await in a function": "async function f() {}\nfunction g() {\n  await f();\n}\n",
    "await in an argument": "function g() {\n  console.log(await f());\n}\nconsole.log(1);",
    "declared twice": "let a;\nlet a;",
    "missing module": "require('./nowhere')",
}


@pytest.mark.parametrize("source", PLAIN.values(), ids=PLAIN.keys())
def test_commonjs_runs_as_in_plain_node(scripts: Scripts, source: str) -> None:
    def told(result: subprocess.CompletedProcess[str]) -> tuple[int, str, list[str]]:
        """Without the frames of Node.js itself and of the preload, where traces may differ."""
        lines = [line for line in result.stderr.splitlines() if not re.match(r" {4}at .*(node:|preload\.js)", line)]
        return result.returncode, result.stdout, lines

    scripts.lay(source)
    with ThreadPoolExecutor() as pool:
        ours, plain = pool.map(lambda preload: told(scripts.run_main("one", "--two", preload=preload)), [True, False])
    assert ours == plain


MODULES = {
    "import": "import fs from 'node:fs'; console.log(typeof fs.readFileSync)",
    "import for effect": "import 'node:fs';\nconsole.log('function')",
    "export": "export const a = 1; export default 2; console.log('function')",
    "import.meta": "console.log(import.meta.url.endsWith('/main.mjs') && 'function')",
    "await": "const f = await Promise.resolve(() => 1); console.log(typeof f)",
    "await of an expression": "console.log(typeof (await (async () => () => 1)()))",
    "await in an argument": "console.log(await Promise.resolve('function'));",
    "for await": "for await (const f of [() => 1]) console.log(typeof f)",
    "hashbang": "#!/usr/bin/env node\nconsole.log(typeof (await Promise.resolve(() => 1)))",
    "mark": "\ufeffconsole.log(await 'function')",
    "await, then import": "await 1; import fs from 'node:fs'; console.log(typeof fs.readFileSync)",
    "await and require": "const fs = require('node:fs'); await 1; console.log(typeof fs.readFileSync)",
    "require of a file": "await 1; console.log(require('./other.js'))",
    "import of a file": "import other from './other.js'; console.log(other)",
    "names of CommonJS": "import 'node:fs';\nconst __dirname = '/', require = 1;\nconsole.log('function')",
    "only such names": "const module = 1; console.log('function')",
    "is it the main program": "import { pathToFileURL } from 'node:url';\n"
    "if (import.meta.url === pathToFileURL(process.argv[1]).href) console.log('function')",
    "global": "await 1; cronium.output(await cronium.input()); console.log(typeof cronium.input)",
}


@pytest.mark.parametrize("source", MODULES.values(), ids=MODULES.keys())
def test_modules_run(scripts: Scripts, source: str) -> None:
    (scripts.directory / "other.js").write_text("module.exports = 'function';")

    lines = scripts.prints(source + "\n; console.log(process.argv[1].slice(-8))")

    assert lines == ["function", "main.mjs"]


@pytest.mark.parametrize(
    ("source", "status", "told"),
    [
        ("await 1;\n\nthrow new Error('here');", 1, r"main\.mjs:3\n[\s\S]*Error: here"),
        ("import fs from 'node:fs';\nprocess.exit(4);", 4, ""),
        ("await 1;\nPromise.reject(new Error('here'));", 1, "Error: here"),
        ("await new Promise(() => {});", 13, ""),
        ("import './nowhere.js';", 1, "ERR_MODULE_NOT_FOUND"),
        ("console.log(await 1);\nconst a = ;", 1, r"main\.mjs:2\n[\s\S]*SyntaxError: Unexpected token ';'"),
        ("import { nothing } from 'node:fs';", 1, "SyntaxError: .*'node:fs' does not provide an export"),
        ("import fs from 'node:fs';\nundeclared = 1;", 1, "undeclared is not defined"),
    ],
)
def test_modules_fail_as_modules_do(scripts: Scripts, source: str, status: int, told: str) -> None:
    result = scripts.run(source)

    assert result.returncode == status
    assert re.search(told, result.stderr), result.stderr


def test_other_pairs_of_files_are_left_to_node(scripts: Scripts) -> None:
    """Packages that ship both forms of a program have such pairs, but not of the same content."""
    package = scripts.directory / "package"
    package.mkdir()
    (package / "package.json").write_text('{"type": "module"}')
    (package / "child.js").write_text("import 'node:fs'; console.log('right file');")
    (package / "child.mjs").write_text("import 'node:fs'; console.log('wrong file');")
    source = "require('node:child_process').fork(__dirname + '/package/child.js')"

    assert scripts.prints(source) == ["right file"]


CHILDREN = """
const { fork } = require("node:child_process");
const { Worker, isMainThread, parentPort } = require("node:worker_threads");
if (process.argv[2] === "child") {
  process.send([__filename, typeof cronium.input, require.main === module]);
} else if (!isMainThread) {
  parentPort.postMessage([__filename, typeof cronium.input, require.main === module]);
} else {
  fork(__filename, ["child"]).on("message", (message) => {
    console.log("fork", ...message);
    new Worker(__filename).on("message", (message) => {
      console.log("worker", ...message);
      new Worker("require('node:worker_threads').parentPort.postMessage(typeof cronium.input)", { eval: true })
        .on("message", (message) => console.log("eval", message));
    });
  });
}
"""

WRITERS = """
const fs = require("node:fs");
const { Worker, isMainThread, workerData, threadId } = require("node:worker_threads");
if (isMainThread) {
  const workerData = new Int32Array(new SharedArrayBuffer(4));
  for (let started = 0; started < 3; started++)
    new Worker(__filename, { workerData }).on("error", (error) => console.log(error.message));
} else {
  const rename = fs.renameSync;
  fs.renameSync = (...paths) => { // once all have written
    Atomics.add(workerData, 0, 1);
    Atomics.notify(workerData, 0);
    for (let seen; (seen = Atomics.load(workerData, 0)) < 3; ) Atomics.wait(workerData, 0, seen, 10_000);
    rename(...paths);
  };
  cronium.output(threadId);
}
"""

MODULE_CHILDREN = """
import { fork } from "node:child_process";
import { Worker, isMainThread, parentPort } from "node:worker_threads";
import { fileURLToPath } from "node:url";
const me = fileURLToPath(import.meta.url);
if (process.argv[2] === "child") {
  process.send([typeof cronium.input, typeof require("node:fs").readFileSync]);
  process.disconnect();
} else if (!isMainThread) {
  parentPort.postMessage([typeof cronium.input, typeof require("node:fs").readFileSync]);
} else {
  await new Promise((resolve) => fork(me, ["child"]).on("message", (message) => resolve(console.log(...message))));
  await new Promise((resolve) =>
    fork(me.replace(".mjs", ".js"), ["child"]).on("message", (message) => resolve(console.log(...message))));
  new Worker(new URL(import.meta.url)).on("message", (message) => console.log(...message));
}
"""


def test_forks_and_worker_threads_work(scripts: Scripts) -> None:
    lines = scripts.prints(CHILDREN)

    assert lines == [f"fork {scripts.main} function true", f"worker {scripts.main} function true", "eval function"]


def test_worker_threads_write_the_same_file_at_once(scripts: Scripts) -> None:
    """Each has a temporary file of its own, and the last one wins."""
    assert scripts.prints(WRITERS) == []
    assert [path.name for path in scripts.workspace.output.iterdir()] == ["output.json"]


def test_forks_and_worker_threads_of_modules_work(scripts: Scripts) -> None:
    assert scripts.prints(MODULE_CHILDREN) == ["function function"] * 3
