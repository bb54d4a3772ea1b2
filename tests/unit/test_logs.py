"""The engine's frames taken apart, and their bytes made into the job's log."""

import socket
import ssl
import struct
from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cronium_worker import metrics
from cronium_worker.engine.logs import AttachedStream
from cronium_worker.execution.joblog import JobLog
from cronium_worker.masking import Masker
from cronium_worker.models import Stream

_quick = settings(deadline=None, database=None, max_examples=100)


def frame(kind: int, data: bytes, *, length: int | None = None) -> bytes:
    return struct.pack(">BxxxL", kind, len(data) if length is None else length) + data


class Peer:
    """The engine's end of an attached connection."""

    def __init__(self) -> None:
        self.socket, ours = socket.socketpair()
        self.stream = AttachedStream(ours)

    def send(self, data: bytes) -> list[tuple[Stream, bytes]]:
        """Send, and read all of it."""
        self.socket.sendall(data)
        chunks = []
        while got := self.stream.read():
            chunks += got
        return chunks

    def close(self) -> None:
        self.socket.close()
        self.stream.close()


@pytest.fixture
def peer() -> Iterator[Peer]:
    peer = Peer()
    yield peer
    peer.close()


def joined(chunks: list[tuple[Stream, bytes]]) -> list[tuple[Stream, bytes]]:
    """Neighbours of the same stream put together: how the data was cut does not matter."""
    result: list[tuple[Stream, bytes]] = []
    for stream, data in chunks:
        if result and result[-1][0] == stream:
            result[-1] = (stream, result[-1][1] + data)
        else:
            result.append((stream, data))
    return result


def test_what_one_read_has_of_a_stream_is_one_piece(peer: Peer) -> None:
    wire = b"".join(frame(kind, bytes([number])) for number, kind in enumerate((1, 1, 1, 2, 2, 1)))

    assert peer.send(wire) == [("stdout", b"\0\1\2"), ("stderr", b"\3\4"), ("stdout", b"\5")]


@_quick
@given(
    st.lists(st.tuples(st.sampled_from([1, 2]), st.binary(max_size=12)), max_size=6),
    st.lists(st.integers(0, 200), max_size=8),
)
def test_frames_come_out_in_order_however_they_are_cut(frames: list[tuple[int, bytes]], cuts: list[int]) -> None:
    wire = b"".join(frame(kind, data) for kind, data in frames)
    edges = [0, *sorted(cut % (len(wire) + 1) for cut in cuts), len(wire)]
    peer = Peer()

    chunks = [chunk for start, end in pairwise(edges) for chunk in peer.send(wire[start:end])]
    peer.close()

    names: dict[int, Stream] = {1: "stdout", 2: "stderr"}
    assert joined(chunks) == joined([(names[kind], data) for kind, data in frames if data])


def test_a_frame_one_byte_at_a_time(peer: Peer) -> None:
    chunks = [chunk for byte in frame(2, b"abc") for chunk in peer.send(bytes([byte]))]

    assert chunks == [("stderr", b"a"), ("stderr", b"b"), ("stderr", b"c")]


def test_empty_frames_are_nothing(peer: Peer) -> None:
    assert peer.send(frame(1, b"") * 3 + frame(2, b"x") + frame(1, b"")) == [("stderr", b"x")]
    assert not peer.stream.ended


def test_data_of_a_huge_frame_is_passed_on_as_it_comes(peer: Peer) -> None:
    assert peer.send(frame(1, b"first", length=2**32 - 1)) == [("stdout", b"first")]
    assert peer.send(b"second") == [("stdout", b"second")]
    assert not peer.stream.ended


def test_output_that_looks_like_frames_is_data(peer: Peer) -> None:
    imitation = frame(2, b"*1\r\n$4\r\nPING\r\n") + b"data: x\n\n"

    assert peer.send(frame(1, imitation)) == [("stdout", imitation)]


@pytest.mark.parametrize("kind", [0, 3, 255])
def test_an_unknown_kind_counts_as_stdout(peer: Peer, kind: int) -> None:
    assert peer.send(frame(kind, b"x")) == [("stdout", b"x")]


def test_nothing_to_read_is_not_the_end(peer: Peer) -> None:
    assert peer.stream.read() == []
    assert not peer.stream.ended


