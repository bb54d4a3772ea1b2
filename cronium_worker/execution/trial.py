"""A container made as for a job, looked at, and removed: what a host cannot do shows before its first job."""

import time
from typing import NamedTuple

from cronium_worker.engine.cgroups import CpuBurst, limits
from cronium_worker.engine.images import Pulled
from cronium_worker.engine.spec import changeable_limits
from cronium_worker.execution.sandbox import Host, Sandbox, visible_pid
from cronium_worker.models import Job
from cronium_worker.policy import with_defaults

_LIMITS = ("CpuQuota", "Memory", "PidsLimit")
_FIGURES = ("cpu_seconds", "memory_peak_bytes")  # that every kernel has
_TOLERANCE = 0.01  # the kernel rounds memory to pages, systemd the CPU quota


class Trial(NamedTuple):
    """`seconds`: until the container had started. `not_in_force`: limits that the kernel has otherwise, with what was
    asked for and what it has. `unread`: limits, and figures of a job's metrics, that cannot be read from here.
    `burst_refused`: why the CPU burst cannot be set; empty: it can, or the kernel has none."""

    seconds: float
    not_in_force: dict[str, tuple[int, int]]
    unread: list[str]
    burst_refused: str


def try_container(host: Host, image: Pulled, *, network: str) -> Trial:
    """Make the container of a Bash job with the fleet's defaults. No script runs in it. Raises Fault."""
    job = Job.model_validate({"script": {"type": "bash", "content": ":"}, "network": {"mode": network}})
    job = with_defaults(job, host.settings)
    begun = time.monotonic()
    sandbox = Sandbox.create(host, job=job, attempt=1, image=image)
    try:
        seconds = time.monotonic() - begun
        asked = changeable_limits(job.resources)
        pid = visible_pid(sandbox.state().pid, sandbox.container_id)
        found = limits(pid) if pid else {}
        figures = sandbox.usage.read().model_dump()
        return Trial(
            seconds=seconds,
            not_in_force={
                name: (asked[name], value)
                for name, value in found.items()
                if abs(value - asked[name]) > _TOLERANCE * asked[name]
            },
            unread=[name for name in _LIMITS if name not in found]
            + [name for name in _FIGURES if figures[name] is None],
            burst_refused=CpuBurst.refused,
        )
    finally:
        sandbox.destroy()
