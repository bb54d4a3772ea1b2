"""Judges a history, in the manner of Jepsen's queue test: what was accepted must have come to one end, as planned,
with every line once and in order; what ran twice must have lost its host. Pure."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from itertools import pairwise
from typing import Literal

from cronium_worker.models import TERMINAL, JobResult
from cronium_worker.policy import FAULT_BUDGET
from tests.chaos.history import Event, Fault, History, Run
from tests.chaos.kinds import ON_ENGINE, ON_HOST, SILENT
from tests.chaos.plans import RETRY_EXIT, Plan, after_header, header_of

Verdict = Literal["lost", "duplicated", "unexpected", "double run", "log", "celery", "events", "residue", "trouble"]

_NEXT = {
    "pending": {"preparing", "cancelled", "failed"},
    "preparing": {"running", "pending", *TERMINAL},
    "running": {"pending", *TERMINAL},
}
_INFRASTRUCTURE = {"lost", "daemon", "container_create", "container_start", "image_pull", "network"}
# These end containers; an engine that is frozen, or restarted with live restore, ends none.
_END_CONTAINERS = {
    *("engine restarted", "engine killed"),
    *("container stopped", "container killed", "container removed"),
}
# As the engine tells it of a container that ended by itself while the engine was away.
_UNKNOWN_EXIT = 255
# A new engine ends what the killed one has left, and tells of it, a little after it answers.
_ENDED_S = 5
# What ended shortly before its engine went was not told of any more: how it ended, nobody knows.
_TOLD_S = 0.5
# Between the end of a lease and whoever looks after it.
_LOOKED_S = 5
_KILLED = {137, 143}
_STREAMS = ("stdout", "stderr")


@dataclass(frozen=True)
class Violation:
    verdict: Verdict
    job_id: str
    text: str

    def __str__(self) -> str:
        return f"{self.verdict}: {self.job_id}: {self.text}" if self.job_id else f"{self.verdict}: {self.text}"


@dataclass
class Report:
    """`totals`: what there was of each, in the order in which it is shown. `causes`: the kinds of faults that had
    scripts run again."""

    causes: Counter[str] = field(default_factory=Counter)
    totals: Counter[str] = field(default_factory=Counter)
    violations: list[Violation] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.violations


def check(history: History) -> Report:
    report = Report()
    by_job: dict[str, list[Run]] = defaultdict(list)
    history.runs = [run for run in history.runs if run.job_id]  # others have waited for a job, and none came
    for run in sorted(history.runs, key=lambda run: run.started):
        by_job[run.job_id].append(run)
    touched: dict[str, list[Fault]] = defaultdict(list)
    for fault in history.faults:
        for job_id in fault.jobs:
            touched[job_id].append(fault)
    jobs = [_Job(history, job_id, by_job[job_id], touched[job_id]) for job_id in _known(history)]
    for job in jobs:
        report.violations += job.violations()
    _count(report, history, jobs)
    report.violations += [Violation("residue", "", text) for text in history.residue]
    report.violations += [Violation("trouble", "", text) for text in history.troubles]
    return report


def _known(history: History) -> list[str]:
    ran = {run.job_id for run in history.runs}
    return sorted({*history.submitted, *history.records, *history.events, *ran})


class _Job:
    """All that is known of one job."""

    def __init__(self, history: History, job_id: str, runs: list[Run], faults: list[Fault]) -> None:
        self.id = job_id
        self.runs = runs
        self.began = [run for run in runs if run.began]
        self.faults = faults
        self.plan = history.plans.get(job_id)
        self.accepted = history.submitted.get(job_id)
        self.record = history.records.get(job_id, {})
        self.events = history.events.get(job_id, [])
        self.status = self.record.get("status", "")
        self.result = JobResult.model_validate_json(self.record["result"]) if self.record.get("result") else None
        self.gave_up = False
        self.causes: list[str] = []  # of runs that were made again
        self.segments = _segments(self.events)
        self.gaps = sum(_has_gap(segment) for segment in self.segments)
        self._history = history

    def violations(self) -> list[Violation]:
        if self.plan is None:
            return [Violation("unexpected", self.id, "nobody submitted it")]
        if not self.record:
            if self.began:
                return [Violation("unexpected", self.id, "it ran, and has no record")]
            return [Violation("lost", self.id, "accepted, and there is no record")] if self.accepted else []
        if self.status not in TERMINAL or self.result is None:
            return [Violation("lost", self.id, f"its record says {self.status or 'nothing'} at the end")]
        found = [*self._ends_once(), *self._events_are_whole(), *self._ended_as_planned(self.plan)]
        found += [*self._ran_once(), *self._log_is_whole(self.plan), *self._celery_agrees()]
        return found

    # ---- one end

    def _statuses(self) -> list[Event]:
        return [event for event in self.events if event["type"] == "status"]

    def _ends_once(self) -> Iterator[Violation]:
        ends = [event["status"] for event in self._statuses() if event["status"] in TERMINAL]
        if len(ends) != 1:
            yield Violation("duplicated", self.id, f"{len(ends)} terminal events: {ends}")
        elif ends[0] != self.status:
            yield Violation("duplicated", self.id, f"the event says {ends[0]}, the record {self.status}")
        elif self.result is not None and self.result.status != self.status:
            yield Violation("duplicated", self.id, f"the result says {self.result.status}, the record {self.status}")

    def _events_are_whole(self) -> Iterator[Violation]:
        # Earlier attempts' logs may have been cut to make room: what is left up to there are status events.
        cut = max((event["to_seq"] for event in self.events if event.get("truncated")), default=-1)
        seqs = [event["seq"] for event in self.events]
        if seqs != sorted(set(seqs)) or set(range(len(seqs) and seqs[-1] + 1)) - set(seqs) - set(range(cut + 1)):
            yield Violation("events", self.id, "seq has a gap or is not in order")
        if any(event["type"] != "status" for event in self.events if event["seq"] <= cut):
            yield Violation("events", self.id, f"there is more than status events up to {cut}, where it was cut")
        if self.events and (self.events[-1]["type"], self.events[-1].get("status")) != ("status", self.status):
            yield Violation("events", self.id, f"after the terminal one there is {self.events[-1]['type']}")
        for before, after in pairwise(self._statuses()):
            if after["status"] not in _NEXT.get(before["status"], ()):
                yield Violation("events", self.id, f"{after['status']} after {before['status']}")
            if after["attempt"] < before["attempt"]:
                yield Violation("events", self.id, f"attempt {after['attempt']} after {before['attempt']}")

    # ---- as planned

    def _ended_as_planned(self, plan: Plan) -> Iterator[Violation]:
        result = self.result
        assert result is not None
        error = result.error
        kind = error.type if error else None
        wrong = plan.wrong(result.status, kind, result.exit_code, result.output.data)
        if wrong is None or self._killed_by_hand():
            return
        if error is not None and result.status == "failed" and kind in _INFRASTRUCTURE and self._near() > FAULT_BUDGET:
            self.gave_up = True
            return
        reason = f": {error.message}" if error else ""
        yield Violation("unexpected", self.id, wrong + reason)

    def _killed_by_hand(self) -> bool:
        """Somebody ended this container, and the job says how it ended."""
        by_hand = any(fault.by_hand and fault.kind != "container paused" for fault in self.faults)
        return by_hand and self.result is not None and self.result.exit_code in _KILLED

    def _near(self) -> int:
        """How many faults may have cost this job an attempt, or a worker that had taken it over."""
        hosts = {event["host"] for event in self._statuses() if event.get("host")}
        begin, end = _at(self.events[0]), _at(self.events[-1])
        return sum(
            fault.by_hand or fault.kind in ON_HOST or fault.kind in ON_ENGINE
            for fault in self._history.faults
            if self.id in fault.jobs or (fault.host in hosts and not fault.by_hand and begin <= fault.began <= end)
        )

    # ---- one run

    def _ran_once(self) -> Iterator[Violation]:
        of_attempt = Counter(run.attempt for run in self.began)
        for attempt, count in of_attempt.items():
            if count > 1:
                yield Violation("double run", self.id, f"attempt {attempt} ran {count} times")
        assert self.result is not None
        if self.began and max(of_attempt) > self.result.attempt:
            yield Violation("double run", self.id, f"attempt {max(of_attempt)} ran, the result is of an earlier one")
        for held, again in pairwise(self._statuses()):
            if again["status"] == "pending":
                yield from self._again(held["attempt"], again)
        for earlier, later in pairwise(self.began):
            if (earlier.ended is None or later.started < earlier.ended) and not self._host_was_lost(earlier, later):
                yield Violation("double run", self.id, f"attempts {earlier.attempt} and {later.attempt} ran at once")

    def _again(self, attempt: int, again: Event) -> Iterator[Violation]:
        """A run that was made again must have a cause."""
        runs = [run for run in self.began if run.attempt == attempt and run.started <= _at(again)]
        if not runs or self._script_failed(runs[-1]):
            return
        if cause := self._cause_of_loss(runs[-1], _at(again)):
            self.causes.append(cause)
        else:
            text = f"attempt {attempt} ran and was made again without a cause: {again['message']}"
            yield Violation("double run", self.id, text)

    def _script_failed(self, run: Run) -> bool:
        """It came to its end as the script is written, and the job's own policy has it run again."""
        if self.plan is None or self.plan.script_retries == 0:
            return False
        if run.exit_code is None:  # its end was not seen
            return after_header(run.text) == self.plan.text("stdout", run.attempt)
        return run.exit_code == RETRY_EXIT

    def _cause_of_loss(self, run: Run, given_back: float) -> str | None:
        """The kind of fault that explains that the job was taken from a script that had begun.

        A worker that comes back soon takes over what it has left: its death alone is no reason, only that its host
        was silent for longer than a lease.
        """
        for fault in self._history.faults:
            if fault.host != run.host or (fault.by_hand and self.id not in fault.jobs):
                continue
            if fault.kind in _END_CONTAINERS or (fault.kind in ON_ENGINE and run.exit_code == _UNKNOWN_EXIT):
                ended = run.ended or given_back
                untold_s = _TOLD_S if fault.kind in ON_ENGINE else 0
                explains = fault.began <= given_back and fault.began - untold_s <= ended <= fault.healed + _ENDED_S
            else:
                explains = fault.kind in SILENT and self._outlasted_its_lease(fault, run, given_back)
            if explains:
                return fault.kind
        return None

    def _outlasted_its_lease(self, fault: Fault, run: Run, given_back: float) -> bool:
        silent_s = given_back - fault.began
        back = max(fault.back or 0.0, fault.healed) + _LOOKED_S
        return run.started <= fault.healed and silent_s >= self._history.lease_ttl_s and given_back <= back

    def _host_was_lost(self, earlier: Run, later: Run) -> bool:
        """Whether two runs at once are to be expected: a host that is gone, its containers are not, and nobody there
        is to end them."""
        cause = self._cause_of_loss(earlier, later.started)
        return earlier.host != later.host and cause in SILENT

    # ---- the log

    def _log_is_whole(self, plan: Plan) -> Iterator[Violation]:
        for number, segment in enumerate(self.segments):
            last, gap = number == len(self.segments) - 1, _has_gap(segment)
            for stream in _STREAMS:
                text = "".join(event["data"] for event in segment if event.get("stream") == stream)
                yield from self._text_is_right(plan, stream, text, last=last, gap=gap)
        if self.result is not None and self.result.log.gap != _has_gap(_since_pending(self.events)):
            yield Violation("log", self.id, "the result and the events do not agree on a gap")
        if self.gaps and not self._gap_has_cause():
            yield Violation("log", self.id, "a gap, and neither its host nor its container was touched")

    def _gap_has_cause(self) -> bool:
        hosts = {run.host for run in self.runs}
        begin, end = _at(self.events[0]), _at(self.events[-1])
        return any(
            self.id in fault.jobs
            if fault.by_hand
            else fault.kind in SILENT | ON_ENGINE.keys()
            and fault.host in hosts
            and begin <= fault.healed
            and fault.began <= end
            for fault in self._history.faults
        )

    def _text_is_right(self, plan: Plan, stream: str, text: str, *, last: bool, gap: bool) -> Iterator[Violation]:
        assert self.result is not None
        attempt = self.result.attempt
        lines = text
        if stream == "stdout":
            header = header_of(text)
            if header is not None:
                attempt = int(header[0])
            elif "\n" in text:
                yield Violation("log", self.id, f"the log does not begin with the run's first line: {text[:80]!r}")
                return
            lines = after_header(text) if header else ""
        elif text and (words := text.split())[1:]:
            attempt = int(words[1])
        expected = plan.text(stream, attempt)
        if gap:
            if not _is_subsequence(lines.splitlines(), expected.splitlines()):
                yield Violation("log", self.id, f"{stream} of attempt {attempt}: lines doubled or out of order")
            return
        if not expected.startswith(lines):
            yield Violation("log", self.id, f"{stream} of attempt {attempt}: {_difference(lines, expected)}")
        elif last and len(lines) < len(expected) and self._ran_to_the_end(plan):
            stored, printed = lines.count("\n"), expected.count("\n")
            yield Violation("log", self.id, f"{stream} of attempt {attempt}: {stored} of {printed} lines stored")
        elif last and stream == "stdout" and not self.gave_up and not self._by_engine():
            yield from self._has_what_was_seen(text, attempt)

    def _ran_to_the_end(self, plan: Plan) -> bool:
        result = self.result
        assert result is not None
        by_itself = result.status == "completed" or (
            result.status == "failed" and result.error is not None and result.error.type == "script"
        )
        return by_itself and result.exit_code == (plan.exit_code if result.status == "failed" else 0)

    def _by_engine(self) -> bool:
        return self.result is not None and self.result.error is not None and self.result.error.type in _INFRASTRUCTURE

    def _has_what_was_seen(self, text: str, attempt: int) -> Iterator[Violation]:
        for run in self.began:
            of_result = self.result is not None and run.attempt == attempt == self.result.attempt
            if of_result and not text.startswith(run.text):
                seen, stored = run.text.count("\n"), text.count("\n")
                yield Violation("log", self.id, f"attempt {attempt}: the engine has {seen} lines, stored are {stored}")

    # ---- what the caller gets

    def _celery_agrees(self) -> Iterator[Violation]:
        got = self._history.celery.get(self.id)
        if got is None:
            if self.accepted:
                yield Violation("celery", self.id, "get() has no result")
        elif self.result is None or JobResult.model_validate(got) != self.result:
            yield Violation("celery", self.id, "get() and the record do not agree")

    @property
    def lines(self) -> tuple[int, int]:
        """Of the standard output: as the engine has them, and as they are stored."""
        emitted = sum(run.text.count("\n") for run in self.runs)
        return emitted, sum(e["data"].count("\n") for e in self.events if e.get("stream") == "stdout")


