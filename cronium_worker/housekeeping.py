"""The Celery tasks of housekeeping, and how they get to every host.

Each host has a queue of its own, which its agent serves. What is for all hosts is sent to each live host's queue,
with a time after which it is dropped: a host that was away does not run a backlog. (A fanout queue delivered
nothing or kept a core busy: docs/architecture.md.)
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

from kombu.exceptions import KombuError, OperationalError

from cronium_worker import metrics
from cronium_worker.app import app
from cronium_worker.beat_schedule import CLEANUP, ON_EVERY_HOST, PREPULL, RECOVER, housekeeping_every_s
from cronium_worker.envelope import first_argument
from cronium_worker.errors import BrokerUnavailable
from cronium_worker.fleet.connections import connect
from cronium_worker.fleet.hosts import HostRegistry
from cronium_worker.fleet.keys import BOOKKEEPING, Misfit, misfits, raise_others
from cronium_worker.models.fields import is_job_id
from cronium_worker.models.queues import HOST_QUEUE_PREFIX
from cronium_worker.recovery import Recovery
from cronium_worker.settings import get_settings
from cronium_worker.tasks import execute_job, store

logger = logging.getLogger(__name__)


@cache
def hosts() -> HostRegistry:
    """The registry of hosts, for this process."""
    settings = get_settings()
    redis = connect(settings.redis_url.get_secret_value(), retries=3, on_error=metrics.redis_error)
    return HostRegistry(redis, host_ttl_s=settings.lease_ttl)


def send(task: str, host: str, **arguments: Any) -> None:
    """Have a host do it. Dropped when its agent does not take it before beat's next turn."""
    expires_s = housekeeping_every_s(get_settings())[task]
    app.tasks[task].apply_async(kwargs=arguments, queue=HOST_QUEUE_PREFIX + host, expires=expires_s)


def send_to_all(task: str, **arguments: Any) -> list[str]:
    """Have every live host do it; returns their names."""
    names = [host.name for host in hosts().hosts() if host.has_agent]
    for name in names:
        send(task, name, **arguments)
    return names


@app.task(name=ON_EVERY_HOST, ignore_result=True)
def on_every_host(task: str) -> None:
    """The fan-out: `cronium.cleanup_orphans` or `cronium.prepull_images` to all live hosts."""
    send_to_all(task)


def waiting_messages(queue: str) -> int:
    """How many messages a queue holds. Raises kombu errors when the broker does not answer."""
    with app.connection_or_acquire() as connection, _channel(connection) as channel:
        try:
            return int(channel.queue_declare(queue=queue, passive=True).message_count)
        except connection.channel_errors:  # not there: on Redis, an empty one is not
            return 0


def broken_keys(queues: Iterable[str]) -> list[Misfit]:
    """The keys of a Redis broker that have another type than they have to have: of its bookkeeping, and of these
    queues. Raises kombu and redis errors."""
    with app.connection_or_acquire() as connection:
        if connection.transport.driver_type != "redis":
            return []
        channel = connection.default_channel
        with channel.conn_or_acquire() as redis:
            return misfits(redis, [*BOOKKEEPING, *(key for queue in queues for key in channel.queue_keys(queue))])


def line(queue: str) -> tuple[int, list[str]]:
    """How many messages a queue holds, and the jobs that are next. Raises BrokerUnavailable."""
    try:
        return waiting_messages(queue), next_jobs(queue)
    except (OperationalError, KombuError) as error:
        raise BrokerUnavailable(f"the broker does not answer: {error}") from error


def next_jobs(queue: str) -> list[str]:
    """The ids of the jobs whose messages a queue gives out next, one of each priority: those that wait for longest.

    Without messages that have a whole job, and none of RabbitMQ, where nobody can look. Raises kombu errors.
    """
    with app.connection_or_acquire() as connection:
        if connection.transport.driver_type != "redis":
            return []
        channel = connection.default_channel
        with channel.conn_or_acquire() as redis, redis.pipeline(transaction=False) as pipe:
            for priority in channel.priority_steps:
                pipe.lindex(channel._q_for_pri(queue, priority), -1)
            messages = pipe.execute(raise_on_error=False)
    raise_others(messages)
    arguments = map(first_argument, (message for message in messages if isinstance(message, bytes)))
    return [job_id for job_id in arguments if isinstance(job_id, str)]


@contextmanager
def _channel(connection: Any) -> Iterator[Any]:
    """On RabbitMQ one for this question: it is closed when the queue is not there. On Redis, where that would be two
    new connections at each beat of each host, the connection's own."""
    if connection.transport.driver_type == "redis":
        yield connection.default_channel
        return
    with connection.channel() as channel:
        yield channel


@app.task(name=RECOVER, ignore_result=True, send_events=False)
def recover_lost_jobs() -> None:
    """Send again what got lost, and take jobs from workers and hosts that are gone. Any one agent does it for all."""
    grace_s = get_settings().lease_ttl / 3
    recovery = Recovery(store(), hosts(), send=execute_job.send_again, waiting=waiting_messages, grace_s=grace_s)
    done = recovery.look()
    if done:
        logger.info("recovered: %s", ", ".join(f"{count} {what}" for what, count in sorted(done.items())))


@app.task(name=CLEANUP, ignore_result=True, throws=(ValueError,))
def cleanup_orphans(run: str | None = None, dry_run: bool = False) -> None:
    """Sweep the host whose agent takes this."""
    _check_run(run)
    _agent().cleanup(run=run, dry_run=dry_run)


@app.task(name=PREPULL, ignore_result=True, throws=(ValueError,))
def prepull_images(references: Sequence[str] | None = None, run: str | None = None) -> None:
    """Bring images to the host whose agent takes this: those named, else its own settings'."""
    _check_run(run)
    _agent().prepull(references, run=run)


def _check_run(run: object) -> None:
    """Raises ValueError: it becomes a part of a key."""
    if run is not None and not is_job_id(run):
        raise ValueError("run: not the name of a run")


def _agent() -> Any:
    if app.agent is None:
        raise RuntimeError("this node keeps no host in order: start one with `cronium worker`")
    return app.agent
