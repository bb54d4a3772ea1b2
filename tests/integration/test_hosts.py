"""The registry of hosts on a real Redis."""

import threading
from collections.abc import Iterator
from uuid import uuid4

import pytest

from cronium_worker.cli import fleet, top
from cronium_worker.fleet.connections import connect
from cronium_worker.fleet.heartbeat import Heartbeat
from cronium_worker.fleet.hosts import HostRegistry, HostView
from cronium_worker.models.job import JOBS_NODE
from cronium_worker.preflight import broken_keys
from tests.conftest import wait_until

TTL_S = 0.5


@pytest.fixture
def registry(redis_url: str) -> Iterator[HostRegistry]:
    redis = connect(redis_url)
    yield HostRegistry(redis, host_ttl_s=TTL_S)
    redis.close()


@pytest.fixture
def name(registry: HostRegistry) -> Iterator[str]:
    name = f"host-{uuid4().hex[:8]}"
    yield name
    registry.undrain(name)
    registry._redis.delete(f"cronium:{{hosts}}:host:{name}")
    registry._redis.srem("cronium:{hosts}:index", name)


def view(registry: HostRegistry, name: str) -> HostView:
    return next(host for host in registry.hosts() if host.name == name)


def test_a_host_is_live_while_it_beats_and_gone_after(registry: HostRegistry, name: str) -> None:
    registry.beat(name, "jobs", {"slots": 4})
    registry.beat(name, "agent", {"engine": "20.10"})
    live = view(registry, name)
    assert (live.state, live.has_agent) == ("live", True)
    assert live.nodes["jobs"]["slots"] == 4
    assert 0 <= live.nodes["agent"]["beat_s"] < TTL_S
    gone = wait_until(lambda: (v := view(registry, name)).state == "gone" and v, timeout_s=5)
    assert gone.nodes == {}
    assert gone.last_beat_s >= TTL_S
    registry.beat(name, "jobs", {"slots": 4})
    back = view(registry, name)
    assert (back.state, back.has_agent) == ("live", False)
    assert back.last_beat_s is not None
    assert back.last_beat_s < TTL_S  # the jobs node's, though the agent has been silent for longer


def test_an_orderly_end_is_seen_at_once(registry: HostRegistry, name: str) -> None:
    registry.beat(name, "jobs", {})
    registry.leave(name, "jobs")
    left = view(registry, name)
    assert left.state == "gone"
    assert left.last_beat_s is not None


def test_a_drain_is_told_to_the_host_and_outlives_it(registry: HostRegistry, name: str) -> None:
    assert registry.beat(name, "jobs", {}) is False
    registry.drain(name)
    assert registry.beat(name, "jobs", {}) is True
    assert view(registry, name).state == "draining"
    registry._redis.delete(f"cronium:{{hosts}}:host:{name}")  # as if it had been away for a long time
    assert name not in [host.name for host in registry.hosts()]
    assert name in registry.drained()
    assert registry.beat(name, "jobs", {}) is True
    registry.undrain(name)
    assert registry.beat(name, "jobs", {}) is False


def test_want_of_room_is_a_state(registry: HostRegistry, name: str) -> None:
    registry.beat(name, "jobs", {"unfit": "/: 3 bytes are free"})
    assert view(registry, name).state == "unfit"


def test_reports_are_kept_with_the_host(registry: HostRegistry, name: str) -> None:
    registry.beat(name, "agent", {})
    registry.report(name, "cleanup", {"removed": {"containers": 2}})
    registry.report(name, "cleanup", {"removed": {"containers": 1}})
    assert view(registry, name).housekeeping == {"cleanup": {"removed": {"containers": 1}}}


def test_a_report_may_say_less_than_ours(registry: HostRegistry, name: str) -> None:
    """A node of another version, or one that has just started."""
    registry.beat(name, JOBS_NODE, {})
    host = view(registry, name)
    assert (host.queues, host.slots, host.lacks, host.serves(None), host.serves("q")) == ((), "", (), True, False)
    assert broken_keys(registry._redis) == []
    assert len(fleet._row(host)) == 10
    assert top._hosts([host]).row_count == 1


def test_answers_come_as_they_are_given_and_silent_hosts_are_not_waited_for(registry: HostRegistry) -> None:
    run = uuid4().hex

    def work() -> None:
        registry.answer(run, "a", {"progress": "half"})
        registry.answer(run, "a", {"report": {"n": 1}})
        registry.answer(run, "b", {"report": {"n": 2}})

    thread = threading.Thread(target=work)
    thread.start()
    heard = list(registry.answers(run, ["a", "b", "silent"], timeout_s=1))
    thread.join()
    assert heard == [
        {"host": "a", "progress": "half"},
        {"host": "a", "report": {"n": 1}},
        {"host": "b", "report": {"n": 2}},
    ]
    registry.answer(run, "a", {"progress": "half"})
    registry.answer(run, "a", {"report": {}})
    assert ["report" in message for message in registry.answers(run, ["a"], timeout_s=60)] == [False, True]


def test_what_nobody_asks_for_any_more_goes_by_itself(registry: HostRegistry, name: str) -> None:
    registry.beat(name, "jobs", {})
    registry.report(name, "cleanup", {})
    run = uuid4().hex
    registry.answer(run, name, {"report": {}})
    for key, longest_s in ((f"host:{name}", 7 * 24 * 3600), (f"run:{run}", 3600)):
        assert 0 < registry._redis.ttl(f"cronium:{{hosts}}:{key}") <= longest_s
    registry._redis.delete(f"cronium:{{hosts}}:host:{name}")  # when that time is over
    registry.hosts()
    assert not registry._redis.sismember("cronium:{hosts}:index", name)


def test_the_heartbeat_goes_on_after_a_failure_and_beats_when_asked() -> None:
    beats: list[int] = []
    failures: list[Exception] = [ConnectionError("away"), ValueError("a mistake of ours")]

    def beat() -> None:
        beats.append(1)
        if len(beats) > 1 and failures:
            raise failures.pop()

    heartbeat = Heartbeat(beat, every_s=60)
    heartbeat.start()
    assert len(beats) == 1
    for count in (2, 3, 4):
        heartbeat.soon()
        wait_until(lambda n=count: len(beats) == n)
    heartbeat.stop()
    assert len(beats) == 4


def test_the_heartbeat_beats_by_itself() -> None:
    beats: list[int] = []
    heartbeat = Heartbeat(lambda: beats.append(1), every_s=0.02)
    heartbeat.start()
    wait_until(lambda: len(beats) >= 3)
    heartbeat.stop()


def test_the_first_beat_must_succeed() -> None:
    def beat() -> None:
        raise ConnectionError("no Redis")

    heartbeat = Heartbeat(beat, every_s=60)
    with pytest.raises(ConnectionError, match="no Redis"):
        heartbeat.start()
    heartbeat.stop()
