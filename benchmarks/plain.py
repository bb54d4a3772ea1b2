"""The peer: a Celery task around the SDK's `containers.run`, as one writes it without a worker of ours."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from uuid import uuid4

import docker
from celery import Celery

from cronium_worker.settings import get_settings

_URL = get_settings().redis_url.get_secret_value()
app = Celery("plain", set_as_current=False, broker=_URL, backend=_URL)


@app.task(name="plain.run")
def run(image: str, command: list[str], options: dict[str, Any]) -> str:
    client = docker.from_env()
    try:
        output: bytes = client.containers.run(image, command, remove=True, **options)
        return output.decode()
    finally:
        client.close()


@contextmanager
def plain_worker() -> Iterator[str]:
    """A worker of it; gives its queue."""
    queue = f"plain-{uuid4().hex[:8]}"
    command = [sys.executable, "-m", "celery", "-A", "benchmarks.plain", "worker", "--pool", "threads", "-c", "8"]
    worker = subprocess.Popen(
        [*command, "-Q", queue, "--hostname", f"{queue}@bench"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        while not app.control.ping(destination=[f"{queue}@bench"], timeout=0.5):
            if worker.poll() is not None:
                raise RuntimeError("the plain worker did not start")
        yield queue
    finally:
        worker.terminate()
        worker.wait(60)
