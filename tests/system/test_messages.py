"""What strangers may put into the broker: refused, told once and without its content, and the worker goes on."""

import base64
import json
import pickle
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import psutil
import pytest
from redis import Redis

from cronium_worker.app import app
from cronium_worker.canary import ask_queue
from cronium_worker.envelope import first_argument
from cronium_worker.fleet.connections import connect
from cronium_worker.models import Job, Script
from cronium_worker.tasks import execute_job, store
from tests.conftest import wait_until
from tests.system.local_host import LocalHost

MARK = f"planted{uuid4().hex}"
CANVAS = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
CALL = [["nosuchjob"], {}, CANVAS]
DEEP = b"[" * 100_000 + b"]" * 100_000
PICKLE, YAML = "application/x-python-serialize", "application/x-yaml"
MIB = 1024 * 1024


def envelope(
    body: bytes | list[Any],
    headers: dict[str, Any] | None = None,
    *,
    kind: str = "application/json",
    exchange: str = "",
) -> bytes:
    task_id = uuid4().hex
    about = {"lang": "py", "task": "cronium.execute_job", "id": task_id, "root_id": task_id}
    text = body if isinstance(body, bytes) else json.dumps(body).encode()
    properties = {
        "correlation_id": task_id,
        "delivery_mode": 2,
        "delivery_info": {"exchange": exchange, "routing_key": "q"},
        "delivery_tag": uuid4().hex,
        "body_encoding": "base64",
    }
    return json.dumps(
        {
            "body": base64.b64encode(text).decode(),
            "content-encoding": "utf-8",
            "content-type": kind,
            "headers": about | (headers or {}),
            "properties": properties,
        }
    ).encode()


# What is in the queue, and what the log says of it.
REFUSED = {
    "no JSON": (MARK.encode(), "not readable as JSON (JSONDecodeError)"),
    "deep": (DEEP, "not readable as JSON (RecursionError)"),
    "another's": (json.dumps({"name": MARK}).encode(), "not a message of Celery"),
    "compressed": (envelope(CALL, {"compression": "application/x-gzip"}), "compressed"),
    "50 MB": (envelope(b"[[" + b"5," * 18_000_000 + b"5],{},{}]"), "longer than 16777216 bytes"),
    "pickle": (envelope(pickle.dumps([[MARK], {}, {}]), kind=PICKLE), f"content type '{PICKLE}' (ContentDisallowed)"),
    "yaml": (envelope(f"- [{MARK}]".encode(), kind=YAML), f"content type '{YAML}' (ContentDisallowed)"),
    "deep body": (envelope(DEEP), "content type 'application/json' (DecodeError)"),
    "no call": (envelope([[MARK]]), "not a task of Celery"),
    "no id": (envelope(CALL, {"id": None}), "not a task of Celery"),
    "a forged line": (envelope(CALL, {"shadow": f"x\n{MARK}"}), "not a task of Celery"),
    "a strange ETA": (envelope(CALL, {"eta": MARK}), "not a task of Celery (InvalidTaskError)"),
    "unknown": (envelope([[MARK], {}, {}], {"task": "os.system\n", "argsrepr": MARK}), r"no such task: 'os.system\n'"),
}


@pytest.fixture
def redis(host: LocalHost) -> Iterator[Redis]:
    with connect(host.env["CRONIUM_REDIS_URL"], retries=0) as client:
        yield client


def takes_messages(host: LocalHost) -> bool:
    return ask_queue(host.queue, timeout_s=10) == host.name


