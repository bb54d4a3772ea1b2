"""`make bench ARGS="ab BASE=COMMIT [PAIRS=100]"`: this tree beside another commit, interleaved on the same machine.

Each tree has a fleet of its own: its Python environment, its runner images, its Redis database. A row is the ratio of
this tree's time to the other's: the median over pairs, with the 95 % bounds of that median (bootstrap).
"""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import docker
import numpy as np
from rich.console import Console
from rich.table import Table

from benchmarks.jobs import ECHO, REFILL_S
from cronium_worker.settings import get_settings

_ROOT = Path(__file__).parents[1]
_CACHE = _ROOT / "var" / "ab"
_BURST_JOBS = 40
_BURST_PAIRS = 6
_LOG_PAIRS = 60
_LOG = (
    "import sys\nsys.stdout.reconfigure(line_buffering=False)\n"
    "for n in range(200_000): sys.stdout.write(f'{n:099d}\\n')"
)
_RESAMPLES = 2000


class Tree:
    """A checkout with its own environment, and the settings of its fleet."""

    def __init__(self, name: str, path: Path, database: int) -> None:
        self.name = name
        self.bin = path / ".venv" / "bin"
        self._path = path
        url = urlsplit(get_settings().redis_url.get_secret_value())._replace(path=f"/{database}").geturl()
        self._env = {
            "CRONIUM_REDIS_URL": url,
            "CRONIUM_FLEET": f"ab-{name}",
            "CRONIUM_HOST_NAME": f"ab-{name}",
            "CRONIUM_LOG__MAX_BYTES": "256m",
        }

    def set_up(self) -> None:
        """Install the tree's requirements, build its images, and give these tags of their own."""
        subprocess.run([str(self._path / "deploy/local/setup.sh"), "venv"], cwd=self._path, check=True)
        command = self._command("cronium", "images", "build")
        subprocess.run(command, cwd=self._path, check=True, stdout=subprocess.DEVNULL)
        client = docker.from_env()
        for language in ECHO:
            built = next(
                image
                for candidate in get_settings().images.candidates(language)  # type: ignore[arg-type]
                for image in client.images.list(name=candidate)
            )
            built.tag("cronium/ab", f"{self.name}-{language}")
            self._env[f"CRONIUM_IMAGES__{language.upper()}"] = f"cronium/ab:{self.name}-{language}"
        client.close()

    def _command(self, program: str, *arguments: str, **settings: str) -> list[str]:
        env = [f"{name}={value}" for name, value in (self._env | settings).items()]
        return ["/usr/bin/env", *env, str(self.bin / program), *arguments]

    @contextmanager
    def fleet(self, **settings: str) -> Iterator[Callable[..., float]]:
        """Start a worker; give a call that runs `count` jobs of a script at once and returns the milliseconds."""
        queue = f"ab-{self.name}"
        command = self._command("cronium", "worker", "--node", "jobs", "--queues", queue, **settings)
        worker = subprocess.Popen(command, cwd=self._path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        # -P: the directory of the driver has modules of this tree.
        command = self._command("python", "-P", str(_ROOT / "benchmarks/ab_driver.py"), queue, **settings)
        driver = subprocess.Popen(command, cwd=self._path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

        def run(script: dict[str, str], count: int = 1) -> float:
            assert driver.stdin is not None
            assert driver.stdout is not None
            driver.stdin.write(json.dumps({"script": script, "count": count}) + "\n")
            driver.stdin.flush()
            answer = driver.stdout.readline()
            if not answer:
                raise RuntimeError(f"{self.name}: a job did not complete")
            return float(json.loads(answer))

        try:
            yield run
        finally:
            driver.terminate()
            driver.wait(60)
            worker.terminate()
            worker.wait(120)

    def remove(self) -> None:
        """Remove what is left of the fleet, its networks and the tags of its images."""
        client = docker.from_env()
        ours = {"label": f"cronium.fleet=ab-{self.name}"}
        for container in client.containers.list(all=True, filters=ours, ignore_removed=True):
            container.remove(force=True, v=True)
        for network in client.networks.list(filters=ours):
            with suppress(docker.errors.APIError):  # the other fleet, or an operator's container, is attached
                network.remove()
        for image in client.images.list(name="cronium/ab"):
            for tag in image.tags:
                if tag.startswith(f"cronium/ab:{self.name}-"):
                    client.images.remove(tag)
        client.close()


def main(options: list[str]) -> None:
    given = dict(option.split("=", 1) for option in options)
    pairs = int(given.get("PAIRS", "100"))
    with ExitStack() as stack:
        trees = Tree("base", _checkout(given["BASE"]), 1), Tree("this", _ROOT, 2)
        for tree in trees:
            stack.callback(tree.remove)
            tree.set_up()
        _show([*_echoes(trees, pairs), *_bursts(trees), *_logs(trees)], given["BASE"])


def _checkout(commit: str) -> Path:
    """The files of a commit, kept for the next time."""
    sha = subprocess.run(
        ["git", "rev-parse", f"{commit}^{{commit}}"], cwd=_ROOT, check=True, capture_output=True, text=True
    ).stdout.strip()
    target = _CACHE / sha[:12]
    if not target.exists():
        archive = subprocess.run(["git", "archive", sha], cwd=_ROOT, check=True, capture_output=True).stdout
        target.mkdir(parents=True)
        subprocess.run(["tar", "--extract", "--directory", str(target)], input=archive, check=True)
    return target


def _echoes(trees: tuple[Tree, Tree], pairs: int) -> Iterator[tuple[str, list[tuple[float, float]]]]:
    settings = {"CRONIUM_POOL__SIZE": "8"}
    with trees[0].fleet(**settings) as base, trees[1].fleet(**settings) as this:
        for language, content in ECHO.items():
            script = {"type": language, "content": content}
            for _ in range(3):
                base(script), this(script)
            yield f"warm echo, {language}", _pairs(base, this, script, pairs, pause_s=REFILL_S / 2)


def _bursts(trees: tuple[Tree, Tree]) -> Iterator[tuple[str, list[tuple[float, float]]]]:
    settings = {"CRONIUM_POOL__SIZE": "0", "CRONIUM_CAPACITY__CPU_OVERCOMMIT": "1000"}
    with trees[0].fleet(**settings) as base, trees[1].fleet(**settings) as this:
        script = {"type": "bash", "content": ECHO["bash"]}
        base(script), this(script)
        yield (
            f"burst of {_BURST_JOBS}, no warm sandboxes",
            _pairs(base, this, script, _BURST_PAIRS, count=_BURST_JOBS, pause_s=2),
        )


def _logs(trees: tuple[Tree, Tree]) -> Iterator[tuple[str, list[tuple[float, float]]]]:
    settings = {"CRONIUM_POOL__SIZE": "4", "CRONIUM_DEFAULTS__CPU": "2"}
    with trees[0].fleet(**settings) as base, trees[1].fleet(**settings) as this:
        script = {"type": "python", "content": _LOG}
        base(script), this(script)
        yield "log of 20 MB", _pairs(base, this, script, _LOG_PAIRS, pause_s=2)


def _pairs(
    base: Callable[..., float],
    this: Callable[..., float],
    script: dict[str, str],
    pairs: int,
    *,
    count: int = 1,
    pause_s: float,
) -> list[tuple[float, float]]:
    """Milliseconds of (base, this). Each goes first in every other pair, after a pause for what the one before left."""
    found = []
    for number in range(pairs):
        times: dict[Any, float] = {}
        for run in (base, this) if number % 2 else (this, base):
            time.sleep(pause_s)
            times[run] = run(script, count)
        found.append((times[base], times[this]))
    return found


def bounds(ratios: list[float]) -> tuple[float, float, float]:
    """The median, and the 95 % bounds of it by bootstrap."""
    samples = np.random.default_rng(1).choice(np.array(ratios), size=(_RESAMPLES, len(ratios)))
    low, high = np.percentile(np.median(samples, axis=1), (2.5, 97.5))
    return float(np.median(ratios)), float(low), float(high)


def _show(rows: list[tuple[str, list[tuple[float, float]]]], commit: str) -> None:
    table = Table(box=None, header_style="bold")
    for column in ("", f"{commit} ms", "this ms", "ratio", "95 % bounds", "pairs"):
        table.add_column(column)
    for name, pairs in rows:
        ratio, low, high = bounds([this / base for base, this in pairs])
        medians = (f"{np.median(column):.1f}" for column in zip(*pairs, strict=True))
        table.add_row(name, *medians, f"{ratio:.3f}", f"{low:.3f} to {high:.3f}", str(len(pairs)))
    console = Console(highlight=False)
    console.width = max(console.width, 100)
    console.print(table)
    sys.stdout.flush()
