"""What a job learns of the other jobs on its engine, of its fleet and of others, and what it can send to them: nothing.

The host is one of the rig, as in test_firewall.py.
"""

import gc
import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

import pytest

from cronium_worker.engine.firewall import Firewall
from cronium_worker.engine.network import FIRST, JobsNetwork, find_network, names_beside
from cronium_worker.engine.wiring import Wiring
from cronium_worker.errors import NetworkError
from cronium_worker.execution.sandbox import Host
from cronium_worker.janitor import Janitor
from cronium_worker.models import Job
from cronium_worker.settings import Pool, Security
from tests.conftest import wait_until
from tests.integration.conftest import Bench
from tests.integration.fenced import (
    INTERNET,
    PRIVATE,
    fence,
    host,
    log,
    look,
    pid_of,
    remove_rules,
    rig_host,
    within,
    world,
)
from tests.rig import CRONIUM, RigHost
from tests.rig_network import NAMESPACES, run
from tests.world import RESOLVED, World, in_namespace

__all__ = ["fence", "host", "rig_host", "world"]

pytestmark = pytest.mark.timeout(300)

SLEEP = {"type": "python", "content": "import time; print('runs', flush=True); time.sleep(120)"}
# Asks servers for names by hand, as any script can (RFC 1035).
ASK = """
import os, random, socket, struct
from concurrent.futures import ThreadPoolExecutor

def ask(server, name, kind):
    question = b"".join(bytes([len(part)]) + part.encode() for part in name.split(".")) + b"\\0"
    query = struct.pack(">6H", random.randrange(65536), 0x100, 1, 0, 0, 0) + question + struct.pack(">2H", kind, 1)
    try:
        with socket.socket(type=socket.SOCK_DGRAM) as sender:
            sender.settimeout(2)
            sender.connect((server, 53))
            sender.send(query)
            answer = sender.recv(4096)
    except OSError as error:
        return [server, name, kind, -1, ""]
    return [server, name, kind, struct.unpack(">H", answer[6:8])[0], answer[len(query):].decode("latin-1")]

given = cronium.input()
own = [line.split()[1] for line in open("/etc/resolv.conf") if line.startswith("nameserver")]
pairs = [(server, name, kind) for server in [*own, *given["servers"]] for name, kind in given["questions"]]
with ThreadPoolExecutor(40) as threads:
    answers = list(threads.map(lambda pair: ask(*pair), pairs))
host_name = socket.gethostname()
cronium.output({
    "answers": [answer for answer in answers if answer[3] > 0],
    "own server": own,
    "a real name": socket.gethostbyname("example.test"),
    "own name": [socket.gethostbyname(host_name), socket.getfqdn(), os.popen("hostname -f").read().strip()],
    "files": "".join(open(path).read() for path in ("/etc/hosts", "/proc/net/arp", "/proc/net/fib_trie")),
    "links": [name for _, name in socket.if_nameindex()],
})
"""
A, PTR = 1, 12


class Neighbours:
    """Jobs that run. `names`: all that an engine or we call their containers; `addresses`: theirs."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.addresses: set[str] = set()
        self.pids: list[int] = []

    def add(self, rig_host: RigHost, container: Any) -> None:
        attributes = container.attrs
        self.names |= {container.name, container.id, container.id[:12], attributes["Config"]["Hostname"]}
        self.names |= {label for name, label in container.labels.items() if name == "cronium.job.id"}
        self.names.add(container.labels.get("cronium.sandbox", container.name))
        self.pids.append(attributes["State"]["Pid"])
        self.addresses.add(address_of(attributes["State"]["Pid"]))


def address_of(pid: int) -> str:
    shown = json.loads(run("nsenter", f"--net=/proc/{pid}/ns/net", "ip", "-json", "-4", "address", "show", "eth0"))
    return str(shown[0]["addr_info"][0]["local"])


def running(rig_host: RigHost) -> list[Any]:
    return list(rig_host.client.containers.list(filters={"label": "cronium.sandbox"}))


@pytest.fixture
def other_fleet(host: Host) -> Iterator[Host]:
    """A worker's of another fleet on the same engine. Its network goes with the test."""
    fleet = f"{host.settings.fleet}-other"
    other = Host(engine=host.engine, settings=host.settings.model_copy(update={"fleet": fleet}))
    yield other
    remove_network(other)


def remove_network(host: Host) -> None:
    for row in host.engine.api.networks(filters={"label": f"cronium.fleet={host.settings.fleet}"}):
        host.engine.api.remove_network(row["Id"])


