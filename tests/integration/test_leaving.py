"""A host that leaves its fleet: nothing of the fleet stays on its engine, and nobody's job is taken from them.

The host is one of the rig, as in test_firewall.py.
"""

import os
from collections.abc import Callable, Iterator

import pytest

from cronium_worker.engine.firewall import Firewall
from cronium_worker.engine.network import FIRST
from cronium_worker.errors import ConfigurationError
from cronium_worker.execution.sandbox import Host
from cronium_worker.fleet.hosts import HostRegistry
from cronium_worker.fleet.store import JobStore
from cronium_worker.leaving import leave
from cronium_worker.models.job import JOBS_NODE
from cronium_worker.workspace import create
from cronium_worker.workspace.lock import lock_host
from tests.integration.conftest import Bench
from tests.integration.fenced import fence, host, pid_of, rig_host, within
from tests.rig import RigHost

__all__ = ["fence", "host", "rig_host"]

pytestmark = pytest.mark.timeout(300)

SLEEP = {"type": "python", "content": "import time; time.sleep(120)"}


@pytest.fixture
def hosts(store: JobStore, host: Host) -> Iterator[HostRegistry]:
    """They know the host, which is drained."""
    registry = HostRegistry(store.redis, host_ttl_s=60)
    registry.beat(host.settings.host_name, JOBS_NODE, {})
    registry.drain(host.settings.host_name)
    yield registry
    registry.forget(host.settings.host_name)


def networks(host: Host) -> list[str]:
    found = host.engine.api.networks(filters={"label": f"cronium.fleet={host.settings.fleet}"})
    return [row["Name"] for row in found]


def containers(host: Host) -> list[str]:
    labels = [f"cronium.fleet={host.settings.fleet}"]
    return [row["Id"] for row in host.engine.api.containers(all=True, filters={"label": labels})]


def test_nothing_of_the_fleet_stays(
    make_bench: Callable[..., Bench],
    fence: Callable[..., Firewall],
    host: Host,
    rig_host: RigHost,
    store: JobStore,
    hosts: HostRegistry,
) -> None:
    bench = make_bench()
    fence()
    job = bench.start(script=SLEEP)
    pid_of(rig_host, job)

    with pytest.raises(ConfigurationError, match=r"1 jobs run here; let them end .*drain"):
        leave(host.engine, store, hosts, host.settings)

    assert pid_of(rig_host, job)
    assert networks(host) == [FIRST.network]
    assert FIRST.table in within(rig_host, "nft", "list", "tables")
    bench.runner.active.cancel(job.id)
    bench.settle()
    serving = lock_host(host.settings.sandboxes_path, timeout_s=0)
    assert serving is not None
    with pytest.raises(ConfigurationError, match="this host's worker runs; end it first"):
        leave(host.engine, store, hosts, host.settings)
    os.close(serving)
    create(host.settings.sandboxes_path, "left-over", uid=1000, gid=1000)

    leave(host.engine, store, hosts, host.settings)

    assert (networks(host), containers(host)) == ([], [])
    assert not host.settings.sandboxes_path.exists()
    assert FIRST.table not in within(rig_host, "nft", "list", "tables")
    assert host.settings.host_name not in {view.name for view in hosts.hosts()} | hosts.drained()
    leave(host.engine, store, hosts, host.settings)  # once more, after a call that was interrupted
