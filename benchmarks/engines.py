"""`make bench ARGS="engines [ROUNDS=30] [BURSTS=4]"`: engines and runtimes beside each other, interleaved.

Each is in a lab of its own (tests/labs.py): this machine's engine, and those of the Debian suites of `make test-hosts`,
with runc and with crun. Ratios are to this machine's engine and its runtime, of the same round.
"""

import json
import subprocess
import sys
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from tests.labs import ROOT, Lab, directory_in, entering, save_images, way_out
from tests.matrix import root_and_environment

_CRUN = {"runtimes": {"crun": {"path": "/usr/bin/crun"}}}
_SUITES = ("trixie", "forky")
_STEPS = ("create", "start", "first byte", "remove", "cycle")


@dataclass
class _Driver:
    """Of one engine with one runtime."""

    name: str
    process: "subprocess.Popen[str]"
    steps: dict[str, list[float]] = field(default_factory=lambda: {step: [] for step in _STEPS})
    jobs_per_s: list[float] = field(default_factory=list)

    def ask(self, word: str) -> object:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(f"{word}\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise RuntimeError(f"{self.name}: its driver has ended")
        return json.loads(answer)

    def end(self) -> None:
        self.process.communicate(timeout=120)


def main(options: list[str]) -> None:
    given = dict(option.split("=", 1) for option in options)
    with ExitStack() as stack:
        drivers = _start(stack)
        _measure(drivers, rounds=int(given.get("ROUNDS", "30")), bursts=int(given.get("BURSTS", "4")))
    _show(drivers)


def _start(stack: ExitStack) -> list[_Driver]:
    directory, mtu = stack.enter_context(directory_in("/var/lib")), stack.enter_context(way_out())
    (directory / "tmp").mkdir()
    (directory / "tmp").chmod(0o1777)
    images = save_images(directory / "images.tar")
    drivers = []
    for number, suite in enumerate((None, *_SUITES), start=1):
        root = None
        if suite is not None:
            place, environment = root_and_environment(suite)
            (place / "etc" / "docker").mkdir(parents=True, exist_ok=True)
            (place / "etc" / "docker" / "daemon.json").write_text(json.dumps(_CRUN))
            root = entering(place, environment)
        lab = Lab(number, directory, images, mtu, root=root)
        stack.callback(lab.stop)
        lab.start()
        python = lab.wait()
        version = subprocess.run(
            [python, "-c", "import docker; print(docker.from_env().version()['Version'])"],
            check=True,
            capture_output=True,
            text=True,
        ).stdout.split("+")[0]
        for runtime in ("runc",) if suite is None else ("runc", "crun"):
            driver = _Driver(f"{version.strip()}, {runtime}", _process(python, runtime, directory))
            stack.callback(driver.end)
            drivers.append(driver)
    return drivers


def _process(python: str, runtime: str, directory: Path) -> "subprocess.Popen[str]":
    """A fleet and a host of its own: two of them may share a lab."""
    script = (
        "import os, runpy; os.environ |= {"
        f"'CRONIUM_SECURITY__RUNTIME': {runtime!r}, 'CRONIUM_FLEET': 'engines-{runtime}', "
        f"'CRONIUM_HOST_NAME': 'engines-{runtime}'}}; "
        "runpy.run_module('benchmarks.engine_driver', run_name='__main__')"
    )
    return subprocess.Popen([python, "-c", script], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def _measure(drivers: list[_Driver], *, rounds: int, bursts: int) -> None:
    for number in range(rounds + 1):
        for driver in drivers[number % len(drivers) :] + drivers[: number % len(drivers)]:
            answer = driver.ask("cycle")
            assert isinstance(answer, dict)
            if number:  # the first one does not count
                for step in _STEPS:
                    driver.steps[step].append(answer[step])
    for number in range(bursts + 1):
        for driver in drivers[number % len(drivers) :] + drivers[: number % len(drivers)]:
            rate = driver.ask("burst")
            assert isinstance(rate, float)
            driver.jobs_per_s += [rate] if number else []


def _show(drivers: list[_Driver]) -> None:
    table = Table(box=None, header_style="bold")
    for column in ("engine, runtime", *(f"{step} ms" for step in _STEPS), "ratio", "jobs/s", "ratio"):
        table.add_column(column)
    first = drivers[0]
    for driver in drivers:
        table.add_row(
            driver.name,
            *(f"{np.median(driver.steps[step]):.1f}" for step in _STEPS),
            f"{_ratio(driver.steps['cycle'], first.steps['cycle']):.2f}",
            f"{np.median(driver.jobs_per_s):.2f}",
            f"{_ratio(driver.jobs_per_s, first.jobs_per_s):.2f}",
        )
    console = Console(highlight=False)
    console.width = max(console.width, 110)
    console.print(table)
    sys.stdout.flush()


def _ratio(of: list[float], to: list[float]) -> float:
    return float(np.median([a / b for a, b in zip(of, to, strict=True)]))
