"""Who gets a host's cores and memory, and in which order."""

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from cronium_worker.execution.admission import PRIORITY_S, Admission, Share, Ticket
from cronium_worker.execution.signals import CancelToken
from tests.conftest import wait_until
from tests.unit.workspace.trees import descriptors

WHOLE = Share(4000, 4096)


class Line:
    """Jobs that want to get in, each in a thread."""

    def __init__(self) -> None:
        self.crowded: list[bool] = []
        self.admission = Admission(WHOLE)
        self.admission.on_crowded = self.crowded.append
        self.admitted: list[str] = []
        self.turned_away: list[str] = []
        self.told: dict[str, str] = {}
        self.tokens: dict[str, CancelToken] = {}
        self.threads: list[threading.Thread] = []

    def enter(self, name: str, share: Share, *, priority: int = 5, since_s: float = 0.0) -> None:
        token = self.tokens[name] = CancelToken()

        def run() -> None:
            is_in = self.admission.enter(
                share,
                Ticket(priority, since_s, token),
                on_wait=lambda message: self.told.update({name: message}),
            )
            (self.admitted if is_in else self.turned_away).append(name)

        thread = threading.Thread(target=run)
        thread.start()
        self.threads.append(thread)
        wait_until(lambda: name in [*self.told, *self.admitted, *self.turned_away], what=f"{name} is in, or waits")

    def until(self, admitted: list[str]) -> None:
        wait_until(lambda: self.admitted == admitted, what=f"{admitted} are in, not {self.admitted}")


@pytest.fixture
def line() -> Iterator[Line]:
    before = descriptors()
    line = Line()
    yield line
    for token in line.tokens.values():
        token.cancel()
    for thread in line.threads:
        thread.join(5)
        assert not thread.is_alive()
    assert descriptors() == before, "each job that waited has closed what it waited on"


def test_what_fits_is_let_in_and_no_more(line: Line) -> None:
    line.enter("a", Share(2000, 1024))
    line.enter("b", Share(2000, 1024))
    assert (line.admitted, line.admission.reserved, line.crowded) == (["a", "b"], Share(4000, 2048), [])

    line.enter("c", Share(1, 1))
    assert line.admitted == ["a", "b"]
    assert (line.admission.waiting, line.crowded) == (1, [True])

    line.admission.leave(Share(2000, 1024))
    line.until(["a", "b", "c"])
    assert (line.admission.reserved, line.crowded) == (Share(2001, 1025), [True, False])


@pytest.mark.parametrize(
    ("running", "coming"), [(Share(4000, 0), Share(1, 0)), (Share(0, 4096), Share(0, 1))], ids=["cores", "memory"]
)
def test_each_of_both_is_limited(line: Line, running: Share, coming: Share) -> None:
    line.enter("a", running)
    line.enter("b", coming)
    assert line.admitted == ["a"]


def test_a_job_that_needs_much_is_not_passed_by_those_that_need_little(line: Line) -> None:
    line.enter("a", Share(1000, 0))
    line.enter("all", Share(4000, 0), since_s=1)
    line.enter("little", Share(1000, 0), since_s=2)
    assert line.admitted == ["a"]

    line.admission.leave(Share(1000, 0))
    line.until(["a", "all"])
    line.admission.leave(Share(4000, 0))
    line.until(["a", "all", "little"])


def test_the_important_and_the_old_come_first(line: Line) -> None:
    line.enter("a", Share(4000, 0))
    line.enter("young", Share(4000, 0), since_s=100)
    line.enter("old", Share(4000, 0), since_s=99)
    line.enter("important", Share(4000, 0), priority=6, since_s=99 + PRIORITY_S - 1)
    line.enter("too late", Share(4000, 0), priority=6, since_s=100 + PRIORITY_S + 1)

    order = ["a", "important", "old", "young", "too late"]
    for count in range(2, len(order) + 1):
        line.admission.leave(Share(4000, 0))
        line.until(order[:count])


@pytest.mark.parametrize("end", [CancelToken.cancel, CancelToken.detach])
def test_a_job_that_is_told_to_end_makes_way(line: Line, end: Callable[[CancelToken], None]) -> None:
    line.enter("a", Share(1000, 0))
    line.enter("all", Share(4000, 0), since_s=1)
    line.enter("little", Share(3000, 0), since_s=2)
    assert line.admitted == ["a"]

    end(line.tokens["all"])
    line.until(["a", "little"])
    assert line.turned_away == ["all"]
    assert (line.admission.reserved, line.admission.waiting, line.crowded) == (Share(4000, 0), 0, [True, False])


def test_nothing_is_kept_for_a_job_whose_wait_cannot_be_told(line: Line) -> None:
    def fail(message: str) -> None:
        line.admission.leave(Share(4000, 0))  # its turn comes in this moment
        raise OSError(message)

    line.enter("a", Share(4000, 0))
    with pytest.raises(OSError, match=r"waiting for 4 cores and 0 MiB: 0 cores and 0 MiB of 4 cores"):
        line.admission.enter(Share(4000, 0), Ticket(5, 0, CancelToken()), on_wait=fail)
    assert (line.admission.reserved, line.admission.waiting) == (Share(0, 0), 0)


def test_a_turn_that_comes_as_a_job_gives_up_is_given_back(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    withdraw = line.admission._withdraw

    def late(waiting: Any) -> None:
        line.admission.leave(Share(4000, 0))
        withdraw(waiting)

    line.enter("a", Share(4000, 0))
    monkeypatch.setattr(line.admission, "_withdraw", late)
    line.enter("b", Share(4000, 0))
    line.tokens["b"].cancel()
    wait_until(lambda: line.turned_away == ["b"], what="b is turned away")
    assert line.admission.reserved == Share(0, 0)


def test_a_running_job_is_counted_whatever_is_free(line: Line) -> None:
    line.admission.reserve(Share(5000, 0))
    line.enter("a", Share(0, 1))
    assert line.admitted == []

    line.admission.leave(Share(5000, 0))
    line.until(["a"])


def test_what_can_never_fit_is_named_with_the_numbers() -> None:
    admission = Admission(WHOLE)
    assert admission.excess(WHOLE) == ""
    assert admission.excess(Share(4001, 0)).startswith("resources.cpu: 4.001 is more than this host has")
    assert admission.excess(Share(0, 4097)).startswith("resources.memory: 4097 is more than this host has")
    assert Admission().excess(Share(10**9, 10**15)) == ""
