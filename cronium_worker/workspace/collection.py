"""What a script left as its output, read from the dead container's directories.

Nothing that a job can write is trusted: `walk` says how files are opened, `parse_json` what JSON is accepted.
"""

import base64
import json
import math
import os
import re
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, NoReturn, TypeVar

from pydantic import JsonValue

from cronium_worker.errors import OutputError
from cronium_worker.masking import Masker
from cronium_worker.models import Output, OutputFile
from cronium_worker.models.fields import JsonObject, json_bytes
from cronium_worker.workspace.directories import Workspace, unlock
from cronium_worker.workspace.walk import (
    Content,
    Limits,
    Lister,
    Notes,
    closing,
    descend,
    encode_name,
    mount_id,
    open_directory,
    open_regular,
    read_file,
    shown,
)

__all__ = ["Collected", "Limits", "collect", "parse_json"]

_OUTPUT_JSON = "output.json"
_CONDITION_JSON = "condition.json"
_VARIABLES_JSON = "variables.json"
# Read on their own, or left half written by a helper that was killed.
_NO_FILES = re.compile(rb"(output|condition)\.json|\.(output|condition)\.json\.[^/]+\.tmp")

_DEPTH_MAX = 180  # pydantic's JSON reader ends at 200 levels, some of them are the result's and event's
_NUMBER_MAX_CHARACTERS = 4300  # CPython's own limit of int(str), sys.int_info.default_max_str_digits
_STRING = r'"(?:[^"\\]++|\\.)*+"?'  # possessive and with an open end: one pass, whatever the text is
_STRINGS = re.compile(_STRING.encode(), re.DOTALL)
_STRING_OR_BRACKET = re.compile((_STRING + r"|[\[\]{}]").encode(), re.DOTALL)
_TOKENS = re.compile(_STRING + r"|[-+.\w]++", re.DOTALL)
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_STEP = {ord("["): 1, ord("{"): 1, ord("]"): -1, ord("}"): -1}
_HEX = "[0-9a-fA-F]"  # each on its own: before 3.11.5 a possessive group goes wrong over {2} (cpython gh-106052)
_UP_TO_LONE_SURROGATE = re.compile(
    rf"(?:[^\\]++|\\(?!u[dD][89a-fA-F]).|\\u[dD][89abAB]{_HEX}{_HEX}\\u[dD][c-fC-F]{_HEX}{_HEX})*+",
    re.DOTALL,
)

T = TypeVar("T")


@dataclass(frozen=True)
class Collected:
    """What was found. `errors`: one for each of the three JSON files that is not what it must be, with
    `details["file"]`. `notes`: phrases for the user about files that are not, or not wholly, in `output`."""

    output: Output
    errors: tuple[OutputError, ...] = ()
    notes: tuple[str, ...] = ()


def collect(workspace: Workspace, limits: Limits, *, owner_uid: int, masker: Masker | None = None) -> Collected:
    """Read the outputs of a job. Call it only after its container is gone.

    `owner_uid` is the host's uid of the container's user. `masker`: of the job's secrets; a file that holds one is
    without content and checksum, whatever its size is. All else is as the job has written it.

    Bad output never raises: it is in `errors`, and the other parts are collected. Raises OSError for a fault of the
    host (the workspace is gone, EIO, EMFILE).
    """
    collector = _Collector(limits, owner_uid, masker or Masker(()))
    with ExitStack() as stack:
        root = stack.enter_context(closing(open_directory(str(workspace.root))))
        if os.geteuid() != 0:
            for name in ("output", "data"):
                unlock(name, root)
        output = stack.enter_context(closing(open_directory("output", dir_fd=root)))
        data = stack.enter_context(closing(open_directory("data", dir_fd=root)))
        # Not validated again: for an output of many small values that takes seconds and twice the memory.
        found = Output.model_construct(
            data=collector.json_file(output, _OUTPUT_JSON, limits.output_json_bytes, lambda value: value, None),
            condition=collector.json_file(output, _CONDITION_JSON, limits.condition_json_bytes, _condition, None),
            variables=collector.json_file(data, _VARIABLES_JSON, limits.variables_file_bytes, collector.variables, {}),
            files=collector.files(output),
        )
    return Collected(found, tuple(collector.errors), collector.notes.texts())


