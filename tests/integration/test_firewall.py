"""What a job on the isolated network reaches: the world, and nothing of its host, its cloud or its neighbours.

The host is one of the rig: its engine and its firewall are in a network namespace of their own.
"""

import json
import re
import socket
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import pytest
from docker.types import IPAMConfig, IPAMPool

from cronium_worker.engine import firewall as module
from cronium_worker.engine.firewall import Firewall, name_servers
from cronium_worker.engine.network import FIRST, ensure_network
from cronium_worker.engine.spec import NETWORK_NAME
from cronium_worker.errors import NetworkError
from cronium_worker.execution.sandbox import Host
from cronium_worker.settings import Security
from tests.conftest import wait_until
from tests.integration.conftest import Bench
from tests.integration.fenced import (
    ALIBABA,
    ECS,
    INTERNET,
    METADATA,
    METADATA_6,
    PRIVATE,
    PRIVATE_TOO,
    fence,
    gateway,
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
from tests.world import HOST_ADDRESS, WORLD_ADDRESS, Listener, World, in_namespace

__all__ = ["fence", "host", "rig_host", "world"]

pytestmark = pytest.mark.timeout(300)

IPV6 = IPAMConfig(pool_configs=[IPAMPool(subnet="fd00:1::/64")])
LISTEN = """
import socket, time
tcp, udp = socket.create_server(("", 8000)), socket.socket(type=socket.SOCK_DGRAM)
udp.bind(("", 8000))
udp.connect(("198.51.100.7", 8000))
print(udp.getsockname()[0], flush=True)
tcp.settimeout(60)
connection, _ = tcp.accept()
connection.sendall(b"reached")
"""


@dataclass
class Targets:
    """What jobs try to reach. `closed`: by name, a probe, and the listener behind it."""

    closed: dict[str, tuple[list[Any], Listener]]
    redirect: Listener

    def probes(self) -> list[list[Any]]:
        return [probe for probe, _ in self.closed.values()]

    def hits(self) -> dict[str, int]:
        return {name: listener.hits for name, (_, listener) in self.closed.items()}


@pytest.fixture(scope="module")
def targets(world: World, host: Host, rig_host: RigHost) -> Targets:
    """Each of the host's and the cloud's, by several ways."""
    for kind in ("tcp", "udp"):
        for address in (INTERNET, PRIVATE, PRIVATE_TOO):
            world.listen(kind, address, 8000)
    world.listen("tcp", PRIVATE, 8001)
    world.listen("dns", INTERNET, 53)
    world.listen("dns", METADATA, 53)
    run("ip", "-n", rig_host.name, "address", "add", f"{ECS}/32", "dev", "lo")
    forward = ["-d", HOST_ADDRESS, "-p", "tcp", "--dport", "9000", "-j", "DNAT", "--to", f"{WORLD_ADDRESS}:9000"]
    within(rig_host, "iptables", "-t", "nat", "-A", "PREROUTING", *forward)
    redis = world.listen("tcp", "0.0.0.0", 6379, on_host=True)
    metadata, metadata_udp = world.listen("tcp", METADATA, 80), world.listen("udp", METADATA, 80)
    redirect = world.listen("tcp", INTERNET, 80, redirect=f"http://{METADATA}/")
    lan = json.loads(run("ip", "-n", rig_host.name, "-json", "-4", "address", "show", "eth0"))[0]["addr_info"][0]
    bridge = gateway(host)
    closed: dict[str, tuple[list[Any], Listener]] = {
        "redis at the gateway": (["tcp", bridge, 6379], redis),
        "redis at another bridge": (["tcp", gateway(host, "bridge"), 6379], redis),
        "redis at the LAN's address": (["tcp", lan["local"], 6379], redis),
        "redis at a link-local address": (["tcp", ECS, 6379], redis),
        "a datagram to the gateway": (["udp", bridge, 6379], world.listen("udp", bridge, 6379, on_host=True)),
        "a port that the host forwards": (["tcp", HOST_ADDRESS, 9000], world.listen("tcp", WORLD_ADDRESS, 9000)),
        "metadata": (["http", f"http://{METADATA}/"], metadata),
        "metadata by datagram": (["udp", METADATA, 80], metadata_udp),
        "metadata as a number": (["http", "http://2852039166/"], metadata),
        "metadata in octal": (["http", "http://0251.0376.0251.0376/"], metadata),
        "metadata in hexadecimal": (["http", "http://0xa9fea9fe/"], metadata),
        "metadata by name": (["http", "http://metadata.test/"], metadata),
        "metadata by redirect": (["http", f"http://{INTERNET}/"], metadata),
        "another cloud's metadata": (["http", f"http://{ALIBABA}/"], world.listen("tcp", ALIBABA, 80)),
    }
    return Targets(closed, redirect)


def test_the_world_is_open_and_what_is_the_host_s_and_the_cloud_s_is_not(
    targets: Targets, bench: Bench, fence: Callable[..., Firewall], rig_host: RigHost
) -> None:
    world = [
        ["tcp", INTERNET, 8000],
        ["udp", INTERNET, 8000],
        ["tcp", PRIVATE, 8000],
        ["name", "example.test"],
        ["tcp", "mirror.test", 8000],
    ]
    network = {"dns": [INTERNET], "extra_hosts": {"metadata.test": METADATA, "mirror.test": INTERNET}}
    ipv6 = ["tcp", METADATA_6, 80]

    fence()
    answers = look(bench, [*world, ipv6, *targets.probes()], **network)
    assert answers[: len(world)] == [True] * len(world)
    assert [answer for answer in answers[len(world) :] if answer is True] == []
    assert set(targets.hits().values()) == {0}
    assert targets.redirect.hits == 1

    remove_rules(rig_host)
    assert look(bench, [*world, *targets.probes()], **network) == [True] * (len(world) + len(targets.closed))
    assert min(targets.hits().values()) > 0


def test_the_host_s_link_local_ipv6_address_is_closed(
    world: World, bench: Bench, fence: Callable[..., Firewall], rig_host: RigHost
) -> None:
    """A job's container has no IPv6; it is given an address from outside."""
    job = bench.start(script={"type": "python", "content": "import time; time.sleep(60)"})
    namespace = Path(f"/proc/{pid_of(rig_host, job)}/ns/net")
    turn_on = "cd /proc/sys/net/ipv6/conf/eth0; echo 0 >disable_ipv6; ip address add fe80::2/64 dev eth0 nodad"
    assert "eth0" not in run("nsenter", f"--net={namespace}", "cat", "/proc/net/if_inet6")
    run("nsenter", f"--net={namespace}", "sh", "-c", turn_on)
    addresses = json.loads(run("ip", "-n", rig_host.name, "-json", "-6", "address", "show", FIRST.bridge))
    address = addresses[0]["addr_info"][0]["local"]
    assert address.startswith("fe80:")
    canary = world.listen("tcp", "::", 6380, on_host=True)

    def reach() -> bool:
        with socket.socket(socket.AF_INET6) as probe:
            probe.settimeout(1)
            try:
                probe.connect((address, 6380, 0, socket.if_nametoindex("eth0")))
            except OSError:
                return False
            return True

    wait_until(lambda: in_namespace(namespace, reach), what="the address is reached")
    seen = canary.hits
    fence()
    assert not in_namespace(namespace, reach)
    assert canary.hits == seen
    bench.runner.active.cancel(job.id)


def test_private_networks_are_closed_on_request_and_the_allow_list_opens_no_more_than_it_says(
    targets: Targets, host: Host, bench: Bench, fence: Callable[..., Firewall]
) -> None:
    one_each = {
        "internet": ["tcp", INTERNET, 8000],
        "private": ["tcp", PRIVATE, 8000],
        "by datagram": ["udp", PRIVATE, 8000],
        "another port": ["tcp", PRIVATE, 8001],
        "another host": ["tcp", PRIVATE_TOO, 8000],
        "the host's redis": ["tcp", gateway(host), 6379],
        "metadata": ["tcp", METADATA, 80],
    }

    def reached() -> set[str]:
        answers = look(bench, list(one_each.values()))
        return {name for name, answer in zip(one_each, answers, strict=True) if answer is True}

    fence(block_private=True)
    assert reached() == {"internet"}
    fence(block_private=True, allowed_addresses=(f"{PRIVATE}:8000",))
    assert reached() == {"internet", "private", "by datagram"}
    fence(block_private=True, allowed_addresses=(f"{PRIVATE}/32", f"{gateway(host)}:6379"))
    assert reached() == {"internet", "private", "by datagram", "another port", "the host's redis"}


def test_a_name_server_is_open_at_its_port_alone(
    targets: Targets, bench: Bench, fence: Callable[..., Firewall], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In clouds it often has the metadata service's address."""
    probes = [["name", "example.test"], ["tcp", METADATA, 80], ["udp", METADATA, 80]]

    def reached() -> list[bool]:
        return [answer is True for answer in look(bench, probes, dns=[METADATA])]

    fence()
    assert reached() == [False, False, False]  # the job's own choice opens nothing
    monkeypatch.setattr(module, "name_servers", lambda _: [IPv4Address(METADATA)])
    fence()
    assert reached() == [True, False, False]


def test_the_engine_s_name_servers_are_found(tmp_path: Path) -> None:
    def found(text: str, behind: str = "", configured: str = "") -> list[str]:
        files = {
            "etc/resolv.conf": text,
            "run/systemd/resolve/resolv.conf": behind,
            "etc/docker/daemon.json": configured,
        }
        for name, content in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(content)
        return [str(server) for server in name_servers(tmp_path)]

    assert found("# a comment\nnameserver 192.0.2.53\nnameserver 2001:db8::53\nsearch a.test\nnameserver\n") == [
        "192.0.2.53"
    ]
    assert found("nameserver 127.0.0.53\n", "nameserver 169.254.169.253\n") == ["169.254.169.253"]
    assert found("nameserver 192.0.2.53\n", "nameserver 192.0.2.54\n") == ["192.0.2.53"]
    assert found("nameserver 127.0.0.1\n") == []
    assert found("nameserver 192.0.2.53\n", configured='{"dns": ["2001:db8::53", "192.0.2.55"]}') == ["192.0.2.55"]
    for configured in ("{", "[]", '{"dns": null}', '{"dns": [null]}', '{"debug": true}'):
        assert found("nameserver 192.0.2.53\n", configured=configured) == ["192.0.2.53"]
    (tmp_path / "etc/resolv.conf").unlink()
    (tmp_path / "etc/docker/daemon.json").unlink()
    assert list(name_servers(tmp_path)) == []


def test_nobody_reaches_what_a_job_listens_on(
    bench: Bench, fence: Callable[..., Firewall], world: World, rig_host: RigHost, host: Host
) -> None:
    """Not a neighbour, and not a host that has a route to the bridge, even where others forward everything."""
    job = bench.start(script={"type": "python", "content": LISTEN})
    address = wait_until(lambda: log(bench, job).strip(), what="the job listens")
    subnet = host.engine.api.inspect_network(NETWORK_NAME)["IPAM"]["Config"][0]["Subnet"]
    run("ip", "-n", world.name, "route", "add", subnet, "via", HOST_ADDRESS)
    within(rig_host, "iptables", "-P", "FORWARD", "ACCEPT")

    def reach() -> bytes:
        try:
            with socket.create_connection((address, 8000), timeout=1) as connection:
                return connection.recv(10)
        except OSError:
            return b""

    try:
        fence()
        neighbour = look(bench, [["tcp", address, 8000], ["udp", address, 8000]])
        assert [answer for answer in neighbour if answer is True] == []
        assert in_namespace(NAMESPACES / world.name, reach) == b""
        remove_rules(rig_host)
        within(rig_host, "iptables", "-F", "DOCKER")  # an engine of version 28 keeps others from the bridge itself
        assert in_namespace(NAMESPACES / world.name, reach) == b"reached"
    finally:
        within(rig_host, "iptables", "-P", "FORWARD", "DROP")
    wait_until(lambda: bench.store.result(job.id), what="the job ends")


def test_a_job_without_network_reaches_nothing(targets: Targets, bench: Bench) -> None:
    answers = look(bench, [["tcp", INTERNET, 8000], ["udp", INTERNET, 8000], ["tcp", METADATA_6, 80]], mode="none")
    assert ["Network is unreachable" in str(answer) for answer in answers[:2]] == [True, True]
    assert answers[2] is not True
    assert look(bench, [["name", "example.test"]], mode="none", dns=[INTERNET])[0] is not True


def test_a_flood_of_connections_is_bounded_and_the_neighbour_s_go_through(
    targets: Targets, bench: Bench, fence: Callable[..., Firewall], rig_host: RigHost
) -> None:
    flood = f"""
import socket
from concurrent.futures import ThreadPoolExecutor
with socket.socket(type=socket.SOCK_DGRAM) as sender:
    sent = 0
    for port in range(10_000, 40_000):
        try:
            sender.sendto(b"", ({INTERNET!r}, port))
            sent += 1
        except OSError:
            pass
print(sent, flush=True)
def ask(number):
    try:
        socket.gethostbyname(f"{{number}}.example.test")
    except OSError:
        pass
with ThreadPoolExecutor(40) as threads:
    list(threads.map(ask, range(100_000)))
"""
    fence()
    job = bench.start(script={"type": "python", "content": flood}, network={"dns": [INTERNET]})
    wait_until(lambda: log(bench, job), timeout_s=60, what="the flood")
    # What other tests have left there is gone within two minutes, and is little.
    connections = within(rig_host, "cat", "/proc/sys/net/netfilter/nf_conntrack_count")
    assert 3000 < int(connections) < 4500
    probes = [["tcp", INTERNET, 8000], ["udp", INTERNET, 8000], *[["name", f"{n}.test"] for n in range(20)]]
    assert look(bench, probes, dns=[INTERNET]) == [True] * len(probes)
    bench.runner.active.cancel(job.id)


def test_many_jobs_at_once_leave_neither_network_nor_rule(
    make_bench: Callable[..., Bench], fence: Callable[..., Firewall], rig_host: RigHost
) -> None:
    def there() -> tuple[list[str], str, str]:
        networks = sorted(network.name for network in rig_host.client.networks.list())
        rules = re.sub(r"#.*|\[\d+:\d+\]", "", within(rig_host, "iptables-save"))
        return networks, rules, within(rig_host, "nft", "-s", "list", "table", "inet", "cronium")

    fence()
    before = there()
    bench = make_bench()
    jobs = [bench.start(script={"type": "python", "content": ""}) for _ in range(60)]
    for thread in bench.threads:
        thread.join(timeout=120)
    bench.settle()
    assert {getattr(bench.store.result(job.id), "status", None) for job in jobs} == {"completed"}
    assert there() == before
    assert rig_host.client.containers.list(all=True) == []


def test_two_workers_may_install_the_rules_at_once(fence: Callable[..., Firewall], host: Host) -> None:
    walls = [
        Firewall(host.engine, Security(block_private=number % 2 == 0), fleet=host.settings.fleet) for number in range(8)
    ]
    with ThreadPoolExecutor(len(walls)) as threads:
        assert set(threads.map(lambda wall: wall.keep(), walls)) == {""}
    assert sorted(wall.look() for wall in walls) == [False] * 4 + [True] * 4


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"options": {"com.docker.network.bridge.name": FIRST.bridge}}, "enable_icc=None"),
        ({"options": {"com.docker.network.bridge.enable_icc": "false"}}, "name=None"),
        ({"options": FIRST.options, "enable_ipv6": True, "ipam": IPV6}, "IPv6 on"),
    ],
    ids=["icc", "bridge", "ipv6"],
)
def test_a_network_of_that_name_that_is_not_isolated_is_refused(
    host: Host, rig_host: RigHost, given: dict[str, Any], named: str
) -> None:
    rig_host.restart_dockerd()  # after many containers at once the engine may go on counting some of them
    rig_host.client.networks.get(NETWORK_NAME).remove()
    made = rig_host.client.networks.create(NETWORK_NAME, driver="bridge", **given)
    try:
        with pytest.raises(NetworkError, match=rf"{named}.*docker network rm {NETWORK_NAME}"):
            ensure_network(host.engine, fleet=host.settings.fleet)
    finally:
        made.remove()
        ensure_network(host.engine, fleet=host.settings.fleet)


