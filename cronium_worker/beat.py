"""Beat, and its scheduler: RedBeat's, with users' schedules. Celery loads it by the name in celeryconfig."""

import signal
from typing import Any, NoReturn

from celery import beat
from celery.apps.beat import Beat as CeleryBeat
from redbeat import RedBeatScheduler

from cronium_worker import schedules
from cronium_worker.fleet.keys import FLEET_KEYS, BrokenKey, tell


class Beat(CeleryBeat):
    """`celery beat`, which SIGTERM and SIGINT end at any time."""

    def install_sync_handler(self, service: beat.Service) -> None:
        """Celery's handler closes the scheduler inside of whatever runs just then: an import, the scheduler's own
        start, a command to Redis. This one says that it ends; the service closes the scheduler on its way out."""

        def end(*_: object) -> NoReturn:
            service.stop()  # a finalizer of Python swallows the exception
            raise SystemExit

        signal.signal(signal.SIGTERM, end)
        signal.signal(signal.SIGINT, end)


class Scheduler(RedBeatScheduler):
    """Housekeeping is sent as RedBeat does it: noted first, because the next turn makes up for a lost one. A user's
    schedule is fired first, and noted then.

    A key of another type ends no beat: `fleet.keys` tells of it, and beat looks again at each turn.
    """

    Entry = schedules.Entry

    def __init__(self, *args: Any, **options: Any) -> None:
        self._is_set_up = True
        tell(schedules.connect(), FLEET_KEYS)  # to the lock, a key of another type is just another beat's
        super().__init__(*args, **options)

    def setup_schedule(self) -> None:
        """Called again at each turn until all housekeeping is stored."""
        self._is_set_up = True
        try:
            super().setup_schedule()
        except BrokenKey:
            self._is_set_up = False

    def update_from_dict(self, dict_: Any) -> None:
        for name, entry in dict_.items():
            try:
                super().update_from_dict({name: entry})
            except BrokenKey:
                self._is_set_up = False

    def tick(self, *args: Any, **options: Any) -> Any:
        try:
            if not self._is_set_up:
                self.setup_schedule()
            return super().tick(*args, **options)
        except BrokenKey:
            return self.max_interval

    def maybe_due(self, entry: schedules.Entry, **options: Any) -> Any:
        if entry.is_broken:
            self._is_set_up = self._is_set_up and not entry.is_housekeeping
            return self.max_interval
        return super().maybe_due(entry, **options)

    def apply_async(self, entry: schedules.Entry, producer: Any = None, advance: bool = True, **options: Any) -> Any:
        """Errors are logged by the caller, and what was not noted is due again."""
        if entry.is_housekeeping:
            return super().apply_async(entry, producer=producer, advance=advance, **options)
        if self.lock is not None:  # RedBeat extends it once a tick, however much is due in one
            self.lock.extend(int(self.lock_timeout))
        schedules.fire(entry)
        return None
