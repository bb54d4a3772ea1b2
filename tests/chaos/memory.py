"""How much memory the workers take, at most."""

import contextlib
import threading
from types import TracebackType
from typing import Self

import psutil

from tests.chaos.fleet import Fleet
from tests.chaos.history import History

_LOOK_EVERY_S = 2.0
_NODES = ("jobs", "agent", "beat")


class Memory:
    """Looks every two seconds at the resident set of each kind of node, over all hosts."""

    def __init__(self, fleet: Fleet, history: History) -> None:
        self._fleet = fleet
        self._history = history
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def stop(self) -> None:
        self._stopped.set()
        self._thread.join(10)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def _run(self) -> None:
        while not self._stopped.wait(_LOOK_EVERY_S):
            for host in list(self._fleet.hosts):
                for node in _NODES:
                    with contextlib.suppress(psutil.Error):
                        process = host.process(node)
                        if process is not None:
                            rss = process.memory_info().rss
                            self._history.rss[node] = max(rss, self._history.rss.get(node, 0))
