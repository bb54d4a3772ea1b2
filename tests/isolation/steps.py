"""What hostile scripts do with files, in each of the three languages. Paths are bytes, relative to /workspace."""

from dataclasses import dataclass
from typing import Protocol


class Step(Protocol):
    def bash(self) -> str: ...
    def python(self) -> str: ...
    def node(self) -> str: ...


def _sh(data: bytes) -> str:
    return "$'" + "".join(f"\\x{byte:02x}" for byte in data) + "'"


def _py(data: bytes) -> str:
    return f"bytes.fromhex('{data.hex()}')"


def _js(data: bytes) -> str:
    return f"Buffer.from('{data.hex()}', 'hex')"


@dataclass(frozen=True)
class Write:
    """`head`, `unit` so many times, `tail`."""

    path: bytes
    head: bytes = b""
    unit: bytes = b""
    times: int = 0
    tail: bytes = b""

    def bash(self) -> str:
        escaped = "".join(f"\\{byte:03o}" for byte in self.unit)
        loop = f"LC_ALL=C awk 'BEGIN {{ for (i = 0; i < {self.times}; i++) printf \"{escaped}\" }}'"
        parts = [f"printf %s {_sh(part)}" for part in (self.head,) if part]
        parts += [loop] if self.times else []
        parts += [f"printf %s {_sh(part)}" for part in (self.tail,) if part]
        return f"{{ {'; '.join(parts) or ':'}; }} >{_sh(self.path)}"

    def python(self) -> str:
        content = f"{_py(self.head)} + {_py(self.unit)} * {self.times} + {_py(self.tail)}"
        return f"open({_py(self.path)}, 'wb').write({content})"

    def node(self) -> str:
        times = f"Buffer.alloc({len(self.unit) * self.times}, {_js(self.unit)})" if self.times else "Buffer.alloc(0)"
        return f"fs.writeFileSync({_js(self.path)}, Buffer.concat([{_js(self.head)}, {times}, {_js(self.tail)}]));"


@dataclass(frozen=True)
class Link:
    """A symbolic link, in place of whatever has the name."""

    target: bytes
    path: bytes

    def bash(self) -> str:
        return f"ln -sfn -- {_sh(self.target)} {_sh(self.path)}"

    def python(self) -> str:
        path = _py(self.path)
        return f"os.path.lexists({path}) and os.unlink({path})\nos.symlink({_py(self.target)}, {path})"

    def node(self) -> str:
        return f"fs.rmSync({_js(self.path)}, {{force: true}}); fs.symlinkSync({_js(self.target)}, {_js(self.path)});"


@dataclass(frozen=True)
class HardLink:
    source: bytes
    path: bytes

    def bash(self) -> str:
        return f"ln -- {_sh(self.source)} {_sh(self.path)}"

    def python(self) -> str:
        return f"os.link({_py(self.source)}, {_py(self.path)})"

    def node(self) -> str:
        return f"fs.linkSync({_js(self.source)}, {_js(self.path)});"


@dataclass(frozen=True)
class Directory:
    path: bytes
    mode: int = 0o755

    def bash(self) -> str:
        return f"mkdir -- {_sh(self.path)}; chmod {self.mode:o} -- {_sh(self.path)}"

    def python(self) -> str:
        return f"os.mkdir({_py(self.path)}); os.chmod({_py(self.path)}, {self.mode})"

    def node(self) -> str:
        return f"fs.mkdirSync({_js(self.path)}); fs.chmodSync({_js(self.path)}, {self.mode});"


@dataclass(frozen=True)
class Mode:
    path: bytes
    mode: int

    def bash(self) -> str:
        return f"chmod {self.mode:o} -- {_sh(self.path)}"

    def python(self) -> str:
        return f"os.chmod({_py(self.path)}, {self.mode})"

    def node(self) -> str:
        return f"fs.chmodSync({_js(self.path)}, {self.mode});"


@dataclass(frozen=True)
class Sparse:
    path: bytes
    size: int

    def bash(self) -> str:
        return f"truncate -s {self.size} -- {_sh(self.path)}"

    def python(self) -> str:
        return f"open({_py(self.path)}, 'wb').truncate({self.size})"

    def node(self) -> str:
        return f"fs.closeSync(fs.openSync({_js(self.path)}, 'w')); fs.truncateSync({_js(self.path)}, {self.size});"


@dataclass(frozen=True)
class ManyFiles:
    path: bytes
    count: int

    def bash(self) -> str:
        return f"mkdir -- {_sh(self.path)}; (cd -- {_sh(self.path)} && seq {self.count} | xargs touch)"

    def python(self) -> str:
        name = f"{_py(self.path)} + b'/%d' % n"
        return f"os.mkdir({_py(self.path)})\nfor n in range({self.count}): open({name}, 'w').close()"

    def node(self) -> str:
        name = f"{_js(self.path)} + '/' + n"
        return f"fs.mkdirSync({_js(self.path)}); for (let n = 0; n < {self.count}; n++) fs.writeFileSync({name}, '');"


@dataclass(frozen=True)
class Shell:
    """A command of the shell, by the language's own way to start one; its output is the script's."""

    command: str

    def bash(self) -> str:
        return f"( {self.command} )"

    def python(self) -> str:
        return f"subprocess.run(['sh', '-c', {self.command!r}], check=True)"

    def node(self) -> str:
        command = self.command.replace("\\", "\\\\").replace("`", "\\`").replace("$", "\\$")
        return f"child.execFileSync('sh', ['-c', `{command}`], {{stdio: 'inherit'}});"


def written_in(language: str, steps: tuple[Step, ...]) -> str:
    lines = [getattr(step, language)() for step in steps]
    if language == "python":
        lines.insert(0, "import os, subprocess")
    if language == "node":
        lines.insert(0, "const fs = require('fs'), child = require('child_process');")
    return "\n".join(lines) + "\n"
