"""The kinds of faults. Each function injects one fault and heals it, and tells in the `Fault` whom it has hit.

They touch only what this run has started: processes by their id, containers of its own jobs, its own Redis.
"""

import contextlib
import itertools
import re
import signal
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from random import Random

import docker
import psutil
from docker.models.containers import Container

from cronium_worker.fleet.store import record_key
from cronium_worker.tasks import execute_job
from tests.chaos.failpoint import ADOPTION_STEPS, POOL_STEPS, STEPS
from tests.chaos.fleet import LEASE_TTL_S, QUEUE, ChaosHost, Fleet, in_starter, within
from tests.chaos.history import Fault
from tests.chaos.load import Load

_REACH_S = 20
# Until its lease has lapsed, was seen lapsed for the grace, and somebody has looked.
_DEAD_S = 1.5 * LEASE_TTL_S + 3
_BRIEFLY_S = 2.0
_OUTAGE_S = (0.5, 3.5)  # shorter than a lease: what is longer, the workers of a host may be taken for gone


class NotInjected(Exception):
    """There was nothing to inject the fault into."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What faults are injected into."""

    fleet: Fleet
    load: Load
    random: Random


OnHost = Callable[[Scene, ChaosHost, Fault], None]
OnFleet = Callable[[Scene, Fault], None]


def _hit(scene: Scene, host: ChaosHost, node: str, number: int, fault: Fault) -> None:
    if within(10, lambda: host.process(node)) is None:
        raise NotInjected(f"there is no process {node}")
    fault.began = time.time()
    if not host.signal(node, number):
        raise NotInjected(f"{node} has just ended")
    fault.jobs = scene.load.on_host(host.name) if node == "jobs" else []


# ---- a host's processes


def kill_jobs(scene: Scene, host: ChaosHost, fault: Fault) -> None:
    _hit(scene, host, "jobs", signal.SIGKILL, fault)


def kill_agent(scene: Scene, host: ChaosHost, fault: Fault) -> None:
    _hit(scene, host, "agent", signal.SIGKILL, fault)


def kill_all(scene: Scene, host: ChaosHost, fault: Fault) -> None:
    fault.began = time.time()
    host.kill()
    fault.jobs = scene.load.on_host(host.name)
    host.start()


def upgrade(scene: Scene, host: ChaosHost, fault: Fault) -> None:
    _hit(scene, host, "jobs", signal.SIGTERM, fault)


def upgrade_in_a_hurry(scene: Scene, host: ChaosHost, fault: Fault) -> None:
    process = within(10, lambda: host.process("jobs"))
    _hit(scene, host, "jobs", signal.SIGTERM, fault)
    time.sleep(scene.random.uniform(0.05, 0.4))
    with contextlib.suppress(psutil.NoSuchProcess):
        process.send_signal(signal.SIGTERM)


def upgrade_host(scene: Scene, host: ChaosHost, fault: Fault) -> None:
    fault.began = time.time()
    fault.jobs = scene.load.on_host(host.name)
    if (code := host.stop()) != 0:
        fault.note = f"the supervisor ended with {code}"
    host.start()


def _frozen(seconds: float) -> OnHost:
    def freeze(scene: Scene, host: ChaosHost, fault: Fault) -> None:
        process = within(10, lambda: host.process("jobs"))
        _hit(scene, host, "jobs", signal.SIGSTOP, fault)
        try:
            time.sleep(seconds)
        finally:
            _signal([process], signal.SIGCONT)

    return freeze


def _dies_at(step: str) -> OnHost:
    def die(scene: Scene, host: ChaosHost, fault: Fault) -> None:
        file = host.arm(step)
        if step in ADOPTION_STEPS:
            # It dies twice: killed with jobs that it runs, then in the middle of adopting them.
            within(10, lambda: scene.load.on_host(host.name, statuses=("running",)))
            _hit(scene, host, "jobs", signal.SIGKILL, fault)
        reached = within(_REACH_S, lambda: not file.exists())
        if not reached:
            file.unlink(missing_ok=True)
            raise NotInjected(f"{step} was not reached")
        fault.began = fault.began or time.time()
        fault.jobs = sorted({*fault.jobs, *scene.load.on_host(host.name)})

    return die


