"""Clients behind Sentinel when the primary is killed, and writes that wait for replicas."""

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import pytest
from redis import Redis

from cronium_worker.errors import JobNotFound
from cronium_worker.fleet.connections import async_client, client, connect
from cronium_worker.fleet.replication import NotReplicated
from cronium_worker.fleet.store import Claim, JobStore
from cronium_worker.models import Job, JobResult
from tests.conftest import wait_until
from tests.own_redis import OwnRedis
from tests.own_sentinel import OwnSentinel


def job() -> Job:
    return Job.model_validate({"id": uuid4().hex, "script": {"type": "bash", "content": "true"}})


def register(store: JobStore, job: Job) -> bool:
    return store.register(job, task_id=job.id, queue="cronium.jobs")


class Pair:
    """A primary with one replica, which may be cut off from it."""

    def __init__(self, directory: Path) -> None:
        (directory / "1").mkdir()
        (directory / "2").mkdir()
        self.primary = OwnRedis(directory / "1", "--repl-diskless-sync-delay", "0")
        self.replica = OwnRedis(directory / "2", "--replicaof", f"127.0.0.1 {self.primary.port}")

    def link(self) -> bool:
        with self.replica.client() as redis:
            return redis.info("replication")["master_link_status"] == "up"

    def cut(self) -> None:
        """Without this its socket would keep what it does not read."""
        self.replica.freeze()
        with self.primary.client() as redis:
            redis.client_kill_filter(_type="replica")
            wait_until(lambda: redis.info("replication")["connected_slaves"] == 0, what="no replica")

    def mend(self) -> None:
        self.replica.thaw()
        wait_until(self.link, what="the replica is back")


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    pair = Pair(tmp_path_factory.mktemp("pair"))
    with pair.primary, pair.replica:
        wait_until(pair.link, what="the replica's link")
        yield pair


@pytest.fixture
def pair(servers: Pair) -> Iterator[Pair]:
    yield servers
    servers.mend()


Connect = Callable[..., JobStore]


@pytest.fixture
def store_of(pair: Pair) -> Iterator[Connect]:
    made: list[Redis] = []

    def make(*, wait_replicas: int, retries: int = 0) -> JobStore:
        made.append(connect(pair.primary.url, retries=retries))
        return JobStore(made[-1], result_ttl_s=600, wait_replicas=wait_replicas)

    yield make
    for redis in made:
        redis.close()


def test_a_job_is_accepted_when_the_replica_has_it(pair: Pair, store_of: Connect) -> None:
    store, given = store_of(wait_replicas=1), job()

    assert register(store, given)

    with pair.replica.client() as replica:
        assert replica.hget(f"cronium:job:{{{given.id}}}", "status") == "pending"


@pytest.mark.parametrize("what", ["register", "claim", "finish", "retry", "cancel"])
def test_what_no_replica_has_is_not_done(pair: Pair, store_of: Connect, what: str) -> None:
    store, given = store_of(wait_replicas=1), job()
    claim = None
    if what != "register":
        register(store, given)
    if what in ("finish", "retry"):
        claim = store.claim(given.id, host="h")
        assert isinstance(claim, Claim)
    pair.cut()

    with pytest.raises(NotReplicated, match=r"^NOREPLICAS 0 of 1 replicas have the write"):
        act(store, what, given, claim)


def act(store: JobStore, what: str, given: Job, claim: Claim | None) -> None:
    if what == "register":
        register(store, given)
    elif what == "claim":
        store.claim(given.id, host="h")
    elif what == "cancel":
        store.cancel(given.id)
    elif claim is not None and what == "finish":
        about = {"attempt": 1, "created_at": claim.created_at, "finished_at": claim.created_at}
        store.finish(claim, JobResult.model_validate({"job_id": given.id, "status": "completed", **about}), "")
    elif claim is not None:
        store.retry(claim, "again")


def test_a_write_that_is_there_already_has_to_be_on_the_replica_too(pair: Pair, store_of: Connect) -> None:
    """Given a job that no replica has; when it is registered again, over a new connection, for which the script
    writes nothing; then it is not accepted either. The replica is connected: newer servers than Redis 7.0 have nothing
    to wait for after what has written nothing, and count it."""
    given = job()
    pair.replica.freeze()
    for _ in range(2):
        with pytest.raises(NotReplicated):
            register(store_of(wait_replicas=1), given)


