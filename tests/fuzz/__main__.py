"""`make fuzz`: the properties of this folder with new examples for a given time. `--help` tells the options.

Exit code 0: no example made anything fail.
"""

import argparse
import sys
import time
from collections import Counter
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from rich.table import Table

from tests.fuzz import profile

# One run of Hypothesis. It gives up early where it has seen all there is, and begins anew with each run.
_RUN_EXAMPLES = 500


class Fuzz:
    """A plugin of pytest: each property goes on until its share of the time is over, or it fails."""

    def __init__(self, *, seconds: float) -> None:
        self._seconds = seconds
        self._share_s = seconds
        self._examples: Counter[str] = Counter()
        self._took_s: Counter[str] = Counter()
        self._failures: Counter[str] = Counter()

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._share_s = self._seconds / max(1, len(session.items))

    @pytest.hookimpl(tryfirst=True)
    def pytest_pyfunc_call(self, pyfuncitem: pytest.Function) -> bool:
        property_, inner = pyfuncitem.obj, pyfuncitem.obj.hypothesis.inner_test
        name = pyfuncitem.name
        given = {each: pyfuncitem.funcargs[each] for each in pyfuncitem._fixtureinfo.argnames}

        @wraps(inner)
        def counted(*args: Any, **kwargs: Any) -> None:
            self._examples[name] += 1
            inner(*args, **kwargs)

        property_.hypothesis.inner_test = counted
        started = time.monotonic()
        try:
            while time.monotonic() - started < self._share_s:
                property_(**given)
        except BaseException:
            self._failures[name] += 1
            raise
        finally:
            self._took_s[name] = round(time.monotonic() - started)
        return True

    def pytest_terminal_summary(self) -> None:
        table = Table(box=None, header_style="bold")
        for column in ("property", "examples", "failures", "s"):
            table.add_column(column, justify="left" if column == "property" else "right")
        for counts in (self._examples, self._failures, self._took_s):
            counts["in all"] = counts.total()
        for name, count in self._examples.items():
            table.add_row(name.removeprefix("test_"), f"{count:,}", str(self._failures[name]), str(self._took_s[name]))
        console = Console(highlight=False)
        console.width = max(console.width, 110)
        console.print()
        console.print(table)


def main() -> int:
    parser = argparse.ArgumentParser(prog="make fuzz ARGS=…", description="Any input, for a while.")
    parser.add_argument("--minutes", type=float, default=10, help="in all (10)")
    parser.add_argument("--only", default="", help="properties with this in their name")
    asked = parser.parse_args()
    profile.FUZZ = profile.of(_RUN_EXAMPLES, derandomize=False)
    options = ["-q", "--timeout=0", "-W", "ignore::pytest.PytestAssertRewriteWarning", "-k", asked.only]
    return pytest.main([*options, str(Path(__file__).parent)], plugins=[Fuzz(seconds=asked.minutes * 60)])


if __name__ == "__main__":
    sys.exit(main())
