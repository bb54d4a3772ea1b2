"""What a Redis has done between two moments, by its own count."""

import time
from dataclasses import dataclass
from typing import Any, Self

from redis import Redis

_OWN = {"info", "config|resetstat", "config|get", "dbsize"}


@dataclass(frozen=True, kw_only=True)
class Spent:
    """`cpu_s`: of the main thread, the one that runs all commands. `commands`: how often each was called, those of
    scripts as well; `usec`: their time by kind. Bytes in and out, of memory since the start, and connections at the
    end."""

    seconds: float
    cpu_s: float
    commands: dict[str, int]
    usec: dict[str, int]
    bytes_in: int
    bytes_out: int
    memory: int
    clients: int

    @property
    def busy(self) -> float:
        """Of one core."""
        return self.cpu_s / self.seconds


class Meter:
    """Reset at its start and at each `read`."""

    def __init__(self, redis: "Redis") -> None:
        self._redis = redis
        self._reset()

    @classmethod
    def at(cls, url: str) -> Self:
        return cls(Redis.from_url(url, decode_responses=True))

    def read(self) -> Spent:
        before, began = self._before, self._began
        now: Any = self._redis.info("everything")
        spent = Spent(
            seconds=time.monotonic() - began,
            cpu_s=_cpu_s(now) - _cpu_s(before),
            commands=_delta(before, now, "calls"),
            usec=_delta(before, now, "usec"),
            bytes_in=now["total_net_input_bytes"] - before["total_net_input_bytes"],
            bytes_out=now["total_net_output_bytes"] - before["total_net_output_bytes"],
            memory=now["used_memory"] - before["used_memory"],
            clients=now["connected_clients"] - 1,
        )
        self._reset()
        return spent

    def _reset(self) -> None:
        self._before: Any = self._redis.info("everything")
        self._began = time.monotonic()


def _cpu_s(info: Any) -> float:
    return float(info["used_cpu_sys_main_thread"] + info["used_cpu_user_main_thread"])


def _delta(before: Any, now: Any, what: str) -> dict[str, int]:
    names = [name for name in now if name.startswith("cmdstat_")]
    counted = {name.removeprefix("cmdstat_"): now[name][what] - before.get(name, {}).get(what, 0) for name in names}
    return {name: count for name, count in counted.items() if count and name not in _OWN}
