"""The checker sees what it is there for: each history is right but for one planted fault."""

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from random import Random
from typing import Any

import pytest

from cronium_worker.models import ErrorInfo, JobResult, LogSummary, Output
from tests.chaos.checker import Report, check
from tests.chaos.failpoint import ADOPTION_STEPS, POOL_STEPS, STEPS, place
from tests.chaos.history import Fault, History, Run
from tests.chaos.nemesis import deck
from tests.chaos.plans import Plan, draw
from tests.chaos.report import rows

JOB, HOST, OTHER = "job-1", "host-a", "host-b"
START = 1_000_000.0
PLAN = Plan(job_id=JOB, kind="ok", lines=3, pause_s=0.1, pause_every=1, value=21, priority=5)


def iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat()


def header(attempt: int) -> str:
    return f"run {attempt} {JOB} {attempt:012x} 00000000-0000-0000-0000-{attempt:012d}\n"


class Story:
    """Tells a history event by event, a second each."""

    def __init__(self, plan: Plan = PLAN) -> None:
        self.plan = plan
        self.history = History(plans={JOB: plan}, submitted={JOB: True}, lease_ttl_s=5)
        self.now = START
        self.attempt = 0
        self.status("pending", attempt=1)

    def event(self, kind: str, **fields: Any) -> None:
        events = self.history.events.setdefault(JOB, [])
        self.now += 1
        events.append({"v": 1, "job_id": JOB, "seq": len(events), "ts": iso(self.now), "type": kind} | fields)

    def status(self, status: str, *, attempt: int | None = None, **fields: Any) -> None:
        fields = {"attempt": attempt or self.attempt, "host": None, "message": ""} | fields
        self.event("status", status=status, **fields)

    def run(self, attempt: int, *, host: str = HOST, lines: int | None = None) -> Run:
        """Takes the job and prints; the log is stored as it is printed."""
        self.attempt = attempt
        self.status("preparing", host=host)
        run = Run(job_id=JOB, attempt=attempt, host=host, container=f"{attempt:064x}", started=self.now + 0.5)
        self.history.runs.append(run)
        self.status("running", host=host)
        printed = self.plan.text("stdout", attempt).splitlines(keepends=True)[:lines]
        errors = self.plan.text("stderr", attempt).splitlines(keepends=True)[:lines]
        run.text = header(attempt) + "".join(printed)
        self.event("log", stream="stdout", data=run.text)
        self.event("log", stream="stderr", data="".join(errors))
        run.ended, run.exit_code = self.now + 0.5, 0
        return run

    def fault(self, kind: str, *, host: str = HOST, seconds: float = 0, **fields: Any) -> Fault:
        self.now += 1
        fault = Fault(kind=kind, host=host, began=self.now, healed=self.now + seconds, jobs=[JOB], **fields)
        fault.back = fault.healed + 2
        self.history.faults.append(fault)
        return fault

    def end(self, status: str = "completed", **fields: Any) -> History:
        standard: dict[str, Any] = {"exit_code": 0, "output": Output(data=42)} if status == "completed" else {}
        result = JobResult(job_id=JOB, status=status, attempt=self.attempt, host=HOST, **(standard | fields))
        self.status(status, host=HOST)
        self.history.records[JOB] = {"status": status, "result": result.model_dump_json()}
        self.history.celery[JOB] = result.model_dump(mode="json")
        return self.history


def whole() -> History:
    story = Story()
    story.run(1)
    return story.end()


def verdicts(history: History) -> set[str]:
    return {violation.verdict for violation in check(history).violations}


def checked(history: History) -> Report:
    report = check(history)
    assert report.ok, [str(violation) for violation in report.violations]
    return report


def test_a_whole_history_is_whole() -> None:
    totals = checked(whole()).totals
    assert (totals["acknowledged"], totals["completed"], totals["runs"]) == (1, 1, 1)
    assert totals["lines seen by the engine"] == totals["lines stored"] == 4


def test_what_was_cut_to_make_room_is_no_gap() -> None:
    history = whole()
    for event in history.events[JOB][2:]:
        event["seq"] += 10
    marker = {"v": 1, "job_id": JOB, "seq": 11, "ts": iso(START), "type": "progress", "truncated": True, "to_seq": 10}
    history.events[JOB].insert(2, marker)

    assert checked(history).violations == []


@pytest.mark.parametrize(("gap", "is_whole"), [(False, True), (True, False)])
def test_a_gap_of_an_earlier_attempt_is_not_of_one_that_was_cancelled_before_it_began(
    gap: bool, is_whole: bool
) -> None:
    story = Story(replace(PLAN, kind="cancel-race", cancel_after_s=1.0))
    story.run(1).exit_code = 137
    story.fault("engine restarted")
    story.event("progress", message="a part of the log may be missing", gap=True)
    story.status("pending", attempt=2)
    story.attempt = 2
    story.history.cancels[JOB] = story.now
    history = story.end("cancelled", error=ErrorInfo(type="cancelled", message=""), log=LogSummary(gap=gap))

    assert ("log" not in verdicts(history)) == is_whole