@pytest.fixture
def neighbours(
    make_bench: Callable[..., Bench], other_fleet: Host, rig_host: RigHost, host: Host
) -> Iterator[Neighbours]:
    """Two jobs of this fleet, one of them in a sandbox that was warm, one of another fleet, and a container that the
    engine has attached to the network, as workers of before do."""
    warm = make_bench(pool=Pool(size=1, minimum=1))
    warm.runner.start()
    warm.wait_for_pool()
    benches = [warm, make_bench(), make_bench(on=other_fleet)]
    jobs = [bench.start(script=SLEEP) for bench in benches]
    for bench, job in zip(benches, jobs, strict=True):
        wait_until(lambda bench=bench, job=job: log(bench, job), what="a neighbour runs")
    image = running(rig_host)[0].image
    attached = rig_host.client.containers.run(
        image, ["sleep", "600"], entrypoint="", name="attached", network=FIRST.network, detach=True
    )
    attached.reload()
    found = Neighbours()
    for container in [*running(rig_host), attached]:
        found.add(rig_host, container)
    yield found
    attached.remove(force=True)
    for bench, job in zip(benches, jobs, strict=True):
        bench.runner.active.cancel(job.id)


@pytest.fixture(scope="module")
def resolver(world: World, host: Host, rig_host: RigHost) -> str:
    """The host's name server, as the engine tells it to containers: here it is in the world."""
    told = rig_host.client.containers.run(
        rig_host.client.images.list()[0], ["cat", "/etc/resolv.conf"], entrypoint="", network_mode="none", remove=True
    )
    address = next(line.split()[1] for line in told.decode().splitlines() if line.startswith("nameserver"))
    run("ip", "-n", world.name, "address", "add", address, "dev", "lo")
    world.listen("dns", address, 53)
    return address


@pytest.fixture(scope="module")
def services(world: World) -> None:
    for address in (INTERNET, PRIVATE):
        world.listen("tcp", address, 8000)


@pytest.mark.attack
@pytest.mark.parametrize("is_warm", [False, True], ids=["cold", "warm"])
def test_no_server_that_a_job_asks_tells_it_a_neighbour_s_name(
    is_warm: bool,
    neighbours: Neighbours,
    resolver: str,
    make_bench: Callable[..., Bench],
    fence: Callable[..., Firewall],
    host: Host,
    other_fleet: Host,
    rig_host: RigHost,
) -> None:
    fence()
    gateways = [str(network(each).gateway) for each in (host, other_fleet)]
    lan = json.loads(run("ip", "-n", rig_host.name, "-json", "-4", "address", "show"))
    hosts_own = [info["local"] for link in lan for info in link["addr_info"]]
    questions = [[IPv4Address(address).reverse_pointer, PTR] for address in neighbours.addresses]
    questions += [[name, A] for name in neighbours.names]
    questions += [[f"{name}.{suffix}", A] for name in neighbours.names for suffix in (FIRST.network, "local")]
    bench = make_bench(pool=Pool(size=1, minimum=1)) if is_warm else make_bench()
    if is_warm:
        bench.runner.start()
        bench.wait_for_pool()

    given = {"servers": ["127.0.0.11", *gateways, *hosts_own], "questions": questions}
    ran = bench.run(script={"type": "python", "content": ASK}, input_data=given)

    assert ran.result.status == "completed", (ran.result.error, ran.text("stderr"))
    assert bench.runner.pool_count().hits == is_warm
    seen = ran.result.output.data
    assert seen["own server"] == [resolver]
    assert seen["a real name"] == RESOLVED
    packed = [IPv4Address(address).packed.decode("latin-1") for address in neighbours.addresses]
    told = [answer for answer in seen["answers"] if answer[2] == PTR or any(each in answer[4] for each in packed)]
    assert told == []
    assert {answer[0] for answer in seen["answers"]} == {resolver}  # which knows nothing of the engine
    # Its own name is known, and to it alone.
    assert seen["own name"][0] == "127.0.1.1"
    assert seen["own name"][1] == seen["own name"][2] != ""
    assert not [name for name in neighbours.names | neighbours.addresses if name in seen["files"]]
    assert sorted(seen["links"]) == ["eth0", "lo"]
    assert ran.result.metrics.network_tx_bytes
    assert ran.result.metrics.network_rx_bytes


def network(host: Host) -> JobsNetwork:
    found = find_network(host.engine, fleet=host.settings.fleet)
    assert found is not None
    return found


