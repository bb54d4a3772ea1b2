"""What lies beyond a host of the rig: a namespace behind a cable of its own, with addresses of the internet, of private
networks and of a cloud's metadata service; and listeners, there or on the host, that count who came."""

import ctypes
import os
import re
import socket
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, Self

import psutil

from tests.rig_network import NAMESPACES, remove_namespace, run

Kind = Literal["tcp", "udp", "dns"]
ANSWER = b"here I am"
# The cable's two ends. What a name is, whatever it is. All are addresses for documentation (RFC 5737).
HOST_ADDRESS, WORLD_ADDRESS, RESOLVED = "203.0.113.1", "203.0.113.2", "198.51.100.7"
_CLONE_NEWNET = 0x40000000


def in_namespace(path: Path, work: Callable[[], Any]) -> Any:
    """What it returns, done by a thread in that network namespace: sockets stay in the one they were made in."""

    def there() -> Any:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            if ctypes.CDLL(None, use_errno=True).setns(descriptor, _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
        finally:
            os.close(descriptor)
        return work()

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(there).result()


class Listener:
    """Answers, and counts. TCP speaks as much HTTP as a client needs; `redirect`: where it sends it on to."""

    def __init__(self, namespace: str, kind: Kind, address: str, port: int, *, redirect: str = "") -> None:
        self.hits = 0
        self.kind, self.address, self.port = kind, address, port
        self._redirect = redirect
        self._socket: socket.socket = in_namespace(NAMESPACES / namespace, self._bind)
        self._thread = threading.Thread(target=self._serve, name=f"{kind} {address}:{port}", daemon=True)
        self._thread.start()

    def _bind(self) -> socket.socket:
        family = socket.AF_INET6 if ":" in self.address else socket.AF_INET
        listener = socket.socket(family, socket.SOCK_STREAM if self.kind == "tcp" else socket.SOCK_DGRAM)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((self.address, self.port))
        if self.kind == "tcp":
            listener.listen(128)
        return listener

    def _serve(self) -> None:
        with suppress(OSError):  # closed
            while True:
                if self.kind == "tcp":
                    connection, _ = self._socket.accept()
                    self.hits += 1
                    threading.Thread(target=self._speak, args=(connection,), daemon=True).start()
                else:
                    question, peer = self._socket.recvfrom(2048)
                    if peer is None:  # shut down
                        return
                    self.hits += 1
                    with suppress(PermissionError, ConnectionRefusedError):
                        self._socket.sendto(_resolved(question) if self.kind == "dns" else ANSWER, peer)

    def _speak(self, connection: socket.socket) -> None:
        status = f"302 Found\r\nLocation: {self._redirect}" if self._redirect else "200 OK"
        head = f"HTTP/1.0 {status}\r\nContent-Length: {len(ANSWER)}\r\n\r\n"
        with connection, suppress(OSError):
            connection.settimeout(10)
            connection.recv(4096)
            connection.sendall(head.encode() + ANSWER)

    def close(self) -> None:
        with suppress(OSError):  # datagrams are not connected; the thread is woken all the same
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(5)


def _resolved(query: bytes) -> bytes:
    """The answer to a question for an address (RFC 1035): RESOLVED, for a second; to any other one, nothing."""
    end = query.index(b"\0", 12) + 5
    is_address = query[end - 4 : end - 2] == b"\0\1"
    counts = b"\0\1" + (b"\0\1" if is_address else b"\0\0") + b"\0\0\0\0"
    record = b"\xc0\x0c\0\1\0\1\0\0\0\1\0\4" + socket.inet_aton(RESOLVED) if is_address else b""
    return query[:2] + b"\x81\x80" + counts + query[12:end] + record


class World:
    """Reached from the host by its default route."""

    def __init__(self, host: str, *, addresses: Iterable[str]) -> None:
        self.host = host
        self.name = f"{host}w"  # as a namespace and as the host's end of the cable
        self._addresses = addresses
        self._listeners: list[Listener] = []

    def start(self) -> Self:
        _remove_abandoned()
        run("ip", "netns", "add", self.name)
        run("ip", "-n", self.host, "link", "add", "uplink", "type", "veth", "peer", "name", "eth0", "netns", self.name)
        for namespace, link, address in ((self.host, "uplink", HOST_ADDRESS), (self.name, "eth0", WORLD_ADDRESS)):
            run("ip", "-n", namespace, "address", "add", f"{address}/24", "dev", link)
            run("ip", "-n", namespace, "link", "set", link, "up")
        run("ip", "-n", self.name, "link", "set", "lo", "up")
        for address in self._addresses:
            run("ip", "-n", self.name, "address", "add", address, "dev", "lo", *(["nodad"] if ":" in address else []))
        run("ip", "-n", self.host, "route", "add", "default", "via", WORLD_ADDRESS)
        return self

    def listen(self, kind: Kind, address: str, port: int, *, on_host: bool = False, redirect: str = "") -> Listener:
        namespace = self.host if on_host else self.name
        self._listeners.append(Listener(namespace, kind, address, port, redirect=redirect))
        return self._listeners[-1]

    def stop(self) -> None:
        for listener in self._listeners:
            listener.close()
        remove_namespace(self.name)


def _remove_abandoned() -> None:
    """The worlds of processes that were killed before they could stop theirs: a rig's name begins with its pid."""
    for path in NAMESPACES.glob("cr*w"):
        owner = re.fullmatch(r"cr(\d+)-\d+\.\d+w", path.name)
        if owner and not psutil.pid_exists(int(owner[1])):
            remove_namespace(path.name)
