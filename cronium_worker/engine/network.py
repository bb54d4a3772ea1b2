"""The isolated network that all jobs of a fleet share on a host: one bridge, where jobs do not reach each other."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from typing import Any, Self

from docker.errors import APIError
from docker.types import IPAMConfig, IPAMPool

from cronium_worker.engine.client import Engine, faults
from cronium_worker.engine.spec import NETWORK_NAME
from cronium_worker.errors import DaemonError, NetworkError

_BRIDGE, _ICC = "com.docker.network.bridge.name", "com.docker.network.bridge.enable_icc"
_FLEET = "cronium.fleet"
_CONFLICT = 409


@dataclass(frozen=True)
class Names:
    """Of a fleet's network, of its bridge, and of the nftables table with the rules for that bridge."""

    network: str
    bridge: str
    table: str

    @property
    def options(self) -> dict[str, str]:
        """With which the engine makes the bridge."""
        return {_BRIDGE: self.bridge, _ICC: "false"}


# Of the first fleet on an engine, and usually the only one.
FIRST = Names(NETWORK_NAME, "br-cronium", "inet cronium")


def names_beside(fleet: str) -> Names:
    """Of a fleet on an engine where another one has the FIRST names."""
    mark = hashlib.sha256(fleet.encode()).hexdigest()[:8]
    return Names(f"{NETWORK_NAME}.{fleet}", f"br-c-{mark}", f"inet cronium_{mark}")


@dataclass(frozen=True)
class JobsNetwork:
    """A fleet's network on one engine. `reserved`: addresses that the engine's IPAM may not give away either."""

    names: Names
    subnet: IPv4Network
    gateway: IPv4Address
    reserved: frozenset[IPv4Address] = frozenset()

    @classmethod
    def of(cls, names: Names, row: Mapping[str, Any]) -> Self:
        pool = next(pool for pool in row["IPAM"]["Config"] if ":" not in pool["Subnet"])
        subnet = IPv4Network(pool["Subnet"])
        # Whoever has made it with a subnet may have left the gateway to the engine, which takes the first address.
        gateway = IPv4Address(pool.get("Gateway") or subnet.network_address + 1)
        others = map(IPv4Address, (pool.get("AuxiliaryAddresses") or {}).values())
        return cls(names, subnet, gateway, frozenset({gateway, *others}))


def require_network(engine: Engine, name: str) -> None:
    """Raises NetworkError when this host has no network of that name."""
    with faults(NetworkError, f"network {name}"):
        engine.api.inspect_network(name)


def find_network(engine: Engine, *, fleet: str) -> JobsNetwork | None:
    """The fleet's network, or None while there is none. Raises DaemonError, and NetworkError when one of that name is
    not as isolated."""
    with faults(DaemonError, f"network {NETWORK_NAME}"):
        found = _pick(_rows(engine), fleet)
    return _checked(*found) if found else None


def network_names(engine: Engine, *, fleet: str) -> Names:
    """Of the fleet's network, whether or not it exists yet. Raises DaemonError."""
    with faults(DaemonError, f"network {NETWORK_NAME}"):
        rows = _rows(engine)
    found = _pick(rows, fleet)
    return found[0] if found else _free_names(rows, fleet)


def ensure_network(engine: Engine, *, fleet: str, before: JobsNetwork | None = None) -> JobsNetwork:
    """Return the fleet's network, made if it is not there, with the addresses that it had `before`. Safe when several
    workers do so at once. Raises NetworkError, also when one of that name is there and is not as isolated."""
    with faults(NetworkError, f"network {NETWORK_NAME}"):
        rows = _rows(engine)
        found = _pick(rows, fleet)
        # A worker of another fleet may be the first to make the one with the FIRST names.
        for _ in range(2):
            if found:
                break
            _create(engine, _free_names(rows, fleet), fleet, before)
            rows = _rows(engine)
            found = _pick(rows, fleet)
    if not found:
        raise NetworkError(f"network {NETWORK_NAME}: it was removed while it was made", retryable=True)
    return _checked(*found)


def _rows(engine: Engine) -> dict[str, dict[str, Any]]:
    """Those of all fleets, by name: the engine's filter takes a part of one."""
    return {row["Name"]: row for row in engine.questions.networks(names=[NETWORK_NAME])}


def _pick(rows: Mapping[str, dict[str, Any]], fleet: str) -> tuple[Names, dict[str, Any]] | None:
    """A network without a label was made by the host's operator, for whatever fleet."""
    beside = names_beside(fleet)
    if beside.network in rows:
        return beside, rows[beside.network]
    first = rows.get(FIRST.network)
    if first is not None and (first["Labels"] or {}).get(_FLEET) in (None, fleet):
        return FIRST, first
    return None


def _free_names(rows: Iterable[str], fleet: str) -> Names:
    return names_beside(fleet) if FIRST.network in rows else FIRST


def _create(engine: Engine, names: Names, fleet: str, before: JobsNetwork | None) -> None:
    pool = IPAMPool(subnet=str(before.subnet), gateway=str(before.gateway)) if before else None
    try:
        engine.api.create_network(
            names.network,
            driver="bridge",
            enable_ipv6=False,
            check_duplicate=True,
            options=names.options,
            labels={_FLEET: fleet},
            ipam=IPAMConfig(pool_configs=[pool]) if pool else None,
        )
    except APIError as error:
        if error.status_code == _CONFLICT:
            return
        if before is None:
            raise
        _create(engine, names, fleet, None)  # another network has these addresses by now


def _checked(names: Names, row: Mapping[str, Any]) -> JobsNetwork:
    """Somebody else's, or one of before: jobs must not run in it, and it may have other users."""
    options = row["Options"] or {}
    wrong = [f"{name}={options.get(name)}" for name, value in names.options.items() if options.get(name) != value]
    wrong += ["IPv6 on"] if row["EnableIPv6"] else []
    if wrong:
        raise NetworkError(
            f"network {names.network}: is not the isolated one ({', '.join(wrong)}); "
            f"remove it with `docker network rm {names.network}`: the worker makes it anew"
        )
    return JobsNetwork.of(names, row)