class _Collector:
    """The errors, notes and remaining budgets of one collection."""

    def __init__(self, limits: Limits, owner_uid: int, masker: Masker) -> None:
        self.errors: list[OutputError] = []
        self.notes = Notes()
        self._limits = limits
        self._owner_uid = owner_uid
        self._masker = masker
        self._inline_bytes = limits.total_inline_bytes
        self._hash_bytes = limits.hash_total_bytes
        self._deadline = time.monotonic() + limits.duration_s

    def json_file(
        self,
        directory: int,
        file: str,
        limit_bytes: int,
        check: Callable[[JsonValue], T],
        missing: T,
    ) -> T:
        """The value of a JSON file, or `missing` when there is none or it is wrong (which is in `errors`)."""
        try:
            descriptor = open_regular(
                file.encode(), dir_fd=directory, mount=mount_id(directory), owner_uid=self._owner_uid
            )
            with closing(descriptor):
                content = read_file(descriptor, keep_bytes=limit_bytes, hash_bytes=limit_bytes, deadline=math.inf)
            if content.data is None:
                reason = "changed while it was read" if content.changed else f"is over {limit_bytes} bytes"
                raise OutputError(f"{file} {reason}")
            return check(parse_json(content.data, file=file))
        except FileNotFoundError:
            pass
        except OutputError as error:
            error.details["file"] = file
            self.errors.append(error)
        return missing

    def variables(self, value: JsonValue) -> JsonObject:
        if not isinstance(value, dict):
            raise OutputError(f"{_VARIABLES_JSON} must be a JSON object")
        if (size := len(json_bytes(value))) > self._limits.variables_json_bytes:
            limit = self._limits.variables_json_bytes
            raise OutputError(f"{_VARIABLES_JSON} has {size} bytes as JSON, at most {limit} are allowed")
        return value

    def files(self, directory: int) -> dict[str, OutputFile]:
        lister = Lister(directory, limits=self._limits, notes=self.notes, deadline=self._deadline, skip=_NO_FILES)
        mount = mount_id(directory)
        found = {}
        for path in lister.run():
            if (file := self._file(directory, path, mount)) is not None:
                found[encode_name(path)] = file
        return found

    def _file(self, root: int, path: bytes, mount: int) -> OutputFile | None:
        parent, _, name = path.rpartition(b"/")
        try:
            with closing(descend(root, parent)) as directory:
                descriptor = open_regular(name, dir_fd=directory, mount=mount, owner_uid=self._owner_uid)
        except OutputError as error:
            self.notes.add(f"{error.details['reason']}, not collected", path)
            return None
        except FileNotFoundError:
            self.notes.add("a file that vanished, not collected", path)
            return None
        scanner = self._masker.scanner()
        with closing(descriptor):
            content = read_file(
                descriptor,
                keep_bytes=min(self._limits.file_inline_bytes, self._inline_bytes),
                hash_bytes=self._hash_bytes,
                deadline=self._deadline,
                see=scanner.feed,
            )
        self._hash_bytes -= content.size if content.sha256 else 0
        if scanner.found and content.sha256:
            # Of a short secret alone in a file, the checksum tells as much as the content.
            self.notes.add("holds a secret: without content and checksum", path)
            return OutputFile(size=content.size, sha256="")
        self._note(path, content)
        encoded = None
        if content.data is not None:
            self._inline_bytes -= content.size
            encoded = base64.b64encode(content.data).decode()
        return OutputFile(size=content.size, sha256=content.sha256, content=encoded)

    def _note(self, path: bytes, content: Content) -> None:
        if not content.sha256:
            self.notes.add("not read (too large, or out of time): without content and checksum", path)
        elif content.changed:
            self.notes.add("changed while it was read: without content", path)
        elif content.data is None and content.size > self._limits.file_inline_bytes:
            self.notes.add(f"over {self._limits.file_inline_bytes} bytes: without content", path)
        elif content.data is None:
            self.notes.add(f"over {self._limits.total_inline_bytes} bytes in all: without content", path)


