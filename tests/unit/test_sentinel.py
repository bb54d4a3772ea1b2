"""sentinel://: what may be written, what is refused, and what each library is given."""

import asyncio
from typing import Any

import pytest
from celery.app.utils import filter_hidden_settings
from kombu import Connection
from redis.connection import SSLConnection
from redis.sentinel import SentinelConnectionPool

from cronium_worker.broker import broker_url, result_backend, result_options, sentinel_tls, transport_options
from cronium_worker.errors import ConfigurationError
from cronium_worker.fleet.connections import async_client, client, connect
from cronium_worker.models.sentinel import SentinelAddress, sentinel_address
from cronium_worker.settings import Settings, load_settings, without_password

WHOLE = (
    "sentinel://ada:p%40ss%2Fw@h1:26380,h2,[::1]:26381/3?service=fleet&sentinel_username=watch&sentinel_password=hunter3"
    "&ssl_cert_reqs=required&ssl_ca_certs=/etc/ca.pem&ssl_check_hostname=false"
)


def settings(url: str, **more: str) -> Settings:
    return Settings.model_validate({"redis_url": url, **more})


def test_the_whole_form() -> None:
    assert SentinelAddress.parse(WHOLE) == SentinelAddress(
        sentinels=(("h1", 26380), ("h2", 26379), ("::1", 26381)),
        service="fleet",
        database=3,
        login={"username": "ada", "password": "p@ss/w"},
        sentinel_login={"username": "watch", "password": "hunter3"},
        tls={"ssl_ca_certs": "/etc/ca.pem", "ssl_cert_reqs": "required", "ssl_check_hostname": False},
    )


def test_the_shortest_form() -> None:
    assert SentinelAddress.parse("sentinel://h1?service=fleet") == SentinelAddress(
        sentinels=(("h1", 26379),), service="fleet", database=0
    )


def test_a_password_alone_is_that_of_the_default_user() -> None:
    address = SentinelAddress.parse("sentinel://:hunter2@h1/0?service=fleet")

    assert address.login == {"password": "hunter2"}
    assert address.broker_url() == "sentinel://:hunter2@h1:26379/0"


@pytest.mark.parametrize("url", ["redis://h/0", "rediss://h/0", "unix:///run/redis.sock", "amqp://h"])
def test_other_addresses_are_none_of_its(url: str) -> None:
    assert sentinel_address(url) is None


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("sentinel://h1:26379/0", "must name the service that the sentinels watch: ?service=NAME"),
        ("sentinel://h1:26379/0?service=", "must name the service that the sentinels watch: ?service=NAME"),
        ("sentinel://?service=fleet", ": must be the host of a sentinel, and maybe its port"),
        ("sentinel://h1,,h2/0?service=fleet", ": must be the host of a sentinel, and maybe its port"),
        ("sentinel://h1:http/0?service=fleet", "h1:http: must be the host of a sentinel, and maybe its port"),
        ("sentinel://h1:99999/0?service=fleet", "h1:99999: must be the host of a sentinel, and maybe its port"),
        ("sentinel://h1/first?service=fleet", "must have the number of a database after the hosts: "),
        ("sentinel://h1/0;sentinel://h2/0?service=fleet", "must have the number of a database after the hosts: "),
        ("sentinel://h1/0?service=fleet&sevice=x", "sevice: no option of sentinel://"),
        ("sentinel://h1/0?service=fleet&ssl_cert_reqs=maybe", "ssl_cert_reqs: must be required or optional or none"),
        ("sentinel://h1/0?service=fleet&ssl_ca_certs=", "ssl_ca_certs: must be a file"),
        ("sentinel://ada:pass/word@h1/0?service=fleet", "must have the number of a database after the hosts: "),
    ],
)
@pytest.mark.parametrize("variable", ["CRONIUM_REDIS_URL", "CRONIUM_BROKER_URL", "CRONIUM_RESULT_BACKEND"])
def test_a_wrong_address_ends_the_start_with_one_line(
    monkeypatch: pytest.MonkeyPatch, variable: str, url: str, said: str
) -> None:
    monkeypatch.setenv(variable, url)

    with pytest.raises(ConfigurationError) as caught:
        load_settings()

    assert str(caught.value).startswith(f"{variable}: {said}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("sentinel://h1:1,h2:2/0?service=fleet", "sentinel://h1:1,h2:2/0?service=fleet"),
        ("sentinel://ada:hunter2@h1,h2/0?service=fleet", "sentinel://ada:***@h1,h2/0?service=fleet"),
        (
            "sentinel://h1:1,h2/0?sentinel_password=hunter2@h&service=fleet",
            "sentinel://h1:1,h2/0?sentinel_password=***&service=fleet",
        ),
    ],
)
def test_passwords_are_masked_for_display(url: str, shown: str) -> None:
    assert without_password(url) == shown


