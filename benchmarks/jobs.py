"""What a job costs: from enqueueing to its result, beside the engine's own calls for the same container."""

import subprocess
import tempfile
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from typing import Self
from uuid import uuid4

import docker
from docker.utils import kwargs_from_env

from benchmarks.measure import Figure, figure, timed_ms
from benchmarks.plain import plain_worker, run
from cronium_worker import execute_job
from cronium_worker.engine.device import block_device
from cronium_worker.engine.spec import NETWORK_NAME, SandboxSpec, container_config
from cronium_worker.models import Network, ScriptType
from cronium_worker.settings import get_settings
from cronium_worker.workspace import directories

ECHO = {"bash": "echo hi", "python": "print('hi')", "node": "console.log('hi')"}
TIMEOUT_S = 120
REFILL_S = 1.5
REMOVAL_S = 0.5


def image_of(script_type: ScriptType) -> str:
    client = docker.from_env()
    image = next(name for name in get_settings().images.candidates(script_type) if client.api.images(name))
    client.close()
    return image


def docker_run(rounds: int, floor: Figure) -> Figure:
    """The command line, with the same limits on the same network."""
    options = ["--rm", "--network", NETWORK_NAME, "--memory", "512m", "--cpus", "0.5"]
    command = ["docker", "run", *options, image_of("bash"), "bash", "-c", "echo hi"]
    samples = timed_ms(lambda: subprocess.run(command, check=True, capture_output=True), rounds)
    return figure("docker run of echo", "ms", samples, floor)


def plain_arguments() -> list[object]:
    """Of the plain task: the same limits on the same network."""
    options = {"network": NETWORK_NAME, "mem_limit": "512m", "nano_cpus": 500_000_000}
    return [image_of("bash"), ["bash", "-c", "echo hi"], options]


def plain_celery(rounds: int, floor: Figure) -> Figure:
    """A Celery task around the SDK's `containers.run`, with the same limits on the same network."""
    arguments = plain_arguments()
    with plain_worker() as queue:
        samples = timed_ms(lambda: run.apply_async(arguments, queue=queue).get(timeout=TIMEOUT_S), rounds)
    return figure("enqueue → result, plain Celery task", "ms", samples, floor)


class RawCycle:
    """The floor: create, attach, start, read to the end, wait, remove of a container as a job has it, but that its
    script is its command; nothing else. The network is there."""

    def __init__(self, network: Network | None = None) -> None:
        self._api = docker.APIClient(**kwargs_from_env(), version="auto", timeout=TIMEOUT_S)
        self._directory = tempfile.TemporaryDirectory(prefix="cronium-bench-")
        settings = get_settings()
        uid, gid = settings.container_uid_gid
        workspace = directories.create(Path(self._directory.name), uuid4().hex, uid=uid, gid=gid)
        spec = SandboxSpec(
            sandbox_id="none",
            script_type="bash",
            image=image_of("bash"),
            workspace=workspace.root,
            user=f"{uid}:{gid}",
            resources=settings.defaults,
            network=network or Network(),
            device=block_device(workspace.root),
        )
        config = container_config(spec, settings)
        self._config = {**config, "Entrypoint": None, "Cmd": ["bash", "-c", "echo hi"], "Labels": {}}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._api.close()
        self._directory.cleanup()

    def __call__(self) -> dict[str, float]:
        """The milliseconds of each step, and of all of them (`cycle`)."""
        at = [perf_counter()]
        container = self._api.create_container_from_config(self._config)["Id"]
        at.append(perf_counter())
        output = self._api.attach(container, stream=True)
        self._api.start(container)
        at.append(perf_counter())
        first = next(output)
        at.append(perf_counter())
        if first + b"".join(output) != b"hi\n":
            raise RuntimeError("the raw cycle lost its output")
        self._api.wait(container)
        ended = perf_counter()
        self._api.remove_container(container, force=True)
        at.append(perf_counter())
        steps = [(after - before) * 1000 for before, after in pairwise(at)]
        return {
            "create": steps[0],
            "start": steps[1],
            "first byte": steps[2],
            "remove": (at[-1] - ended) * 1000,
            "cycle": sum(steps),
        }


def raw_cycle(rounds: int) -> Figure:
    with RawCycle() as cycle:
        return figure("raw API cycle of echo (floor)", "ms", timed_ms(cycle, rounds))


def enqueue_to_result(
    language: str, queue: str, rounds: int, floor: Figure, *, warm: bool, network: str = "isolated", note: str = ""
) -> Figure:
    """`execute_job.delay(job).get()` of an echo, with default limits. `warm`: by a worker whose sandboxes wait. Between
    two rounds there is time for another one, and for its interpreter; or for the removal of the last one."""
    job = {"script": {"type": language, "content": ECHO[language]}, "queue": queue, "network": {"mode": network}}
    pause_s = REFILL_S if warm else REMOVAL_S
    samples = timed_ms(lambda: execute_job.delay(job).get(timeout=TIMEOUT_S), rounds, pause_s=pause_s)
    name = f"enqueue → result, {language} echo, {'warm' if warm else 'cold'}{note}"
    return figure(name if network == "isolated" else f"{name}, no network", "ms", samples, floor)
