"""Reading what a job has left, however hostile it was."""

import base64
import dataclasses
import hashlib
import json
import os
import resource
import socket
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cronium_worker.masking import Masker
from cronium_worker.models import Output
from cronium_worker.workspace import Collected, Limits, Workspace, collect, create, walk
from tests.unit.workspace.trees import chain, descriptors, fill


def gather(workspace: Workspace, **limits: Any) -> Collected:
    return collect(workspace, Limits(**limits), owner_uid=os.geteuid())


def everything(collected: Collected) -> str:
    """All that leaves the function, as text; file contents decoded."""
    contents = [base64.b64decode(file.content or "") for file in collected.output.files.values()]
    messages = [f"{error} {error.details}" for error in collected.errors]
    return f"{collected.output.model_dump_json()} {messages} {collected.notes} {contents}"


def content(collected: Collected, name: str) -> bytes:
    encoded = collected.output.files[name].content
    assert encoded is not None
    return base64.b64decode(encoded)


# the ordinary


def test_nothing_written_is_an_empty_output(workspace: Workspace) -> None:
    assert gather(workspace) == Collected(Output())


def test_everything_written_is_collected(workspace: Workspace) -> None:
    (workspace.output / "output.json").write_text('{"a": [1, null, "é"]}')
    (workspace.output / "condition.json").write_text('{"result": false}\n')
    (workspace.data / "variables.json").write_text('{"x": 1}')
    (workspace.output / "report.txt").write_bytes(b"\0\xff")
    (workspace.output / "a" / "b").mkdir(parents=True)
    (workspace.output / "a" / "b" / "output.json").write_text("no JSON: a file like any other")
    (workspace.output / "empty").touch()
    (workspace.scratch / "not collected").touch()
    before = descriptors()
    collected = gather(workspace)
    assert (collected.errors, collected.notes) == ((), ())
    output = collected.output
    assert (output.data, output.condition, output.variables) == ({"a": [1, None, "é"]}, False, {"x": 1})
    assert list(output.files) == ["empty", "report.txt", "a/b/output.json"]
    report = output.files["report.txt"]
    assert (report.size, report.sha256) == (2, hashlib.sha256(b"\0\xff").hexdigest())
    assert content(collected, "report.txt") == b"\0\xff"
    assert output.files["empty"].content == ""
    assert Output.model_validate_json(output.model_dump_json()) == output
    assert descriptors() == before


