"""Users' schedules with a real Redis, real beats and a real worker."""

import json
import sys
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from pydantic import ValidationError

from cronium_worker import schedules as module
from cronium_worker.app import app
from cronium_worker.errors import ScheduleConflict, ScheduleNotFound, SecretsUnreadable
from cronium_worker.schedules import Entry, add, beat_leads, fire, get, pause, remove, resume, schedules
from cronium_worker.sealing import SecretBox
from cronium_worker.signing import Signer
from cronium_worker.tasks import store
from tests.conftest import wait_until
from tests.rig import RigWorker
from tests.system.local_host import LocalHost

QUEUE = "nobody-takes-from-it"
EVERY_S = 10  # more than a beat needs to take over on a busy machine: of two times that are due the later one runs


@pytest.fixture
def name() -> Iterator[str]:
    """Of a schedule of the test's own, which is gone after it, and its jobs."""
    name = f"t{uuid4().hex[:8]}"
    yield name
    with suppress(ScheduleNotFound):
        remove(name)
    for job_id in runs(name):
        store().cancel(job_id)


def runs(name: str) -> list[str]:
    """The ids of its jobs, oldest first."""
    return [row["id"] for row in reversed(store().recent(1000)) if row["id"].startswith(f"{name}-2")]


def job(content: str = "true", **fields: Any) -> dict[str, Any]:
    return {"script": {"type": "bash", "content": content}, "queue": QUEUE, **fields}


def entry(name: str) -> Entry:
    return module._entry(name)


def due(name: str) -> Entry:
    """The schedule as a beat reads it once it is due."""
    wait_until(lambda: entry(name).is_due()[0], what="due")
    return entry(name)


def move(name: str, last_run_at: datetime) -> Entry:
    """As if nothing had been due since then."""
    moved = entry(name)
    moved.last_run_at = last_run_at
    module._if_there(moved, module._save)
    return entry(name)


# ---- the command and its interface


def test_a_schedule_from_add_to_rm(host: LocalHost, name: str) -> None:
    script = host.path / "hello.py"
    script.write_text("print('hello')")
    options = ["--cron", "30 2 * * *", "--timezone", "Europe/Berlin", "--overlap", "skip", "--missed", "run-once"]
    more = ["--input", '{"a": 1}', "--var", "n=3", "--env", "X=y", "--cpu", "0.25", "--timeout", "60"]
    added = host.json("schedule", "add", name, str(script), *options, *more)
    expected = {"name": name, "cron": "30 2 * * *", "timezone": "Europe/Berlin", "overlap": "skip"}
    assert added.items() >= (expected | {"missed": "run-once", "paused": False, "status": None}).items()
    next_at = datetime.fromisoformat(added["next_at"])
    assert next_at - datetime.now(UTC) < timedelta(hours=26)
    plan = entry(name).plan()
    assert plan is not None
    given = plan.schedule.job.model_dump(exclude_unset=True)
    assert given.pop("script")["content"] == "print('hello')"
    assert given == {
        "input_data": {"a": 1}, "variables": {"n": 3}, "environment": {"X": "y"}, "timeout": 60,
        "resources": {"cpu": 0.25},
    }  # fmt: skip
    again = host.cronium("schedule", "add", name, str(script), "--every", "5m")
    assert again.returncode == 1
    assert again.stderr == f"cronium: name: {name} is taken: remove that schedule first, or choose another\n"
    assert host.cronium("schedule", "pause", name).stdout == f"{name} is paused\n"
    [row] = [row for row in host.json("schedule", "ls") if row["name"] == name]
    assert (row["paused"], row["next_at"]) == (True, None)
    line = next(line for line in host.cronium("schedule", "ls").stdout.splitlines() if line.startswith(name))
    assert line.split()[1:] == ["30", "2", "*", "*", "*", "Europe/Berlin", "paused"]
    wait_until(lambda: not beat_leads(), timeout_s=25, what="the end of an earlier test's beat")
    assert host.cronium("schedule", "ls").stderr.startswith("no beat runs, so nothing is due")
    assert host.cronium("schedule", "resume", name).stdout == f"{name} runs next at {added['next_at']}\n"
    assert host.cronium("schedule", "rm", name).stdout == f"{name} is removed\n"
    assert name not in [view.name for view in schedules()]
    gone = host.cronium("schedule", "rm", name)
    assert (gone.returncode, gone.stderr) == (1, f"cronium: no schedule {name}: see `cronium schedule ls`\n")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--cron", "61 * * * *"], "cronium: cron: bad minute in '61 * * * *': give minute 0-59, "),
        (["--cron", "* * * * *", "--timezone", "Mars"], "cronium: timezone: 'Mars' is no time zone: "),
        (["--every", "soon"], "cronium: every: not an interval: "),
        ([], "cronium: give either cron, like */5 * * * *, or every, like 30s\n"),
        (["--every", "5m", "--cpu", "64"], "cronium: resources.cpu: 64.0 is above this fleet's maximum of 2\n"),
        (["--every", "5m", "--image", "a/b"], "cronium: image: a/b is not on this fleet's allow-list"),
    ],
)
def test_a_refusal_names_field_and_remedy_and_stores_nothing(
    host: LocalHost, name: str, options: list[str], message: str
) -> None:
    script = host.path / "x.sh"
    script.write_text("true")
    refused = host.cronium("schedule", "add", name, str(script), *options)
    assert refused.returncode == 1
    assert refused.stderr.startswith(message)
    with pytest.raises(ScheduleNotFound):
        get(name)


