"""What is done for a job aside: in a process of its own that has no key of the fleet."""

import hashlib
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from unittest.mock import ANY

import psutil
import pytest

from cronium_worker.execution import aside, secrecy
from cronium_worker.execution.secrecy import JobMasker
from cronium_worker.masking import MASK, Masker
from cronium_worker.models import JobResult, Output
from cronium_worker.models.result import with_ready_outputs
from cronium_worker.workspace import Limits, Workspace, collect
from tests.unit.workspace.trees import descriptors

NESTED = "\n".join("a" * length for length in range(1, 290))
SECRET = "hunter2-Tr0ub4dor"


@pytest.fixture
def masker() -> Iterator[JobMasker]:
    masker = JobMasker((SECRET,))
    yield masker
    masker.close()


def gather(masker: JobMasker, workspace: Workspace) -> JobResult:
    output, errors = masker.collect(workspace, owner_uid=os.geteuid())
    status = "failed" if errors else "completed"
    return JobResult(job_id="j", status=status, output=output, error=errors[0] if errors else None)


def whole(result: JobResult) -> Output:
    return JobResult.model_validate_json(b"".join(result.to_json())).output


def of_the_job() -> psutil.Process:
    first = next(child for child in psutil.Process().children() if "aside_process" in " ".join(child.cmdline()))
    (process,) = first.children()
    return process


def fill(workspace: Workspace) -> None:
    (workspace.output / "output.json").write_text(json.dumps({"rows": [SECRET, "ü"] * 20_000, "n": 1.5}))
    (workspace.output / "condition.json").write_text('{"result": true}')
    (workspace.output / "big").write_bytes(b"x" * 500_000)
    (workspace.output / "small").write_bytes(SECRET.encode())
    (workspace.data / "variables.json").write_text(json.dumps({"s": SECRET}))


def test_a_large_output_is_the_same_as_one_collected_here(workspace: Workspace, masker: JobMasker) -> None:
    fill(workspace)
    here = collect(workspace, Limits(), owner_uid=os.geteuid(), masker=Masker([SECRET])).output

    result = gather(masker, workspace)
    output = whole(result)

    assert result.is_ready
    assert output.data == {"rows": [MASK, "ü"] * 20_000, "n": 1.5}
    assert (output.variables, output.condition) == ({"s": MASK}, True)
    assert output.files == here.files
    assert SECRET.encode() not in b"".join(result.to_json())
    assert output.notes == ("holds a secret: without content and checksum: 'small'",)


def test_the_event_of_a_large_output_has_all_but_the_contents(workspace: Workspace, masker: JobMasker) -> None:
    fill(workspace)
    result = gather(masker, workspace)

    event = with_ready_outputs(json.dumps(result.without_contents()).encode(), contents=False)

    assert json.loads(b"".join(event)) == JobResult.model_validate_json(b"".join(result.to_json())).without_contents()


def test_small_outputs_are_collected_here(workspace: Workspace, masker: JobMasker) -> None:
    (workspace.output / "output.json").write_text(json.dumps([SECRET]))
    (workspace.output / "file").write_bytes(b"x" * 10_000)

    result = gather(masker, workspace)

    assert result.output.data == [MASK]
    assert result.output.files["file"].sha256 == hashlib.sha256(b"x" * 10_000).hexdigest()
    assert masker._aside._connection is None


@pytest.mark.attack
def test_many_small_files_are_collected_aside(workspace: Workspace, masker: JobMasker) -> None:
    for number in range(600):
        (workspace.output / str(number)).touch()

    output, _ = masker.collect(workspace, owner_uid=os.geteuid())

    assert masker._aside._connection is not None
    assert len(output.files) == 600


