"""What housekeeping costs: a sweep of many orphans, and an image on all hosts, each beside the plain calls."""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from uuid import uuid4

from benchmarks.measure import Figure, figure
from cronium_worker.engine.client import Engine
from cronium_worker.engine.image_config import CONTROL_DIRECTORY
from cronium_worker.janitor import Janitor
from cronium_worker.settings import get_settings
from cronium_worker.tasks import make_store
from cronium_worker.workspace import create
from tests.conftest import wait_until
from tests.registry import push_image, running_registry
from tests.rig import Rig

_MB = 1_000_000


def sweep_orphans(count: int) -> tuple[Figure, Figure]:
    """Containers with their workspaces that nobody claims; beside one removal call after the other for as many."""
    settings = get_settings().model_copy(update={"host_name": f"bench-{uuid4().hex[:8]}", "orphan_retention": 0})
    engine = Engine()
    image = next(name for name in settings.images.candidates("bash") if engine.api.images(name))

    def plant(*, workspaces: bool) -> list[str]:
        ids = []
        for _ in range(count):
            sandbox = uuid4().hex
            labels = {"fleet": settings.fleet, "host": settings.host_name, "sandbox": sandbox}
            config = {"Image": image, "Labels": {f"cronium.{name}": value for name, value in labels.items()}}
            if workspaces:
                control = create(settings.sandboxes_path, sandbox, uid=1000, gid=1000).control
                config["HostConfig"] = {"Binds": [f"{control}:{CONTROL_DIRECTORY}:ro"]}
            ids.append(engine.api.create_container_from_config(config)["Id"])
        return ids

    ids = plant(workspaces=False)
    started = perf_counter()
    for container in ids:
        engine.api.remove_container(container, v=True, force=True)
    floor = figure(f"remove {count} containers by plain calls (floor)", "s", [perf_counter() - started])

    plant(workspaces=True)
    started = perf_counter()
    sweep = Janitor(engine, make_store(), settings).sweep()
    seconds = perf_counter() - started
    if (len(sweep.removed["containers"]), len(sweep.removed["workspaces"])) != (count, count):
        raise RuntimeError(f"the sweep left something: {sweep.report()}")
    engine.close()
    return floor, figure(f"sweep of {count} orphans with workspaces", "s", [seconds], floor)


@contextmanager
def _two_hosts() -> Iterator[Rig]:
    settings = get_settings()
    rig = Rig(redis_url=settings.redis_url.get_secret_value(), fleet=f"{settings.fleet}-bench").start()
    try:
        yield rig
    finally:
        rig.stop()


def pull_to_all_hosts(rounds: int, megabytes: int) -> tuple[Figure, Figure]:
    """`cronium images pull` from the command to the last of two hosts' reports, beside one `docker pull` of an
    image of the same size. Both with the command's own start; the two engines share this machine."""
    plain, ours = [], []
    with (
        tempfile.TemporaryDirectory() as directory,
        _two_hosts() as rig,
        running_registry(Path(directory), host=rig.address) as registry,
    ):
        names = [f"bench/{number}:1" for number in range(rounds)]
        references = [registry.reference(name) for name in names]
        for name in names:
            push_image(rig.a.client.api, registry, name, size=megabytes * _MB)
        for host in rig.hosts:
            host.start_worker(queues="none", node="agent", CRONIUM_ALLOWED_IMAGES=json.dumps(references))
            # What its start brings is not measured.
            for reference in references:
                wait_until(lambda engine=host.client, name=reference: engine.images.list(name=name), timeout_s=60)
                host.client.images.remove(reference, force=True)
        for reference in references:
            started = perf_counter()
            subprocess.run(
                ["docker", "--host", rig.a.engine.url, "pull", "--quiet", reference],
                check=True,
                stdout=subprocess.DEVNULL,
            )
            plain.append(perf_counter() - started)
            rig.a.client.images.remove(reference, force=True)
            started = perf_counter()
            subprocess.run(
                [str(Path(sys.executable).parent / "cronium"), "images", "pull", reference],
                check=True, env=rig.a.env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            ours.append(perf_counter() - started)
    floor = figure(f"docker pull of {megabytes} MB (floor)", "s", plain)
    return floor, figure("images pull → last report of two hosts", "s", ours, floor)