def test_a_name_is_given_once(name: str) -> None:
    add({"name": name, "every": "1d", "job": job()})
    with pytest.raises(ScheduleConflict, match=r"name: .* is taken"):
        add({"name": name, "every": "1h", "job": job()})
    assert get(name).every == 86400


# ---- what is due


def test_what_is_found_due_twice_is_one_job(name: str) -> None:
    """A beat dies after it has fired and before it notes that, or two beats lead for a moment."""
    add({"name": name, "every": "1s", "job": job()})
    first = due(name)
    second = entry(name)
    moment = datetime.now(UTC)
    plan = first.plan()
    assert plan is not None
    id_of_run = module._submit(plan, plan.timetable.latest(moment, after=first.last_run_at))
    assert module._submit(plan, plan.timetable.latest(moment, after=second.last_run_at)) == id_of_run
    assert runs(name) == [id_of_run]
    record = store().record(id_of_run)
    assert (record["attempt"], record["status"]) == ("1", "pending")
    assert [event["type"] for event in store().events(id_of_run)] == ["status"]
    metadata = json.loads(record["job"])["metadata"]
    assert metadata["cronium.schedule"] == name
    assert id_of_run == f"{name}-{datetime.fromisoformat(metadata['cronium.due']):%Y%m%dT%H%M%SZ}"


def test_what_could_not_be_fired_is_due_again(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    add({"name": name, "every": "1s", "job": job()})
    late = due(name)

    def fails(*_: object) -> str:
        raise ConnectionError

    with monkeypatch.context() as broken:
        broken.setattr(module, "_submit", fails)
        with pytest.raises(ConnectionError):
            fire(late)
    assert entry(name).is_due()[0]
    assert entry(name).last_run_at == late.last_run_at


@pytest.mark.parametrize(
    ("overlap", "statuses"),
    [("allow", ["pending", "pending"]), ("skip", ["pending"]), ("cancel-previous", ["cancelled", "pending"])],
)
def test_overlapping_runs(name: str, overlap: str, statuses: list[str]) -> None:
    add({"name": name, "every": "1s", "overlap": overlap, "job": job()})
    fire(due(name))
    fire(due(name))
    assert [store().record(job_id)["status"] for job_id in runs(name)] == statuses
    view = get(name)
    assert (view.last_job_id, view.status) == (runs(name)[-1], "pending")
    if overlap == "skip":
        assert view.note is not None
        assert view.note.endswith(f"{view.last_job_id} had not ended")
        store().cancel(str(view.last_job_id))
        fire(due(name))
        assert len(runs(name)) == 2
        assert get(name).note is None


@pytest.mark.parametrize(("missed", "count"), [("skip", 0), ("run-once", 1)])
def test_runs_that_were_due_while_no_beat_ran(name: str, missed: str, count: int) -> None:
    five_ago = datetime.now(UTC) - timedelta(minutes=5)
    cron = f"{five_ago.minute},{(five_ago.minute - 2) % 60} * * * *"
    add({"name": name, "cron": cron, "missed": missed, "job": job()})
    fire(move(name, five_ago - timedelta(hours=3)))
    assert [job_id[-16:] for job_id in runs(name)] == [f"{five_ago:%Y%m%dT%H%M00Z}"] * count
    assert (get(name).note or "").startswith("" if count else "missed: ")
    assert not entry(name).is_due()[0]


def test_a_run_that_is_a_little_late_was_not_missed(name: str) -> None:
    now = datetime.now(UTC)
    add({"name": name, "cron": "* * * * *", "job": job()})
    fire(move(name, now - timedelta(minutes=10)))
    assert len(runs(name)) == 1


def test_what_was_due_in_a_pause_is_not_made_up_for(name: str) -> None:
    add({"name": name, "every": "1s", "missed": "run-once", "job": job()})
    pause(name)
    assert entry(name).score == -1  # no beat looks at it
    paused = entry(name)
    wait_until(lambda: datetime.now(UTC) - paused.last_run_at > timedelta(seconds=2.5))
    assert entry(name).is_due() == (False, None)
    resume(name)
    assert not entry(name).is_due()[0]
    assert runs(name) == []


def test_a_schedule_that_is_removed_while_it_is_fired_stays_so(name: str) -> None:
    add({"name": name, "every": "1s", "job": job()})
    late = due(name)
    remove(name)
    fire(late)
    assert not store().redis.exists(late.key)
    assert store().redis.zscore(module._index(), late.key) is None


def test_a_job_that_is_refused_by_now_is_noted_and_not_tried_again(name: str) -> None:
    add({"name": name, "every": "1s", "job": job()})
    late = due(name)
    plan = late.plan()
    assert plan is not None
    taken = plan.schedule.run_id(plan.timetable.after(late.last_run_at))
    moved = move(name, late.last_run_at)
    # Somebody else's job has the id of each run that may be the next.
    for seconds in range(10):
        other = plan.schedule.run_id(plan.timetable.after(late.last_run_at) + timedelta(seconds=seconds))
        app.tasks["cronium.execute_job"].delay(job("echo other", id=other))
    fire(moved)
    assert "is taken by another job" in (get(name).note or "")
    assert get(name).last_job_id is None
    assert taken in runs(name)


# ---- secrets and signatures


def test_secrets_lie_encrypted(name: str) -> None:
    secret = f"secret-{uuid4().hex}"
    add({"name": name, "every": "1s", "job": job(secrets={"TOKEN": secret})})
    fire(due(name))
    [job_id] = runs(name)
    redis = store().redis
    values = [
        str(redis.hgetall(entry(name).key)),
        str(store().record(job_id)),
        redis.get(f"cronium:job:{{{job_id}}}:secrets"),
    ]
    assert secret not in "".join(map(str, values))
    assert store().secrets.open(job_id, str(values[-1])) == {"TOKEN": secret}


def test_without_a_key_secrets_are_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store(), "secrets", SecretBox([]))
    with pytest.raises((SecretsUnreadable, ValidationError), match="make one with `cronium key`"):
        add({"name": name, "every": "1d", "job": job(secrets={"TOKEN": "x"})})
    with pytest.raises(ScheduleNotFound):
        get(name)


