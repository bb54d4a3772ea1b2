"""The marks at the end of the output: taken out, wherever the pieces are cut; what only looks like one stays."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cronium_worker.execution.endmarks import EndMarks

MARK = b"\x1ef00\x1e"


def cut(data: bytes, size: int) -> list[bytes]:
    return [data[at : at + size] for at in range(0, len(data), size)]


def shown(marks: EndMarks, pieces: list[bytes]) -> bytes:
    return b"".join(marks.feed("stdout", piece) for piece in pieces)


@pytest.mark.parametrize("size", range(1, 12))
@pytest.mark.parametrize("output", [b"", b"hi\n", b"\x1e", b"\x1e\x1e", b"\x1ef0", b"\x1ef0\x1ef00", b"a\x1ef00\x1eb"])
def test_what_is_before_the_mark_is_shown(output: bytes, size: int) -> None:
    marks = EndMarks(MARK)

    assert shown(marks, cut(output + MARK, size)) == output
    assert not marks.seen
    assert marks.feed("stderr", MARK) == b""
    assert marks.seen
    assert marks.rest() == []


@pytest.mark.parametrize("output", [b"\x1e", b"x\x1ef00", MARK + b"more", MARK + MARK[:3], MARK + b"\n"])
def test_what_is_no_mark_is_shown_at_the_end(output: bytes) -> None:
    marks = EndMarks(MARK)
    marks.feed("stderr", MARK)
    before = shown(marks, [output])

    assert not marks.seen
    assert before + b"".join(rest for _, rest in marks.rest()) == output


def test_a_mark_that_a_script_has_printed_itself_is_output() -> None:
    marks = EndMarks(MARK)

    assert shown(marks, [MARK, MARK]) == MARK
    assert marks.rest() == []


def test_what_is_read_again_is_not_shown_twice() -> None:
    marks = EndMarks(MARK)
    assert shown(marks, [b"a\x1ef"]) == b"a"
    marks.forget()

    assert shown(marks, [b"a\x1ef\n"]) == b"a\x1ef\n"


@given(st.lists(st.binary(max_size=4) | st.sampled_from([MARK, MARK[:2], MARK[:1], MARK[2:]]), max_size=12))
def test_nothing_is_lost_or_invented(pieces: list[bytes]) -> None:
    marks = EndMarks(MARK)
    text, whole = shown(marks, pieces), b"".join(pieces)
    rest = b"".join(held for _, held in marks.rest())

    assert text + rest == (whole.removesuffix(MARK) if whole.endswith(MARK) else whole)
