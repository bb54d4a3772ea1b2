"""A fleet on a Redis with TLS and users: the whole way of a job, and what each user is refused."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from redis.exceptions import AuthenticationError, NoPermissionError, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError

from cronium_worker.errors import ConfigurationError
from cronium_worker.fleet.connections import connect
from cronium_worker.fleet.hosts import HostRegistry
from cronium_worker.fleet.store import JobStore, record_key
from cronium_worker.preflight import check_redis
from cronium_worker.settings import Settings
from tests.conftest import wait_until
from tests.guarded_redis import GuardedRedis, guarded_redis
from tests.own_redis import OwnRedis
from tests.system.conftest import CRONIUM
from tests.system.local_host import LocalHost

__all__ = ["guarded_redis"]

BEAT = [str(Path(CRONIUM).parent / "celery"), "--quiet", "-A", "cronium_worker.app", "beat", "--loglevel", "INFO"]
PRODUCER = """
import json, sys
from celery import group
from cronium_worker import cancel, execute_job, follow, result, submit
job = {"script": {"type": "bash", "content": "echo hi"}}
large = {"script": {"type": "bash", "content": "echo hi; head -c 600000 /dev/zero >output/large"}}
one = submit(large)
seen = [event["type"] for event in follow(one.id)]
content = result(one.id).output.files["large"].content
print(one.get(timeout=40)["status"], seen.count("log"), len(content))
one.forget()
print([each["status"] for each in group(execute_job.s(job) for _ in range(2)).apply_async().get(timeout=40)])
cancel(one.id)
ended = submit({**large, "queue": "cronium.jobs"})
print(ended.id)
from cronium_worker.models import formats
formats.ADDITIONS = (formats.Addition("metadata", 1000, is_optional=True),)
submit({**job, "metadata": {"a": "a field that no host knows"}})
"""


@pytest.fixture
def guarded_host(host: LocalHost, guarded_redis: GuardedRedis) -> LocalHost:
    host.queue = "cronium.jobs"  # the one that the users may use
    host.env["CRONIUM_REDIS_URL"] = guarded_redis.address("worker")
    host.registry._redis.close()
    host.registry = HostRegistry(connect(host.env["CRONIUM_REDIS_URL"]), host_ttl_s=3)
    return host


def as_user(host: LocalHost, user: str, guarded: GuardedRedis, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = host.env | {"CRONIUM_REDIS_URL": guarded.address(user)}
    return subprocess.run([*arguments], env=env, capture_output=True, text=True, timeout=90, check=False)


def denied(guarded: GuardedRedis) -> list[tuple[str, str]]:
    with guarded.client() as redis:
        return [(entry["username"], entry["object"]) for entry in redis.acl_log()]


@pytest.mark.timeout(180)
def test_the_whole_way_of_a_job_with_every_process_over_tls(
    guarded_host: LocalHost, guarded_redis: GuardedRedis
) -> None:
    host = guarded_host
    with guarded_redis.client() as redis:
        redis.acl_log_reset()
    host.start()
    beat = host.process(*BEAT, CRONIUM_SCHEDULE__RECOVERY="1")
    flower = host.process(CRONIUM, "flower", "--port", "0")
    address = wait_until(lambda: re.search(r"http://\S+:\d+", flower.log.read_text()), what="Flower")[0]

    done = as_user(host, "producer", guarded_redis, sys.executable, "-c", PRODUCER)
    first, both, job = done.stdout.splitlines() or [done.stderr] * 3
    assert first == "completed 1 800000", done.stderr
    assert both == "['completed', 'completed']"
    wait_until(lambda: "Sending due task cronium.recover_lost_jobs" in beat.log.read_text(), what="beat sends")
    wait_until(lambda: f"agent@{host.name}" in page(address), timeout_s=40, what="Flower hears the agent")
    said = host.cronium("doctor", "--workers").stdout
    assert f"queue cronium.jobs: taken by {host.name}" in said
    assert f"agent of {host.name}: takes messages" in said

    wait_until(lambda: host.status(job) == "completed", what="the last job's end")
    for command in (["status", job], ["logs", job], ["result", job], ["ps"], ["hosts"]):
        looked = as_user(host, "reader", guarded_redis, CRONIUM, *command)
        assert looked.returncode == 0, looked.stderr
    assert denied(guarded_redis) == []

    with guarded_redis.restarting():  # and what its file has is read again, whoever may log in
        pass
    assert as_user(host, "reader", guarded_redis, CRONIUM, "result", job).returncode == 0
    assert json.loads(as_user(host, "reader", guarded_redis, CRONIUM, "status", job, "--json").stdout)["type"] == "bash"
    assert denied(guarded_redis) == []


def page(address: str) -> str:
    with urlopen(f"{address}/workers?json=1", timeout=10) as answer:
        return str(answer.read().decode())


RECORD = "cronium:job:{abc}"
FOREIGN: dict[str, Callable[[Any], object]] = {
    "KEYS": lambda redis: redis.keys("*"),
    "SCAN": lambda redis: redis.scan(),
    "FLUSHALL": lambda redis: redis.flushall(),
    "CONFIG": lambda redis: redis.config_get("requirepass"),
    "ACL": lambda redis: redis.acl_list(),
    "MONITOR": lambda redis: redis.execute_command("MONITOR"),
    "SHUTDOWN": lambda redis: redis.execute_command("SHUTDOWN", "NOSAVE"),
    "SCRIPT FLUSH": lambda redis: redis.script_flush(),
    "another program's key": lambda redis: redis.get("sessions"),
    "a script on another's": lambda redis: redis.eval("return redis.call('GET', 'sessions')", 0),
    "beat's schedule": lambda redis: redis.hset("cronium:beat:x", "definition", "{}"),
}
ONLY_FOR_WORKERS: dict[str, Callable[[Any], object]] = {
    "INFO": lambda redis: redis.info(),
    "the list of jobs": lambda redis: redis.zrange("cronium:jobs", 0, -1),
    "taking a message": lambda redis: redis.brpop("cronium.jobs", 1),
    "reading a queue": lambda redis: redis.lrange("cronium.jobs", 0, -1),
    "a host's queue": lambda redis: redis.lpush("cronium.host.x", "{}"),
    "messages in work": lambda redis: redis.hgetall("unacked"),
    "a control command": lambda redis: redis.publish("/0.celery.pidbox", "{}"),
    "a result": lambda redis: redis.set("celery-task-meta-x", "{}"),
    "a drain": lambda redis: redis.sadd("cronium:{hosts}:drained", "x"),
}
ONLY_FOR_PRODUCERS: dict[str, Callable[[Any], object]] = {
    "secrets": lambda redis: redis.get(f"{RECORD}:secrets"),
    "a record": lambda redis: redis.hset(RECORD, "status", "completed"),
    "an event": lambda redis: redis.xadd(f"{RECORD}:events", {"event": "{}"}),
    "a published event": lambda redis: redis.publish("cronium:status", "{}"),
    "a cancel": lambda redis: redis.publish("cronium:cancel", "abc"),
    "a message": lambda redis: redis.lpush("cronium.jobs", "{}"),
    "a script": lambda redis: redis.eval("return 1", 0),
}
REFUSED = {
    "worker": {name: do for name, do in FOREIGN.items() if name not in ("SCAN", "beat's schedule")},
    "producer": FOREIGN | ONLY_FOR_WORKERS,
    "reader": {**FOREIGN, **ONLY_FOR_WORKERS, **ONLY_FOR_PRODUCERS},
}
del REFUSED["reader"]["the list of jobs"]


@pytest.mark.parametrize(("user", "name"), [(user, name) for user in REFUSED for name in REFUSED[user]])
def test_a_user_is_refused(guarded_redis: GuardedRedis, user: str, name: str) -> None:
    with guarded_redis.client() as redis:
        redis.set("sessions", "secret")
    with guarded_redis.of(user) as redis, pytest.raises(RedisError) as caught:
        REFUSED[user][name](redis)
    refused = isinstance(caught.value, NoPermissionError) or "NOPERM" in str(caught.value)
    assert refused or "can't" in str(caught.value), caught.value


def test_nobody_gets_in_without_a_name_a_password_or_a_certificate(guarded_redis: GuardedRedis) -> None:
    with guarded_redis.of("worker") as redis:
        assert redis.ping()
    default = guarded_redis.address("default", password="default")
    for address in (guarded_redis.address("worker", password="wrong"), default):
        with connect(address, retries=0) as redis, pytest.raises(AuthenticationError):
            redis.ping()
    bare = guarded_redis.address("worker", certificate=False)
    plain = f"redis://worker:worker@127.0.0.1:{guarded_redis.port}/0"
    for address in (bare, plain):
        with connect(address, retries=0) as redis, pytest.raises((RedisConnectionError, OSError)):
            redis.ping()


def test_a_worker_with_another_users_rights_does_not_start(
    guarded_redis: GuardedRedis, monkeypatch: pytest.MonkeyPatch
) -> None:
    for user, remedy in (("producer", "let this user run scripts"), ("nobody", "set its user and password")):
        settings = Settings.model_validate({"redis_url": guarded_redis.address(user)})
        monkeypatch.setattr("cronium_worker.preflight._RETRIES", 0)
        with pytest.raises(ConfigurationError) as caught:
            check_redis(settings)
        assert remedy in str(caught.value)
        assert f"{user}:***@" in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_value_that_is_too_long_is_refused_by_redis_itself(guarded_redis: GuardedRedis) -> None:
    with guarded_redis.of("producer") as redis, pytest.raises((RedisError, OSError)):
        redis.lpush("cronium.jobs", b"x" * (65 * 1024 * 1024))
    with guarded_redis.client() as redis:
        assert redis.llen("cronium.jobs") == 0


def test_doctor_sees_a_redis_that_talks_to_everybody(host: LocalHost, tmp_path: Path) -> None:
    """On all addresses, the one among them that containers have for this host."""
    (tmp_path / "open").mkdir()
    with OwnRedis(tmp_path / "open", "--bind", "0.0.0.0", "--protected-mode", "no") as open_to_all:
        host.env["CRONIUM_REDIS_URL"] = open_to_all.url
        said = host.cronium("doctor")
        assert said.returncode == 1
        assert re.search(rf"FAIL Redis from the containers' bridge: answers .*:{open_to_all.port} → give", said.stdout)
        with open_to_all.client() as redis:
            redis.config_set("requirepass", "pw")
        host.env["CRONIUM_REDIS_URL"] = open_to_all.url.replace("//", "//:pw@")
        said = host.cronium("doctor")
        assert re.search(rf"ok   Redis from the containers' bridge: nothing .*:{open_to_all.port}\n", said.stdout)
        assert said.returncode == 0, said.stdout


def test_a_reader_lists_jobs_though_it_may_not_forget_expired_ones(guarded_redis: GuardedRedis) -> None:
    latest = 2**50
    with guarded_redis.client() as redis:
        redis.zadd("cronium:jobs", {"expired": latest, "kept": latest - 1})
        redis.hset(record_key("kept"), "id", "kept")
    with guarded_redis.of("reader") as redis:
        assert [row["id"] for row in JobStore(redis, result_ttl_s=60).recent(1)] == ["kept"]
    with guarded_redis.of("worker") as redis:
        assert redis.zrem("cronium:jobs", "expired", "kept") == 2
    with guarded_redis.client() as redis:
        redis.delete(record_key("kept"))
