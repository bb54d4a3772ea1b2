"""The end of a run: every job comes to its end, and what is known of each is written down."""

import contextlib
import json

from cronium_worker import JobFailed, execute_job
from cronium_worker.fleet.store import ACTIVE_KEY
from cronium_worker.models import TERMINAL
from tests.chaos.fleet import ChaosHost, Fleet, within
from tests.chaos.history import Event, History

_GET_S = 5


def settle(fleet: Fleet, history: History, *, timeout_s: float) -> list[str]:
    """Wait for the end of every job that has a record, and until Celery has every result. Returns what did not."""
    records = fleet.records

    def all_ended() -> bool:
        found = records.look(history.plans)
        accepted = {job for job, done in list(history.submitted.items()) if done}
        return accepted <= found.keys() and all(status in TERMINAL for status, _ in found.values())

    if not within(timeout_s, all_ended):
        return []  # the checker says of each
    if not within(timeout_s / 4, lambda: records.redis.zcard(ACTIVE_KEY) == 0):
        left = records.redis.zrange(ACTIVE_KEY, 0, 9)
        return [f"nobody has told Celery of the end of {', '.join(left)}"]
    return []


def collect(fleet: Fleet, history: History) -> None:
    """Records, events and Celery's results of all jobs."""
    for key in fleet.records.redis.scan_iter("cronium:job:{*}", count=1000):
        job_id = key.removeprefix("cronium:job:{").removesuffix("}")
        if job_id != key and ":" not in job_id:
            history.records[job_id] = fleet.records.redis.hgetall(key)
    for job_id in history.records:
        entries = fleet.records.redis.xrange(f"cronium:job:{{{job_id}}}:events")
        history.events[job_id] = [json.loads(fields["event"]) for _, fields in entries]
        if history.records[job_id].get("status") in TERMINAL:
            history.celery[job_id] = _get(job_id)


def _get(job_id: str) -> Event | None:
    """What a caller has of `AsyncResult.get`; None: nothing."""
    try:
        result: Event = execute_job.AsyncResult(job_id).get(timeout=_GET_S)
        return result
    except JobFailed as failed:
        return failed.result.model_dump(mode="json")
    except Exception:  # noqa: BLE001 - whatever it is, the caller has no result
        return None


def sweep(host: ChaosHost) -> list[str]:
    """What is left on a host after its janitor: it must be nothing."""

    def is_clean() -> bool:
        done = host.sweep()
        return done.returncode == 0 and not _left(host)

    within(30, is_clean)
    return _left(host)


def _left(host: ChaosHost) -> list[str]:
    with contextlib.closing(host.engine()) as client:
        ours = {"label": f"cronium.host={host.name}"}
        containers = [c.name for c in client.containers.list(all=True, filters=ours, ignore_removed=True)]
    return [*(f"container {name}" for name in containers), *(f"workspace {path.name}" for path in host.workspaces())]
