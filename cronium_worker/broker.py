"""What differs between Celery's brokers: Redis, and RabbitMQ by AMQP. Pure."""

from collections.abc import Mapping
from typing import Any

from cronium_worker.models.sentinel import sentinel_address
from cronium_worker.settings import Settings

HIGHEST_PRIORITY = 9  # of a job: 9 first, 0 last


def broker_url(settings: Settings) -> str:
    """As Celery takes it."""
    url = _broker_address(settings)
    address = sentinel_address(url)
    return address.broker_url() if address else celery_url(url)


def result_backend(settings: Settings) -> str:
    """As Celery takes it."""
    url = _result_address(settings)
    address = sentinel_address(url)
    return address.result_backend() if address else celery_url(url)


def _broker_address(settings: Settings) -> str:
    return (settings.broker_url or settings.redis_url).get_secret_value()


def _result_address(settings: Settings) -> str:
    return (settings.result_backend or settings.redis_url).get_secret_value()


def celery_url(url: str) -> str:
    """Celery's way to write an address: a Redis behind a Unix socket has a name of its own, and with TLS Celery
    wants to be told that the server's certificate is to be checked, which redis-py does anyway."""
    if url.startswith("unix://"):
        return "redis+socket://" + url.removeprefix("unix://")
    if url.startswith("rediss://") and "ssl_cert_reqs=" not in url:
        return f"{url}{'&' if '?' in url else '?'}ssl_cert_reqs=required"
    return url


def is_amqp(settings: Settings) -> bool:
    return broker_url(settings).startswith(("amqp://", "amqps://", "pyamqp://", "librabbitmq://"))


def message_priority(job_priority: int, settings: Settings) -> int:
    """Of the message of a job: with Redis the lowest number comes first, with RabbitMQ the highest."""
    return job_priority if is_amqp(settings) else HIGHEST_PRIORITY - job_priority


def transport_options(settings: Settings) -> Mapping[str, Any]:
    if is_amqp(settings):
        # Sending a message returns when RabbitMQ has it.
        return {"confirm_publish": True}
    address = sentinel_address(_broker_address(settings))
    # Ten lists a queue, taken in order: priority 9 before 0.
    return {
        "queue_order_strategy": "priority",
        "priority_steps": list(range(HIGHEST_PRIORITY + 1)),
        "sep": ":",
        "socket_keepalive": True,
        **(address.transport_options if address else {}),
    }


def result_options(settings: Settings) -> Mapping[str, Any]:
    """Of the results' connection."""
    address = sentinel_address(_result_address(settings))
    return address.transport_options if address else {}


def sentinel_tls(settings: Settings) -> tuple[Mapping[str, Any] | None, Mapping[str, Any] | None]:
    """The broker's and the results', in Celery's settings of TLS: it has no way to write them with sentinel://."""
    broker, results = (sentinel_address(of(settings)) for of in (_broker_address, _result_address))
    return (broker and broker.tls) or None, (results and results.tls) or None
