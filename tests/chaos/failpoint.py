"""`cronium`, but a jobs node that dies where it is told to: `python -m tests.chaos.failpoint worker --node jobs …`.

A step is armed by a file of its name in the directory that CHAOS_FAILPOINTS names. The first call that reaches an
armed step takes the file away and kills its own process with SIGKILL. The product knows nothing of this.
"""

import functools
import importlib
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

DIRECTORY = "CHAOS_FAILPOINTS"


class Step(NamedTuple):
    """Where a worker dies: before or after a call of `name` in `module`."""

    module: str
    name: str
    after: bool = False


_EXECUTION = "cronium_worker.execution"
# In the order of a job's way.
STEPS = {
    "received": Step(f"{_EXECUTION}.runner", "Runner.run"),
    "claimed": Step("cronium_worker.fleet.store", "JobStore.claim", after=True),
    "directory made": Step("cronium_worker.workspace.directories", "create", after=True),
    "created": Step("cronium_worker.engine.client", "Engine.create", after=True),
    "attached": Step("cronium_worker.engine.client", "Engine.attach", after=True),
    "started": Step("cronium_worker.engine.client", "Engine.start", after=True),
    "announced": Step(f"{_EXECUTION}.attempt", "Attempt._announce_running", after=True),
    "staged": Step(f"{_EXECUTION}.sandbox", "stage_job", after=True),
    "marked": Step(f"{_EXECUTION}.sandbox", "Gate.open"),
    "released": Step(f"{_EXECUTION}.sandbox", "Gate.open", after=True),
    "writing log": Step("cronium_worker.fleet.writer", "LogWriter._write"),
    "log written": Step("cronium_worker.fleet.writer", "LogWriter._write", after=True),
    "exited": Step(f"{_EXECUTION}.follow", "Follower.run", after=True),
    "collecting": Step(f"{_EXECUTION}.secrecy", "JobMasker.collect"),
    "collected": Step(f"{_EXECUTION}.secrecy", "JobMasker.collect", after=True),
    "removing": Step("cronium_worker.engine.client", "Engine.remove"),
    "removed": Step("cronium_worker.engine.client", "Engine.remove", after=True),
    "cleaned up": Step(f"{_EXECUTION}.sandbox", "Sandbox.destroy", after=True),
    "finishing": Step("cronium_worker.fleet.store", "JobStore.finish"),
    "finished": Step("cronium_worker.fleet.store", "JobStore.finish", after=True),
    "result stored": Step("cronium_worker.tasks", "JobTask.after_return"),
    "giving back": Step("cronium_worker.fleet.store", "JobStore.retry"),
    "given back": Step("cronium_worker.fleet.store", "JobStore.retry", after=True),
}
# Of a job that is taken over: these need a worker that has died before.
ADOPTION_STEPS = {
    "adopting": Step("cronium_worker.fleet.store", "JobStore.adopt"),
    "adopted": Step("cronium_worker.fleet.store", "JobStore.adopt", after=True),
    "taking over": Step(f"{_EXECUTION}.sandbox", "Sandbox.take_over", after=True),
}

# Of a job that gets a sandbox that waits.
POOL_STEPS = {
    "taken": Step(f"{_EXECUTION}.pool", "Pool._take", after=True),
    "assigned": Step(f"{_EXECUTION}.sandbox", "Sandbox.assign", after=True),
    "renamed": Step("cronium_worker.engine.client", "Engine.rename", after=True),
}


def file_of(directory: Path, step: str) -> Path:
    return directory / step.replace(" ", "-")


def place(step: Step) -> tuple[Any, str]:
    """The object that has the function, and the function's name there. Raises AttributeError when there is none."""
    owner: Any = importlib.import_module(step.module)
    *path, name = step.name.split(".")
    for part in path:
        owner = getattr(owner, part)
    getattr(owner, name)
    return owner, name


def _die_if_armed(file: Path) -> None:
    if file.exists():
        with suppress(FileNotFoundError):  # another thread has come first
            file.unlink()
            os.kill(os.getpid(), signal.SIGKILL)


def _wrapped(function: Callable[..., Any], file: Path, *, after: bool) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        if not after:
            _die_if_armed(file)
        result = function(*args, **kwargs)
        if after:
            _die_if_armed(file)
        return result

    return call


def install(directory: Path) -> None:
    """Wrap the function of every step."""
    for name, step in (STEPS | ADOPTION_STEPS | POOL_STEPS).items():
        owner, attribute = place(step)
        found = vars(owner)[attribute]
        if isinstance(found, classmethod):
            setattr(owner, attribute, classmethod(_wrapped(found.__func__, file_of(directory, name), after=step.after)))
        else:
            setattr(owner, attribute, _wrapped(found, file_of(directory, name), after=step.after))


def main() -> None:
    from cronium_worker.cli.main import main as cronium

    install(Path(os.environ[DIRECTORY]))
    sys.argv[0] = "cronium"
    cronium()


if __name__ == "__main__":
    main()
