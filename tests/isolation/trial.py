"""Runs the catalogue on a bench, with canaries beside it, and says what became of each case."""

import base64
import gc
import json
import logging
import os
import re
import resource
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

from pydantic import ValidationError

from cronium_worker.models import Job
from tests.integration.conftest import Bench, Ran
from tests.isolation.catalogue import Attack, Outcome, Refusal
from tests.isolation.steps import Link, Step, written_in

_CANARY_VARIABLE = "CRONIUM_TEST_CANARY"
_CLEAR_REFS_PEAK = "5"
_AT_ONCE = 4
_COLLECT_S = 5  # ten times the longest that was measured: nothing that a job leaves may hold the worker


@dataclass(frozen=True)
class Verdict:
    """What became of a case in a language. `wrong`: what is not as it must be; empty: nothing."""

    id: str
    title: str
    category: str
    language: str
    expected: Outcome
    outcome: Outcome | None
    wrong: str = ""

    @property
    def as_expected(self) -> bool:
        return not self.wrong and self.outcome == self.expected


@dataclass
class Canary:
    """A file of the host beside the workspaces, and a variable of the worker: whatever shows the token has read one
    of them, and whatever changes the file has written there."""

    path: Path
    owner: tuple[int, int]
    token: str = field(default_factory=lambda: f"canary-{uuid4().hex}")

    def __post_init__(self) -> None:
        self.path.write_text(self.token)
        self.path.chmod(0o644)
        os.chown(self.path, *self.owner)
        self._before = self._state()
        os.environ[_CANARY_VARIABLE] = self.token

    def _state(self) -> tuple[object, ...] | None:
        if not self.path.is_file():
            return None
        found = self.path.lstat()
        return (self.path.read_text(), found.st_mode, found.st_uid, found.st_gid, found.st_mtime_ns, found.st_nlink)

    def written(self) -> bool:
        return self._state() != self._before

    def shown_in(self, text: str) -> bool:
        return self.token in text

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)
        os.environ.pop(_CANARY_VARIABLE, None)


class _Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[str] = []
        self.setFormatter(logging.Formatter("%(levelname)s %(message)s"))

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record) + repr(record.__dict__))


def refuse(case: Refusal, language: str) -> Verdict:
    fields = {"script": {"type": language, "content": ""}, **case.fields}
    if isinstance(fields["script"], dict) and case.where == "script" and fields["script"].get("type") == "bash":
        fields["script"] = {**fields["script"], "type": language}
    outcome: Outcome | None = None
    wrong = "accepted"
    try:
        Job.model_validate(fields)
    except ValidationError as error:
        named = {str(part) for detail in error.errors() for part in detail["loc"]}
        outcome, wrong = "refused", "" if case.where in named else f"names {sorted(named)}"
    return Verdict(case.id, case.title, case.category, language, "refused", outcome, wrong)