@pytest.mark.parametrize("rest", [b"", b"\1\0\0", frame(1, b"cut", length=10)], ids=["clean", "header", "data"])
def test_the_end_of_the_connection_ends_the_stream(peer: Peer, rest: bytes) -> None:
    peer.socket.sendall(frame(1, b"last") + rest)
    peer.socket.close()

    assert joined(peer.stream.read())[0] == ("stdout", b"last" + rest[8:])
    assert peer.stream.read() == []
    assert peer.stream.ended


def test_a_connection_that_breaks_ends_the_stream(peer: Peer) -> None:
    peer.stream._socket.close()

    assert peer.stream.read() == []
    assert peer.stream.ended


def test_closing_twice_is_closing_once(peer: Peer) -> None:
    peer.stream.close()
    peer.stream.close()

    assert peer.stream.fileno() == -1


def test_the_socket_inside_the_sdks_wrapper_is_used() -> None:
    class Wrapper:
        def __init__(self, inner: socket.socket) -> None:
            self._sock = inner
            self.closed = False

        def close(self) -> None:
            self.closed = True

    ours, theirs = socket.socketpair()
    wrapper = Wrapper(ours)
    stream = AttachedStream(wrapper)
    assert stream.fileno() == ours.fileno()

    stream.close()

    assert wrapper.closed
    assert ours.fileno() == -1
    theirs.close()


# ---- the job's log


class Paper:
    """Takes what a LogWriter would write: so many characters."""

    def __init__(self, room: int = 10**6) -> None:
        self.room = room
        self.pieces: list[tuple[Stream, str, int]] = []

    @property
    def full(self) -> bool:
        return self.room == 0

    def put(self, stream: Stream, text: str, *, offset: int) -> int:
        kept, self.room = text[: self.room], max(0, self.room - len(text))
        self.pieces.append((stream, kept, offset))
        return len(kept)

    def text(self, stream: Stream = "stdout") -> str:
        return "".join(text for name, text, _ in self.pieces if name == stream)


def job_log(*secrets: str, room: int = 10**6) -> tuple[JobLog, Paper]:
    paper = Paper(room)
    writer: Any = paper
    return JobLog(writer, Masker(secrets)), paper


def measured() -> tuple[float, ...]:
    """How much of all logs was counted so far."""
    counters = (metrics.log_bytes, metrics.log_lines, metrics.log_dropped)
    return tuple(counter._value.get() for counter in counters)


def in_pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:end] for start, end in pairwise(edges) if end > start]


_texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
_cuts = st.lists(st.integers(0, 100), max_size=8)


@_quick
@given(_texts, _cuts)
def test_no_character_is_split(text: str, cuts: list[int]) -> None:
    log, paper = job_log()

    for piece in in_pieces(text.encode(), cuts):
        log.feed("stdout", piece)
    log.finish()

    assert paper.text() == text
    assert all(piece for _, piece, _ in paper.pieces)


@_quick
@given(st.binary(max_size=40), _cuts)
def test_bytes_that_are_no_text_become_replacements(data: bytes, cuts: list[int]) -> None:
    log, paper = job_log()

    for piece in in_pieces(data, cuts):
        log.feed("stderr", piece)
    summary = log.finish()

    assert paper.text("stderr") == data.decode("utf-8", "replace")
    assert summary.bytes == len(data)


@_quick
@given(_texts, _cuts)
def test_the_offset_says_which_bytes_have_been_given_out(text: str, cuts: list[int]) -> None:
    log, paper = job_log()
    data = text.encode()

    for piece in in_pieces(data, cuts):
        log.feed("stdout", piece)
        given_out = paper.text().encode()
        assert (paper.pieces[-1][2] if paper.pieces else 0) == len(given_out)
        assert data.startswith(given_out)

    log.finish()
    assert (paper.pieces[-1][2] if paper.pieces else 0) == len(data)


def test_the_offset_counts_raw_bytes_not_masked_ones() -> None:
    log, paper = job_log("correct horse")

    log.feed("stdout", b"a correct horse b corr")
    log.feed("stdout", b"al\n")
    log.finish()

    assert paper.pieces == [("stdout", "a *** b ", 18), ("stdout", "corral\n", 25)]


