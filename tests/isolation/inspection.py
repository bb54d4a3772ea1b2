"""What the engine says of a container, without what differs from one container, host or engine to the next."""

import json
from collections.abc import Mapping
from typing import Any

# How the engine's own names and addresses are shown, and what it alone decides.
_SECTIONS = ("AppArmorProfile", "Config", "HostConfig", "MountLabel", "Mounts", "NetworkSettings", "ProcessLabel")
_ENGINES_OWN = {
    "NetworkSettings": {"SandboxID", "SandboxKey", "EndpointID", "Gateway", "IPAddress", "IPPrefixLen", "MacAddress"},
    "Config": {"Hostname"},
}
_OF_A_NETWORK = {"NetworkID", "EndpointID", "Gateway", "IPAddress", "IPPrefixLen", "MacAddress", "Aliases", "DNSNames"}
_OF_AN_IMAGE = ("cronium.image.", "org.opencontainers.")


def normalised(inspected: Mapping[str, Any], *, names: Mapping[str, str]) -> dict[str, Any]:
    """The sections that say how a container is confined. What is empty, false or zero is left out, so that what is
    not in the file must not be set; a newer engine's new fields do no harm as long as they are not set either.

    `names`: text of this container → what stands for it.
    """
    found = {section: inspected[section] for section in _SECTIONS}
    for section, keys in _ENGINES_OWN.items():
        found[section] = {key: value for key, value in found[section].items() if key not in keys}
    networks = found["NetworkSettings"]["Networks"]
    found["NetworkSettings"]["Networks"] = {
        name: {key: value for key, value in network.items() if value and key not in _OF_A_NETWORK} or "attached"
        for name, network in networks.items()
    }
    labels = found["Config"]["Labels"].items()
    found["Config"]["Labels"] = {name: value for name, value in labels if not name.startswith(_OF_AN_IMAGE)}
    found["Mounts"] = sorted(found["Mounts"], key=lambda mount: str(mount["Destination"]))
    text = json.dumps(found)
    for old, new in sorted(names.items(), key=lambda pair: -len(pair[0])):
        text = text.replace(json.dumps(old)[1:-1], new)
    kept: dict[str, Any] = _without_empty(json.loads(text))
    for rate in ("BlkioDeviceReadBps", "BlkioDeviceWriteBps"):
        for entry in kept["HostConfig"].get(rate, ()):
            entry["Path"] = "<device>"
    return kept


def _without_empty(value: Any) -> Any:
    if isinstance(value, dict):
        kept = {key: _without_empty(item) for key, item in value.items()}
        return {key: item for key, item in kept.items() if item and item != [0, 0]}
    if isinstance(value, list):
        return [_without_empty(item) for item in value]
    return value


def differences(new: Any, old: Any, path: str = "") -> dict[str, Any]:
    """What differs, as path → new value (None: gone)."""
    if isinstance(new, dict) and isinstance(old, dict):
        found: dict[str, Any] = {}
        for key in {**old, **new}:
            found |= differences(new.get(key), old.get(key), f"{path}.{key}" if path else key)
        return found
    return {} if new == old else {path: new}