def _count(report: Report, history: History, jobs: list[_Job]) -> None:
    totals, found = report.totals, Counter(violation.verdict for violation in report.violations)
    totals["submitted"] = len(history.submitted)
    totals["acknowledged"] = sum(history.submitted.values())
    for status in ("completed", "failed", "cancelled", "timeout"):
        totals[status] = sum(job.status == status for job in jobs)
    totals["recovered"] = sum(job.status == "completed" and bool(job.faults) for job in jobs)
    totals["given up"] = sum(job.gave_up for job in jobs)
    for verdict in ("lost", "duplicated", "unexpected"):
        totals[verdict] = found[verdict]
    causes = [cause for job in jobs for cause in job.causes]
    report.causes.update(causes)
    totals["runs"] = sum(len(job.began) for job in jobs)
    totals["double runs, explained"] = len(causes)
    totals["double runs, unexplained"] = found["double run"]
    totals["lines seen by the engine"] = sum(job.lines[0] for job in jobs)
    totals["lines stored"] = sum(job.lines[1] for job in jobs)
    totals["gaps"] = sum(job.gaps for job in jobs)
    totals["log faults"] = found["log"]


def _at(event: Event) -> float:
    return datetime.fromisoformat(event["ts"]).timestamp()


def _segments(events: list[Event]) -> list[list[Event]]:
    """The log of each time that a worker took the job."""
    segments: list[list[Event]] = []
    for event in events:
        if event["type"] == "status" and event["status"] == "preparing":
            segments.append([])
        elif event["type"] in ("log", "progress") and segments:
            segments[-1].append(event)
    return segments


def _since_pending(events: list[Event]) -> list[Event]:
    """What belongs to the attempt that the result tells of; nobody may have taken it."""
    pending = [number for number, event in enumerate(events) if event.get("status") == "pending"]
    return events[pending[-1] :] if pending else events


def _has_gap(segment: list[Event]) -> bool:
    return any(event.get("gap") for event in segment)


def _is_subsequence(lines: list[str], whole: list[str]) -> bool:
    left = iter(whole)
    return all(line in left for line in lines)


def _difference(lines: str, expected: str) -> str:
    """Where a text leaves what was printed."""
    for number, (got, wanted) in enumerate(zip(lines.splitlines(), expected.splitlines(), strict=False), start=1):
        if got != wanted:
            return f"line {number} is {got!r}, printed was {wanted!r}"
    return f"{lines.count(chr(10))} lines, printed were {expected.count(chr(10))}"
