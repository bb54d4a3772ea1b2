"""The registry of hosts in Redis: what each reports of itself, which are drained, what their housekeeping did.

A host is a hash with, for each of its nodes, the last report (`jobs`, `agent`: JSON) and its time (`jobs_at`,
`agent_at`: milliseconds by Redis's clock), and the last report of each kind of housekeeping (`cleanup`,
`prepull`). All keys are in one Redis Cluster slot.
"""

import json
import re
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.resources import files
from typing import Any, Literal, cast

from redis import Redis
from redis.exceptions import NoPermissionError

from cronium_worker.fleet.keys import raise_others
from cronium_worker.models.fields import is_job_id
from cronium_worker.models.formats import OLDEST
from cronium_worker.models.job import AGENT_NODE, JOBS_NODE

HostState = Literal["live", "draining", "unfit", "gone"]
Housekeeping = Literal["cleanup", "prepull"]
Report = dict[str, Any]

_PREFIX = "cronium:{hosts}"
_INDEX_KEY = f"{_PREFIX}:index"
_DRAINED_KEY = f"{_PREFIX}:drained"
# A host that has been gone for longer is forgotten; whether it is drained is not.
_HOST = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}", re.ASCII)
_HOST_TTL_S = 7 * 24 * 3600
_ANSWERS_TTL_S = 3600


def is_host(name: object) -> bool:
    """Whether it is a name that a host may have: those of the setting HOST_NAME."""
    return isinstance(name, str) and _HOST.fullmatch(name) is not None


def _host_key(host: str) -> str:
    return f"{_PREFIX}:host:{host}"


def _answers_key(run: str) -> str:
    """Raises ValueError: the name of a run comes in a message."""
    if not is_job_id(run):
        raise ValueError("a run is named with letters, digits, - and _")
    return f"{_PREFIX}:run:{run}"


@dataclass(frozen=True, kw_only=True)
class HostView:
    """A host as the registry knows it. `nodes`: the last report of each node that is live, with `beat_s`, the
    seconds since then, and `beat_at_ms`, its time by Redis's clock; `last_beat_s`: of the node heard last, live
    or not."""

    name: str
    state: HostState
    last_beat_s: float | None
    nodes: Mapping[str, Report] = field(default_factory=dict)
    housekeeping: Mapping[str, Report] = field(default_factory=dict)

    @property
    def has_agent(self) -> bool:
        return AGENT_NODE in self.nodes

    @property
    def job_format(self) -> int:
        """The newest format of jobs that its jobs node reads; version 0.1.0 does not report one."""
        return int(self.nodes.get(JOBS_NODE, {}).get("formats", {}).get("job", OLDEST))

    @property
    def queues(self) -> tuple[str, ...]:
        """Those that its jobs node serves."""
        return tuple(self.nodes.get(JOBS_NODE, {}).get("queues", ()))

    @property
    def slots(self) -> str:
        """How many of its slots for jobs are taken, "2/8"; empty without a report of them."""
        report = self.nodes.get(JOBS_NODE, {})
        return f"{report['running']}/{report['slots']}" if {"running", "slots"} <= report.keys() else ""

    @property
    def lacks(self) -> tuple[str, ...]:
        """What its jobs node may not do; its jobs run all the same."""
        return tuple(self.nodes.get(JOBS_NODE, {}).get("lacks", ()))

    def serves(self, queue: str | None) -> bool:
        """Return whether its jobs node is live and serves the queue; None: any queue."""
        return JOBS_NODE in self.nodes and (queue is None or queue in self.queues)


