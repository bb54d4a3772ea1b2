"""Which image a language has on this host, and images that somebody made in an odd way."""

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO

import docker

from cronium_worker.engine.images import ImageManager, Pulled
from cronium_worker.engine.inventory import present_images
from cronium_worker.execution.sandbox import Host


def image_for(host: Host, language: str) -> str:
    """The runner image that a job of this language would get."""
    [first, *_] = present_images(host.engine, host.settings.images.candidates(language))
    return str(first["image"])


def found(host: Host, image: str) -> Pulled:
    """What a worker knows of an image that is here."""
    here = ImageManager(host.engine, host.settings.registry).find([image])
    assert here is not None
    return here


@contextmanager
def built(name: str, dockerfile: str) -> Iterator[str]:
    """An image of our own, gone afterwards."""
    client = docker.from_env()
    try:
        client.images.build(fileobj=BytesIO(dockerfile.encode()), tag=name, rm=True)
        try:
            yield name
        finally:
            client.images.remove(name, force=True)
    finally:
        client.close()
