"""The isolated network that all jobs of a host share: one bridge, where containers do not reach each other."""

from typing import Any

from docker.errors import APIError, NotFound

from cronium_worker.engine.client import Engine, faults
from cronium_worker.engine.spec import NETWORK_NAME
from cronium_worker.errors import DaemonError, NetworkError

BRIDGE_NAME = "br-cronium"
OPTIONS = {
    "com.docker.network.bridge.name": BRIDGE_NAME,
    "com.docker.network.bridge.enable_icc": "false",
}
_CONFLICT = 409


def require_network(engine: Engine, name: str) -> None:
    """Raises NetworkError when this host has no network of that name."""
    with faults(NetworkError, f"network {name}"):
        engine.api.inspect_network(name)


def ensure_network(engine: Engine, *, fleet: str) -> None:
    """Make the network if it is not there. Safe when several workers do so at once. Raises NetworkError, also when
    one of that name is there and is not as isolated."""
    with faults(NetworkError, f"network {NETWORK_NAME}"):
        try:
            found = engine.questions.inspect_network(NETWORK_NAME)
        except NotFound:
            try:
                engine.api.create_network(
                    NETWORK_NAME,
                    driver="bridge",
                    enable_ipv6=False,
                    check_duplicate=True,
                    options=OPTIONS,
                    labels={"cronium.fleet": fleet},
                )
                return
            except APIError as error:
                if error.status_code != _CONFLICT:
                    raise
            found = engine.api.inspect_network(NETWORK_NAME)
    _check(found)


def network_is_there(engine: Engine) -> bool:
    """Raises DaemonError."""
    with faults(DaemonError, f"network {NETWORK_NAME}"):
        try:
            engine.api.inspect_network(NETWORK_NAME)
        except NotFound:
            return False
    return True


def host_address(engine: Engine) -> str | None:
    """This host as the jobs' containers see it; None: there is no network of theirs yet. Raises DaemonError."""
    with faults(DaemonError, f"network {NETWORK_NAME}"):
        try:
            pools = engine.api.inspect_network(NETWORK_NAME)["IPAM"]["Config"] or ()
        except NotFound:
            return None
    return next((str(pool["Gateway"]) for pool in pools if pool.get("Gateway")), None)


def _check(network: dict[str, Any]) -> None:
    """Somebody else's, or one of before: jobs must not run in it, and it may have other users."""
    options = network["Options"] or {}
    wrong = [f"{name}={options.get(name)}" for name, value in OPTIONS.items() if options.get(name) != value]
    wrong += ["IPv6 on"] if network["EnableIPv6"] else []
    if wrong:
        raise NetworkError(
            f"network {NETWORK_NAME}: is not the isolated one ({', '.join(wrong)}); "
            f"remove it with `docker network rm {NETWORK_NAME}`: the worker makes it anew"
        )
