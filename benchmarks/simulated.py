"""Hosts without an engine, for the load model: `python -m benchmarks.simulated NAME COUNT [SLOTS]`.

Each host is what a real one is towards Redis: Celery's own consumer for both of its nodes (queues, remote control,
heartbeat and task events), the task with its result, claims, log writer, leases, beats, cancels. Only its sandboxes
are timers: a job takes the seconds and prints the lines that its metadata say. Many hosts share one process, its event
loop, its result backend and its connections for sending; what else differs from a real node is in docs/scaling.md.

Prints "ready" once all of them have reported, and goes on until it is told to end.
"""

import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from uuid import uuid4

from celery.app.trace import setup_worker_optimizations
from celery.concurrency.thread import TaskPool
from celery.worker import state as worker_state
from kombu.asynchronous import Hub, set_event_loop

from cronium_worker.app import app
from cronium_worker.consumers import EagerConsumer
from cronium_worker.execution.signals import ActiveJobs, CancelToken
from cronium_worker.fleet.cancels import CancelListener
from cronium_worker.fleet.connections import connect
from cronium_worker.fleet.events import metrics_body, now_iso, status_body
from cronium_worker.fleet.heartbeat import Heartbeat
from cronium_worker.fleet.hosts import HostRegistry
from cronium_worker.fleet.oversight import Oversight
from cronium_worker.fleet.store import Claim, JobStore, Outcome
from cronium_worker.fleet.writer import LogWriter
from cronium_worker.housekeeping import waiting_messages
from cronium_worker.models import JobResult, LogSummary, Metrics, Timings
from cronium_worker.models.job import AGENT_NODE, JOBS_NODE
from cronium_worker.models.queues import DEFAULT_QUEUE, FLEET_QUEUE, HOST_QUEUE_PREFIX
from cronium_worker.policy import admit
from cronium_worker.settings import get_settings
from cronium_worker.tasks import make_store
from cronium_worker.watchdog import Watchdog

_BEATS = 6  # in the life of a lease, as `nodes` has it
_REDIS_RETRIES = 300
_IMAGE = "cronium/runner:bash-debian"
_LINE = "a line of a job that has something to say, {}\n"
_here = threading.local()  # the host whose task this thread runs


class TimedRunner:
    """`execution.runner.Runner`, with a timer in the place of the attempt's sandbox."""

    def __init__(self, host: str, node: str, store: JobStore) -> None:
        self._host, self._node, self._store = host, node, store
        self._claims: dict[str, Claim] = {}
        self.newest_taken: dict[tuple[str, int], int] = {}
        self.taken = 0
        self.active = ActiveJobs()

    def renew_leases(self) -> None:
        if claims := list(self._claims.copy().values()):
            self._store.renew(claims)

    def run(self, job_id: str) -> JobResult | Outcome:
        claim = self._store.claim(job_id, host=self._host, node=self._node)
        if claim == "finished":
            return self._store.result(job_id) or "missing"
        if not isinstance(claim, Claim):
            return claim
        key = (claim.job.queue or DEFAULT_QUEUE, claim.job.priority)
        self.taken += 1
        self.newest_taken[key] = max(claim.sent_at_ms, self.newest_taken.get(key, 0))
        token = self.active.add(job_id)
        self._claims[job_id] = claim
        try:
            result = self._attempt(claim, token)
            self._store.finish(claim, result, result.status)
            return result
        finally:
            self.active.discard(job_id)
            self._claims.pop(job_id, None)

    def _attempt(self, claim: Claim, token: CancelToken) -> JobResult:
        job = admit(claim.job, get_settings())
        started_at = now_iso()
        body = status_body("running", f"running in {_IMAGE}", attempt=claim.attempt, host=claim.host)
        self._store.write(claim, [body], {"status": "running", "started_at": started_at, "image": _IMAGE})
        seconds, lines = float(job.metadata["seconds"]), int(job.metadata["lines"])
        written = self._print(claim, token, seconds, lines)
        return JobResult(
            job_id=job.id,
            status="cancelled" if token.cancelled() else "completed",
            exit_code=0,
            metrics=_METRICS,
            log=LogSummary(bytes=written, lines=lines),
            attempt=claim.attempt,
            host=claim.host,
            image=_IMAGE,
            created_at=claim.created_at,
            started_at=started_at,
            finished_at=now_iso(),
            timings=Timings(queue_s=0.001, setup_s=0.001, run_s=seconds, collect_s=0.001),
        )

    def _print(self, claim: Claim, token: CancelToken, seconds: float, lines: int) -> int:
        """As a script with a pause after each line; a sample of what it uses now and then. Characters printed."""
        settings = get_settings()
        began, sample_at = time.monotonic(), settings.metrics_interval or float("inf")
        position = 0
        writer = LogWriter(
            self._store,
            claim,
            chunk=settings.log.chunk_bytes,
            max_bytes=settings.log.max_bytes,
            on_room=lambda: None,
        )
        for number in range(max(1, lines)):
            if lines:
                text = _LINE.format(number)
                position += len(text)
                writer.put("stdout", text, offset=position)
            until = seconds * (number + 1) / max(1, lines)
            while (now := time.monotonic() - began) < until and not token.cancelled():
                if now >= sample_at:
                    sample_at += settings.metrics_interval
                    writer.put_sample(metrics_body({"cpu_percent": 1.0, **_METRICS.model_dump()}))
                time.sleep(max(0.0, min(until, sample_at) - now))
        writer.close()
        return position


