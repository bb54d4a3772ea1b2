"""The HTTP API as callers see it: a real server process, and jobs whose worker is the test."""

import base64
import hashlib
import json
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from cronium_worker.errors import ConfigurationError
from cronium_worker.fleet.connections import connect
from cronium_worker.fleet.events import log_body
from cronium_worker.fleet.hosts import HostRegistry
from cronium_worker.fleet.oversight import Oversight
from cronium_worker.fleet.store import INDEX_KEY, Claim, JobStore, job_keys, record_key
from cronium_worker.models import Job, JobResult, Output, OutputFile
from cronium_worker.settings import Settings, Web
from cronium_worker.web.serve import serve
from tests.own_redis import OwnRedis

TOKEN = "correct-horse-battery"
JOB = {"script": {"type": "bash", "content": "echo hi"}}
QUEUE = "web-tests"


@contextmanager
def served(redis_url: str, **environment: str) -> Iterator[str]:
    """The address of `cronium web`."""
    server = subprocess.Popen(
        [sys.executable, "-m", "cronium_worker", "web", "--port", "0"],
        env={**os.environ, "CRONIUM_REDIS_URL": redis_url, **environment},
        stdout=subprocess.PIPE,
        text=True,
    )
    with server:
        try:
            assert server.stdout is not None
            yield server.stdout.readline().rpartition("API: ")[2].strip()
        finally:
            server.send_signal(signal.SIGTERM)
            assert server.wait(10) == 0


@pytest.fixture(scope="module")
def address(redis_url: str) -> Iterator[str]:
    with served(redis_url) as address:
        yield address


@pytest.fixture(scope="module")
def store(redis_url: str) -> Iterator[JobStore]:
    with connect(redis_url) as redis:
        yield JobStore(redis, result_ttl_s=600)


@pytest.fixture
def submit(address: str, store: JobStore) -> Iterator[Callable[..., requests.Response]]:
    """Nothing is left of what it submits."""
    ids: list[str] = []

    def submit(**fields: Any) -> requests.Response:
        job = {"script": {"type": "bash", "content": "echo hi"}, "queue": QUEUE, **fields}
        answer = requests.post(f"{address}/jobs", json=job, timeout=10)
        ids.append(answer.json().get("id", ""))
        return answer

    yield submit
    for job_id in filter(None, ids):
        store.redis.delete(*job_keys(job_id), f"celery-task-meta-{job_id}")
        store.redis.zrem(INDEX_KEY, job_id)
        store.settle(job_id)
    bindings = (f"_kombu.binding.{QUEUE}", f"_kombu.binding_permanent.{QUEUE}")
    store.redis.delete(QUEUE, *bindings, *(f"{QUEUE}:{priority}" for priority in range(1, 10)))


def get(address: str, path: str, **options: Any) -> requests.Response:
    return requests.get(f"{address}{path}", timeout=10, **options)


def taken(store: JobStore, job_id: str) -> Claim:
    claim = store.claim(job_id, host="h1")
    assert isinstance(claim, Claim)
    return claim


class Listener:
    """Server-sent events of a job, or of all, as a browser's EventSource reads them."""

    def __init__(self, address: str, job_id: str | None = None, *, after: str | None = None) -> None:
        headers = {} if after is None else {"Last-Event-ID": after}
        path = "/events" if job_id is None else f"/jobs/{job_id}/events"
        self.answer = get(address, path, stream=True, headers=headers)
        self._lines = map(bytes.decode, self.answer.iter_lines(chunk_size=1))

    def next(self) -> dict[str, str] | None:
        fields: dict[str, str] = {}
        for line in self._lines:
            if line and not line.startswith(":"):
                name, _, value = line.partition(": ")
                fields[name] = value
            elif fields:
                return fields
        return None

    def rest(self) -> list[dict[str, str]]:
        return list(iter(self.next, None))


# ---- submit


def test_a_job_is_submitted_and_found(address: str, submit: Callable[..., requests.Response], store: JobStore) -> None:
    answer = submit(priority=7)

    job_id = answer.json()["id"]
    assert (answer.status_code, answer.headers["Location"]) == (201, f"/jobs/{job_id}")
    assert json.loads(store.record(job_id)["job"])["priority"] == 7
    found = get(address, f"/jobs/{job_id}").json()
    assert (found["status"], found["queue"], found["type"], found["result"]) == ("pending", QUEUE, "bash", None)


