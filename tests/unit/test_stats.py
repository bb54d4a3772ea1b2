"""Usage of a container, from files like the kernel's."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from cronium_worker.engine.stats import UsageReader
from cronium_worker.models import Metrics

PID = 4242
GROUP = "docker/0123abcd"
NET_DEV = """\
Inter-|   Receive                            |  Transmit
 face |bytes packets errs drop fifo frame compressed multicast|bytes packets errs drop fifo colls carrier compressed
    lo: 1000       10    0    0    0     0          0         0     1000      10    0    0    0     0       0          0
  eth0: 2000       20    0    0    0     0          0         0      300       3    0    0    0     0       0          0
  eth1:5           1    0    0    0     0          0         0        7       1    0    0    0     0       0          0
"""
V1_GROUPS = f"""\
12:pids:/{GROUP}
11:net_cls,net_prio:/{GROUP}
10:memory:/{GROUP}
9:cpu,cpuacct:/{GROUP}
8:blkio:/{GROUP}
1:name=systemd:/{GROUP}
0::/system.slice/containerd.service
"""
V1_FILES = {
    "cpuacct/{}/cpuacct.usage": "2500000000\n",
    "memory/{}/memory.max_usage_in_bytes": "1048576\n",
    "memory/{}/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 3\n",
    "pids/{}/cgroup.procs": "4242\n4250\n4251\n",
    "pids/{}/pids.peak": "17\n",
    "blkio/{}/blkio.throttle.io_service_bytes_recursive": (
        "8:0 Read 4096\n8:0 Write 100\n8:0 Sync 4196\n8:0 Async 0\n8:0 Discard 9\n8:0 Total 4205\n"
        "8:16 Read 4\n8:16 Write 10\n8:16 Total 14\nTotal 4219\n"
    ),
}
V2_GROUPS = f"0::/{GROUP}\n"
V2_FILES = {
    "{}/cpu.stat": "usage_usec 2500000\nuser_usec 2000000\nsystem_usec 500000\nnr_periods 0\n",
    "{}/memory.peak": "1048576\n",
    "{}/memory.events": "low 0\nhigh 0\nmax 5\noom 4\noom_kill 3\noom_group_kill 0\n",
    "{}/pids.peak": "17\n",
    "{}/cgroup.procs": "4242\n4250\n4251\n",
    "{}/io.stat": (
        "8:0 rbytes=4096 wbytes=100 rios=1 wios=1 dbytes=9 dios=0\n8:16 rbytes=4 wbytes=10 rios=1 wios=1\n253:0\n"
    ),
}
ALL = Metrics(
    cpu_seconds=2.5,
    memory_peak_bytes=1048576,
    pids_peak=17,
    network_rx_bytes=2005,
    network_tx_bytes=307,
    disk_read_bytes=4100,
    disk_write_bytes=110,
)


class Host:
    """A host's files in a directory."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def write(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def reader(self, pid: int | None = PID) -> UsageReader:
        return UsageReader(pid, proc=self.root / "proc", cgroup_root=self.root / "cgroup")


@pytest.fixture
def make_host(tmp_path: Path) -> Callable[[int], Host]:
    def make(version: int) -> Host:
        host = Host(tmp_path)
        host.write(f"proc/{PID}/net/dev", NET_DEV)
        host.write(f"proc/{PID}/cgroup", V1_GROUPS if version == 1 else V2_GROUPS)
        for name, text in (V1_FILES if version == 1 else V2_FILES).items():
            host.write(f"cgroup/{name.format(GROUP)}", text)
        return host

    return make


@pytest.fixture(params=[1, 2], ids=["cgroup v1", "cgroup v2"])
def host(request: pytest.FixtureRequest, make_host: Callable[[int], Host]) -> Iterator[Host]:
    return make_host(request.param)


def test_all_figures_are_read(host: Host) -> None:
    reader = host.reader()

    assert reader.read() == ALL
    assert reader.oom_kills() == 3
    reader.close()


def test_the_figures_of_the_last_moment_are_read_from_the_files_that_were_opened(host: Host) -> None:
    reader = host.reader()
    for path in [*host.root.glob("cgroup/**/cpuacct.usage"), *host.root.glob("cgroup/**/cpu.stat")]:
        path.write_text("usage_usec 9000000\n" if path.name == "cpu.stat" else "9000000000\n")
    host.root.joinpath("proc").rename(host.root / "gone")
    host.root.joinpath("cgroup").rename(host.root / "gone too")

    assert reader.read().cpu_seconds == 9
    assert reader.read().network_rx_bytes == ALL.network_rx_bytes
    reader.close()


