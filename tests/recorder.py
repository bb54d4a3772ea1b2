"""Stands between a worker and its engine: notes every call, answers 403 to what a worker has no need of, and may be as
an engine that has locked up."""

import json
import re
import socket
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

ENGINE = "/var/run/docker.sock"

# What an allow-list between worker and engine has to let through (docs/security.md). {id}: a container or network.
NEEDED = tuple(
    re.compile(rf"{method} (/v[0-9.]+)?{path}(\?.*)?")
    for method, path in (
        ("(GET|HEAD)", "/(_ping|version|info|events)"),
        ("GET", "/containers/json"),
        ("POST", "/containers/create"),
        ("POST", "/containers/[A-Za-z0-9_-]+/(attach|start|wait|kill)"),
        ("GET", "/containers/[A-Za-z0-9_-]+/(json|logs)"),
        ("DELETE", "/containers/[A-Za-z0-9_-]+"),
        ("GET", "/images/(json|.+/json)"),
        ("POST", "/images/create"),
        ("DELETE", "/images/.+"),
        ("GET", "/networks(/[A-Za-z0-9_-]+)?"),
        ("POST", "/networks/create"),
        ("DELETE", "/networks/[A-Za-z0-9_-]+"),
    )
)
# What an engine does not answer whose networks are locked for good (moby issue 46661), as seen of 20.10.
_LOCKED = re.compile(r"(GET /(v[0-9.]+/)?(info|networks|containers/[^/]+/json)|POST|DELETE).*")
_REQUEST = re.compile(rb"([A-Z]+ \S+) HTTP/1\.1\r\n")
_FORBIDDEN = (
    b'HTTP/1.1 403 Forbidden\r\nContent-Type: application/json\r\nContent-Length: 23\r\n\r\n{"message":"forbidden"}'
)


def is_needed(call: str) -> bool:
    return any(pattern.fullmatch(call) for pattern in NEEDED)


@dataclass
class Recorder:
    """A proxy on a socket of its own. `calls`: what was asked; `refused`: what was not passed on; `created`: the
    bodies of the create calls. `unlocked`: while it is not set, as with an engine that has locked up; a call of then is
    never made."""

    path: Path
    calls: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    created: list[dict[str, object]] = field(default_factory=list)
    unlocked: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.unlocked.set()
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.path))
        self._listener.listen(64)
        self._open: set[socket.socket] = set()
        self._threads = [threading.Thread(target=self._accept, name="recorder")]
        self._threads[0].start()

    def close(self) -> None:
        self.unlocked.set()
        for one in (self._listener, *self._open):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(client,), name="recorder")
            self._threads.append(thread)
            thread.start()

    def _serve(self, client: socket.socket) -> None:
        with client, socket.socket(socket.AF_UNIX) as engine:
            engine.connect(ENGINE)
            self._open |= {client, engine}
            answers = threading.Thread(target=_copy, args=(engine, client), name="recorder")
            answers.start()
            self._requests(client, engine)
            answers.join()
            self._open -= {client, engine}

    def _requests(self, client: socket.socket, engine: socket.socket) -> None:
        """The SDK sends a request's head by itself, and one request after the other."""
        with suppress(OSError):
            while data := client.recv(65536):
                found = _REQUEST.match(data)
                if found:
                    call = found[1].decode()
                    self.calls.append(call)
                    if not is_needed(call):
                        self.refused.append(call)
                        client.sendall(_FORBIDDEN)
                        break
                    if not self.unlocked.is_set() and _LOCKED.fullmatch(call):
                        self.unlocked.wait()
                        break
                body = data.partition(b"\r\n\r\n")[2] if found else data  # together with the head, or by itself
                if b'"HostConfig"' in body:
                    self.created.append(json.loads(body))
                engine.sendall(data)
        with suppress(OSError):
            engine.shutdown(socket.SHUT_WR)


def _copy(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_RDWR)
