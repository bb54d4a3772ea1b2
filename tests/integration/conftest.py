"""A runner in this process, on the real engine and the real Redis."""

import subprocess
import threading
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import pytest

from cronium_worker.engine.client import Engine
from cronium_worker.execution.runner import Runner
from cronium_worker.execution.sandbox import Host
from cronium_worker.fleet.connections import connect
from cronium_worker.fleet.events import Event
from cronium_worker.fleet.store import JobStore
from cronium_worker.models import Job, JobResult
from cronium_worker.nodes import make_host
from cronium_worker.settings import Settings
from tests.conftest import Leftovers, wait_until
from tests.integration.shifts import Case, cases
from tests.mounts import mounts_below


@dataclass
class Ran:
    """A job that was run: its result and its events."""

    job: Job
    result: JobResult
    events: list[Event]

    def text(self, stream: str) -> str:
        return "".join(e["data"] for e in self.events if e["type"] == "log" and e["stream"] == stream)

    @property
    def statuses(self) -> list[str]:
        return [e["status"] for e in self.events if e["type"] == "status"]


@dataclass
class Bench:
    """Runs jobs in this process."""

    runner: Runner
    store: JobStore
    sent: defaultdict[str, SimpleQueue[None]]
    threads: list[threading.Thread] = field(default_factory=list)

    def register(self, **fields: Any) -> Job:
        job = Job.model_validate(fields)
        self.store.register(job, task_id=job.id, queue="none")
        return job

    def run(self, **fields: Any) -> Ran:
        job = self.register(**fields)
        self.take(job)
        wait_until(lambda: self.runner.pool_count().leaving == 0, what="nothing left of the job")
        # As its caller reads it: to the worker a large result is a mark.
        result = JobResult.model_validate_json(self.store.result_json(job.id) or "")
        return Ran(job, result, list(self.store.events(job.id)))

    def take(self, job: Job) -> None:
        """What a worker does with the job's messages, to its end."""
        while self.runner.run(job.id) == "later":
            self.sent[job.id].get(timeout=60)

    def start(self, **fields: Any) -> Job:
        """Run in the background; read the rest from the store."""
        job = self.register(**fields)
        self.thread(lambda: self.take(job))
        return job

    def thread(self, target: Callable[[], object]) -> threading.Thread:
        """One that has to end with the test."""
        thread = threading.Thread(target=target)
        thread.start()
        self.threads.append(thread)
        return thread

    def wait_for_pool(self) -> None:
        """Until as many sandboxes wait as may."""
        size = self.runner._host.settings.pool.size
        wait_until(lambda: self.runner.pool_count().waiting == size, what=f"{size} sandboxes that wait")

    def settle(self) -> None:
        """Wait until all jobs have ended, and nothing of theirs is left."""
        for thread in self.threads:
            thread.join(timeout=60)
            assert not thread.is_alive()
        self.runner.close()

    def close(self) -> None:
        """What still runs is of a test that has failed: it is cancelled."""
        for job_id in self.runner.active.ids():
            self.runner.active.cancel(job_id)
        self.settle()


@pytest.fixture(scope="session")
def store(settings: Settings) -> Iterator[JobStore]:
    redis = connect(settings.redis_url.get_secret_value())
    keys = [key.get_secret_value() for key in settings.secret_keys]
    yield JobStore(redis, result_ttl_s=settings.result_ttl, secret_keys=keys)
    redis.close()


@pytest.fixture(scope="session")
def host(settings: Settings) -> Iterator[Host]:
    host = make_host(settings)
    yield host
    host.engine.close()


@pytest.fixture
def make_bench(host: Host, store: JobStore, leftovers: Leftovers) -> Iterator[Callable[..., Bench]]:
    """A bench with other settings than the session's. Nothing may be left after the test."""
    with ExitStack() as stack:
        stack.callback(leftovers.must_be_none)

        def make(*, on: Host = host, **changed: Any) -> Bench:
            settings = on.settings.model_copy(update=changed)
            sent: defaultdict[str, SimpleQueue[None]] = defaultdict(SimpleQueue)

            def send(job_id: str) -> None:
                sent[job_id].put(None)

            bench = Bench(Runner(replace(on, settings=settings), store, send=send), store, sent)
            stack.callback(bench.close)
            return bench

        yield make


@pytest.fixture
def bench(make_bench: Callable[..., Bench]) -> Bench:
    return make_bench()


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Containers whose end the engine was asked for."""
    asked: list[str] = []
    wait = Engine.wait

    def noted(engine: Engine, container_id: str, *, timeout_s: int) -> Any:
        asked.append(container_id)
        return wait(engine, container_id, timeout_s=timeout_s)

    monkeypatch.setattr(Engine, "wait", noted)
    return asked


@pytest.fixture
def case(host: Host, store: JobStore, leftovers: Leftovers) -> Iterator[Callable[..., Case]]:
    """A case on the session's host, or on one with other settings. Nothing may be left after the test."""
    with ExitStack() as stack:
        stack.callback(leftovers.must_be_none)
        make = stack.enter_context(cases(store))

        def with_settings(settings: dict[str, Any] | None = None, **fields: Any) -> Case:
            changed = host.settings.model_copy(update=settings or {})
            return make(Host(engine=host.engine, settings=changed, seccomp=host.seccomp), **fields)

        yield with_settings


@pytest.fixture
def make_disk(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """An ext4 file system of that size, on a block device of its own; with more options of mkfs.ext4."""
    with mounts_below(tmp_path) as mount:

        def make(mebibytes: int, *options: str) -> Path:
            image, directory = tmp_path / "image", tmp_path / "disk"
            with image.open("wb") as file:
                file.truncate(mebibytes * 2**20)
            subprocess.run(["mkfs.ext4", "-q", *options, image], check=True)
            directory.mkdir()
            mount(directory, "-o", "loop", str(image))
            return directory

        yield make
