"""A fleet of containers by pytest-celery: Redis, and two workers on this machine's Docker Engine.

The fixtures' names are the plugin's; what is not overridden here it adds itself. It would have a test for each
kind of broker and backend that is installed: so the clusters are overridden, too.
"""

import os
from collections.abc import Iterator
from typing import Any

import docker
import pytest
from pytest_celery import (
    CeleryBrokerCluster,
    CeleryTestWorker,
    CeleryWorkerCluster,
    CeleryWorkerContainer,
    RedisContainer,
    RedisTestBroker,
)
from pytest_docker_tools import container, fxtr

from cronium_worker.fleet.connections import connect
from cronium_worker.fleet.store import JobStore
from cronium_worker.settings import Settings
from tests.conftest import Leftovers, wait_until
from tests.system.celery_fleet import images

_SOCKET = "/var/run/docker.sock"
# The first worker sees the processes of its host, as with deploy/compose.yaml; the second one does not.
_OPTIONS = {
    "entrypoint": ["tini", "--"],
    "command": ["cronium", "worker", "--concurrency", "1"],
    "network": "{default_pytest_celery_network.name}",
    "environment": fxtr("worker_environment"),
    "timeout": 60,
}


class Broker(RedisContainer):  # type: ignore[misc]
    """Reached by the address that the plugin tells for it, also from tests that run in a container themselves."""

    @property
    def host_url(self) -> str:
        address, port = self.get_addr("6379/tcp")
        return f"redis://{address}:{port}/0"


class Worker(CeleryWorkerContainer):  # type: ignore[misc]
    """Ready when its node for jobs is."""

    @property
    def host(self) -> str:
        return str(self.attrs["Config"]["Hostname"])

    @property
    def ready_prompt(self) -> str:
        return f"jobs@{self.host} ready."


default_redis_broker = container(
    image=fxtr("default_redis_broker_image"),
    ports=fxtr("default_redis_broker_ports"),
    command=fxtr("default_redis_broker_command"),
    network="{default_pytest_celery_network.name}",
    wrapper_class=Broker,
    timeout=60,
)
first_worker = container(
    image=fxtr("worker_image"),
    hostname="celery-fleet-1",
    pid_mode="host",
    cgroupns="host",
    volumes=fxtr("first_worker_volumes"),
    wrapper_class=Worker,
    **_OPTIONS,
)
second_worker = container(
    image=fxtr("worker_image"),
    hostname="celery-fleet-2",
    volumes=fxtr("worker_volumes"),
    wrapper_class=Worker,
    **_OPTIONS,
)


@pytest.fixture(scope="session")
def docker_client() -> Iterator[docker.DockerClient]:
    """The plugin's does not close its connections."""
    client = docker.from_env()
    yield client
    client.close()


@pytest.fixture(scope="session")
def worker_image(docker_client: docker.DockerClient, tmp_path_factory: pytest.TempPathFactory) -> str:
    return images.worker_image(docker_client, tmp_path_factory.mktemp("wheels"))


@pytest.fixture(scope="session")
def default_redis_broker_image(docker_client: docker.DockerClient) -> str:
    return images.redis_image(docker_client)


@pytest.fixture
def worker_volumes(settings: Settings) -> dict[str, dict[str, str]]:
    """The engine looks for the jobs' files under the path that the worker names: it is one on both sides."""
    socket = os.environ.get("DOCKER_HOST", "").removeprefix("unix://") or _SOCKET
    base = str(settings.base_path)
    return {socket: {"bind": _SOCKET, "mode": "rw"}, base: {"bind": base, "mode": "rw"}}


@pytest.fixture
def first_worker_volumes(worker_volumes: dict[str, dict[str, str]]) -> dict[str, dict[str, str]]:
    return worker_volumes | {"/sys/fs/cgroup": {"bind": "/sys/fs/cgroup", "mode": "ro"}}


@pytest.fixture
def worker_environment(settings: Settings, default_redis_broker: Broker) -> dict[str, str]:
    """The name of a host is that of its container."""
    return {
        "CRONIUM_REDIS_URL": default_redis_broker.url,
        "CRONIUM_FLEET": settings.fleet,
        "CRONIUM_BASE_PATH": str(settings.base_path),
        "CRONIUM_POOL__SIZE": os.environ["CRONIUM_POOL__SIZE"],
    }


@pytest.fixture
def celery_broker_cluster(default_redis_broker: Broker) -> Iterator[CeleryBrokerCluster]:
    cluster = CeleryBrokerCluster(RedisTestBroker(default_redis_broker))
    yield cluster
    cluster.teardown()


@pytest.fixture
def celery_backend_cluster() -> None:
    """Results are in the broker's Redis."""


@pytest.fixture
def celery_worker_cluster(
    first_worker: Worker, second_worker: Worker, celery_setup_app: Any
) -> Iterator[CeleryWorkerCluster]:
    nodes = [CeleryTestWorker(worker, app=celery_setup_app) for worker in (first_worker, second_worker)]
    cluster = CeleryWorkerCluster(*nodes)
    yield cluster
    cluster.teardown()


@pytest.fixture
def store(default_redis_broker: Broker, leftovers: Leftovers) -> Iterator[JobStore]:
    """Of this fleet's Redis, which is gone after the test. Its jobs may leave nothing."""
    redis = connect(default_redis_broker.host_url)
    yield JobStore(redis, result_ttl_s=600)
    redis.close()
    try:
        wait_until(lambda: not leftovers(), what="the jobs' containers are gone")
    finally:
        # The workers of a test that failed are about to go: nobody else would remove their containers.
        leftovers.must_be_none()