# ---- the broker and Redis


def _members(scene: Scene) -> Iterator[str]:
    """A job in every state, in some order."""
    jobs = scene.load.open()
    scene.random.shuffle(jobs)
    return iter(jobs)


def message_twice(scene: Scene, fault: Fault) -> None:
    redis = scene.fleet.records.redis
    for job_id in itertools.islice(_members(scene), 3):
        fault.began = time.time()
        task_id, queue, priority = redis.hmget(record_key(job_id), "task_id", "queue", "priority")
        if task_id is None:
            continue
        for _ in range(2):
            execute_job._send(
                job_id, "bash", int(priority), task_id=task_id, queue=queue, add_to_parent=False, root_id=task_id
            )
        fault.jobs.append(job_id)
    if not fault.jobs:
        raise NotInjected("no job is open")


def message_deleted(scene: Scene, fault: Fault) -> None:
    redis = scene.fleet.records.redis

    def delete() -> bool:
        for priority in range(10):
            message = redis.rpop(QUEUE if priority == 0 else f"{QUEUE}:{priority}")
            if message is not None:
                fault.began = time.time()
                fault.jobs = [job for job in scene.load.open() if f"{job} bash" in message]
                return bool(fault.jobs)  # else it was one of a job that has ended
        return False

    if not within(10, delete):
        raise NotInjected("no message waits")


@contextlib.contextmanager
def _outage(scene: Scene, fault: Fault) -> Iterator[float]:
    """Everything waits for it. Gives the seconds to stay away."""
    fault.jobs = scene.load.on_host()
    fault.began = time.time()
    yield scene.random.uniform(*_OUTAGE_S)
    fault.healed = time.time()


def redis_restarted(scene: Scene, fault: Fault) -> None:
    with _outage(scene, fault):
        scene.fleet.redis.stop()
        in_starter(scene.fleet.redis.start)


def redis_killed(scene: Scene, fault: Fault) -> None:
    with _outage(scene, fault) as seconds:
        scene.fleet.redis.kill()
        time.sleep(seconds)
        in_starter(scene.fleet.redis.start)


def redis_frozen(scene: Scene, fault: Fault) -> None:
    with _outage(scene, fault) as seconds, scene.fleet.redis.frozen():
        time.sleep(seconds)


def redis_full(scene: Scene, fault: Fault) -> None:
    with _outage(scene, fault) as seconds:
        scene.fleet.redis.limit_memory(1)
        time.sleep(seconds)
        scene.fleet.redis.limit_memory(0)


def _cut(kind: str) -> OnFleet:
    def cut(scene: Scene, fault: Fault) -> None:
        with _outage(scene, fault):
            scene.fleet.records.redis.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")

    return cut


def beat_killed(scene: Scene, fault: Fault) -> None:
    """The beat that leads: the one that said so last."""
    said = {host: host.led_at() for host in scene.fleet.hosts if host.process("beat") is not None}
    leader = max(said, key=said.__getitem__, default=None)
    if leader is None or not said[leader]:
        raise NotInjected("no beat leads")
    fault.host = leader.name
    _hit(scene, leader, "beat", signal.SIGKILL, fault)
    turn = "cronium:beat:cronium.recover_lost_jobs"
    before = scene.fleet.records.redis.hget(turn, "meta")
    if within(40, lambda: scene.fleet.records.redis.hget(turn, "meta") != before):
        fault.back = time.time()


# ---- containers, by hand


def _job_of(container: Container, jobs: Collection[str]) -> str | None:
    """By its name: one that has waited for its job has no label of it."""
    name = re.fullmatch(r"cronium-([^.]+)(\.\d+)?(\.[0-9a-f]{12})?", container.name)
    return name[1] if name and name[1] in jobs else None


def _by_hand(act: Callable[[Scene, Container], None]) -> OnFleet:
    def touch(scene: Scene, fault: Fault) -> None:
        def find() -> bool:
            jobs = scene.load.on_host(statuses=("running",))
            for host in scene.random.sample(scene.fleet.hosts, len(scene.fleet.hosts)):
                with contextlib.closing(host.engine()) as client:
                    there = client.containers.list(filters={"label": f"cronium.host={host.name}"}, ignore_removed=True)
                    ours = [(container, job) for container in there if (job := _job_of(container, jobs)) is not None]
                    if not ours:
                        continue
                    container, job = scene.random.choice(ours)
                    fault.host, fault.jobs = host.name, [job]
                    fault.began = time.time()
                    try:
                        act(scene, container)
                    except docker.errors.APIError:  # it has just ended by itself
                        continue
                    return True
            return False

        fault.by_hand = True
        if not within(10, find):
            raise NotInjected("no container runs")

    return touch


