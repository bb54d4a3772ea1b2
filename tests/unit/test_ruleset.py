"""The text of a host's firewall rules, from settings and name servers."""

from ipaddress import IPv4Address
from pathlib import Path

from cronium_worker.engine.network import FIRST, names_beside
from cronium_worker.engine.ruleset import ruleset
from cronium_worker.settings import Security

GOLDEN = Path(__file__).parent / "golden/ruleset.nft"


def test_all_rules_are_as_reviewed() -> None:
    """A change of one needs a look at docs/security.md and at this file."""
    security = Security(block_private=True, allowed_addresses=("10.1.0.0/16", "10.2.3.4:443"))
    assert ruleset(security, [IPv4Address("169.254.169.254")]).text == GOLDEN.read_text()


def test_private_networks_are_open_by_default() -> None:
    assert "192.168.0.0/16" not in ruleset(Security(), []).text


def test_the_same_settings_have_the_same_mark_and_others_another_one() -> None:
    first, second = IPv4Address("192.0.2.1"), IPv4Address("192.0.2.2")
    made = ruleset(Security(), [first, second, first])
    assert made == ruleset(Security(), [second, first])
    others = [ruleset(Security(), [first]), ruleset(Security(block_private=True), [first, second])]
    assert len({made.mark, *(other.mark for other in others)}) == 3
    assert made.mark in made.text


def test_every_rule_is_counted() -> None:
    made = ruleset(Security(allowed_addresses=("10.1.2.3",)), [])
    verdicts = [line for line in made.text.splitlines() if line.startswith("\t\t") and "policy" not in line]
    of_the_set = 3  # its type, size, flags
    assert made.rules == len(verdicts) - of_the_set


def test_another_fleet_s_rules_are_a_table_of_their_own_for_its_bridge_alone() -> None:
    names = names_beside("blue")
    made = ruleset(Security(), [], names)
    assert made.text.count(f"table {names.table}") == 3
    assert made.text == ruleset(Security(), []).text.replace(FIRST.bridge, names.bridge).replace(
        f"table {FIRST.table}", f"table {names.table}"
    ).replace(ruleset(Security(), []).mark, made.mark)
    assert len(names.bridge) <= 15  # as long as the kernel allows
