"""Celery's remote control, as far as operators need it: ask the nodes, wake one."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from kombu.exceptions import OperationalError

from cronium_worker.app import app
from cronium_worker.errors import BrokerUnavailable
from cronium_worker.models.job import JOBS_NODE

ANSWER_TIMEOUT_S = 2.0


@contextmanager
def _broker() -> Iterator[None]:
    try:
        yield
    except OperationalError as error:
        raise BrokerUnavailable(f"the broker does not answer: {error}") from error


def reach_broker() -> str:
    """What the broker says it is. Raises BrokerUnavailable."""
    with _broker(), app.connection_for_write() as connection:
        connection.ensure_connection(max_retries=1, interval_start=0, reraise_as_library_errors=True)
        about = getattr(connection.connection, "server_properties", {})
        return f"{about.get('product', connection.transport.driver_name)} {about.get('version', '')}".strip()


def ask(command: str) -> dict[str, Any]:
    """What every node answers to an inspect command (`stats`, `active`, `ping`, …), by node name.

    Takes ANSWER_TIMEOUT_S: nobody knows how many nodes there are. Raises BrokerUnavailable.
    """
    with _broker():
        method: Callable[[], dict[str, Any] | None] = getattr(app.control.inspect(timeout=ANSWER_TIMEOUT_S), command)
        return method() or {}


def beat_now(host: str) -> None:
    """Have a host's jobs node look at what the registry says of it, and report. Raises BrokerUnavailable."""
    with _broker():
        app.control.broadcast("beat", destination=[f"{JOBS_NODE}@{host}"])
