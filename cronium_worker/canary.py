"""Messages that prove that nodes take messages: a node may answer pings, and consume nothing."""

import time
from collections.abc import Iterable
from uuid import uuid4

from celery.exceptions import TimeoutError as CeleryTimeout
from kombu.exceptions import OperationalError

from cronium_worker.app import app
from cronium_worker.broker import HIGHEST_PRIORITY, message_priority
from cronium_worker.errors import BrokerUnavailable
from cronium_worker.models.queues import HOST_QUEUE_PREFIX
from cronium_worker.settings import get_settings


@app.task(name="cronium.canary", send_events=False, expires=60)
def canary() -> str:
    """Takes a slot for a moment; says which host it was."""
    return get_settings().host_name


def ask_queue(queue: str, *, timeout_s: float) -> str | None:
    """The host that takes a message from this queue; None: no host does. Raises BrokerUnavailable, redis errors."""
    return _answers([queue], timeout_s=timeout_s).get(queue)


def ask_agents(hosts: Iterable[str], *, timeout_s: float) -> set[str]:
    """Those of the hosts whose agents take a message. Raises BrokerUnavailable, redis errors."""
    return set(_answers([HOST_QUEUE_PREFIX + host for host in hosts], timeout_s=timeout_s).values())


def _answers(queues: Iterable[str], *, timeout_s: float) -> dict[str, str]:
    priority = message_priority(HIGHEST_PRIORITY, get_settings())
    try:
        asked = {
            queue: canary.apply_async(
                queue=queue, priority=priority, expires=timeout_s, task_id=f"canary-{uuid4().hex}"
            )
            for queue in queues
        }
    except OperationalError as error:
        raise BrokerUnavailable(f"the broker does not answer: {error}") from error
    answers = {}
    give_up_at = time.monotonic() + timeout_s
    for queue, result in asked.items():
        try:
            answers[queue] = str(result.get(timeout=max(0.1, give_up_at - time.monotonic())))
        except CeleryTimeout:
            continue
        finally:
            result.forget()
    return answers
