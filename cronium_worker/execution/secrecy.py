"""A job's secrets, kept from its log, its outputs and the messages about it: here what is quick, else aside."""

import time
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import replace
from typing import Any

from cronium_worker.errors import OutputError
from cronium_worker.execution.aside import Aside, AsideLost
from cronium_worker.execution.aside_process import read_pickle
from cronium_worker.execution.discretion import without_secrets
from cronium_worker.masking import Masker, StreamMasker, StreamState
from cronium_worker.models import ErrorInfo, Job, JobResult, Output
from cronium_worker.models.fields import KIB
from cronium_worker.models.result import ReadyOutput
from cronium_worker.workspace.collection import Limits, collect
from cronium_worker.workspace.directories import Workspace

# Outputs of at most 256 KiB in all; whatever is noted about others is found out aside.
_QUICK = Limits(
    output_json_bytes=128 * KIB,
    condition_json_bytes=4 * KIB,
    variables_file_bytes=60 * KIB,
    variables_json_bytes=60 * KIB,
    file_inline_bytes=64 * KIB,
    total_inline_bytes=64 * KIB,
    hash_total_bytes=64 * KIB,
    files=100,
    directories=50,
    entries=500,
)
# With secrets, each byte may cost a hundred times as much.
_QUICK_WITH_SECRETS = replace(
    _QUICK,
    output_json_bytes=16 * KIB,
    variables_file_bytes=16 * KIB,
    variables_json_bytes=16 * KIB,
    file_inline_bytes=16 * KIB,
    total_inline_bytes=16 * KIB,
    hash_total_bytes=16 * KIB,
)
_QUICK_JSON_BYTES = 256 * KIB
# Of more than this of secrets, the search takes long to prepare.
_QUICK_SECRETS_BYTES = 2 * KIB
# What a job's log may take of this process's time before it is masked aside.
_QUICK_LOG_S = 0.02
_ANSWER_S = 60.0
_COLLECT_S = 180.0  # listing and reading have their own limit (Limits), masking comes on top


class JobMasker(Masker):
    """The masker of one job. To be closed when the job has ended."""

    def __init__(self, secrets: tuple[str, ...]) -> None:
        super().__init__(secrets)
        self._aside = Aside(self._secrets)
        self._is_quick = sum(map(len, self._secrets)) <= _QUICK_SECRETS_BYTES
        self._log_s = 0.0

    def stream(self, state: StreamState | None = None) -> StreamMasker:
        return _JobStream(self, state or StreamState()) if any(self._secrets) else super().stream(state)

    def message(self, text: str) -> str:
        return super().message(text) if self._is_quick else self._ask("message", text)

    def json(self, value: Any) -> Any:
        return super().json(value) if self._is_quick else self._ask("json", value)

    def collect(self, workspace: Workspace, *, owner_uid: int) -> tuple[Output, list[ErrorInfo]]:
        """What the job has left, without its secrets; and what of it is not as it must be. Raises OSError for a fault
        of the host."""
        if self._is_quick:
            limits = _QUICK_WITH_SECRETS if any(self._secrets) else _QUICK
            found = collect(workspace, limits, owner_uid=owner_uid, masker=self)
            if not (found.errors or found.notes):
                return without_secrets(found, self), []
        try:
            whole, without_contents, rest = self._aside.ask(
                "collect", str(workspace.root), Limits(), owner_uid, timeout_s=_COLLECT_S
            )
        except AsideLost:
            reason = "the outputs could not be read: the process that reads them ended twice, or took too long"
            return Output(), [OutputError(reason).info()]
        condition, errors = read_pickle(rest)
        if sum(map(len, whole)) <= _QUICK_JSON_BYTES:
            return Output.model_validate_json(b"".join(whole)), errors
        return ReadyOutput.of(whole, without_contents, condition=condition), errors

    def close(self) -> None:
        self._aside.close()

    def _ask(self, name: str, value: Any) -> Any:
        try:
            (answer,) = self._aside.ask(name, value, timeout_s=_ANSWER_S)
        except (AsideLost, OSError):
            return getattr(super(), name)(value)
        return read_pickle(answer)

    @property
    def masks_log_aside(self) -> bool:
        return not self._is_quick or self._log_s > _QUICK_LOG_S

    def log_took(self, seconds: float) -> None:
        self._log_s += seconds

    def ask_for_log(self, name: str, *arguments: Any) -> tuple[bytes, StreamState]:
        out, state = self._aside.ask(name, *arguments, timeout_s=_ANSWER_S)
        return b"".join(out), read_pickle(state)


def read_job(text: str, secrets: Mapping[str, str]) -> Job:
    """As `Job.from_record`; a large one aside, and its input stays as it is written."""
    if len(text) > _QUICK_JSON_BYTES:
        with suppress(AsideLost, OSError), closing(Aside(())) as aside:
            job, input_json = aside.ask("read_job", text, timeout_s=_ANSWER_S)
            if job:
                read: Job = read_pickle(job)
                read = read.with_input_json(b"".join(input_json)) if input_json else read
                return read.model_copy(update={"secrets": dict(secrets)})
    return Job.from_record(text, secrets)


def read_result(text: str) -> JobResult:
    """A result from its record; the output of a large one stays as it is written."""
    if len(text) > _QUICK_JSON_BYTES:
        with suppress(AsideLost, OSError), closing(Aside(())) as aside:
            apart, whole, without_contents = aside.ask("read_result", text, timeout_s=_ANSWER_S)
            result: JobResult = read_pickle(apart)
            output = ReadyOutput.of(whole, without_contents, condition=result.output.condition)
            return result.model_copy(update={"output": output})
    return JobResult.model_validate_json(text)


class _JobStream(StreamMasker):
    def __init__(self, masker: JobMasker, state: StreamState) -> None:
        super().__init__(masker, state)
        self._job = masker

    def feed(self, data: bytes) -> bytes:
        return self._aside("feed", data) if data else b""

    def finish(self) -> bytes:
        return self._aside("finish")

    def _aside(self, name: str, *data: bytes) -> bytes:
        if self._job.masks_log_aside:
            # Where that cannot be, it is masked here, however long it takes.
            with suppress(AsideLost, OSError):
                out, self.state = self._job.ask_for_log(name, self.state, *data)
                return out
        started = time.thread_time()
        masked: bytes = getattr(super(), name)(*data)
        self._job.log_took(time.thread_time() - started)
        return masked