def test_a_workspace_that_is_gone_is_the_hosts_fault(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        gather(Workspace(tmp_path / "gone"))


# the three JSON files


def write(path: Path, data: bytes) -> None:
    path.write_bytes(data)


WRONG = {
    "empty": (lambda path, _: write(path, b""), "is empty"),
    "half written": (lambda path, _: write(path, b'{"a": '), "is not JSON"),
    "over the limit": (lambda path, _: write(path, b'"' + b"x" * 4096 + b'"'), "is over 1000 bytes"),
    "sparse": (lambda path, _: (path.touch(), os.truncate(path, 2**40)), "is over 1000 bytes"),
    "link": (lambda path, canary: path.symlink_to(canary), "unsafe output: a symbolic link"),
    "relative link": (lambda path, _: path.symlink_to("../../../../canary"), "unsafe output: a symbolic link"),
    "dangling link": (lambda path, _: path.symlink_to("nowhere"), "unsafe output: a symbolic link"),
    "loop": (lambda path, _: path.symlink_to(path.name), "unsafe output: a symbolic link"),
    "magic link": (lambda path, _: path.symlink_to("/proc/self/environ"), "unsafe output: a symbolic link"),
    "hard link": (lambda path, canary: os.link(canary, path), "unsafe output: a hard link"),
    "FIFO": (lambda path, _: os.mkfifo(path), "unsafe output: a FIFO"),
    "directory": (lambda path, _: path.mkdir(), "unsafe output: a directory"),
    "socket": (lambda path, _: bind(path), "unsafe output: a socket"),
}


def bind(path: Path) -> None:
    # A socket's address has at most 107 bytes, a temporary directory may have more.
    parent = os.open(path.parent, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"/proc/self/fd/{parent}/{path.name}")
    os.close(parent)


def test_half_written_files_of_the_helpers_are_no_output_files(workspace: Workspace) -> None:
    for name in (".output.json.1a2b.tmp", ".condition.json.x.tmp", ".mine.tmp", "output.json.tmp"):
        (workspace.output / name).write_text("x")

    assert sorted(gather(workspace).output.files) == [".mine.tmp", "output.json.tmp"]


@pytest.mark.parametrize("file", ["output/output.json", "output/condition.json", "data/variables.json"])
@pytest.mark.parametrize(("make", "message"), WRONG.values(), ids=WRONG.keys())
def test_a_wrong_file_is_a_typed_error_and_the_rest_is_collected(
    workspace: Workspace, canary: Path, file: str, make: Callable[[Path, Path], object], message: str
) -> None:
    others = {"output/output.json": "1", "output/condition.json": '{"result": true}', "data/variables.json": "{}"}
    for other in others.keys() - {file}:
        (workspace.root / other).write_text(others[other])
    (workspace.output / "other").write_text("x")
    make(workspace.root / file, canary)
    collected = gather(workspace, output_json_bytes=1000, condition_json_bytes=1000, variables_file_bytes=1000)
    [error] = collected.errors
    name = file.partition("/")[2]
    assert error.details["file"] == name
    assert name in str(error)
    assert message in str(error)
    assert (error.type, error.retryable) == ("output", False)
    assert collected.output == Output(
        data=None if name == "output.json" else 1,
        condition=None if name == "condition.json" else True,
        files={"other": collected.output.files["other"]},
    )
    assert not collected.notes
    for secret in ("CANARY", "PATH=", str(workspace.root)):
        assert secret not in everything(collected)


@pytest.mark.parametrize(
    "value",
    [
        '"false"',
        "0",
        "null",
        "[]",
        "true",
        "{}",
        '{"result": "true"}',
        '{"result": 1}',
        '{"result": null}',
        '{"result": true, "x": 1}',
    ],
)
def test_a_condition_is_a_strict_boolean(workspace: Workspace, value: str) -> None:
    (workspace.output / "condition.json").write_text(value)
    collected = gather(workspace)
    assert collected.output.condition is None
    assert [error.details["file"] for error in collected.errors] == ["condition.json"]


@pytest.mark.parametrize("value", ["[]", "null", '"x"', "1"])
def test_variables_are_an_object(workspace: Workspace, value: str) -> None:
    (workspace.data / "variables.json").write_text(value)
    collected = gather(workspace)
    assert collected.output.variables == {}
    assert "must be a JSON object" in str(collected.errors[0])


@pytest.mark.parametrize(("length", "fits"), [(92, True), (93, False)])
def test_variables_are_measured_as_compact_json(workspace: Workspace, length: int, fits: bool) -> None:
    variables = {"a": "é" * (length // 2) + "x" * (length % 2)}
    (workspace.data / "variables.json").write_text(json.dumps(variables, indent=100))
    collected = gather(workspace, variables_json_bytes=100)
    assert collected.output.variables == (variables if fits else {})
    assert [str(error) for error in collected.errors] == (
        [] if fits else ["variables.json has 101 bytes as JSON, at most 100 are allowed"]
    )


@pytest.mark.parametrize(("size", "fits"), [(1000, True), (1001, False)])
def test_output_json_up_to_its_limit(workspace: Workspace, size: int, fits: bool) -> None:
    (workspace.output / "output.json").write_text(json.dumps("x" * (size - 2)))
    collected = gather(workspace, output_json_bytes=1000)
    assert (collected.output.data is not None, not collected.errors) == (fits, fits)


# other files


def test_links_and_special_files_are_noted_and_not_followed(workspace: Workspace, canary: Path) -> None:
    output = workspace.output
    (output / "link").symlink_to(canary)
    (output / "directory").symlink_to(canary.parent)
    (output / "environ").symlink_to("/proc/self/environ")
    os.link(canary, output / "hard")
    (output / "one").write_text("x")
    os.link(output / "one", output / "two")
    os.mkfifo(output / "fifo")
    bind(output / "socket")
    (output / "kept").write_text("kept")
    collected = gather(workspace)
    assert list(collected.output.files) == ["kept"]
    notes = " ".join(collected.notes)
    for part in ("a symbolic link, not", "'link'", "'directory'", "'environ'", "a hard link, not", "'hard'"):
        assert part in notes
    for part in ("'one'", "'two'", "a FIFO, not collected: 'fifo'", "a socket, not collected: 'socket'"):
        assert part in notes
    for secret in ("CANARY", "PATH="):
        assert secret not in everything(collected)


@pytest.mark.parametrize("swapped", ["link", "directory link", "fifo"])
def test_what_changes_between_listing_and_opening_is_not_followed(
    workspace: Workspace, canary: Path, monkeypatch: pytest.MonkeyPatch, swapped: str
) -> None:
    (workspace.output / "d").mkdir()
    victim = workspace.output / "d" / "canary"
    victim.write_text("x")
    original = walk.Lister.run

    def run(lister: walk.Lister) -> list[bytes]:
        found = original(lister)
        victim.unlink()
        if swapped == "link":
            victim.symlink_to(canary)
        elif swapped == "fifo":
            os.mkfifo(victim)
        else:
            victim.parent.rmdir()
            victim.parent.symlink_to(canary.parent)
        return found

    monkeypatch.setattr(walk.Lister, "run", run)
    if swapped == "directory link":
        with pytest.raises(NotADirectoryError):
            gather(workspace)
        return
    collected = gather(workspace)
    assert collected.output.files == {}
    assert len(collected.notes) == 1


def test_a_file_that_becomes_a_link_after_its_check_is_not_followed(
    workspace: Workspace, canary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    victim = workspace.output / "output.json"
    victim.write_text("1")
    checked = victim.stat()
    victim.unlink()
    victim.symlink_to(canary)
    original = os.stat

    def stat(path: object, **arguments: Any) -> os.stat_result:
        return checked if path == b"output.json" else original(path, **arguments)  # type: ignore[call-overload]

    monkeypatch.setattr(os, "stat", stat)
    collected = gather(workspace)
    assert "unsafe output" in str(collected.errors[0])
    assert "CANARY" not in everything(collected)


@pytest.mark.parametrize("kind", ["fifo", "hard link"])
def test_the_open_file_is_judged_not_the_name(
    workspace: Workspace, canary: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    victim = workspace.output / "output.json"
    victim.write_text("1")
    checked = victim.stat()
    victim.unlink()
    if kind == "fifo":
        os.mkfifo(victim)
    else:
        os.link(canary, victim)
    original = os.stat
    monkeypatch.setattr(os, "stat", lambda path, **rest: checked if path == b"output.json" else original(path, **rest))
    collected = gather(workspace)
    assert "unsafe output: a" in str(collected.errors[0])
    assert "CANARY" not in everything(collected)


def test_files_of_another_owner_are_noted(workspace: Workspace) -> None:
    for name in ("other", "output.json"):
        (workspace.output / name).write_text('"CANARY"')
        os.chown(workspace.output / name, 1234, 1234)
    collected = gather(workspace)
    assert collected.output.files == {}
    assert "owned by another user" in str(collected.errors[0])
    assert collected.notes == ("owned by another user, not collected: 'other'",)
    assert "CANARY" not in everything(collected)


def test_files_of_the_containers_user_are_collected_by_root(tmp_path: Path) -> None:
    workspace = create(tmp_path, "job-1", uid=1234, gid=1234)
    (workspace.output / "file").write_text("x")
    (workspace.output / "file").chmod(0)
    (workspace.output / "closed").mkdir()
    (workspace.output / "closed" / "file").write_text("y")
    os.chown(workspace.output / "file", 1234, 1234)
    os.chown(workspace.output / "closed" / "file", 1234, 1234)
    (workspace.output / "closed").chmod(0)
    collected = collect(workspace, Limits(), owner_uid=1234)
    assert list(collected.output.files) == ["file", "closed/file"]
    assert collected.notes == ()


def test_closed_files_and_directories_without_roots_powers(unprivileged: Path) -> None:
    workspace = create(unprivileged, "job-1", uid=os.geteuid(), gid=os.getegid())
    for name in ("output.json", "kept", "file"):
        (workspace.output / name).write_text("1")
    (workspace.output / "output.json").chmod(0)
    (workspace.output / "file").chmod(0)
    for mode in (0o000, 0o400):
        (workspace.output / f"{mode:o}").mkdir()
        (workspace.output / f"{mode:o}" / "file").write_text("1")
        (workspace.output / f"{mode:o}").chmod(mode)
    workspace.output.chmod(0)
    workspace.data.chmod(0)
    collected = gather(workspace)
    assert list(collected.output.files) == ["kept"]
    assert "not readable" in str(collected.errors[0])
    assert len(collected.notes) == 2
    assert all("not readable" in note for note in collected.notes)


def test_another_mount_is_not_entered(workspace: Workspace, canary: Path, mounted: Callable[..., None]) -> None:
    (workspace.output / "bound").mkdir()
    (workspace.output / "file").touch()
    mounted(workspace.output / "bound", "--bind", str(canary.parent))
    mounted(workspace.output / "file", "--bind", str(canary))
    collected = gather(workspace)
    assert collected.output.files == {}
    assert collected.notes == (
        "on another device, not collected: 'bound'",
        "on another device, not collected: 'file'",
    ) or set(" ".join(collected.notes).split("'")) >= {"bound", "file"}
    assert "CANARY" not in everything(collected)


# limits


def test_a_file_over_a_limit_stays_with_size_and_checksum(workspace: Workspace) -> None:
    sizes = {"a": 100, "b": 101, "c": 100, "d": 60, "e": 40}
    for name, size in sizes.items():
        (workspace.output / name).write_bytes(name.encode() * size)
    collected = gather(workspace, file_inline_bytes=100, total_inline_bytes=250)
    files = collected.output.files
    assert {name: file.size for name, file in files.items()} == sizes
    for name, size in sizes.items():
        assert files[name].sha256 == hashlib.sha256(name.encode() * size).hexdigest()
    assert [name for name, file in files.items() if file.content is None] == ["b", "d"]
    assert collected.notes == (
        "over 100 bytes: without content: 'b'",
        "over 250 bytes in all: without content: 'd'",
    )


def test_a_sparse_file_costs_neither_time_nor_memory(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    read_bytes = 0
    original = walk.os.read

    def read(descriptor: int, count: int) -> bytes:
        nonlocal read_bytes
        data = original(descriptor, count)
        read_bytes += len(data)
        return data

    monkeypatch.setattr(walk.os, "read", read)
    for name, size in {"a": 2**40, "b": 3 * 2**20}.items():
        (workspace.output / name).touch()
        os.truncate(workspace.output / name, size)
    (workspace.output / "c").write_text("x")
    tracemalloc.start()
    collected = gather(workspace, file_inline_bytes=1000, hash_total_bytes=4 * 2**20)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    files = collected.output.files
    assert (files["a"].size, files["a"].sha256, files["a"].content) == (2**40, "", None)
    assert files["b"].sha256 == hashlib.sha256(bytes(3 * 2**20)).hexdigest()
    assert content(collected, "c") == b"x"
    assert collected.notes[0].endswith("without content and checksum: 'a'")
    assert peak < 4 * 2**20
    assert read_bytes == 3 * 2**20 + 1


@pytest.mark.parametrize("change", [+5, -5])
def test_a_file_that_changes_while_it_is_read_is_typed_and_bounded(
    workspace: Workspace, monkeypatch: pytest.MonkeyPatch, change: int
) -> None:
    for name in ("output.json", "file"):
        (workspace.output / name).write_text('"12345678"')
    original = walk.os.read

    def read(descriptor: int, count: int) -> bytes:
        data = original(descriptor, count)
        return data + b"1" * change if data and change > 0 else data[:change]

    monkeypatch.setattr(walk.os, "read", read)
    collected = gather(workspace)
    assert "changed while it was read" in str(collected.errors[0])
    assert collected.output.files["file"].content is None
    assert "changed while it was read" in collected.notes[0]


def test_a_file_that_never_ends_is_bounded(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    (workspace.output / "file").write_text("x")
    (workspace.output / "output.json").write_text("1")
    monkeypatch.setattr(walk.os, "read", lambda _, count: b"1" * count)
    collected = gather(workspace, hash_total_bytes=10 * 2**20)
    assert (collected.output.files["file"].sha256, collected.output.files["file"].content) == ("", None)
    assert "is over" in str(collected.errors[0])


def test_the_first_files_by_depth_and_name_are_collected_and_the_others_counted(workspace: Workspace) -> None:
    (workspace.output / "A").mkdir()
    fill(workspace.output / "A", 30)
    fill(workspace.output, 50)
    collected = gather(workspace, files=20)
    assert list(collected.output.files) == [f"f{number:07}" for number in range(20)]
    assert collected.notes == ("more than 20 files: 60 others are not collected",)
    assert len(gather(workspace, files=80).output.files) == 80
    assert gather(workspace, files=80).notes == ()


def test_a_hundred_thousand_files(quick_workspace: Workspace) -> None:
    fill(quick_workspace.output, 100_000)
    peaks = []
    for _ in range(2):  # in one of them the interpreter's own table of names may grow, by 4 MiB
        tracemalloc.start()
        collected = gather(quick_workspace)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert list(collected.output.files) == [f"f{number:07}" for number in range(1000)]
    assert collected.notes == ("more than 1000 files: 99000 others are not collected",)
    assert min(peaks) < 4 * 2**20


def test_bounds_of_the_listing(workspace: Workspace) -> None:
    for number in range(20):
        (workspace.output / f"d{number:02}").mkdir()
        (workspace.output / f"d{number:02}" / "file").touch()
    collected = gather(workspace, directories=5)
    assert len(collected.output.files) == 4
    assert "more than 5 directories, not collected: " in collected.notes[0]
    assert collected.notes[0].endswith("and 11 more")
    collected = gather(workspace, entries=25)
    assert len(collected.output.files) == 5
    assert "the listing was ended after 25 names" in collected.notes[0]
    collected = gather(workspace, duration_s=-1.0)
    assert "the listing was ended after 0 names" in collected.notes[0]


def test_no_checksum_after_the_deadline(workspace: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    (workspace.output / "file").write_text("x")
    clock = iter([0.0, 1.0, 100.0])
    monkeypatch.setattr(walk.time, "monotonic", lambda: next(clock))
    collected = gather(workspace, duration_s=50.0)
    assert (collected.output.files["file"].size, collected.output.files["file"].sha256) == (1, "")
    assert "out of time" in collected.notes[0]


def test_deep_trees_need_few_descriptors(quick_workspace: Workspace) -> None:
    chain(quick_workspace.output, 3000, leaf=b"x")
    (quick_workspace.output / "e").mkdir()
    chain(quick_workspace.output / "e", 99, leaf=b"found")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    highest = max(int(name) for name in os.listdir("/proc/self/fd"))  # noqa: PTH208
    resource.setrlimit(resource.RLIMIT_NOFILE, (highest + 12, hard))
    try:
        collected = gather(quick_workspace)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert content(collected, "e" + "/d" * 99 + "/leaf") == b"found"
    assert [note[:50] for note in collected.notes] == ["more than 100 directories deep, not collected: 'd/"]


def test_deep_files_are_found_when_the_limits_say_so(quick_workspace: Workspace) -> None:
    chain(quick_workspace.output, 300, leaf=b"found")
    collected = gather(quick_workspace, depth=300)
    assert content(collected, "d/" * 300 + "leaf") == b"found"


def test_a_path_that_nobody_could_open_is_noted(workspace: Workspace) -> None:
    current = workspace.output
    for _ in range(2):
        current /= "x" * 200
        current.mkdir()
    (current / ("y" * 97)).touch()
    (current / ("z" * 98)).touch()
    collected = gather(workspace, path_bytes=499)
    assert [name[-1] for name in collected.output.files] == ["y"]
    assert "a path of more than 499 bytes" in collected.notes[0]


# names

NAMES = {
    b"plain": "plain",
    "é\u202egpj.exe".encode(): "é\u202egpj.exe",
    b"a\nb\x1b[31m": "a\nb\x1b[31m",
    b"-rf": "-rf",
    b"100%.txt": "100%.txt",
    b"a%FF": "a%FF",
    b"a\xff": "./a%FF",
    b"a%\xff/x": "./a%25%FF/x",
    b"\xed\xa0\x80": "./%ED%A0%80",
    b"\xc3\xa9\xc3": "./é%C3",
}


def test_names_are_text_and_reversible(workspace: Workspace) -> None:
    root = os.fsencode(workspace.output)
    for name in NAMES:
        path = Path(os.fsdecode(root + b"/" + name))
        path.parent.mkdir(exist_ok=True)
        with path.open("wb") as file:
            file.write(name)
    collected = gather(workspace)
    for name, text in NAMES.items():
        assert content(collected, text) == name
        assert walk.decode_name(text) == name
    assert len(collected.output.files) == len(NAMES)
    assert Output.model_validate_json(collected.output.model_dump_json()) == collected.output


def test_names_in_notes_cannot_forge_a_line(workspace: Workspace) -> None:
    for number in range(10):
        name = b"\n\x1b[2J\xff\xe2\x80\xae" + b"x" * (20 * number) + str(number).encode()
        (workspace.output / os.fsdecode(name)).symlink_to("x")
    [note] = gather(workspace).notes
    assert note.isprintable()
    assert note.endswith(" and 5 more")
    assert len(note) < 1000


def test_limits_are_those_of_the_contract() -> None:
    mib = 1024 * 1024
    limits = dataclasses.asdict(Limits())
    assert limits["output_json_bytes"] == limits["file_inline_bytes"] == 8 * mib
    assert (limits["total_inline_bytes"], limits["files"], limits["variables_json_bytes"]) == (32 * mib, 1000, mib)


# secrets


@pytest.mark.attack
@pytest.mark.parametrize(
    "limits",
    [{}, {"file_inline_bytes": 3}, {"total_inline_bytes": 3}, {"hash_total_bytes": 3}, {"total_inline_bytes": 0}],
    ids=["inline", "over the file's limit", "over all files' limit", "not read", "nothing inline"],
)
@pytest.mark.parametrize("data", [b"pw42", b"x" * 2**20 + b"cHc0Mg=", b"\n" * 70_000 + b"70\n77 34:32"])
def test_a_file_with_a_secret_has_no_checksum_whatever_its_size(
    workspace: Workspace, limits: dict[str, int], data: bytes
) -> None:
    (workspace.output / "told").write_bytes(data)
    (workspace.output / "z").write_bytes(b"pw 42")

    collected = collect(workspace, Limits(**limits), owner_uid=os.geteuid(), masker=Masker(["pw42"]))

    told, other = collected.output.files["told"], collected.output.files["z"]
    assert (told.size, told.sha256, told.content) == (len(data), "", None)
    if "hash_total_bytes" not in limits:
        assert other.sha256 == hashlib.sha256(b"pw 42").hexdigest()
        assert "holds a secret: without content and checksum: 'told'" in collected.notes


def test_a_secret_across_what_is_read_at_once_is_found(workspace: Workspace) -> None:
    for before in range(2**20 - 20, 2**20 + 2):
        (workspace.output / str(before)).write_bytes(b"." * before + b"correct horse battery staple")

    collected = collect(
        workspace, Limits(total_inline_bytes=0), owner_uid=os.geteuid(), masker=Masker(["correct horse battery staple"])
    )

    assert {file.sha256 for file in collected.output.files.values()} == {""}
