"""A worker process for the benchmarks, on a queue of its own."""

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from cronium_worker.app import app
from cronium_worker.settings import get_settings

_READY_TIMEOUT_S = 30


@contextmanager
def running_worker(**environment: str) -> Iterator[str]:
    """Start a jobs node, give the name of its queue, and end it. Nothing of the log is cut, unless the environment says
    so."""
    queue = f"bench-{uuid4().hex[:8]}"
    settings = get_settings()
    worker = subprocess.Popen(
        [
            *(
                "/usr/bin/env",
                "CRONIUM_LOG__MAX_BYTES=256m",
                *(f"{name}={value}" for name, value in environment.items()),
            ),
            *(str(Path(sys.executable).parent / "cronium"), "worker", "--node", "jobs", "--queues", queue),
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + _READY_TIMEOUT_S
        while not app.control.ping(destination=[f"jobs@{settings.host_name}"], timeout=0.5):
            if time.monotonic() > deadline or worker.poll() is not None:
                raise RuntimeError("the worker did not start: run `cronium doctor`")
        yield queue
    finally:
        worker.terminate()
        worker.wait(60)
