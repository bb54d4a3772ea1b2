"""Workers that come and go: one attempt of a job in the hands of one after the other."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from cronium_worker.engine.images import ImageManager
from cronium_worker.engine.inventory import OwnContainer, own_containers
from cronium_worker.errors import Detached
from cronium_worker.execution.attempt import Attempt
from cronium_worker.execution.pool import Pool
from cronium_worker.execution.sandbox import Host
from cronium_worker.execution.signals import CancelToken
from cronium_worker.fleet.events import Event
from cronium_worker.fleet.store import Claim, JobStore
from cronium_worker.models import Job, JobResult
from cronium_worker.workspace.assignment import evidence
from tests.conftest import wait_until


def own(host: Host) -> list[OwnContainer]:
    """The host's containers, as its next worker finds them."""
    settings = host.settings
    known = partial(evidence, settings.sandboxes_path)
    return own_containers(host.engine, fleet=settings.fleet, host=settings.host_name, evidence=known)


class Shift:
    """What one worker does with the attempt, in a thread of its own. Ends with its result, or with its leaving."""

    def __init__(self, work: Callable[[Attempt], JobResult], attempt: Attempt, token: CancelToken, pool: Pool) -> None:
        self.token = token
        self._outcome: JobResult | Exception | None = None

        def run() -> None:
            try:
                with attempt:
                    self._outcome = work(attempt)
            except Exception as error:  # noqa: BLE001 - raised in the test
                self._outcome = error
            pool.close()

        self.thread = threading.Thread(target=run, name="shift")
        self.thread.start()

    def end(self, *, timeout_s: float = 60) -> JobResult:
        self.thread.join(timeout_s)
        assert not self.thread.is_alive(), "the worker is stuck"
        if isinstance(self._outcome, Exception):
            raise self._outcome
        assert self._outcome is not None
        return self._outcome

    def leave(self) -> Detached | None:
        """Have it leave. None: it had come to the end just then."""
        self.token.detach()
        try:
            self.end(timeout_s=15)
        except Detached as detached:
            return detached
        return None


class Case:
    """A job of which the first attempt is looked at."""

    def __init__(self, host: Host, store: JobStore, fields: dict[str, Any]) -> None:
        self.host = host
        self.store = store
        self.job = Job.model_validate({"network": {"mode": "none"}, **fields})
        self.shifts: list[Shift] = []
        store.register(self.job, task_id=self.job.id, queue="none")

    def start(self) -> Shift:
        claim = self.store.claim(self.job.id, host=self.host.settings.host_name)
        assert isinstance(claim, Claim)
        return self._shift(claim, Attempt.run)

    def adopt(self) -> Shift:
        claim = self.store.adopt(self.job.id, attempt=1, host=self.host.settings.host_name)
        assert isinstance(claim, Claim)
        container = self.container()
        return self._shift(claim, lambda attempt: attempt.resume(container))

    def _shift(self, claim: Claim, work: Callable[[Attempt], JobResult]) -> Shift:
        token = CancelToken()
        images = ImageManager(self.host.engine, self.host.settings.registry)
        pool = Pool(self.host)
        self.shifts.append(Shift(work, Attempt(self.host, self.store, images, pool, claim, token), token, pool))
        return self.shifts[-1]

    def container(self) -> OwnContainer:
        return next(container for container in own(self.host) if container.job_id == self.job.id)

    def events(self) -> list[Event]:
        events = list(self.store.events(self.job.id))
        assert [event["seq"] for event in events] == list(range(len(events)))
        return events

    def text(self, stream: str = "stdout") -> str:
        return "".join(e["data"] for e in self.events() if e["type"] == "log" and e["stream"] == stream)

    def gaps(self) -> list[str]:
        return [event["message"] for event in self.events() if event.get("gap")]

    def wait_for(self, text: str, stream: str = "stdout", *, timeout_s: float = 20) -> None:
        wait_until(lambda: text in self.text(stream), timeout_s=timeout_s, what=f"{text!r} in {stream}")


@contextmanager
def cases(store: JobStore) -> Iterator[Callable[..., Case]]:
    """Makes cases; at the end no worker of theirs may be stuck."""
    made: list[Case] = []

    def make(host: Host, **fields: Any) -> Case:
        made.append(Case(host, store, fields))
        return made[-1]

    yield make
    for shift in [shift for case in made for shift in case.shifts]:
        shift.token.cancel()
        shift.thread.join(60)
        assert not shift.thread.is_alive()