def test_the_same_job_twice_is_one(submit: Callable[..., requests.Response], store: JobStore) -> None:
    job_id = f"t-{uuid4().hex}"
    first, second = submit(id=job_id), submit(id=job_id)
    another = submit(id=job_id, priority=1)

    assert (first.status_code, second.status_code) == (201, 201)
    assert (another.status_code, another.json()) == (
        409,
        {"error": f"id: {job_id} is taken by another job; choose a new id"},
    )


@pytest.mark.parametrize(
    ("job", "error"),
    [
        ({"script": {"type": "perl", "content": "x"}}, "script.type: Input should be 'bash', 'python' or 'node'"),
        ({"script": {"type": "bash"}}, "script.content: Field required"),
        ({"scrpt": 1}, "script: Field required; scrpt: unknown field"),
        ({"script": {"type": "bash", "content": "x"}, "resources": {"cpu": 64}}, "resources.cpu: "),
        ([], "body: Input should be"),
    ],
)
def test_what_is_no_job_is_refused_with_field_and_remedy(address: str, job: Any, error: str) -> None:
    answer = requests.post(f"{address}/jobs", json=job, timeout=10)

    assert answer.status_code == 422
    assert answer.json()["error"].startswith(error)


def test_a_refusal_does_not_repeat_what_was_given(address: str) -> None:
    job = {"script": {"type": "bash", "content": "x"}, "secrets": {"TOKEN": ["hunter2"]}}

    answer = requests.post(f"{address}/jobs", json=job, timeout=10)

    assert answer.status_code == 422
    assert "hunter2" not in answer.text


def test_another_sites_page_cannot_submit(address: str) -> None:
    """What a browser sends across sites without asking is no JSON, and a name of theirs for this address is refused."""
    job = json.dumps({"script": {"type": "bash", "content": "x"}})

    def sent(**headers: str) -> int:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return requests.post(f"{address}/jobs", data=job, headers=named, timeout=10).status_code

    assert sent(Content_Type="text/plain") == 422
    assert sent(Content_Type="application/json", Host="evil.example") == 400


# ---- follow


def test_a_job_is_followed_live_to_its_end(
    address: str, submit: Callable[..., requests.Response], store: JobStore
) -> None:
    job_id = submit().json()["id"]
    listener = Listener(address, job_id)
    assert listener.answer.headers["Content-Type"].startswith("text/event-stream")
    first = listener.next()
    claim = taken(store, job_id)
    second = listener.next()
    store.write(claim, [log_body("stdout", "one\n\ntwo: \u2028\r\n")])
    third = listener.next()
    store.finish(claim, JobResult(job_id=job_id, status="completed", exit_code=0), "completed")

    assert [json.loads(event["data"]).get("status") for event in (first, second)] == ["pending", "preparing"]
    assert third["event"] == "log"
    assert json.loads(third["data"])["data"] == "one\n\ntwo: \u2028\r\n"
    assert [json.loads(event["data"])["status"] for event in listener.rest()] == ["completed"]


def test_who_was_cut_off_goes_on_where_it_was(
    address: str, submit: Callable[..., requests.Response], store: JobStore
) -> None:
    job_id = submit().json()["id"]
    claim = taken(store, job_id)
    store.write(claim, [log_body("stdout", f"{number}\n") for number in range(1000)])
    store.finish(claim, JobResult(job_id=job_id, status="completed", exit_code=0), "completed")
    whole = Listener(address, job_id).rest()

    for at in (0, 1, 500, len(whole) - 2):
        assert Listener(address, job_id, after=whole[at]["id"]).rest() == whole[at + 1 :]
    assert [json.loads(event["data"])["seq"] for event in whole] == list(range(len(whole)))


def test_what_is_unknown_is_not_followed(address: str, submit: Callable[..., requests.Response]) -> None:
    answer = get(address, "/jobs/no-such-job/events")
    assert (answer.status_code, answer.headers["Content-Type"]) == (404, "application/json")
    job_id = submit().json()["id"]
    assert get(address, f"/jobs/{job_id}/events", headers={"Last-Event-ID": "$"}).status_code == 422