@pytest.mark.timeout(120)
def test_what_cannot_be_used_is_dropped_and_the_next_message_taken(host: LocalHost, redis: Redis) -> None:
    # The watchdog counts jobs, and these are none.
    worker = host.start(node="jobs", concurrency=1, CRONIUM_LEASE_TTL="60")
    assert takes_messages(host)
    process = next(p for p in worker.processes() if "--concurrency" in p.cmdline())
    before = process.memory_info().rss
    for name, (message, said) in REFUSED.items():
        told = worker.log.read_text().count("message refused: ")
        redis.lpush(host.queue, message)
        assert takes_messages(host), name
        lines = [line for line in worker.log.read_text().splitlines() if "message refused: " in line]
        assert len(lines) == told + 1, name
        assert lines[-1].endswith(f"message refused: {said}"), name
    assert MARK not in worker.log.read_text()
    assert "Traceback" not in worker.log.read_text()
    peak = int(next(line for line in status(process) if line.startswith("VmHWM")).split()[1]) * 1024
    assert peak - before < 200 * MIB  # of the 50 MB: read, and read no further
    assert redis.hlen("unacked") == redis.llen(host.queue) == 0
    assert worker.stop() == 0


def status(process: psutil.Process) -> list[str]:
    with open(f"/proc/{process.pid}/status") as lines:  # noqa: PTH123
        return lines.readlines()


@pytest.mark.timeout(120)
def test_who_calls_with_wrong_arguments_hears_of_it(host: LocalHost, redis: Redis) -> None:
    host.start(node="jobs", concurrency=1)
    for arguments, keywords in ([], {}), ([1, 2], {}), ([], {"x": 1}), ([[MARK]], {}):
        sent = app.send_task("cronium.execute_job", arguments, keywords, queue=host.queue)
        assert sent.get(timeout=10, propagate=False) is not None
        assert sent.state == "FAILURE"
    unknown = app.send_task("no.such.task", [MARK], queue=host.queue)
    wait_until(lambda: unknown.state == "FAILURE", what="the unknown task's result")
    assert takes_messages(host)


@pytest.mark.timeout(120)
def test_control_commands_and_events_that_are_none(host: LocalHost, redis: Redis) -> None:
    worker = host.start(node="jobs", concurrency=1)
    number = redis.connection_pool.connection_kwargs["db"]
    ping = {"method": "ping", "arguments": {}, "destination": None}
    messages = {
        "no JSON": b"nothing",
        "deep": DEEP,
        "pickle": envelope(pickle.dumps(ping), kind=PICKLE, exchange="celery.pidbox"),
        "deep body": envelope(DEEP, exchange="celery.pidbox"),
        "a number": envelope(b"5", exchange="celery.pidbox"),
        "unknown": envelope(json.dumps({**ping, "method": "x"}).encode(), exchange="celery.pidbox"),
        "wrong": envelope(json.dumps({**ping, "destination": 5}).encode(), exchange="celery.pidbox"),
    }
    node = f"jobs@{host.name}"
    for name, message in messages.items():
        wait_until(lambda m=message: redis.publish(f"/{number}.celery.pidbox", m), what="a node that listens")
        for event in "worker.online", "worker.heartbeat", "task.multi":
            redis.publish(f"/{number}.celeryev/{event}", message)
        wait_until(lambda: app.control.ping(destination=[node], timeout=1), what=f"an answer after: {name}")
    assert takes_messages(host)
    assert worker.process.poll() is None
    assert worker.stop() == 0


# ---- what a message names must not be a key of others


def far_away(**properties: Any) -> bytes:
    """A job for next year, which a worker keeps unacknowledged until it ends."""
    message = json.loads(envelope(CALL, {"eta": "2099-01-01T00:00:00+00:00"}))
    message["properties"] |= properties
    return json.dumps(message).encode()


HOSTILE = {
    "a key as its queue": far_away(delivery_info={"exchange": "", "routing_key": "unacked_mutex"}),
    "control commands": far_away(delivery_info={"exchange": "celery.pidbox", "routing_key": "unacked"}),
    "another's tag": far_away(delivery_tag="tag", priority=10**400),
    "the same tag": far_away(delivery_tag="tag", priority="unacked"),
}
LINKS: dict[str, dict[str, Any]] = {
    "queue": {"queue": "unacked", "priority": 0},
    "exchange": {"exchange": "celery.pidbox", "routing_key": "x"},
    "group": {"group_id": "a.j"},
    "connection": {"connection": "redis://127.0.0.1:1"},
}