def test_what_was_used_before_the_beginning_does_not_count(host: Host) -> None:
    reader = host.reader()
    reader.begin()
    for path in [*host.root.glob("cgroup/**/cpuacct.usage"), *host.root.glob("cgroup/**/cpu.stat")]:
        path.write_text("usage_usec 9000000\n" if path.name == "cpu.stat" else "9000000000\n")

    assert ALL.cpu_seconds is not None
    assert reader.read() == ALL.model_copy(update={"cpu_seconds": 9 - ALL.cpu_seconds})
    reader.close()


def test_the_processes_are_those_of_the_moment(host: Host) -> None:
    reader = host.reader()
    assert reader.processes() == [4242, 4250, 4251]
    for path in host.root.glob("cgroup/**/cgroup.procs"):
        path.write_text("4242\n4260\n")
    assert reader.processes() == [4242, 4260]
    for path in host.root.glob("cgroup/**/cgroup.procs"):
        path.unlink()
    assert reader.processes() == []
    reader.close()


def test_what_was_written_is_the_sum_over_the_processes_that_are_there(host: Host) -> None:
    for process, written in ((4242, 4096), (4251, 100)):
        io = f"rchar: 5\nwchar: 7\nread_bytes: 1\nwrite_bytes: {written}\ncancelled_write_bytes: 50\n"
        host.write(f"proc/{process}/io", io)
    reader = host.reader()

    assert reader.written_bytes() == 4196
    reader.close()


def test_without_a_pid_nothing_is_known(host: Host) -> None:
    reader = host.reader(pid=None)

    assert reader.read() == Metrics()
    assert reader.oom_kills() == 0
    assert (reader.processes(), reader.written_bytes()) == ([], 0)
    reader.close()


def test_of_a_process_that_is_gone_nothing_is_known(host: Host) -> None:
    reader = host.reader(pid=1)

    assert reader.read() == Metrics()
    reader.close()


@pytest.mark.parametrize(
    ("file", "figures"),
    [
        ("cpuacct.usage", {"cpu_seconds"}),
        ("memory.max_usage_in_bytes", {"memory_peak_bytes"}),
        ("memory.oom_control", set()),
        ("pids.peak", {"pids_peak"}),
        ("blkio.throttle.io_service_bytes_recursive", {"disk_read_bytes", "disk_write_bytes"}),
        ("cpu.stat", {"cpu_seconds"}),
        ("memory.peak", {"memory_peak_bytes"}),
        ("memory.events", set()),
        ("io.stat", {"disk_read_bytes", "disk_write_bytes"}),
        ("dev", {"network_rx_bytes", "network_tx_bytes"}),
    ],
)
def test_a_file_that_the_kernel_does_not_have_is_one_figure_less(
    make_host: Callable[[int], Host], file: str, figures: set[str]
) -> None:
    v1 = any(name.endswith(f"/{file}") for name in V1_FILES)
    host = make_host(1 if v1 else 2)
    for path in host.root.rglob(file):
        path.unlink()

    reader = host.reader()

    assert reader.read() == ALL.model_copy(update=dict.fromkeys(figures))
    assert reader.oom_kills() == (3 if "memory." not in file or figures else 0)
    reader.close()


def test_without_a_network_of_its_own_the_figures_are_zero(host: Host) -> None:
    host.write(f"proc/{PID}/net/dev", "".join(NET_DEV.splitlines(keepends=True)[:3]))
    reader = host.reader()

    assert (reader.read().network_rx_bytes, reader.read().network_tx_bytes) == (0, 0)
    reader.close()


def test_empty_and_strange_files_are_no_figures(host: Host) -> None:
    for path in host.root.joinpath("cgroup").rglob("*.*"):
        if path.is_file():
            path.write_text("max\n")
    reader = host.reader()

    metrics = reader.read()

    assert (metrics.cpu_seconds, metrics.memory_peak_bytes, metrics.pids_peak) == (None, None, None)
    assert reader.oom_kills() == 0
    reader.close()


def test_no_descriptor_is_left(host: Host) -> None:
    before = sorted(Path("/proc/self/fd").iterdir())

    reader = host.reader()
    reader.read()
    reader.close()
    reader.close()

    assert sorted(Path("/proc/self/fd").iterdir()) == before
    assert reader.read() == Metrics()
