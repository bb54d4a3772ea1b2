"""The way of a job's log into Redis: at once after a pause, gathered while it goes on, on disk when more waits than
memory is to hold; and no more of it than the job's share."""

import threading
import time
from bisect import bisect_right
from collections import deque
from collections.abc import Callable
from pathlib import Path

from cronium_worker.fleet.events import Body, log_body, stored_bytes
from cronium_worker.fleet.share import json_length, with_others
from cronium_worker.fleet.spool import Piece, Spool
from cronium_worker.fleet.store import Claim, JobStore
from cronium_worker.models import Stream

_BATCH_CHARACTERS = 512 * 1024
# A batch is one script call, and all of Redis waits for it: about 10 us an event.
_BATCH_PIECES = 200
_PIECES_APART = 100
_SPOOL_BLOCK = 64 * 1024
# Between two writes; longer when there have been many, so that a long log is text and not events' frames.
_PAUSE_S = 0.05
_LONGEST_PAUSE_S = 1.0
_LONGER_AFTER_WRITES = 2000
_FRAME_BYTES = stored_bytes(log_body("stdout", ""))  # of an event that has no text


class _Queue:
    """Pieces in memory, gathered to at most `chunk` characters each."""

    def __init__(self, chunk: int) -> None:
        self._chunk = chunk
        self.pieces: deque[Piece] = deque()
        self.characters = 0

    def joins(self, piece: Piece) -> bool:
        """Whether the piece would be part of an event that is there already."""
        return self._joined_by(piece) is not None

    def add(self, piece: Piece) -> None:
        if (last := self._joined_by(piece)) is not None:
            last.text += piece.text
            last.offset = piece.offset
        else:
            self.pieces.append(piece)
        self.characters += len(piece.text)

    def _joined_by(self, piece: Piece) -> Piece | None:
        last = self._last_of(piece.stream)
        return last if last is not None and len(last.text) + len(piece.text) <= self._chunk else None

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
        max_bytes: int,
        buffer: int = 1024 * 1024,
        spool_in: Path | None = None,
        spool_bytes: int = 0,
        on_room: Callable[[], None],
    ) -> None:
        self._store = store
        self._claim = claim
        self._chunk = chunk
        self._buffer = buffer
        self._max_bytes = max_bytes
        self._left = max_bytes - claim.stored
        self._cut = False
        self._on_room = on_room
        # Oldest first: what is being written, `_head`, `_spool`, `_tail`.
        self._writing = 0  # characters
        self._head = _Queue(chunk)
        self._spool = Spool(spool_in, max_bytes=spool_bytes)
        self._tail = _Queue(chunk)
        self._sample: Body | None = None
        self._writes, self._wrote_at = 0, float("-inf")
        self._gathering = False
        self._closing = False
        self._error: Exception | None = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name=f"log {claim.job.id}", daemon=True)
        self._thread.start()

    def has_room(self) -> bool:
        return self._error is not None or not self._spool.full or self._memory_has_room()

    def _memory_has_room(self) -> bool:
        return self._writing + self._head.characters + self._tail.characters < self._buffer

    @property
    def full(self) -> bool:
        """Whether the job has no room for text any more."""
        return self._left <= 0

    def put(self, stream: Stream, text: str, *, offset: int) -> int:
        """Queue text; returns how many characters of it had room, and when that is not all, none will have any more.
        `offset`: bytes of the raw stream up to the end of this text, kept in the record so that another worker can go
        on from there. Raises what the thread failed with (ClaimLost, redis errors)."""
        piece = Piece(stream, text, offset)
        with self._changed:
            if self._error is not None:
                raise self._error
            at_once = not self._spool and not self._tail.pieces and (self._memory_has_room() or self._spool.full)
            queue = self._head if at_once else self._tail
            self._take_share(piece, queue)
            if not piece.text:
                return 0
            queue.add(piece)
            if not at_once and self._tail.characters >= _SPOOL_BLOCK and not self._spool.full:
                self._spill()
            self._notify()
            return len(piece.text)

    def _take_share(self, piece: Piece, queue: _Queue) -> None:
        """Leave of the piece what the job's share has room for."""
        joins, text = queue.joins(piece), piece.text

        def cost(length: int) -> int:
            frames = 0 if joins else -(-length // self._chunk)
            return frames * _FRAME_BYTES + json_length(text[:length])

        if (whole := cost(len(text))) <= self._left:
            self._left -= whole
        else:
            self._cut, self._left, room = True, 0, self._left
            piece.text = text[: max(0, bisect_right(range(len(text)), room, key=cost) - 1)]

    def put_sample(self, body: Body) -> None:
        """Queue a `metrics` event. One that waits is replaced: of what was used while Redis was away, nobody asks.
        Raises what the thread failed with."""
        with self._changed:
            if self._error is not None:
                raise self._error
            if self._left > self._max_bytes - with_others(self._max_bytes):
                self._sample = body
                self._notify()

    def _notify(self) -> None:
        """Wake the thread, but not to find that it is to gather more."""
        if not self._gathering or self._is_a_batch():
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
            self._changed.wait_for(lambda: self._waits() or self._sample or self._closing)
            self._gather()
            batch: list[Piece] = []
            while self._writing < _BATCH_CHARACTERS and len(batch) < _BATCH_PIECES:
                if not self._head.pieces and not self._refill():
                    break
                batch.append(self._head.take())
                self._writing += len(batch[-1].text)
            sample, self._sample = self._sample, None
            if sample is not None:
                self._left -= stored_bytes(sample)
            return batch, sample

    def _waits(self) -> bool:
        return bool(self._head.pieces or self._spool or self._tail.pieces)

    def _is_a_batch(self) -> bool:
        characters = self._head.characters + self._tail.characters
        much = characters >= min(_BATCH_CHARACTERS, self._buffer) or len(self._head.pieces) >= _BATCH_PIECES
        return much or bool(self._spool)

    def _gather(self) -> None:
        """Let what is to come join what waits, until some time after the last write."""
        pause_s = min(_PAUSE_S * (1 + self._writes / _LONGER_AFTER_WRITES), _LONGEST_PAUSE_S)
        self._gathering = True
        while not (self._closing or self._is_a_batch()):
            if (left_s := self._wrote_at + pause_s - time.monotonic()) <= 0:
                break
            self._changed.wait(left_s)
        self._gathering = False

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
        if self._cut and not self._waits():
            # It counts as full, so that nobody goes on behind the place where it is cut.
            self._claim.stored = max(self._claim.stored, self._max_bytes - sum(map(stored_bytes, bodies)))
        self._writes += 1
        self._wrote_at = time.monotonic()
        self._store.write(self._claim, bodies, offsets)