# ---- results, files, cancel, list


def test_result_and_files(address: str, submit: Callable[..., requests.Response], store: JobStore) -> None:
    job_id = submit().json()["id"]
    content = bytes(range(256))
    name = "sub/größe 1.bin"
    file = OutputFile(size=256, sha256="0" * 64, content=base64.b64encode(content).decode())
    output = Output(data={"answer": 42}, files={name: file, "huge": OutputFile(size=10**9, sha256="0" * 64)})
    result = JobResult(job_id=job_id, status="completed", exit_code=0, output=output)
    store.finish(taken(store, job_id), result, "completed")

    shown = get(address, f"/jobs/{job_id}").json()["result"]["output"]
    assert shown["data"] == {"answer": 42}
    assert (shown["files"][name]["content"], shown["files"]["huge"]["url"]) == (None, None)
    answer = get(address, shown["files"][name]["url"])
    assert answer.content == content
    assert answer.headers["Content-Disposition"] == "attachment; filename*=UTF-8''gr%C3%B6%C3%9Fe%201.bin"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    for missing in (f"/jobs/{job_id}/files/huge", f"/jobs/{job_id}/files/none", "/nothing"):
        answer = get(address, missing)
        assert (answer.status_code, list(answer.json())) == (404, ["error"])


def test_cancel(address: str, submit: Callable[..., requests.Response]) -> None:
    job_id = submit().json()["id"]

    answer = requests.delete(f"{address}/jobs/{job_id}", timeout=10)

    assert (answer.status_code, answer.json()["status"]) == (202, "cancelled")
    assert requests.delete(f"{address}/jobs/no-such-job", timeout=10).status_code == 404


def test_the_list_is_of_what_is_asked_for(
    address: str, submit: Callable[..., requests.Response], store: JobStore
) -> None:
    waiting, done = submit().json()["id"], submit(script={"type": "python", "content": "x"}).json()["id"]
    store.finish(taken(store, done), JobResult(job_id=done, status="failed", exit_code=1), "failed")

    def ids(query: str) -> list[str]:
        return [row["id"] for row in get(address, f"/jobs?queue={QUEUE}&{query}").json()]

    assert ids("") == [done, waiting]
    assert ids("limit=1") == [done]
    assert ids("status=pending") == [waiting]
    assert ids("status=pending&status=failed") == [done, waiting]
    assert ids("type=python") == ids("host=h1") == [done]
    assert get(address, "/jobs?status=nonsense").status_code == 422


def test_what_was_no_job_is_in_the_list(address: str, store: JobStore) -> None:
    job_id = uuid4().hex
    store.refuse(JobResult(job_id=job_id, status="failed"))
    try:
        row = get(address, "/jobs?limit=1").json()[0]
        assert (row["id"], row["status"], row["type"], row["queue"]) == (job_id, "failed", None, None)
        assert get(address, f"/jobs/{job_id}").json()["result"]["status"] == "failed"
    finally:
        store.redis.delete(*job_keys(job_id))
        store.redis.zrem(INDEX_KEY, job_id)


def test_the_list_goes_on_page_by_page(address: str, submit: Callable[..., requests.Response], store: JobStore) -> None:
    newest_first = [submit().json()["id"] for _ in range(5)][::-1]

    def pages(query: str) -> Iterator[list[str]]:
        path: str | None = f"/jobs?{query}"
        while path:
            answer = get(address, path)
            yield [row["id"] for row in answer.json()]
            link = answer.links.get("next")
            path = link and link["url"]

    # By what all have, and by what one of them alone has.
    assert [ids for ids in pages(f"queue={QUEUE}&limit=2") if ids] == [
        newest_first[:2],
        newest_first[2:4],
        newest_first[4:],
    ]
    store.cancel(newest_first[3])
    assert [ids for ids in pages(f"queue={QUEUE}&status=cancelled&limit=1") if ids] == [newest_first[3:4]]
    assert get(address, "/jobs?before=no-such-job").status_code == 404