class Trial:
    """`leftovers()`: what jobs have left on the host. `crashes`: what the worker has logged as errors."""

    def __init__(self, bench: Bench, base: Path, leftovers: Callable[[], list[str]]) -> None:
        self._bench = bench
        self._leftovers = leftovers
        # Where `../../../../canary.txt` leads from a workspace's output, when it is followed on the host.
        sandboxes = bench.runner._host.settings.sandboxes_path / "sandboxes"
        sandboxes.mkdir(parents=True, exist_ok=True)
        # Of the jobs' own user, as another job's file is: its owner alone does not protect it.
        owner = bench.runner._host.settings.container_uid_gid
        self.canaries = [Canary(base / "canary.txt", owner), Canary(sandboxes.parent / "canary.txt", owner)]
        self.canary_reads = self.canary_writes = self.peak_bytes = 0
        self.residue: list[str] = []
        self.crashes: list[str] = []

    def run_all(self, groups: Iterable[Sequence[Attack]], languages: Iterable[str]) -> list[Verdict]:
        """The last of the bench: a few jobs at once; what they have left is looked for at the end."""
        wanted = [(group, language) for group in groups for language in languages]
        todo = [(found, language) for group, language in wanted
                if (found := [attack for attack in group if language in attack.languages])]  # fmt: skip
        heard = _Lines()
        ours = logging.getLogger("cronium_worker")
        level = ours.level
        ours.addHandler(heard)
        ours.setLevel(logging.DEBUG)
        try:
            with ThreadPoolExecutor(_AT_ONCE) as threads:
                reset_peak()
                jobs = list(threads.map(lambda one: self._run(*one), todo))
                self.peak_bytes = peak_bytes()  # of the worker's part, before results are read here
        finally:
            ours.removeHandler(heard)
            ours.setLevel(level)
        log = "\n".join(heard.lines)
        self.canary_reads += sum(canary.shown_in(log) for canary in self.canaries)
        self.canary_writes = sum(canary.written() for canary in self.canaries)
        self.crashes += [line for line in heard.lines if line.startswith(("ERROR", "CRITICAL"))]
        self._bench.runner.close()
        self.residue = self._leftovers()
        return [verdict for job, (group, language) in zip(jobs, todo, strict=True)
                for verdict in self._judge(job, group, language)]  # fmt: skip

    def _run(self, group: Sequence[Attack], language: str) -> Job:
        job = self._bench.register(**self._fields(group, language))
        self._bench.wait_for_pool()  # more than are run at once: each job finds one, and a second attempt as well
        self._bench.take(job)
        return job

    def _judge(self, job: Job, group: Sequence[Attack], language: str) -> list[Verdict]:
        result = self._bench.store.result(job.id)
        assert result is not None
        ran = Ran(job, result, list(self._bench.store.events(job.id)))
        general = []
        if any(canary.shown_in(self._sinks(ran)) for canary in self.canaries):
            self.canary_reads += 1
            general.append("the canary was read")
        if str(self._bench.runner._host.settings.base_path) in _public(ran):
            general.append("a path of the host is shown")
        return [_judged(attack, language, ran, general) for attack in group]

    def _fields(self, group: Sequence[Attack], language: str) -> dict[str, Any]:
        steps = tuple(self._aimed(step) for attack in group for step in attack.steps)
        fields: dict[str, Any] = {"timeout": 60}
        for attack in group:
            fields |= attack.job
        return {**fields, "script": {"type": language, "content": written_in(language, steps)}, "input_data": {"x": 1}}

    def _aimed(self, step: Step) -> Step:
        if isinstance(step, Link) and step.target == b"CANARY":
            return Link(os.fsencode(self.canaries[0].path), step.path)
        return step

    def _sinks(self, ran: Ran) -> str:
        """All that anybody is shown of a job: result with its files, events, Redis."""
        files = [base64.b64decode(file.content or "") for file in ran.result.output.files.values()]
        redis = self._bench.store.redis
        keys = redis.keys(f"cronium:job:{{{ran.job.id}}}*")
        dumps = [str(redis.hgetall(key)) for key in keys if redis.type(key) in (b"hash", "hash")]
        parts = [ran.result.model_dump_json(), json.dumps(ran.events), *dumps]
        return "\n".join([*parts, *(file.decode(errors="replace") for file in files)])


def _public(ran: Ran) -> str:
    """What is told of a job, without what its script has printed."""
    told = [event for event in ran.events if event["type"] != "log"]
    return json.dumps(told) + ran.result.model_dump_json(exclude={"output": {"files"}})


def _judged(attack: Attack, language: str, ran: Ran, general: Sequence[str]) -> Verdict:
    result, error = ran.result, ran.result.error
    messages = "" if error is None else "\n".join([error.message, *error.details.get("also", ())])
    notes, text = "\n".join(result.output.notes), ran.text("stdout")
    wrong = list(general)
    outcome: Outcome | None = None
    if error is None:
        outcome = "contained"
    elif error.type in {"script", "output", "timeout", "resource_limit"} and not error.retryable:
        outcome = "user fault"
    if attack.error not in messages:
        wrong.append(f"error {attack.error!r} not in {messages[:300]!r}")
    if attack.note not in notes:
        wrong.append(f"note {attack.note!r} not in {notes[:300]!r}")
    wrong += [f"{say!r} not in the log {text[:200]!r}" for say in attack.says if say not in text]
    wrong += [f"{name!r} not collected" for name in attack.kept if name not in result.output.files]
    wrong += [f"{name!r} collected" for name in attack.dropped if name in result.output.files]
    for name, value in attack.log.items():
        found = getattr(result.log, name.removesuffix("_at_least"))
        if found < value if name.endswith("_at_least") else found != value:
            wrong.append(f"log.{name} is {found}, not {value}")
    wrong += [f"{say!r} in the log {text[:200]!r}" for say in attack.never_says if say in text]
    if result.timings.collect_s > _COLLECT_S:
        wrong.append(f"collecting took {result.timings.collect_s:.1f} s")
    statuses = [status for status in ran.statuses if status in {"completed", "failed", "timeout", "cancelled"}]
    if statuses != [result.status]:
        wrong.append(f"terminal statuses: {statuses}")
    return Verdict(attack.id, attack.title, attack.category, language, attack.expected, outcome, "; ".join(wrong))


def reset_peak() -> None:
    """Let the kernel forget this process's peak of memory."""
    gc.collect()
    Path("/proc/self/clear_refs").write_text(_CLEAR_REFS_PEAK)


def peak_bytes() -> int:
    """This process's peak of resident memory since the last reset."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024 if found else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