@pytest.mark.attack
def test_no_frame_gets_from_one_job_to_another(
    make_bench: Callable[..., Bench], rig_host: RigHost, host: Host, fence: Callable[..., Firewall]
) -> None:
    """Root sends them in a job's network namespace, as a job may send no raw frames: ARP, IPv4, IPv6, to all, to groups
    and to the neighbour's own address. Firewall rules see none of these."""
    bench = make_bench()
    jobs = [bench.start(script=SLEEP) for _ in range(2)]
    sender, receiver = [Path(f"/proc/{pid_of(rig_host, job)}/ns/net") for job in jobs]
    for job in jobs:
        wait_until(lambda job=job: log(bench, job), what="both run")
    with ExitStack() as stack:
        at_receiver = stack.enter_context(in_namespace(receiver, lambda: sniffer("eth0")))
        at_bridge = stack.enter_context(in_namespace(NAMESPACES / rig_host.name, lambda: sniffer(FIRST.bridge)))
        raw = stack.enter_context(in_namespace(sender, lambda: sniffer("eth0")))
        mac, own = in_namespace(receiver, link_mac), in_namespace(sender, link_mac)
        for to in (b"\xff" * 6, bytes.fromhex("01005e0000fb"), bytes.fromhex("333300000001"), mac):
            for kind in (b"\x08\x06", b"\x08\x00", b"\x86\xdd", MARK[:2]):
                raw.send(to + own + kind + MARK)
        assert frames(at_bridge) >= 6  # the host gets what is for all, unless it is no proper IP
        assert frames(at_receiver) == 0
        in_namespace(NAMESPACES / rig_host.name, lambda: at_bridge.send(mac + own + MARK[:2] + MARK))
        wait_until(lambda: frames(at_receiver) == 1, what="the host itself reaches the job's link")
    for job in jobs:
        bench.runner.active.cancel(job.id)


MARK = b"\x88\xb5cronium-neighbour" + bytes(60)  # an Ethernet type for experiments (IEEE 802)


def sniffer(link: str) -> socket.socket:
    made = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    made.bind((link, 3))
    made.settimeout(0.3)
    return made


def link_mac() -> bytes:
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW) as probe:
        probe.bind(("eth0", 0))
        return bytes(probe.getsockname()[4])


def frames(sniffer: socket.socket) -> int:
    """How many of ours have come by now."""
    count = 0
    while True:
        try:
            count += MARK in sniffer.recv(4096)
        except TimeoutError:
            return count


# ---- two fleets


@pytest.mark.attack
def test_each_fleet_on_an_engine_has_its_own_network_and_rules(
    services: None, make_bench: Callable[..., Bench], host: Host, other_fleet: Host, rig_host: RigHost
) -> None:
    probes = [["tcp", INTERNET, 8000], ["tcp", PRIVATE, 8000]]
    benches = [make_bench(), make_bench(on=other_fleet)]
    for bench in benches:
        assert bench.runner._host.wiring.ensure() == "none"
    assert [network(each).names for each in (host, other_fleet)] == [FIRST, names_beside(other_fleet.settings.fleet)]
    walls = [
        Firewall(host.engine, Security(), fleet=host.settings.fleet),
        Firewall(host.engine, Security(block_private=True), fleet=other_fleet.settings.fleet),
    ]
    try:
        # Whoever comes last changes nothing of the other one's.
        for first, last in (walls, reversed(walls)):
            assert (first.keep(), last.keep()) == ("", "")
            assert [wall.look() for wall in walls] == [True, True]
            reached = [[answer is True for answer in look(bench, probes)] for bench in benches]
            assert reached == [[True, True], [True, False]]
        # One fleet's clean-up leaves the other one's network, used or not.
        for each in (host, other_fleet):
            janitor = Janitor(each.engine, benches[0].store, each.settings.model_copy(update={"orphan_retention": 0}))
            janitor.sweep()
        assert [network(each).names.network for each in (host, other_fleet)] == [
            FIRST.network, names_beside(other_fleet.settings.fleet).network,
        ]  # fmt: skip
    finally:
        remove_rules(rig_host)
        within(rig_host, "nft", "delete", "table", *names_beside(other_fleet.settings.fleet).table.split())


# ---- a network that goes away under running jobs


TALK = """
import socket, time
while True:
    try:
        with socket.create_connection(("%s", 8000), timeout=0.5) as connection:
            connection.sendall(b"x")
            print("reached" if connection.recv(9) else "nothing", flush=True)
    except OSError as error:
        print("lost", flush=True)
    time.sleep(0.05)
"""


@pytest.fixture
def talking(services: None, bench: Bench) -> Iterator[Job]:
    """A job that reaches the world again and again."""
    job = bench.start(script={"type": "python", "content": TALK % INTERNET})
    wait_until(lambda: "reached" in log(bench, job), what="the world is reached")
    yield job
    bench.runner.active.cancel(job.id)