@pytest.mark.attack
@pytest.mark.timeout(180)
def test_a_message_that_names_keys_of_the_broker(host: LocalHost, redis: Redis) -> None:
    """Given messages that name kombu's keys as their queue, in links, and for a reply; then no such key is written to,
    a neighbour's job ends as ever, and what was not run goes back to its own queue."""
    worker = host.start(node="jobs", concurrency=2, CRONIUM_LEASE_TTL="60")
    redis.rpush(host.queue, *HOSTILE.values())
    for name, options in LINKS.items():
        canvas = CANVAS | {"callbacks": [{"task": "cronium.canary", "options": options}]}
        redis.lpush(host.queue, envelope([["nosuchjob"], {}, canvas]))
        assert takes_messages(host), name
    assert worker.log.read_text().count("message refused: a link has the option ") == len(LINKS)

    number = redis.connection_pool.connection_kwargs["db"]
    command: dict[str, Any] = {"method": "ping", "arguments": {}, "destination": None, "ticket": uuid4().hex}
    for routing_key in ("unacked", "unacked_index", "celery-task-meta-planted", "cronium:planted"):
        reply_to = {"exchange": "", "routing_key": routing_key}
        text = json.dumps(command | {"reply_to": reply_to}).encode()
        redis.publish(f"/{number}.celery.pidbox", envelope(text, exchange="celery.pidbox"))
    wait_until(lambda: app.control.ping(destination=[f"jobs@{host.name}"], timeout=1), what="an answer after that")
    neighbour = host.submit("true")
    wait_until(lambda: host.status(neighbour) == "completed", what="a neighbour's job")
    wait_until(lambda: redis.hlen("unacked") == len(HOSTILE), what="each is kept under a tag of its own")
    assert worker.stop() == 0

    restored = [redis.lpop(key) for key in redis.scan_iter(f"{host.queue}*") for _ in range(redis.llen(key))]
    assert len(restored) == len(HOSTILE)
    types = {"unacked": "hash", "unacked_index": "zset", "unacked_mutex": "string"}
    assert {key: redis.type(key) for key in types}.items() <= {(k, t) for k, v in types.items() for t in (v, "none")}
    assert not redis.exists("celery-task-meta-planted", "cronium:planted", "unacked:0")
    assert not list(redis.scan_iter("unacked*:*"))
    redis.delete(host.queue)


@pytest.mark.attack
@pytest.mark.parametrize(
    ("queue", "message"),
    [
        ("unacked", {}),
        ("_kombu.binding.celery", {}),
        ("reports", {"link": [{"task": "x", "options": {"queue": "unacked"}}]}),
        ("reports", {"chord": {"task": "x", "options": {"exchange": "celery.pidbox"}}}),
    ],
)
def test_a_record_of_an_older_version_is_not_sent_to_a_key(redis: Redis, queue: str, message: dict[str, Any]) -> None:
    """It ends as failed; a message to a queue of jobs brings its end to whoever waits for it."""
    job = Job(script=Script(type="bash", content="true"))
    store().register(job, task_id=job.id, queue=queue, message=message)
    before = {key: redis.type(key) for key in ("unacked", "unacked:4", "_kombu.binding.celery", "reports", "reports:4")}
    execute_job.send_again(job.id)
    result = store().result(job.id)
    assert result is not None
    assert result.error is not None
    assert (result.status, result.error.type) == ("failed", "validation")
    assert {key: redis.type(key) for key in before} == before
    sent = redis.lrange("cronium.jobs:4", 0, -1)
    assert [first_argument(each) for each in sent].count(job.id) == 1
    redis.lrem("cronium.jobs:4", 0, next(each for each in sent if first_argument(each) == job.id))
