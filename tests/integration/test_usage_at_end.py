"""What a job has used is known however it ends, also if its cgroup is gone at the very moment of its end."""

from collections.abc import Callable

import pytest

from cronium_worker.engine.stats import UsageReader
from cronium_worker.models import Metrics
from tests.integration.conftest import Bench

ENDS = {
    "well": ("echo hi", 0),
    "with a code": ("exit 3", 3),
    "killed": ("kill -9 $$", 137),
    "for want of memory": ("tail /dev/zero", 137),
    "before a child": ("sleep 60 & echo hi", 0),
}


@pytest.fixture
def hasty_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """An engine that removes the cgroup with the last process, as one with systemd's driver may."""
    read: Callable[[UsageReader], Metrics] = UsageReader.read

    def read_of_living(reader: UsageReader) -> Metrics:
        return read(reader) if reader.processes() else Metrics()

    monkeypatch.setattr(UsageReader, "read", read_of_living)


@pytest.mark.usefixtures("hasty_engine")
@pytest.mark.parametrize("end", ENDS)
def test_every_figure_is_there(bench: Bench, end: str) -> None:
    content, code = ENDS[end]
    ran = bench.run(script={"type": "bash", "content": content}, resources={"memory": "64m"}, grace_period=1)

    assert ran.result.exit_code == code
    assert {name for name, figure in ran.result.metrics if figure is None} == set()


@pytest.mark.attack
@pytest.mark.parametrize(
    "content",
    [
        "echo > /run/cronium/ending; sleep 0.5",
        "yes > /run/cronium/ending & sleep 0.5",
        "exec 9>/run/cronium/ending; sleep 0.5; dd if=/dev/zero bs=64k count=1 >&9 2>&1 &",
    ],
    ids=["early", "flood", "late"],
)
def test_a_script_that_says_its_end_itself_ends_as_any(bench: Bench, content: str) -> None:
    ran = bench.run(script={"type": "bash", "content": f"{content}\necho last"}, grace_period=1)

    assert (ran.result.status, ran.text("stdout")) == ("completed", "last\n")
