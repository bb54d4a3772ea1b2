"""What wakes a waiting thread."""

import selectors
import threading
from collections.abc import Iterator

import pytest

from cronium_worker.execution.signals import ActiveJobs, CancelToken, Wake
from tests.unit.workspace.trees import descriptors


@pytest.fixture
def wake() -> Iterator[Wake]:
    wake = Wake()
    yield wake
    if wake.fileno() >= 0:
        wake.close()


def awake(wake: Wake, timeout_s: float = 0) -> bool:
    with selectors.DefaultSelector() as selector:
        selector.register(wake, selectors.EVENT_READ)
        return bool(selector.select(timeout_s))


def test_a_selector_wakes_when_it_is_set_and_sleeps_when_it_is_cleared(wake: Wake) -> None:
    assert not awake(wake)

    wake.set()
    wake.set()

    assert awake(wake)
    wake.clear()
    assert not awake(wake)
    wake.clear()


def test_another_thread_wakes_a_sleeping_selector(wake: Wake) -> None:
    thread = threading.Timer(0.01, wake.set)
    thread.start()

    assert awake(wake, timeout_s=10)
    thread.join()


def test_setting_after_the_end_is_nothing(wake: Wake) -> None:
    before = descriptors()
    wake.close()
    assert descriptors() == before - 1

    wake.set()

    assert wake.fileno() == -1


def test_no_write_goes_to_a_descriptor_that_was_closed_meanwhile() -> None:
    """Another file may have the number by then."""
    for _ in range(50):
        wake = Wake()
        setters = [threading.Thread(target=wake.set) for _ in range(3)]
        for setter in setters:
            setter.start()
        wake.close()
        for setter in setters:
            setter.join()


def test_a_cancel_wakes_whoever_waits(wake: Wake) -> None:
    token = CancelToken()
    token.wakes(wake)
    assert not token.cancelled()
    assert not awake(wake)

    token.cancel()

    assert token.cancelled()
    assert awake(wake)


def test_a_cancel_from_before_wakes_at_once(wake: Wake) -> None:
    token = CancelToken()
    token.cancel()

    token.wakes(wake)

    assert awake(wake)


def test_a_cancel_wakes_nobody_any_more(wake: Wake) -> None:
    token = CancelToken()
    token.wakes(wake)
    token.wakes(None)

    token.cancel()

    assert token.cancelled()
    assert not awake(wake)


def test_waiting_for_a_cancel() -> None:
    token = CancelToken()

    assert token.wait(0) is False

    threading.Timer(0.01, token.cancel).start()
    assert token.wait(10) is True
    token.cancel()
    assert token.wait(0) is True


def test_the_jobs_of_a_process() -> None:
    active = ActiveJobs()
    one, two = active.add("one"), active.add("two")

    active.cancel("one")
    active.cancel("unknown")

    assert (one.cancelled(), two.cancelled()) == (True, False)
    assert active.ids() == ["one", "two"]
    active.discard("one")
    active.discard("one")
    assert active.ids() == ["two"]


def test_a_process_that_ends_leaves_the_jobs_that_it_has_and_those_to_come() -> None:
    active = ActiveJobs()
    before = active.add("before")
    assert not before.detached()

    active.detach()

    assert (before.detached(), active.add("after").detached()) == (True, True)
    assert not before.cancelled()


def test_the_same_job_keeps_its_token() -> None:
    active = ActiveJobs()

    assert active.add("one") is active.add("one")
