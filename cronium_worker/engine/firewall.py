"""Keeps a host's firewall rules for its jobs in place, in the network namespace of the Docker Engine."""

import json
import logging
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import AddressValueError, IPv4Address
from pathlib import Path

from cronium_worker.engine.client import Engine
from cronium_worker.engine.host_network import engine_pid, has_link, namespace, root
from cronium_worker.engine.network import Names, find_network, network_names
from cronium_worker.engine.ruleset import Ruleset, ruleset
from cronium_worker.errors import ConfigurationError, Fault
from cronium_worker.settings import Security

logger = logging.getLogger(__name__)

_TIMEOUT_S = 10
# Without it packets between two ports of a bridge pass no firewall, and "no traffic between containers" is void.
_BRIDGED = "/proc/sys/net/bridge/bridge-nf-call-iptables"
_DAEMON_JSON = "etc/docker/daemon.json"
_RESOLV_CONF = "etc/resolv.conf"
# Where the real name servers are when the file names systemd's own one: the engine reads that, too.
_BEHIND_RESOLVED = "run/systemd/resolve/resolv.conf"

_REMEDY = (
    "run the worker in the host's network as root or with CAP_NET_ADMIN; or load the rules there yourself with "
    "`cronium firewall | nft -f -`, and set CRONIUM_SECURITY__FIREWALL=off"
)


class Firewall:
    """The rules for a fleet's network on one engine's host. Several workers may keep them at once."""

    def __init__(self, engine: Engine, security: Security, *, fleet: str) -> None:
        self._engine = engine
        self._fleet = fleet
        self._security = security
        self._problem = ""

    def ensure(self) -> None:
        """See that the rules are there. Raises ConfigurationError, one line with the remedy, where they cannot be had,
        NetworkError and DaemonError."""
        place = self._place() if self._security.firewall != "off" else None
        if place is None:
            return
        wanted = ruleset(self._security, name_servers(root(place.pid)), place.names)
        if not place.has(wanted):
            place.install(wanted)
            logger.warning("firewall: installed the rules for %s", place.names.bridge)
        if not place.filters_bridged():
            place.filter_bridged()
            logger.warning("firewall: set %s to 1", _BRIDGED)

    def keep(self) -> str:
        """`ensure` for a node that goes on: what is wrong is logged when that changes, and returned."""
        problem = ""
        try:
            self.ensure()
        except (ConfigurationError, Fault) as error:
            problem = str(error)
        if problem and problem != self._problem:
            logger.error("NOT FENCED: jobs can reach this host and its cloud's metadata: %s", problem)
        self._problem = problem
        return problem

    def look(self) -> bool | None:
        """Whether the rules are all there; None: there is nothing to fence yet. Raises NetworkError,
        DaemonError, and ConfigurationError, one line with the remedy, where that is not to be seen."""
        place = self._place()
        if place is None:
            return None
        wanted = ruleset(self._security, name_servers(root(place.pid)), place.names)
        return place.has(wanted) and place.filters_bridged()

    def remove(self) -> None:
        """Take the rules away. Raises as `ensure`."""
        place = self._place()
        if place is not None:
            place.remove()

    def text(self) -> str:
        """For `nft -f -`, in the engine's network namespace."""
        names = network_names(self._engine, fleet=self._fleet)
        return ruleset(self._security, name_servers(root(engine_pid(self._engine))), names).text

    def _place(self) -> "_Place | None":
        """Where the rules belong; None while there is no network of jobs."""
        network = find_network(self._engine, fleet=self._fleet)
        if network is None:
            return None
        pid, names = engine_pid(self._engine), network.names
        if not has_link(pid, names.bridge):
            raise ConfigurationError(f"{names.bridge} is not in the network that this process sees; {_REMEDY}")
        elsewhere = not namespace(pid).samefile(namespace(None))
        return _Place(names, pid, ("nsenter", f"--net={namespace(pid)}") if elsewhere else ())


@dataclass(frozen=True)
class _Place:
    """The network namespace in which an engine's bridges are, and how to run a program there. `pid`: of a process that
    is in it; None: this one is."""

    names: Names
    pid: int | None
    enter: tuple[str, ...]

    def has(self, wanted: Ruleset) -> bool:
        """Whether the table is there, is of these settings, and no rule of it was removed."""
        done = self._run("nft", "-j", "list", "table", *self.names.table.split(), missing_is_fine=True)
        if not done:
            return False
        rules = [entry["rule"] for entry in json.loads(done)["nftables"] if "rule" in entry]
        return len(rules) == wanted.rules and any(rule.get("comment") == wanted.mark for rule in rules)

    def install(self, wanted: Ruleset) -> None:
        self._run("nft", "-f", "-", text=wanted.text)

    def remove(self) -> None:
        self._run("nft", "delete", "table", *self.names.table.split(), missing_is_fine=True)

    def filters_bridged(self) -> bool:
        try:
            return self._run("cat", _BRIDGED).strip() == "1"
        except ConfigurationError:
            return False

    def filter_bridged(self) -> None:
        """Raises ConfigurationError."""
        try:
            self._run("tee", _BRIDGED, text="1\n")
        except ConfigurationError:
            remedy = "load the module br_netfilter and set net.bridge.bridge-nf-call-iptables=1 (sysctl)"
            raise ConfigurationError(f"jobs can reach each other: {_BRIDGED} is not 1; {remedy}") from None

    def _run(self, program: str, *arguments: str, text: str = "", missing_is_fine: bool = False) -> str:
        """What it prints. Raises ConfigurationError."""
        path = shutil.which(program) or f"/usr/sbin/{program}"
        command = [*self.enter, path, *arguments]
        try:
            done = subprocess.run(command, input=text, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
        except FileNotFoundError:
            raise ConfigurationError("nft is missing: install the package nftables") from None
        except (OSError, subprocess.TimeoutExpired) as error:
            raise ConfigurationError(f"{program}: {error}; {_REMEDY}") from None
        if done.returncode == 0:
            return done.stdout
        reason = (done.stderr.splitlines() or ["no reason given"])[0]
        if missing_is_fine and "No such file or directory" in reason:
            return ""
        raise ConfigurationError(f"{program}: {reason[:200]}; {_REMEDY}")


def name_servers(directory: Path) -> list[IPv4Address]:
    """Those that an engine with this root directory writes into its containers' resolv.conf. Containers cannot reach
    what is on loopback or has an IPv6 address. Empty: the engine writes its default ones, 8.8.8.8 and 8.8.4.4."""
    found = _configured(directory / _DAEMON_JSON) or list(_listed(directory / _RESOLV_CONF))
    if any(server.is_loopback for server in found):
        found += _listed(directory / _BEHIND_RESOLVED)
    return [server for server in found if not server.is_loopback]


def _configured(path: Path) -> list[IPv4Address]:
    with suppress(OSError, ValueError, TypeError, AttributeError):
        return [IPv4Address(server) for server in json.loads(path.read_text()).get("dns", ()) if ":" not in server]
    return []


def _listed(path: Path) -> Iterator[IPv4Address]:
    with suppress(OSError):
        for line in path.read_text(errors="replace").splitlines():
            words = line.split()
            if words[:1] == ["nameserver"] and len(words) > 1:
                with suppress(AddressValueError):
                    yield IPv4Address(words[1])