def test_a_job_is_run_again(address: str, submit: Callable[..., requests.Response], store: JobStore) -> None:
    fields = {"script": {"type": "bash", "content": "echo again"}, "environment": {"A": "b"}}
    job_id = submit(**fields).json()["id"]
    early = requests.post(f"{address}/jobs/{job_id}/rerun", timeout=10)
    store.cancel(job_id)

    answer = requests.post(f"{address}/jobs/{job_id}/rerun", timeout=10)

    assert (early.status_code, early.json()["error"].split(":")[0]) == (409, f"job {job_id} is pending")
    new = answer.json()["id"]
    try:
        assert (answer.status_code, answer.headers["Location"]) == (201, f"/jobs/{new}")
        job = get(address, f"/jobs/{new}").json()["job"]
        assert job.pop("id") == new != job_id
        assert job == {**fields, "queue": QUEUE}
    finally:
        store.redis.delete(*job_keys(new))
        store.redis.zrem(INDEX_KEY, new)
        store.settle(new)


def test_a_job_with_secrets_is_shown_without_and_not_run_again(
    address: str, submit: Callable[..., requests.Response], store: JobStore
) -> None:
    job_id = submit(secrets={"TOKEN": "hunter2"}).json()["id"]
    store.cancel(job_id)

    answer = requests.post(f"{address}/jobs/{job_id}/rerun", timeout=10)

    assert (answer.status_code, answer.json()["error"].split(":")[0]) == (422, "secrets")
    assert "hunter2" not in get(address, f"/jobs/{job_id}").text
    assert requests.post(f"{address}/jobs/no-such-job/rerun", timeout=10).status_code == 404


def test_the_log_as_text(address: str, submit: Callable[..., requests.Response], store: JobStore) -> None:
    job_id = submit().json()["id"]
    claim = taken(store, job_id)
    for stream, text in (("stdout", "one\n"), ("stderr", "öh\r\n"), ("stdout", "<b>two")):
        store.write(claim, [log_body(stream, text)])

    answer = get(address, f"/jobs/{job_id}/log")
    assert answer.headers["Content-Type"] == "text/plain; charset=utf-8"
    assert answer.content.decode() == "one\nöh\r\n<b>two"
    assert get(address, f"/jobs/{job_id}/log?stream=stderr").content.decode() == "öh\r\n"
    assert get(address, "/jobs/no-such-job/log").status_code == 404


def test_every_change_of_status_is_heard(
    address: str, submit: Callable[..., requests.Response], store: JobStore
) -> None:
    listener = Listener(address)
    assert (listener.next() or {})["event"] == "listening"
    job_id = submit().json()["id"]
    store.finish(taken(store, job_id), JobResult(job_id=job_id, status="completed", exit_code=0), "completed")

    heard: list[str] = []
    while heard[-1:] != ["completed"]:
        event = json.loads((listener.next() or {})["data"])
        assert "result" not in event
        heard += [event["status"]] if event["job_id"] == job_id else []
    listener.answer.close()
    assert heard == ["pending", "preparing", "completed"]


def test_schedules(address: str) -> None:
    name = f"web-{uuid4().hex[:8]}"
    schedule = {"name": name, "every": "1h", "job": {"script": {"type": "bash", "content": "echo hi"}, "queue": QUEUE}}
    url = f"{address}/schedules"
    added = requests.post(url, json=schedule, timeout=10)
    try:
        assert (added.status_code, added.headers["Location"]) == (201, f"/schedules/{name}")
        assert [view["every"] for view in get(address, "/schedules").json() if view["name"] == name] == [3600]
        assert requests.post(url, json=schedule, timeout=10).status_code == 409
        assert requests.put(f"{url}/{name}/pause", timeout=10).json()["paused"] is True
        assert requests.delete(f"{url}/{name}/pause", timeout=10).json()["paused"] is False
    finally:
        assert requests.delete(f"{url}/{name}", timeout=10).status_code == 204
    assert get(address, f"/schedules/{name}").status_code == 404
    refused = requests.post(url, json={**schedule, "every": "soon"}, timeout=10)
    assert (refused.status_code, refused.json()["error"].split(":")[0]) == (422, "every")


