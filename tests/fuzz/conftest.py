"""The places that the properties need."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from cronium_worker.fleet.connections import connect
from cronium_worker.fleet.store import JobStore
from tests.own_redis import OwnRedis


@pytest.fixture(scope="session")
def store() -> Iterator[JobStore]:
    """In a Redis of its own: what is registered here is nobody's to send or to run."""
    with (
        tempfile.TemporaryDirectory() as directory,
        OwnRedis(Path(directory), "--appendonly", "no") as redis,
        connect(redis.url) as client,
    ):
        yield JobStore(client, result_ttl_s=600)


@pytest.fixture(scope="session")
def directory() -> Iterator[Path]:
    """In memory, where there is a file system for that."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None, prefix="fuzz-") as name:
        yield Path(name)