# ---- a worker's part


def cronium(host: RigHost, *command: str, without: str = "", **env: str) -> subprocess.CompletedProcess[str]:
    limited = ["setpriv", f"--bounding-set=-{without}"] if without else []
    return subprocess.run(
        [*limited, CRONIUM, *command], env=host.env | env, capture_output=True, text=True, timeout=60, check=False
    )


def doctor(host: RigHost, **arguments: str) -> str:
    lines = cronium(host, "doctor", **arguments).stdout.splitlines()
    return next(line for line in lines if " firewall: " in line)


def test_a_worker_that_may_not_install_the_rules_says_so(
    host: Host, rig_host: RigHost, fence: Callable[..., Firewall]
) -> None:
    missing = doctor(rig_host)
    assert missing.startswith("FAIL firewall: rules are missing")
    assert "cronium firewall | nft -f -" in missing
    assert "not permitted" in doctor(rig_host, without="net_admin")
    refused = cronium(rig_host, "worker", "--node", "jobs", without="net_admin", CRONIUM_SECURITY__FIREWALL="require")
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    assert "CRONIUM_SECURITY__FIREWALL=require" in refused.stderr
    assert "not permitted" in refused.stderr

    printed = cronium(rig_host, "firewall")
    subprocess.run(
        ["nsenter", f"--net={NAMESPACES / rig_host.name}", "nft", "-f", "-"],
        input=printed.stdout,
        text=True,
        check=True,
    )
    assert doctor(rig_host) == "ok   firewall: jobs are fenced"


