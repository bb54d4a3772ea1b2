"""`cronium flower` as a process, beside a real worker: who gets in, what is shown, and that its button cancels."""

import json
import re
import subprocess
from base64 import b64encode
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import Request, urlopen
from uuid import uuid4

import pytest

from cronium_worker import JobFailed, JobNotFound, cancel, result, submit
from cronium_worker.app import app
from cronium_worker.tasks import store
from tests.conftest import wait_until
from tests.integration.scripts import LANGUAGES, exits_with, says
from tests.own_redis import OwnRedis, own_redis
from tests.system.conftest import CRONIUM, Fleet

__all__ = ["own_redis"]

TIMEOUT_S = 60
LOGIN = {"CRONIUM_FLOWER__USERNAME": "ada", "CRONIUM_FLOWER__PASSWORD": "love:lace-love:lace"}


@dataclass
class Page:
    """A running Flower."""

    process: subprocess.Popen[str]
    url: str
    login: str | None

    def call(self, path: str, data: dict[str, Any] | None = None, **headers: str) -> tuple[int, str]:
        """GET, or POST with data. Returns status and body."""
        if self.login:
            headers.setdefault("Authorization", "Basic " + b64encode(self.login.encode()).decode())
        request = Request(self.url + path, data=None if data is None else urlencode(data).encode(), headers=headers)
        try:
            with urlopen(request, timeout=20) as answer:
                return answer.status, answer.read().decode()
        except HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def rows(self, **query: str) -> dict[str, dict[str, Any]]:
        """The tasks table as the browser asks for it: rows by id."""
        columns = {"order[0][column]": "0", "order[0][dir]": "desc", "columns[0][data]": "received"}
        status, body = self.call("/tasks/datatable", {"draw": 1, "start": 0, "length": 500, **columns, **query})
        assert status == 200
        return {row["uuid"]: row for row in json.loads(body)["data"]}

    def row(self, job_id: str, status: str) -> dict[str, Any]:
        """The job's row, as soon as it has this status."""

        def look() -> Any:
            row = self.rows().get(job_id, {})
            return row if row.get("status") == status else None

        row: dict[str, Any] = wait_until(look, timeout_s=TIMEOUT_S, what=f"{job_id} {status} on the page")
        return row


