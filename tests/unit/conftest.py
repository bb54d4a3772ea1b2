"""Unit tests see none of the settings of whoever runs them."""

import os

import pytest


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("CRONIUM_")]:
        monkeypatch.delenv(name)
