"""Celery's table of queues and its connections, as far as ours differ: no queue has the name of somebody's key.

Celery makes a queue of any name that it meets: in `-Q`, in an option of a task or of a link, in the control command
add_consumer. Each of these comes through here.
"""

from typing import Any

from celery.app import amqp

from cronium_worker.models.queues import check_queue, is_destination


class Queues(amqp.Queues):  # type: ignore[misc]
    def __setitem__(self, name: str, queue: Any) -> None:
        """Raises ValueError."""
        if not is_destination(name):
            check_queue(name)  # says why
        super().__setitem__(name, queue)


class AMQP(amqp.AMQP):  # type: ignore[misc]
    queues_cls = Queues


def use_own_transport(connection: Any) -> Any:
    """Have a connection to Redis use `transport`, whatever it is for."""
    if connection.transport_cls in ("redis", "rediss"):
        connection.transport_cls = "cronium_worker.transport:Transport"
    return connection
