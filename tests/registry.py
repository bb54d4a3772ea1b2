"""A real registry for the tests: Debian's docker-registry as a process of its own on a free port.

It can be stopped and started again with its images, and its access log tells who pulled what. Listening on
127.0.0.1 it needs no TLS: engines take all of 127.0.0.0/8 for insecure registries.
"""

import base64
import io
import json
import os
import re
import shutil
import socket
import subprocess
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import docker
from docker.errors import ImageNotFound

from tests.conftest import wait_until

USERNAME = "ada"
PASSWORD = "correct horse"
AUTH = {"username": USERNAME, "password": PASSWORD}
_HTPASSWD = f"{USERNAME}:$2y$05$abcdefghijklmnopqrstuuHNbAKRhpaujgo33bRWs.NLUTJO3lOy2\n"
_CONFIG = """\
version: 0.1
log: {{level: warn}}
storage:
  filesystem: {{rootdirectory: {data}}}
  delete: {{enabled: true}}
http:
  addr: {address}
{tls}{auth}"""
_TLS = """\
  tls: {{certificate: {certificate}, key: {key}}}
"""
_AUTH = """\
auth:
  htpasswd: {{realm: tests, path: {path}}}
"""

_ADDRESSES: set[str] = set()  # of all registries and proxies of this process


def free_port(host: str = "127.0.0.1") -> int:
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


class RegistryServer:
    """One registry; `start()` and `stop()` may follow each other on the same address and data."""

    def __init__(
        self,
        directory: Path,
        *,
        host: str = "127.0.0.1",
        port: int | None = None,
        login: bool = False,
        tls: tuple[Path, Path] | None = None,
    ) -> None:
        """`login`: for USERNAME and PASSWORD only. `tls`: certificate and key."""
        self.address = f"{host}:{port or free_port(host)}"
        _ADDRESSES.add(self.address)
        self.auth = AUTH if login else None
        self._host, self._port = host, int(self.address.rpartition(":")[2])
        self._log = directory / "access.log"
        self._config = directory / "config.yml"
        self.data = directory / "data"
        self._process: subprocess.Popen[bytes] | None = None
        password_file = directory / "htpasswd"
        password_file.write_text(_HTPASSWD)
        auth = _AUTH.format(path=password_file) if login else ""
        secure = _TLS.format(certificate=tls[0], key=tls[1]) if tls else ""
        self._config.write_text(_CONFIG.format(data=self.data, address=self.address, tls=secure, auth=auth))

    def start(self) -> "RegistryServer":
        command = shutil.which("docker-registry")
        assert command, "docker-registry is missing: run the tests with `make test`"
        with self._log.open("ab") as log:
            self._process = subprocess.Popen([command, "serve", str(self._config)], stdout=log, stderr=log)
        wait_until(self._answers, what="the registry")
        return self

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, self.log()
        with suppress(OSError), socket.create_connection((self._host, self._port), timeout=1):
            return True
        return False

    def stop(self) -> None:
        """At once, as a power failure would; its data stays. Idempotent."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def log(self) -> str:
        return self._log.read_text()

    def manifests(self, name: str) -> list[tuple[str, str]]:
        """The answered requests for manifests of a repository since the registry was made: method, tag or digest."""
        pattern = rf'"(GET|HEAD) /v2/{re.escape(name)}/manifests/(\S+) HTTP/[\d.]+" 200 '
        return re.findall(pattern, self.log())

    def pulls(self, name: str) -> int:
        """How often an engine has looked a tag of this repository up, which each pull by tag begins with.

        Engines ask with HEAD since 20.10, and get the manifest by its digest if they do not have it from before.
        """
        by_tag = [method for method, version in self.manifests(name) if not version.startswith("sha256:")]
        return by_tag.count("HEAD") or by_tag.count("GET")

    def asked(self, name: str, version: str) -> int:
        """How often a manifest was asked for, there or not."""
        request = f" /v2/{name}/manifests/{version} "
        return self.log().count(f'"HEAD{request}') or self.log().count(f'"GET{request}')

    def reference(self, name: str) -> str:
        return f"{self.address}/{name}"


@contextmanager
def running_registry(directory: Path, **options: Any) -> Iterator[RegistryServer]:
    """A registry with its data in `directory`, gone at the end."""
    server = RegistryServer(directory, **options)
    try:
        yield server.start()
    finally:
        server.stop()


def make_image(api: docker.APIClient, reference: str, *, size: int = 1000, parent: str | None = None) -> str:
    """An image that nobody else has, with one new layer of `size` random bytes; its id.

    With a parent (a runner image) jobs can run in it; without, it is this one layer alone.
    """
    content = {"blob": os.urandom(size)}
    if parent is None:
        name, _, tag = reference.rpartition(":")
        answer = api.import_image_from_data(_tar(content), repository=name, tag=tag)
        return str(json.loads(answer)["status"])
    content["Dockerfile"] = f"FROM {parent}\nCOPY blob /blob\n".encode()
    for message in api.build(
        fileobj=io.BytesIO(_tar(content)), custom_context=True, tag=reference, decode=True, rm=True
    ):
        assert "error" not in message, message
    return str(api.inspect_image(reference)["Id"])


def _tar(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return buffer.getvalue()


def push_image(
    api: docker.APIClient,
    registry: RegistryServer,
    name: str,
    *,
    size: int = 1000,
    parent: str | None = None,
    keep: bool = False,
) -> str:
    """Make an image (see make_image), push it as `name` (with its tag) and forget it here unless `keep`; its digest."""
    reference = registry.reference(name)
    make_image(api, reference, size=size, parent=parent)
    digest = push(api, reference, auth=registry.auth)
    if not keep:
        api.remove_image(reference, force=True)
    return digest


def push(api: docker.APIClient, reference: str, *, auth: dict[str, str] | None = None) -> str:
    """Push what is here under this reference; the manifest's digest."""
    digest = ""
    repository, _, tag = reference.rpartition(":")
    for message in api.push(repository, tag=tag, auth_config=auth or {}, stream=True, decode=True):
        assert "error" not in message, message
        digest = message.get("aux", {}).get("Digest", digest)
    # With the containerd image store it is not told: the image's id is the manifest's digest.
    return digest or str(api.inspect_image(reference)["Id"])


