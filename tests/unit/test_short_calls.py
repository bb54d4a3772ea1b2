"""The client of the engine against a server that does as it is told."""

import gc
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import suppress
from itertools import takewhile
from pathlib import Path

import pytest
import requests
from docker.errors import APIError, NotFound

from cronium_worker.engine.short_calls import ShortCallClient

OK = b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 13\r\n\r\n{"Id": "\xc3\xa4x"}'
GONE = b'HTTP/1.1 404 Not Found\r\nContent-Type: application/json\r\nContent-Length: 18\r\n\r\n{"message":"gone"}'


class Server:
    """On a Unix socket. `answer`: to each request; None: none comes, and the connection stays; empty: it is closed."""

    def __init__(self, path: Path) -> None:
        self.answer: bytes | None = OK
        self.requests: list[str] = []
        self.connections: list[socket.socket] = []
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen()
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self.connections.append(connection)
                self._threads.append(threading.Thread(target=self._serve, args=(connection,)))
                self._threads[-1].start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, suppress(OSError), connection.makefile("rb") as stream:
            while head := b"".join(takewhile(lambda line: line.strip(), stream)):
                length = re.search(rb"Content-Length: (\d+)", head)
                self.requests.append((head + b"\r\n" + stream.read(int(length[1]) if length else 0)).decode())
                if self.answer == b"":
                    return
                if self.answer is not None and b"Connection: close" in head:
                    connection.sendall(self.answer.replace(b"\r\n", b"\r\nConnection: close\r\n", 1))
                    return
                if self.answer is not None:
                    connection.sendall(self.answer)

    def drop(self) -> None:
        """All connections, as an engine that is started anew."""
        for connection in self.connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self.drop()
        for thread in self._threads:
            thread.join()
        self._listener.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path / "engine.sock")
    yield server
    server.close()


@pytest.fixture
def client(server: Server, tmp_path: Path) -> Iterator[ShortCallClient]:
    client = _client(tmp_path / "engine.sock", keep_connections=True)
    yield client
    client.close()


def _client(path: Path, *, keep_connections: bool) -> ShortCallClient:
    return ShortCallClient(base_url=f"unix://{path}", version="1.41", timeout=5, keep_connections=keep_connections)


def test_calls_share_a_connection(client: ShortCallClient, server: Server) -> None:
    for number in range(30):
        assert client.inspect_container(f"c{number}") == {"Id": "äx"}
    assert len(server.connections) == 1
    assert [request.split("\r\n")[0] for request in server.requests] == [
        f"GET /v1.41/containers/c{number}/json HTTP/1.1" for number in range(30)
    ]


def test_each_call_has_a_connection_of_its_own(server: Server, tmp_path: Path) -> None:
    client = _client(tmp_path / "engine.sock", keep_connections=False)
    for name in "abc":
        assert client.inspect_container(name) == {"Id": "äx"}
    client.close()
    assert len(server.connections) == 3


def test_what_is_sent(client: ShortCallClient, server: Server) -> None:
    client.remove_container("c", v=True, force=True)
    client.create_container_from_config({"Image": "ä"}, "a name")  # type: ignore[no-untyped-call]
    removed, created = server.requests
    assert removed.startswith("DELETE /v1.41/containers/c?v=True&link=False&force=True HTTP/1.1\r\n")
    head, _, body = created.partition("\r\n\r\n")
    assert head.startswith("POST /v1.41/containers/create?name=a+name HTTP/1.1\r\n")
    assert "\r\nContent-Type: application/json" in head
    assert body == '{"Image": "\\u00e4"}'
    client.get(f"{client.base_url}/x", params={"none": None, "two": ["a b", "&"]}, timeout=5)
    assert server.requests[-1].startswith("GET /x?two=a+b&two=%26 HTTP/1.1\r\n")


def test_what_is_streamed_goes_the_sdks_way_and_takes_no_connection_away(
    client: ShortCallClient, server: Server
) -> None:
    for number in range(30):  # of more addresses than the SDK keeps connections for
        client.get(f"{client.base_url}/{number}", stream=True, timeout=5).close()
    assert client.inspect_container("c") == {"Id": "äx"}


def test_a_refusal_is_the_sdks_own(client: ShortCallClient, server: Server) -> None:
    server.answer = GONE
    with pytest.raises(NotFound, match="gone") as error:
        client.inspect_container("c")
    assert error.value.explanation == "gone"
    server.answer = GONE.replace(b"404 Not Found", b"500 Internal Server Error")
    with pytest.raises(APIError) as failed:
        client.start("c")
    assert failed.value.status_code == 500


def test_no_answer_in_time(client: ShortCallClient, server: Server) -> None:
    server.answer = None
    client.timeout = 0.1
    with pytest.raises(requests.Timeout):
        client.inspect_container("c")


def test_a_connection_that_is_lost(client: ShortCallClient, server: Server) -> None:
    server.answer = b""
    with pytest.raises(requests.ConnectionError):
        client.start("c")


def test_an_engine_that_was_started_anew(client: ShortCallClient, server: Server) -> None:
    client.inspect_container("c")
    server.drop()
    client.inspect_container("c")
    assert len(server.connections) == 2


@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")  # the SDK's, of a socket that was refused
def test_no_engine(tmp_path: Path) -> None:
    client = _client(tmp_path / "none.sock", keep_connections=True)
    with pytest.raises(requests.ConnectionError):
        client.version()
    client.close()
    gc.collect()
