"""The server's connections: fewer than it has descriptors for, and none that is held without being used."""

import socket
import struct
import time
from typing import Any

import h11
from starlette.responses import JSONResponse
from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

from cronium_worker.descriptors import raise_limit

HEADER_S = 5.0  # for a request's first line and headers, from the connection or the last answer on
LINGER_S = 2.0  # for the rest of a body that was answered before its end
STEP_S, STEP_BYTES = 5.0, 8 * 1024  # what a body, or an answer that waits for its reader, must move

# Redis, the broker, files, and connections that are accepted but not yet known to be too many.
_RESERVED_DESCRIPTORS = 224
_MOST_PLACES = 2000
# More connections than there are places: so many are told so, further ones are closed.
_ROOM = 32
# Accepted in one turn of the event loop, before any of them is looked at.
BACKLOG = 32

_AT_ONCE = struct.pack("ii", 1, 0)  # struct linger

_busy = JSONResponse(
    {"error": "too many connections: try again"}, 503, headers={"Retry-After": "1", "Connection": "close"}
)


def count_places() -> int:
    """Return how many connections fit below the limit of open files, which is raised as far as it may be.

    A connection that follows a job needs a second descriptor, for Redis.
    """
    return max(8, min(_MOST_PLACES, (raise_limit() - _RESERVED_DESCRIPTORS) // 2))


class Places:
    """The open connections, and which of them wait for a request. Used in the event loop alone."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._kept: set[Connection] = set()
        # Those that have no request under way, and since when; the longest first.
        self._waiting: dict[Connection, float] = {}

    def protocol(self) -> type[H11Protocol]:
        """The class that uvicorn makes one of for each connection."""
        return type("PlacedConnection", (Connection,), {"places": self})

    def enter(self, connection: "Connection") -> None:
        """Take a new connection: in the place of the one that has waited for the longest, if there is no other."""
        if len(self._kept) >= self._count and self._waiting:
            self._drop(next(iter(self._waiting)))
        if len(self._kept) >= self._count + _ROOM:
            connection.transport.abort()
            return
        if len(self._kept) >= self._count:
            connection.app = _busy
        self._kept.add(connection)
        self._waiting[connection] = time.monotonic()

    def leave(self, connection: "Connection") -> None:
        self._kept.discard(connection)
        self._waiting.pop(connection, None)

    def note(self, connection: "Connection", *, answered: bool = False) -> None:
        """Look whether a connection waits for a request; `answered`: from now on."""
        if answered or not connection.waits:
            self._waiting.pop(connection, None)
        if connection.waits and connection in self._kept:
            self._waiting.setdefault(connection, time.monotonic())

    def sweep(self) -> None:
        """Close what has waited for too long, or moves too slowly. To be called every second or so."""
        now = time.monotonic()
        for connection in list(self._kept):
            since = self._waiting.get(connection)
            if connection.stalls(now) if since is None else now - since > connection.patience_s:
                self._drop(connection)

    def _drop(self, connection: "Connection") -> None:
        self.leave(connection)
        if connection.transport.get_write_buffer_size():
            # Else the kernel goes on trying to deliver what it has of the answer.
            connection.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
        connection.transport.abort()


class Connection(H11Protocol):
    """uvicorn's connection, in one of the `places`."""

    places: Places
    _looked_at = 0.0
    _moved = 0  # bytes since then
    _unread = 0  # bytes that waited for the reader then

    @property
    def waits(self) -> bool:
        """Whether no request is under way."""
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is None or cycle.response_complete

    @property
    def patience_s(self) -> float:
        return LINGER_S if self.conn.their_state is h11.SEND_BODY else HEADER_S

    def stalls(self, now: float) -> bool:
        """Whether the client has neither sent nor taken what it should have, since the last look."""
        if now - self._looked_at < STEP_S:
            return False
        unread = self.transport.get_write_buffer_size() if self.flow.write_paused else 0
        moved = self._moved + max(0, self._unread - unread)
        was_paused = self._unread > 0
        self._looked_at, self._moved, self._unread = now, 0, unread
        expected = (self.cycle.more_body and not self.flow.read_paused) or (was_paused and unread > 0)
        return expected and moved < STEP_BYTES

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self.places.enter(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.places.leave(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        waited = self.waits
        self._moved += len(data)
        super().data_received(data)
        if waited and not self.waits:
            self._looked_at, self._moved, self._unread = time.monotonic(), len(data), 0
        self.places.note(self)

    def resume_writing(self) -> None:
        self._moved += STEP_BYTES  # the reader has taken more than that: asyncio's two marks are 48 KiB apart
        super().resume_writing()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self.places.note(self, answered=True)
