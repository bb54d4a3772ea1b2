"""Users' schedules: jobs on a cron expression or an interval, kept by RedBeat and fired by whichever beat leads.

    add({"name": "nightly", "cron": "30 2 * * *", "timezone": "Europe/Berlin",
         "job": {"script": {"type": "bash", "content": "echo good night"}}})

A run is a job whose id is made of the schedule's name and the time that it was due: however often it is found due,
by however many beats, it is one job. So beat first fires, then notes that it has: what dies in between fires again.

A schedule is a RedBeat entry: its definition has, signed as jobs are, what it is to run; `last_run_at` is the last due
time that was dealt with; the field `fired` of its hash says how.
"""

import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any, NamedTuple

from pydantic import ValidationError
from redbeat import RedBeatSchedulerEntry
from redbeat.decoder import RedBeatJSONEncoder
from redbeat.schedulers import REDBEAT_REDIS_KEY, ensure_conf, get_redis

from cronium_worker.app import app
from cronium_worker.errors import (
    CroniumError,
    JobConflict,
    JobNotFound,
    NotSigned,
    ScheduleConflict,
    ScheduleNotFound,
    SecretsUnreadable,
    validation_message,
)
from cronium_worker.fleet.connections import client
from cronium_worker.fleet.keys import BrokenKey
from cronium_worker.models import TERMINAL, Job
from cronium_worker.models.formats import is_from_newer
from cronium_worker.models.queues import DEFAULT_QUEUE
from cronium_worker.models.schedule import JobSchedule, is_name
from cronium_worker.models.timetable import Timetable
from cronium_worker.policy import admit
from cronium_worker.settings import get_settings
from cronium_worker.tasks import as_hosts_read, execute_job, store

logger = logging.getLogger(__name__)

_PREFIX = "schedule:"
# A run that is later than this was missed: another beat leads within 25 seconds.
LATE = timedelta(seconds=60)
_UNUSABLE = "its definition cannot be used here: check CRONIUM_SIGNING_KEYS, or remove it"
_REFUSALS = (ValidationError, JobConflict, NotSigned, SecretsUnreadable)


@dataclass(frozen=True)
class Fired:
    """What became of a schedule's runs. `due_at` and `job_id`: of the last one; `note`: why there was none the last
    time that it was due. Times are ISO 8601, UTC."""

    due_at: str | None = None
    job_id: str | None = None
    note: str | None = None


@dataclass(frozen=True, kw_only=True)
class ScheduleView:
    """A schedule as it stands. `next_at`: None while it is paused. `status`: of the last run's job; None when there is
    none, or its record has expired. `note`: why it did not run the last time."""

    name: str
    cron: str | None
    every: int | None
    timezone: str
    overlap: str
    missed: str
    paused: bool
    next_at: str | None
    last_due_at: str | None
    last_job_id: str | None
    status: str | None
    note: str | None


class _Plan(NamedTuple):
    """A definition, read and its signature checked. `secrets`: encrypted for this schedule."""

    schedule: JobSchedule
    timetable: Timetable
    secrets: str


class Entry(RedBeatSchedulerEntry):
    """RedBeat's entry; of a user's schedule, its own times. `defect`: why its definition cannot be used here, if so."""

    defect = ""

    is_broken = False

    @classmethod
    def from_key(cls, key: str, app: Any = None) -> "Entry":
        """Raises KeyError. An entry whose key is of another type is never due: it must not keep others from theirs."""
        try:
            return super().from_key(key, app=app)  # type: ignore[no-any-return]
        except BrokenKey:
            name = key.removeprefix(cls.generate_key(app, ""))
            entry = cls(name=name, task=execute_job.name, schedule=60, enabled=False, app=app)
            entry.is_broken = True
            return entry

    def plan(self) -> _Plan | None:
        """None: it is no user's schedule, or cannot be used, which the log says."""
        if self.is_housekeeping:
            return None
        signed = self.kwargs.get("schedule")
        try:
            return _read(self.name, json.dumps(signed, sort_keys=True))
        except (CroniumError, ValueError, KeyError, TypeError) as error:
            reason = validation_message(error) if isinstance(error, ValidationError) else str(error)
            is_newer = isinstance(error, ValidationError) and is_from_newer(error)
            self.defect = f"a newer version has written it ({reason}): upgrade this one" if is_newer else _UNUSABLE
            logger.warning("%s is not run: %s", self.name, reason)
            return None

    @property
    def is_housekeeping(self) -> bool:
        return not self.name.startswith(_PREFIX)

    @property
    def due_at(self) -> Any:
        if self.is_housekeeping:
            return super().due_at
        plan = self.plan() if self.enabled else None
        return plan.timetable.after(self.last_run_at) if plan else None

    def is_due(self) -> Any:
        """Whether it is, and in how many seconds to ask again; None: not before something is changed."""
        if self.is_housekeeping:
            return super().is_due()
        plan, now = self.plan() if self.enabled else None, datetime.now(UTC)
        due = plan and plan.timetable.after(self.last_run_at)
        if plan is None or due is None:
            return False, None
        is_due = due <= now
        again = plan.timetable.after(now) if is_due else due
        return is_due, again and (again - now).total_seconds()