def test_a_pruned_network_is_made_again_and_running_jobs_are_back_in_it(
    talking: Job, bench: Bench, rig_host: RigHost
) -> None:
    wiring = bench.runner._host.wiring
    before = network(bench.runner._host)
    assert FIRST.network in rig_host.client.networks.prune()["NetworksDeleted"]
    wait_until(lambda: log(bench, talking).endswith("lost\n"), what="the bridge is gone")
    began = time.monotonic()
    wiring.keep()
    wait_until(lambda: log(bench, talking).endswith("reached\n"), what="the job is back")
    assert time.monotonic() - began < 5
    assert network(bench.runner._host) == before
    assert bench.run(script={"type": "python", "content": ""}).result.status == "completed"


# The SDK does not close a socket that was refused.
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
def test_a_restart_of_the_engine_cuts_no_running_job(talking: Job, bench: Bench, rig_host: RigHost, host: Host) -> None:
    rig_host.kill_dockerd()
    rig_host.restart_dockerd(live_restore=True)
    host.wiring.keep()
    seen = len(log(bench, talking))
    wait_until(lambda: "reached" in log(bench, talking)[seen:], what="the job goes on")
    rig_host.restart_dockerd(live_restore=True)
    bench.runner._host.wiring.keep()
    seen = len(log(bench, talking))
    wait_until(lambda: "reached" in log(bench, talking)[seen:], what="the job goes on")
    assert "lost" not in log(bench, talking)
    gc.collect()  # while the warnings are ignored


# ---- addresses


def test_addresses_are_the_upper_half_s_and_none_is_given_twice(host: Host) -> None:
    wiring = Wiring(host.engine, host.settings)
    subnet = IPv4Network("192.0.2.0/28")
    small = JobsNetwork(FIRST, subnet, IPv4Address("192.0.2.14"), frozenset({IPv4Address("192.0.2.14")}))
    expected = {f"192.0.2.{last}" for last in range(8, 14)}
    for _ in range(3):
        found = [str(address) for address in wiring._addresses(small)]
        assert (len(found), set(found)) == (6, expected)


@pytest.fixture
def processes() -> Iterator[list[int]]:
    """Two in network namespaces of their own, as the first ones of sandboxes are."""
    with ExitStack() as stack:
        made = [stack.enter_context(subprocess.Popen(["unshare", "--net", "sleep", "60"])) for _ in range(2)]
        for process in made:
            stack.callback(process.kill)
            there = Path(f"/proc/{process.pid}/ns/net")
            wait_until(lambda there=there: not there.samefile("/proc/self/ns/net"), what="a namespace of its own")
        yield [process.pid for process in made]


def test_an_address_that_is_taken_is_given_to_nobody_else(
    host: Host, processes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = processes
    wirings = [Wiring(host.engine, host.settings) for _ in range(2)]  # of two workers
    address = network(host).subnet.broadcast_address - 1
    for wiring in wirings:
        assert wiring.ensure() == "none"
        monkeypatch.setattr(wiring, "_addresses", lambda _: iter([address]))
    wirings[0].connect(first)
    assert address_of(first) == str(address)
    with pytest.raises(NetworkError, match="all addresses are taken"):
        wirings[1].connect(second)


def test_a_sandbox_that_has_ended_is_left_alone(host: Host) -> None:
    wiring = Wiring(host.engine, host.settings)
    wiring.ensure()
    wiring.connect(2**22 - 1)


# ---- where the worker cannot do it


@pytest.mark.parametrize("without", ["sys_admin", "net_admin"])
def test_without_the_rights_the_engine_attaches_jobs_and_doctor_says_so(
    without: str, rig_host: RigHost, host: Host, world: World
) -> None:
    def limited(*command: str) -> subprocess.CompletedProcess[str]:
        whole = ["setpriv", f"--bounding-set=-{without}", *command]
        return subprocess.run(whole, env=rig_host.env, capture_output=True, text=True, timeout=60, check=False)

    found = next(line for line in limited(CRONIUM, "doctor").stdout.splitlines() if "jobs are connected" in line)
    assert found.startswith("weak jobs are connected: by the engine, whose DNS tells them their neighbours' names: ")
    assert "Operation not permitted) → run the worker" in found
    code = """
from cronium_worker.engine.client import Engine
from cronium_worker.engine.wiring import Wiring
from cronium_worker.settings import get_settings
wiring = Wiring(Engine(), get_settings())
print(wiring.ensure())
wiring.connect(1)
"""
    done = limited(sys.executable, "-c", code)
    assert done.stdout == f"{FIRST.network}\n"
    assert "jobs are attached by the engine" in done.stderr


def test_a_runtime_with_a_network_of_its_own_is_attached_by_the_engine(host: Host) -> None:
    settings = host.settings.model_copy(update={"security": Security(runtime="runsc")})
    assert Wiring(host.engine, settings).ensure() == FIRST.network
    assert "runsc" in Wiring(host.engine, settings).obstacle()
    assert Wiring(host.engine, host.settings).obstacle() == ""
