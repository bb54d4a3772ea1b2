"""Connects the sandboxes of a fleet to its isolated network.

The engine makes the bridge; the worker connects the sandboxes to it. An engine that connects a container to a bridge
runs a name server in the container. That server knows the names of all containers on the bridge, and no option turns it
off. So the worker makes a sandbox without a network and connects it by a veth pair before the gate opens: one end is
`eth0` in the container's network namespace, the other end is an isolated port of the bridge. The kernel forwards no
frames between isolated ports.

No list of addresses is kept. The name of the pair's end at the bridge contains the address, and the kernel refuses a
second link with the same name, so several workers on one engine never use one address twice. The kernel removes the
pair together with the container's namespace.
"""

import itertools
import logging
import random
import re
from collections.abc import Iterator
from contextlib import suppress
from ipaddress import IPv4Address, IPv4Interface
from pathlib import Path

from cronium_worker.engine.client import Engine
from cronium_worker.engine.host_network import engine_pid, has_link, is_running, namespace
from cronium_worker.engine.netlink import Links
from cronium_worker.engine.network import JobsNetwork, ensure_network, find_network
from cronium_worker.errors import CroniumError, NetworkError
from cronium_worker.settings import Settings

logger = logging.getLogger(__name__)

_PREFIX = "cronium"  # with eight digits of the address as long as a link's name may be
_CABLE = re.compile(rf"{_PREFIX}([0-9a-f]{{8}})")
_INSIDE = "eth0"
# Their containers are namespaces of this kernel. Others read the interfaces at their start, for a network stack of
# their own.
_RUNTIMES = ("runc", "crun", "youki", "nvidia-container-runtime")


class Wiring:
    """Of one fleet on one engine. Safe for threads."""

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self._engine = engine
        self._settings = settings
        self._network: JobsNetwork | None = None
        self._obstacle: str | None = None  # None: not looked for yet
        self._bridge: tuple[int, bytes] | None = None  # index and MAC address, as last seen
        self._steps = itertools.count(random.randrange(2**32))
        self._problem = ""

    def ensure(self) -> str:
        """See that the fleet's network is there, and return the engine's network mode for a sandbox that is to be
        connected to it. Raises NetworkError, DaemonError."""
        self._network = ensure_network(self._engine, fleet=self._settings.fleet, before=self._network)
        if self._obstacle is None:
            self._obstacle = self._look_for_obstacle(self._network)
            if self._obstacle:
                logger.warning(
                    "%s: jobs are attached by the engine, whose DNS tells them their neighbours' names", self._obstacle
                )
        return self._network.names.network if self._obstacle else "none"

    def obstacle(self) -> str:
        """Why the engine has to attach sandboxes; empty where it does not. Raises NetworkError, DaemonError."""
        network = find_network(self._engine, fleet=self._settings.fleet)
        return self._look_for_obstacle(network) if network else ""

    def connect(self, pid: int) -> None:
        """Give the sandbox with that first process its network, unless the engine has. One that has ended meanwhile is
        left alone. Raises NetworkError."""
        if self._obstacle or self._network is None:
            return
        inside = namespace(pid)
        try:
            with inside.open("rb") as container, Links(self._engine_namespace()) as host, Links(inside) as links:
                bridge = self._mend(host, self._network)
                address = self._add_cable(host, container.fileno(), self._network)
                host.plug_in(_cable(address), bridge)
                links.no_link_local(_INSIDE)
                links.add_address(_INSIDE, IPv4Interface((address, self._network.subnet.prefixlen)))
                links.up(_INSIDE)
                links.add_default_route(self._network.gateway)
        except OSError as error:
            if is_running(pid):
                raise NetworkError(f"{self._network.names.network}: {error.strerror}", retryable=True) from error

    def keep(self) -> None:
        """Make the network again if it was removed (`docker network prune` sees no container in it), and reconnect the
        running jobs. Never raises: a problem is logged when it changes."""
        problem = ""
        try:
            self.ensure()
            if not self._obstacle and self._network is not None:
                with Links(self._engine_namespace()) as host:
                    self._mend(host, self._network)
        except CroniumError as error:
            problem = str(error)
        except OSError as error:
            problem = str(error.strerror)
        if problem and problem != self._problem:
            logger.error("the jobs' network is not in order: %s", problem)
        self._problem = problem

    def _engine_namespace(self) -> Path:
        """Raises NetworkError."""
        pid = engine_pid(self._engine)
        if pid is None:
            raise NetworkError("the engine's process is not to be seen", retryable=True)
        return namespace(pid)

    def _look_for_obstacle(self, network: JobsNetwork) -> str:
        """Raises DaemonError."""
        pid = engine_pid(self._engine)
        if pid is None or not Path(f"/proc/{pid}/ns/pid").samefile("/proc/self/ns/pid"):
            return "the worker does not see the engine's processes"
        if not has_link(pid, network.names.bridge):
            return f"{network.names.bridge} is not in the network of the engine's process"
        info = self._engine.info()
        name = self._settings.security.runtime or info["DefaultRuntime"]
        program = Path((info["Runtimes"].get(name) or {}).get("path") or name).name
        if program not in _RUNTIMES:
            return f"the runtime {name} may have a network stack of its own"
        try:
            with Links(namespace(pid)) as host:
                host.up(network.names.bridge)  # it is; may this process say so?
        except OSError as error:
            return f"the worker may not connect containers itself ({error.strerror})"
        return ""

    def _mend(self, host: Links, network: JobsNetwork) -> int:
        """Plug the cables of running jobs into the bridge when that is another one than before. Returns its index."""
        name = network.names.bridge
        index = host.index(name)
        if self._bridge is None or self._bridge[0] != index:
            if self._bridge is not None:
                host.set_mac(name, self._bridge[1])  # which the sandboxes remember for a minute
            for cable in host.names():
                found = _CABLE.fullmatch(cable)
                if found and IPv4Address(int(found[1], 16)) in network.subnet:
                    with suppress(OSError):  # it has just gone
                        host.plug_in(cable, index)
            self._bridge = index, host.mac(name)
        return index

    def _add_cable(self, host: Links, container: int, network: JobsNetwork) -> IPv4Address:
        """Returns its address. Raises NetworkError when there is none left."""
        for address in self._addresses(network):
            # The same for an address each time, as with the engine's containers: neighbours remember it.
            mac = b"\x02\x42" + address.packed
            with suppress(FileExistsError):
                host.add_pair(_cable(address), _INSIDE, container, mac)
                return address
        raise NetworkError(f"network {network.names.network}: all addresses are taken", retryable=True)

    def _addresses(self, network: JobsNetwork) -> Iterator[IPv4Address]:
        """The upper half of the subnet, each once, one after the other so that none is used again at once. The engine
        gives its containers the lowest one that is free."""
        half = network.subnet.num_addresses // 2
        first = network.subnet.network_address + half
        for step in itertools.islice(self._steps, half):
            address = first + step % half
            if address not in network.reserved and address != network.subnet.broadcast_address:
                yield address


def _cable(address: IPv4Address) -> str:
    return f"{_PREFIX}{int(address):08x}"