class HostRegistry:
    """Safe for threads. `host_ttl_s`: how long a node may be silent before it counts as gone."""

    def __init__(self, redis: "Redis", *, host_ttl_s: float) -> None:
        self._redis = redis
        self._host_ttl_s = host_ttl_s
        self._beat = redis.register_script((files("cronium_worker.fleet") / "lua" / "beat.lua").read_text())

    # ---- nodes

    def beat(self, host: str, node: str, report: Mapping[str, Any]) -> bool:
        """Say that a node lives, and what it is. True: the host is to take no jobs."""
        keys = [_host_key(host), _INDEX_KEY, _DRAINED_KEY]
        return bool(self._beat(keys=keys, args=[host, node, json.dumps(report), _HOST_TTL_S]))

    def leave(self, host: str, node: str) -> None:
        """Say that a node has ended: nobody need wait for its silence."""
        self._redis.hdel(_host_key(host), node)

    def report(self, host: str, kind: Housekeeping, report: Mapping[str, Any]) -> None:
        """Keep what the host's latest housekeeping of a kind has done."""
        self._redis.hset(_host_key(host), kind, json.dumps(report))

    def answer(self, run: str, host: str, message: Mapping[str, Any]) -> None:
        """Tell whoever started a run: `{"progress": text}`, or `{"report": …}` as the last word."""
        with self._redis.pipeline() as pipe:
            pipe.rpush(_answers_key(run), json.dumps({"host": host, **message}))
            pipe.expire(_answers_key(run), _ANSWERS_TTL_S)
            pipe.execute()

    # ---- operators

    def hosts(self) -> list[HostView]:
        """All hosts of the last days, by name."""
        names = sorted(filter(is_host, cast("set[str]", self._redis.smembers(_INDEX_KEY))))
        drained = self.drained()
        seconds, microseconds = self._redis.time()
        now_s = seconds + microseconds / 1e6
        with self._redis.pipeline(transaction=False) as pipe:
            for name in names:
                pipe.hgetall(_host_key(name))
            rows = pipe.execute(raise_on_error=False)
        raise_others(rows)
        rows = [{} if isinstance(row, Exception) else row for row in rows]
        forgotten = [name for name, row in zip(names, rows, strict=True) if not row]
        if forgotten:
            with suppress(NoPermissionError):  # of somebody who may only read
                self._redis.srem(_INDEX_KEY, *forgotten)
        return [
            self._view(name, row, drained=name in drained, now_s=now_s)
            for name, row in zip(names, rows, strict=True)
            if row
        ]

    def job_formats(self, queue: str | None) -> dict[str, int]:
        """Return the format of jobs that each live host of the queue reads (None: of any queue), by its name."""
        return {view.name: view.job_format for view in self.hosts() if view.serves(queue)}

    def drained(self) -> set[str]:
        """The names of the hosts that are to take no jobs, known or not."""
        return cast("set[str]", self._redis.smembers(_DRAINED_KEY))

    def drain(self, host: str) -> None:
        """Let the host take no more jobs, until `undrain`; a restart of its worker changes nothing."""
        self._redis.sadd(_DRAINED_KEY, host)

    def undrain(self, host: str) -> None:
        self._redis.srem(_DRAINED_KEY, host)

    def forget(self, host: str) -> None:
        """As if it had never been: for a host whose nodes have ended and will not be back."""
        self._redis.delete(_host_key(host))
        self._redis.srem(_INDEX_KEY, host)
        self.undrain(host)

    def answers(self, run: str, hosts: Iterable[str], *, timeout_s: float) -> Iterator[Report]:
        """What the hosts answer to a run, as it comes, until all have reported or `timeout_s` seconds are over."""
        waiting = set(hosts)
        deadline = time.monotonic() + timeout_s
        while waiting and (left_s := deadline - time.monotonic()) > 0:
            # At most some seconds a call: shorter than the client's read timeout.
            popped = self._redis.blpop([_answers_key(run)], timeout=min(left_s, 5))
            if popped is None:
                continue
            message: Report = json.loads(cast("tuple[str, str]", popped)[1])
            if "report" in message:
                waiting.discard(message["host"])
            yield message

    def _view(self, name: str, row: Mapping[str, str], *, drained: bool, now_s: float) -> HostView:
        ages = {node: now_s - int(row[f"{node}_at"]) / 1000 for node in (JOBS_NODE, AGENT_NODE) if f"{node}_at" in row}
        nodes = {
            node: {**json.loads(row[node]), "beat_s": round(age_s, 1), "beat_at_ms": int(row[f"{node}_at"])}
            for node, age_s in ages.items()
            if age_s <= self._host_ttl_s and node in row
        }
        return HostView(
            name=name,
            state=_state(nodes, drained=drained),
            last_beat_s=min(ages.values(), default=None),
            nodes=nodes,
            housekeeping={kind: json.loads(row[kind]) for kind in ("cleanup", "prepull") if kind in row},
        )


def _state(nodes: Mapping[str, Report], *, drained: bool) -> HostState:
    if not nodes:
        return "gone"
    if drained:
        return "draining"
    return "unfit" if nodes.get(JOBS_NODE, {}).get("unfit") else "live"
