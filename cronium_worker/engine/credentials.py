"""Who asks a registry for an image: the settings' own login, or the host's Docker config (`docker login`)."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from docker import auth
from docker.errors import DockerException

from cronium_worker.errors import ImagePullError
from cronium_worker.models.reference import split_reference
from cronium_worker.settings import Registry


@dataclass(frozen=True)
class Credentials:
    """Equal ones may share a pull. Compared is what they are made from, not what a credential helper answers:
    some helpers make a new token each time."""

    source: str = field(repr=False)
    _resolve: Callable[[], dict[str, Any]] = field(repr=False, compare=False)

    def resolve(self) -> dict[str, Any]:
        """As the engine's API wants them; empty: nobody. May run a credential helper.

        Raises docker.errors.DockerException when that fails.
        """
        return self._resolve()


def find_credentials(reference: str, registry: Registry) -> Credentials:
    """The Docker config is read each time, so that a later `docker login` is seen. Raises ImagePullError."""
    login = registry.login(reference)
    if login is not None:
        username, password = login
        answer = {"username": username, "password": password}
        return Credentials(json.dumps(["settings", *login]), lambda: answer)
    try:
        config = auth.load_config()
        host, _ = auth.resolve_repository_name(split_reference(reference)[0])
        source = json.dumps(["config", config], sort_keys=True)
    except (DockerException, ValueError, TypeError, AttributeError) as error:
        reason = "the Docker config of this host (config.json) cannot be read"
        raise ImagePullError(f"image {reference}: {reason}", reason="other", image=reference) from error
    return Credentials(source, lambda: config.resolve_authconfig(host) or {})