def test_what_celery_is_given() -> None:
    given = settings("sentinel://ada:p%40ss@h1,h2:2/3?service=fleet&sentinel_password=hunter3")

    assert broker_url(given) == "sentinel://ada:p%40ss@h1:26379/3;sentinel://ada:p%40ss@h2:2/3"
    assert result_backend(given) == "sentinel://ada:p%40ss@h1:26379/3;sentinel://h2:2/3"
    options = transport_options(given)
    assert (options["master_name"], options["sep"]) == ("fleet", ":")
    assert options["sentinel_kwargs"] == {
        "password": "hunter3", "retry": None, "socket_timeout": 1.0, "socket_connect_timeout": 1.0,
    }  # fmt: skip
    assert result_options(given) == {name: options[name] for name in ("master_name", "sentinel_kwargs")}
    assert sentinel_tls(given) == (None, None)


def test_celery_is_told_of_tls_in_its_own_settings() -> None:
    given = settings(WHOLE, result_backend="redis://h/1")

    broker, results = sentinel_tls(given)

    assert broker == {"ssl_ca_certs": "/etc/ca.pem", "ssl_cert_reqs": "required", "ssl_check_hostname": False}
    assert results is None
    assert result_options(given) == {}


def test_celery_shows_no_password() -> None:
    given = settings(WHOLE)

    shown = filter_hidden_settings(
        {
            "broker_url": broker_url(given),
            "result_backend": result_backend(given),
            "broker_transport_options": dict(transport_options(given)),
            "result_backend_transport_options": dict(result_options(given)),
        }
    )

    assert "hunter" not in str(shown)
    assert "p@ss" not in str(shown)
    assert "p%40ss" not in str(shown)
    assert "p%40ss" not in Connection(broker_url(given)).as_uri()


def test_redis_py_is_given_the_same() -> None:
    pool = client(WHOLE, decode_responses=True).connection_pool

    assert isinstance(pool, SentinelConnectionPool)
    assert pool.service_name == "fleet"
    assert issubclass(pool.connection_class, SSLConnection)
    given = pool.connection_kwargs
    assert (given["db"], given["username"], given["password"]) == (3, "ada", "p@ss/w")
    assert (given["ssl_cert_reqs"], given["ssl_check_hostname"]) == ("required", False)
    watch = pool.sentinel_manager.sentinels[0].connection_pool.connection_kwargs
    assert (watch["host"], watch["port"], watch["username"], watch["password"]) == ("h1", 26380, "watch", "hunter3")
    assert watch["ssl_ca_certs"] == "/etc/ca.pem"


def test_the_page_is_given_the_same() -> None:
    async def made() -> Any:
        async with async_client(WHOLE) as redis:
            return redis.connection_pool

    pool = asyncio.run(made())

    assert (pool.service_name, pool.connection_kwargs["username"]) == ("fleet", "ada")
    assert len(pool.sentinel_manager.sentinels) == 3


def test_callers_wait_for_a_failover_as_they_wait_for_nothing_else() -> None:
    def tries(url: str, **options: int) -> int:
        retry = connect(url, **options).get_retry()  # type: ignore[arg-type]
        assert retry is not None
        return retry.get_retries()

    assert tries("redis://h/0") == 3
    assert tries("sentinel://h/0?service=fleet") == 30
    assert tries("sentinel://h/0?service=fleet", retries=0) == 0