_METRICS = Metrics(
    cpu_seconds=0.012345, memory_peak_bytes=1_234_567, pids_peak=3, network_rx_bytes=1234, network_tx_bytes=0,
    disk_read_bytes=0, disk_write_bytes=12_345,
)  # fmt: skip


class _Pool(TaskPool):
    """Celery's threads, each of which knows its host."""

    def __init__(self, host: "SimulatedHost", slots: int, done: Callable[[], None]) -> None:
        super().__init__(limit=slots, app=app)
        self._host, self._done = host, done

    def on_apply(self, target: Any, *args: Any, **options: Any) -> Any:
        return super().on_apply(partial(self._run, target), *args, **options)

    def _run(self, target: Any, *args: Any, **options: Any) -> Any:
        _here.host = self._host
        try:
            return target(*args, **options)
        finally:
            self._done()


class _Consumer(EagerConsumer):
    """Celery's consumer as a part of an event loop of many. `node`: whose it is."""

    def __init__(self, node: "Node", **options: Any) -> None:
        self._node = node
        self.loop = self._join_loop
        super().__init__(**options)

    def connect(self) -> Any:
        """With a look at the connection only when there is a reason, not in every turn of the loop: there are too
        many. What is sent is the same."""
        hub, connection = self.hub, self.connection_for_read(heartbeat=self.amqheartbeat)
        transport, before = connection.transport, set(hub.on_tick)
        on_readable = transport.on_readable

        def read(descriptor: int) -> None:
            try:
                on_readable(descriptor)  # raises Empty when nothing came
            finally:
                self._node.look()

        transport.on_readable = read
        transport.register_with_event_loop(connection.connection, hub)
        (self.poll_start,) = hub.on_tick - before
        hub.on_tick.discard(self.poll_start)
        return connection

    def _join_loop(self, *_: Any) -> None:
        """What Celery's `asynloop` does before its loop."""
        self.task_consumer.on_message = self.create_task_handler()
        self.register_with_event_loop(self.hub)
        self.task_consumer.consume()
        # `worker_disable_prefetch`, which counts the tasks of the process.
        qos = self.task_consumer.channel.qos
        qos.can_consume = lambda: self._node.has_room() and type(qos).can_consume(qos)
        self.on_ready()
        self._node.look()


class Node:
    """One of a host's two nodes, as Celery's worker has it."""

    use_eventloop = True
    max_concurrency = semaphore = None
    state = worker_state

    def __init__(self, host: "SimulatedHost", kind: str, queues: Sequence[str], *, slots: int, loop: "Loop") -> None:
        self._loop, self.concurrency = loop, slots
        self._running = 0
        self._lock = threading.Lock()
        self.pool = _Pool(host, slots, self._done)
        self.pool.start()
        app.amqp.queues.select(queues)
        self.consumer = _Consumer(
            self,
            on_task_request=self._take,
            hostname=f"{kind}@{host.name}",
            pool=self.pool,
            app=app,
            timer=loop.hub.timer,
            controller=self,
            hub=loop.hub,
            initial_prefetch_count=slots,
            # As `worker` starts them; without the second that each would wait for the others' answers at its start.
            worker_options={"without_gossip": True, "without_mingle": True, "task_events": True},
        )
        self.consumer.blueprint.start(self.consumer)

    def has_room(self) -> bool:
        return self._running < self.concurrency

    def _take(self, request: Any) -> None:
        with self._lock:
            self._running += 1
        request.execute_using_pool(self.pool)

    def _done(self) -> None:
        with self._lock:
            self._running -= 1
        self._loop.hub.call_soon(self.look)

    def look(self) -> None:
        self._loop.due.add(self)

    def poll(self) -> None:
        self.consumer.poll_start()


class _Hub(Hub):
    def fire_timers(self, **options: Any) -> Any:
        """All that are due: kombu's ten in a turn are enough for one node."""
        return super().fire_timers(max_timers=10_000, **options)


