"""The isolated network that all jobs of a host share: one bridge, where containers do not reach each other."""

from docker.errors import APIError, NotFound

from cronium_worker.engine.client import Engine, faults
from cronium_worker.engine.spec import NETWORK_NAME
from cronium_worker.errors import NetworkError

BRIDGE_NAME = "br-cronium"
_CONFLICT = 409


def require_network(engine: Engine, name: str) -> None:
    """Raises NetworkError when this host has no network of that name."""
    with faults(NetworkError, f"network {name}"):
        engine.api.inspect_network(name)


def ensure_network(engine: Engine, *, fleet: str) -> None:
    """Make the network if it is not there. Safe when several workers do so at once. Raises NetworkError."""
    with faults(NetworkError, f"network {NETWORK_NAME}"):
        try:
            engine.api.inspect_network(NETWORK_NAME)
        except NotFound:
            try:
                engine.api.create_network(
                    NETWORK_NAME,
                    driver="bridge",
                    enable_ipv6=False,
                    check_duplicate=True,
                    options={
                        "com.docker.network.bridge.name": BRIDGE_NAME,
                        "com.docker.network.bridge.enable_icc": "false",
                    },
                    labels={"cronium.fleet": fleet},
                )
            except APIError as error:
                if error.status_code != _CONFLICT:
                    raise