@lru_cache(maxsize=512)
def _read(entry: str, signed: str) -> _Plan:
    data = store().signer.unwrap(json.loads(signed), required=True)
    schedule = JobSchedule.model_validate(data["schedule"])
    if _PREFIX + schedule.name != entry:
        raise NotSigned("its definition is another schedule's: remove it and add it again")
    return _Plan(schedule, schedule.timetable(datetime.fromisoformat(data["since"])), data.get("secrets", ""))


# ---- users


def add(schedule: JobSchedule | Mapping[str, Any]) -> ScheduleView:
    """Keep a schedule; it is due for the first time after now.

    Raises pydantic.ValidationError, SecretsUnreadable and ScheduleConflict, before anything is stored.
    """
    schedule = schedule if isinstance(schedule, JobSchedule) else JobSchedule.model_validate(schedule)
    job = schedule.job
    admit(job, get_settings())
    job = as_hosts_read(job, job.queue or DEFAULT_QUEUE)
    now = datetime.now(UTC).replace(microsecond=0)
    given = schedule.model_dump(mode="json", exclude_unset=True, exclude={"job"})
    given["job"] = job.model_dump(mode="json", exclude_unset=True, exclude={"id", "secrets"})
    definition: dict[str, Any] = {"id": _PREFIX + schedule.name, "since": now.isoformat(), "schedule": given}
    if job.secrets:
        definition["secrets"] = store().secrets.seal(definition["id"], job.secrets)
    signed = store().signer.wrap(json.dumps(definition))
    entry = Entry(
        name=definition["id"], task=execute_job.name, schedule=schedule.every or 60, kwargs={"schedule": signed},
        last_run_at=now, app=app,
    )  # fmt: skip

    def write(pipe: Any) -> None:
        if pipe.hexists(entry.key, "definition"):
            raise ScheduleConflict(f"name: {schedule.name} is taken: remove that schedule first, or choose another")
        pipe.multi()
        pipe.delete(entry.key)
        _save(pipe, entry)

    connect().transaction(write, entry.key)
    return get(schedule.name)


def remove(name: str) -> None:
    """Forget a schedule; runs that have begun go on. Raises ScheduleNotFound."""
    _entry(name).delete()


def pause(name: str) -> ScheduleView:
    """Let it rest until `resume`. Raises ScheduleNotFound."""
    return _switch(name, on=False)


def resume(name: str) -> ScheduleView:
    """Go on after a pause; what would have been due in it is not made up for. Raises ScheduleNotFound."""
    return _switch(name, on=True)


def get(name: str) -> ScheduleView:
    """Raises ScheduleNotFound."""
    return _view(_entry(name))


def schedules() -> list[ScheduleView]:
    """All of them, by name."""
    keys = [key for key in connect().zrange(_index(), 0, -1) if key.startswith(Entry.generate_key(app, _PREFIX))]
    names = sorted(key.removeprefix(Entry.generate_key(app, _PREFIX)) for key in keys)
    views = []
    for name in names:
        try:
            views.append(get(name))
        except (ScheduleNotFound, BrokenKey):  # removed meanwhile; told in the log
            continue
    return views


def beat_leads() -> bool:
    """Whether there is a beat that fires what is due. One that has died counts for up to 20 seconds."""
    ensure_conf(app)
    return bool(connect().exists(app.redbeat_conf.lock_key))


def _switch(name: str, *, on: bool) -> ScheduleView:
    entry = _entry(name)
    if entry.enabled != on:
        entry.enabled = on
        entry.last_run_at = datetime.now(UTC).replace(microsecond=0) if on else entry.last_run_at
        _if_there(entry, _save)
    return get(name)


def _view(entry: Entry) -> ScheduleView:
    plan, fired, due = entry.plan(), _fired(entry), entry.due_at
    shown: dict[str, Any] = {"cron": None, "every": None, "timezone": "", "overlap": "", "missed": ""}
    if plan is not None:
        shown = plan.schedule.model_dump(include=set(shown))
    return ScheduleView(
        name=entry.name.removeprefix(_PREFIX), **shown, paused=not entry.enabled, next_at=due and due.isoformat(),
        last_due_at=fired.due_at, last_job_id=fired.job_id, status=_status(fired.job_id),
        note=fired.note if plan else entry.defect,
    )  # fmt: skip


