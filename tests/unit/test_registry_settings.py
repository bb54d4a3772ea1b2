"""Where images are pulled from and whose the login is: pure rules of the settings."""

import pytest
from pydantic import ValidationError

from cronium_worker.models import Job
from cronium_worker.policy import admit, image_candidates
from cronium_worker.settings import Images, Registry, Settings

LOGIN = ("ada", "pw")
DIGEST = "sha256:" + "0a" * 32


def registry(**fields: str) -> Registry:
    return Registry(**fields, username="ada", password="pw")


@pytest.mark.parametrize(
    ("reference", "pulled"),
    [
        ("tools", "r.example:5000/team/tools"),
        ("tools:1", "r.example:5000/team/tools:1"),
        ("other/tools:1", "r.example:5000/team/other/tools:1"),
        (f"tools@{DIGEST}", f"r.example:5000/team/tools@{DIGEST}"),
        (f"tools:1@{DIGEST}", f"r.example:5000/team/tools:1@{DIGEST}"),
        ("localhost/tools", "localhost/tools"),
        ("localhost:5000/tools", "localhost:5000/tools"),
        ("docker.io/library/alpine", "docker.io/library/alpine"),
        ("r.example:5000/team/tools:1", "r.example:5000/team/tools:1"),
    ],
)
def test_the_prefix_is_for_what_names_no_registry(reference: str, pulled: str) -> None:
    assert Registry(prefix="r.example:5000/team").resolve(reference) == pulled
    assert Registry().resolve(reference) == reference


@pytest.mark.parametrize(
    ("settings", "reference", "login"),
    [
        (registry(server="r.example:5000"), "r.example:5000/tools", LOGIN),
        (registry(server="R.Example:5000"), "r.example:5000/tools", LOGIN),
        (registry(prefix="r.example:5000/team"), "r.example:5000/other/tools", LOGIN),
        (registry(server="docker.io"), "team/tools", LOGIN),
        (registry(server="docker.io"), "index.docker.io/team/tools", LOGIN),
        (registry(server="r.example:5000"), "r.example/tools", None),
        (registry(server="r.example:5000"), "r.example:5001/tools", None),
        (registry(server="r.example"), "evil.r.example/tools", None),
        (registry(server="r.example"), "tools", None),
        (registry(server="a.example", prefix="b.example"), "b.example/tools", None),
        (registry(server="a.example", prefix="b.example"), "a.example/tools", LOGIN),
        (Registry(server="r.example"), "r.example/tools", None),
        (Registry(), "tools", None),
    ],
)
def test_the_login_is_for_its_own_registry_only(
    settings: Registry, reference: str, login: tuple[str, str] | None
) -> None:
    assert settings.login(reference) == login


def test_a_username_without_a_registry_is_refused_with_the_remedy() -> None:
    with pytest.raises(ValidationError, match="set CRONIUM_REGISTRY__SERVER or CRONIUM_REGISTRY__PREFIX as well"):
        Registry(username="ada")


def test_a_wrong_server_has_one_error() -> None:
    with pytest.raises(ValidationError) as caught:
        Registry(server="registry", username="ada")

    assert [error["loc"] for error in caught.value.errors()] == [("server",)]


def test_jobs_and_runner_images_get_the_prefix_and_the_allow_list_is_before_it() -> None:
    settings = Settings(
        _env_file=None,
        registry=Registry(prefix="r.example/team"),
        allowed_images=("tools:1", "other.example/tools:1"),
        images=Images(python="own.example/python:1"),
    )

    def job(kind: str = "bash", image: str | None = None) -> Job:
        return Job.model_validate({"script": {"type": kind, "content": ""}, "image": image})

    assert image_candidates(job(), settings) == (
        "r.example/team/cronium/runner:bash-alpine",
        "r.example/team/cronium/runner:bash-debian",
    )
    assert image_candidates(job("python"), settings) == ("own.example/python:1",)
    for image, pulled in (("tools:1", "r.example/team/tools:1"), ("other.example/tools:1", "other.example/tools:1")):
        assert image_candidates(admit(job(image=image), settings), settings) == (pulled,)
    for image in ("r.example/team/tools:1", "tools", "tools:1@" + DIGEST):
        with pytest.raises(ValidationError, match="allow-list"):
            admit(job(image=image), settings)
