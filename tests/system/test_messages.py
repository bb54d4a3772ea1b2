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
from cronium_worker.fleet.store import connect
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