@pytest.mark.attack
def test_the_process_has_no_key_and_no_descriptor_of_the_worker(
    workspace: Workspace, masker: JobMasker, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SECRET_KEYS", "SIGNING_KEYS", "REDIS_URL", "WEB__TOKENS"):
        monkeypatch.setenv(f"CRONIUM_{name}", "of-the-fleet")
    aside._first.end()  # one that was started before
    fill(workspace)
    gather(masker, workspace)

    for process in (of_the_job(), of_the_job().parent()):
        assert process is not None
        assert b"CRONIUM" not in Path(f"/proc/{process.pid}/environ").read_bytes()
        names = [str(link.readlink()) for link in Path(f"/proc/{process.pid}/fd").iterdir()]
        assert len([name for name in names if name.startswith("socket:")]) == 1
        assert not [line for line in Path(f"/proc/{process.pid}/maps").read_text().splitlines() if "redis" in line]
    assert of_the_job().nice() >= psutil.Process().nice() + 10 or of_the_job().nice() == 19
    autogroup = Path(f"/proc/{of_the_job().pid}/autogroup")
    assert not autogroup.exists() or autogroup.read_text().split() in ([], [ANY, "nice", "10"])


def test_what_it_has_loaded_is_not_the_fleets() -> None:
    from tests.unit.test_imports import loaded_by

    loaded = loaded_by("import cronium_worker.execution.aside_process")

    assert not loaded & {"cronium_worker.settings", "redis", "docker", "celery", "cryptography"}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_after_the_death_of_the_process_another_does_it(
    workspace: Workspace, masker: JobMasker, number: signal.Signals
) -> None:
    fill(workspace)
    before = whole(gather(masker, workspace))
    of_the_job().send_signal(number)

    assert whole(gather(masker, workspace)) == before


def test_after_the_death_of_all_processes_others_do_it(workspace: Workspace, masker: JobMasker) -> None:
    fill(workspace)
    before = whole(gather(masker, workspace))
    first = of_the_job().parent()
    assert first is not None
    of_the_job().kill()
    first.kill()

    assert whole(gather(masker, workspace)) == before


def test_a_process_that_always_ends_is_a_typed_error(
    workspace: Workspace, masker: JobMasker, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(workspace)
    monkeypatch.setattr(aside, "send", lambda *_: (_ for _ in ()).throw(BrokenPipeError))

    result = gather(masker, workspace)

    assert result.output == Output()
    assert result.error is not None
    assert result.error.type == "output"


def test_a_process_that_does_not_answer_is_a_typed_error(
    workspace: Workspace, masker: JobMasker, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(workspace)
    gather(masker, workspace)
    process = of_the_job()
    process.suspend()
    monkeypatch.setattr(secrecy, "_COLLECT_S", 0.2)
    monkeypatch.setattr(aside, "_TRIES", 1)

    error = gather(masker, workspace).error
    process.kill()

    assert error is not None
    assert error.type == "output"


def test_a_fault_of_the_host_is_told(workspace: Workspace, masker: JobMasker) -> None:
    fill(workspace)
    gather(masker, workspace)

    with pytest.raises(OSError, match="No such file"):
        masker._aside.ask("collect", str(workspace.root / "gone"), Limits(), 0, timeout_s=20)


def test_a_job_that_ends_takes_its_process_with_it(workspace: Workspace, masker: JobMasker) -> None:
    fill(workspace)
    gather(masker, workspace)
    process = of_the_job()

    masker.close()

    process.wait(timeout=10)


def test_the_processes_end_with_the_worker(workspace: Workspace) -> None:
    fill(workspace)
    read, write = os.pipe()
    if (worker := os.fork()) == 0:
        aside._first = aside._First()
        mine = JobMasker((SECRET,))
        mine.collect(workspace, owner_uid=os.geteuid())
        of_them = [child.pid for child in psutil.Process().children(recursive=True)]
        os.write(write, json.dumps(of_them).encode())
        time.sleep(60)
    processes = [psutil.Process(pid) for pid in json.loads(os.read(read, 1000))]

    os.kill(worker, signal.SIGKILL)
    os.waitpid(worker, 0)

    assert len(processes) == 2
    for process in processes:
        process.wait(timeout=10)


def test_descriptors_are_closed(workspace: Workspace) -> None:
    fill(workspace)
    before = 0

    for _ in range(3):
        masker = JobMasker((SECRET,))
        masker.collect(workspace, owner_uid=os.geteuid())
        masker.close()
        before = before or descriptors()

    assert descriptors() <= before


@pytest.mark.attack
@pytest.mark.parametrize("secrets", [(NESTED,), ("a", "aa", "aaa")], ids=["large", "small"])
def test_a_log_that_takes_long_to_mask_leaves_other_threads_running(secrets: tuple[str, ...]) -> None:
    masker = JobMasker(secrets)
    stream = masker.stream()
    stream.feed(b"a" * 100_000)  # found to be slow
    took, ended = 0.0, threading.Event()

    def print_much() -> None:
        nonlocal took
        started = time.thread_time()
        for _ in range(8):
            assert stream.feed(b"a" * 65536) in {b"", MASK.encode()}
        took = time.thread_time() - started
        ended.set()

    threading.Thread(target=print_much).start()
    assert ended.wait(60)

    assert stream.feed(b"b") + stream.finish() == b"b"
    assert took < 0.1  # here half a MiB takes a tenth of a second at the very least
    masker.close()


@pytest.mark.parametrize("size", [1, 1000, 20_000])
def test_a_log_is_masked_alike_here_and_aside(size: int) -> None:
    data = f"a {SECRET} b {SECRET[:7]}\n".encode() * 1000
    masker, here = JobMasker((SECRET, NESTED)), Masker((SECRET, NESTED)).stream()
    stream, out = masker.stream(), b""

    for at in range(0, min(len(data), 200 * size), size):
        out += stream.feed(data[at : at + size])
        if at == 50 * size:
            of_the_job().kill()

    expected = b"".join(here.feed(data[at : at + size]) for at in range(0, min(len(data), 200 * size), size))
    assert out + stream.finish() == expected + here.finish()
    masker.close()


def test_messages_are_masked_alike_here_and_aside() -> None:
    masker, here = JobMasker((SECRET, NESTED)), Masker((SECRET, NESTED))

    assert masker.message(f"not {SECRET} but {SECRET[:9]}…") == here.message(f"not {SECRET} but {SECRET[:9]}…")
    assert masker.json({"aaaa": [SECRET, 1]}) == {MASK: [MASK, 1]}
    masker.close()
