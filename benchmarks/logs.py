"""A log as fast as a script prints it: from the container through the worker into Redis, beside one who only reads the
attached stream of such a container; lines that got lost; the worker's memory meanwhile."""

import time
from datetime import datetime
from typing import Any, Self

import docker
import psutil
from docker.utils import kwargs_from_env

from benchmarks.jobs import TIMEOUT_S, image_of
from benchmarks.load import _node
from benchmarks.measure import Figure, Lookout, figure
from cronium_worker import execute_job
from cronium_worker.engine.spec import NETWORK_NAME
from cronium_worker.settings import get_settings
from cronium_worker.tasks import store

_LINE_BYTES = 100


def _script(lines: int) -> str:
    """In blocks: line by line, which is the images' way, Python and the engine take three times as long for them, and
    there is nothing to be seen of us."""
    line = f"sys.stdout.write(f'{{n:0{_LINE_BYTES - 1}d}}\\n')"
    return f"import sys\nsys.stdout.reconfigure(line_buffering=False)\nfor n in range({lines}): {line}"


class RawReader:
    """The floor: reads what an attached container prints, and throws it away. The same image, limits and log driver
    as a job's."""

    def __init__(self, lines: int) -> None:
        self._api = docker.APIClient(**kwargs_from_env(), version="auto", timeout=TIMEOUT_S)
        settings = get_settings()
        cpu = int(100_000 * settings.maxima.cpu)
        self._bytes = lines * _LINE_BYTES
        self._config = {
            "Image": image_of("python"),
            "Cmd": ["python3", "-c", _script(lines)],
            "HostConfig": {
                "NetworkMode": NETWORK_NAME,
                "Memory": settings.defaults.memory,
                "CpuQuota": cpu,
                "CpuPeriod": 100_000,
                "LogConfig": {"Type": "local", "Config": {"max-size": "256m", "max-file": "2", "compress": "false"}},
            },
        }

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._api.close()

    def mb_a_second(self) -> float:
        """From the first byte to the last."""
        container = self._api.create_container_from_config(self._config)["Id"]
        stream = self._api.attach(container, stream=True)
        self._api.start(container)
        began, size = None, 0
        for chunk in stream:
            began = began or time.perf_counter()
            size += len(chunk)
        seconds = time.perf_counter() - (began or 0.0)
        self._api.wait(container)
        self._api.remove_container(container, force=True)
        if size != self._bytes:
            raise RuntimeError(f"the raw reader has {size} of {self._bytes} bytes")
        return size / 1e6 / seconds


class _Memory(Lookout):
    """Of the worker, at its highest while this is entered. Bytes."""

    def __init__(self, node: psutil.Process) -> None:
        super().__init__()
        self._node = node
        self.peak = node.memory_info().rss

    def look(self) -> None:
        self.peak = max(self.peak, self._node.memory_info().rss)


def _through_worker(lines: int, queue: str) -> tuple[float, int]:
    """MB a second between the first and the last event of the log, and lines that are missing or out of order."""
    sent = execute_job.delay(
        {
            "script": {"type": "python", "content": _script(lines)},
            "queue": queue,
            "resources": {"cpu": get_settings().maxima.cpu},
        }
    )
    sent.get(timeout=TIMEOUT_S)
    # Read afterwards: who reads meanwhile takes of the same cores.
    events = [event for event in store().events(sent.id) if event["type"] == "log"]
    seen = "".join(event["data"] for event in events).splitlines()
    lost = lines - sum(expected == int(line) for expected, line in zip(range(lines), seen, strict=False))
    first, last = (datetime.fromisoformat(event["ts"]).timestamp() for event in (events[0], events[-1]))
    return lines * _LINE_BYTES / 1e6 / (last - first), lost


def logs(lines: int, queue: str, *, rounds: int = 5) -> list[Figure]:
    """Turn and turn about. `queue`: of a worker that cuts no log."""
    raw: list[float] = []
    ours: list[float] = []
    lost: list[float] = []
    node = _node()
    with RawReader(lines) as reader:
        _through_worker(lines, queue)  # what a first one brings is not measured
        before = node.memory_info().rss
        with _Memory(node) as memory:
            for _ in range(rounds):
                raw.append(reader.mb_a_second())
                rate, missing = _through_worker(lines, queue)
                ours.append(rate)
                lost.append(float(missing))
        after: Any = node.memory_info().rss
    floor = figure(f"{lines:,} lines, raw attach (floor)", "MB/s", raw)
    resting = figure("worker's memory before those logs", "MB", [before / 1e6])
    return [
        floor,
        figure(f"{lines:,} lines, container → worker → Redis", "MB/s", ours, floor),
        figure(f"lines lost of {lines:,}", "lines", lost),
        resting,
        figure("worker's memory after those logs", "MB", [after / 1e6], resting),
        figure("worker's memory at its highest", "MB", [memory.peak / 1e6], resting),
    ]