def unfit(host: RigHost) -> str:
    views = json.loads(cronium(host, "hosts", "--json").stdout)
    return next(str(view["nodes"]["jobs"]["unfit"]) for view in views if view["name"] == host.host_name)


def rename_bridge(host: RigHost, name: str, other: str) -> None:
    for change in (["down"], ["name", other]):
        run("ip", "-n", host.name, "link", "set", name, *change)
    run("ip", "-n", host.name, "link", "set", other, "up")


def test_a_worker_keeps_the_rules_and_leaves_them(
    host: Host, rig_host: RigHost, fence: Callable[..., Firewall]
) -> None:
    wall = Firewall(host.engine, Security(), fleet=host.settings.fleet)

    def there() -> str:
        tables = within(rig_host, "nft", "-s", "list", "ruleset", "inet")
        return tables + within(rig_host, "cat", "/proc/sys/net/bridge/bridge-nf-call-iptables")

    def mended(times: int) -> bool:
        return worker.log.read_text().count("] firewall: ") == times

    rules = ["nft", "--handle", "list", "chain", "inet", "cronium", "input"]
    assert wall.look() is False
    env = {"CRONIUM_LEASE_TTL": "2", "CRONIUM_SECURITY__FIREWALL": "require"}
    with rig_host.start_worker(queues=rig_host.name, node="jobs", **env) as worker:
        assert wall.look()
        within(rig_host, "iptables", "-F")
        assert wall.look()
        before = there()
        handle = within(rig_host, *rules).rpartition("# handle ")[2].split()[0]
        for number, broken in enumerate((
            ["nft", "delete", "rule", "inet", "cronium", "input", "handle", handle],
            ["nft", "flush", "ruleset"],
            ["sh", "-c", "echo 0 >/proc/sys/net/bridge/bridge-nf-call-iptables"],
        ), 1):  # fmt: skip
            within(rig_host, *broken)
            wait_until(partial(mended, number), what=f"noticed: {broken}")
            assert there() == before
        # Where the rules cannot be kept, no jobs are taken.
        assert unfit(rig_host) == ""
        rename_bridge(rig_host, FIRST.bridge, "elsewhere")
        wait_until(lambda: f"{FIRST.bridge} is not in" in unfit(rig_host), what="the node says that it is not fenced")
        rename_bridge(rig_host, "elsewhere", FIRST.bridge)
        wait_until(lambda: unfit(rig_host) == "", what="the node is fenced again")
        rig_host.restart_dockerd()
        assert wall.look()
    assert wall.look()