def test_a_definition_that_was_changed_by_somebody_without_a_key_is_not_run(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store(), "signer", Signer(["k" * 32]))
    add({"name": name, "every": "1s", "job": job("echo mine")})
    other = f"{name}-copy"
    redis, key = store().redis, entry(name).key
    fire(due(name))
    assert len(runs(name)) == 1
    definition = str(redis.hget(key, "definition"))
    try:
        # Under another name, and with another script.
        copied = {"definition": definition.replace(name, other, 1), "meta": str(redis.hget(key, "meta"))}
        redis.hset(key + "-copy", mapping=copied)
        redis.hset(key, "definition", definition.replace("echo mine", "echo evil"))
        for changed in (name, other):
            assert entry(changed).plan() is None
            assert entry(changed).is_due() == (False, None)
            assert "cannot be used here" in (get(changed).note or "")
    finally:
        redis.delete(key + "-copy")
    assert len(runs(name)) == 1


# ---- beats


@pytest.mark.timeout(180)
def test_each_time_is_fired_once_with_two_beats_of_which_one_is_killed(host: LocalHost, name: str) -> None:
    """Given two beats; when the leading one is killed right after it has fired; then no time that was due is left out,
    and none has two jobs or a job that ran twice."""
    host.start(node="jobs")
    beats = [host.process(sys.executable, "-m", "tests.chaos.beat") for _ in range(2)]

    def leads(process: RigWorker) -> bool:
        return "Acquired lock" in process.log.read_text()

    wait_until(lambda: any(map(leads, beats)), timeout_s=40)
    script = host.path / "tick.sh"
    script.write_text("echo tick")
    added = host.cronium("schedule", "add", name, str(script), "--every", f"{EVERY_S}s", "--queue", host.queue)
    assert (added.returncode, added.stderr) == (0, "")
    first = datetime.fromisoformat(added.stdout.split()[-1])
    wait_until(lambda: runs(name), timeout_s=30, what="the first run")
    leader, follower = sorted(beats, key=leads, reverse=True)
    assert not leads(follower)
    leader.kill()
    wait_until(lambda: len(runs(name)) >= 4, timeout_s=60, what="further runs")
    assert leads(follower)
    host.cronium("schedule", "pause", name)
    wait_until(lambda: all(host.status(job_id) == "completed" for job_id in runs(name)), timeout_s=60)
    times = [first + timedelta(seconds=EVERY_S * number) for number in range(len(runs(name)))]
    assert runs(name) == [f"{name}-{time:%Y%m%dT%H%M%SZ}" for time in times]
    for job_id in runs(name):
        events = list(store().events(job_id))
        assert [event["status"] for event in events if event["type"] == "status"].count("running") == 1
        assert [event["data"] for event in events if event["type"] == "log"] == ["tick\n"]
    view = get(name)
    assert (view.last_job_id, view.status) == (runs(name)[-1], "completed")
