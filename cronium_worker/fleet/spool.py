"""What waits for Redis and finds no place in memory: a first-in, first-out file, bounded and without a name."""

import os
import struct
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from cronium_worker.models import Stream

_HEADER = struct.Struct("<BQI")  # stream, offset, bytes of text
_STREAMS: tuple[Stream, ...] = ("stdout", "stderr")


@dataclass
class Piece:
    """Text of one stream. `offset`: bytes of the raw stream up to the end of it."""

    stream: Stream
    text: str
    offset: int


class Spool:
    """Pieces on disk. Not safe for threads.

    The file is made when the first piece comes and has no name: it is gone with the process, whatever ends it.
    Its space is used anew when all of it has been taken. Without a directory, or with no bytes, it is always full.
    """

    def __init__(self, directory: Path | None, *, max_bytes: int) -> None:
        self._directory = directory
        self._max_bytes = max_bytes if directory is not None else 0
        self._file: BinaryIO | None = None
        self._read = 0
        self._end = 0
        self._failed = False

    def __bool__(self) -> bool:
        """Whether anything is in it."""
        return self._read < self._end

    @property
    def full(self) -> bool:
        """Until all of it has been taken. Not before `max_bytes`, but when the disk is full."""
        return self._failed or self._end >= self._max_bytes

    def add(self, pieces: Iterable[Piece]) -> bool:
        """Append all of them, or none: False when the disk would not have them; it is full then."""
        data = bytearray()
        for piece in pieces:
            # Text that came from bytes has no lone surrogates, that of others may.
            text = piece.text.encode("utf-8", "surrogatepass")
            data += _HEADER.pack(_STREAMS.index(piece.stream), piece.offset, len(text)) + text
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=self._directory, buffering=0)  # noqa: SIM115 - closed in close()
            _write_all(self._file.fileno(), data, self._end)
        except OSError:
            self._failed = True
            return False
        self._end += len(data)
        return True

    def take(self, max_bytes: int) -> list[Piece]:
        """The oldest pieces, about `max_bytes` of them; none when it is empty. Raises OSError."""
        if self._file is None:
            return []
        descriptor = self._file.fileno()
        pieces: list[Piece] = []
        stop = self._read + max_bytes
        while self._read < min(stop, self._end):
            stream, offset, length = _HEADER.unpack(_read_all(descriptor, _HEADER.size, self._read))
            text = _read_all(descriptor, length, self._read + _HEADER.size).decode("utf-8", "surrogatepass")
            pieces.append(Piece(_STREAMS[stream], text, offset))
            self._read += _HEADER.size + length
        if not self:
            with suppress(OSError):
                os.ftruncate(descriptor, 0)
            self._read = self._end = 0
            self._failed = False
        return pieces

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
        self._read = self._end = 0
        self._failed = True


def _write_all(descriptor: int, data: bytearray, at: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, at)
        view, at = view[written:], at + written


def _read_all(descriptor: int, count: int, at: int) -> bytes:
    data = os.pread(descriptor, count, at)
    while len(data) < count:
        more = os.pread(descriptor, count - len(data), at + len(data))
        if not more:
            raise OSError("the spool of a log is shorter than what was written to it")
        data += more
    return data
