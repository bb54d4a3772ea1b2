"""A node that is alive and takes nothing: after a reconnect a consumer can be left that no message reaches."""

import time
from collections.abc import Callable


class Watchdog:
    """Asked with each heartbeat. `waiting()`: how many messages there are in the node's queues."""

    def __init__(self, waiting: Callable[[], int], *, patience_s: float) -> None:
        self._waiting = waiting
        self._patience_s = patience_s
        self._taken = -1
        self._since: float | None = None

    def starves(self, *, free: bool, taken: int) -> bool:
        """Whether the node has been free to take jobs, jobs have been waiting, and it has taken none, all that for
        longer than its patience. `taken`: how many it has taken since its start."""
        if not free or taken != self._taken or self._waiting() == 0:
            self._taken, self._since = taken, None
            return False
        self._since = self._since or time.monotonic()
        return time.monotonic() - self._since > self._patience_s
