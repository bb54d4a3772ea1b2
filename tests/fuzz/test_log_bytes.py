"""Any bytes from the engine, however they are cut: the same text as in one piece, without secrets, to be resumed."""

import re
import socket
import struct
from collections.abc import Iterator
from typing import Any, cast

import requests
from hypothesis import example, given
from hypothesis import strategies as st

from cronium_worker.engine.logs import AttachedStream, StoredLog
from cronium_worker.execution.joblog import JobLog
from cronium_worker.masking import Masker
from cronium_worker.models import LogSummary, Stream
from tests.fuzz.profile import FUZZ
from tests.fuzz.strategies import cuts, in_pieces

Chunks = list[tuple[Stream, bytes]]

_SECRETS = ["sesame", "pässwort€", "two\nlines", "a" * 40]
_CAP = 200
_words = [*_SECRETS, "sesa", "pässw", "€", "\n", "\r\n", "***", "x", "\ufffd", "\x1b[2J", "\u2028", "two\n"]
_text = st.sampled_from(_words).map(str.encode)
_bytes = st.lists(_text | st.binary(max_size=4), max_size=12).map(b"".join)
_length = st.none() | st.sampled_from([0, 1, 2**31, 2**32 - 1])


def _frame(kind: int, data: bytes, length: int | None) -> bytes:
    return struct.pack(">BxxxL", kind, len(data) if length is None else length) + data


_frames = st.lists(st.builds(_frame, st.sampled_from([1, 2, 1, 2, 0, 3, 255]), _bytes, _length), max_size=6)
_wire = st.builds(lambda frames, tail: b"".join(frames) + tail, _frames, st.binary(max_size=12)) | st.binary()


def _reference(wire: bytes, *, error: bool) -> dict[Stream, bytes]:
    """The streams of a wire that is all there. `error`: kind 3 is the engine's own word."""
    found: dict[Stream, bytes] = {"stdout": b"", "stderr": b""}
    while len(wire) >= 8:
        kind, length = struct.unpack(">BxxxL", wire[:8])
        if not (error and kind == 3):
            found["stderr" if kind == 2 else "stdout"] += wire[8 : 8 + length]
        wire = wire[8 + length :]
    return found


def _streams(chunks: Chunks) -> dict[Stream, bytes]:
    found: dict[Stream, bytes] = {"stdout": b"", "stderr": b""}
    for stream, data in chunks:
        assert data
        found[stream] += data
    return found


def _read(stream: AttachedStream) -> Chunks:
    """All that there is to be read now."""
    chunks: Chunks = []
    while got := stream.read():
        chunks += got
    return chunks


@FUZZ
@given(_wire, cuts)
def test_any_frames_in_any_pieces(wire: bytes, at: list[int]) -> None:
    theirs, ours = socket.socketpair()
    stream, chunks = AttachedStream(ours), cast(Chunks, [])
    for piece in in_pieces(wire, at):
        theirs.sendall(piece)
        chunks += _read(stream)
    theirs.close()
    assert _read(stream) == []

    assert stream.ended
    assert _streams(chunks) == _reference(wire, error=False)
    stream.close()


class _Response:
    """An answer of the engine, as far as it is used."""

    def __init__(self, pieces: list[bytes], *, broken: bool) -> None:
        self.raw = self
        self._pieces, self._broken = pieces, broken

    def iter_content(self, chunk_size: None) -> Iterator[bytes]:
        yield from self._pieces
        if self._broken:
            raise requests.exceptions.ChunkedEncodingError

    def shutdown(self) -> None: ...

    def close(self) -> None: ...


def _is_whole(wire: bytes) -> bool:
    while len(wire) >= 8:
        kind, length = struct.unpack(">BxxxL", wire[:8])
        if kind == 3 or len(wire) < 8 + length:
            return False
        wire = wire[8 + length :]
    return not wire


@FUZZ
@given(_wire, cuts, st.booleans())
@example(_frame(3, b"corrupt", None), [], False)
def test_any_stored_log_is_told_whole_only_if_it_is(wire: bytes, at: list[int], broken: bool) -> None:
    response: Any = _Response(in_pieces(wire, at), broken=broken)
    stream, chunks = StoredLog(response), cast(Chunks, [])
    stream._socket.setblocking(True)
    while not stream.ended:
        chunks += stream.read()
    stream.close()

    assert _streams(chunks) == _reference(wire, error=True)
    assert stream.whole == (_is_whole(wire) and not broken)


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
        assert text
        assert offset >= self.offsets[stream]
        kept, self.room = text[: self.room], max(0, self.room - len(text))
        self.text[stream] += kept
        self.offsets[stream] = offset
        return len(kept)


def _log(paper: Paper) -> JobLog:
    writer: Any = paper
    return JobLog(writer, Masker(_SECRETS), start=dict(paper.offsets))


def _plain(text: dict[Stream, str]) -> dict[Stream, str]:
    """Of secrets beside each other it depends on the pieces whether one mask stands for them, or several."""
    return {stream: re.sub(r"(\*\*\*)+", "***", words) for stream, words in text.items()}


def _told(chunks: Chunks, at: list[int], *, room: int = 10**6) -> tuple[Paper, LogSummary]:
    paper = Paper(room)
    log = _log(paper)
    for stream, data in chunks:
        for piece in in_pieces(data, at):
            log.feed(stream, piece)
    return paper, log.finish()


_stream: st.SearchStrategy[Stream] = st.sampled_from(["stdout", "stderr"])
_chunks = st.lists(st.tuples(_stream, _bytes), max_size=6)


@FUZZ
@given(_chunks, cuts, st.sampled_from([0, 1, 7, 40, _CAP, 10**6]))
def test_any_bytes_in_any_pieces_give_the_same_text(chunks: Chunks, at: list[int], room: int) -> None:
    paper, summary = _told(chunks, at, room=room)
    whole, whole_summary = _told(chunks, [], room=room)

    assert _plain(paper.text) == _plain(whole.text)
    assert summary == whole_summary
    assert summary.bytes == sum(len(data) for _, data in chunks)
    for text in paper.text.values():
        text.encode()  # no lone surrogate
        assert not any(secret in piece for piece in text.split("***") for secret in _SECRETS)
    if not summary.truncated:
        raw = {name: b"".join(data for each, data in chunks if each == name) for name in paper.text}
        masker = Masker(_SECRETS)
        assert _plain(paper.text) == _plain(
            {name: masker.text(data.decode(errors="replace")) for name, data in raw.items()}
        )
        left = [data[paper.offsets[name] :] for name, data in raw.items()]
        assert all(masker.text(data.decode()) in ("", "***") for data in left)


@FUZZ
@given(_chunks, cuts, st.lists(st.integers(0, 100), max_size=3), st.booleans())
@example([("stdout", b"two\nlines")], [], [1], False)  # its end may be the beginning of another secret
def test_any_bytes_are_resumed_wherever_they_were_left(
    chunks: Chunks, at: list[int], left_at: list[int], again: bool
) -> None:
    """`again`: the same worker reads it once more; else the next one does."""
    whole, whole_summary = _told(chunks, [])
    paper = Paper()
    log = _log(paper)
    for left in left_at:
        for stream, data in chunks[: left % (len(chunks) + 1)]:
            for piece in in_pieces(data, at)[: left % 5 + 1]:
                log.feed(stream, piece)
            if len(in_pieces(data, at)) > left % 5 + 1:
                break
        if again:
            log.rewind()
        else:
            log = _log(paper)
    for stream, data in chunks:
        log.feed(stream, data)
    log.source_ended()

    assert log.finish() == whole_summary
    assert _plain(paper.text) == _plain(whole.text)
