"""What a caller asks for: the job. Frozen, validated whole, no I/O."""

import json
import posixpath
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self
from uuid import uuid4

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    PrivateAttr,
    ValidationInfo,
    field_validator,
)
from pydantic.alias_generators import to_camel

from cronium_worker.models.fields import (
    KIB,
    MIB,
    Address,
    Environment,
    ImageReference,
    JobId,
    JsonObject,
    Seconds,
    Size,
    json_bytes,
    limited_json,
)
from cronium_worker.models.queues import QUEUE_PATTERN, check_queue

ScriptType = Literal["bash", "python", "node"]
PullPolicy = Literal["if-not-present", "always", "never"]
RetryCause = Literal["failed", "timeout"]

QueueName = Annotated[str, AfterValidator(check_queue), Field(json_schema_extra={"pattern": QUEUE_PATTERN})]

SCRIPT_MAX_BYTES = MIB
JOBS_NODE, AGENT_NODE = "jobs", "agent"  # a host's two nodes: jobs@<host>, agent@<host>


class Model(BaseModel):
    """Frozen; reads snake_case and camelCase, writes snake_case; refuses unknown keys."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        hide_input_in_errors=True,
    )


def _script_type(value: object) -> object:
    if isinstance(value, str):
        return "node" if value.lower() == "nodejs" else value.lower()
    return value


def _script_content(value: str) -> str:
    if "\0" in value:
        raise ValueError("has a NUL byte")
    size = len(value.encode())
    if size > SCRIPT_MAX_BYTES:
        raise ValueError(f"{size} bytes, at most {SCRIPT_MAX_BYTES} are allowed")
    return value


def _working_directory(value: str) -> str:
    roots = ("/workspace", "/tmp")  # noqa: S108 - paths inside the container
    inside = any(value == root or value.startswith(f"{root}/") for root in roots)
    if not inside or ".." in value.split("/") or not value.isprintable() or len(value) > 1024:
        raise ValueError('must be an absolute path inside /workspace or /tmp, without ".."')
    return posixpath.normpath(value)


def _host_name(value: str) -> str:
    if not value or len(value) > 253 or not all(c.isascii() and (c.isalnum() or c in "-._") for c in value):
        raise ValueError(f"{value[:80]!r} is not a host name")
    return value


class Script(Model):
    """The user's program, delivered byte for byte as a file."""

    type: Annotated[ScriptType, BeforeValidator(_script_type)]
    content: Annotated[str, AfterValidator(_script_content)] = Field(repr=False)
    working_directory: Annotated[str, AfterValidator(_working_directory)] = "/workspace"


class Resources(Model):
    """The limits of the container: cores, bytes, processes, bytes per second. A field that is not given
    takes the fleet's default (settings `DEFAULTS__*`), whichever others are given."""

    cpu: Annotated[float, Field(strict=True, allow_inf_nan=False, ge=0.01, le=1024)] = 0.5
    memory: Annotated[Size, Field(ge=6 * MIB)] = 512 * MIB  # Docker's own minimum
    pids: Annotated[int, Field(strict=True, ge=1, le=2**22)] = 100
    disk_io: Annotated[Size, Field(ge=4 * KIB)] = 10 * MIB
    disk: Annotated[Size, Field(ge=4 * KIB)] = 1024 * MIB


class Network(Model):
    """`isolated` (the fleet's own bridge), `none`, or a Docker network of the fleet's allow-list."""

    mode: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")] = "isolated"
    dns: Annotated[tuple[Address, ...], Field(max_length=8)] = ()
    extra_hosts: Annotated[dict[Annotated[str, AfterValidator(_host_name)], Address], Field(max_length=64)] = Field(
        default_factory=dict
    )


