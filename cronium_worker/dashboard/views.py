"""The pages and calls that are ours, or that Flower leaves too open."""

import threading
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from flower.api.control import TaskRevoke
from flower.utils.search import QuerySyntaxError
from flower.utils.tasks import get_task_by_id, search_tasks
from flower.views import BaseHandler
from flower.views.error import NotFoundErrorHandler
from flower.views.monitor import Healthcheck, Metrics
from redis.exceptions import RedisError
from tornado import web
from tornado.web import HTTPError, RequestHandler

from cronium_worker.dashboard.readable import JOB_TASK, line, of_record, of_row
from cronium_worker.errors import JobNotFound
from cronium_worker.models import TERMINAL
from cronium_worker.models.job import AGENT_NODE
from cronium_worker.settings import get_settings

# Flower's names where it has them: its script renders these.
_COLUMNS = {
    "uuid": "Job",
    "type": "Type",
    "status": "State",
    "host": "Host",
    "received": "Submitted",
    "started": "Started",
    "runtime": "Took",
}
_MOST_ROWS = 500
# A record may have 32 MiB of files in its result.
_ONE_RECORD = threading.Lock()
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


class TasksPage(BaseHandler):
    """The jobs; every task with `kind=all`, or where a link asks for another task or a host's agent."""

    @web.authenticated
    def get(self) -> None:
        other_task = self.get_argument("name", JOB_TASK) != JOB_TASK
        agent = self.get_argument("worker", "").startswith(f"{AGENT_NODE}@")
        kind = "all" if other_task or agent or self.get_argument("kind", "") == "all" else "jobs"
        self.render("tasks.html", columns=_COLUMNS.items(), kind=kind, time="time-UTC")


class TasksData(BaseHandler):
    """The rows of that page, as DataTables asks for them."""

    @web.authenticated
    def post(self) -> None:
        draw = self.get_argument("draw", type=int, required=True)
        kind = None if self.get_argument("kind", "jobs") == "all" else JOB_TASK
        events = self.application.events
        try:
            page = search_tasks(events, search=self.get_argument("search[value]", "", escape=False), type=kind)
        except QuerySyntaxError as error:
            self.write({"draw": draw, "data": [], "recordsTotal": 0, "recordsFiltered": 0, "searchError": str(error)})
            return
        # Not by the table itself: it drops what was not looked at for longest.
        tasks = events.state.tasks.data
        rows = self._sorted([line(tasks[task_id]) for task_id in page.task_ids])
        start = max(0, self.get_argument("start", 0, type=int))
        length = min(_MOST_ROWS, max(1, self.get_argument("length", 15, type=int)))
        shown = [{**row, "DT_RowClass": f"job-{row['status']}"} for row in rows[start : start + length]]
        self.write({"draw": draw, "data": shown, "recordsTotal": page.total_count, "recordsFiltered": len(rows)})

    get = post

    def _sorted(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        column = self.get_argument(f"columns[{self.get_argument('order[0][column]', '')}][data]", "")
        if column not in _COLUMNS:
            return rows
        descending = self.get_argument("order[0][dir]", "desc") == "desc"
        missing = [row for row in rows if row[column] is None]
        known = [row for row in rows if row[column] is not None]
        known.sort(key=lambda row: (row[column], row["uuid"]), reverse=descending)
        return known + missing


class TaskPage(BaseHandler):
    """One task. A job by its record, which also has what happened before this page was there."""

    @web.authenticated
    async def get(self, task_id: str) -> None:
        task = get_task_by_id(self.application.events, task_id)
        row = line(task) if task is not None else None
        shown = of_row(row) if row else {}
        if row is None or row["is_job"]:
            try:
                job_id = row["job"] if row else task_id
                shown = await _in_thread(self, "job.record", job_id, self._recorded)
            except JobNotFound:
                if row is None:
                    raise HTTPError(404, f"Unknown task '{task_id}'") from None
        status = str(shown["State"])
        can_cancel = "Job" in shown and status not in TERMINAL
        page = get_settings().web.url
        live = f"{page.rstrip('/')}/#/jobs/{shown['Job']}" if page and "Job" in shown else None
        self.render("task.html", task_id=task_id, rows=shown, status=status, can_cancel=can_cancel, live=live)

    def _recorded(self, job_id: str) -> dict[str, object]:
        with _ONE_RECORD:
            return of_record(self.application.store.record(job_id))


class CancelJob(TaskRevoke):
    """Flower's buttons Revoke and Terminate, and its call for both: the job is cancelled."""

    def prepare(self) -> None:
        """Where Flower's refuses calls without a login: this page is on loopback then, and the button works.

        Pages of other sites get nothing of it (`Dashboard.find_handler`).
        """

    def check_xsrf_cookie(self) -> None:
        """Flower's check knows requests with a login alone."""
        if self.application.options.basic_auth:
            super().check_xsrf_cookie()
        else:
            RequestHandler.check_xsrf_cookie(self)

    @web.authenticated
    async def post(self, taskid: str) -> None:
        task = get_task_by_id(self.application.events, taskid)
        row = line(task) if task is not None else None
        if row is not None and not row["is_job"]:
            raise HTTPError(403, f"{row['type']}: only jobs can be cancelled")
        job_id = row["job"] if row else taskid
        try:
            outcome = await _in_thread(self, "job.cancel", job_id, self.application.store.cancel)
        except JobNotFound:
            # A job whose message is still in a queue, sent by a producer that makes no records.
            await _in_thread(self, "task.revoke", taskid, self.capp.control.revoke)
            outcome = "requested"
        said = {"requested": "is being cancelled", "finished": "had ended already"}.get(outcome, "is cancelled")
        self.write({"message": f"{job_id} {said}"})


class GuardedMetrics(Metrics):
    """With a login, where there is one."""

    @web.authenticated
    async def get(self) -> None:
        await super().get()


class GuardedHealthcheck(Healthcheck):
    """With a login, where there is one."""

    @web.authenticated
    async def get(self) -> None:
        await super().get()


async def _in_thread(handler: Any, operation: str, target: str, call: Callable[[str], Any]) -> Any:
    """Flower's way to call what blocks. Its errors but JobNotFound are the page's 503 and 500."""

    def guarded(name: str) -> Any:
        try:
            return call(name)
        except JobNotFound as error:
            return error
        except RedisError as error:
            raise ConnectionError(str(error)) from error

    answer = await handler.application.blocking_runner.run(operation, target, guarded, target)
    if isinstance(answer, JobNotFound):
        raise answer
    return answer


def is_loopback_name(host: str) -> bool:
    """Whether a `Host` header, by which the browser knows this page, is a name of this machine for itself."""
    try:
        return urlsplit(f"//{host}").hostname in _LOOPBACK
    except ValueError:
        return False


# More than a page for looking should do: run whatever it is sent, or write states over a job's own.
_CLOSED = r"/api/task/(?:apply|async-apply|send-task|abort)/.*"

HANDLERS = [
    (r"/tasks", TasksPage),
    (r"/tasks/datatable", TasksData),
    (r"/task/(.+)", TaskPage),
    (r"/api/task/revoke/(.+)", CancelJob),
    (r"/metrics", GuardedMetrics),
    (r"/healthcheck", GuardedHealthcheck),
    (_CLOSED, NotFoundErrorHandler),
]
