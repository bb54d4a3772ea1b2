"""A log that is read again from its first byte: what was given out is skipped, the rest is whole."""

import re
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cronium_worker.execution.joblog import JobLog
from cronium_worker.masking import Masker
from cronium_worker.models import Stream

_quick = settings(deadline=None, database=None, max_examples=150)
SECRET = "sesame"
_texts = st.lists(st.sampled_from(["a", "ü\n", "\n", SECRET, SECRET[:3], "€ ", "sesam\n"]), max_size=12).map("".join)
_cuts = st.lists(st.integers(0, 100), max_size=6)


class Paper:
    """Takes what a LogWriter would write, and keeps the offsets as the record does."""

    def __init__(self, room: int = 10**6) -> None:
        self.room = room
        self.text: dict[Stream, str] = {"stdout": "", "stderr": ""}
        self.offsets: dict[Stream, int] = {"stdout": 0, "stderr": 0}

    @property
    def full(self) -> bool:
        return self.room == 0

    def put(self, stream: Stream, text: str, *, offset: int) -> int:
        kept, self.room = text[: self.room], max(0, self.room - len(text))
        self.text[stream] += kept
        self.offsets[stream] = offset
        return len(kept)


class Worker:
    """A worker's log; the next worker's goes on with the same paper."""

    def __init__(self, paper: Paper, **more: Any) -> None:
        self.gaps: list[str] = []
        writer: Any = paper
        start = dict(paper.offsets)
        self.log = JobLog(writer, Masker([SECRET]), start=start, on_gap=self.gaps.append, **more)

    def read(self, data: bytes, cuts: list[int] = [], stream: Stream = "stdout") -> "Worker":  # noqa: B006
        edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
        for start, end in pairwise(edges):
            self.log.feed(stream, data[start:end])
        return self


def masked(text: str) -> str:
    return re.sub(f"({SECRET})+", "***", text)


def one_mask(text: str) -> str:
    """Secrets side by side have one mask; where a worker takes over between them, two."""
    return re.sub(r"(\*\*\*)+", "***", text)


@_quick
@given(_texts, _cuts, _cuts, st.lists(st.integers(0, 100), max_size=3))
def test_adopted_wherever_it_stood_nothing_is_lost_or_twice(
    text: str, cuts: list[int], more_cuts: list[int], left_at: list[int]
) -> None:
    paper, data = Paper(), text.encode()
    for at in sorted(at % (len(data) + 1) for at in left_at):
        Worker(paper).read(data[:at], cuts)  # and is killed
    worker = Worker(paper).read(data, more_cuts)
    worker.log.source_ended()
    summary = worker.log.finish()

    assert one_mask(paper.text["stdout"]) == masked(text)
    assert summary.bytes == len(data)
    assert summary.lines == len(text.split("\n")) - text.endswith("\n") - (text == "")
    assert worker.gaps == []


@_quick
@given(_texts, _cuts, st.lists(st.integers(0, 100), max_size=3))
def test_read_again_wherever_it_broke(text: str, cuts: list[int], broken_at: list[int]) -> None:
    paper, data = Paper(), text.encode()
    worker = Worker(paper)
    for at in broken_at:
        worker.read(data[: at % (len(data) + 1)], cuts).log.rewind()
    worker.read(data, cuts).log.source_ended()
    summary = worker.log.finish()

    assert one_mask(paper.text["stdout"]) == masked(text)
    assert summary.bytes == len(data)
    assert worker.gaps == []


@pytest.mark.parametrize("after", [b"end\nnext\n", b"2xend\nnext\n", b"\n"])
@pytest.mark.parametrize("before", [b"one\n", b"many\n" * 30_000], ids=["a line", "more than a line can have"])
def test_an_unfinished_line_that_the_engine_lost_is_kept_and_told(before: bytes, after: bytes) -> None:
    paper = Paper()
    worker = Worker(paper).read(before + b"2 ")
    worker.log.rewind()
    worker.read(before)
    for byte in after:
        worker.log.feed("stdout", bytes([byte]))
    worker.log.rewind()
    worker.read(before + after + b"last").log.source_ended()
    summary = worker.log.finish()

    assert paper.text["stdout"] == (before + b"2 " + after + b"last").decode()
    assert summary.bytes == len(paper.text["stdout"])
    assert paper.offsets["stdout"] == len(before + after + b"last")
    assert len(worker.gaps) == 1
    assert summary.gap


@pytest.mark.parametrize("again", [b"ONE\ntwo\nthree\n", b"wo\nthree\n", b"one\n"], ids=["other", "cut", "short"])
def test_a_stored_log_that_is_another_is_told(again: bytes) -> None:
    worker = Worker(Paper()).read(b"one\ntwo\n")
    worker.log.rewind()
    worker.read(again).log.source_ended()

    assert worker.log.finish().gap
    assert len(worker.gaps) == 1


def test_a_log_that_may_have_been_rotated_is_told() -> None:
    for stored_bytes, told in ((10_000, True), (100_000, False)):
        paper = Paper()
        Worker(paper).read(b"\n" * 100)
        worker = Worker(paper, stored_bytes=stored_bytes).read(b"\n" * 400)
        worker.log.source_ended()
        assert worker.log.finish().gap is told


def test_the_cap_counts_what_others_gave_out() -> None:
    paper = Paper(room=10)
    for end in (4, 8, 14, 20):
        worker = Worker(paper).read(b"0123456789abcdefghij"[:end])
    summary = worker.log.finish()

    assert paper.text["stdout"] == "0123456789"
    assert (summary.truncated, summary.bytes, summary.gap) == (True, 20, False)
