"""What a caller gets back: result, error, output, metrics. Frozen, no I/O."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self
from uuid import uuid4
from weakref import WeakValueDictionary

from pydantic import BaseModel, ConfigDict, Field, JsonValue, PrivateAttr

from cronium_worker.models.fields import JsonObject

Stream = Literal["stdout", "stderr"]
Status = Literal["pending", "preparing", "running", "completed", "failed", "timeout", "cancelled"]
FinalStatus = Literal["completed", "failed", "timeout", "cancelled"]
TERMINAL: frozenset[str] = frozenset({"completed", "failed", "timeout", "cancelled"})
ErrorType = Literal[
    "script",
    "timeout",
    "cancelled",
    "resource_limit",
    "validation",
    "image_pull",
    "container_create",
    "container_start",
    "network",
    "daemon",
    "output",
    "lost",
]


class _Frozen(BaseModel):
    # Results are read by newer and older programs alike: unknown fields are dropped, not refused.
    model_config = ConfigDict(frozen=True, extra="ignore")


class ErrorInfo(_Frozen):
    """Why a job did not complete. `retryable`: the same job may succeed when it is run again."""

    type: ErrorType | str  # readers show a newer version's type as it is
    message: str
    retryable: bool = False
    details: dict[str, Any] = Field(default_factory=dict)


class OutputFile(_Frozen):
    """A file the script left in its output directory: size in bytes, SHA-256 in hex, content in base64
    (None when it is over the limits of the result)."""

    size: int
    sha256: str
    content: str | None = Field(default=None, repr=False)
    url: str | None = None


class Output(_Frozen):
    """`data`: output.json; `variables`: after the run; `condition`: None when it was not set; `files` by name;
    `notes`: what was left out of `files`, or left without content, and why."""

    data: JsonValue = None
    variables: JsonObject = Field(default_factory=dict)
    condition: bool | None = None
    files: dict[str, OutputFile] = Field(default_factory=dict)
    notes: tuple[str, ...] = ()


# JSON in pieces: to put a large one together would keep all other threads from running.
Pieces = Sequence[bytes | bytearray]


@dataclass(frozen=True, eq=False)
class _Texts:
    """An output as JSON."""

    whole: Pieces
    without_contents: Pieces


class ReadyOutput(Output):
    """An output that another process has written as JSON already, and that is never read here: of a large one that
    would keep all other threads from running. A mark stands for it in JSON, until `with_ready_outputs`; further notes
    may follow the mark."""

    _texts: _Texts | None = PrivateAttr(default=None)  # of copies, too

    @classmethod
    def of(cls, whole: Pieces, without_contents: Pieces, *, condition: bool | None) -> Self:
        mark = f"{_MARK}{uuid4().hex}"
        output = cls(condition=condition, notes=(mark,))
        output._texts = _READY[mark] = _Texts(whole, without_contents)
        return output


_MARK = "cronium-ready-output-"
_READY: WeakValueDictionary[str, _Texts] = WeakValueDictionary()
_MARKED = re.compile(
    rb'\{"data": ?null, ?"variables": ?\{\}, ?"condition": ?\w+, ?"files": ?\{\}, ?'
    rb'"notes": ?\["(%b[0-9a-f]{32})"((?:, ?"(?:[^"\\]|\\.)*+")*+)\]\}' % _MARK.encode()
)
_NO_NOTES = b'"notes":[]}'


def with_ready_outputs(data: bytes, *, contents: bool = True) -> Pieces:
    """JSON with the ready outputs in the places of their marks."""
    pieces: list[bytes | bytearray] = []
    at = 0
    for match in _MARKED.finditer(data) if _MARK.encode() in data else ():
        if (texts := _READY.get(match[1].decode())) is not None:
            *first, end = _with_whole_end(texts.whole if contents else texts.without_contents)
            notes = match[2].lstrip(b", ") if end.endswith(_NO_NOTES) else match[2]
            pieces += (data[at : match.start()], *first, end[:-2], notes, b"]}")
            at = match.end()
    return [*pieces, data[at:]]


def _with_whole_end(pieces: Pieces) -> Pieces:
    """None shorter than what is looked for at the end."""
    *first, end = pieces
    return [*first[:-1], first[-1] + end] if first and len(end) < len(_NO_NOTES) else pieces


class Metrics(_Frozen):
    """What the container used. None where the host could not measure it."""

    cpu_seconds: float | None = None
    cpu_percent_peak: float | None = None
    memory_peak_bytes: int | None = None
    pids_peak: int | None = None
    network_rx_bytes: int | None = None
    network_tx_bytes: int | None = None
    disk_read_bytes: int | None = None
    disk_write_bytes: int | None = None


class LogSummary(_Frozen):
    """What the script printed: bytes and lines over both streams. `truncated`: over the cap, the rest was
    dropped. `gap`: a part of it was lost to a fault. `earlier_cut`: logs of attempts before the last one were cut to
    make room for it."""

    bytes: int = 0
    lines: int = 0
    truncated: bool = False
    gap: bool = False
    earlier_cut: bool = False


class Timings(_Frozen):
    """Seconds by phase, from a monotonic clock: waiting in the queue and for room on the host, image and container, the
    script's run, outputs."""

    queue_s: float = Field(default=0.0, ge=0)
    setup_s: float = Field(default=0.0, ge=0)
    run_s: float = Field(default=0.0, ge=0)
    collect_s: float = Field(default=0.0, ge=0)


class JobResult(_Frozen):
    """The end of a job. Times are ISO 8601 in UTC."""

    job_id: str
    status: FinalStatus
    exit_code: int | None = None
    error: ErrorInfo | None = None
    output: Output = Field(default_factory=Output)
    metrics: Metrics = Field(default_factory=Metrics)
    log: LogSummary = Field(default_factory=LogSummary)
    attempt: int = 1
    host: str | None = None
    image: str | None = None
    created_at: str | None = None
    started_at: str | None = None
    finished_at: str | None = None
    timings: Timings = Field(default_factory=Timings)

    def __json__(self) -> dict[str, Any]:
        """kombu's hook: how a task's return value is stored."""
        return self.model_dump(mode="json")

    def __repr__(self) -> str:
        # Short: Celery puts the repr of a task's return value into its log and its events.
        return f"JobResult({self.job_id!r}, {self.status!r})"

    @property
    def is_ready(self) -> bool:
        """Whether a mark stands for its output: who asks for that must read it from the record."""
        return bool(self.output.notes) and self.output.notes[0] in _READY

    def to_json(self) -> Pieces:
        """As the record has it."""
        return with_ready_outputs(self.model_dump_json().encode())

    def without_contents(self) -> dict[str, Any]:
        """The result as the terminal event carries it: every file without its content."""
        return self.model_dump(mode="json", exclude={"output": {"files": {"__all__": {"content"}}}})
