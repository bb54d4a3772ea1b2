"""The log of one run: bytes as the container prints them in, masked text in whole characters out."""

import codecs
from dataclasses import dataclass, field

from cronium_worker.fleet.writer import LogWriter
from cronium_worker.masking import Masker, StreamMasker
from cronium_worker.models import LogSummary, Stream


def _decoder() -> codecs.IncrementalDecoder:
    return codecs.getincrementaldecoder("utf-8")("replace")


@dataclass
class _State:
    masker: StreamMasker
    decoder: codecs.IncrementalDecoder = field(default_factory=_decoder)
    read: int = 0
    lines: int = 0
    last: bytes = b"\n"
    cut: bool = False  # by the cap

    @property
    def offset(self) -> int:
        """Bytes of the raw stream whose text has been given out."""
        return self.read - self.masker.held_bytes - len(self.decoder.getstate()[0])


class JobLog:
    """Bytes of both streams to the writer, up to the cap; beyond it they are counted and dropped."""

    def __init__(self, writer: LogWriter, masker: Masker, *, max_bytes: int) -> None:
        self._writer = writer
        self._left = max_bytes
        self._truncated = False
        self._streams: dict[Stream, _State] = {
            "stdout": _State(masker.stream()),
            "stderr": _State(masker.stream()),
        }

    def feed(self, stream: Stream, data: bytes) -> None:
        state = self._streams[stream]
        state.lines += data.count(b"\n")
        state.last = data[-1:]
        kept = data[: self._left]
        state.read += len(data)
        self._left -= len(kept)
        if len(kept) < len(data):
            self._truncated = state.cut = True
        if kept:
            self._give(stream, state.decoder.decode(state.masker.feed(kept)))

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
        )

    def _give(self, stream: Stream, text: str) -> None:
        if text:
            self._writer.put(stream, text, offset=self._streams[stream].offset)
