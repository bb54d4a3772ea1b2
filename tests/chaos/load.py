"""A generator of jobs: producers that keep the fleet busy, and somebody who cancels."""

import contextlib
import threading
import time
from collections.abc import Callable
from random import Random
from typing import Any

from redis.exceptions import RedisError

from cronium_worker import cancel, submit
from cronium_worker.errors import JobNotFound
from cronium_worker.models import TERMINAL
from tests.chaos.fleet import QUEUE, Records
from tests.chaos.history import History
from tests.chaos.plans import Plan, draw

_PRODUCERS = 2
_LOOK_EVERY_S = 0.2
_PAUSE_S = 0.05


class Load:
    """Keeps `outstanding` jobs accepted and not finished: more than there are slots, so that some always wait."""

    def __init__(
        self,
        history: History,
        records: Records,
        *,
        prefix: str,
        outstanding: int,
        submit: Callable[[dict[str, Any]], Any] = submit,
    ) -> None:
        """`submit`: how its producers do that."""
        self._send = submit
        self._history = history
        self._records = records
        self._prefix = prefix
        self._target = outstanding
        self._open: set[str] = set()
        self._number = 0
        self._lock = threading.Lock()
        self._producing = threading.Event()
        self._stopped = threading.Event()
        self._producing.set()
        threads = [threading.Thread(target=self._produce, name=f"producer {n}") for n in range(_PRODUCERS)]
        threads += [threading.Thread(target=self._look, name="who looks")]
        threads += [threading.Thread(target=self._cancel, name="who cancels")]
        self._threads = threads
        for thread in threads:
            thread.daemon = True
            thread.start()

    def open(self) -> list[str]:
        """Jobs that may have been accepted and are not known to have ended, oldest first."""
        with self._lock:
            return sorted(self._open, key=lambda job_id: int(job_id.rpartition("-")[2]))

    def on_host(self, host: str | None = None, *, statuses: tuple[str, ...] = ("preparing", "running")) -> list[str]:
        """The jobs that a host has, or any host. Nothing when Redis does not answer."""
        with contextlib.suppress(RedisError):
            found = self._records.look(self.open())
            return [job for job, (status, at) in found.items() if status in statuses and host in (None, at)]
        return []

    def end(self) -> None:
        """No more jobs; those that are there go on, and cancels as well."""
        self._producing.clear()

    def resume(self) -> None:
        self._producing.set()

    def stop(self) -> None:
        self.end()
        self._stopped.set()
        for thread in self._threads:
            thread.join(40)

    def _next(self) -> Plan | None:
        with self._lock:
            if len(self._open) >= self._target:
                return None
            plan = draw(self._number, seed=self._history.seed, prefix=self._prefix)
            self._number += 1
            self._open.add(plan.job_id)
            self._history.plans[plan.job_id] = plan
            return plan

    def _produce(self) -> None:
        while not self._stopped.is_set():
            plan = self._next() if self._producing.is_set() else None
            if plan is None:
                self._stopped.wait(_PAUSE_S)
            else:
                self._submit(plan)

    def _submit(self, plan: Plan) -> None:
        """Some producers try again with the same job, others leave it at not knowing."""
        again = Random(plan.job_id).random() < 0.7
        while not self._stopped.is_set():
            try:
                self._send(plan.job(QUEUE))
            except Exception as error:  # noqa: BLE001 - whatever it is: nobody knows whether it was accepted
                self._history.submitted.setdefault(plan.job_id, False)
                if not isinstance(error, (RedisError, OSError)) and not _is_broker(error):
                    self._history.troubles.append(f"submit: {type(error).__name__}: {error}")
                if not again:
                    return
                time.sleep(_PAUSE_S)
            else:
                self._history.submitted[plan.job_id] = True
                return

    def _look(self) -> None:
        while not self._stopped.is_set():
            with contextlib.suppress(RedisError):
                jobs = self.open()
                found = self._records.look(jobs)
                ended = {job for job, (status, _) in found.items() if status in TERMINAL}
                ended |= {job for job in jobs if job not in found and self._history.submitted.get(job) is False}
                with self._lock:
                    self._open -= ended
            self._stopped.wait(_LOOK_EVERY_S)

    def _cancel(self) -> None:
        """Each job that is to be cancelled, at its time after it was accepted."""
        due: dict[str, float] = {}
        while not self._stopped.is_set():
            for job_id, accepted in list(self._history.submitted.items()):
                after_s = self._history.plans[job_id].cancel_after_s
                if accepted and after_s is not None and job_id not in self._history.cancels:
                    due.setdefault(job_id, time.monotonic() + after_s)
            for job_id in [job for job, at in due.items() if at <= time.monotonic()]:
                with contextlib.suppress(RedisError, OSError):
                    with contextlib.suppress(JobNotFound):
                        cancel(job_id)
                    self._history.cancels[job_id] = time.time()
                    del due[job_id]
            self._stopped.wait(_PAUSE_S)


def _is_broker(error: Exception) -> bool:
    from kombu.exceptions import KombuError, OperationalError

    return isinstance(error, (KombuError, OperationalError))
