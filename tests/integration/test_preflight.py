"""What a worker looks at before it starts: each reason to refuse, on a real Redis."""

import logging
import os
import subprocess
from collections.abc import Iterator

import pytest

from cronium_worker import preflight
from cronium_worker.errors import ConfigurationError
from cronium_worker.preflight import check_redis
from cronium_worker.settings import Settings
from tests.own_redis import OwnRedis
from tests.rig import CRONIUM


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnRedis]:
    with OwnRedis(tmp_path_factory.mktemp("redis")) as redis:
        yield redis


@pytest.fixture
def fit(server: OwnRedis, monkeypatch: pytest.MonkeyPatch) -> Iterator[OwnRedis]:
    """As it should be before each test and after it."""
    monkeypatch.setattr(preflight, "_RETRIES", 0)
    yield server
    with server.client() as redis:
        redis.config_set("maxmemory", 0)
        redis.config_set("maxmemory-policy", "noeviction")
        redis.config_set("appendonly", "yes")
        redis.replicaof("NO", "ONE")
        redis.acl_deluser("guest")


def let_it_forget(server: OwnRedis, policy: str = "allkeys-lru") -> None:
    with server.client() as redis:
        redis.config_set("maxmemory-policy", policy)
        redis.config_set("maxmemory", "100mb")


def guest(server: OwnRedis, *, commands: list[str], keys: str = "*", channels: str = "*") -> str:
    """The address for a user who may do that."""
    with server.client() as redis:
        rights = {"keys": [keys], "channels": [channels], "commands": commands}
        redis.acl_setuser("guest", enabled=True, passwords=["+sesame"], **rights)
    return server.url.replace("//", "//guest:sesame@")


def settings(address: str, broker: str | None = None) -> Settings:
    return Settings.model_validate({"redis_url": address, "broker_url": broker})


def refusal(address: str, broker: str | None = None) -> str:
    with pytest.raises(ConfigurationError) as caught:
        check_redis(settings(address, broker))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_fit_redis_is_taken_without_a_word(fit: OwnRedis, caplog: pytest.LogCaptureFixture) -> None:
    let_it_forget(fit, "noeviction")  # it is full some day, and says so
    check_redis(settings(fit.url))
    assert caplog.records == []
    with fit.client() as redis:
        assert redis.keys("*canary*") == []


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-ttl"])
def test_one_that_forgets_keys(fit: OwnRedis, policy: str) -> None:
    with fit.client() as redis:
        redis.config_set("maxmemory-policy", policy)
    check_redis(settings(fit.url))  # never full
    let_it_forget(fit, policy)
    assert refusal(fit.url) == (
        f"CRONIUM_REDIS_URL: {fit.url}: maxmemory-policy {policy} forgets jobs when memory is full; "
        "set maxmemory-policy noeviction"
    )


def test_the_brokers_own(fit: OwnRedis, redis_url: str) -> None:
    let_it_forget(fit)
    assert refusal(redis_url, broker=fit.url).startswith(f"CRONIUM_BROKER_URL: {fit.url}: maxmemory-policy")


def test_one_without_an_append_only_file_is_taken_with_a_warning(
    fit: OwnRedis, caplog: pytest.LogCaptureFixture
) -> None:
    with fit.client() as redis:
        redis.config_set("appendonly", "no")
    with caplog.at_level(logging.WARNING):
        check_redis(settings(fit.url))
    assert "set appendonly yes" in caplog.text


def test_a_replica(fit: OwnRedis) -> None:
    with fit.client() as redis:
        redis.replicaof("127.0.0.1", 1)
    assert "set CRONIUM_REDIS_URL to the primary" in refusal(fit.url)


def test_a_full_one(fit: OwnRedis) -> None:
    fit.limit_memory(1)
    assert "more memory" in refusal(fit.url)


def test_a_wrong_password_that_is_not_shown(fit: OwnRedis) -> None:
    said = refusal(fit.url.replace("//", "//guest:sesame@"))
    assert "set its user and password in CRONIUM_REDIS_URL" in said
    assert "sesame" not in said


def test_a_user_who_may_not_write(fit: OwnRedis) -> None:
    assert "let this user run scripts" in refusal(guest(fit, commands=["+@read", "+@connection", "+info"]))


@pytest.mark.parametrize("kind", ["keys", "channels"])
def test_a_user_who_may_not_see_ours(fit: OwnRedis, kind: str) -> None:
    address = guest(fit, commands=["+@all"], **{kind: "other:*"})
    assert "read and write keys and channels cronium:*" in refusal(address)


def test_a_provider_that_hides_what_it_is(fit: OwnRedis, caplog: pytest.LogCaptureFixture) -> None:
    check_redis(settings(guest(fit, commands=["+@all", "-info", "-config"])))
    assert caplog.records == []


def test_one_that_does_not_answer(fit: OwnRedis) -> None:
    said = refusal("redis://127.0.0.1:1/0")
    assert "refused" in said
    assert "start Redis, or set CRONIUM_REDIS_URL" in said


def test_a_worker_does_not_start(fit: OwnRedis) -> None:
    let_it_forget(fit)
    env = {name: value for name, value in os.environ.items() if not name.startswith("CRONIUM_")}
    for node in ("jobs", "agent"):
        done = subprocess.run(
            [CRONIUM, "worker", "--node", node],
            env=env | {"CRONIUM_REDIS_URL": fit.url},
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
        assert done.returncode == 1
        assert done.stderr == f"cronium: {refusal(fit.url)}\n"
