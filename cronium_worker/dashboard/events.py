"""What the page knows: Celery's events, made readable on their way in, and the past from the job records."""

from collections.abc import Iterable, Mapping
from typing import Any

from celery.events.state import State
from flower.events import Events

from cronium_worker.dashboard.readable import past, readable
from cronium_worker.models import TERMINAL


class FleetEvents(Events):
    """Flower's thread that listens to events, and the state that it keeps of them."""

    def on_event(self, event: dict[str, Any]) -> None:
        """Called in the listening thread. What is left out here is on no page, in no search and in no API answer."""
        super().on_event(readable(event))

    def remember(self, records: Iterable[Mapping[str, str]]) -> None:
        """Bring in from job records, the newest first, what no event has told. To be called in the page's thread.

        That is the past before the page's start, jobs that were cancelled in the queue, and what got lost:
        events are sent to whoever listens at that moment.
        """
        for record in reversed(list(records)):
            task = self.state.tasks.data.get(record["id"])
            if task is not None and (task.ready or record["status"] not in TERMINAL):
                continue
            for event in past(record):
                State.event(self.state, event)  # Flower's own would count it as new in its metrics
            self.state.search_engine.upsert(self.state.tasks[record["id"]])
