"""Injects faults, one after the other on each host and one after the other on what the hosts share."""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from random import Random

import pytest

from tests.chaos.fleet import ChaosHost, Fleet, within
from tests.chaos.history import Fault, History
from tests.chaos.kinds import ON_ENGINE, ON_FLEET, ON_HOST, OUTAGES, NotInjected, Scene
from tests.chaos.load import Load

_BACK_S = 120
_HEARD_S = 15
_BUSY_S = 4  # a host takes jobs again within that, and a fault without jobs shows little
_BEAT_ERROR_S = 0.2
_TRIES = 3
_PAUSE_S = (0.1, 0.8)
_PAUSE_SHARED_S = (0.5, 3.0)


def deck(kinds: Iterable[str], count: int, random: Random) -> list[str]:
    """`count` kinds in some order: each as often as any other, but for one."""
    kinds = sorted(kinds)
    cards: list[str] = []
    while len(cards) < count:
        cards += random.sample(kinds, min(len(kinds), count - len(cards)))
    return cards


class Nemesis:
    """`run` returns when all has been injected and healed, or the time is over."""

    def __init__(self, fleet: Fleet, load: Load, history: History, *, say: Callable[[str], None]) -> None:
        self._fleet = fleet
        self._load = load
        self._history = history
        self._say = say
        self._give_up_at = float("inf")

    def run(self, cards: Sequence[str], *, hosts: Sequence[ChaosHost], timeout_s: float) -> None:
        self._give_up_at = time.monotonic() + timeout_s
        within(_HEARD_S, lambda: len(self._load.on_host(statuses=("running",))) >= len(hosts))
        shared = [card for card in cards if card in ON_FLEET]
        of_hosts = [card for card in cards if card not in ON_FLEET]
        threads = [threading.Thread(target=self._on_fleet, args=(shared,), name="nemesis", daemon=True)]
        for number, host in enumerate(hosts):
            mine = of_hosts[number :: len(hosts)]
            threads.append(
                threading.Thread(target=self._on_host, args=(host, mine), name=f"nemesis {number}", daemon=True)
            )
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout_s + _BACK_S)

    def _on_fleet(self, cards: Sequence[str]) -> None:
        scene = self._scene("fleet")

        def inject(kind: str, fault: Fault) -> None:
            ON_FLEET[kind](scene, fault)
            if kind in OUTAGES:
                # Two outages with no beat between are one, that is longer than a lease.
                within(_HEARD_S, lambda: all(map(self._heard_since(fault.healed), self._fleet.hosts)))

        self._deal(cards, scene, inject, pause_s=_PAUSE_SHARED_S)

    def _heard_since(self, at: float) -> Callable[[ChaosHost], bool]:
        return lambda host: self._fleet.records.beat_at(host.name, "jobs") > at + _BEAT_ERROR_S

    def _on_host(self, host: ChaosHost, cards: Sequence[str]) -> None:
        scene = self._scene(host.name)

        def inject(kind: str, fault: Fault) -> None:
            fault.host = host.name
            within(_BUSY_S, lambda: self._load.on_host(host.name, statuses=("running",)))
            (ON_HOST | ON_ENGINE)[kind](scene, host, fault)
            fault.healed = fault.healed or time.time()
            self._await_back(host, "agent" if kind == "agent killed" else "jobs", fault)

        self._deal(cards, scene, inject, pause_s=_PAUSE_S)

    def _scene(self, name: str) -> Scene:
        random = Random(f"{self._history.seed} {name.rpartition('-')[2]}")
        return Scene(fleet=self._fleet, load=self._load, random=random)

    def _await_back(self, host: ChaosHost, node: str, fault: Fault) -> None:
        """A node is back when it has been heard since it was started or healed, whichever process it is."""

        def heard() -> bool:
            process = host.process(node)
            return process is not None and self._fleet.records.beat_at(host.name, node) > (
                max(fault.began, fault.healed, process.create_time()) + _BEAT_ERROR_S
            )

        if within(_BACK_S, heard):
            fault.back = time.time()
        else:
            self._history.troubles.append(f"{fault.kind}: {node} of {host.name} did not come back in {_BACK_S} s")

    def _deal(
        self,
        cards: Sequence[str],
        scene: Scene,
        inject: Callable[[str, Fault], None],
        *,
        pause_s: tuple[float, float],
    ) -> None:
        queue = deque((card, 1) for card in cards)
        while queue and time.monotonic() < self._give_up_at:
            kind, tries = queue.popleft()
            fault = Fault(kind=kind)
            try:
                inject(kind, fault)
            except NotInjected as reason:
                self._say(f"{kind}: not injected: {reason}")
                if tries < _TRIES:
                    queue.append((kind, tries + 1))
                continue
            except (Exception, pytest.fail.Exception) as error:  # noqa: BLE001 - the next fault must come whatever it is
                self._history.troubles.append(f"{kind}: {type(error).__name__}: {error}")
                fault.note = f"{type(error).__name__}"
            fault.began = fault.began or time.time()
            fault.healed = fault.healed or time.time()
            self._history.faults.append(fault)
            self._say(f"{len(self._history.faults)}. {kind} on {fault.host or 'the fleet'}, {len(fault.jobs)} jobs")
            time.sleep(scene.random.uniform(*pause_s))
