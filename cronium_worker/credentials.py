"""Which process holds which of the fleet's credentials: what it does not need is taken from its environment.

Linux shows the environment that a process was started with for as long as it lives, so it is started anew, in its own
place. The table with the reasons is in docs/security.md.
"""

import json
import os
import sys
from collections.abc import Collection, Mapping
from typing import Any, Literal

from cronium_worker.settings import override

Process = Literal["jobs", "agent", "web", "flower"]

# By setting, without its prefix: who needs it. The address of Redis is everybody's.
_HOLDERS: Mapping[str, frozenset[Process]] = {
    "SECRET_KEYS": frozenset({"jobs", "web"}),
    "SIGNING_KEYS": frozenset({"jobs", "web"}),
    "REGISTRY__PASSWORD": frozenset({"jobs", "agent"}),
    "WEB__TOKEN": frozenset({"web"}),
    "FLOWER__USERNAME": frozenset({"flower"}),
    "FLOWER__PASSWORD": frozenset({"flower"}),
    "REDIS_PASSWORD": frozenset(),  # deploy/compose.yaml makes the address of it
}


def keep(*processes: Process) -> None:
    """Give up the credentials that none of these needs; it may start this program anew. Raises ConfigurationError."""
    needless = {name for name, holders in _HOLDERS.items() if not holders & set(processes)}
    environment = dict(os.environ)  # noqa: TID251 - it is handed on
    kept = without(environment, needless)
    if kept != environment:
        sys.stdout.flush()
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], kept)  # noqa: S606 - itself
    # Also what stands in a file .env.
    empty: dict[str, Any] = {}
    for name in needless - {"REDIS_PASSWORD"}:
        section, _, key = name.lower().partition("__")
        if key:
            empty.setdefault(section, {})[key] = ""
        else:
            empty[section] = ""
    override(**empty)


def without(environment: Mapping[str, str], names: Collection[str]) -> dict[str, str]:
    """The environment without these settings, in every way that they may be written there."""
    kept: dict[str, str] = {}
    for variable, value in environment.items():
        setting = variable.upper().removeprefix("CRONIUM_")
        keys = [name.partition("__")[2].lower() for name in names if name.startswith(f"{setting}__")]
        if setting == variable.upper() or setting not in names:
            kept[variable] = _without_keys(value, keys) if keys else value
    return kept


def _without_keys(text: str, keys: Collection[str]) -> str:
    """Of a section that is written as one JSON object."""
    try:
        section = json.loads(text)
    except ValueError:
        return text
    if not isinstance(section, dict) or not section.keys() & set(keys):
        return text
    return json.dumps({key: value for key, value in section.items() if key not in keys})
