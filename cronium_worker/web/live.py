"""A job's events for those who listen by HTTP: many at once, each from where it left off."""

import json
from collections.abc import AsyncIterator
from typing import Any, NamedTuple, cast

from redis.asyncio import Redis

from cronium_worker.errors import JobNotFound
from cronium_worker.fleet.store import STATUS_CHANNEL, job_keys, stream_entries
from cronium_worker.models import TERMINAL
from cronium_worker.models.result import Stream

# An event may have some hundred KiB, and a client that reads slowly keeps those that it has not had.
_READ_COUNT = 16
_BLOCK_MS = 5000


class Entry(NamedTuple):
    """An event as it is stored. `id`: its place in the stream, `<milliseconds>-<number>`."""

    id: str
    kind: str
    text: str


async def follow(redis: "Redis", job_id: str, *, after: str) -> AsyncIterator[Entry]:
    """Every event after that place ("0": from the first), then live, to the terminal status. Raises JobNotFound."""
    record, events, _ = job_keys(job_id)
    last = after
    while True:
        entries = stream_entries(await redis.xread({events: last}, count=_READ_COUNT, block=_BLOCK_MS))
        if not entries and not await redis.exists(record):
            raise JobNotFound(f"no job {job_id}: unknown id, or its record has expired")
        for last, fields in entries:
            event = json.loads(fields["event"])
            yield Entry(last, event["type"], fields["event"])
            if event["type"] == "status" and event["status"] in TERMINAL:
                return


async def log(redis: "Redis", job_id: str, stream: Stream | None) -> AsyncIterator[str]:
    """The text that there is now, in pieces; of both streams if none is named."""
    last = "-"
    events = job_keys(job_id)[1]
    while entries := cast("list[Any]", await redis.xrange(events, min=last, count=_READ_COUNT)):
        for entry_id, fields in entries:
            last = f"({entry_id}"
            event = json.loads(fields["event"])
            if event["type"] == "log" and stream in (None, event["stream"]):
                yield event["data"]


async def statuses(redis: "Redis") -> AsyncIterator[tuple[str, str]]:
    """The status events of all jobs, type and JSON, without the result: lists need no output. The first one, of type
    `listening`, says from when on."""
    async with redis.pubsub(ignore_subscribe_messages=True) as pubsub:
        await pubsub.subscribe(STATUS_CHANNEL)
        yield "listening", "{}"
        async for message in pubsub.listen():
            event = json.loads(message["data"])
            event.pop("result", None)
            yield "status", json.dumps(event)
