"""The firewall rules of a host for what comes from its jobs' bridge, as `nft` takes them. Pure.

A table of our own: netfilter asks every table, and one that rejects has the last word, whatever the engine or the
host's administrator accepts elsewhere. So the rules need no place in other people's chains, and outlive what reloads
those. Nor do they open anything: what they accept goes on to the other tables.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address

from cronium_worker.engine.network import FIRST, Names
from cronium_worker.settings import Security

# At once, of a container: as many as one process may have files open. The host's table holds those of all containers
# and of the host itself (nf_conntrack_max, 65536 on a small machine); when it is full, nobody gets a new one.
_CONNECTIONS = 4096
_ALWAYS = (
    "0.0.0.0/8",
    "127.0.0.0/8",
    "169.254.0.0/16",  # link-local: the metadata service of most clouds
    "224.0.0.0/4",  # multicast
    "240.0.0.0/4",  # reserved, and broadcast
    # Where metadata services are that are not link-local:
    "100.100.100.200",  # Alibaba Cloud
    "168.63.129.16",  # Azure's wire server
    "192.0.0.192",  # Oracle Cloud's first generation
)
# IANA's special-purpose registry: what is not routed beyond an organisation.
_PRIVATE = ("10.0.0.0/8", "100.64.0.0/10", "172.16.0.0/12", "192.0.0.0/24", "192.168.0.0/16", "198.18.0.0/15")
_REJECT = "reject with icmpx type admin-prohibited"  # the script learns at once


@dataclass(frozen=True)
class Ruleset:
    """`text` for `nft -f` replaces whatever there is of the table, in one step. `mark`: the comment of its first rule,
    by which it is known again; `rules`: how many it has in all."""

    text: str
    mark: str
    rules: int


def ruleset(security: Security, name_servers: Iterable[IPv4Address], names: Names = FIRST) -> Ruleset:
    """The rules of these settings. `name_servers`: whom the engine asks in its containers' stead; their port 53 is
    open wherever they are."""
    bridge = names.bridge
    exceptions = [*security.allowed_addresses, *(f"{server}:53" for server in sorted(set(name_servers)))]
    chains = {
        # Answers pass, and what was connected before. Nobody begins to talk to a job, not even a neighbour.
        "forward": [
            f'iifname != "{bridge}" oifname != "{bridge}" accept',
            "ct state established,related accept",
            f'oifname "{bridge}" drop',
            "jump outgoing",
            # It was addressed to the host: a port that is published or forwarded.
            f"ct status dnat {_REJECT}",
            _reject(_ALWAYS),
            *([_reject(_PRIVATE)] if security.block_private else []),
            f"meta nfproto ipv6 {_REJECT}",
        ],
        # To the host itself, by whichever of its addresses.
        "input": [
            f'iifname != "{bridge}" accept',
            "ct state established,related accept",
            "jump outgoing",
            _REJECT,
        ],
        "outgoing": [
            f"ct state new add @connections {{ ip saddr ct count over {_CONNECTIONS} }} {_REJECT}",
            *map(_accept, exceptions),
        ],
    }
    mark = "cronium " + hashlib.sha256(repr(chains).encode()).hexdigest()[:16]
    chains["forward"][0] += f' comment "{mark}"'
    return Ruleset(_text(names.table, chains), mark, sum(map(len, chains.values())))


def _reject(networks: Iterable[str]) -> str:
    return f"ip daddr {{ {', '.join(networks)} }} {_REJECT}"


def _accept(destination: str) -> str:
    """As the script has addressed it, before any translation of the host's."""
    network, _, port = destination.partition(":")
    return f"ct original ip daddr {network} {f'meta l4proto {{ tcp, udp }} th dport {port} ' if port else ''}accept"


def _text(table: str, chains: dict[str, list[str]]) -> str:
    lines = [f"table {table}", f"delete table {table}", f"table {table} {{"]
    lines += ["\tset connections {", "\t\ttype ipv4_addr", "\t\tsize 65535", "\t\tflags dynamic", "\t}"]
    # A chain that others jump to comes before them.
    for name in reversed(chains):
        lines.append(f"\tchain {name} {{")
        if name != "outgoing":
            lines.append(f"\t\ttype filter hook {name} priority filter - 10; policy accept;")
        lines += [f"\t\t{rule}" for rule in chains[name]]
        lines.append("\t}")
    return "\n".join([*lines, "}", ""])
