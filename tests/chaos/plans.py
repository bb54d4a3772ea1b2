"""The jobs of the load: what each does, and what must become of it."""

import re
from dataclasses import dataclass
from random import Random
from typing import Any, Literal

Kind = Literal["ok", "chatty", "fails", "retries", "exhausts", "times-out", "cancelled", "cancel-race"]

# How often each kind is drawn.
_WEIGHTS: dict[Kind, int] = {
    "ok": 10, "chatty": 3, "fails": 2, "retries": 2, "exhausts": 1, "times-out": 2, "cancelled": 2, "cancel-race": 1,
}  # fmt: skip
_FAIL_EXIT, RETRY_EXIT = 9, 7
_RETRY_ATTEMPTS = 3
# The first line of every run: its attempt, its job, its container, and a number that no other run has.
_HEADER = re.compile(r"run (\d+) (\S+) ([0-9a-f]+) ([0-9a-f-]{36})\n")
_SCRIPT = """\
echo "run $CRONIUM_ATTEMPT $CRONIUM_JOB_ID $HOSTNAME $(< /proc/sys/kernel/random/uuid)"
value=$(cronium_input)
for ((n = 1; n <= {lines}; n++)); do
    echo "out $CRONIUM_ATTEMPT $n"
    echo "err $CRONIUM_ATTEMPT $n" >&2
    if ((n % {pause_every} == 0)); then sleep {pause_s}; fi
done
"""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """One job. `pause_s` after every `pause_every` lines; `cancel_after_s` from the moment it was accepted."""

    job_id: str
    kind: Kind
    lines: int
    pause_s: float
    pause_every: int
    value: int
    priority: int
    cancel_after_s: float | None = None

    def job(self, queue: str) -> dict[str, Any]:
        """As `submit` takes it."""
        fields: dict[str, Any] = {
            "id": self.job_id,
            "script": {"type": "bash", "content": self._script()},
            "queue": queue,
            "input_data": self.value,
            "priority": self.priority,
            "network": {"mode": "none"},
            "resources": {"cpu": 0.5, "memory": "64m"},
            "grace_period": 1,
            "timeout": 300,
        }
        if self.kind == "times-out":
            fields["timeout"] = 2.5
        if self.kind in ("retries", "exhausts"):
            fields["retry"] = {"max_attempts": _RETRY_ATTEMPTS, "delay": 0.2, "backoff": 1, "on": ["failed"]}
        return fields

    def _script(self) -> str:
        body = _SCRIPT.format(lines=self.lines, pause_s=self.pause_s, pause_every=self.pause_every)
        end = {
            "fails": f"exit {_FAIL_EXIT}\n",
            "retries": f'[ "$CRONIUM_ATTEMPT" -ge {_RETRY_ATTEMPTS} ] || exit {RETRY_EXIT}\n',
            "exhausts": f"exit {RETRY_EXIT}\n",
            "times-out": "sleep 300\n",
            "cancelled": "sleep 300\n",
        }.get(self.kind, "")
        return body + end + "cronium_output $((value * 2))\n"

    @property
    def exit_code(self) -> int:
        """Of a run that nobody disturbs; for one that does not end by itself it says nothing."""
        return {"fails": _FAIL_EXIT, "exhausts": RETRY_EXIT}.get(self.kind, 0)

    @property
    def script_retries(self) -> int:
        """How many attempts the script itself may cost, at most."""
        return _RETRY_ATTEMPTS - 1 if self.kind in ("retries", "exhausts") else 0

    def wrong(self, status: str, error_type: str | None, exit_code: int | None, data: object) -> str | None:
        """What is wrong with an end that no fault explains. None: it is as planned."""
        done = (status, exit_code, data) == ("completed", 0, self.value * 2)
        failed = (status, error_type, exit_code) == ("failed", "script", self.exit_code)
        as_planned = {
            "fails": failed,
            "exhausts": failed,
            "times-out": (status, error_type) == ("timeout", "timeout"),
            "cancelled": (status, error_type) == ("cancelled", "cancelled"),
            "cancel-race": done or (status, error_type) == ("cancelled", "cancelled"),
        }.get(self.kind, done)
        if as_planned:
            return None
        return f"a job that {self.kind} ended as {status} ({error_type}, exit code {exit_code}, output {data!r})"

    def text(self, stream: str, attempt: int) -> str:
        """What an undisturbed attempt prints, without its first line."""
        word = "out" if stream == "stdout" else "err"
        return "".join(f"{word} {attempt} {n}\n" for n in range(1, self.lines + 1))


def header_of(text: str) -> tuple[str, str] | None:
    """The attempt and the job that the first line of a run names."""
    found = _HEADER.match(text)
    return (found[1], found[2]) if found else None


def after_header(text: str) -> str:
    return text[found.end() :] if (found := _HEADER.match(text)) else text


def draw(number: int, *, seed: int, prefix: str) -> Plan:
    """The job with this number: the same for the same seed."""
    random = Random(seed * 1_000_003 + number)
    kind = random.choices(list(_WEIGHTS), list(_WEIGHTS.values()))[0]
    chatty = kind == "chatty"
    short = kind in ("times-out", "retries", "exhausts")
    return Plan(
        job_id=f"{prefix}-{number}",
        kind=kind,
        lines=random.randint(1500, 4000) if chatty else random.randint(3, 6 if short else 40),
        pause_s=0.3 if chatty else 0.1,
        pause_every=500 if chatty else 1,
        value=random.randint(1, 10**6),
        priority=random.choice((3, 5, 5, 5, 8)),
        cancel_after_s=random.uniform(0, 5) if kind.startswith("cancel") else None,
    )
