"""What of an output has room in a result."""

import pytest

from cronium_worker.models import JobResult, Output, OutputFile
from cronium_worker.models.fields import MIB
from cronium_worker.workspace.bounds import DATA_BYTES, NAMES_BYTES, VARIABLES_BYTES, bounded
from cronium_worker.workspace.collection import Limits

pytestmark = pytest.mark.attack


def file(content: int) -> OutputFile:
    return OutputFile(size=content, sha256="0" * 64, content="A" * content)


def test_the_largest_output_is_left_as_it_is() -> None:
    content = Limits().total_inline_bytes // Limits().files * 4 // 3
    names = {f"{number:05}" + "\x7f" * 1000: file(content) for number in range(Limits().files)}
    output = Output(data="ä" * (DATA_BYTES // 2 - 1), variables={"v": "x" * (VARIABLES_BYTES - 8)}, files=names)

    assert bounded(output).output is output
    result = JobResult(job_id="j", status="completed", output=output)
    assert sum(map(len, result.to_json())) < 54 * MIB


def test_names_have_a_bound_of_their_own() -> None:
    names = [f"{number:05}" + "\x01" * 3000 for number in range(1000)]

    found, _ = bounded(Output(files=dict.fromkeys(names, file(1))))

    assert list(found.files) == names[: len(found.files)]
    assert len(found.files) == NAMES_BYTES // (5 + 6 * 3000 + 2)
    assert found.notes[0].startswith(f"names over {NAMES_BYTES} bytes in all: not collected: ")
    assert found.notes[0].endswith("more")


def test_what_is_longer_in_the_result_than_the_script_wrote_it_is_an_error() -> None:
    found, errors = bounded(Output(data=[9e15] * (DATA_BYTES // 10), variables={"v": [9e15] * 100_000}))

    assert (found.data, found.variables) == (None, {})
    assert [error.details["file"] for error in errors] == ["output.json", "variables.json"]
    assert f"at most {DATA_BYTES} are allowed" in str(errors[0])
