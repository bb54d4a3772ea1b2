"""What the settings ask of a host beyond the fixed profile is there, or the start ends with one line."""

import json
import pwd
from pathlib import Path
from typing import Any

import pytest

from cronium_worker.engine import confinement as module
from cronium_worker.engine.confinement import confinement
from cronium_worker.engine.seccomp import PROFILE
from cronium_worker.errors import ConfigurationError
from cronium_worker.settings import Security

FIT = {
    "SecurityOptions": ["name=apparmor", "name=seccomp,profile=default", "name=selinux", "name=cgroupns"],
    "Runtimes": {"runc": {}, "runsc": {}},
    "DefaultRuntime": "runc",
    "Architecture": "x86_64",
}
BARE: dict[str, Any] = {"SecurityOptions": [], "Runtimes": {"runc": {}}}


class FakeEngine:
    def __init__(self, info: dict[str, Any], versions: dict[str, str]) -> None:
        self._info = info
        self._versions = versions

    def info(self) -> dict[str, Any]:
        return self._info

    def components(self) -> dict[str, str]:
        return self._versions


VERSIONS = {"Engine": "20.10.24+dfsg1", "containerd": "1.6.20~ds1", "runc": "1.1.5+ds1"}


def check(security: Security, info: dict[str, Any] = FIT, **versions: str) -> str | None:
    return confinement(FakeEngine(info, VERSIONS | versions), security)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def profiles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "profiles"
    path.write_text("docker-default (enforce)\nour jobs (complain)\n")
    monkeypatch.setattr(module, "_APPARMOR_PROFILES", path)
    return path


def test_without_settings_nothing_is_asked_of_the_host() -> None:
    assert check(Security(), BARE) is None


@pytest.mark.attack
@pytest.mark.parametrize(
    "info", [{}, {"Architecture": "aarch64"}, {"DefaultRuntime": "io.containerd.runc.v2"}, {"DefaultRuntime": None}]
)
def test_jobs_have_the_profile_of_cronium(info: dict[str, Any]) -> None:
    profile = check(Security(), FIT | info)

    assert profile == PROFILE.read_text()
    assert json.loads(profile)["defaultAction"] == "SCMP_ACT_ERRNO"


def test_the_engines_own_profile_is_a_setting() -> None:
    assert check(Security(seccomp_profile="engine")) is None


@pytest.mark.parametrize(
    ("info", "versions"),
    [
        ({}, {"Engine": "20.10.9"}),
        ({}, {"Engine": "library-import"}),
        ({}, {"runc": "1.0.1"}),
        ({}, {"runc": ""}),
        ({"Architecture": "armv7l"}, {}),
        ({"DefaultRuntime": "runsc"}, {}),
        ({"SecurityOptions": []}, {}),
    ],
)
def test_where_it_cannot_be_used_they_have_the_engines(info: dict[str, Any], versions: dict[str, str]) -> None:
    assert check(Security(), FIT | info, **versions) is None


def test_another_runtime_has_the_engines_profile() -> None:
    assert check(Security(runtime="runsc")) is None
    assert check(Security(runtime="runc"), FIT | {"DefaultRuntime": "runsc"}) is not None


def test_what_is_there_is_taken(tmp_path: Path) -> None:
    profile = tmp_path / "profile.json"
    profile.write_text('{\n  "defaultAction": "SCMP_ACT_ERRNO"\n}\n')
    security = Security(
        seccomp_profile=profile, apparmor_profile="docker-default", selinux_label="type:x_t", runtime="runsc",
        uid_pool="4000000-4000063",
    )  # fmt: skip

    assert check(security) == profile.read_text()


def test_profiles_that_cannot_be_seen_from_here_are_left_to_the_engine(profiles: Path) -> None:
    profiles.unlink()
    assert check(Security(apparmor_profile="strict")) is not None


@pytest.mark.parametrize(
    ("security", "info", "message"),
    [
        ({"apparmor_profile": "docker-default"}, BARE, "APPARMOR_PROFILE: the engine runs without AppArmor"),
        ({"apparmor_profile": "our"}, FIT, "APPARMOR_PROFILE: our is not loaded; load it with apparmor_parser"),
        ({"selinux_label": "type:x_t"}, BARE, "SELINUX_LABEL: the engine runs without SELinux"),
        ({"runtime": "runsc"}, BARE, "RUNTIME: the engine has no runtime runsc (but runc); add it to its daemon.json"),
        ({"uid_pool": "0"}, FIT, "UID_POOL: 1 is the account"),
        ({"seccomp_profile": "/nowhere/p.json"}, FIT, "SECCOMP_PROFILE: /nowhere/p.json: No such file or directory"),
        ({"seccomp_profile": "/nowhere/p.json"}, BARE, "SECCOMP_PROFILE: the engine has no seccomp"),
    ],
)
def test_what_is_not_there_is_one_line(security: dict[str, Any], info: dict[str, Any], message: str) -> None:
    if "uid_pool" in security:
        account = max(pwd.getpwall(), key=lambda account: 0 < account.pw_uid < 60000)
        security = {"uid_pool": f"{account.pw_uid}-{account.pw_uid}"}
        message = f"UID_POOL: {account.pw_uid} is the account {account.pw_name}"
    with pytest.raises(ConfigurationError) as caught:
        check(Security.model_validate(security), info)
    assert str(caught.value).startswith(f"CRONIUM_SECURITY__{message}")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("option", ["name=userns", "name=rootless"])
def test_an_engine_that_maps_users_is_refused(option: str) -> None:
    with pytest.raises(ConfigurationError, match=r"^Docker Engine: it maps the users of containers \(\w+\)"):
        check(Security(), {**FIT, "SecurityOptions": [option]})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("default", "is not JSON"),
        (b"\xff\xfe", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "is no profile"),
        ("{}", "is no profile"),
        ('{"defaultAction": 1}', "is no profile"),
        ('{"defaultAction": "allow"}', "is no profile"),
    ],
)
def test_a_file_that_is_no_profile_is_one_line(tmp_path: Path, content: str | bytes, message: str) -> None:
    profile = tmp_path / "profile.json"
    profile.write_bytes(content if isinstance(content, bytes) else content.encode())

    with pytest.raises(ConfigurationError, match=f"^CRONIUM_SECURITY__SECCOMP_PROFILE: {profile} {message}"):
        check(Security(seccomp_profile=profile))