def _status(job_id: str | None) -> str | None:
    try:
        return store().record(job_id)["status"] if job_id else None
    except JobNotFound:
        return None


# ---- beat


def fire(entry: Entry) -> None:
    """Run what is due, then note it. Raises redis and kombu errors: then it is due again at the next tick."""
    plan, now = entry.plan(), datetime.now(UTC)
    due = plan and plan.timetable.latest(now, after=entry.last_run_at)
    if plan is None or due is None:
        return
    fired = _fired(entry)
    try:
        note = _hindrance(plan.schedule, due, now, fired)
        if note is None:
            fired = Fired(due.isoformat(), _submit(plan, due))
    except _REFUSALS as error:
        note = f"refused: {validation_message(error) if isinstance(error, ValidationError) else error}"
    if note is not None:
        logger.warning("%s is not run: %s", entry.name, note)
        fired = replace(fired, note=note)
    entry.last_run_at = due
    _if_there(entry, lambda pipe, entry: _note(pipe, entry, fired))


def _hindrance(schedule: JobSchedule, due: datetime, now: datetime, fired: Fired) -> str | None:
    """Why it is not to run this time."""
    if now - due > LATE and schedule.missed == "skip":
        return f"missed: nothing ran it at {due.isoformat()}"
    if schedule.overlap == "allow" or _status(fired.job_id) in {None, *TERMINAL}:
        return None
    if schedule.overlap == "skip":
        return f"skipped at {due.isoformat()}: {fired.job_id} had not ended"
    store().cancel(str(fired.job_id))
    return None


def _submit(plan: _Plan, due: datetime) -> str:
    job = plan.schedule.job
    given = job.model_dump(exclude_unset=True) | {
        "id": plan.schedule.run_id(due),
        "metadata": {**job.metadata, "cronium.schedule": plan.schedule.name, "cronium.due": due.isoformat()},
    }
    if plan.secrets:
        given["secrets"] = store().secrets.open(_PREFIX + plan.schedule.name, plan.secrets)
    return str(execute_job.delay(Job.model_validate(given)).id)


# ---- Redis


def connect() -> Any:
    """RedBeat's client for this process: one that names a broken key."""
    ensure_conf(app)
    if getattr(app, REDBEAT_REDIS_KEY, None) is None:
        setattr(app, REDBEAT_REDIS_KEY, client(app.redbeat_conf.redis_url, decode_responses=True))
    return get_redis(app)


def _index() -> str:
    ensure_conf(app)
    return str(app.redbeat_conf.schedule_key)


def _entry(name: str) -> Entry:
    connect()
    try:
        if not is_name(name):
            raise KeyError(name)
        entry: Entry = Entry.from_key(Entry.generate_key(app, _PREFIX + name), app=app)
    except KeyError:
        raise ScheduleNotFound(f"no schedule {ascii(name)[1:-1][:80]}: see `cronium schedule ls`") from None
    return entry


def _fired(entry: Entry) -> Fired:
    stored = json.loads(connect().hget(entry.key, "fired") or "{}")
    known = {each.name for each in fields(Fired)}  # a newer version may have written more
    return Fired(**{name: value for name, value in stored.items() if name in known})


def _if_there(entry: Entry, write: Any) -> None:
    """Write, unless the schedule is removed at the same time."""

    def checked(pipe: Any) -> None:
        if pipe.hexists(entry.key, "definition"):
            pipe.multi()
            write(pipe, entry)

    connect().transaction(checked, entry.key)


def _save(pipe: Any, entry: Entry) -> None:
    names = ("name", "task", "args", "kwargs", "options", "schedule", "enabled")
    definition = {name: getattr(entry, name) for name in names}
    pipe.hset(entry.key, "definition", json.dumps(definition, cls=RedBeatJSONEncoder))
    _set_due(pipe, entry)


def _note(pipe: Any, entry: Entry, fired: Fired) -> None:
    pipe.hset(entry.key, "fired", json.dumps(asdict(fired)))
    _set_due(pipe, entry)


def _set_due(pipe: Any, entry: Entry) -> None:
    meta = {"last_run_at": entry.last_run_at}
    pipe.hset(entry.key, "meta", json.dumps(meta, cls=RedBeatJSONEncoder))
    pipe.zadd(_index(), {entry.key: entry.score})
