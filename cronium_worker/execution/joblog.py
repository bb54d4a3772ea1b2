"""The log of one run: bytes as the container prints them in, masked text in whole characters out."""

import codecs
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from zlib import crc32

from cronium_worker import metrics
from cronium_worker.fleet.writer import LogWriter
from cronium_worker.masking import Masker, StreamMasker
from cronium_worker.models import LogSummary, Stream

_REPLACEMENT = "\ufffd".encode()
# What the engine's local driver stores beside the bytes of a line: frame, stream, time (protobuf).
_STORED_PER_LINE = 28
_LINE_BYTES = 64 * 1024


def _decoder() -> codecs.IncrementalDecoder:
    return codecs.getincrementaldecoder("utf-8")("replace")


@dataclass
class _State:
    """One of the streams, by positions in the stored log."""

    masker: StreamMasker
    start: int = 0  # bytes whose text another worker has given out
    decoder: codecs.IncrementalDecoder = field(default_factory=_decoder)
    source: int = 0  # where the stream stands that is read now
    read: int = 0  # how far any stream has been read
    line_at: int = 0  # where the unfinished line begins, which the engine has in its memory alone
    line: bytes = b""
    checksum: int = 0  # of all before it, and of what was read again of that
    again: int = 0
    unstored: int = 0  # bytes that were printed, and are not in the stored log
    lines: int = 0
    last: bytes = b"\n"

    @property
    def offset(self) -> int:
        """Bytes of the stored stream whose text has been given out; not those of a secret that goes on."""
        return max(0, self.read - self.masker.open_bytes - len(self.decoder.getstate()[0]))

    def add(self, data: bytes) -> None:
        """Count what was not read before."""
        self.source += len(data)
        self.read += len(data)
        self.lines += data.count(b"\n")
        self.last = data[-1:]
        self.line += data
        finished = self.line.rfind(b"\n") + 1
        if len(self.line) - finished > _LINE_BYTES:
            finished = len(self.line)
        if finished:
            self.checksum = crc32(self.line[:finished], self.checksum)
            self.line = self.line[finished:]
            self.line_at = self.read - len(self.line)

    def forget_line(self) -> None:
        """The stored log goes on without what was read of the unfinished line."""
        self.unstored += len(self.line)
        self.source = self.read = self.line_at
        self.line = b""


class JobLog:
    """Bytes of both streams to the writer, as long as it takes them; then they are counted and dropped.

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
        start: Mapping[Stream, int] | None = None,
        exact: bool = True,
        stored_bytes: int | None = None,
        on_gap: Callable[[str], None] = lambda _: None,
    ) -> None:
        start = start or {}
        self._writer = writer
        self._truncated = writer.full
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
        """Whether the job's share is used up: nothing more is given out."""
        return self._truncated

    def feed(self, stream: Stream, data: bytes) -> None:
        state = self._streams[stream]
        if state.source < state.read:
            data = self._compare(state, data)
        if not data:
            return
        known = max(0, min(len(data), state.start - state.read))
        lines = state.lines
        state.add(data)
        if not known:  # else another worker has counted it
            metrics.log_bytes.inc(len(data))
            metrics.log_lines.inc(state.lines - lines)
        if known and not self._exact and _REPLACEMENT in data[:known]:
            self.lost("the stored log has other bytes than were printed")
        if self._truncated:
            metrics.log_dropped.inc(len(data) - known)
        elif data := data[known:]:
            self._give(stream, state.decoder.decode(state.masker.feed(data)))

    def _compare(self, state: _State, data: bytes) -> bytes:
        """What of the data was not read before. The rest must be the same as then."""
        finished = data[: max(0, state.line_at - state.source)]
        if finished:
            state.source += len(finished)
            state.again = crc32(finished, state.again)
            if state.source == state.line_at and state.again != state.checksum:
                self.lost("the stored log is not what was printed")
            data = data[len(finished) :]
        compared = state.source - state.line_at
        again = data[: len(state.line) - compared]
        if state.line.startswith(again, compared):
            state.source += len(again)
            return data[len(again) :]
        self.lost("the Docker Engine lost a part of a line")
        data = state.line[:compared] + data
        state.forget_line()
        return data

    def rewind(self) -> None:
        """What comes now begins with the first byte of each stream."""
        for state in self._streams.values():
            state.source = state.again = 0

    def source_ended(self) -> None:
        """The stored log of a container that has ended was read to its end: it must have all that is known."""
        states = self._streams.values()
        if any(state.source < max(state.read, state.start) for state in states):
            self.lost("the stored log is shorter than what was printed")
        elif self._stored_bytes is not None and any(state.start for state in states):
            # There are two files of this size; a third has replaced the first.
            stored = sum(state.read + _STORED_PER_LINE * state.lines for state in states)
            if stored >= self._stored_bytes:
                self.lost("the stored log may have lost its beginning")

    def lost(self, reason: str) -> None:
        """Text is missing, or may be: say so, once. Of a log that is cut anyway, nothing is said."""
        if not self._gap and not self._truncated:
            self._gap = True
            self._on_gap(reason)

    def finish(self) -> LogSummary:
        """Give out what was held back, and sum up."""
        for stream, state in self._streams.items():
            self._give(stream, state.decoder.decode(state.masker.finish(), final=True))
        states = self._streams.values()
        return LogSummary(
            bytes=sum(state.read + state.unstored for state in states),
            lines=sum(state.lines + (state.last != b"\n") for state in states),
            truncated=self._truncated,
            gap=self._gap,
        )

    def _give(self, stream: Stream, text: str) -> None:
        if text and not self._truncated:
            taken = self._writer.put(stream, text, offset=self._streams[stream].offset)
            if taken < len(text):
                self._truncated = True
                metrics.log_dropped.inc(len(text[taken:].encode()))
