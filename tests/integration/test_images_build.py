"""The images on this machine's engine, as `make test` has built them, and what the builder does about them."""

import os
import re
import threading
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any
from uuid import uuid4

import docker
import pytest
from docker.errors import APIError, ImageNotFound
from docker.utils import kwargs_from_env

from cronium_worker.engine import build, nodejs, recipe
from cronium_worker.engine.build import build_images
from cronium_worker.engine.recipe import LABEL_DIGEST, LABEL_FLAVOUR, LABEL_VERSION, Recipe
from cronium_worker.errors import ImageBuildError

NAMES = ("base", "bash", "python", "node")


@pytest.fixture(scope="module")
def api() -> Iterator[docker.APIClient]:
    client = docker.APIClient(**kwargs_from_env())
    yield client
    client.close()


@pytest.fixture(scope="module")
def flavour(api: docker.APIClient) -> str:
    """The one that is built here. The first call builds, if these tests are run alone on a new machine."""
    return build_images(api, flavour=None, report=print)[0].reference.rpartition(":")[2]


@pytest.fixture
def run(api: docker.APIClient, flavour: str) -> Iterator[Any]:
    """Run a command in a container of an image of ours and return its output; a failure fails the test."""
    made: list[str] = []

    def in_container(name: str, *command: str, user: str | None = None) -> str:
        created = api.create_container(recipe.reference(name, flavour), list(command), user=user, network_disabled=True)
        made.append(created["Id"])
        api.start(created["Id"])
        code = api.wait(created["Id"], timeout=60)["StatusCode"]
        output = api.logs(created["Id"]).decode()
        assert code == 0, output
        return output

    yield in_container
    for container in made:
        api.remove_container(container, force=True, v=True)


@pytest.fixture
def reference() -> str:
    """A name for an image of this test alone."""
    return f"cronium/test:{uuid4().hex}"


def image_ids(api: docker.APIClient) -> set[str]:
    """All of them, with those that a build leaves behind."""
    return {image["Id"] for image in api.images(all=True)}


def dangling(api: docker.APIClient) -> set[str]:
    return {image["Id"] for image in api.images(filters={"dangling": True})}


def test_building_again_does_nothing_and_is_quick(api: docker.APIClient, flavour: str) -> None:
    before = image_ids(api)
    lines: list[str] = []

    started = time.monotonic()
    images = build_images(api, flavour=flavour, report=lines.append)

    assert time.monotonic() - started < 3
    assert [image.reference for image in images] == [recipe.reference(name, flavour) for name in NAMES]
    assert not any(image.built for image in images)
    assert image_ids(api) == before
    assert sorted(lines) == sorted(f"{image.reference}: up to date" for image in images)


@pytest.mark.parametrize("name", NAMES)
def test_labels_say_version_flavour_and_digest(api: docker.APIClient, flavour: str, name: str) -> None:
    config = api.inspect_image(recipe.reference(name, flavour))["Config"]
    by_name = {image.reference: image for image in build_images(api, flavour=flavour, report=print)}

    assert config["Labels"][LABEL_VERSION] == version("cronium-worker")
    assert config["Labels"][LABEL_FLAVOUR] == flavour
    assert config["Labels"][LABEL_DIGEST] == by_name[recipe.reference(name, flavour)].digest
    assert config["Entrypoint"] == ["/sbin/tini", "-g", "--"]
    assert config["WorkingDir"] == "/workspace"
    assert config["User"] == ("" if name == "base" else "1000:1000")
    assert not [entry for entry in config["Env"] if entry.startswith("PYTHON")]


@pytest.mark.parametrize("name", NAMES)
def test_no_file_gives_rights_to_who_executes_it(run: Any, name: str) -> None:
    found = run(name, "find", "/", "-xdev", "-perm", "/6000", user="0")
    assert found == ""


@pytest.mark.parametrize("name", NAMES)
def test_tini_the_user_and_the_workspace_are_there(run: Any, name: str) -> None:
    script = "readlink -f /proc/1/exe; id -u; id -g; id -un; stat -c %u:%g:%a /workspace; pwd; getent passwd 1000"
    tini, *rest = run(name, "sh", "-c", script, user="1000:1000").splitlines()
    assert tini.endswith("/tini")
    assert rest[:5] == ["1000", "1000", "cronium", "1000:1000:755", "/workspace"]
    assert rest[5].split(":")[5] == "/tmp"


