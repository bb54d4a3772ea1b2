"""What of an output has room in a result."""

import pytest
from kombu.utils.json import dumps

from cronium_worker.models import JobResult, Output, OutputFile
from cronium_worker.models.fields import MIB
from cronium_worker.workspace.bounds import DATA_BYTES, NAMES_BYTES, RESULT_BYTES, VARIABLES_BYTES, bounded

pytestmark = pytest.mark.attack


def file(content: int) -> OutputFile:
    return OutputFile(size=content, sha256="0" * 64, content="A" * content)


def celery_copy(output: Output) -> int:
    return len(dumps(JobResult(job_id="j", status="completed", output=output)))


def test_an_ordinary_output_is_left_as_it_is() -> None:
    output = Output(data={"a": [1, 2.5, "ü"]}, variables={"b": None}, files={"c": file(8 * MIB)}, notes=("n",))

    assert bounded(output) == (output, ())
    assert bounded(output).output is output


def test_all_inline_files_with_all_plain_data_are_kept() -> None:
    output = Output(data="x" * (DATA_BYTES - 2), files={name: file(10 * MIB) for name in "abcd"})

    assert bounded(output) == (output, ())
    assert celery_copy(output) < RESULT_BYTES


@pytest.mark.parametrize("character", ["\x7f", "ä", "\U0001f600"])
def test_whatever_the_text_celerys_copy_has_a_bound(character: str) -> None:
    width = len(character.encode())
    names = {f"{number:05}{character * (900 // width)}": file(40_000) for number in range(1000)}
    output = Output(
        data=character * ((DATA_BYTES - 2) // width),
        variables={"v": character * ((VARIABLES_BYTES - 8) // width)},
        files=names,
    )

    found, errors = bounded(output)

    assert errors == ()
    assert (found.data, list(found.files)) == (output.data, list(names))
    assert any(each.content is None for each in found.files.values())
    assert RESULT_BYTES - MIB < celery_copy(found) < RESULT_BYTES
    assert [note.partition(":")[0] for note in found.notes] == [f"the result would be over {RESULT_BYTES} bytes"]


def test_names_have_a_bound_of_their_own() -> None:
    names = [f"{number:05}" + "\x01" * 3000 for number in range(1000)]

    found, _ = bounded(Output(files=dict.fromkeys(names, file(1))))

    assert list(found.files) == names[: len(found.files)]
    assert NAMES_BYTES - 20_000 < len(dumps(list(found.files))) < NAMES_BYTES + 1000
    assert found.notes[0].startswith(f"names over {NAMES_BYTES} bytes in all: not collected: ")
    assert found.notes[0].endswith("more")


def test_numbers_that_are_longer_in_the_result_are_an_error() -> None:
    found, errors = bounded(Output(data=[9e15] * (DATA_BYTES // 10), variables={"v": [9e15] * 100_000}))

    assert (found.data, found.variables) == (None, {})
    assert [error.details["file"] for error in errors] == ["output.json", "variables.json"]
    assert f"at most {DATA_BYTES} are allowed" in str(errors[0])
