"""Which process is left with which credentials."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from cronium_worker.credentials import without

pytestmark = pytest.mark.attack

KEY = "A" * 43 + "="
GIVEN = {
    "CRONIUM_SECRET_KEYS": KEY,
    "cronium_signing_keys": KEY,
    "CRONIUM_REGISTRY__PASSWORD": "registry-hunter2",
    "CRONIUM_WEB__TOKEN": "web-hunter2-hunter2",
    "CRONIUM_FLOWER__USERNAME": "ada",
    "CRONIUM_FLOWER__PASSWORD": "flower-hunter2-hunter2",
    "CRONIUM_REDIS_PASSWORD": "redis-hunter2",
}
# Prints what the process was started with, as everybody's who may look at it, and its settings.
LOOK = """
import json, os
from pathlib import Path
from cronium_worker.credentials import keep
keep({process!r})
from cronium_worker.settings import get_settings
print(Path("/proc/self/environ").read_text())
settings = get_settings()
values = [*settings.secret_keys, *settings.signing_keys]
values += [settings.registry.password, settings.web.token, settings.flower.password]
print([each.get_secret_value() for each in values])
"""


@pytest.mark.parametrize(
    ("process", "needed"),
    [
        ("flower", {"flower-hunter2"}),
        ("web", {KEY, "web-hunter2"}),
        ("jobs", {KEY, "registry-hunter2"}),
        ("agent", {"registry-hunter2"}),
    ],
)
@pytest.mark.parametrize("in_file", [False, True])
def test_a_process_has_what_it_needs(tmp_path: Path, process: str, needed: set[str], in_file: bool) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.upper().startswith("CRONIUM_")}
    if in_file:
        (tmp_path / ".env").write_text("".join(f"{name}={value}\n" for name, value in GIVEN.items()))
    else:
        environment |= GIVEN
    ran = subprocess.run(
        [sys.executable, "-c", LOOK.format(process=process)],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        timeout=30,
    )
    for value in {KEY, "registry-hunter2", "web-hunter2", "flower-hunter2", "redis-hunter2"}:
        assert (value in ran.stdout) == (value in needed), value


def test_a_section_that_is_json_is_left_without_its_credential() -> None:
    given = {
        "CRONIUM_WEB": '{"token": "x", "url": "http://y"}',
        "CRONIUM_FLEET": "f",
        "PATH": "/bin",
        "WEB__TOKEN": "z",
    }
    assert without(given, {"WEB__TOKEN"}) == {**given, "CRONIUM_WEB": '{"url": "http://y"}'}
    for odd in ("", "[]", "x"):
        assert without({"CRONIUM_WEB": odd}, {"WEB__TOKEN"}) == {"CRONIUM_WEB": odd}
