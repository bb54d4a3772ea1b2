"""Unit tests see none of the settings of whoever runs them."""

import os
import sys
from collections.abc import Iterator

import pytest

from cronium_worker.settings import get_settings


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("CRONIUM_")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="module", autouse=True)
def settings_of_this_process_are_read_again() -> Iterator[None]:
    """Other tests that this process runs afterwards do not get what was read without any settings."""
    yield
    get_settings.cache_clear()
    if (tasks := sys.modules.get("cronium_worker.tasks")) is not None:
        tasks.store.cache_clear()
