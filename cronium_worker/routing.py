"""Celery's table of queues and its connections, as far as ours differ: no queue has the name of somebody's key.

Celery makes a queue of any name that it meets: in `-Q`, in an option of a task or of a link, in the control command
add_consumer. Each of these comes through here.
"""

from typing import Any

from celery.app import amqp
from kombu import connection

from cronium_worker.models.queues import check_queue, is_destination


class Queues(amqp.Queues):  # type: ignore[misc]
    def __setitem__(self, name: str, queue: Any) -> None:
        """Raises ValueError."""
        if not is_destination(name):
            check_queue(name)  # says why
        super().__setitem__(name, queue)


class Connection(connection.Connection):
    def get_transport_cls(self) -> Any:
        """To Redis by `transport`. The connection's address stays as it was given: Flower and the log show it."""
        if self.transport_cls in ("redis", "rediss", "sentinel"):
            from cronium_worker.transport import SentinelTransport, Transport

            return SentinelTransport if self.transport_cls == "sentinel" else Transport
        return super().get_transport_cls()  # type: ignore[no-untyped-call]


class AMQP(amqp.AMQP):  # type: ignore[misc]
    Connection = Connection
    queues_cls = Queues
