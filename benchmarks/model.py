"""The load model: simulated hosts and a caller in processes of their own, against one Redis.

All processes have the settings of this one, but for what is given here.
"""

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redis import Redis

from benchmarks.redis_meter import Meter, Spent
from cronium_worker.settings import get_settings

HOSTS_A_PROCESS = 250
_START_S = 600


@dataclass(frozen=True, kw_only=True)
class Load:
    """Jobs a second, for how many seconds; what each of them is."""

    rate: float
    seconds: float
    job_seconds: float
    lines: int


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a caller has seen, and what its Redis has spent from the first job's sending to the last one's result."""

    completed: int
    failed: int
    send_ms: list[float]
    claimed_ms: list[float]
    returned_ms: list[float]
    spent: Spent


def redis() -> "Redis":
    return Redis.from_url(get_settings().redis_url.get_secret_value(), decode_responses=True)


def _python(*arguments: object, **options: Any) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", *map(str, arguments)]
    # Gone with this process, however it ends.
    return subprocess.Popen(["setpriv", "--pdeathsig", "KILL", "--", *command], text=True, **options)


@contextmanager
def simulated(count: int, *, slots: int = 8) -> Iterator[None]:
    """That many hosts, all of which have reported."""
    with ExitStack() as stack:
        sizes = [min(HOSTS_A_PROCESS, count - first) for first in range(0, count, HOSTS_A_PROCESS)]
        started = [
            _python("benchmarks.simulated", f"model-{number}", size, slots, stdout=subprocess.PIPE)
            for number, size in enumerate(sizes)
        ]
        for process in started:
            stack.callback(_end, process)
        for process in started:
            assert process.stdout is not None
            if process.stdout.readline() != "ready\n":
                raise RuntimeError("simulated hosts did not start")
        yield


@contextmanager
def beat() -> Iterator[None]:
    """The fleet's clock, as it runs."""
    process = _python("celery", "--quiet", "-A", "cronium_worker.app", "beat", "--loglevel", "WARNING")
    try:
        yield
    finally:
        _end(process)


@contextmanager
def real_host(host: str, base: Path) -> Iterator[None]:
    """Both nodes of a real one."""
    environment = (f"CRONIUM_HOST_NAME={host}", f"CRONIUM_BASE_PATH={base}", "CRONIUM_SECURITY__FIREWALL=off")
    cronium = str(Path(sys.executable).parent / "cronium")
    # It ends its own two processes, and its containers, when it is told to end.
    worker = subprocess.Popen(
        ["/usr/bin/env", *environment, cronium, "worker"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        _wait_for_nodes(host, worker)
        yield
    finally:
        worker.terminate()
        worker.wait(60)


def _wait_for_nodes(host: str, worker: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + 60
    with redis() as client:
        while not client.hexists(f"cronium:{{hosts}}:host:{host}", "agent") or client.llen(f"cronium.host.{host}"):
            if time.monotonic() > deadline or worker.poll() is not None:
                raise RuntimeError("the worker did not start: run `cronium doctor`")
            time.sleep(0.2)


def _end(process: "subprocess.Popen[str]") -> None:
    process.kill()
    process.communicate()


def call(load: Load) -> Answer:
    """Have a caller send its jobs and wait for them."""
    arguments: Sequence[object] = (load.rate, load.seconds, load.job_seconds, load.lines)
    with redis() as client:
        meter = Meter(client)
        caller = _python("benchmarks.simulated_client", *arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert caller.stdout is not None
        if caller.stdout.readline() != "done\n":
            raise RuntimeError("the caller did not come to its end")
        spent = meter.read()
    found, _ = caller.communicate("\n")
    return Answer(**json.loads(found), spent=spent)


def idle(seconds: float) -> Spent:
    """What Redis spends on hosts that have nothing to do."""
    with redis() as client:
        meter = Meter(client)
        time.sleep(seconds)
        return meter.read()
