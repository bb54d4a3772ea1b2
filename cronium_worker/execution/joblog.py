"""The log of one run: bytes as the container prints them in, masked text in whole characters out."""

import codecs
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from zlib import crc32

from cronium_worker.fleet.writer import LogWriter
from cronium_worker.masking import Masker, StreamMasker
from cronium_worker.models import LogSummary, Stream

_REPLACEMENT = "\ufffd".encode()
# What the engine's local driver stores beside the bytes of a line: frame, stream, time (protobuf).
_STORED_PER_LINE = 28


def _decoder() -> codecs.IncrementalDecoder:
    return codecs.getincrementaldecoder("utf-8")("replace")


@dataclass
class _State:
    masker: StreamMasker
    start: int = 0  # bytes whose text another worker has given out
    decoder: codecs.IncrementalDecoder = field(default_factory=_decoder)
    source: int = 0  # where the stream stands that is read now
    read: int = 0  # how far any stream has been read
    checksum: int = 0  # of what has been read, and of what is read again
    again: int = 0
    lines: int = 0
    last: bytes = b"\n"
    cut: bool = False  # by the cap

    @property
    def offset(self) -> int:
        """Bytes of the raw stream whose text has been given out."""
        return self.read - self.masker.held_bytes - len(self.decoder.getstate()[0])


class JobLog:
    """Bytes of both streams to the writer, up to the cap; beyond it they are counted and dropped.

    `start`: how many bytes of each stream another worker has given out. They are counted as well, and must come
    again: the stored log begins with the first byte. `exact`: it holds the bytes as they were printed.
    `stored_bytes`: what the engine keeps at least. `on_gap(reason)` is called once, when text was or may have been
    lost.
    """

    def __init__(
        self,
        writer: LogWriter,
        masker: Masker,
        *,
        max_bytes: int,
        start: Mapping[Stream, int] | None = None,
        exact: bool = True,
        stored_bytes: int | None = None,
        on_gap: Callable[[str], None] = lambda _: None,
    ) -> None:
        start = start or {}
        self._writer = writer
        self._left = max(0, max_bytes - sum(start.values()))
        self._truncated = sum(start.values()) > max_bytes
        self._exact = exact
        self._stored_bytes = stored_bytes
        self._on_gap = on_gap
        self._gap = False
        self._streams: dict[Stream, _State] = {
            "stdout": _State(masker.stream(), start.get("stdout", 0)),
            "stderr": _State(masker.stream(), start.get("stderr", 0)),
        }

    @property
    def position(self) -> int:
        """Bytes that have been read, over both streams."""
        return sum(state.read for state in self._streams.values())

    @property
    def truncated(self) -> bool:
        """Whether the cap was reached: nothing more is given out."""
        return self._truncated

    def feed(self, stream: Stream, data: bytes) -> None:
        state = self._streams[stream]
        if state.source < state.read:
            data = self._compare(state, data)
        if not data:
            return
        state.source += len(data)
        state.checksum = crc32(data, state.checksum)
        state.lines += data.count(b"\n")
        state.last = data[-1:]
        known = max(0, min(len(data), state.start - state.read))
        state.read += len(data)
        if known:
            if not self._exact and _REPLACEMENT in data[:known]:
                self.lost("the stored log has other bytes than were printed")
            data = data[known:]
        kept = data[: self._left]
        self._left -= len(kept)
        if len(kept) < len(data):
            self._truncated = state.cut = True
        if kept:
            self._give(stream, state.decoder.decode(state.masker.feed(kept)))

    def _compare(self, state: _State, data: bytes) -> bytes:
        """What of the data was not read before. The rest must be the same as then."""
        again = data[: state.read - state.source]
        state.source += len(again)
        state.again = crc32(again, state.again)
        if state.source == state.read and state.again != state.checksum and not self._truncated:
            self.lost("the stored log is not what was printed")
        return data[len(again) :]

    def rewind(self) -> None:
        """What comes now begins with the first byte of each stream."""
        for state in self._streams.values():
            state.source = state.again = 0

    def source_ended(self) -> None:
        """The stored log of a container that has ended was read to its end: it must have all that is known."""
        states = self._streams.values()
        if self._truncated:
            return  # what of it was rotated away had been given out, or never will be
        if any(state.source < max(state.read, state.start) for state in states):
            self.lost("the stored log is shorter than what was printed")
        elif self._stored_bytes is not None and any(state.start for state in states):
            # There are two files of this size; a third has replaced the first.
            stored = sum(state.read + _STORED_PER_LINE * state.lines for state in states)
            if stored >= self._stored_bytes:
                self.lost("the stored log may have lost its beginning")

    def lost(self, reason: str) -> None:
        if not self._gap:
            self._gap = True
            self._on_gap(reason)

    def finish(self) -> LogSummary:
        """Give out what was held back, and sum up. A character cut by the cap is dropped, not replaced."""
        for stream, state in self._streams.items():
            if state.cut:
                state.masker.drop()
            rest = state.masker.finish()
            self._give(stream, state.decoder.decode(rest, final=not state.cut))
        states = self._streams.values()
        return LogSummary(
            bytes=sum(state.read for state in states),
            lines=sum(state.lines + (state.last != b"\n") for state in states),
            truncated=self._truncated,
            gap=self._gap,
        )

    def _give(self, stream: Stream, text: str) -> None:
        if text:
            self._writer.put(stream, text, offset=self._streams[stream].offset)
