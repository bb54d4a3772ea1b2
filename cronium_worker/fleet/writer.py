"""The way of a job's log into Redis: at once while the line is free, gathered while a write is under way."""

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from cronium_worker.fleet.events import Body, log_body
from cronium_worker.fleet.store import Claim, JobStore
from cronium_worker.models import Stream

_BATCH_CHARACTERS = 512 * 1024
# A batch is one script call, and all of Redis waits for it: about 10 us an event.
_BATCH_PIECES = 200
_PIECES_APART = 100


@dataclass
class _Piece:
    stream: Stream
    text: str
    offset: int


class LogWriter:
    """Writes a claim's log in a thread of its own, in order, in chunks of at most `chunk` characters.

    The owner of the log asks `has_room()` before it reads more: a slow Redis slows the script and loses
    nothing. `on_room` is called (from the thread) whenever room has come back, or writing has failed.
    """

    def __init__(
        self,
        store: JobStore,
        claim: Claim,
        *,
        chunk: int,
        buffer: int = 1024 * 1024,
        on_room: Callable[[], None],
    ) -> None:
        self._store = store
        self._claim = claim
        self._chunk = chunk
        self._buffer = buffer
        self._on_room = on_room
        self._pieces: deque[_Piece] = deque()
        self._waiting = 0  # characters not written yet, those under way included
        self._closing = False
        self._error: Exception | None = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=f"log {claim.job.id}", daemon=True)
        self._thread.start()

    def has_room(self) -> bool:
        return self._waiting < self._buffer

    def put(self, stream: Stream, text: str, *, offset: int) -> None:
        """Queue text. `offset`: bytes of the raw stream up to the end of this text, kept in the record so that
        another worker can go on from there. Raises what the thread failed with (ClaimLost, redis errors)."""
        with self._changed:
            if self._error is not None:
                raise self._error
            last = self._last_of(stream)
            if last is not None and len(last.text) + len(text) <= self._chunk:
                last.text += text
                last.offset = offset
            else:
                self._pieces.append(_Piece(stream, text, offset))
            self._waiting += len(text)
            self._changed.notify_all()

    def _last_of(self, stream: Stream) -> _Piece | None:
        """The piece that text of this stream may be added to: the newest one; when many wait, also one before
        the other stream's newest, since order is kept per stream only."""
        for back in range(1, min(len(self._pieces), 2 if len(self._pieces) >= _PIECES_APART else 1) + 1):
            if self._pieces[-back].stream == stream:
                return self._pieces[-back]
        return None

    def close(self) -> None:
        """Wait until all is written, then end the thread. Raises what it failed with."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        try:
            while batch := self._next_batch():
                self._write(batch)
                with self._changed:
                    self._waiting -= sum(len(piece.text) for piece in batch)
                self._on_room()
        except Exception as error:  # noqa: BLE001 - raised again in the owner's thread
            with self._changed:
                self._error = error
                self._waiting = 0
            self._on_room()

    def _next_batch(self) -> list[_Piece]:
        """All that waits, up to the batch's size; empty at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._pieces or self._closing)
            batch: list[_Piece] = []
            size = 0
            while self._pieces and size < _BATCH_CHARACTERS and len(batch) < _BATCH_PIECES:
                piece = self._pieces.popleft()
                batch.append(piece)
                size += len(piece.text)
            return batch

    def _write(self, batch: list[_Piece]) -> None:
        bodies: list[Body] = []
        offsets: dict[str, str | int] = {}
        for piece in batch:
            bodies.extend(
                log_body(piece.stream, piece.text[start : start + self._chunk])
                for start in range(0, len(piece.text), self._chunk)
            )
            offsets[f"{piece.stream}_offset"] = piece.offset
        self._store.write(self._claim, bodies, offsets)
