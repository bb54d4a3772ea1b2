"""The output of a container, live or stored: the engine's multiplexed frames, taken apart.

Protocol: "Stream format" of `POST /containers/{id}/attach` in the Engine API: 8 bytes of header (stream type,
three zeros, big-endian length), then the data. `GET /containers/{id}/logs` answers in the same format.
"""

import socket
import ssl
import struct
import threading
from collections.abc import Callable
from contextlib import suppress
from itertools import groupby
from operator import itemgetter
from typing import Any

import requests

from cronium_worker.models import Stream

_HEADER = struct.Struct(">BxxxL")
_STREAMS: dict[int, Stream] = {1: "stdout", 2: "stderr"}
# In a stored log: the engine's own words on why it cannot read more of it.
_ENGINE_ERROR = 3
_READ_BYTES = 256 * 1024


class AttachedStream:
    """Non-blocking reader of an attached container; give `fileno()` to a selector.

    Data of a frame is passed on as it comes, so a long frame needs no memory of its length.
    """

    def __init__(self, sdk_socket: Any) -> None:
        # The SDK hands out http.client's SocketIO (Unix sockets, TCP) or the socket itself (TLS).
        self._owner = sdk_socket
        self._socket: socket.socket = getattr(sdk_socket, "_sock", sdk_socket)
        self._socket.setblocking(False)
        self._pending: Callable[[], int] = getattr(self._socket, "pending", int)
        self._header = b""
        self._stream: Stream | None = "stdout"
        self._left = 0
        self.ended = False

    def fileno(self) -> int:
        return self._socket.fileno()

    def read(self) -> list[tuple[Stream, bytes]]:
        """What has come since the last call, in order, a piece for each change of streams; sets `ended` at the end.

        The end is no proof that the container ended: it comes as well when the engine dies.
        """
        try:
            data = self._socket.recv(_READ_BYTES)
            while data and (decrypted := self._pending()):  # of TLS: no selector tells of it
                data += self._socket.recv(decrypted)
        except (BlockingIOError, InterruptedError, ssl.SSLWantReadError):
            return []
        except OSError:
            data = b""
        if not data:
            self.ended = True
            return []
        return self._take_apart(memoryview(data))

    def _take_apart(self, data: memoryview) -> list[tuple[Stream, bytes]]:
        pieces: list[tuple[Stream, memoryview]] = []
        while data:
            if self._left == 0:
                missing = _HEADER.size - len(self._header)
                self._header += data[:missing]
                data = data[missing:]
                if len(self._header) < _HEADER.size:
                    break
                kind, self._left = _HEADER.unpack(self._header)
                self._stream = self._named(kind)
                self._header = b""
            piece = data[: self._left]
            if piece:
                if self._stream is not None:
                    pieces.append((self._stream, piece))
                self._left -= len(piece)
                data = data[len(piece) :]
        together = groupby(pieces, key=itemgetter(0))
        return [(stream, b"".join(piece for _, piece in of_stream)) for stream, of_stream in together]

    def _named(self, kind: int) -> Stream | None:
        return _STREAMS.get(kind, "stdout")

    def close(self) -> None:
        # The SDK keeps its answer there, whose finalizer would find the socket closed: Python 3.14 complains of it.
        response = getattr(self._owner, "_response", None)
        with suppress(OSError):
            if response is not None:
                response.close()
            self._owner.close()
            self._socket.close()


class StoredLog(AttachedStream):
    """The engine's stored log from its first byte, and what is added to it, as an attached stream is read.

    A thread copies the body of the answer into a socket: when nobody reads there, it stops reading, too.
    """

    def __init__(self, response: requests.Response) -> None:
        ours, self._feeder = socket.socketpair()
        super().__init__(ours)
        self._response = response
        self._whole = False
        self._damaged = False
        self._thread = threading.Thread(target=self._copy, name="stored log", daemon=True)
        self._thread.start()

    @property
    def whole(self) -> bool:
        """Whether the stream has ended as the engine meant it to end. True at the earliest with `ended`."""
        return self.ended and self._whole and not self._damaged and self._left == 0 and not self._header

    def _named(self, kind: int) -> Stream | None:
        if kind == _ENGINE_ERROR:
            self._damaged = True
            return None
        return super()._named(kind)

    def _copy(self) -> None:
        # The body ends in the middle when the engine dies, the socket when the reader is closed.
        with suppress(requests.exceptions.RequestException, OSError), self._feeder:
            for data in self._response.iter_content(chunk_size=None):
                self._feeder.sendall(data)
            self._whole = True

    def close(self) -> None:
        super().close()
        with suppress(OSError, RuntimeError, ValueError):  # the thread has come to the end, and the connection is gone
            self._response.raw.shutdown()
        self._thread.join()
        self._response.close()
