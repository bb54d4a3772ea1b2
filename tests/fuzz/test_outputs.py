"""Any tree that a job may leave: an output or typed errors, and what is given out is strict JSON."""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st

from cronium_worker.errors import OutputError
from cronium_worker.fleet.events import status_body
from cronium_worker.masking import Masker
from cronium_worker.models import JobResult, Output
from cronium_worker.workspace import Workspace, create, remove
from cronium_worker.workspace.collection import Collected, Limits, collect, parse_json
from cronium_worker.workspace.walk import decode_name
from tests.fuzz.profile import FUZZ
from tests.fuzz.strategies import anything
from tests.fuzz.strict import is_one_line, strict

_LIMITS = Limits(
    output_json_bytes=4096, condition_json_bytes=64, variables_file_bytes=2048, variables_json_bytes=1024,
    file_inline_bytes=64, total_inline_bytes=256, hash_total_bytes=4096, files=5, directories=6, entries=40, depth=3,
    path_bytes=300,
)  # fmt: skip
_number = count()

_tokens = st.sampled_from(
    [
        *("[", "]", "{", "}", ",", ":", '"', "\\", "\\u", "\\ud800", "\\udc00", '"a"', '"result"', "true", "null"),
        *("NaN", "-Infinity", "1e999", "-0", "01", "1" * 4301, " ", "\n", "\0", "\ufeff", "ü", "\U0001f600", "//"),
    ]
)
_near_json = st.lists(_tokens, max_size=12).map("".join).map(str.encode)


def _dumped(value: Any) -> bytes:
    return json.dumps(value).encode()


@st.composite
def _damaged(draw: st.DrawFn) -> bytes:
    data = bytearray(draw(anything.map(_dumped) | st.booleans().map(lambda value: _dumped({"result": value}))))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(data)))
        data[at : at + draw(st.integers(0, 2))] = draw(st.binary(max_size=2) | _tokens.map(str.encode))
    return bytes(data)


_near = st.one_of(_near_json, _damaged(), st.binary(max_size=30))
_name = (
    st.binary(min_size=1, max_size=12).map(lambda name: name.translate(None, b"/\0"))
    | st.sampled_from([b"output.json", b".output.json.1.tmp", b"condition.json", b"\xff", b"./", b"%41", b"a\n\x1b[2J"])
    | st.just(b"x" * 255)
).filter(lambda name: name not in (b"", b".", b".."))
_entry = st.tuples(
    st.lists(_name, min_size=1, max_size=5),
    st.sampled_from(["file", "file", "file", "link", "directory", "fifo", "socket", "hard link", "sparse", "closed"]),
    st.binary(max_size=80),
)


def _plant(root: Path, parts: list[bytes], kind: str, content: bytes) -> None:
    path = root.joinpath(*map(os.fsdecode, parts))
    with suppress(OSError):  # names too long, or something else has the name
        path.parent.mkdir(parents=True, exist_ok=True)
        match kind:
            case "link":
                path.symlink_to(os.fsdecode(content.replace(b"\0", b"") or b"/etc/passwd"))
            case "directory":
                path.mkdir()
            case "fifo":
                os.mkfifo(path)
            case "socket":
                with socket.socket(socket.AF_UNIX) as made:
                    made.bind(os.fsencode(path))
            case _:
                with path.open("xb") as file:
                    file.write(content)
                if kind == "hard link":
                    path.with_name(path.name + "2").hardlink_to(path)
                elif kind == "sparse":
                    os.truncate(path, 2**40)
                elif kind == "closed":
                    path.chmod(0)


@contextmanager
def _made(directory: Path) -> Iterator[Workspace]:
    workspace = create(directory, f"w{next(_number)}", uid=os.geteuid(), gid=os.getegid())
    try:
        yield workspace
    finally:
        remove(workspace)
        assert not workspace.root.exists()


def _no_name_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


def check(collected: Collected) -> None:
    for error in collected.errors:
        assert isinstance(error, OutputError)
        assert is_one_line(str(error))
        assert error.details["file"] in ("output.json", "condition.json", "variables.json")
    assert all(map(is_one_line, collected.notes))
    masker = Masker(["result", "1", "ü"])
    for output in (
        collected.output,
        collected.output.model_copy(
            update={name: masker.json(getattr(collected.output, name)) for name in ("data", "variables")}
        ),
    ):
        errors = [error.info() for error in collected.errors]
        result = JobResult(job_id="j", status="completed", output=output, error=errors[0] if errors else None)
        assert JobResult.model_validate(strict(result.model_dump_json())) == result
        body = status_body("completed", "", attempt=1, host="h", result=result.without_contents())
        strict("{" + body.json.decode())


@FUZZ
@given(_near)
@example(b'{"a":1,"a":2}')
def test_any_bytes_are_strict_json_or_a_typed_error(data: bytes) -> None:
    try:
        value = parse_json(data)
    except OutputError as error:
        check(Collected(Output(), errors=(error,)))
        return
    assert strict(data.decode()) == value
    assert json.loads(data, object_pairs_hook=_no_name_twice) == value
    assert parse_json(json.dumps(value, ensure_ascii=False, allow_nan=False).encode()) == value


@FUZZ
@given(st.one_of(st.none(), _near), st.one_of(st.none(), _near), st.one_of(st.none(), _near))
def test_any_three_files_of_json(
    directory: Path, output: bytes | None, condition: bytes | None, variables: bytes | None
) -> None:
    with _made(directory) as workspace:
        names = ("output/output.json", "output/condition.json", "data/variables.json")
        for name, data in zip(names, (output, condition, variables), strict=True):
            if data is not None:
                (workspace.root / name).write_bytes(data)
        collected = collect(workspace, _LIMITS, owner_uid=os.geteuid())

    check(collected)
    wrong = {error.details["file"] for error in collected.errors}
    for name, data, found in (
        ("output.json", output, collected.output.data),
        ("variables.json", variables, collected.output.variables),
    ):
        if data is not None and name not in wrong:
            assert strict(data.decode()) == found


@FUZZ
@given(st.lists(_entry, max_size=12))
def test_any_tree(directory: Path, entries: list[tuple[list[bytes], str, bytes]]) -> None:
    with _made(directory) as workspace:
        for parts, kind, content in entries:
            _plant(workspace.output, parts, kind, content)
        collected = collect(workspace, _LIMITS, owner_uid=os.geteuid())
        for name, file in collected.output.files.items():
            assert (workspace.output / os.fsdecode(decode_name(name))).lstat().st_size == file.size

    check(collected)
    assert len(collected.output.files) <= _LIMITS.files
