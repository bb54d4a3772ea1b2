"""Readers without mercy, for what the worker gives out."""

import json
from typing import Any

from pydantic_core import from_json


def _no(name: str) -> Any:
    raise AssertionError(f"{name} is no JSON")


def strict(text: str) -> Any:
    """A document that Python and a strict reader of another make take for the same."""
    value = json.loads(text, parse_constant=_no)
    assert from_json(text.encode(), allow_inf_nan=False) == value
    return value


def is_one_line(message: str) -> bool:
    """Whether it may stand in a log and on a terminal."""
    return message.isprintable() and 0 < len(message) < 20_000
