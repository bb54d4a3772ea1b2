"""Celery's configuration, with the reason of each choice that is not Celery's default.

The measurements are in docs/architecture.md ("Celery's part").
"""

from cronium_worker.models.job import DEFAULT_QUEUE
from cronium_worker.schedule import beat_schedule as _beat_schedule
from cronium_worker.settings import get_settings

_settings = get_settings()
_redis_url = _settings.redis_url.get_secret_value()


def _celery_url(url: str) -> str:
    """Celery's name for a Redis behind a Unix socket."""
    return "redis+socket://" + url.removeprefix("unix://") if url.startswith("unix://") else url


broker_url = _settings.broker_url.get_secret_value() if _settings.broker_url else _celery_url(_redis_url)
result_backend = _settings.result_backend.get_secret_value() if _settings.result_backend else _celery_url(_redis_url)
result_expires = _settings.result_ttl
# A result that is due while Redis is away is stored when it is back; without this it is lost.
result_backend_always_retry = True
# One connection pool for all threads: 17 instead of 46 connections at 32 slots.
result_backend_thread_safe = True

accept_content = ["json"]
task_serializer = "json"
result_serializer = "json"
timezone = "UTC"

task_default_queue = DEFAULT_QUEUE
# The message only says "look at the record": it is acknowledged at once. With late acknowledgement on Redis,
# 8 of 8 workers died when Redis restarted under a running task, and long tasks ran twice.
task_acks_late = False
# With early acknowledgement a worker would hold messages behind its running jobs; so it takes one by one.
worker_prefetch_multiplier = 1
worker_disable_prefetch = True
broker_connection_retry_on_startup = True
broker_connection_max_retries = None
# Ten lists a queue, taken in order: priority 9 before 0 (tasks.py turns the numbers round for Redis).
broker_transport_options = {
    "queue_order_strategy": "priority",
    "priority_steps": list(range(10)),
    "sep": ":",
    "socket_keepalive": True,
}

# A job is waiting for its container: threads cost 57 MiB for 32 jobs, processes 866 MiB.
worker_pool = "threads"
worker_concurrency = _settings.concurrency
worker_send_task_events = True
task_send_sent_event = True
task_track_started = True

beat_scheduler = "redbeat.RedBeatScheduler"
redbeat_redis_url = _redis_url
redbeat_key_prefix = "cronium:beat:"
beat_schedule = _beat_schedule(_settings)
# The lock's default is 25 minutes: a second beat would wait that long after the first one's death. It asks for
# the lock every beat_max_loop_interval: the two together are the longest that nobody leads.
beat_max_loop_interval = 5
redbeat_lock_timeout = 20
