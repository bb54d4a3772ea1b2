"""What beat sends, and when. Two beats may run: RedBeat's lock lets one of them lead (celeryconfig)."""

from typing import Any

from cronium_worker.models.queues import FLEET_QUEUE
from cronium_worker.settings import Settings

ON_EVERY_HOST = "cronium.on_every_host"
CLEANUP = "cronium.cleanup_orphans"
PREPULL = "cronium.prepull_images"
RECOVER = "cronium.recover_lost_jobs"


def housekeeping_every_s(settings: Settings) -> dict[str, float]:
    """The tasks that every host does, and how often: seconds. One that waits for longer is dropped."""
    return {CLEANUP: settings.schedule.cleanup, PREPULL: settings.schedule.prepull}


def beat_schedule(settings: Settings) -> dict[str, dict[str, Any]]:
    """In Celery's form."""
    turns = {task: _turn(ON_EVERY_HOST, [task], seconds) for task, seconds in housekeeping_every_s(settings).items()}
    return {**turns, RECOVER: _turn(RECOVER, [], settings.schedule.recovery)}


def _turn(task: str, arguments: list[str], seconds: float) -> dict[str, Any]:
    options = {"queue": FLEET_QUEUE, "expires": seconds, "ignore_result": True}
    return {"task": task, "args": arguments, "schedule": seconds, "options": options}
