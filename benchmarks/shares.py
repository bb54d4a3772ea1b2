"""What the most expensive jobs leave in Redis, by its own account: the events of each, printed to the cap."""

import threading
from collections.abc import Callable, Iterator
from itertools import repeat
from typing import Any
from uuid import uuid4

from benchmarks.measure import Figure, figure
from cronium_worker.fleet.connections import connect
from cronium_worker.fleet.events import log_body, metrics_body
from cronium_worker.fleet.share import make_room
from cronium_worker.fleet.store import Claim, JobStore, job_keys
from cronium_worker.fleet.writer import LogWriter
from cronium_worker.models import Job, Stream
from cronium_worker.settings import get_settings

_MIB = 1024 * 1024
_SAMPLES_OF_A_DAY = 2300
_AT_ONCE = 100
_SAMPLE = {
    "cpu_percent": 99.9, "memory_bytes": 2**31, "pids": 1000, "cpu_seconds": 86399.123456, "memory_peak_bytes": 2**31,
    "pids_peak": 1000, "network_rx_bytes": 2**40, "network_tx_bytes": 2**40, "disk_read_bytes": 2**40,
    "disk_write_bytes": 2**40,
}  # fmt: skip

Piece = tuple[Stream, str]


def shares() -> list[Figure]:
    """`MEMORY USAGE` of each job's stream, beside the cap (CRONIUM_LOG__MAX_BYTES)."""
    settings = get_settings()
    redis = connect(settings.redis_url.get_secret_value())
    store, cap = JobStore(redis, result_ttl_s=600), settings.log.max_bytes
    chunk = settings.log.chunk_bytes
    kinds: dict[str, Callable[[], Iterator[Piece]]] = {
        "lines of 80 characters": lambda: repeat(("stdout", "x" * 79 + "\n")),
        "coloured lines": lambda: repeat(("stdout", "\x1b[32m" + "x" * 60 + "\x1b[0m\n")),
        "empty lines": lambda: repeat(("stdout", "\n" * 1000)),
        "NULs": lambda: repeat(("stdout", "\0" * 8192)),
        "a byte of each stream in turn": _in_turn,
    }
    floor = figure("CRONIUM_LOG__MAX_BYTES (floor)", "MiB", [cap / _MIB])
    figures = [floor]
    for name, pieces in kinds.items():
        print_to_cap = _job(store)
        _print(store, _claim(store, print_to_cap, cap), pieces(), cap, chunk)
        figures.append(_figure(name, store, print_to_cap, floor))
    figures += [
        _figure("bytes that are each an event", store, _bytes_alone(store, cap), floor),
        _figure("100 attempts of NULs", store, _attempts(store, cap, chunk), floor),
        _figure("samples of a day, nothing printed", store, _samples(store, cap), floor),
    ]
    redis.close()
    return figures


def _in_turn() -> Iterator[Piece]:
    while True:
        yield "stdout", "."
        yield "stderr", "."


def _job(store: JobStore) -> str:
    job = Job.model_validate({"id": uuid4().hex, "script": {"type": "bash", "content": ""}})
    store.register(job, task_id=job.id, queue="none")
    return job.id


def _claim(store: JobStore, job_id: str, cap: int) -> Claim:
    claim = store.claim(job_id, host="h")
    if not isinstance(claim, Claim):
        raise TypeError(claim)
    make_room(store, claim, cap)
    return claim


def _print(store: JobStore, claim: Claim, pieces: Iterator[Piece], cap: int, chunk: int) -> None:
    room = threading.Event()
    writer = LogWriter(store, claim, chunk=chunk, max_bytes=cap, on_room=room.set)
    for number, (stream, text) in enumerate(pieces, 1):
        while not writer.has_room():
            room.wait()
            room.clear()
        if writer.put(stream, text, offset=number) < len(text):
            break
    writer.close()


def _bytes_alone(store: JobStore, cap: int) -> str:
    """Events of one byte, up to the cap."""
    job_id = _job(store)
    claim = _claim(store, job_id, cap)
    while claim.stored < cap:
        store.write(claim, [log_body("stdout", "x")] * _AT_ONCE)
    return job_id


def _attempts(store: JobStore, cap: int, chunk: int) -> str:
    job_id = _job(store)
    for _ in range(100):
        claim = _claim(store, job_id, cap)
        _print(store, claim, repeat(("stdout", "\0" * 8192)), cap, chunk)
        store.retry(claim, "again", failure=True)
    return job_id


def _samples(store: JobStore, cap: int) -> str:
    job_id = _job(store)
    claim = _claim(store, job_id, cap)
    for _ in range(_SAMPLES_OF_A_DAY):
        store.write(claim, [metrics_body(_SAMPLE)])
    return job_id


def _figure(name: str, store: JobStore, job_id: str, cap: Figure) -> Figure:
    redis: Any = store.redis
    taken = redis.memory_usage(job_keys(job_id)[1], samples=0)
    redis.delete(*job_keys(job_id))
    return figure(f"events of a job: {name}", "MiB", [taken / _MIB], cap)
