"""What differs between Celery's brokers: Redis, and RabbitMQ by AMQP. Pure."""

from collections.abc import Mapping
from typing import Any

from cronium_worker.settings import Settings

HIGHEST_PRIORITY = 9  # of a job: 9 first, 0 last


def broker_url(settings: Settings) -> str:
    """As Celery takes it."""
    return celery_url((settings.broker_url or settings.redis_url).get_secret_value())


def result_backend(settings: Settings) -> str:
    """As Celery takes it."""
    return celery_url((settings.result_backend or settings.redis_url).get_secret_value())


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
    # Ten lists a queue, taken in order: priority 9 before 0.
    return {
        "queue_order_strategy": "priority",
        "priority_steps": list(range(HIGHEST_PRIORITY + 1)),
        "sep": ":",
        "socket_keepalive": True,
    }
