"""Image references for the pull call, and who pulls when; the engine is a fake."""

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from docker.errors import ImageNotFound

from cronium_worker.engine.images import ImageManager, _split
from cronium_worker.errors import Cancelled, ImagePullError
from cronium_worker.settings import Registry
from tests.conftest import wait_until

DIGEST = "sha256:" + "0a" * 32


@pytest.mark.parametrize(
    ("reference", "name", "tag"),
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
def test_a_reference_is_split_for_the_pull_call(reference: str, name: str, tag: str) -> None:
    assert _split(reference) == (name, tag)


class Registrar:
    """An engine that has some images and pulls others; `messages` is what each pull says."""

    def __init__(self, *present: str, messages: Any = ()) -> None:
        self.present = set(present)
        self.messages = messages
        self.pulls: list[str] = []
        self.go = threading.Event()
        self.go.set()
        self.api = self.streams = self

    def inspect_image(self, reference: str) -> dict[str, Any]:
        if reference not in self.present:
            raise ImageNotFound(reference)
        return {}

    def pull(self, name: str, tag: str, **_: Any) -> Iterator[dict[str, Any]]:
        self.pulls.append(f"{name}:{tag}")
        self.go.wait(10)
        yield {"status": "Pulling", "id": "layer"}
        yield from self.messages
        self.present.add(f"{name}:{tag}")


def ensure(engine: Any, *candidates: str, policy: Any = "if-not-present", **changed: Any) -> str:
    options: dict[str, Any] = {"cancelled": lambda: False, "progress": lambda _: None, **changed}
    manager = options.pop("manager", None) or ImageManager(engine, Registry())
    return manager.ensure(candidates, policy, **options)


@pytest.mark.parametrize(
    ("present", "policy", "used", "pulls"),
    [
        (["a:1"], "if-not-present", "a:1", []),
        (["b:1"], "if-not-present", "b:1", []),
        ([], "if-not-present", "a:1", ["a:1"]),
        (["a:1", "b:1"], "never", "a:1", []),
        (["b:1"], "never", "b:1", []),
        (["a:1"], "always", "a:1", ["a:1"]),
    ],
)
def test_policies(present: list[str], policy: str, used: str, pulls: list[str]) -> None:
    engine = Registrar(*present)

    assert ensure(engine, "a:1", "b:1", policy=policy) == used
    assert engine.pulls == pulls


def test_what_may_not_be_pulled_and_is_not_there_is_an_error_with_a_remedy() -> None:
    with pytest.raises(ImagePullError, match="make images") as caught:
        ensure(Registrar(), "a:1", policy="never")

    assert not caught.value.retryable


@pytest.mark.parametrize(("code", "retryable"), [(401, False), (403, False), (404, False), (500, True), (None, True)])
def test_a_refusal_of_the_registry_is_not_tried_again(code: int | None, retryable: bool) -> None:
    engine = Registrar(messages=[{"error": "no", "errorDetail": {"code": code} if code else {}}])

    with pytest.raises(ImagePullError, match="image a:1: no") as caught:
        ensure(engine, "a:1")

    assert caught.value.retryable is retryable


def test_progress_is_told() -> None:
    lines: list[str] = []

    ensure(Registrar(), "a:1", progress=lines.append)

    assert lines == ["a:1: layer Pulling"]


def test_a_cancel_is_heard_while_the_registry_is_silent() -> None:
    engine = Registrar()
    engine.go.clear()
    cancelled = threading.Event()
    threading.Timer(0.05, cancelled.set).start()

    with pytest.raises(Cancelled):
        ensure(engine, "a:1", cancelled=cancelled.is_set)
    engine.go.set()


def test_a_pull_without_progress_is_given_up() -> None:
    engine = Registrar()
    engine.go.clear()
    fake: Any = engine

    with pytest.raises(ImagePullError, match=r"no progress for 0\.1 s") as caught:
        ensure(engine, "a:1", manager=ImageManager(fake, Registry(pull_idle_timeout=0.1)))
    engine.go.set()

    assert caught.value.retryable


def test_one_pull_serves_all_who_wait() -> None:
    engine = Registrar()
    engine.go.clear()
    fake: Any = engine
    manager = ImageManager(fake, Registry())
    results: list[str] = []
    threads = [
        threading.Thread(target=lambda: results.append(ensure(engine, "a:1", manager=manager))) for _ in range(5)
    ]
    for thread in threads:
        thread.start()
    wait_until(lambda: engine.pulls, what="a pull")

    engine.go.set()
    for thread in threads:
        thread.join(10)

    assert results == ["a:1"] * 5
    assert engine.pulls == ["a:1"]
