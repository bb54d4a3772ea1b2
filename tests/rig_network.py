"""The network of the rig: a bridge in this machine's own namespace, and a namespace for each host behind it."""

import json
import subprocess
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

NAMESPACES = Path("/run/netns")
# Of the private addresses; the /24 that a process begins its search with depends on its pid.
_CANDIDATES = list(IPv4Network("10.213.0.0/16").subnets(new_prefix=24))


def run(*command: str) -> str:
    """Raises CalledProcessError; what the program says on stderr is shown by pytest."""
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def free_subnet(start: int) -> IPv4Network:
    """A private /24 that no route of this machine touches."""
    routes = json.loads(run("ip", "-json", "-4", "route", "show", "table", "all"))
    used = [IPv4Network(route["dst"], strict=False) for route in routes if route["dst"][0].isdigit()]
    for number in range(len(_CANDIDATES)):
        subnet = _CANDIDATES[(start + number) % len(_CANDIDATES)]
        if not any(subnet.overlaps(other) for other in used):
            return subnet
    raise RuntimeError("every /24 of 10.213.0.0/16 is routed on this machine: remove a route")


class Bridge:
    """Where the hosts' cables meet. `address` is this machine's own: what listens there, all hosts reach."""

    def __init__(self, name: str, *, first_subnet: int) -> None:
        self.name = name
        self.subnet = free_subnet(first_subnet)
        self.address = str(next(self.subnet.hosts()))

    def add(self) -> None:
        run("ip", "link", "add", self.name, "type", "bridge")
        run("ip", "address", "add", f"{self.address}/{self.subnet.prefixlen}", "dev", self.name)
        run("ip", "link", "set", self.name, "up")

    def connect(self, namespace: str, number: int) -> IPv4Address:
        """Make a namespace whose eth0 is on the bridge by a cable of the same name, and return its address."""
        address = list(self.subnet.hosts())[number]
        run("ip", "netns", "add", namespace)
        run("ip", "link", "add", namespace, "type", "veth", "peer", "name", "eth0", "netns", namespace)
        run("ip", "link", "set", namespace, "master", self.name, "up")
        run("ip", "-n", namespace, "address", "add", f"{address}/{self.subnet.prefixlen}", "dev", "eth0")
        run("ip", "-n", namespace, "link", "set", "eth0", "up")
        run("ip", "-n", namespace, "link", "set", "lo", "up")
        return address


def remove_link(name: str) -> None:
    """Idempotent. One end of a cable takes the other one with it."""
    if Path(f"/sys/class/net/{name}").exists():
        run("ip", "link", "delete", name)


def remove_namespace(name: str) -> None:
    """Idempotent. With its processes gone, links and firewall rules in it go as well."""
    if (NAMESPACES / name).exists():
        run("ip", "netns", "delete", name)
