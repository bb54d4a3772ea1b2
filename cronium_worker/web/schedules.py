"""The API's calls for schedules."""

from fastapi import APIRouter, Response

from cronium_worker import schedules as kept
from cronium_worker.models.schedule import JobSchedule
from cronium_worker.web.problems import NOT_FOUND, REFUSED

schedules = APIRouter(prefix="/schedules", tags=["schedules"])


@schedules.get("")
def list_schedules() -> list[kept.ScheduleView]:
    """All of them, by name."""
    return kept.schedules()


@schedules.post("", status_code=201, responses=REFUSED)
def add_schedule(response: Response, schedule: JobSchedule) -> kept.ScheduleView:
    """Keep a schedule; it is due for the first time after now."""
    view = kept.add(schedule)
    response.headers["Location"] = f"/schedules/{view.name}"
    return view


@schedules.get("/{name}", responses=NOT_FOUND)
def get_schedule(name: str) -> kept.ScheduleView:
    return kept.get(name)


@schedules.delete("/{name}", status_code=204, responses=NOT_FOUND)
def remove_schedule(name: str) -> None:
    """Forget it; runs that have begun go on."""
    kept.remove(name)


@schedules.put("/{name}/pause", responses=NOT_FOUND)
def pause_schedule(name: str) -> kept.ScheduleView:
    return kept.pause(name)


@schedules.delete("/{name}/pause", responses=NOT_FOUND)
def resume_schedule(name: str) -> kept.ScheduleView:
    """Go on; what would have been due in the pause is not made up for."""
    return kept.resume(name)
