"""A large input is not read by the worker: its text goes from the record into the job's file."""

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from cryptography.fernet import Fernet
from pydantic import ValidationError

from cronium_worker.execution import secrecy
from cronium_worker.models import Job, JobResult, Output, OutputFile
from cronium_worker.models.result import with_ready_outputs
from cronium_worker.policy import admit
from cronium_worker.settings import Settings
from cronium_worker.workspace import Workspace
from cronium_worker.workspace.staging import stage_job

SCRIPT = {"type": "bash", "content": "true"}


def text_of(**fields: Any) -> str:
    return Job.model_validate({"id": "j", "script": SCRIPT, **fields}).to_json(secrets=False)


def staged(workspace: Workspace, job: Job) -> dict[str, bytes]:
    stage_job(workspace, job, attempt=1, host="h", uid=os.geteuid(), gid=os.getegid())
    return {path.name: path.read_bytes() for path in workspace.data.iterdir()}


@pytest.mark.parametrize(
    "fields",
    [
        {"input_data": ["ü", 1.5, None, {"a": []}] * 40_000},
        {"input_data": "x" * 300_000, "environment": {"A": "b"}, "timeout": 5},
        {"script": {"type": "bash", "content": "#" * 300_000}},
        {"input_data": None, "script": {"type": "bash", "content": "#" * 300_000}},
    ],
    ids=["values", "text", "no input", "null"],
)
def test_a_large_job_is_the_same(workspace: Workspace, fields: dict[str, Any]) -> None:
    text, secrets = text_of(**fields), {"S": "s3cret"}
    here = Job.from_record(text, secrets)

    job = admit(secrecy.read_job(text, secrets), Settings(secret_keys=[Fernet.generate_key().decode()]))

    assert job.secrets == secrets
    assert ("input_data" in job.model_fields_set) == ("input_data" in here.model_fields_set)
    assert job.input_json() == here.input_json()
    apart = {"input_data", "resources"}
    assert job.model_dump(exclude=apart) == here.model_dump(exclude=apart)
    assert staged(workspace, job).get("input.json") == (here.input_json() if "input_data" in fields else None)


@pytest.mark.parametrize("size", [10, 300_000])
def test_what_is_no_valid_job_is_refused_as_ever(size: int) -> None:
    text = json.dumps({"id": "j", "script": SCRIPT, "input_data": "x" * size, "of_tomorrow": 1})

    with pytest.raises(ValidationError, match="of_tomorrow"):
        secrecy.read_job(text, {})


@pytest.fixture
def turns() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(0.0005)
    yield
    sys.setswitchinterval(before)


def longest_hold(work: Callable[[], object]) -> float:
    """How long another thread did not come to its turn."""
    longest, ended = 0.0, False

    def look() -> None:
        nonlocal longest
        last = time.perf_counter()
        while not ended:
            time.sleep(0.001)
            now = time.perf_counter()
            longest, last = max(longest, now - last), now

    thread = threading.Thread(target=look)
    thread.start()
    work()
    ended = True
    thread.join()
    return longest


@pytest.mark.attack
@pytest.mark.usefixtures("turns")
def test_an_input_of_many_values_leaves_other_threads_running() -> None:
    text = '{"id":"j","script":{"type":"bash","content":"x"},"input_data":[%s0]}' % ("[]," * 1_000_000)
    secrecy.read_job(text, {})  # the first process starts

    aside = min(longest_hold(lambda: secrecy.read_job(text, {})) for _ in range(3))

    assert aside < longest_hold(lambda: Job.from_record(text, {})) / 4


@pytest.mark.parametrize("condition", [None, True])
def test_a_large_result_is_the_same(condition: bool | None) -> None:
    output = Output(
        data=["ü"] * 100_000, condition=condition, files={"f": OutputFile(size=1, sha256="", content="eA==")}
    )
    text = JobResult(job_id="j", status="completed", output=output, exit_code=0).model_dump_json()

    result = secrecy.read_result(text)

    assert result.is_ready
    assert (result.exit_code, result.output.condition) == (0, condition)
    assert JobResult.model_validate_json(b"".join(result.to_json())) == JobResult.model_validate_json(text)


def test_celerys_copy_of_a_large_result_is_the_whole_one() -> None:
    from cronium_worker.errors import JobFailed
    from cronium_worker.tasks import app

    output = Output(data=["ü"] * 100_000)
    text = JobResult(job_id="j", status="failed", output=output).model_dump_json()
    failed = JobFailed(secrecy.read_result(text))

    error = app.backend.prepare_exception(failed)
    encoded = app.backend.encode({"status": "FAILURE", "result": error, "children": [], "task_id": "t"})
    stored = b"".join(with_ready_outputs(encoded.encode()))

    read = app.backend.exception_to_python(app.backend.decode(stored)["result"])
    assert isinstance(read, JobFailed)
    assert read.result == JobResult.model_validate_json(text)
    assert len(stored) < len(text.encode()) + 500
    assert len(app.backend.encode([1, "a part of a chord", "FAILURE", error])) > len(text.encode())


@pytest.mark.parametrize("notes", [(), ("one",), ('a "quoted", one]}', "two")])
def test_a_large_result_may_have_more_notes(notes: tuple[str, ...]) -> None:
    output = Output(data=["ü"] * 100_000, notes=notes)
    result = secrecy.read_result(JobResult(job_id="j", status="completed", output=output).model_dump_json())
    more = ('a "quoted", one]}', "and ü")

    noted = result.output.model_copy(update={"notes": (*result.output.notes, *more)})
    result = result.model_copy(update={"output": noted})

    read = JobResult.model_validate_json(b"".join(result.to_json()))
    assert read.output == output.model_copy(update={"notes": notes + more})