def test_it_is_tried_again_until_the_replica_has_it(pair: Pair, store_of: Connect) -> None:
    store, given = store_of(wait_replicas=1, retries=300), job()
    tries: list[Exception] = []
    retry = store.redis.get_retry()
    assert retry is not None

    def note(error: Exception) -> None:
        tries.append(error)
        pair.mend()

    retry._on_error = note  # type: ignore[attr-defined]
    pair.cut()

    register(store, given)

    assert {type(error) for error in tries} == {NotReplicated}
    with pair.replica.client() as replica:
        assert replica.exists(f"cronium:job:{{{given.id}}}")


def test_a_server_that_does_not_know_the_script_is_given_it(pair: Pair, store_of: Connect) -> None:
    store = store_of(wait_replicas=1)
    register(store, job())
    store.redis.script_flush()

    assert register(store, job())


def test_with_none_to_wait_for_a_job_is_accepted_at_once(pair: Pair, store_of: Connect) -> None:
    store, given = store_of(wait_replicas=0), job()
    pair.cut()

    assert register(store, given)


def test_the_end_of_a_job_that_was_written_twice_is_counted_once(pair: Pair, store_of: Connect) -> None:
    store, given = store_of(wait_replicas=1, retries=300), job()
    register(store, given)
    claim = store.claim(given.id, host="h")
    assert isinstance(claim, Claim)
    before = store.ended().get(("completed", "bash", ""), 0)
    retry = store.redis.get_retry()
    assert retry is not None
    retry._on_error = lambda _: pair.mend()  # type: ignore[attr-defined]
    pair.cut()

    act(store, "finish", given, claim)

    assert store.ended()[("completed", "bash", "")] == before + 1


# ---- Sentinel


def test_clients_go_on_with_another_primary(tmp_path: Path) -> None:
    """Store, subscription, page, beat's client and a read that waits for events, each with connections from before: all
    reach the new primary."""

    async def page(url: str, job_id: str, killed: Callable[[], object]) -> str | None:
        async with async_client(url, decode_responses=True) as redis:
            await redis.ping()
            await asyncio.to_thread(killed)
            return await redis.hget(f"cronium:job:{{{job_id}}}", "status")  # type: ignore[misc, no-any-return]

    with OwnSentinel(tmp_path, replicas=2) as servers:
        store = JobStore(connect(servers.url, retries=30), result_ttl_s=600, wait_replicas=1)
        beat = client(servers.url, decode_responses=True)
        before, after = job(), job()
        register(store, before)
        beat.ping()
        with store.cancels() as cancels, ThreadPoolExecutor(1) as viewer:
            cancels.get_message(timeout=1)
            followed = viewer.submit(lambda: [event["status"] for event in store.follow(before.id)])

            def fail_over() -> None:
                servers.wait_for_another(servers.kill_primary())

            seen_by_page = asyncio.run(page(servers.url, before.id, fail_over))

            register(store, after)
            wait_until(lambda: (beat.publish("cronium:cancel", after.id), cancels.get_message(timeout=0.1))[1])
            store.cancel(before.id)
            assert followed.result(30) == ["pending", "cancelled"]
        assert seen_by_page == "pending"
        assert store.fields(after.id)["status"] == "pending"
        store.redis.close()
        beat.close()


def test_what_replicas_never_had_is_lost_with_the_primary_and_was_not_accepted(tmp_path: Path) -> None:
    """Given replicas that are cut off; when two jobs are sent, and the primary is killed; then both are gone, but only
    whoever waits for no replica was told that his was accepted."""
    with OwnSentinel(tmp_path, replicas=2) as servers:
        redis = connect(servers.url, retries=0)
        careless = JobStore(redis, result_ttl_s=600)
        careful = JobStore(redis, result_ttl_s=600, wait_replicas=1)
        accepted, refused = job(), job()
        servers.cut_off_replicas()
        assert register(careless, accepted)
        with pytest.raises(NotReplicated):
            register(careful, refused)
        killed = servers.kill_primary()
        servers.bring_back_replicas()
        servers.wait_for_another(killed)
        patient = JobStore(connect(servers.url), result_ttl_s=600, wait_replicas=1)

        for lost in (accepted, refused):
            with pytest.raises(JobNotFound):
                patient.fields(lost.id)
        assert register(patient, refused)
        redis.close()
        patient.redis.close()
