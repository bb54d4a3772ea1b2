"""Beat's scheduler: RedBeat's, with users' schedules. Celery loads it by the name in celeryconfig."""

from typing import Any

from redbeat import RedBeatScheduler

from cronium_worker import schedules


class Scheduler(RedBeatScheduler):
    """Housekeeping is sent as RedBeat does it: noted first, because the next turn makes up for a lost one. A user's
    schedule is fired first, and noted then."""

    Entry = schedules.Entry

    def apply_async(self, entry: schedules.Entry, producer: Any = None, advance: bool = True, **options: Any) -> Any:
        """Errors are logged by the caller, and what was not noted is due again."""
        if entry.is_housekeeping:
            return super().apply_async(entry, producer=producer, advance=advance, **options)
        if self.lock is not None:  # RedBeat extends it once a tick, however much is due in one
            self.lock.extend(int(self.lock_timeout))
        schedules.fire(entry)
        return None
