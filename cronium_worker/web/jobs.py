"""The API's calls for jobs."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict
from typing import Annotated, Any
from urllib.parse import quote

from fastapi import APIRouter, Depends, Header, HTTPException, Query, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import StreamingResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel

from cronium_worker.client import rerun, submit
from cronium_worker.errors import JobNotFound
from cronium_worker.fleet.store import SUMMARY
from cronium_worker.models import Job, JobResult
from cronium_worker.models.job import ScriptType
from cronium_worker.models.result import Status, Stream
from cronium_worker.tasks import store
from cronium_worker.web import live
from cronium_worker.web.problems import NOT_FOUND, REFUSED
from cronium_worker.web.results import LargeResponse, Results
from cronium_worker.workflows import StepView, steps_around

_STREAM_ID = r"^\d{1,20}-\d{1,20}$"
_MOST = 10_000
_PAGE = 1000


class JobSummary(BaseModel):
    """A job's record. Times are ISO 8601, UTC; null: not yet. One that was no job at all has neither type nor queue.
    `type`: newer versions may add types. `note`: why no worker can take a pending job."""

    id: str
    status: Status
    type: ScriptType | str | None = None
    queue: str | None = None
    note: str | None = None
    attempt: int
    host: str | None = None
    created_at: str
    started_at: str | None = None
    finished_at: str | None = None


class JobView(JobSummary):
    """The same with the job as it was given, without its secrets, the steps of its workflow, if it is in one, and the
    result: null while the job is not finished; the files' contents are at their `url`."""

    job: dict[str, Any]
    workflow: list[StepView]
    result: JobResult | None = None


jobs = APIRouter(prefix="/jobs", tags=["jobs"])


@jobs.post("", status_code=201, responses=REFUSED)
def submit_job(response: Response, job: Job) -> JobSummary:
    """Enqueue a job; the same job under the same id is enqueued once."""
    return _created(response, submit(job).id)


@jobs.post("/{job_id}/rerun", status_code=201, responses={**NOT_FOUND, **REFUSED})
def rerun_job(response: Response, job_id: str) -> JobSummary:
    """Enqueue a job that has ended once more, under a new id. One with secrets is refused: they went with its end."""
    return _created(response, rerun(job_id).id)


def _created(response: Response, job_id: str) -> JobSummary:
    response.headers["Location"] = f"/jobs/{job_id}"
    return _summary(job_id)


def _summary(job_id: str) -> JobSummary:
    return JobSummary.model_validate(store().fields(job_id, *SUMMARY))


@jobs.get("")
def list_jobs(
    request: Request,
    response: Response,
    status: Annotated[list[Status] | None, Query(description="only these; may be given more than once")] = None,
    type: Annotated[ScriptType | None, Query()] = None,  # noqa: A002 - the field's name
    host: Annotated[str | None, Query()] = None,
    queue: Annotated[str | None, Query()] = None,
    limit: Annotated[int, Query(ge=1, le=_MOST)] = 100,
    before: Annotated[str | None, Query(description="a job's id: the older ones")] = None,
) -> list[JobSummary]:
    """The newest jobs, newest first. At most 10,000 are looked at; the header `Link` has the rest's address."""
    wanted = {"type": type, "host": host, "queue": queue}
    found: list[JobSummary] = []
    looked_at, last = 0, before
    while len(found) < limit and looked_at < _MOST:
        rows = store().recent(_PAGE if any(wanted.values()) or status else limit - len(found), before=last)
        if not rows:
            return found
        for row in rows:
            looked_at, last = looked_at + 1, row["id"]
            asked_for = all(row.get(name) == value for name, value in wanted.items() if value)
            if asked_for and (not status or row["status"] in status):
                found.append(JobSummary.model_validate(row))
                if len(found) == limit:
                    break
    url = request.url.include_query_params(before=last)
    response.headers["Link"] = f'<{url.path}?{url.query}>; rel="next"'
    return found


@jobs.get("/{job_id}", responses=NOT_FOUND, response_model=JobView)
async def get_job(request: Request, job_id: str) -> Response:
    about = await run_in_threadpool(_about, job_id)
    results: Results = request.app.state.results
    return LargeResponse(lambda: results.view(job_id, about), media_type="application/json")


def _about(job_id: str) -> dict[str, Any]:
    steps = [asdict(step) for step in steps_around(job_id)]
    return {**_summary(job_id).model_dump(mode="json"), "workflow": steps}


def _known(job_id: str) -> str:
    store().fields(job_id)
    return job_id


_Known = Annotated[str, Depends(_known)]


@jobs.get("/{job_id}/events", response_class=EventSourceResponse, responses=NOT_FOUND)
async def follow_job(
    request: Request,
    job_id: _Known,
    after: Annotated[str, Query(pattern=_STREAM_ID, description="the id of an event: those that follow it")] = "0-0",
    last_event_id: Annotated[str | None, Header(pattern=_STREAM_ID, description="the same, from a browser")] = None,
) -> AsyncIterator[ServerSentEvent]:
    """Every event of the job, once and in order, to the terminal status.

    `event` is the event's type, `data` its JSON, as docs/jobs.md tells.
    """
    with suppress(JobNotFound):  # its record has just expired
        async for entry in live.follow(request.app.state.redis, job_id, after=last_event_id or after):
            yield ServerSentEvent(id=entry.id, event=entry.kind, raw_data=entry.text)


@jobs.get("/{job_id}/log", response_class=StreamingResponse, responses=NOT_FOUND)
def get_log(request: Request, job_id: _Known, stream: Stream | None = None) -> StreamingResponse:
    """What the job has printed up to now, as plain text; of one stream, or of both as they came."""
    text = live.log(request.app.state.redis, job_id, stream)
    return StreamingResponse(text, media_type="text/plain; charset=utf-8")


@jobs.get("/{job_id}/files/{name:path}", response_class=Response, responses=NOT_FOUND)
async def get_file(request: Request, job_id: str, name: str) -> Response:
    """A file that the job left in its output directory."""
    results: Results = request.app.state.results

    @asynccontextmanager
    async def content() -> AsyncIterator[list[bytes]]:
        async with results.file(job_id, name) as found:
            if found is None:
                raise HTTPException(404, f"{name}: the job has left no such file, or its content was over the limits")
            yield found

    disposition = "attachment; filename*=UTF-8''" + quote(name.rpartition("/")[2], safe="")
    return LargeResponse(content, media_type="application/octet-stream", headers={"Content-Disposition": disposition})


@jobs.delete("/{job_id}", status_code=202, responses=NOT_FOUND)
def cancel_job(job_id: str) -> JobSummary:
    """End a job in whatever state it is, with its grace period; a finished one stays as it is."""
    store().cancel(job_id)
    return _summary(job_id)