def test_streams_do_not_disturb_each_other() -> None:
    log, paper = job_log("secret")

    for piece in ("ü".encode()[:1], b"sec"):
        log.feed("stdout", piece)
        log.feed("stderr", b"x")
    log.feed("stderr", b"ret secret")
    log.finish()

    assert paper.text("stdout") == "\ufffdsec"
    assert paper.text("stderr") == "xxret ***"


@pytest.mark.parametrize(
    ("room", "text", "truncated"),
    [
        (6, "abcdef", False),
        (5, "abcde", True),
        (1, "a", True),
    ],
)
@pytest.mark.parametrize("size", [1, 2, 6])
def test_when_the_writer_takes_no_more_the_rest_is_counted_and_dropped(
    room: int, text: str, truncated: bool, size: int
) -> None:
    log, paper = job_log(room=room)

    for start in range(0, 6, size):
        log.feed("stdout", b"abcdef"[start : start + size])
    summary = log.finish()

    assert paper.text() == text
    assert (summary.bytes, summary.truncated) == (6, truncated)


def test_each_byte_and_line_is_measured_once() -> None:
    before = measured()
    log, _ = job_log(room=9)

    for piece in (b"a\nb", b"\n", b"\n\nc", "dü\n".encode(), b"ef"):
        log.feed("stdout", piece)
    log.feed("stderr", b"x\n")
    summary = log.finish()

    counted = tuple(now - then for now, then in zip(measured(), before, strict=True))
    assert counted == (15, 6, 5)
    assert (summary.bytes, summary.lines) == (15, 7)


def test_both_streams_end_where_one_is_cut() -> None:
    log, paper = job_log(room=5)

    log.feed("stdout", b"abc")
    log.feed("stderr", b"def")
    log.feed("stdout", b"ghi")
    summary = log.finish()

    assert (paper.text("stdout"), paper.text("stderr")) == ("abc", "de")
    assert (summary.bytes, summary.truncated) == (9, True)


def test_a_job_without_room_has_a_truncated_log_from_the_beginning() -> None:
    log, paper = job_log(room=0)

    log.feed("stdout", b"abc")

    assert paper.pieces == []
    assert log.finish().truncated


def test_a_character_cut_by_the_end_of_the_script_is_replaced() -> None:
    log, paper = job_log()

    log.feed("stdout", "abcü".encode()[:-1])
    log.finish()

    assert paper.text() == "abc\ufffd"


@pytest.mark.parametrize(
    ("pieces", "lines"),
    [
        ([], 0),
        ([b"a"], 1),
        ([b"a\n"], 1),
        ([b"a\nb"], 2),
        ([b"a", b"b"], 1),
        ([b"a", b"\n"], 1),
        ([b"\n\n\n"], 3),
        ([b"a\r\n\r\nb\r\n"], 3),
    ],
)
def test_lines_are_counted_with_the_unfinished_last_one(pieces: list[bytes], lines: int) -> None:
    log, _ = job_log(room=1)

    for piece in pieces:
        log.feed("stdout", piece)

    assert log.finish().lines == lines


def test_lines_are_counted_over_both_streams() -> None:
    log, _ = job_log()

    log.feed("stdout", b"a\nb")
    log.feed("stderr", b"c\n")
    summary = log.finish()

    assert (summary.lines, summary.bytes, summary.truncated, summary.gap) == (3, 5, False, False)


def test_a_secret_is_hidden_however_the_frames_cut_it() -> None:
    for cut in range(1, 14):
        log, paper = job_log("pässwörd", "pä")
        data = "x pässwörd y".encode()

        log.feed("stdout", data[:cut])
        log.feed("stdout", data[cut:])
        log.finish()

        assert paper.text() == "x *** y"


@pytest.mark.attack
@pytest.mark.parametrize("room", range(12))
def test_a_secret_at_the_cut_is_not_shown_in_part(room: int) -> None:
    log, paper = job_log("correct horse battery staple", room=room)

    log.feed("stdout", b"key=correct horse bat")
    log.feed("stdout", b"tery staple!")

    assert log.finish().truncated == (room < len("key=***!"))
    assert paper.text() == "key=***!"[:room]


def test_a_tls_connection_with_nothing_to_read_has_not_ended() -> None:
    class Connection:
        def setblocking(self, flag: bool) -> None: ...

        def recv(self, size: int) -> bytes:
            raise ssl.SSLWantReadError

    stream = AttachedStream(Connection())
    assert stream.read() == []
    assert not stream.ended
