"""Who pulls what, when, and who shares it; the engine is a fake."""

import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from docker.errors import ImageNotFound

from cronium_worker.engine import credentials
from cronium_worker.engine.images import ImageManager, Pulled
from cronium_worker.errors import Cancelled, ImagePullError
from cronium_worker.settings import Registry
from tests.conftest import wait_until

DIGEST = "sha256:" + "0a" * 32


@pytest.fixture(autouse=True)
def _no_docker_config(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(credentials.auth, "load_config", lambda: credentials.auth.AuthConfig({}))


class Registrar:
    """An engine that has some images and pulls others, each when `go` is set; `messages` is what each pull says."""

    def __init__(self, *present: str, messages: Any = ()) -> None:
        self.here = {reference: f"id of {reference}" for reference in present}
        self.messages = messages
        self.pulls: list[str] = []
        self.headers: list[dict[str, Any]] = []
        self.open = 0
        self.go = threading.Event()
        self.go.set()
        self.api = self.questions = self
        self.base_url = ""

    def inspect_image(self, reference: str) -> dict[str, Any]:
        reference = {"a": "a:latest"}.get(reference, reference)
        if reference not in self.here:
            raise ImageNotFound(reference)
        return {"Id": self.here[reference], "RepoDigests": None, "RepoTags": [reference]}

    def own_client(self) -> "Registrar":
        self.open += 1
        return self

    def get_adapter(self, _: str) -> Any:
        return SimpleNamespace(get_connection_with_tls_context=None)

    def close(self) -> None:
        self.open -= 1

    def pull(self, name: str, tag: str, *, auth_config: dict[str, Any], **_: Any) -> Iterator[dict[str, Any]]:
        self.pulls.append(f"{name}:{tag}")
        self.headers.append(auth_config)
        yield {"status": "Pulling fs layer", "id": "layer"}
        self.go.wait(10)
        yield from self.messages
        self.here[f"{name}:{tag}"] = f"pull {len(self.pulls)}"


@pytest.fixture
def held() -> Iterator[Registrar]:
    """An engine whose pulls wait; let go at the end."""
    engine = Registrar()
    engine.go.clear()
    yield engine
    engine.go.set()
    wait_until(lambda: engine.open == 0, what="no pull is left")


def manager_of(engine: Any, **registry: Any) -> ImageManager:
    return ImageManager(engine, Registry(**registry))


def quiet(_: str, **__: Any) -> None:
    pass


def ensure(engine: Any, *candidates: str, policy: Any = "if-not-present", **changed: Any) -> str:
    options: dict[str, Any] = {"cancelled": lambda: False, "progress": quiet, **changed}
    manager = options.pop("manager", None) or manager_of(engine)
    return manager.pull_first(candidates, policy=policy, **options).image


class Waiter:
    """A thread that waits for an image; `outcome` is what it got."""

    def __init__(self, manager: ImageManager, reference: str = "a:1", **options: Any) -> None:
        self.outcome: Any = None
        self.lines: list[str] = []
        self.cancel = threading.Event()
        arguments = {"policy": "if-not-present", "cancelled": self.cancel.is_set, "progress": self._note, **options}
        self.thread = threading.Thread(target=self._run, args=(lambda: manager.pull(reference, **arguments),))
        self.thread.start()

    def _note(self, message: str, **_: Any) -> None:
        self.lines.append(message)

    def _run(self, work: Callable[[], Pulled]) -> None:
        try:
            self.outcome = work()
        except (ImagePullError, Cancelled) as error:
            self.outcome = error

    def end(self) -> Any:
        self.thread.join(10)
        assert not self.thread.is_alive()
        return self.outcome


def waiting(manager: ImageManager) -> int:
    return sum(pull.waiting for pull in manager._pulls.values())


@pytest.mark.parametrize(
    ("present", "policy", "used", "pulls"),
    [
        (["a:1"], "if-not-present", "a:1", []),
        (["b:1"], "if-not-present", "b:1", []),
        ([], "if-not-present", "a:1", ["a:1"]),
        (["a:1", "b:1"], "never", "a:1", []),
        (["b:1"], "never", "b:1", []),
        (["a:1"], "always", "a:1", ["a:1"]),
        (["b:1"], "always", "a:1", ["a:1"]),
    ],
)
def test_policies(present: list[str], policy: str, used: str, pulls: list[str]) -> None:
    engine = Registrar(*present)

    assert ensure(engine, "a:1", "b:1", policy=policy) == used
    assert engine.pulls == pulls


def test_the_one_that_was_found_is_looked_for_first() -> None:
    engine = Registrar("b:1")
    manager = manager_of(engine)
    assert ensure(engine, "a:1", "b:1", manager=manager) == "b:1"
    engine.here["a:1"] = "another flavour"
    assert ensure(engine, "a:1", "b:1", manager=manager) == "b:1"
    del engine.here["b:1"]
    assert ensure(engine, "a:1", "b:1", manager=manager) == "a:1"


def test_what_is_pinned_by_a_digest_and_here_is_never_pulled_again() -> None:
    engine = Registrar(f"a@{DIGEST}")

    assert ensure(engine, f"a@{DIGEST}", policy="always") == f"a@{DIGEST}"
    assert engine.pulls == []


def test_what_may_not_be_pulled_and_is_not_there_is_an_error_with_a_remedy() -> None:
    with pytest.raises(ImagePullError, match="make images") as caught:
        ensure(Registrar(), "a:1", policy="never")

    assert not caught.value.retryable
    assert caught.value.details == {"reason": "not_found", "image": "a:1"}


def test_where_the_registry_has_not_the_first_candidate_the_next_is_pulled(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Registrar()

    def only_b(name: str, tag: str, **_: Any) -> Iterator[dict[str, Any]]:
        engine.pulls.append(name)
        if name != "b":
            yield {"error": "not found", "errorDetail": {"code": 404}}
        engine.here[f"{name}:{tag}"] = "pulled"

    monkeypatch.setattr(engine, "pull", only_b)

    assert ensure(engine, "a:1", "b:1") == "b:1"
    assert engine.pulls == ["a", "b"]
    with pytest.raises(ImagePullError, match="image c:1: not found"):
        ensure(engine, "c:1", "d:1")


def test_a_registry_that_cannot_be_reached_is_not_asked_for_the_next_candidate() -> None:
    engine = Registrar(messages=[{"error": "connection refused"}])

    with pytest.raises(ImagePullError, match="image a:1: connection refused"):
        ensure(engine, "a:1", "b:1")
    assert engine.pulls == ["a:1"]


@pytest.mark.parametrize(
    ("code", "reason", "retryable"),
    [
        (401, "denied", False),
        (403, "denied", False),
        (404, "not_found", False),
        (500, "other", True),
        (None, "other", True),
    ],
)
def test_a_refusal_of_the_registry_is_not_tried_again(code: int | None, reason: str, retryable: bool) -> None:
    engine = Registrar(messages=[{"error": "no", "errorDetail": {"code": code} if code else {}}])

    with pytest.raises(ImagePullError, match="image a:1: no") as caught:
        ensure(engine, "a:1")

    assert (caught.value.details["reason"], caught.value.retryable) == (reason, retryable)


def test_a_prefix_is_put_before_what_names_no_registry() -> None:
    engine = Registrar()
    manager = manager_of(engine, prefix="r.example:5000/team")

    pulled = manager.pull("a:1", policy="always", cancelled=lambda: False, progress=quiet)

    assert engine.pulls == ["r.example:5000/team/a:1"]
    assert (pulled.reference, pulled.image) == ("a:1", "r.example:5000/team/a:1")
    # What has it already, and what names another registry, stays as it is.
    assert ensure(engine, pulled.image, manager=manager) == pulled.image
    assert ensure(engine, "other.example/b:1", manager=manager) == "other.example/b:1"


def test_what_a_pull_changed_is_told() -> None:
    engine = Registrar("a:1")
    manager = manager_of(engine)

    def pull(policy: Any) -> Pulled:
        return manager.pull("a:1", policy=policy, cancelled=lambda: False, progress=quiet)

    here, moved = pull("if-not-present"), pull("always")
    engine.here["a:1"] = "pull 2"  # what the next pull brings

    assert (here.pulled, here.id) == (False, "id of a:1")
    assert (moved.pulled, moved.id) == (True, "pull 1")
    assert not pull("always").pulled


def test_one_pull_serves_all_who_wait(held: Registrar) -> None:
    manager = manager_of(held)
    waiters = [Waiter(manager, policy=policy) for policy in ("always", "if-not-present", "always") * 3]
    wait_until(lambda: waiting(manager) == 9, what="all wait")

    held.go.set()
    outcomes = [waiter.end() for waiter in waiters]

    assert held.pulls == ["a:1"]
    assert {outcome.id for outcome in outcomes} == {"pull 1"}
    assert manager._pulls == {}


def test_the_tag_that_is_meant_is_the_same_reference(held: Registrar) -> None:
    manager = manager_of(held)
    waiters = [Waiter(manager, reference) for reference in ("a", "a:latest")]
    wait_until(lambda: waiting(manager) == 2, what="both wait")

    held.go.set()

    assert [waiter.end().id for waiter in waiters] == ["pull 1"] * 2


def test_who_comes_after_the_end_has_a_pull_of_their_own() -> None:
    engine = Registrar()
    manager = manager_of(engine)

    for _ in range(2):
        ensure(engine, "a:1", policy="always", manager=manager)

    assert engine.pulls == ["a:1"] * 2


def test_other_credentials_make_another_pull(held: Registrar, monkeypatch: pytest.MonkeyPatch) -> None:
    manager = manager_of(held)
    first = Waiter(manager)
    wait_until(lambda: held.pulls, what="a pull")
    entry = {"username": "eve", "password": "pw"}
    config = credentials.auth.AuthConfig({"auths": {"docker.io": entry}})
    monkeypatch.setattr(credentials.auth, "load_config", lambda: config)

    second = Waiter(manager)
    wait_until(lambda: len(held.pulls) == 2, what="another pull")
    held.go.set()

    assert [first.end().pulled, second.end().pulled] == [True, True]
    assert held.headers == [{}, entry]


def test_a_failure_is_shared_and_each_has_an_error_of_their_own(held: Registrar) -> None:
    held.messages = [{"error": "unauthorized: no", "errorDetail": {}}]
    manager = manager_of(held)
    waiters = [Waiter(manager) for _ in range(3)]
    wait_until(lambda: waiting(manager) == 3, what="all wait")

    held.go.set()
    errors = [waiter.end() for waiter in waiters]

    assert held.pulls == ["a:1"]
    assert {(type(error), error.details["reason"], error.retryable) for error in errors} == {
        (ImagePullError, "denied", False)
    }
    assert len({id(error) for error in errors}) == 3


def test_a_cancel_of_one_leaves_the_pull_to_the_others(held: Registrar) -> None:
    manager = manager_of(held)
    leaver, stayer = Waiter(manager), Waiter(manager)
    wait_until(lambda: waiting(manager) == 2, what="both wait")

    leaver.cancel.set()
    assert isinstance(leaver.end(), Cancelled)
    held.go.set()

    assert stayer.end().pulled
    assert held.pulls == ["a:1"]


def test_when_the_last_one_leaves_the_next_begins_anew(held: Registrar) -> None:
    manager = manager_of(held)
    leaver = Waiter(manager)
    wait_until(lambda: held.pulls, what="a pull")
    leaver.cancel.set()
    assert isinstance(leaver.end(), Cancelled)
    assert manager._pulls == {}

    second = Waiter(manager)
    wait_until(lambda: len(held.pulls) == 2, what="another pull")
    held.go.set()

    assert second.end().pulled


@pytest.mark.parametrize(
    ("limits", "reason", "text"),
    [
        ({"pull_idle_timeout": 0.1}, "stalled", "no progress for 0.1 s"),
        ({"pull_timeout": 0.1}, "timeout", "not done after 0.1 s"),
    ],
)
def test_limits_end_a_pull_for_all(held: Registrar, limits: dict[str, float], reason: str, text: str) -> None:
    manager = manager_of(held, **limits)
    errors = [waiter.end() for waiter in [Waiter(manager), Waiter(manager)]]

    assert [(str(error), error.retryable, error.details["reason"]) for error in errors] == [
        (f"image a:1: {text}", True, reason)
    ] * 2


def test_progress_is_told_at_once_and_then_twice_a_second_at_most(held: Registrar) -> None:
    def messages() -> Iterator[dict[str, Any]]:
        for current in range(130):
            yield {"status": "Downloading", "id": "layer", "progressDetail": {"current": current, "total": 130}}
            threading.Event().wait(0.01)

    held.messages = messages()
    held.go.set()
    told: list[tuple[float, dict[str, Any]]] = []

    ensure(held, "a:1", progress=lambda message, **fields: told.append((time.monotonic(), fields)))

    gaps = [after - before for (before, _), (after, _) in pairwise(told)]
    assert 2 <= len(gaps) <= 4
    assert min(gaps) >= 0.5
    assert set(told[0][1]) == {"image", "layers", "layers_done", "bytes", "bytes_total"}
    assert sorted(fields["bytes"] for _, fields in told) == [fields["bytes"] for _, fields in told]


def test_a_pull_that_is_done_at_once_is_told_too() -> None:
    lines: list[str] = []

    ensure(Registrar(), "a:1", progress=lambda message, **_: lines.append(message))

    assert lines[0].startswith("pulling a:1")


def test_who_comes_late_sees_progress_too(held: Registrar) -> None:
    manager = manager_of(held)
    first = Waiter(manager)
    wait_until(lambda: "pulling a:1: 0 of 1 layers" in first.lines, what="progress")

    late = Waiter(manager)
    wait_until(lambda: late.lines == ["pulling a:1: 0 of 1 layers"], timeout_s=2, what="progress for the second")
    held.go.set()

    assert late.end().pulled
    assert first.end().pulled


def test_an_image_that_is_gone_right_after_its_pull_is_no_success(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Registrar()
    monkeypatch.setattr(engine, "pull", lambda *_, **__: iter(()))

    with pytest.raises(ImagePullError, match="gone again") as caught:
        ensure(engine, "a:1")

    assert caught.value.retryable


def test_a_broken_docker_config_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ValueError("Incorrect padding")

    monkeypatch.setattr(credentials.auth, "load_config", broken)

    with pytest.raises(ImagePullError, match=r"config\.json") as caught:
        ensure(Registrar(), "a:1")

    assert not caught.value.retryable