def _pause(scene: Scene, container: Container) -> None:
    container.pause()
    time.sleep(scene.random.uniform(*_OUTAGE_S))
    container.unpause()


# ---- engines and whole hosts, of the rig


def _engine(*, live_restore: bool = False, kill: bool = False) -> OnHost:
    def restart(scene: Scene, host: ChaosHost, fault: Fault) -> None:
        rig = host.rig
        assert rig is not None
        within(10, lambda: scene.load.on_host(host.name, statuses=("running",)))
        fault.jobs = scene.load.on_host(host.name)
        fault.began = time.time()
        if kill:
            rig.kill_dockerd()
            time.sleep(scene.random.uniform(*_OUTAGE_S))
        in_starter(lambda: rig.restart_dockerd(live_restore=live_restore))

    return restart


def _signal(processes: Iterable[psutil.Process], number: int) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def engine_frozen(scene: Scene, host: ChaosHost, fault: Fault) -> None:
    assert host.rig is not None
    fault.jobs = scene.load.on_host(host.name)
    fault.began = time.time()
    try:
        _signal(host.rig.engine.processes(), signal.SIGSTOP)
        time.sleep(scene.random.uniform(*_OUTAGE_S))
    finally:
        _signal(host.rig.engine.processes(), signal.SIGCONT)


def host_frozen(scene: Scene, host: ChaosHost, fault: Fault) -> None:
    """Engine and workers do nothing more; containers that run go on."""
    assert host.rig is not None
    within(10, lambda: scene.load.on_host(host.name, statuses=("running",)))
    fault.began = time.time()
    try:
        _signal([*host.processes(), *host.rig.engine.processes()], signal.SIGSTOP)
        fault.jobs = scene.load.on_host(host.name)
        time.sleep(_DEAD_S)
    finally:
        _signal([*host.processes(), *host.rig.engine.processes()], signal.SIGCONT)


ON_HOST: dict[str, OnHost] = {
    "jobs node killed": kill_jobs,
    "agent killed": kill_agent,
    "host's processes killed": kill_all,
    "upgrade": upgrade,
    "upgrade, second signal": upgrade_in_a_hurry,
    "upgrade of the host": upgrade_host,
    "jobs node frozen briefly": _frozen(_BRIEFLY_S),
    "jobs node frozen, lease lapsed": _frozen(_DEAD_S),
    **{f"killed at: {step}": _dies_at(step) for step in STEPS | ADOPTION_STEPS | POOL_STEPS},
}
NEED_POOL = frozenset(f"killed at: {step}" for step in POOL_STEPS)
ON_FLEET: dict[str, OnFleet] = {
    "message sent twice": message_twice,
    "message deleted": message_deleted,
    "Redis restarted": redis_restarted,
    "Redis killed": redis_killed,
    "Redis frozen": redis_frozen,
    "Redis full": redis_full,
    "connections cut": _cut("normal"),
    "subscriptions cut": _cut("pubsub"),
    "beat killed": beat_killed,
    "container stopped": _by_hand(lambda _, container: container.stop(timeout=1)),
    "container killed": _by_hand(lambda _, container: container.kill()),
    "container removed": _by_hand(lambda _, container: container.remove(force=True)),
    "container paused": _by_hand(_pause),
}
OUTAGES = frozenset({"Redis restarted", "Redis killed", "Redis frozen", "Redis full"})
ON_ENGINE: dict[str, OnHost] = {
    "engine restarted": _engine(),
    "engine restarted, live restore": _engine(live_restore=True),
    "engine killed": _engine(kill=True),
    "engine frozen": engine_frozen,
    "host frozen": host_frozen,
}
# Through these a host can be silent for longer than a lease.
SILENT = frozenset({*ON_HOST, "host frozen"})