@pytest.fixture
def start_flower(fleet: Fleet, tmp_path: Path) -> Iterator[Callable[..., Page]]:
    started: list[subprocess.Popen[str]] = []

    def start(*arguments: str, wait: bool = True, **extra: str) -> Page:
        with (tmp_path / "flower.log").open("ab") as log:
            process = subprocess.Popen(
                [CRONIUM, "flower", "--port", "0", *arguments],
                env=fleet.environment | {"FLOWER_UNAUTHENTICATED_API": "1"} | extra,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        started.append(process)
        assert process.stdout is not None
        address = re.match(r"Flower: http://\S+:(\d+)\n", process.stdout.readline())
        assert address, (tmp_path / "flower.log").read_text()
        login = ":".join(LOGIN.values()) if extra else None
        page = Page(process, f"http://127.0.0.1:{address[1]}", login)
        node = f"jobs@{fleet.environment['CRONIUM_HOST_NAME']}"
        if wait:
            wait_until(lambda: node in page.call("/workers?json=1")[1], what="Flower hears the worker")
        return page

    yield start
    for process in started:
        process.terminate()
        assert process.wait(10) == 0
        assert process.stdout is not None
        process.stdout.close()
    assert "cronium_worker/dashboard" not in (tmp_path / "flower.log").read_text()  # no traceback through it


@pytest.fixture
def page(start_flower: Callable[..., Page]) -> Page:
    return start_flower(**LOGIN)


@pytest.fixture
def nobodys_queue() -> Iterator[str]:
    """A queue that no worker serves."""
    queue = f"nobody-{uuid4().hex}"
    yield queue
    redis = store().redis
    for key in redis.scan_iter(f"*{queue}*"):
        redis.delete(key)


def running(fleet: Fleet, **fields: Any) -> Any:
    """A job that runs for a minute if nobody ends it."""
    job = {"script": says("bash", "begun", then_sleep_s=60), "queue": fleet.queue, "grace_period": 1, **fields}
    async_result = submit(job)
    wait_until(lambda: store().record(async_result.id)["status"] == "running", timeout_s=40, what="running")
    return async_result


def assert_cancelled(async_result: Any, leftovers: Callable[[], list[str]]) -> None:
    with pytest.raises(JobFailed) as caught:
        async_result.get(timeout=TIMEOUT_S)
    assert (caught.value.result.status, async_result.state) == ("cancelled", "FAILURE")
    assert result(async_result.id) == caught.value.result
    # The container goes after the result is out.
    wait_until(lambda: not [name for name in leftovers() if async_result.id in name], what="its container gone")


def test_beyond_loopback_there_must_be_a_login(fleet: Fleet) -> None:
    ended = fleet.cronium("flower", "--address", "0.0.0.0", "--port", "0")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert re.fullmatch(r"cronium: .*CRONIUM_FLOWER__USERNAME and CRONIUM_FLOWER__PASSWORD\n", ended.stderr)


def test_nothing_but_style_is_served_without_the_login(start_flower: Callable[..., Page]) -> None:
    page = start_flower("--address", "0.0.0.0", **LOGIN)
    paths = "/", "/tasks", "/tasks/datatable", "/task/x", "/workers?json=1", "/worker/x", "/broker", "/metrics"
    calls = "/healthcheck", "/api/workers", "/api/tasks", "/api/task/info/x", "/api/queues/length"
    answers = {path: page.call(path, Authorization="")[0] for path in (*paths, *calls)}
    assert answers == dict.fromkeys(answers, 401)
    assert page.call("/api/task/revoke/x", {}, Authorization="")[0] == 401

    wrong = "Basic " + b64encode(b"ada:lovelace").decode()
    assert page.call("/tasks", Authorization=wrong)[0] == 401
    for path in ("/", "/tasks", "/workers?json=1", "/broker", "/metrics", "/healthcheck", "/api/tasks"):
        assert page.call(path)[0] == 200, path


def test_a_page_for_looking_runs_nothing(page: Page) -> None:
    for call in ("apply/cronium.execute_job", "async-apply/cronium.execute_job", "send-task/x", "abort/x"):
        assert page.call(f"/api/task/{call}", {})[0] == 404


@pytest.mark.timeout(180)
def test_jobs_are_one_line_and_nothing_of_them_leaks(fleet: Fleet, page: Page) -> None:
    mark = f"planted{uuid4().hex}"
    node = f"jobs@{fleet.environment['CRONIUM_HOST_NAME']}"

    def job(script: dict[str, Any]) -> dict[str, Any]:
        content = f"{script['content']}\n{'//' if script['type'] == 'node' else '#'} {mark}"
        hidden = {"environment": {"E": mark}, "secrets": {"S": mark}, "input_data": mark, "variables": {"v": mark}}
        return {"id": uuid4().hex, "script": {**script, "content": content}, "queue": fleet.queue, **hidden}

    completed = {language: job(says(language, mark)) for language in LANGUAGES}
    failed = {language: job(exits_with(language, 7)) for language in LANGUAGES}
    for each in (*completed.values(), *failed.values()):
        submit(each)
    foreign = job(says("python", mark))
    foreign["secrets"] = store().secrets.seal(foreign["id"], foreign["secrets"])
    app.send_task("cronium.execute_job", args=[foreign], task_id=foreign["id"], queue=fleet.queue)

    for status, jobs in (("completed", {**completed, "foreign": foreign}), ("failed", failed)):
        for each in jobs.values():
            row = page.row(each["id"], status)
            assert (row["job"], row["type"]) == (each["id"], each["script"]["type"])
            assert (row["host"], row["worker"]) == (fleet.environment["CRONIUM_HOST_NAME"], node)
            assert row["DT_RowClass"] == f"job-{status}"  # red, where it has failed
            assert row["received"] <= row["started"]
            assert row["runtime"] > 0
    ids = [each["id"] for each in (*completed.values(), *failed.values(), foreign)]
    pages = ["/tasks", "/workers?json=1", f"/worker/{node}", "/broker", "/api/tasks", "/metrics"]
    pages += [f"{path}/{job_id}" for job_id in ids for path in ("/task", "/api/task/info")]
    bodies = {path: page.call(path) for path in pages}
    assert {status for status, _ in bodies.values()} == {200}
    everything = "".join(body for _, body in bodies.values()) + json.dumps(page.rows(kind="all"))
    assert mark not in everything
    assert "Traceback" not in everything
    assert "script: the script exited with 7" in bodies[f"/task/{failed['node']['id']}"][1]
    assert mark not in fleet.log.read_text()


def test_housekeeping_does_not_drown_the_jobs(page: Page, nobodys_queue: str) -> None:
    turn = app.send_task("cronium.cleanup_orphans", queue=nobodys_queue)
    row: dict[str, Any] = wait_until(lambda: page.rows(kind="all").get(turn.id), what="the turn on the page")
    assert (row["type"], row["is_job"]) == ("cleanup_orphans", False)
    assert turn.id not in page.rows()
    assert page.call(f"/api/task/revoke/{turn.id}", {})[0] == 403
    assert 'id="task-terminate"' not in page.call(f"/task/{turn.id}")[1]


@pytest.mark.timeout(180)
def test_its_button_cancels_a_running_job(fleet: Fleet, page: Page, leftovers: Callable[[], list[str]]) -> None:
    async_result = running(fleet)
    page.row(async_result.id, "running")
    assert 'id="task-terminate"' in page.call(f"/task/{async_result.id}")[1]

    status, body = page.call(f"/api/task/revoke/{async_result.id}", {"terminate": "true"})

    assert (status, json.loads(body)["message"]) == (200, f"{async_result.id} is being cancelled")
    assert_cancelled(async_result, leftovers)
    page.row(async_result.id, "cancelled")
    assert 'id="task-terminate"' not in page.call(f"/task/{async_result.id}")[1]
    assert "had ended already" in page.call(f"/api/task/revoke/{async_result.id}", {})[1]


def test_a_job_has_a_link_to_its_live_page(start_flower: Callable[..., Page], nobodys_queue: str) -> None:
    job_id = submit({"script": says("bash", "x"), "queue": nobodys_queue}).id
    page = start_flower(**LOGIN, CRONIUM_WEB__URL="https://jobs.example/")
    try:
        assert f'href="https://jobs.example/#/jobs/{job_id}"' in page.call(f"/task/{job_id}")[1]
    finally:
        cancel(job_id)


def test_it_ends_a_queued_job_though_no_worker_is_there(page: Page, nobodys_queue: str) -> None:
    async_result = submit({"script": says("bash", "never"), "queue": nobodys_queue})
    page.row(async_result.id, "pending")
    assert page.call(f"/api/task/revoke/{async_result.id}", {})[0] == 200
    assert store().record(async_result.id)["status"] == "cancelled"
    page.row(async_result.id, "cancelled")


def test_without_a_login_other_sites_cannot_press_the_button(
    start_flower: Callable[..., Page], nobodys_queue: str
) -> None:
    """And a job that had ended before this page was there is on it."""
    old = submit({"script": says("bash", "never"), "queue": nobodys_queue})
    cancel(old.id)
    job = submit({"script": says("bash", "never"), "queue": nobodys_queue})
    page = start_flower()
    page.row(old.id, "cancelled")

    path, token = f"/api/task/revoke/{job.id}", "2|00000000|" + "0" * 32 + "|1"
    assert page.call(path, {})[0] == 403
    held = {"Cookie": f"_xsrf={token}", "X-XSRFToken": token}
    assert page.call(path, {}, Host="rebound.example", **held)[0] == 400
    assert store().record(job.id)["status"] == "pending"
    assert page.call(path, {}, **held)[0] == 200
    assert store().record(job.id)["status"] == "cancelled"
    assert page.call("/api/tasks")[0] == 401


@pytest.mark.timeout(180)
def test_celerys_own_terminate_is_a_cancel(fleet: Fleet, leftovers: Callable[[], list[str]]) -> None:
    async_result = running(fleet)
    app.control.revoke(async_result.id)
    answers = app.control.revoke(async_result.id, terminate=True, signal="SIGKILL", reply=True, timeout=2)
    assert all("ok" in answer for each in answers for answer in each.values())
    assert_cancelled(async_result, leftovers)
    assert "Traceback" not in fleet.log.read_text()


def test_a_revoke_leaves_a_running_job_alone(fleet: Fleet) -> None:
    async_result = running(fleet, script=says("bash", "begun", then_sleep_s=2))
    app.control.revoke(async_result.id, reply=True, timeout=1)
    assert async_result.get(timeout=TIMEOUT_S)["status"] == "completed"


@pytest.mark.timeout(180)
@pytest.mark.parametrize("foreign", [False, True], ids=["registered", "foreign"])
def test_a_revoked_job_that_is_queued_ends_as_cancelled(
    fleet: Fleet, leftovers: Callable[[], list[str]], nobodys_queue: str, foreign: bool
) -> None:
    queue, node = nobodys_queue, f"jobs@{fleet.environment['CRONIUM_HOST_NAME']}"
    job = {"id": uuid4().hex, "script": says("bash", "never", then_sleep_s=60), "queue": queue}
    if foreign:
        async_result = app.send_task("cronium.execute_job", args=[job], task_id=job["id"], queue=queue)
    else:
        async_result = submit(job)
    app.control.revoke(async_result.id, reply=True, timeout=1)
    if foreign:
        with pytest.raises(JobNotFound):
            store().record(async_result.id)
    else:
        wait_until(lambda: store().record(async_result.id)["status"] == "cancelled", what="cancelled at once")
    assert async_result.state == "PENDING"  # not REVOKED, which would stand for the result

    app.control.add_consumer(queue, destination=[node], reply=True)
    try:
        assert_cancelled(async_result, leftovers)
    finally:
        app.control.cancel_consumer(queue, destination=[node], reply=True)
    assert async_result.get(propagate=False).result.started_at is None


def test_what_a_foreign_producer_sent_is_seen_by_no_inspection(fleet: Fleet) -> None:
    mark, node = f"planted{uuid4().hex}", f"jobs@{fleet.environment['CRONIUM_HOST_NAME']}"
    job = {"id": uuid4().hex, "script": says("python", mark, then_sleep_s=60), "gracePeriod": 1}
    async_result = app.send_task("cronium.execute_job", args=[job], task_id=job["id"], queue=fleet.queue)
    wait_until(lambda: store().redis.hget(f"cronium:job:{{{async_result.id}}}", "status") == "running", timeout_s=40)
    inspect = app.control.inspect(destination=[node], timeout=5)
    seen = json.dumps([inspect.active(), inspect.query_task(async_result.id)])
    cancel(async_result.id)
    with pytest.raises(JobFailed):
        async_result.get(timeout=TIMEOUT_S)
    assert f"{job['id']} python" in seen
    assert mark not in seen


def test_it_hears_again_after_redis_was_restarted(start_flower: Callable[..., Page], own_redis: OwnRedis) -> None:
    node = f"jobs@{uuid4().hex}"
    page = start_flower(wait=False, CRONIUM_REDIS_URL=own_redis.url, **LOGIN)
    with own_redis.restarting():
        pass

    def heard() -> bool:
        with app.connection(own_redis.url) as connection, app.events.Dispatcher(connection, hostname=node) as events:
            events.send("worker-online")
        return node in page.call("/workers?json=1")[1]

    wait_until(heard, timeout_s=60, what="an event heard after the restart")
