"""What things cost as the queue and the number of records grow, on a Redis of its own: each beside the smallest.

`figures()` runs this module in a process whose settings name that Redis; the module prints its figures as JSON.
"""

import json
import subprocess
import sys
from collections import defaultdict
from collections.abc import Callable
from time import perf_counter
from typing import Any

from redis import Redis

from benchmarks.measure import Figure, figure, timed_ms
from benchmarks.model import redis
from benchmarks.scale import own_redis
from cronium_worker import execute_job
from cronium_worker.app import app
from cronium_worker.fleet.events import now_iso
from cronium_worker.fleet.oversight import Oversight
from cronium_worker.fleet.store import ACTIVE_KEY, INDEX_KEY, Claim, epoch_ms, job_keys
from cronium_worker.housekeeping import hosts, waiting_messages
from cronium_worker.models import JobResult, LogSummary
from cronium_worker.models.queues import DEFAULT_QUEUE
from cronium_worker.recovery import Recovery
from cronium_worker.tasks import store

WAITING = (1_000, 10_000, 100_000)
RECORDS = (1_000, 10_000, 100_000, 1_000_000)
_ROUNDS = 40
_AT_ONCE = 2_000
_JOB = {"script": {"type": "bash", "content": "echo hi\n" * 10}, "metadata": {"project": "growth"}}

# Copies of one job, made where they are kept. KEYS: index, active ('' for ended jobs), queue ('' for none).
# ARGV: first, last, id of the original, its message, time (ms), then its record's fields and values.
_COPY = """
local original = ARGV[3]
local events = redis.call('XRANGE', 'cronium:job:{' .. original .. '}:events', '-', '+')
for number = ARGV[1], ARGV[2] do
  local id = string.format('%032x', number)
  local function as(text) return (string.gsub(text, original, id)) end
  local fields = {}
  for i = 6, #ARGV do fields[i - 5] = as(ARGV[i]) end
  local record = 'cronium:job:{' .. id .. '}'
  redis.call('HSET', record, unpack(fields))
  for _, entry in ipairs(events) do redis.call('XADD', record .. ':events', '*', 'event', as(entry[2][2])) end
  redis.call('ZADD', KEYS[1], ARGV[5] + number % 1000, id)
  if KEYS[2] ~= '' then redis.call('ZADD', KEYS[2], ARGV[5] - 10000, id) end
  if KEYS[3] ~= '' then redis.call('LPUSH', KEYS[3], as(ARGV[4])) end
end
"""


def figures() -> list[Figure]:
    with own_redis() as url:
        environment = (f"CRONIUM_REDIS_URL={url}", "CRONIUM_FLEET=growth")
        command = ["/usr/bin/env", *environment, sys.executable, "-m", "benchmarks.growth"]
        found = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    return [Figure(**row) for row in json.loads(found)]


class _Original:
    """A job as it is in Redis, with what it has beyond its record."""

    def __init__(self, client: "Redis", *, ended: bool) -> None:
        self._client = client
        client.flushall()
        self.id = str(execute_job.delay(_JOB).id)
        (self._queue,) = (key for key in client.scan_iter(f"{DEFAULT_QUEUE}*", _type="list"))
        self._message = client.rpop(self._queue)
        if ended:
            _end(_claim(self.id))
        self._ended = ended
        self._fields = [part for pair in store().record(self.id).items() for part in pair]
        client.delete(INDEX_KEY, ACTIVE_KEY)
        self._copy = client.register_script(_COPY)

    def copies(self, first: int, count: int) -> None:
        keys = [INDEX_KEY, "" if self._ended else ACTIVE_KEY, "" if self._ended else self._queue]
        for start in range(first, first + count, _AT_ONCE):
            last = min(start + _AT_ONCE, first + count) - 1
            arguments = (start, last, self.id, self._message, epoch_ms(now_iso()), *self._fields)
            self._copy(keys=keys, args=arguments)


def _claim(job_id: str) -> Claim:
    claim = store().claim(job_id, host="growth", node="growth")
    assert isinstance(claim, Claim)
    return claim


def _end(claim: Claim) -> None:
    result = JobResult(
        job_id=claim.job.id, status="completed", exit_code=0, log=LogSummary(bytes=80, lines=10), finished_at=now_iso()
    )
    store().finish(claim, result, "completed")
    store().settle(claim.job.id)


def _take() -> str:
    """A message out of the queue, as a worker's transport has it."""
    with app.connection_or_acquire() as connection:
        message = connection.default_channel.basic_get(DEFAULT_QUEUE, no_ack=True)
    return str(message.headers["id"])


def _costs() -> dict[str, list[float]]:
    """Milliseconds of each step of a job's way, and of who looks at all of them."""
    sent: list[str] = []
    costs = {"enqueue": timed_ms(lambda: sent.append(str(execute_job.delay(_JOB).id)), _ROUNDS)}
    costs["take"] = timed_ms(_take, _ROUNDS)
    claims: list[Claim] = []
    costs["claim"] = timed_ms(lambda: claims.append(_claim(sent[len(claims)])), _ROUNDS)
    costs["finish"] = timed_ms(lambda: _end(claims.pop()), _ROUNDS)
    costs["list of the 50 newest"] = timed_ms(lambda: store().recent(50), _ROUNDS)
    with redis() as client:
        client.delete(*(key for job_id in sent for key in job_keys(job_id)))
        client.zrem(INDEX_KEY, *sent)
    return costs


def _looks() -> list[float]:
    """Of recovery, each time at all that it looks at."""
    due = redis()

    def again() -> None:
        names = due.zrange(ACTIVE_KEY, 0, 4_999)
        if names:
            due.zadd(ACTIVE_KEY, dict.fromkeys(names, 0))

    recovery = Recovery(store(), hosts(), send=lambda _: None, waiting=waiting_messages, grace_s=10)
    samples = []
    for _ in range(4):
        again()
        samples += _once_ms(recovery.look)
    due.close()
    return samples[1:]


def _once_ms(action: Callable[[], object]) -> list[float]:
    began = perf_counter()
    action()
    return [(perf_counter() - began) * 1000]


def _grown(what: str, counts: tuple[int, ...], *, ended: bool) -> list[Figure]:
    found: dict[str, list[Figure]] = defaultdict(list)

    def add(what: str, name: str, unit: str, samples: list[float]) -> None:
        rows = found[what]
        rows.append(figure(name, unit, samples, rows[0] if rows else None))

    with redis() as client:
        original = _Original(client, ended=ended)
        _costs()  # what comes first brings connections and scripts: not measured
        empty = _memory(client)
        there = 0
        for count in counts:
            original.copies(there + 1, count - there)
            there = count
            kept = (_memory(client) - empty) / count
            costs = {**_costs(), "a look of recovery": _looks()}
            if ended:
                costs["a sweep of the index"] = timed_ms(Oversight(store()).forget_expired, 5)
            for name, samples in costs.items():
                add(name, f"{name}, {count:,} {what}", "ms", samples)
            add("memory", f"memory for each of {count:,} {what}", "bytes", [kept])
    return [row for rows in found.values() for row in rows]


def _memory(client: "Redis") -> int:
    info: Any = client.info("memory")
    return int(info["used_memory"])


def main() -> None:
    rows = [*_grown("waiting", WAITING, ended=False), *_grown("records", RECORDS, ended=True)]
    sys.stdout.write(json.dumps([row.as_dict() for row in rows]))


if __name__ == "__main__":
    main()
