"""Job records as the API sends them: JSON as it lies in Redis, which is taken apart without being made into objects.

A result may have 32 MiB of files, and what a script has put into its output may be millions of lists. So how much of
all that is in memory at once is bounded, over all requests: who asks meanwhile waits, and is told to try again.
"""

import asyncio
import json
from binascii import a2b_base64
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from types import GenericAlias
from typing import Any, cast
from urllib.parse import quote

import msgspec
from pydantic import BaseModel
from redis.asyncio import Redis
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from cronium_worker.errors import JobNotFound, TooBusy
from cronium_worker.fleet.pieces import PIECE_BYTES
from cronium_worker.fleet.store import record_key, whole_result_key
from cronium_worker.models import JobResult, Output, OutputFile
from cronium_worker.models.fields import MIB

_AT_ONCE_BYTES = 128 * MIB
_PATIENCE_S = 20.0
# What redis-py has of a value at once while it reads it: its buffer, and the value.
_COPIES = 2
_PIECE_BYTES = 256 * 1024

_NULL = msgspec.Raw(b"null")


def _raw(model: type[BaseModel], **other: Any) -> Any:
    """A model of ours as its JSON lies there; what is `other` is read."""
    fields = [(name, msgspec.Raw, _NULL) for name in model.model_fields if name not in other]
    return msgspec.defstruct(model.__name__, [*other.items(), *fields])


_Output = _raw(Output, files=GenericAlias(dict, (str, _raw(OutputFile))))
_Result = _raw(JobResult, output=_Output)
_Opened = Callable[[], AbstractAsyncContextManager[list[bytes]]]


class Share:
    """A part of the budget, which may become smaller."""

    def __init__(self, budget: "Budget", count: int) -> None:
        self._budget = budget
        self._count = count

    def shrink(self, count: int) -> None:
        """Give back all but this."""
        self._budget.give(max(0, self._count - count))
        self._count = min(self._count, count)


class Budget:
    """Bytes that requests hold. First come, first served, so that a large one has its turn."""

    def __init__(self, count: int = _AT_ONCE_BYTES, *, patience_s: float = _PATIENCE_S) -> None:
        self._whole = self._free = count
        self._patience_s = patience_s
        self._line = asyncio.Lock()
        self._freed = asyncio.Event()

    @asynccontextmanager
    async def share(self, count: int) -> AsyncIterator[Share]:
        """Wait for so many bytes. Raises TooBusy."""
        count = min(count, self._whole)
        try:
            async with asyncio.timeout(self._patience_s), self._line:
                while self._free < count:
                    self._freed.clear()
                    await self._freed.wait()
                self._free -= count
        except TimeoutError:
            raise TooBusy("too many large results at once: try again") from None
        share = Share(self, count)
        try:
            yield share
        finally:
            share.shrink(0)

    def give(self, count: int) -> None:
        self._free += count
        self._freed.set()


class Results:
    """Reads records for the API. `redis` must not decode what it reads."""

    def __init__(self, redis: "Redis") -> None:
        self._redis = redis
        self._budget = Budget()

    @asynccontextmanager
    async def view(self, job_id: str, about: Mapping[str, Any]) -> AsyncIterator[list[bytes]]:
        """A job as JSON, in pieces: what is known `about` it, the job as it was given, and the result with the files'
        addresses in the place of their contents. Raises JobNotFound and TooBusy."""
        size, whole_key = await self._look(job_id)
        async with self._budget.share(size * _COPIES) as share:
            job, result = await self._read(job_id, whole_key)
            result = _without_contents(job_id, result) if result else b"null"
            share.shrink(len(job) + len(result))
            rest = json.dumps(about).encode()
            yield [rest[:-1], b', "job": ', job, b', "result": ', result, b"}"]

    @asynccontextmanager
    async def file(self, job_id: str, name: str) -> AsyncIterator[list[bytes] | None]:
        """The content of a file that a job left; None: there is none. Raises JobNotFound and TooBusy."""
        size, whole_key = await self._look(job_id)
        async with self._budget.share(size * _COPIES) as share:
            content = _content_of((await self._read(job_id, whole_key))[1], name)
            share.shrink(len(content or b""))
            yield None if content is None else [content]

    async def _look(self, job_id: str) -> tuple[int, str]:
        """Bytes of job and result, and the key of a large result."""
        key = record_key(job_id)
        async with self._redis.pipeline(transaction=False) as pipe:
            pipe.hmget(key, "status", "whole_result")
            pipe.hstrlen(key, "job")
            pipe.hstrlen(key, "result")
            (status, name), *sizes = await pipe.execute()
        if status is None:
            raise JobNotFound(f"no job {job_id}: unknown id, or its record has expired")
        whole_key = whole_result_key(job_id, name.decode()) if name else ""
        count = await cast(Any, self._redis.llen(whole_key)) if whole_key else 0
        return count * PIECE_BYTES + sum(sizes), whole_key

    async def _read(self, job_id: str, whole_key: str) -> tuple[bytes, bytes]:
        job, result = await cast(Any, self._redis.hmget(record_key(job_id), "job", "result"))
        pieces = await cast(Any, self._redis.lrange(whole_key, 0, -1)) if whole_key else ()
        return cast(bytes, job or b""), b"".join(pieces) or cast(bytes, result or b"")


class LargeResponse(Response):
    """Sends what `opened` yields as fast as the client takes it, and closes that then."""

    def __init__(self, opened: _Opened, **options: Any) -> None:
        super().__init__(**options)
        self._opened = opened

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI's. Raises what `opened` does, before anything is sent."""
        async with self._opened() as pieces:
            self.headers["Content-Length"] = str(sum(map(len, pieces)))
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            for piece in pieces:
                for start in range(0, len(piece), _PIECE_BYTES):
                    part = piece[start : start + _PIECE_BYTES]
                    await send({"type": "http.response.body", "body": part, "more_body": True})
            await send({"type": "http.response.body", "body": b""})


def _without_contents(job_id: str, text: bytes) -> bytes:
    result = msgspec.json.decode(text, type=_Result)
    for name, file in result.output.files.items():
        if bytes(memoryview(file.content)[:1]) == b'"':
            file.url = msgspec.Raw(json.dumps(f"/jobs/{job_id}/files/{quote(name)}").encode())
        file.content = _NULL
    return msgspec.json.encode(result)


def _content_of(text: bytes, name: str) -> bytes | None:
    file = msgspec.json.decode(text, type=_Result).output.files.get(name) if text else None
    content = bytes(file.content) if file else b"null"
    return a2b_base64(content[1:-1]) if content != b"null" else None