def test_a_host_is_drained_and_taken_back(address: str, store: JobStore) -> None:
    registry = HostRegistry(store.redis, host_ttl_s=30)
    name = f"web-{uuid4().hex[:8]}"
    registry.beat(name, "jobs", {})
    url = f"{address}/hosts/{name}/drain"
    try:
        assert requests.put(url, timeout=10).status_code == 204
        assert [host["state"] for host in get(address, "/hosts").json() if host["name"] == name] == ["draining"]
        assert requests.delete(url, timeout=10).status_code == 204
        assert name not in registry.drained()
    finally:
        registry.undrain(name)
        registry.leave(name, "jobs")
    answer = requests.put(f"{address}/hosts/no-such-host/drain", timeout=10)
    assert (answer.status_code, answer.json()["error"].split(":")[0]) == (404, "no host no-such-host")


# ---- who may


def test_the_page_itself_needs_no_token_and_loads_nothing_from_elsewhere(redis_url: str) -> None:
    with served(redis_url, CRONIUM_WEB__TOKEN=TOKEN) as address:
        for path in ("/", "/main.mjs", "/style.css"):
            answer = get(address, path)
            assert answer.status_code == 200
            assert answer.headers["Content-Security-Policy"].startswith("default-src 'self'; ")
        assert get(address, "/main.mjs").headers["Content-Type"].partition(";")[0].endswith("/javascript")
        assert get(address, "/../api.py").status_code == 401


def test_a_browser_logs_in_and_out(redis_url: str) -> None:
    with served(redis_url, CRONIUM_WEB__TOKEN=TOKEN) as address, requests.Session() as browser:
        wrong = browser.post(f"{address}/session", json={"token": TOKEN + "x"}, timeout=10)
        assert (wrong.status_code, len(browser.cookies)) == (401, 0)
        assert browser.get(f"{address}/session", timeout=10).status_code == 401
        assert get(address, "/jobs", cookies={"cronium_session": hashlib.sha256(b"").hexdigest()}).status_code == 401

        answer = browser.post(f"{address}/session", json={"token": TOKEN}, timeout=10)
        assert answer.status_code == 204
        assert TOKEN not in answer.headers["Set-Cookie"]
        assert {"HttpOnly", "SameSite=strict"} <= set(answer.headers["Set-Cookie"].split("; "))
        assert browser.get(f"{address}/session", timeout=10).json() == {"token": True, "flower": None}
        assert browser.get(f"{address}/jobs", timeout=10).status_code == 200

        assert browser.delete(f"{address}/session", timeout=10).status_code == 204
        assert browser.get(f"{address}/jobs", timeout=10).status_code == 401


def test_a_page_of_another_site_changes_nothing(
    address: str, submit: Callable[..., requests.Response], store: JobStore
) -> None:
    job_id = submit().json()["id"]
    own = address.removeprefix("http://")

    def cancelled_by(**headers: str) -> int:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return requests.delete(f"{address}/jobs/{job_id}", headers=named, timeout=10).status_code

    assert cancelled_by(Sec_Fetch_Site="cross-site") == cancelled_by(Sec_Fetch_Site="same-site") == 403
    assert cancelled_by(Origin="http://evil.example") == cancelled_by(Origin="null") == 403
    assert store.record(job_id)["status"] == "pending"
    assert cancelled_by(Origin=f"http://{own}") == cancelled_by(Sec_Fetch_Site="same-origin") == 202


def test_without_the_token_nothing_is_told(redis_url: str) -> None:
    with served(redis_url, CRONIUM_WEB__TOKEN=TOKEN) as address:
        for headers in ({}, {"Authorization": f"Bearer {TOKEN}x"}):
            for path in ("/jobs", "/jobs/x", "/jobs/x/events", "/jobs/x/files/y", "/hosts", "/metrics"):
                answer = get(address, path, headers=headers)
                assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
        assert get(address, "/jobs", headers={"Authorization": f"Bearer {TOKEN}"}).status_code == 200


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "192.0.2.1", ""])
def test_beyond_loopback_it_needs_a_token(address: str) -> None:
    with pytest.raises(ConfigurationError, match=r"CRONIUM_WEB__TOKEN"):
        serve(Web(address=address), report=lambda _: None)


def test_an_address_that_is_taken_is_said(address: str) -> None:
    port = int(address.rpartition(":")[2])
    with pytest.raises(ConfigurationError, match=rf"CRONIUM_WEB__PORT: cannot listen on 127.0.0.1:{port}: Address"):
        serve(Web(port=port), report=lambda _: None)


