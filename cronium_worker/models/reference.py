"""Image references, taken apart as Docker does it: `[registry/]path[:tag][@digest]`. Pure."""

HUB = "docker.io"
_HUB_ALIASES = frozenset({"index.docker.io", "registry-1.docker.io"})


def is_registry(text: str) -> bool:
    """Whether the first component of a reference is a registry's host, and not part of the image's path."""
    return "." in text or ":" in text or text == "localhost"


def canonical_registry(host: str) -> str:
    """One name for each registry: lower case, and one of the Docker Hub's."""
    host = host.lower()
    return HUB if host in _HUB_ALIASES else host


def named_registry(reference: str) -> str | None:
    """The registry that a reference names; None: it names none, and is the Docker Hub's."""
    first, slash, _ = reference.partition("/")
    return canonical_registry(first) if slash and is_registry(first) else None


def split_reference(reference: str) -> tuple[str, str]:
    """Name, and tag or digest, as the engine's pull call wants them: without a tag, it would pull all of them.

    A digest decides alone: what stands as a tag before it is for the reader.
    """
    name, _, digest = reference.partition("@")
    path, colon, tag = name.rpartition(":")
    if not colon or "/" in tag:
        path, tag = name, "latest"
    return path, digest or tag


def repo_digest(reference: str, repo_digests: list[str]) -> str | None:
    """The digest, among an image's `name@digest` entries, under which it is known in the reference's repository."""
    wanted = _familiar(split_reference(reference)[0])
    return next(
        (digest for name, _, digest in (entry.partition("@") for entry in repo_digests) if name == wanted), None
    )


def _familiar(name: str) -> str:
    """As the engine shows it: without the Hub's own host and `library`."""
    if named_registry(name) == HUB:
        name = name.partition("/")[2]
    return name.removeprefix("library/") if named_registry(name) is None else name
