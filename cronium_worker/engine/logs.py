"""The attached output of a container: the engine's multiplexed frames, taken apart.

Protocol: "Stream format" of `POST /containers/{id}/attach` in the Engine API: 8 bytes of header (stream type,
three zeros, big-endian length), then the data.
"""

import socket
import ssl
import struct
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from cronium_worker.models import Stream

_HEADER = struct.Struct(">BxxxL")
_STREAMS: dict[int, Stream] = {1: "stdout", 2: "stderr"}
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
        self._stream: Stream = "stdout"
        self._left = 0
        self.ended = False

    def fileno(self) -> int:
        return self._socket.fileno()

    def read(self) -> list[tuple[Stream, bytes]]:
        """What has come since the last call, in order; sets `ended` at the end of the stream.

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
        chunks: list[tuple[Stream, bytes]] = []
        while data:
            if self._left == 0:
                missing = _HEADER.size - len(self._header)
                self._header += data[:missing]
                data = data[missing:]
                if len(self._header) < _HEADER.size:
                    break
                kind, self._left = _HEADER.unpack(self._header)
                self._stream = _STREAMS.get(kind, "stdout")
                self._header = b""
            piece = data[: self._left]
            if piece:
                chunks.append((self._stream, bytes(piece)))
                self._left -= len(piece)
                data = data[len(piece) :]
        return chunks

    def close(self) -> None:
        with suppress(OSError):
            self._owner.close()
            self._socket.close()
