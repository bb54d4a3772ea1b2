"""The commands of the documentation: read from its files, checked by what they name, and run as a reader runs them.

A block ```sh is a script; in one of ```console each line after `$ ` is a command, with what it prints below it (`…`:
anything).
A line right before a block may say what is different about it:

    <!-- not run here: REASON -->          only what it names is checked
    <!-- runs until it is stopped -->      each line: it still runs after a second
    <!-- its output is an example -->      only the first line of the output is compared
"""

import os
import re
import shlex
import signal
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import click

from cronium_worker.cli.main import cli

ROOT = Path(__file__).parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
_UNTIL_STOPPED, _EXAMPLE = "runs until it is stopped", "its output is an example"
_NOT_RUN = "not run here: "
_SEPARATORS = frozenset("();<>|&")
_MARK = "\x1e"
_STILL_RUNNING = 124  # timeout(1)
_EXAMPLE_ID = "4947a969190c462eb7c77e9f15d91237"
_NEWEST_ID = """$(cronium ps -n 1 --json | jq -r '.[0].id')"""
_PATH = re.compile(
    r"(?:\./)?((?:deploy|docs|examples|helpers|images|tests|benchmarks)/[\w./-]+|requirements[\w.-]*\.txt)"
)


@dataclass(frozen=True, kw_only=True)
class Block:
    """`remark`: the line before it, without the marks of a comment."""

    page: Path
    line: int
    language: str
    text: str
    remark: str = ""

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def is_run(self) -> bool:
        return not self.remark.startswith(_NOT_RUN)


@dataclass(frozen=True, kw_only=True)
class Command:
    """`output`: what it is expected to print; None: nothing is said of that, and it must succeed."""

    block: Block
    text: str
    output: list[str] | None = None


@dataclass
class Page:
    blocks: list[Block] = field(default_factory=list)
    files: dict[str, str] = field(default_factory=dict)
    inline: list[str] = field(default_factory=list)


def read(path: Path) -> Page:
    """Its blocks of commands, the files that it shows (their name in backquotes on the line before), and what stands in
    backquotes in the text."""
    page = Page()
    fence, before, start, body = "", "", 0, [""]
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        if fence and line != "```":
            body.append(line)
        elif fence:
            text = "\n".join(body) + "\n"
            name = re.fullmatch(r"`([\w.-]+)`", before)
            if name:
                page.files[name[1]] = text
            if fence in ("sh", "console"):
                remark = re.fullmatch(r"<!-- (.+) -->", before)
                page.blocks.append(
                    Block(page=path, line=start, language=fence, text=text, remark=remark[1] if remark else "")
                )
            fence, before = "", ""
        elif line.startswith("```"):
            fence, start, body = line[3:].strip() or "text", number, []
        else:
            before = line
            page.inline += re.findall(r"(?<!`)`([^`]+)`(?!`)", line)
    return page


# ---- What a command names


def complaints(text: str) -> Iterator[str]:
    """What commands name that is not there: of `cronium` its commands and options, targets of make, files."""
    for words in _simple_commands(text):
        for index, word in enumerate(words):
            if word == "cronium" or word.endswith("bin/cronium"):
                yield from _complaints_of_cronium(words[index + 1 :])
                break
            if word == "make" and index == 0:
                targets = [each for each in words[1:] if "=" not in each and not each.startswith("-")]
                yield from (f"make {each}: no such target" for each in targets if not _is_target(each))
        for word in words:
            for path in _PATH.findall(word):
                if not (ROOT / path).exists():
                    yield f"{path}: no such file"


def alternatives(code: str) -> list[str]:
    """Of `a b\\|c [--d\\|--e]` the commands that are meant."""
    words = [word.strip("[]").split("\\|") for word in code.split(" ")]
    longest = max(map(len, words))
    return [" ".join(word[min(index, len(word) - 1)] for word in words) for index in range(longest)]


