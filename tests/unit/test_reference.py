"""Image references: whose they are, and how they are taken apart."""

import pytest

from cronium_worker.models.reference import canonical_registry, named_registry, repo_digest, split_reference

DIGEST = "sha256:" + "0a" * 32


@pytest.mark.parametrize(
    ("reference", "name", "version"),
    [
        ("alpine", "alpine", "latest"),
        ("alpine:3.20", "alpine", "3.20"),
        ("team/tools", "team/tools", "latest"),
        ("team/tools:1", "team/tools", "1"),
        ("localhost:5000/tools", "localhost:5000/tools", "latest"),
        ("localhost:5000/team/tools:1", "localhost:5000/team/tools", "1"),
        (f"alpine@{DIGEST}", "alpine", DIGEST),
        (f"alpine:3.20@{DIGEST}", "alpine", DIGEST),
        (f"localhost:5000/tools@{DIGEST}", "localhost:5000/tools", DIGEST),
        (f"localhost:5000/team/tools:1@{DIGEST}", "localhost:5000/team/tools", DIGEST),
    ],
)
def test_a_reference_is_split_for_the_pull_call(reference: str, name: str, version: str) -> None:
    assert split_reference(reference) == (name, version)


@pytest.mark.parametrize(
    ("reference", "registry"),
    [
        ("alpine", None),
        ("alpine:3.20", None),
        ("team/tools:1", None),
        (f"team/tools@{DIGEST}", None),
        ("localhost/tools", "localhost"),
        ("localhost:5000/tools:1", "localhost:5000"),
        ("registry.example/team/tools", "registry.example"),
        ("Registry.Example:5000/tools", "registry.example:5000"),
        ("docker.io/library/alpine", "docker.io"),
        ("index.docker.io/library/alpine", "docker.io"),
        ("team:5000/tools", "team:5000"),
    ],
)
def test_the_registry_that_a_reference_names(reference: str, registry: str | None) -> None:
    assert named_registry(reference) == registry


def test_the_hub_has_one_name() -> None:
    assert {canonical_registry(name) for name in ("docker.io", "index.docker.io", "Registry-1.docker.io")} == {
        "docker.io"
    }


@pytest.mark.parametrize(
    ("reference", "entry"),
    [
        ("r.example:5000/team/tools:1", "r.example:5000/team/tools"),
        (f"r.example/tools:1@{DIGEST}", "r.example/tools"),
        ("alpine:3.20", "alpine"),
        ("docker.io/library/alpine", "alpine"),
        ("docker.io/team/tools:2", "team/tools"),
        ("library/alpine", "alpine"),
    ],
)
def test_a_digest_is_that_of_the_references_own_repository(reference: str, entry: str) -> None:
    elsewhere = "other.example/tools@sha256:" + "0b" * 32

    assert repo_digest(reference, [elsewhere, f"{entry}@{DIGEST}"]) == DIGEST
    assert repo_digest(reference, [elsewhere]) is None