# ---- planted faults of the fleet


def _record_gone(history: History) -> None:
    history.records.clear()
    history.events.clear()
    history.runs.clear()


def _never_ended(history: History) -> None:
    history.events[JOB].pop()
    history.records[JOB] = {"status": "running"}


def _ended_twice(history: History) -> None:
    history.events[JOB].append(history.events[JOB][-1] | {"seq": len(history.events[JOB])})


def _ended_as_two(history: History) -> None:
    history.events[JOB][-1]["status"] = "failed"


def _nobodys(history: History) -> None:
    del history.plans[JOB]
    del history.submitted[JOB]


def _wrong_output(history: History) -> None:
    text = history.records[JOB]["result"].replace("42", "43")
    history.records[JOB]["result"] = text
    history.celery[JOB] = JobResult.model_validate_json(text).model_dump(mode="json")


def _ran_twice(history: History) -> None:
    first = history.runs[0]
    history.runs.append(replace(first, container="f" * 64, started=first.started + 60, ended=first.started + 61))


def _seq_gap(history: History) -> None:
    history.events[JOB][-1]["seq"] += 1


def _seq_gap_behind_a_cut(history: History) -> None:
    marker = {"v": 1, "job_id": JOB, "seq": 2, "ts": iso(START), "type": "progress", "truncated": True, "to_seq": 1}
    history.events[JOB].insert(2, marker)
    for number, event in enumerate(history.events[JOB]):
        event["seq"] = number + (number > 2)


def _late_event(history: History) -> None:
    events = history.events[JOB]
    events.append(events[-2] | {"seq": len(events)})


def _log(change: Callable[[str], str]) -> Callable[[History], None]:
    def plant(history: History) -> None:
        for event in history.events[JOB]:
            if event.get("stream") == "stdout":
                event["data"] = change(event["data"])

    return plant


def _gap_without_cause(history: History) -> None:
    events = history.events[JOB]
    events.insert(-1, events[-2] | {"type": "progress", "gap": True})
    for number, event in enumerate(events):
        event["seq"] = number
    result = JobResult.model_validate_json(history.records[JOB]["result"]).model_copy(
        update={"log": LogSummary(gap=True)}
    )
    history.records[JOB]["result"] = result.model_dump_json()
    history.celery[JOB] = result.model_dump(mode="json")


def _get_hangs(history: History) -> None:
    history.celery[JOB] = None


def _left_over(history: History) -> None:
    history.residue.append("container cronium-job-1")


@pytest.mark.parametrize(
    ("plant", "verdict"),
    [
        (_record_gone, "lost"),
        (_never_ended, "lost"),
        (_ended_twice, "duplicated"),
        (_ended_as_two, "duplicated"),
        (_nobodys, "unexpected"),
        (_wrong_output, "unexpected"),
        (_ran_twice, "double run"),
        (_seq_gap, "events"),
        (_seq_gap_behind_a_cut, "events"),
        (_late_event, "events"),
        (_log(lambda text: text.replace("out 1 2\n", "")), "log"),
        (_log(lambda text: text.replace("out 1 3\n", "")), "log"),
        (_log(lambda text: text.replace("out 1 2\n", "out 1 2\nout 1 2\n")), "log"),
        (_log(lambda text: text.replace("out 1 1\nout 1 2\n", "out 1 2\nout 1 1\n")), "log"),
        (_log(lambda text: text + text), "log"),
        (_gap_without_cause, "log"),
        (_get_hangs, "celery"),
        (_left_over, "residue"),
    ],
)
def test_a_planted_fault_is_seen(plant: Callable[[History], None], verdict: str) -> None:
    history = whole()
    plant(history)
    assert verdict in verdicts(history)
    assert not check(history).ok


# ---- runs that were made again


def made_again(fault: str | None, *, seconds: float = 0, second_host: str = OTHER, lines: int = 1) -> History:
    """The first run is taken from its worker some seconds after the fault."""
    story = Story()
    first = story.run(1, lines=lines)
    if fault is not None:
        story.fault(fault, seconds=seconds, by_hand=fault.startswith("container"))
    story.now += seconds
    first.ended = story.now
    story.status("pending", attempt=2, message="again: the worker on host-a was lost")
    story.run(2, host=second_host)
    return story.end()


def test_a_run_is_made_again_after_the_death_of_its_host() -> None:
    report = checked(made_again("jobs node frozen, lease lapsed", seconds=10))
    assert report.causes == {"jobs node frozen, lease lapsed": 1}


@pytest.mark.parametrize(
    "fault",
    [
        *(None, "jobs node killed", "Redis killed", "message sent twice", "beat killed", "container paused"),
        *("engine frozen", "engine restarted, live restore"),
    ],
)
def test_no_run_is_made_again_after_less(fault: str | None) -> None:
    assert verdicts(made_again(fault)) == {"double run"}