def test_certificates_and_time_zones_are_there(run: Any) -> None:
    run("base", "sh", "-c", "test -s /etc/ssl/certs/ca-certificates.crt && test -e /usr/share/zoneinfo/Europe/Berlin")


@pytest.mark.parametrize(
    ("name", "programs"),
    [
        ("bash", ["bash", "curl", "jq", "grep", "sed", "gawk", "sort", "timeout"]),
        ("python", ["python3", "pip3"]),
        ("node", ["node", "npm"]),
    ],
)
def test_the_interpreters_and_tools_are_there(run: Any, name: str, programs: list[str]) -> None:
    for program in programs:
        run(name, program, "--version")


def test_python_has_its_packages_and_the_helper(run: Any) -> None:
    code = "import requests, yaml; assert cronium.input() == {}; import cronium as c; print(c.__file__, c.__cached__)"
    source, compiled = run("python", "python3", "-c", code).split()
    assert source == "/usr/local/lib/cronium/cronium.py"
    run("python", "test", "-s", compiled)


def test_node_has_the_helper(run: Any) -> None:
    run("node", "node", "-e", 'require("cronium").setCondition')
    run("node", "node", "--input-type=module", "-e", 'import cronium from "cronium"; cronium.setCondition')


def test_bash_has_the_helper(run: Any) -> None:
    script = "source /usr/local/bin/cronium.sh; cronium_input; test -x /usr/local/bin/cronium.sh"
    assert run("bash", "bash", "-euo", "pipefail", "-c", script).strip() == "{}"
    run("bash", "bash", "-n", "/usr/local/lib/cronium/preamble.bash")


def test_a_changed_file_is_built_anew_and_the_old_image_is_gone(
    api: docker.APIClient, flavour: str, reference: str
) -> None:
    dockerfile = f"FROM {recipe.reference('base', flavour)}\nRUN echo once > /once\nCOPY helpers/a.sh /a.sh\n".encode()

    def ensure(content: bytes) -> Any:
        made = Recipe(reference=reference, files={"Dockerfile": dockerfile, "helpers/a.sh": content})
        return build._ensure(api, made, flavour, "sha256:parent", print)

    others = dangling(api)
    try:
        first, again, second = ensure(b"1"), ensure(b"1"), ensure(b"2")
        assert [first.built, again.built, second.built] == [True, False, True]
        assert first.id == again.id != second.id
        with pytest.raises(ImageNotFound):
            api.inspect_image(first.id)
        assert dangling(api) <= others
    finally:
        api.remove_image(reference)


def test_a_failing_step_is_told_with_its_output_and_leaves_nothing(
    api: docker.APIClient, flavour: str, reference: str
) -> None:
    base = recipe.reference("base", flavour)
    step = f"FROM {base}\nRUN echo {reference} > /mark\nRUN echo what went wrong; exit 9\n"
    images, containers = image_ids(api), {container["Id"] for container in api.containers(all=True)}

    with pytest.raises(ImageBuildError) as caught:
        build._ensure(
            api, Recipe(reference=reference, files={"Dockerfile": step.encode()}), flavour, "sha256:parent", print
        )

    message = str(caught.value)
    assert message.startswith(f"{reference}: ")
    assert "returned a non-zero code: 9" in message
    assert message.splitlines()[-1].endswith("what went wrong")
    assert "mark" not in message, "an earlier step's output"
    assert image_ids(api) == images
    assert {container["Id"] for container in api.containers(all=True)} == containers
    assert api.inspect_image(base)["RepoTags"], "the parent must keep its name"


def test_an_unknown_flavour_is_refused(api: docker.APIClient) -> None:
    with pytest.raises(ImageBuildError, match=r"^unknown flavour 'arch': alpine or debian$"):
        build_images(api, flavour="arch", report=print)


class _Registry:
    """An engine without images, whose registry answers, refuses, or is silent."""

    def __init__(self, answer: str) -> None:
        self.answer = answer
        self.released = threading.Event()

    def inspect_image(self, reference: str) -> dict[str, Any]:
        raise ImageNotFound(reference)

    def inspect_distribution(self, reference: str) -> dict[str, Any]:
        if self.answer == "silence":
            self.released.wait(timeout=60)
        if self.answer != "yes":
            raise APIError("no such host")
        return {"Descriptor": {}}