def _simple_commands(text: str) -> Iterator[list[str]]:
    """The words of each, as far as a shell's grammar matters here: no redirections, no comments."""
    pending = ""
    for line in text.splitlines():
        pending += line.removesuffix("\\") + ("" if line.endswith("\\") else "\n")
        if line.endswith("\\"):
            continue
        lexer = shlex.shlex(pending, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        try:
            tokens = list(lexer)
        except ValueError:  # a quotation that goes on
            continue
        pending = ""
        words: list[str] = []
        for token in [*tokens, ";"]:
            if set(token) <= _SEPARATORS:
                if words:
                    yield words
                words = []
            else:
                words.append(token)


def _complaints_of_cronium(words: list[str]) -> Iterator[str]:
    command: click.Command = cli
    names = ["cronium"]
    for word in words:
        if word.startswith("-") and word != "-":
            option = word.partition("=")[0]
            known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
            if option not in known | {"-h", "--help"}:
                yield f"{' '.join(names)}: no option {option}"
        elif isinstance(command, click.Group):
            if word not in command.commands:
                yield f"{' '.join(names)}: no command {word}"
                return
            command = command.commands[word]
            names.append(word)


def _is_target(name: str) -> bool:
    return bool(re.search(rf"^{re.escape(name)}:", (ROOT / "Makefile").read_text(), re.MULTILINE))


# ---- What a command does


def commands(block: Block) -> list[Command]:
    if block.language == "sh":
        lines = block.text.splitlines() if block.remark == _UNTIL_STOPPED else [block.text]
        return [Command(block=block, text=text) for text in lines]
    found: list[tuple[list[str], list[str]]] = []
    for line in block.text.splitlines():
        if line.startswith("$ "):
            found.append(([line[2:]], []))
        elif line.startswith("> ") and not found[-1][1]:
            found[-1][0].append(line[2:])
        else:
            found[-1][1].append(line)
    return [Command(block=block, text="\n".join(text), output=output) for text, output in found]


def run(blocks: list[Block], directory: Path, env: Mapping[str, str], names: Mapping[str, str]) -> list[str]:
    """Run the blocks of a page in one shell, as a reader does. `names`: what stands there, and what it is here. Returns
    what was not as it should be."""
    steps = [command for block in blocks for command in commands(block)]
    script = directory / ".session"
    script.write_text("set -o pipefail\n" + "".join(_step(index, step, names) for index, step in enumerate(steps)))
    output = directory / ".output"
    with output.open("wb") as target:
        shell = subprocess.Popen(
            ["bash", str(script)],
            cwd=directory,
            env=dict(env),
            stdin=subprocess.DEVNULL,
            stdout=target,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            shell.wait(80)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(shell.pid, signal.SIGKILL)  # what runs in its background
    said = re.split(rf"{_MARK}(\d+)\n", output.read_text(errors="replace"))
    outputs, codes = said[0::2], [int(code) for code in said[1::2]]
    wrong = []
    for index, step in enumerate(steps):
        if index >= len(codes):
            return [*wrong, f"{step.block}: a command of this failed:\n{step.text}\n{outputs[index]}"]
        code_is_asked = index + 1 < len(steps) and steps[index + 1].text == "echo $?"
        wrong += _judge(step, outputs[index], codes[index], code_is_asked=code_is_asked)
    return wrong


def _step(index: int, step: Command, names: Mapping[str, str]) -> str:
    text = step.text
    for there, here in {_EXAMPLE_ID: _NEWEST_ID, **names}.items():
        text = text.replace(there, here)
    if step.block.remark == _UNTIL_STOPPED:
        text = f"timeout 1 {text}"
    # A shell's script stops at the first command that fails; a reader at a prompt does not.
    fails = "set -e\n" if step.block.language == "sh" and step.block.remark != _UNTIL_STOPPED else ""
    return f"(exit ${{code:-0}})\n{fails}{text}\ncode=$?\nset +e\nprintf '{_MARK}%s\\n' $code\n"


def _judge(step: Command, output: str, code: int, *, code_is_asked: bool) -> Iterator[str]:
    expected_code = _STILL_RUNNING if step.block.remark == _UNTIL_STOPPED else 0
    if code != expected_code and not code_is_asked:
        yield f"{step.block}: exit code {code}:\n{step.text}\n{output}"
    if step.output is None:
        return
    expected = step.output
    if step.block.remark == _EXAMPLE:
        expected, output = expected[:1], output.partition("\n")[0] + "\n"
    if not re.fullmatch("".join(map(_pattern, expected)), output):
        yield f"{step.block}: {step.text}\nshould print\n" + "\n".join(expected) + f"\nand printed\n{output}"


def _pattern(line: str) -> str:
    """Numbers, ids and names of hosts are others each time; spaces of a table as well."""
    if line == "…":
        return r"(?:.*\n)*?"
    pattern = ""
    for part in re.split(r"([0-9a-f]{32}|host-\d+|\d+\.\d+|\s+|…)", line):
        if re.fullmatch(r"[0-9a-f]{32}", part):
            pattern += "[0-9a-f]{32}"
        elif re.fullmatch(r"host-\d+", part):
            pattern += r"\S+"
        elif re.fullmatch(r"\d+\.\d+", part):
            pattern += r"\d+\.\d+"
        elif part == "…":
            pattern += ".*"
        else:
            pattern += r"\s+" if part.isspace() else re.escape(part)
    return pattern + r"\s*\n"