class Retry(Model):
    """When the script is run again after it failed; the n-th retry waits
    `min(delay * backoff ** (n - 1), max_delay)` seconds."""

    max_attempts: Annotated[int, Field(strict=True, ge=1, le=100)] = 1
    delay: Annotated[Seconds, Field(ge=0, le=86400)] = 1
    backoff: Annotated[Seconds, Field(ge=1, le=100)] = 2
    max_delay: Annotated[Seconds, Field(ge=0, le=86400)] = 300
    on: tuple[RetryCause, ...] = ("failed", "timeout")

    def delay_before(self, attempt: int) -> float:
        """Seconds to wait before `attempt` (2 is the first retry)."""
        exponent = min(attempt - 2, 64)  # beyond, the power only overflows
        return float(min(self.delay * self.backoff**exponent, self.max_delay))


class Job(Model):
    """One script to run in a container of its own. Fields, defaults and limits: docs/jobs.md.

    Serialise with `to_json()`: it keeps only what was given, so that the fleet's defaults apply where it runs.
    """

    id: JobId = Field(default_factory=lambda: uuid4().hex)
    script: Script
    environment: Environment = Field(default_factory=dict, repr=False)
    secrets: Environment = Field(default_factory=dict, repr=False)
    input_data: Annotated[JsonValue, limited_json(8 * MIB)] = Field(default=None, repr=False)
    variables: Annotated[JsonObject, limited_json(MIB)] = Field(default_factory=dict, repr=False)
    event: Annotated[JsonObject, limited_json(MIB)] = Field(default_factory=dict, repr=False)
    resources: Resources = Field(default_factory=Resources)
    timeout: Annotated[Seconds, Field(gt=0, le=86400)] = 3600
    grace_period: Annotated[Seconds, Field(ge=0, le=3600)] = 10
    image: ImageReference | None = None
    pull_policy: PullPolicy = "if-not-present"
    network: Network = Field(default_factory=Network)
    retry: Retry = Field(default_factory=Retry)
    priority: Annotated[int, Field(strict=True, ge=0, le=9)] = 5
    queue: QueueName | None = None
    metadata: Annotated[dict[str, str], limited_json(64 * KIB)] = Field(default_factory=dict)

    @field_validator("secrets")
    @classmethod
    def _not_in_environment(cls, secrets: dict[str, str], info: ValidationInfo) -> dict[str, str]:
        both = sorted(secrets.keys() & info.data.get("environment", {}).keys())
        if both:
            raise ValueError(f"{both[0]} is also in environment; give it once")
        return secrets

    # The JSON of `input_data`, which is None then: of a large one that nobody here needs to read.
    _input_json: bytes | bytearray | None = PrivateAttr(default=None)

    def input_json(self) -> bytes | bytearray:
        """What the script finds as its input."""
        return json_bytes(self.input_data) if self._input_json is None else self._input_json

    @classmethod
    def from_record(cls, text: str, secrets: Mapping[str, str]) -> "Job":
        """Of a record's text and the secrets, which that has not. Raises ValueError, ValidationError among them."""
        return cls.model_validate({**json.loads(text), "secrets": secrets})

    def with_input_json(self, text: bytes | bytearray) -> Self:
        """The job with its input as text alone."""
        job = self.model_copy(update={"input_data": None})
        job._input_json = text
        return job

    def to_json(self, *, secrets: bool = True) -> str:
        """The job as JSON, only with the fields that were given; without the secrets on request."""
        given = self.model_dump(mode="json", exclude_unset=True, exclude=None if secrets else {"secrets"})
        return json_bytes({**given, "id": self.id}).decode()

    def __json__(self) -> dict[str, Any]:
        """kombu's hook: a Job may be an argument of any task. Raises ValueError for one with secrets: `execute_job`
        and its signatures alone encrypt them."""
        if self.secrets:
            raise ValueError("secrets: a job with secrets is sent with execute_job, or stands in its signatures")
        return {**self.model_dump(mode="json", exclude_unset=True), "id": self.id}

    @classmethod
    def from_orchestrator(cls, payload: Mapping[str, Any]) -> "Job":
        """The job that an upstream orchestrator's payload describes (camelCase, nested `execution`).

        Raises ValueError (pydantic.ValidationError among them) with the name of the field.
        """
        from cronium_worker.models.orchestrator import job_fields

        return cls.model_validate(job_fields(payload))
