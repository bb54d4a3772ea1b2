"""A Redis of a test's own, that may be stopped, killed, frozen and filled: an append-only file, nothing evicted."""

import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import psutil
import pytest
from redis import Redis
from redis.exceptions import RedisError

from tests.conftest import wait_until
from tests.registry import free_port


class OwnRedis:
    """Starts and ends any number of times on the same address and data."""

    def __init__(self, directory: Path, *options: str) -> None:
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self._directory = directory
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        # Gone with the tests, however they end.
        command = ["setpriv", "--pdeathsig", "KILL", "--", "redis-server"]
        command += ["--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self._directory)]
        # Every answer comes after its write is in the file: what a kill loses is what nobody was told of.
        command += ["--save", "", "--appendonly", "yes", "--appendfsync", "always"]
        command += ["--maxmemory-policy", "noeviction", *self._options]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        wait_until(self.answers, what="Redis answers")

    def answers(self) -> bool:
        with self.client() as redis:
            try:
                return bool(redis.ping())
            except RedisError:
                return False

    def client(self) -> Redis:
        """Of somebody without patience."""
        return Redis.from_url(self.url, decode_responses=True, socket_timeout=1)

    def role(self) -> str:
        """`master` or `slave`; empty: it does not answer."""
        with self.client() as redis:
            try:
                return str(redis.role()[0])
            except RedisError:
                return ""

    def stop(self) -> None:
        """As a service manager does it."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def _end(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)
        self._process.wait(10)

    def freeze(self) -> None:
        """Its connections stay and say nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        process = psutil.Process(self._process.pid)
        wait_until(lambda: process.status() == psutil.STATUS_STOPPED, what="Redis frozen")

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def limit_memory(self, value: int) -> None:
        """`maxmemory` in bytes: 1 is less than it has already, 0 no limit."""
        with self.client() as redis:
            redis.config_set("maxmemory", value)

    # ---- faults: Redis is of no use inside, and well again after

    @contextmanager
    def restarting(self) -> Iterator[None]:
        self.stop()
        try:
            yield
        finally:
            self.start()

    @contextmanager
    def crashed(self) -> Iterator[None]:
        """Connections are refused meanwhile."""
        self.kill()
        try:
            yield
        finally:
            self.start()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        self.freeze()
        try:
            yield
        finally:
            self.thaw()

    @contextmanager
    def out_of_memory(self) -> Iterator[None]:
        self.limit_memory(1)
        try:
            yield
        finally:
            self.limit_memory(0)


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[OwnRedis]:
    """For one test. A conftest or a module has it by importing it."""
    with OwnRedis(tmp_path) as redis:
        yield redis