class Loop:
    """The event loop of all nodes of this process."""

    def __init__(self) -> None:
        self.hub = _Hub()
        set_event_loop(self.hub)
        self.due: set[Node] = set()
        self.hub.on_tick.add(self._poll)

    def _poll(self) -> None:
        due, self.due = self.due, set()
        for node in due:
            node.poll()


class SimulatedHost:
    """`agent`: what a real one's agent is to the tasks of housekeeping, without an engine."""

    def __init__(self, name: str, *, slots: int, loop: Loop) -> None:
        settings = get_settings()
        self.name = name
        self._slots = slots
        self._node_id = uuid4().hex
        url = settings.redis_url.get_secret_value()
        self._registry = HostRegistry(connect(url), host_ttl_s=settings.lease_ttl)
        self._agent_registry = HostRegistry(connect(url), host_ttl_s=settings.lease_ttl)
        self._oversight = Oversight(make_store())
        store = make_store(retries=_REDIS_RETRIES)
        self.runner = TimedRunner(name, self._node_id, store)
        self._listener = CancelListener(store, active=self.runner.active.ids, cancel=self.runner.active.cancel)
        self._watchdog = Watchdog(lambda: waiting_messages(DEFAULT_QUEUE), patience_s=2 * settings.lease_ttl)
        self._listener.start()
        every_s = settings.lease_ttl / _BEATS
        self._beats = [
            Heartbeat(beat, every_s=every_s) for beat in (self._beat_jobs, self.runner.renew_leases, self._beat_agent)
        ]
        self._beats[1].start()
        self._nodes = [Node(self, JOBS_NODE, [DEFAULT_QUEUE], slots=slots, loop=loop)]
        self._beats[0].start()
        self._nodes.append(Node(self, AGENT_NODE, [HOST_QUEUE_PREFIX + name, FLEET_QUEUE], slots=slots, loop=loop))
        self._beats[2].start()

    def _beat_jobs(self) -> None:
        running = len(self.runner.active.ids())
        report = _REPORT | {
            "node": self._node_id,
            "pid": os.getpid(),
            "slots": self._slots,
            "running": running,
        }
        self._registry.beat(self.name, JOBS_NODE, report)
        self._oversight.note_taken(self.runner.newest_taken.copy())
        self._watchdog.starves(free=running < self._slots, taken=self.runner.taken)

    def _beat_agent(self) -> None:
        self._agent_registry.beat(self.name, AGENT_NODE, _FACTS)

    # ---- what the tasks of housekeeping call

    def cleanup(self, *, run: str | None = None, dry_run: bool = False) -> None:
        self._agent_registry.report(self.name, "cleanup", {"at": now_iso(), "seconds": 0.1})

    def prepull(self, references: Sequence[str] | None = None, *, run: str | None = None) -> None:
        self._agent_registry.report(self.name, "prepull", {"at": now_iso(), "seconds": 0.1})


_REPORT = {
    "fleet": "model", "version": "0.1.0", "queues": [DEFAULT_QUEUE], "taking_jobs": True, "stopping": False,
    "unfit": "", "pool": {"waiting": 3, "leaving": 0, "hits": 0, "misses": 0, "age_s": 1.0},
    "free_bytes": {"/var/lib/cronium": 10**11, "/var/lib/docker": 10**11},
}  # fmt: skip
_FACTS = {
    "fleet": "model", "version": "0.1.0", "engine": "20.10.24+dfsg1", "cgroup": "1", "cpus": 8, "memory": 2**35,
    "root": "/var/lib/docker",
    "images": {f"cronium/runner:{kind}-debian": f"sha256:{'0' * 64}" for kind in ("bash", "python", "node")},
}  # fmt: skip


class _Here:
    """The runner and the agent of the host whose task a thread runs: there is one application for all."""

    def run(self, job_id: str) -> Any:
        return _here.host.runner.run(job_id)

    def cleanup(self, **options: Any) -> None:
        _here.host.cleanup(**options)

    def prepull(self, *arguments: Any, **options: Any) -> None:
        _here.host.prepull(*arguments, **options)


def main(name: str, count: int, slots: int) -> None:
    logging.basicConfig(level=logging.WARNING)
    setup_worker_optimizations(app, name)
    app.loader.init_worker()
    app.runner = app.agent = _Here()
    app.beat_soon = lambda: None
    loop = Loop()
    hosts: list[SimulatedHost] = []

    def add() -> None:
        """One in a turn of the loop: those that are there must not wait."""
        if len(hosts) < count:
            hosts.append(SimulatedHost(f"{name}-{len(hosts)}", slots=slots, loop=loop))
            loop.hub.call_soon(add)
        else:
            sys.stdout.write("ready\n")
            sys.stdout.flush()

    loop.hub.call_soon(add)
    loop.hub.run_forever()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 8)