def _condition(value: JsonValue) -> bool:
    if isinstance(value, dict) and value.keys() == {"result"} and isinstance(value["result"], bool):
        return value["result"]
    raise OutputError(f'{_CONDITION_JSON} must be {{"result": true}} or {{"result": false}}')


def parse_json(data: bytes, *, file: str = _OUTPUT_JSON) -> JsonValue:
    """Strict JSON (RFC 8259) in UTF-8, in time linear in its size.

    Beyond the grammar it refuses what some reader of the result could not take: NaN and numbers beyond a
    double, more than 4,300 digits, names given twice in an object, lone surrogates, more than 180 levels.
    Raises OutputError with `file`, the reason and the position, and nothing else.
    """
    if not data:
        raise OutputError(f"{file} is empty", file=file)
    if data.startswith((b"\xff\xfe", b"\xfe\xff", b"\xef\xbb\xbf")):
        raise OutputError(f"{file} begins with a byte order mark: it must be UTF-8 without one", file=file)
    text = ""
    try:
        text = data.decode()
        _check_depth(data)
        value: JsonValue = _DECODER.decode(text)
        _check_surrogates(text)
    except UnicodeDecodeError as error:
        raise OutputError(
            f"{file} is not UTF-8: byte 0x{data[error.start]:02x} at offset {error.start}", file=file
        ) from None
    except json.JSONDecodeError as error:
        raise OutputError(f"{file} is not JSON: {error.msg} at {_place(text, error.pos)}", file=file) from None
    except _Refused as error:
        position = error.position if error.literal is None else _find(text, error.literal)
        where = "" if position is None else f" at {_place(text, position)}"
        raise OutputError(f"{file}: {error}{where}", file=file) from None
    except RecursionError:  # the caller's own stack was almost full
        raise OutputError(f"{file} is nested too deeply", file=file) from None
    return value


class _Refused(ValueError):
    """A value that is JSON but not accepted; `literal` is its text, where that tells its position."""

    def __init__(self, reason: str, *, literal: str | None = None, position: int | None = None) -> None:
        super().__init__(reason)
        self.literal = literal
        self.position = position


def _check_depth(data: bytes) -> None:
    """Count the open brackets before anything recurses."""
    if data.count(b"[") + data.count(b"{") <= _DEPTH_MAX:
        return
    brackets = _STRINGS.sub(b"", data).translate(None, _NO_BRACKETS)
    if max(accumulate(map(_STEP.__getitem__, brackets)), default=0) > _DEPTH_MAX:
        depth = 0
        for match in _STRING_OR_BRACKET.finditer(data):
            depth += _STEP.get(match[0][0], 0)
            if depth > _DEPTH_MAX:
                position = len(data[: match.start()].decode())
                raise _Refused(f"nested more than {_DEPTH_MAX} levels deep", position=position)


def _check_surrogates(text: str) -> None:
    match = _UP_TO_LONE_SURROGATE.match(text)
    if match is not None and match.end() < len(text):
        raise _Refused("a lone surrogate is not text", position=match.end())


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise _Refused(f"the name {shown(twice.encode(errors='replace'))} is given twice in an object")
    return found


def _integer(literal: str) -> int:
    if len(literal) > _NUMBER_MAX_CHARACTERS:
        raise _Refused(f"a number of more than {_NUMBER_MAX_CHARACTERS} digits", literal=literal)
    return int(literal)


def _float(literal: str) -> float:
    if len(literal) > _NUMBER_MAX_CHARACTERS:
        raise _Refused(f"a number of more than {_NUMBER_MAX_CHARACTERS} digits", literal=literal)
    if math.isinf(value := float(literal)):
        raise _Refused("a number is too large", literal=literal)
    return value


def _constant(literal: str) -> NoReturn:
    raise _Refused(f"{literal} is not JSON", literal=literal)


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_float=_float, parse_int=_integer, parse_constant=_constant)


def _find(text: str, literal: str) -> int | None:
    """Where a literal first stands outside of strings."""
    return next((match.start() for match in _TOKENS.finditer(text) if match[0] == literal), None)


def _place(text: str, position: int) -> str:
    line = text.count("\n", 0, position) + 1
    return f"line {line}, column {position - text.rfind(chr(10), 0, position)}"
