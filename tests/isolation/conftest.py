"""Sandboxes and jobs on the real engine, as in tests/integration."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from cronium_worker.engine.images import Pulled
from cronium_worker.execution.sandbox import Host, Sandbox
from cronium_worker.models import Job
from cronium_worker.settings import Pool
from tests.conftest import Leftovers
from tests.integration.conftest import Bench, host, make_bench, store
from tests.integration.scripts import LANGUAGES
from tests.isolation.images import found, image_for

__all__ = ["host", "make_bench", "store"]


@pytest.fixture(params=[0, 5], ids=["pool off", "pool on"])
def bench(make_bench: Callable[..., Bench], request: pytest.FixtureRequest) -> Bench:
    """Each job's sandbox is made for it, or so many for each type of script wait, and are made anew."""
    bench = make_bench(pool=Pool(size=len(LANGUAGES) * request.param, minimum=request.param))
    bench.runner.start()
    bench.wait_for_pool()
    return bench


@pytest.fixture
def make_sandbox(host: Host, leftovers: Leftovers) -> Iterator[Callable[..., Sandbox]]:
    """A sandbox that waits at its gate, in the session's host or in one with other settings. Nothing is left."""
    with ExitStack() as stack:

        def make(language: str, host: Host = host, image: Pulled | None = None, **fields: Any) -> Sandbox:
            job = Job.model_validate({"script": {"type": language, "content": ""}, **fields})
            image = image or found(host, image_for(host, language))
            sandbox = Sandbox.create(host, job=job, attempt=1, image=image)
            stack.callback(sandbox.destroy)
            return sandbox

        yield make
    leftovers.must_be_none()
