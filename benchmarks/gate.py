"""From the opening of a waiting sandbox's gate to the first byte of its script, with the product's own classes; beside
the way of a line into a plain container that waits for it, and of its answer out of that."""

import select
import time
from collections.abc import Callable
from typing import Any, get_args

from benchmarks.measure import Figure, figure
from cronium_worker.engine.image_config import ImageConfig
from cronium_worker.engine.images import first_present
from cronium_worker.execution.sandbox import Host, Kind, Sandbox
from cronium_worker.models import Job, ScriptType
from cronium_worker.nodes import make_host
from cronium_worker.settings import get_settings

# With a pause: at the end of a script its two streams end in any order.
_ECHO = {
    "bash": "echo hi; sleep 0.3",
    "python": "import time; print('hi', flush=True); time.sleep(0.3)",
    "node": "console.log('hi'); setTimeout(() => {}, 300)",
}
# Until what a start brings is over, and the launcher waits.
_SETTLED_S = 1.0
_LONGEST_S = 30


def _waiting(stream: Any) -> None:
    ready, _, _ = select.select([stream], [], [], _LONGEST_S)
    if not ready:
        raise RuntimeError("nothing came out of the container")


def _first_byte_ms(host: Host, kind: Kind) -> float:
    """The gate alone: the job's files are written before it opens."""
    sandbox = Sandbox.prepare(host, kind)
    try:
        time.sleep(_SETTLED_S)
        job = Job.model_validate(
            {
                "script": {"type": kind.script_type, "content": _ECHO[kind.script_type]},
                "resources": host.settings.defaults.model_dump(),
            }
        )
        sandbox.assign(job, attempt=1)
        opened: list[float] = []
        opens: Callable[[], None] = sandbox.gate.open

        def noted() -> None:
            opened.append(time.perf_counter())
            opens()

        sandbox.gate.open = noted  # type: ignore[method-assign]
        sandbox.release(job, attempt=1)
        assert sandbox.stream is not None
        chunks: list[Any] = []
        while not chunks:
            _waiting(sandbox.stream)
            chunks = sandbox.stream.read()
        ms = (time.perf_counter() - opened[0]) * 1000
        if not chunks[0][1].startswith(b"hi"):
            raise RuntimeError(f"the container says {chunks[0][1]!r}")
        return ms
    finally:
        sandbox.destroy()


def _answer_ms(host: Host, image: str) -> float:
    """A line to a waiting Bash on its standard input, and what it prints then: both by the engine."""
    api = host.engine.api
    container = api.create_container(image, ["bash", "-c", "read line; echo hi"], stdin_open=True)["Id"]
    try:
        stream = api.attach_socket(container, params={"stdin": 1, "stdout": 1, "stream": 1})
        socket = stream._sock
        api.start(container)
        time.sleep(_SETTLED_S)
        began = time.perf_counter()
        socket.sendall(b"go\n")
        _waiting(socket)
        ms = (time.perf_counter() - began) * 1000
        socket.close()
        return ms
    finally:
        api.remove_container(container, force=True)


def gate(rounds: int = 30) -> list[Figure]:
    """Of each type of script whose image is here. No worker may be running on this host."""
    settings = get_settings().model_copy(update={"host_name": f"{get_settings().host_name}-gate"})
    host = make_host(settings)
    found: list[Figure] = []
    try:
        for script_type in get_args(ScriptType):
            candidates = [settings.registry.resolve(name) for name in settings.images.candidates(script_type)]
            image = first_present(host.engine, candidates)
            if image is None:
                continue
            if not found:
                floor = [_answer_ms(host, image[0]) for _ in range(rounds)]
                found.append(figure("a line to a waiting container → first byte (floor)", "ms", floor))
            kind = Kind(script_type=script_type, image=image[0], image_id=image[1], image_config=ImageConfig())
            _first_byte_ms(host, kind)  # it may read the image from disk
            samples = [_first_byte_ms(host, kind) for _ in range(rounds)]
            found.append(figure(f"gate → first byte, {script_type}", "ms", samples, found[0]))
    finally:
        host.engine.close()
    return found
