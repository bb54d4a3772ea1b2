"""The way of a job's log into Redis: at once while the line is free, gathered while a write is under way, on disk
when more waits than memory is to hold."""

import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path

from cronium_worker.fleet.events import Body, log_body
from cronium_worker.fleet.spool import Piece, Spool
from cronium_worker.fleet.store import Claim, JobStore
from cronium_worker.models import Stream

_BATCH_CHARACTERS = 512 * 1024
# A batch is one script call, and all of Redis waits for it: about 10 us an event.
_BATCH_PIECES = 200
_PIECES_APART = 100
_SPOOL_BLOCK = 64 * 1024


class _Queue:
    """Pieces in memory, gathered to at most `chunk` characters each."""

    def __init__(self, chunk: int) -> None:
        self._chunk = chunk
        self.pieces: deque[Piece] = deque()
        self.characters = 0

    def add(self, piece: Piece) -> None:
        last = self._last_of(piece.stream)
        if last is not None and len(last.text) + len(piece.text) <= self._chunk:
            last.text += piece.text
            last.offset = piece.offset
        else:
            self.pieces.append(piece)
        self.characters += len(piece.text)

    def _last_of(self, stream: Stream) -> Piece | None:
        """The piece that text of this stream may be added to: the newest one; when many wait, also one before
        the other stream's newest, since order is kept per stream only."""
        for back in range(1, min(len(self.pieces), 2 if len(self.pieces) >= _PIECES_APART else 1) + 1):
            if self.pieces[-back].stream == stream:
                return self.pieces[-back]
        return None

    def take(self) -> Piece:
        piece = self.pieces.popleft()
        self.characters -= len(piece.text)
        return piece


class LogWriter:
    """Writes a claim's log in a thread of its own, in order, in chunks of at most `chunk` characters.

    While Redis is slower than the script, or away, text waits: up to `buffer` characters in memory, up to
    `spool_bytes` in a file in `spool_in`. The owner of the log asks `has_room()` before it reads more: beyond
    that the script is slowed, and nothing is lost. `on_room` is called (from the thread) whenever room has come
    back, or writing has failed.
    """

    def __init__(
        self,
        store: JobStore,
        claim: Claim,
        *,
        chunk: int,
        buffer: int = 1024 * 1024,
        spool_in: Path | None = None,
        spool_bytes: int = 0,
        on_room: Callable[[], None],
    ) -> None:
        self._store = store
        self._claim = claim
        self._chunk = chunk
        self._buffer = buffer
        self._on_room = on_room
        # Oldest first: what is being written, `_head`, `_spool`, `_tail`.
        self._writing = 0  # characters
        self._head = _Queue(chunk)
        self._spool = Spool(spool_in, max_bytes=spool_bytes)
        self._tail = _Queue(chunk)
        self._sample: Body | None = None
        self._closing = False
        self._error: Exception | None = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=f"log {claim.job.id}", daemon=True)
        self._thread.start()

    def has_room(self) -> bool:
        return self._error is not None or not self._spool.full or self._memory_has_room()

    def _memory_has_room(self) -> bool:
        return self._writing + self._head.characters + self._tail.characters < self._buffer

    def put(self, stream: Stream, text: str, *, offset: int) -> None:
        """Queue text. `offset`: bytes of the raw stream up to the end of this text, kept in the record so that
        another worker can go on from there. Raises what the thread failed with (ClaimLost, redis errors)."""
        piece = Piece(stream, text, offset)
        with self._changed:
            if self._error is not None:
                raise self._error
            if not self._spool and not self._tail.pieces and (self._memory_has_room() or self._spool.full):
                self._head.add(piece)
            else:
                self._tail.add(piece)
                if self._tail.characters >= _SPOOL_BLOCK and not self._spool.full:
                    self._spill()
            self._changed.notify_all()

    def put_sample(self, body: Body) -> None:
        """Queue a `metrics` event. One that waits is replaced: of what was used while Redis was away, nobody asks.
        Raises what the thread failed with."""
        with self._changed:
            if self._error is not None:
                raise self._error
            self._sample = body
            self._changed.notify_all()

    def _spill(self) -> None:
        """The tail goes to disk. Where it cannot, it stays, and there is no room until the spool is empty."""
        if self._spool.add(self._tail.pieces):
            self._tail = _Queue(self._chunk)

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
            while any(next_ones := self._next_batch()):
                self._write(*next_ones)
                self._writing = 0
                self._on_room()
        except Exception as error:  # noqa: BLE001 - raised again in the owner's thread
            with self._changed:
                self._error = error
            self._on_room()
        finally:
            with self._changed:
                self._spool.close()

    def _next_batch(self) -> tuple[list[Piece], Body | None]:
        """All that waits, up to the batch's size, and a sample; nothing at the end."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._head.pieces or self._spool or self._tail.pieces or self._sample or self._closing
            )
            batch: list[Piece] = []
            while self._writing < _BATCH_CHARACTERS and len(batch) < _BATCH_PIECES:
                if not self._head.pieces and not self._refill():
                    break
                batch.append(self._head.take())
                self._writing += len(batch[-1].text)
            sample, self._sample = self._sample, None
            return batch, sample

    def _refill(self) -> bool:
        """What comes after the head becomes the head. False: nothing does."""
        if self._spool:
            for piece in self._spool.take(_SPOOL_BLOCK):
                self._head.add(piece)
        else:
            self._head, self._tail = self._tail, self._head
        return bool(self._head.pieces)

    def _write(self, batch: list[Piece], sample: Body | None) -> None:
        bodies: list[Body] = []
        offsets: dict[str, str | int] = {}
        for piece in batch:
            bodies.extend(
                log_body(piece.stream, piece.text[start : start + self._chunk])
                for start in range(0, len(piece.text), self._chunk)
            )
            offsets[f"{piece.stream}_offset"] = piece.offset
        if sample is not None:
            bodies.append(sample)
        self._store.write(self._claim, bodies, offsets)
