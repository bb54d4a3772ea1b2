"""What happened in a run: written down while it happens, judged when it is over (checker)."""

from dataclasses import dataclass, field
from typing import Any

from tests.chaos.plans import Plan

Event = dict[str, Any]


@dataclass(kw_only=True)
class Fault:
    """One injected fault. Times are seconds since the epoch; all clocks of a run are one machine's.

    `jobs`: those that it may have hit, told when it was injected. `by_hand`: the container of exactly these was
    touched. `back`: when the part that was hit was seen to work again, for what can be watched.
    """

    kind: str
    host: str | None = None
    began: float = 0.0
    healed: float = 0.0
    jobs: list[str] = field(default_factory=list)
    by_hand: bool = False
    back: float | None = None
    note: str = ""


@dataclass(kw_only=True)
class Run:
    """One container that was started, as the engine and its own output show it: no word of the fleet's is in it.

    `text`: its standard output as the engine's log has it; empty when the script did not begin.
    """

    job_id: str
    attempt: int
    host: str
    container: str
    started: float
    ended: float | None = None
    exit_code: int | None = None
    text: str = ""

    @property
    def began(self) -> bool:
        return self.text.startswith("run ")


@dataclass(kw_only=True)
class History:
    """All of a run. `submitted`: True when `submit` returned, False when it raised (nobody knows). `cancels`: when
    a cancel returned. `celery`: the result as `AsyncResult.get` gives it; `rss`: bytes by node, the most seen."""

    seed: int = 0
    lease_ttl_s: float = 5.0
    plans: dict[str, Plan] = field(default_factory=dict)
    submitted: dict[str, bool] = field(default_factory=dict)
    cancels: dict[str, float] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    runs: list[Run] = field(default_factory=list)
    records: dict[str, dict[str, str]] = field(default_factory=dict)
    events: dict[str, list[Event]] = field(default_factory=dict)
    celery: dict[str, Event | None] = field(default_factory=dict)
    rss: dict[str, int] = field(default_factory=dict)
    residue: list[str] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)