def test_no_run_is_made_again_after_a_fault_of_another_host() -> None:
    history = made_again("jobs node frozen, lease lapsed", seconds=10)
    history.faults[0].host = OTHER
    assert verdicts(history) == {"double run"}


@pytest.mark.parametrize("fault", ["engine restarted", "engine killed", "container removed"])
def test_a_run_is_made_again_when_its_container_was_lost(fault: str) -> None:
    checked(made_again(fault))


def test_a_container_that_ended_before_its_engine_could_tell() -> None:
    history = made_again("engine killed")
    history.runs[0].ended = history.faults[0].began - 0.3
    checked(history)


@pytest.mark.parametrize(
    ("fault", "ended_s"),
    [("engine killed", -2), ("engine killed", 8), ("container killed", -0.3), ("container killed", 8)],
)
def test_a_container_that_ended_apart_from_the_fault_is_not_explained_by_it(fault: str, ended_s: float) -> None:
    history = made_again(fault)
    history.runs[0].ended = history.faults[0].began + ended_s
    for event in history.events[JOB][-5:]:
        event["ts"] = iso(history.faults[0].began + 20)
    assert "double run" in verdicts(history)


def test_an_attempt_that_found_no_engine_is_not_the_run_before() -> None:
    story = Story()
    first = story.run(1, lines=1)
    story.fault("engine killed")
    first.ended = story.now
    story.status("pending", attempt=2, message="again: the engine was restarted")
    story.now += 30
    story.status("preparing", attempt=2, host=HOST)
    story.status("pending", attempt=2, message="again in 1 s: the Docker Engine did not answer")
    story.run(2)
    checked(story.end())


def test_two_runs_at_once_need_a_lost_host() -> None:
    history = made_again("container removed")
    history.runs[0].ended = history.runs[1].started + 1
    assert verdicts(history) == {"double run"}


def test_a_container_that_never_began_is_no_run() -> None:
    history = made_again(None)
    history.runs[0].text = ""
    for event in history.events[JOB]:
        if event.get("stream") and event["seq"] < 6:
            event["data"] = ""
    checked(history)


# ---- ends that a fault explains, and that none explains


def ended_badly(
    error: ErrorInfo, *, exit_code: int | None = None, faults: int = 0, kind: str = "engine killed"
) -> History:
    story = Story()
    story.run(1, lines=1)
    for _ in range(faults):
        story.fault(kind, by_hand=kind.startswith("container"))
    return story.end("failed", error=error, exit_code=exit_code)


KILLED = ErrorInfo(type="script", message="the script exited with 137")
GIVEN_UP = ErrorInfo(type="lost", message="given up after 4 faults of the fleet")


def test_a_container_that_was_killed_by_hand_may_fail() -> None:
    checked(ended_badly(KILLED, exit_code=137, faults=1, kind="container killed"))


def test_a_job_may_be_given_up_after_its_budget_of_faults_alone() -> None:
    assert checked(ended_badly(GIVEN_UP, faults=4)).totals["given up"] == 1
    assert verdicts(ended_badly(GIVEN_UP, faults=3)) == {"unexpected"}
    assert verdicts(ended_badly(GIVEN_UP, faults=9, kind="Redis killed")) == {"unexpected"}


def test_a_failure_without_a_cause_is_unexpected() -> None:
    assert verdicts(ended_badly(KILLED, exit_code=137)) == {"unexpected"}


def test_a_cancel_that_was_forgotten_is_unexpected() -> None:
    story = Story(replace(PLAN, kind="cancelled", cancel_after_s=0))
    story.run(1)
    assert verdicts(story.end("completed")) == {"unexpected"}


def test_a_job_that_nobody_accepted_may_be_missing() -> None:
    history = whole()
    _record_gone(history)
    history.submitted[JOB] = False
    checked(history)


# ---- the rest


def test_recovery_counts_from_the_fault_to_the_last_job_that_goes_on() -> None:
    history = whole()
    events = history.events[JOB]
    at = START + 2.5
    history.faults.append(Fault(kind="jobs node killed", host=HOST, began=at, healed=at, jobs=[JOB]))
    (row,) = rows(history, check(history))
    assert (row.injected, row.survived) == (1, 1)
    assert row.p50_s == pytest.approx(0.5)
    assert events[2]["status"] == "running"


@pytest.mark.parametrize("name", [*STEPS, *ADOPTION_STEPS, *POOL_STEPS])
def test_every_failpoint_is_a_function_of_the_product(name: str) -> None:
    assert place((STEPS | ADOPTION_STEPS | POOL_STEPS)[name])


def test_the_same_seed_draws_the_same() -> None:
    assert [draw(n, seed=7, prefix="x") for n in range(50)] == [draw(n, seed=7, prefix="x") for n in range(50)]
    cards = deck(["a", "b", "c"], 8, Random(1))
    assert cards == deck(["c", "b", "a"], 8, Random(1))
    assert {cards.count(kind) for kind in "abc"} == {2, 3}