def forget(api: docker.APIClient, *addresses: str) -> None:
    """Remove all that the engine has from registries: tags, digests, and the layers that nobody else uses.

    Without addresses: from all registries and proxies of this process.
    """
    places = tuple(f"{address}/" for address in addresses or _ADDRESSES)
    for image in api.images():
        for name in [*(image["RepoTags"] or ()), *(image["RepoDigests"] or ())]:
            if name.startswith(places) and "<none>" not in name:
                with suppress(ImageNotFound):
                    api.remove_image(name, force=True)


class Holdup:
    """A proxy before a registry that holds back what comes after the first `allowed` bytes, until `release()`.

    So a pull stands still where a test wants it to. Images are named by the proxy's address.
    """

    def __init__(self, registry: RegistryServer, *, allowed: int) -> None:
        self._target = registry.address
        self._left = allowed
        self._released = threading.Event()
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        _ADDRESSES.add(self.address)
        self._start(self._accept)

    def _start(self, work: Callable[..., None], *args: Any) -> None:
        thread = threading.Thread(target=work, args=args)
        with self._lock:
            self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            host, _, port = self._target.rpartition(":")
            try:
                far = socket.create_connection((host, int(port)))
            except OSError:
                near.close()
                continue
            with self._lock:
                self._sockets += [near, far]
            self._start(self._pump, near, far, False)
            self._start(self._pump, far, near, True)

    def _pump(self, source: socket.socket, sink: socket.socket, counted: bool) -> None:
        with suppress(OSError):
            while data := source.recv(16384):
                if counted and not self._released.is_set():
                    with self._lock:
                        now = data[: max(self._left, 0)]
                        self._left -= len(now)
                    sink.sendall(now)
                    data = data[len(now) :]
                    if data:
                        self._released.wait()
                sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def release(self) -> None:
        self._released.set()

    def open_connections(self) -> int:
        """To the engine, that are still open."""
        with self._lock:
            return sum(_is_open(near) for near in self._sockets[::2])

    def close(self) -> None:
        """Hang up on all; what was held back is lost. Nobody listens at the address any more."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            sockets = list(self._sockets)
        for each in sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        self._released.set()
        for thread in list(self._threads):
            thread.join()
        for each in sockets:
            each.close()


def _is_open(connection: socket.socket) -> bool:
    """Whether the other side still has it: it has sent nothing that nobody reads, so an end is all there can be."""
    try:
        return connection.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT) != b""
    except BlockingIOError:
        return True
    except OSError:
        return False


class RecordingRegistry:
    """What a real registry does not do: asks for a password, keeps what it is told, lets nobody in. With another
    `status` it answers that, with 0 it hangs up; with `silent` it takes requests and never answers."""

    def __init__(self, *, status: int = 401, silent: bool = False) -> None:
        self.authorizations: list[str] = []
        self.requests = 0
        self._release = threading.Event()
        owner = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                owner.requests += 1
                if "Authorization" in self.headers:
                    owner.authorizations.append(owner._plain(self.headers["Authorization"]))
                if silent:
                    owner._release.wait(60)
                if silent or not status:
                    return
                self.send_response(status)
                self.send_header("WWW-Authenticate", 'Basic realm="tests"')
                self.send_header("Docker-Distribution-Api-Version", "registry/2.0")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def do_HEAD(self) -> None:
                self.do_GET()

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = f"127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    @staticmethod
    def _plain(header: str) -> str:
        return base64.b64decode(header.removeprefix("Basic ")).decode()

    def close(self) -> None:
        self._release.set()
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
