"""A workspace for each test, and the three languages, each a process that serves the whole session."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.helpers.languages import Bash, Language, Workspace, start


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    """Empty: the helpers make the directories they write to."""
    return Workspace(tmp_path / "workspace")


@pytest.fixture(scope="session")
def languages(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Language]]:
    started = {name: start(name, tmp_path_factory.mktemp(name)) for name in ("bash", "python", "node")}
    yield started
    for language in started.values():
        language.close()


@pytest.fixture(params=["bash", "python", "node"])
def language(request: pytest.FixtureRequest, languages: dict[str, Language]) -> Language:
    return languages[request.param]


@pytest.fixture
def bash(languages: dict[str, Language]) -> Bash:
    language = languages["bash"]
    assert isinstance(language, Bash)
    return language
