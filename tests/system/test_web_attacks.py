"""The HTTP API under attack: what somebody without the token, or a job by its result, may cost it and others."""

import base64
import json
import os
import resource
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import requests

from cronium_worker.fleet.connections import connect
from cronium_worker.fleet.events import log_body
from cronium_worker.fleet.store import INDEX_KEY, Claim, JobStore, job_keys
from cronium_worker.models import Job, JobResult, Output, OutputFile
from tests.conftest import wait_until

pytestmark = pytest.mark.attack

MIB = 1024 * 1024
TOKEN = "a-token-of-these-tests"
BEARER = {"Authorization": f"Bearer {TOKEN}"}


@dataclass
class Server:
    """A running `cronium web`."""

    pid: int
    port: int
    log: Path

    def get(self, path: str, **options: Any) -> requests.Response:
        return requests.get(f"http://127.0.0.1:{self.port}{path}", headers=BEARER, timeout=20, **options)

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=20)

    def send(self, text: str) -> socket.socket:
        connection = self.connect()
        connection.sendall(text.replace("\n", "\r\n").encode())
        return connection

    def status(self, text: str) -> int:
        """Of the answer to a request as it stands here."""
        with self.send(text) as connection:
            return status(connection)

    @property
    def peak(self) -> int:
        """The most memory that it had, bytes."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

    @contextmanager
    def grows_by_less_than(self, mib: int) -> Iterator[None]:
        Path(f"/proc/{self.pid}/clear_refs").write_text("5")
        before = self.peak
        yield
        assert self.peak - before < mib * MIB, f"{(self.peak - before) / MIB:.0f} MiB"

    @contextmanager
    def answers_others_in(self, seconds: float) -> Iterator[None]:
        done, slowest = threading.Event(), 0.0

        def ask() -> None:
            nonlocal slowest
            while not done.wait(0.05):
                start = time.monotonic()
                assert self.get("/session").status_code == 200
                slowest = max(slowest, time.monotonic() - start)

        with ThreadPoolExecutor(1) as pool:
            asking = pool.submit(ask)
            try:
                yield
            finally:
                done.set()
            asking.result()
        assert 0 < slowest < seconds


def status(connection: socket.socket) -> int:
    """Of the answer on a connection; 0: it is closed without one."""
    try:
        return int(connection.recv(4096).split(b" ")[1])
    except (ConnectionError, IndexError):
        return 0


@pytest.fixture
def server(redis_url: str, tmp_path: Path) -> Iterator[Server]:
    command = f"ulimit -n 1024 && exec {sys.executable} -m cronium_worker web --port 0"
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(
            ["sh", "-c", command],
            env={**os.environ, "CRONIUM_REDIS_URL": redis_url, "CRONIUM_WEB__TOKEN": TOKEN},
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    with process:
        try:
            assert process.stdout is not None
            found = Server(process.pid, int(process.stdout.readline().rpartition(":")[2]), tmp_path / "log")
            assert found.get("/jobs").status_code == 200
            yield found
            assert process.poll() is None
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 0


@pytest.fixture
def ended(redis_url: str) -> Iterator[Callable[[JobResult | None, int], str]]:
    """Makes a job that has ended, with a result and with MiB of a log; nothing is left of it."""
    with connect(redis_url) as redis:
        store, ids = JobStore(redis, result_ttl_s=600), []

        def make(result: JobResult, log_mib: int = 0) -> str:
            job = Job.model_validate({"script": {"type": "bash", "content": "x"}})
            ids.append(job.id)
            store.register(job, task_id=job.id, queue="web-attacks")
            claim = store.claim(job.id, host="h1")
            assert isinstance(claim, Claim)
            for _ in range(log_mib * 16):
                store.write(claim, [log_body("stdout", "x" * 65_535 + "\n")])
            store.finish(claim, result.model_copy(update={"job_id": job.id}), "completed")
            return job.id

        yield make
        for job_id in ids:
            redis.delete(*job_keys(job_id))
            redis.zrem(INDEX_KEY, job_id)
            store.settle(job_id)


# ---- without the token


def test_a_body_is_not_read_before_the_token_is_looked_at(server: Server) -> None:
    text = b'{"script": {"type": "bash", "content": "' + b"x" * (120 * MIB) + b'"}}'

    def send() -> int:
        with server.send(f"POST /jobs HTTP/1.1\nHost: x\nContent-Length: {len(text)}\n\n") as connection:
            with suppress(OSError):  # it is closed
                connection.sendall(text)
            return status(connection)

    with server.answers_others_in(0.5), server.grows_by_less_than(20), ThreadPoolExecutor(4) as pool:
        codes = list(pool.map(lambda _: send(), range(4)))
    assert set(codes) <= {401, 0}
    # Who waits for the answer before the body gets it.
    assert server.status(f"POST /jobs HTTP/1.1\nHost: x\nContent-Length: {len(text)}\n\n") == 401


def test_whatever_is_sent_without_the_token_is_answered_alike(server: Server) -> None:
    paths = ("/jobs", "/schedules", "/jobs/x/rerun", "/no-such-call", "/main.mjs", "/docs")
    for method, path in product(("POST", "PUT", "DELETE", "PATCH", "OPTIONS"), paths):
        for body in ("", "{", "[" * 100_000, "\0"):
            answer = requests.request(method, f"http://127.0.0.1:{server.port}{path}", data=body, timeout=10)
            assert answer.status_code == 401
            assert answer.json() == {"error": "give the token: Authorization: Bearer …"}


def test_no_call_takes_more_than_its_limit(server: Server) -> None:
    for path, largest in (("/session", 4096), ("/jobs", 16 * MIB), ("/schedules", 16 * MIB), ("/jobs/x/rerun", 4096)):
        start = f"POST {path} HTTP/1.1\nHost: x\nContent-Type: application/json\nAuthorization: Bearer {TOKEN}\n"
        with server.grows_by_less_than(80):
            assert server.status(f"{start}Content-Length: {largest + 1}\n\n") == 413
            assert server.status(f"{start}Content-Length: {10**30}\n\n") in {400, 413}
            with server.send(f"{start}Transfer-Encoding: chunked\n\n") as connection:
                with suppress(OSError):
                    for _ in range(largest // 65_536 + 1):
                        connection.sendall(b"10001\r\n" + b" " * 65_537 + b"\r\n")
                # That one reads no body at all.
                assert status(connection) == (404 if path.endswith("rerun") else 413)
    assert server.get("/session").status_code == 200


def test_silent_connections_keep_nobody_out(server: Server) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    try:
        with ExitStack() as stack:
            for number in range(1100):
                stack.enter_context(server.connect())
                if number % 100 == 99:
                    start = time.monotonic()
                    assert server.get("/session").status_code == 200
                    assert time.monotonic() - start < 3
            assert len(list(Path(f"/proc/{server.pid}/fd").iterdir())) < 1024
        assert server.get("/jobs").status_code == 200
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert server.log.stat().st_size < 100_000


def test_who_is_too_slow_is_cut_off(server: Server, ended: Callable[..., str]) -> None:
    """A first line, a header, a body, an answer that is not taken; who follows a job stays."""
    job_id = ended(JobResult(job_id="x", status="completed"), 16)
    following = server.get("/events", stream=True)
    dripping = [
        server.connect(),
        server.send("GET /"),
        server.send("GET /session HTTP/1.1\nHost: x\nX-"),
        server.send(f"POST /jobs HTTP/1.1\nHost: x\nAuthorization: Bearer {TOKEN}\nContent-Length: 999999\n\n"),
        server.send("POST /session HTTP/1.1\nHost: x\nContent-Length: 99\n\n"),
    ]
    reader = socket.socket()
    reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    reader.settimeout(20)
    reader.connect(("127.0.0.1", server.port))
    head = f"GET /jobs/{job_id}/log HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {TOKEN}\r\n\r\n"
    reader.sendall(head.encode())
    open_at = time.monotonic()
    left = {*dripping, reader}

    def is_gone(connection: socket.socket) -> bool:
        try:
            if connection is reader:  # without taking anything
                return connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] != 1  # TCP_ESTABLISHED
            connection.send(b"x")
            connection.settimeout(0.01)
            return connection.recv(4096) == b""
        except TimeoutError:
            return False
        except OSError:
            return True

    def cut_off() -> bool:
        left.difference_update([connection for connection in left if is_gone(connection)])
        return not left

    wait_until(cut_off, timeout_s=25, what="all of them closed")
    assert time.monotonic() - open_at > 2
    for connection in (*dripping, reader):
        connection.close()
    assert following.raw.isclosed() is False
    assert next(following.iter_lines(chunk_size=1))
    following.close()


def test_wrong_tokens_are_slow_and_keep_nobody_out(server: Server) -> None:
    url = f"http://127.0.0.1:{server.port}"

    def guess(number: int) -> tuple[int, float]:
        start = time.monotonic()
        if number % 2:
            answer = requests.post(f"{url}/session", json={"token": f"wrong-{number}"}, timeout=20)
        else:
            answer = requests.get(f"{url}/jobs", headers={"Authorization": f"Bearer wrong-{number}"}, timeout=20)
        return answer.status_code, time.monotonic() - start

    with server.answers_others_in(0.5), ThreadPoolExecutor(40) as pool:
        answers = list(pool.map(guess, range(80)))
    assert {code for code, _ in answers} == {401, 429}
    assert sorted(took for code, took in answers if code == 401)[6] > 0.5
    assert requests.post(f"{url}/session", json={"token": TOKEN}, timeout=20).status_code == 204
    assert requests.post(f"{url}/session", json={"token": "\ud800"}, timeout=20).status_code == 401


def test_nothing_is_shown_in_a_frame_of_another_site(server: Server) -> None:
    for path in ("/", "/main.mjs", "/jobs", "/openapi.json", "/no-such-file"):
        headers = server.get(path).headers
        assert (headers["X-Frame-Options"], headers["X-Content-Type-Options"]) == ("DENY", "nosniff")
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    assert "frame-ancestors 'none'" in server.get("/").headers["Content-Security-Policy"]


# ---- by a result


@pytest.mark.parametrize("path", ["", "/files/0.bin", "/events", "/log"])
def test_the_largest_results_are_not_all_in_memory_at_once(
    server: Server, ended: Callable[..., str], path: str
) -> None:
    content = base64.b64encode(bytes(8 * MIB)).decode()
    files = {f"{number}.bin": OutputFile(size=8 * MIB, sha256="0" * 64, content=content) for number in range(4)}
    job_id = ended(JobResult(job_id="x", status="completed", output=Output(files=files)), 8)

    with server.grows_by_less_than(160), server.answers_others_in(3), ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: server.get(f"/jobs/{job_id}{path}"), range(8)))
    assert {answer.status_code for answer in answers} == {200}
    if not path:
        assert {len(answer.content) < 4096 for answer in answers} == {True}
        assert [file["url"] for file in answers[0].json()["result"]["output"]["files"].values()]
    elif "files" in path:
        assert {answer.content == bytes(8 * MIB) for answer in answers} == {True}


def test_an_output_of_millions_of_lists_costs_its_length(server: Server, ended: Callable[..., str]) -> None:
    data: Any = [[] for _ in range(2_500_000)]
    job_id = ended(JobResult(job_id="x", status="completed", output=Output(data=data)))

    with server.grows_by_less_than(120), ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: server.get(f"/jobs/{job_id}"), range(8)))
    assert {answer.status_code for answer in answers} == {200}
    assert json.loads(answers[0].content)["result"]["output"]["data"] == data


def test_a_workflows_steps_are_told_without_their_results(server: Server, redis_url: str) -> None:
    """Each of them may have the largest one."""
    job_id = uuid4().hex
    content = base64.b64encode(bytes(30 * MIB)).decode()
    files = {"0.bin": OutputFile(size=30 * MIB, sha256="0" * 64, content=content)}
    job = Job.model_validate({"id": job_id, "script": {"type": "bash", "content": "x"}})
    link = {"args": [json.loads(job.to_json(secrets=False))], "options": {"on": "always", "task_id": job_id}}
    with connect(redis_url) as redis:
        store = JobStore(redis, result_ttl_s=60)
        store.register(job, task_id=job_id, queue="web-attacks", message={"link": [link] * 8})
        claim = store.claim(job_id, host="h1")
        assert isinstance(claim, Claim)
        store.finish(claim, JobResult(job_id=job_id, status="completed", output=Output(files=files)), "completed")
        try:
            with server.grows_by_less_than(160), server.answers_others_in(3):
                assert len(server.get(f"/jobs/{job_id}").json()["workflow"]) == 9
        finally:
            redis.delete(*job_keys(job_id))
            redis.zrem(INDEX_KEY, job_id)
            store.settle(job_id)
