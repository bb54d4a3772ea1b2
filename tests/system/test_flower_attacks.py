"""Flower under attack: by a page of another site, by who has no login, and by who looks at its process."""

import os
import re
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests

from tests.conftest import wait_until
from tests.system.conftest import CRONIUM

pytestmark = pytest.mark.attack

LOGIN = ("ada", "love-lace-love-lace")
KEY = "A" * 43 + "="
PATHS = ("/", "/workers", "/tasks", "/task/x", "/api/workers", "/static/css/flower.css", "/metrics", "/no-such-page")


@dataclass
class Flower:
    """A running one."""

    pid: int
    port: int
    log: Path

    def get(self, path: str, *, login: bool = False, **headers: str) -> requests.Response:
        auth = LOGIN if login else None
        return requests.get(f"http://127.0.0.1:{self.port}{path}", headers=headers, auth=auth, timeout=20)


@contextmanager
def running(redis_url: str, log: Path, **environment: str) -> Iterator[Flower]:
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["sh", "-c", f"ulimit -n 1024 && exec {CRONIUM} flower --port 0"],
            env={**os.environ, "CRONIUM_REDIS_URL": redis_url, **environment},
            stdout=subprocess.PIPE,
            stderr=output,
            text=True,
        )
    with process:
        try:
            assert process.stdout is not None
            address = re.fullmatch(r"Flower: http://\S+:(\d+)\n", process.stdout.readline())
            assert address, log.read_text()
            yield Flower(process.pid, int(address[1]), log)
        finally:
            process.terminate()
            assert process.wait(10) == 0


def test_without_a_login_it_answers_by_names_of_this_machine_alone(redis_url: str, tmp_path: Path) -> None:
    with running(redis_url, tmp_path / "log") as flower:
        for path in PATHS:
            for host in ("rebound.example", f"rebound.example:{flower.port}", "127.0.0.1.rebound.example", "[", ""):
                assert flower.get(path, Host=host).status_code == 400
        for host in ("localhost", f"localhost:{flower.port}", "127.0.0.1", f"[::1]:{flower.port}"):
            assert flower.get("/tasks", Host=host).status_code == 200
        assert_in_no_frame(flower, login=False)


def test_with_a_login_it_is_in_no_frame_and_takes_no_large_body(redis_url: str, tmp_path: Path) -> None:
    login = {"CRONIUM_FLOWER__USERNAME": LOGIN[0], "CRONIUM_FLOWER__PASSWORD": LOGIN[1]}
    with running(redis_url, tmp_path / "log", **login) as flower:
        assert flower.get("/tasks", Host="flower.example").status_code == 401
        assert flower.get("/tasks", login=True, Host="flower.example").status_code == 200
        assert_in_no_frame(flower, login=True)
        with socket.create_connection(("127.0.0.1", flower.port), timeout=10) as connection:
            connection.sendall(b"POST /tasks/datatable HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999\r\n\r\n")
            assert connection.recv(100).startswith((b"HTTP/1.1 400", b"HTTP/1.1 413")) or connection.recv(1) == b""


def assert_in_no_frame(flower: Flower, *, login: bool) -> None:
    for path in PATHS:
        headers = flower.get(path, login=login).headers
        assert headers["X-Frame-Options"] == "DENY"
        assert "frame-ancestors 'none'" in headers["Content-Security-Policy"]
        assert headers["X-Content-Type-Options"] == "nosniff"


def test_it_outlives_silent_connections(redis_url: str, tmp_path: Path) -> None:
    with running(redis_url, tmp_path / "log") as flower:
        with ExitStack() as stack:
            for _ in range(1100):
                stack.enter_context(socket.create_connection(("127.0.0.1", flower.port), timeout=20))

        def answers() -> bool:
            with suppress(requests.ConnectionError):  # they are not all gone yet
                return flower.get("/tasks").status_code == 200
            return False

        wait_until(answers, what="an answer")
        assert flower.log.stat().st_size < 100_000


def test_it_holds_no_credentials_of_others(redis_url: str, tmp_path: Path) -> None:
    given = {
        "CRONIUM_SECRET_KEYS": KEY,
        "CRONIUM_SIGNING_KEYS": KEY,
        "CRONIUM_REGISTRY__PASSWORD": "registry-hunter2",
        "CRONIUM_WEB__TOKEN": "web-hunter2-hunter2",
        "CRONIUM_WEB__URL": "http://page.example",
        "CRONIUM_FLOWER__USERNAME": LOGIN[0],
        "CRONIUM_FLOWER__PASSWORD": LOGIN[1],
    }
    with running(redis_url, tmp_path / "log", **given) as flower:
        assert flower.get("/tasks", login=True).status_code == 200  # it handles signals by now
        environment = Path(f"/proc/{flower.pid}/environ").read_text()
    assert LOGIN[1] in environment
    assert "page.example" in environment
    assert KEY not in environment
    assert "hunter2" not in environment
