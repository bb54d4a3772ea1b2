"""A worker whose host cannot give what the settings ask for does not start, and says so in one line."""

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("RUNTIME", "cronium-test-runtime", "the engine has no runtime cronium-test-runtime (but "),
        ("SECCOMP_PROFILE", "/nowhere/profile.json", "/nowhere/profile.json: No such file or directory"),
        ("APPARMOR_PROFILE", "cronium-test-profile", ""),
    ],
)
def test_what_the_host_does_not_have_ends_the_start(
    redis_url: str, tmp_path: Path, setting: str, value: str, said: str
) -> None:
    name = f"CRONIUM_SECURITY__{setting}"
    environment = {**os.environ, "CRONIUM_REDIS_URL": redis_url, "CRONIUM_BASE_PATH": str(tmp_path), name: value}

    done = subprocess.run(
        [sys.executable, "-m", "cronium_worker", "worker", "--node", "jobs"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )

    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.startswith(f"cronium: {name}: {said}")