def test_the_token_is_not_shown() -> None:
    assert "hunter2" not in json.dumps(Settings(web={"token": "hunter2-hunter2-hunter2"}).masked())


def test_the_fleets_hosts(address: str) -> None:
    assert isinstance(get(address, "/hosts").json(), list)


# ---- metrics


def samples(address: str) -> Mapping[tuple[str, str], float]:
    """Of the fleet, by name and the value of a label ("": all of them), added up."""
    answer = get(address, "/metrics")
    assert (answer.status_code, answer.headers["Content-Type"].partition(";")[0]) == (200, "text/plain")
    found: Counter[tuple[str, str]] = Counter()
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            for value in {*sample.labels.values(), ""}:
                found[sample.name, value] += sample.value
    return found


def test_a_queue_that_nobody_serves_is_told_of(tmp_path: Path) -> None:
    with OwnRedis(tmp_path) as own, served(own.url) as address:
        ids = [
            requests.post(f"{address}/jobs", json=dict(JOB, queue="odd", priority=each), timeout=10).json()["id"]
            for each in (0, 9, 9)
        ]
        with connect(own.url) as redis:
            redis.hincrby(record_key(ids[0]), "sent_at", -600_000)
            store = JobStore(redis, result_ttl_s=60)
            Oversight(store).note_queues({"odd"})
            for job_id in ids[:2]:
                store.look_at(job_id, in_s=-120)
            Oversight(store).suspect(ids[0])

        found = samples(address)
        assert found["cronium_fleet_queue_messages", "odd"] == 3
        assert 600 <= found["cronium_fleet_queue_oldest_seconds", "odd"] < 700
        assert found["cronium_fleet_queue_hosts", "odd"] == 0
        jobs = [found[f"cronium_fleet_jobs_{name}", ""] for name in ("unsettled", "unattended", "suspected")]
        assert jobs == [3, 2, 1]
        for figure in ("messages", "oldest_seconds"):
            assert found[f"cronium_fleet_queue_{figure}", "cronium.jobs"] == 0


def test_what_stands_in_a_queue_and_is_no_job_does_no_harm(tmp_path: Path) -> None:
    with OwnRedis(tmp_path) as own, served(own.url) as address:
        with connect(own.url) as redis:
            redis.rpush("cronium.jobs", "{", "[]", "nonsense")

        found = samples(address)
        assert found["cronium_fleet_queue_messages", "cronium.jobs"] == 3
        assert ("cronium_fleet_queue_oldest_seconds", "cronium.jobs") not in found


def test_a_scrape_asks_as_much_of_redis_however_many_jobs_there_are(tmp_path: Path) -> None:
    with OwnRedis(tmp_path) as own, served(own.url) as address, connect(own.url) as redis:

        def commands() -> int:
            """Of one scrape."""
            before = redis.info("commandstats")
            samples(address)
            after = redis.info("commandstats")
            calls = {name: after[name]["calls"] - before.get(name, {"calls": 0})["calls"] for name in after}
            # Connections that have been idle for 30 seconds are pinged.
            return sum(count for name, count in calls.items() if name not in {"cmdstat_info", "cmdstat_ping"})

        store = JobStore(redis, result_ttl_s=60)
        first = samples(address)  # and it connects
        assert first["cronium_fleet_jobs_finished_total", ""] == 0
        assert ("cronium_fleet_jobs_finished_total", "image_pull") in first, "the first one must be an increase"
        few = commands()
        for _ in range(500):
            job = Job.model_validate(JOB)
            store.register(job, task_id=job.id, queue="cronium.jobs")
            store.finish(taken(store, job.id), JobResult(job_id=job.id, status="completed"), "completed")

        assert commands() == few
        assert samples(address)["cronium_fleet_jobs_finished_total", "completed"] == 500


def test_redis_away_is_said(redis_url: str) -> None:
    away = re.sub(r":\d+/", ":1/", redis_url)
    with served(away) as address:
        for path in ("/jobs", "/metrics"):
            answer = get(address, path)
            assert answer.status_code == 503
            assert answer.json()["error"].startswith("Redis: ")
