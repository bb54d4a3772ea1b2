"""`make test-vm`: a virtual machine with nothing but Debian. `make test` does not collect these tests."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.labs import directory_in
from tests.machine.machine import Machine

_FOLDER = Path(__file__).parent


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Collect only what the command line names."""
    named = any(Path(argument.partition("::")[0]).resolve().is_relative_to(_FOLDER) for argument in config.args)
    return None if named else True


@pytest.fixture(scope="session")
def machine() -> Iterator[Machine]:
    with directory_in("/var/lib") as directory:
        machine = Machine(directory)
        machine.make()
        try:
            machine.start()
            yield machine
        finally:
            machine.stop()
