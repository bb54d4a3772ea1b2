"""Celery's configuration, with the reason of each choice that is not Celery's default.

The measurements are in docs/architecture.md ("Celery's part").
"""

from kombu.serialization import register as _register
from kombu.utils.json import dumps as _dumps
from kombu.utils.json import loads as _loads

from cronium_worker.beat_schedule import beat_schedule as _beat_schedule
from cronium_worker.broker import HIGHEST_PRIORITY as _HIGHEST_PRIORITY
from cronium_worker.broker import broker_url as _broker_url
from cronium_worker.broker import is_amqp as _is_amqp
from cronium_worker.broker import result_backend as _result_backend
from cronium_worker.broker import result_options as _result_options
from cronium_worker.broker import sentinel_tls as _sentinel_tls
from cronium_worker.broker import transport_options as _transport_options
from cronium_worker.models.queues import DEFAULT_QUEUE
from cronium_worker.models.result import with_ready_outputs as _with_ready_outputs
from cronium_worker.settings import get_settings


def _result_json(value: object) -> bytes:
    return b"".join(_with_ready_outputs(_dumps(value).encode()))  # type: ignore[no-untyped-call]


_settings = get_settings()
_redis_url = _settings.redis_url.get_secret_value()

broker_url = _broker_url(_settings)
result_backend = _result_backend(_settings)
override_backends = {
    "redis": "cronium_worker.results:Results",
    "rediss": "cronium_worker.results:Results",
    "sentinel": "cronium_worker.results:SentinelResults",
}
result_backend_transport_options = dict(_result_options(_settings))
# Of addresses with sentinel:// alone: all others say so themselves.
broker_use_ssl, redis_backend_use_ssl = _sentinel_tls(_settings)
result_expires = _settings.result_ttl
# A result that is due while Redis is away is stored when it is back; without this it is lost.
result_backend_always_retry = True
# One connection pool for all threads: 17 instead of 46 connections at 32 slots.
result_backend_thread_safe = True

# Also of control commands, which take the two of tasks.
accept_content = ["json"]
task_serializer = "json"
result_accept_content = ["json"]
# JSON, but an output that is JSON already is not read and written again for it.
_register("cronium-json", _result_json, _loads, "application/json", "utf-8")  # type: ignore[no-untyped-call]
result_serializer = "cronium-json"
event_serializer = "json"
timezone = "UTC"

task_default_queue = DEFAULT_QUEUE
# The message only says "look at the record": it is acknowledged at once. With late acknowledgement on Redis,
# 8 of 8 workers died when Redis restarted under a running task, and long tasks ran twice.
task_acks_late = False
# With early acknowledgement a worker would hold messages behind its running jobs; so it takes one by one.
worker_prefetch_multiplier = 1
worker_disable_prefetch = not _is_amqp(_settings)
broker_connection_retry_on_startup = True
broker_connection_max_retries = None
# Back within 4 s of the broker's return instead of up to 30.
worker_consumer = "cronium_worker.consumers:EagerConsumer"
broker_transport_options = dict(_transport_options(_settings))
if _is_amqp(_settings):
    # The same on RabbitMQ, where Celery has no setting for it. Without it a node with 2 slots held 2 messages
    # behind its running jobs, unacknowledged, and lost its channel when they took longer than consumer_timeout.
    worker_consumer = "cronium_worker.consumers:SlotConsumer"
    # Whoever declares one of our queues must give the same x-max-priority.
    task_queue_max_priority = _HIGHEST_PRIORITY

# A job is waiting for its container: threads cost 57 MiB for 32 jobs, processes 866 MiB.
worker_pool = "threads"
worker_concurrency = _settings.concurrency
worker_send_task_events = True
task_send_sent_event = True
# Not task_track_started: 1.5 ms of a job's way, to say less than its record and its events do.

beat_scheduler = "cronium_worker.beat:Scheduler"
redbeat_redis_url = _redis_url
redbeat_redis_options: dict[str, object] = {}  # not the broker's
redbeat_key_prefix = "cronium:beat:"
beat_schedule = _beat_schedule(_settings)
# The lock's default is 25 minutes: a second beat would wait that long after the first one's death. It asks for
# the lock every beat_max_loop_interval: the two together are the longest that nobody leads.
beat_max_loop_interval = 5
redbeat_lock_timeout = 20
