"""`make test-upgrade`: two versions of the product on one fleet. `make test` does not collect these tests."""

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.upgrade.fleet import UpgradeFleet
from tests.upgrade.versions import CACHE, Version, chosen, future, older, today

_FOLDER = Path(__file__).parent


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Collect only what the command line names."""
    named = any(Path(argument.partition("::")[0]).resolve().is_relative_to(_FOLDER) for argument in config.args)
    return None if named else True


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--short", action="store_true", help="leave out what is marked as long")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--short", default=False):
        items[:] = [item for item in items if item.get_closest_marker("long") is None]


@pytest.fixture(scope="session", params=chosen())
def old(request: pytest.FixtureRequest) -> Version:
    return older(request.param)


@pytest.fixture(scope="session")
def new() -> Version:
    return today()


@pytest.fixture(scope="session")
def newer(tmp_path_factory: pytest.TempPathFactory) -> Version:
    return future(tmp_path_factory.mktemp("future"))


@pytest.fixture(scope="session")
def fleet() -> Iterator[UpgradeFleet]:
    """With its Redis. The logs of all processes are kept in var/upgrade when a test has failed."""
    root = Path(tempfile.mkdtemp(prefix="upgrade-"))
    root.chmod(0o755)  # the container's user has to get there
    with UpgradeFleet(root) as fleet:
        yield fleet
    shutil.rmtree(root, ignore_errors=True)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    report = yield
    fleet = getattr(item, "funcargs", {}).get("fleet")
    if report.failed and fleet is not None:
        logs = CACHE / "logs" / item.name
        shutil.rmtree(logs, ignore_errors=True)
        shutil.copytree(fleet.root, logs, ignore=shutil.ignore_patterns("base", "appendonlydir"))
        report.sections.append(("logs of the fleet's processes", str(logs)))
    return report