@pytest.mark.parametrize(("answer", "chosen"), [("yes", "alpine"), ("no", "debian"), ("silence", "debian")])
def test_the_flavour_follows_what_the_registry_says(monkeypatch: pytest.MonkeyPatch, answer: str, chosen: str) -> None:
    monkeypatch.setattr(build, "REGISTRY_TIMEOUT_S", 0.2)
    engine: Any = _Registry(answer)

    started = time.monotonic()
    assert build._choose_flavour(engine, print) == chosen
    assert time.monotonic() - started < 10
    engine.released.set()


@pytest.mark.parametrize("flavour", ["alpine", "debian"])
@pytest.mark.parametrize("name", NAMES)
def test_every_file_that_a_dockerfile_copies_is_in_its_context(flavour: str, name: str) -> None:
    made = recipe.load(name, flavour)
    from_a_wheel = ("nodejs/",) if recipe.REQUIREMENTS in made.files else ()
    copied = [
        source
        for line in made.files["Dockerfile"].decode().splitlines()
        if line.startswith("COPY ")
        for source in line.split()[1:-1]
        if source not in from_a_wheel
    ]
    for source in copied:
        assert any(path == source or path.startswith(source.rstrip("/") + "/") for path in made.files), source
    used = ("Dockerfile", recipe.REQUIREMENTS, *copied)
    unused = [path for path in made.files if not path.startswith(used)]
    assert not unused


def test_a_wheel_that_is_not_the_pinned_one_is_refused() -> None:
    requirements = recipe.load("node", "debian").files[recipe.REQUIREMENTS]
    with pytest.raises(ImageBuildError, match=r"Node\.js: pip could not bring its wheel"):
        nodejs.node_files(re.sub(rb"sha256:[0-9a-f]{8}", b"sha256:00000000", requirements))


def test_nodejs_is_of_a_release_that_is_supported(run: Any) -> None:
    assert int(run("node", "node", "--version").lstrip("v").split(".")[0]) >= 22


def test_the_flavours_are_parallel() -> None:
    def kept(flavour: str, name: str) -> list[str]:
        """All lines but the parent's, those of the package manager, and those of the user's making."""
        lines = recipe.load(name, flavour).files["Dockerfile"].decode().splitlines()
        words = ("COPY ", "USER ", "WORKDIR ", "ENTRYPOINT ", "RUN site", "RUN find")
        return [line for line in lines if line.startswith(words) and not line.startswith("COPY nodejs/")]

    for name in NAMES:
        assert kept("alpine", name) == kept("debian", name)


def test_the_digest_follows_everything_that_goes_in() -> None:
    made = Recipe(reference="a:b", files={"Dockerfile": b"FROM x", "helpers/a": b"1"})
    variants = [
        (made, "p", "1"),
        (made, "q", "1"),
        (made, "p", "2"),
        (Recipe(reference="a:c", files=made.files), "p", "1"),
        (Recipe(reference="a:b", files={**made.files, "helpers/a": b"2"}), "p", "1"),
        (Recipe(reference="a:b", files={"Dockerfile": b"FROM x", "helpers/b": b"1"}), "p", "1"),
        (Recipe(reference="a:b", files={"Dockerfile": b"FROM x", "helpers/a.sh": b"1"}), "p", "1"),
    ]
    digests = [recipe.digest(files, parent_digest=parent, version=number) for files, parent, number in variants]
    assert len(set(digests)) == len(variants)
    assert digests[0] == recipe.digest(made, parent_digest="p", version="1")


def test_the_context_is_the_same_whatever_the_files_age_owner_and_mode(tmp_path: Path) -> None:
    for place, mode, age in (("one", 0o600, 1), ("two", 0o755, 2)):
        folder = tmp_path / place / "images" / "x"
        folder.mkdir(parents=True)
        (folder / "base.Dockerfile").write_text("FROM y\n")
        (folder / "base.Dockerfile").chmod(mode)
        os.utime(folder / "base.Dockerfile", (age, age))

    one, two = (recipe.context(recipe.load("base", "x", tmp_path / place)) for place in ("one", "two"))
    assert one == two
