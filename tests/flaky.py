"""Looks for tests that fail by chance: `python -m tests.flaky [--minutes 60] [--load 1] PYTEST-ARGUMENTS`.

`make flaky` calls it, with an engine that has the images. The tests run side by side (tests.labs), again and again,
beside processes that only use the processor. In the end it names each test that has failed, and how often.
"""

import argparse
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from xml.etree import ElementTree

from tests.labs import ROOT


@contextmanager
def load(count: int) -> Iterator[None]:
    """So many processes that use a core each, as far as there are cores."""
    busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in busy:
            process.kill()
            process.wait()


def failed_in(report: Path) -> list[str]:
    """The tests that have failed, of a report in JUnit's form. Raises OSError and ParseError when there is none."""
    cases = ElementTree.parse(report).iter("testcase")  # noqa: S314 - pytest has written it
    return [
        f"{case.get('classname')}::{case.get('name')}"
        for case in cases
        if case.find("failure") is not None or case.find("error") is not None
    ]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.flaky", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60, help="no round begins after them")
    parser.add_argument("--load", type=int, default=1, help="processes that use a core each")
    options, arguments = parser.parse_known_args()
    failed: Counter[str] = Counter()
    rounds, end = 0, time.monotonic() + options.minutes * 60
    with TemporaryDirectory() as directory, load(options.load):
        report = Path(directory) / "report.xml"
        while time.monotonic() < end:
            command = [sys.executable, "-m", "tests.labs", "--junitxml", str(report), *arguments]
            code = subprocess.run(command, cwd=ROOT, check=False).returncode
            rounds += 1
            found = failed_in(report)
            failed.update(found or (["the run itself"] if code else []))
            report.unlink()
    for name, times in failed.most_common():
        sys.stdout.write(f"{times} of {rounds} times: {name}\n")
    sys.stdout.write(f"{rounds} rounds, {len(failed)} tests that have failed\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
