"""`make chaos`: faults into a fleet under load, then a judgement. `--help` tells the options.

Exit code 0: nothing was lost, nothing came twice, and every double run has its cause. 1: something was. Whatever
was started is gone at the end.
"""

import argparse
import os
import pickle
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from random import Random
from types import FrameType

from tests.chaos.checker import check
from tests.chaos.fleet import ChaosHost, Fleet
from tests.chaos.history import History
from tests.chaos.kinds import NEED_POOL, ON_ENGINE, ON_FLEET, ON_HOST
from tests.chaos.load import Load
from tests.chaos.memory import Memory
from tests.chaos.nemesis import Nemesis, deck
from tests.chaos.report import show, write
from tests.chaos.settle import collect, settle, sweep
from tests.chaos.witness import Witness
from tests.rig import Rig, runner_image

RESULTS = Path("benchmarks/results/chaos.json")
LOGS = "logs"
KEPT = Path("var/chaos")
_HOSTS = 2
# A fault costs about two seconds of a run; what is beyond is a hang.
_LONGEST_FAULT_S = 30
# An engine that is away is waited for for two minutes.
_SETTLE_S, _SETTLE_ENGINES_S = 100, 240


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="of jobs and faults; the order of things is not in it")
    parser.add_argument("--faults", type=int, default=320, help="how many, over all kinds")
    parser.add_argument("--kinds", help="only these, by names or parts of them, with commas between")
    parser.add_argument("--outstanding", type=int, default=12, help="jobs that are accepted and not finished")
    parser.add_argument("--pool", type=int, default=0, help="sandboxes that wait on each host")
    parser.add_argument("--no-engines", action="store_true", help="no engines of its own, so none of their faults")
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--keep", action="store_true", help="keep the workers' logs also when nothing was wrong")
    parser.add_argument("--list", action="store_true", help="print the kinds of faults")
    return parser.parse_args()


def chosen(names: str | None, *, engines: bool, pool: bool) -> list[str]:
    there = [*ON_HOST, *ON_FLEET, *(ON_ENGINE if engines else ())]
    kinds = [kind for kind in there if pool or kind not in NEED_POOL]
    wanted = [name.strip().lower() for name in names.split(",")] if names else [""]
    return [kind for kind in kinds if any(name in kind.lower() for name in wanted)]


def main() -> int:
    asked = arguments()
    kinds = chosen(asked.kinds, engines=not asked.no_engines, pool=asked.pool > 0)
    if asked.list or not kinds:
        say("\n".join(kinds or [f"there is no kind {asked.kinds}: see --list"]))
        return 0 if kinds else 2
    signal.signal(signal.SIGTERM, _end)
    started = time.monotonic()
    history = History(seed=asked.seed)
    with _root() as root:
        cards = deck(kinds, asked.faults, Random(asked.seed))
        run(history, root, cards, outstanding=asked.outstanding, pool=asked.pool)
        with (root / LOGS / "history.pickle").open("wb") as file:
            pickle.dump(history, file)
        report = check(history)
        seconds = time.monotonic() - started
        show(history, report, seconds=seconds)
        write(asked.results, history, report, seconds=seconds)
        if asked.keep or not report.ok:
            kept = KEPT / root.name
            shutil.copytree(root / LOGS, kept)
            say(f"the workers' logs and the history: {kept}")
    return 0 if report.ok else 1


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _end(number: int, _: FrameType | None) -> None:
    sys.exit(128 + number)


@contextmanager
def _root() -> Iterator[Path]:
    root = Path(tempfile.mkdtemp(prefix="chaos-"))
    root.chmod(0o755)  # the container's user has to get there
    try:
        yield root
    finally:
        shutil.rmtree(root, ignore_errors=True)


def run(history: History, root: Path, cards: Sequence[str], *, outstanding: int, pool: int = 0) -> None:
    """All of a run but for the judgement. Returns when the fleet is down."""
    of_engines = [card for card in cards if card in ON_ENGINE]
    others = [card for card in cards if card not in ON_ENGINE]
    with ExitStack() as parts:
        fleet = Fleet(root, pool=pool)
        history.lease_ttl_s = fleet.lease_ttl_s
        parts.callback(fleet.close)
        memory = parts.enter_context(Memory(fleet, history))
        load = Load(history, fleet.records, prefix=fleet.name, outstanding=outstanding)
        parts.callback(load.stop)
        nemesis = Nemesis(fleet, load, history, say=say)
        if others:
            with fleet_of(fleet, [fleet.add(f"h{n}") for n in range(1, _HOSTS + 1)], history):
                nemesis.run(others, hosts=fleet.hosts, timeout_s=len(others) * _LONGEST_FAULT_S)
                # The hosts of the next part take over what is left; here all that was started must end.
                _quiet(fleet, load, history, _SETTLE_S)
        if of_engines:
            rig = Rig(redis_url=fleet.redis.url, fleet=fleet.name, hosts=_HOSTS)
            parts.callback(rig.stop)
            rig.start()
            for host in rig.hosts:
                host.load(runner_image("bash"))
            fleet.hosts.clear()
            load.resume()
            with fleet_of(fleet, [fleet.add(f"e{n}", rig=host) for n, host in enumerate(rig.hosts, 1)], history):
                nemesis.run(of_engines, hosts=fleet.hosts, timeout_s=len(of_engines) * _LONGEST_FAULT_S)
                _quiet(fleet, load, history, _SETTLE_ENGINES_S)
        collect(fleet, history)
        memory.stop()


@contextmanager
def fleet_of(fleet: Fleet, hosts: Sequence[ChaosHost], history: History) -> Iterator[None]:
    """Hosts that run, each with its witness; stopped at the end as a service manager does it, and swept."""
    witnesses = [Witness(host) for host in hosts]
    try:
        for host in hosts:
            host.start()
        for host in hosts:
            host.wait_ready()
        yield
        for host in hosts:
            if (code := host.stop()) != 0:
                history.troubles.append(f"{host.name} ended with {code}")
            history.residue += sweep(host)
    finally:
        for host in hosts:
            host.kill()
            shutil.copytree(host.directory, fleet.root / LOGS / host.name, ignore=shutil.ignore_patterns("base"))
        for witness in witnesses:
            witness.stop()
            history.runs += [run for run in witness.runs() if run.job_id]


def _quiet(fleet: Fleet, load: Load, history: History, timeout_s: float) -> None:
    load.end()
    history.troubles += settle(fleet, history, timeout_s=timeout_s)


if __name__ == "__main__":
    os.chdir(Path(__file__).parents[2])
    sys.exit(main())
