"""The field types that the job and result models share: sizes, names, JSON values with a limit."""

import json
import re
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv6Address
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    IPvAnyAddress,
    JsonValue,
    ValidatorFunctionWrapHandler,
    WrapValidator,
)

KIB = 1024
MIB = 1024 * KIB

JOB_ID_PATTERN = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$"
_JOB_ID = re.compile(JOB_ID_PATTERN)
ENVIRONMENT_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
ENVIRONMENT_VALUE_MAX_BYTES = 64 * KIB
ENVIRONMENT_MAX_BYTES = 512 * KIB
ENVIRONMENT_MAX_COUNT = 10_000  # a pointer each counts for the kernel's limit, and shells are slow with more
JSON_MAX_DEPTH = 150  # pydantic's own parser stops at 200, the levels of the job around the value included

_SIZE = re.compile(r"(\d{1,19}(?:\.\d{1,9})?)([bkmgt]?)b?", re.IGNORECASE | re.ASCII)
_SIZE_UNITS = {"": 1, "b": 1, "k": KIB, "m": MIB, "g": 1024 * MIB, "t": 1024 * 1024 * MIB}
# The grammar of distribution/reference: domain with port, path, tag, digest.
_IMAGE = re.compile(
    r"(?:[a-zA-Z0-9](?:[a-zA-Z0-9.-]*[a-zA-Z0-9])?(?::\d{1,5})?/)?"
    r"[a-z0-9]+(?:(?:\.|_{1,2}|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_{1,2}|-+)[a-z0-9]+)*)*"
    r"(?::\w[\w.-]{0,127})?(?:@sha256:[0-9a-f]{64})?",
    re.ASCII,
)


def is_job_id(value: object) -> bool:
    return isinstance(value, str) and _JOB_ID.fullmatch(value) is not None


def parse_size(value: object) -> object:
    """`"512m"` → 536870912: Docker's notation for sizes (powers of 1024). Anything but text is passed on."""
    if not isinstance(value, str):
        return value
    match = _SIZE.fullmatch(value)
    if match is None:
        raise ValueError('not a size: give bytes or a number with a unit, like "512m" or "2g"')
    number, unit = match.groups()
    return int(float(number) * _SIZE_UNITS[unit.lower()])


def is_image(value: str) -> bool:
    return len(value) <= 512 and _IMAGE.fullmatch(value) is not None


def check_image(value: str) -> str:
    if not is_image(value):
        raise ValueError('not an image reference: give one like "registry/name:tag" or "name@sha256:…"')
    return value


def json_bytes(value: object) -> bytes:
    """Compact strict JSON in UTF-8 (no NaN, no lone surrogates).

    Raises ValueError with a reason that can be shown to a user.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return text.encode()
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except UnicodeEncodeError:
        raise ValueError("contains a lone surrogate, which is not text") from None


def check_depth(value: object) -> None:
    """Raises ValueError where a value has more levels than JSON_MAX_DEPTH."""
    if _is_deeper_than(value, JSON_MAX_DEPTH):
        raise ValueError(f"nested deeper than {JSON_MAX_DEPTH} levels")


def _is_deeper_than(value: Any, levels: int) -> bool:
    layer = [value]
    for _ in range(levels + 1):
        inner = [list(item.values()) if isinstance(item, dict) else item for item in layer]
        layer = [child for item in inner if isinstance(item, list) for child in item]
        if not layer:
            return False
    return True


def limited_json(limit_bytes: int) -> WrapValidator:
    """A validator that refuses a value whose JSON is longer than `limit_bytes`, nested deeper than
    JSON_MAX_DEPTH, or no strict JSON."""

    def check(value: Any, validate: ValidatorFunctionWrapHandler) -> Any:
        check_depth(value)  # first: pydantic's own message names the level by each of those above it
        value = validate(value)
        size = len(json_bytes(value))
        if size > limit_bytes:
            raise ValueError(f"{size} bytes as JSON, at most {limit_bytes} are allowed")
        return value

    return WrapValidator(check)


def check_environment(values: Mapping[str, str]) -> Mapping[str, str]:
    """Refuse what a process environment cannot hold, or what is the worker's own (`CRONIUM_*`)."""
    if len(values) > ENVIRONMENT_MAX_COUNT:
        raise ValueError(f"{len(values)} variables, at most {ENVIRONMENT_MAX_COUNT} are allowed")
    total = 0
    for name, value in values.items():
        if not ENVIRONMENT_NAME.fullmatch(name):
            raise ValueError(f"{name[:80]!r} is not a name: use [A-Za-z_][A-Za-z0-9_]*")
        if name.upper().startswith("CRONIUM_"):
            raise ValueError(f"{name[:80]} is reserved: names that begin with CRONIUM_ are the worker's")
        if "\0" in value:
            raise ValueError(f"the value of {name[:80]} has a NUL byte")
        size = len(value.encode())
        if size > ENVIRONMENT_VALUE_MAX_BYTES:
            raise ValueError(f"the value of {name[:80]} has {size} bytes, at most 65536 are allowed")
        total += len(name) + size + 2
    if total > ENVIRONMENT_MAX_BYTES:
        raise ValueError(f"{total} bytes in all, at most {ENVIRONMENT_MAX_BYTES} are allowed")
    return values


def check_address(value: object) -> object:
    """Not from numbers and booleans, which would be read as addresses; no zone (`%eth0`), which is free text."""
    if not isinstance(value, str | IPv4Address | IPv6Address) or "%" in str(value):
        raise ValueError("is not an IPv4 or IPv6 address")
    return value


Size = Annotated[int, BeforeValidator(parse_size), Field(strict=True, gt=0, lt=2**63)]
Seconds = Annotated[float, Field(strict=True, allow_inf_nan=False)]
JobId = Annotated[str, Field(strict=True, pattern=JOB_ID_PATTERN)]
ImageReference = Annotated[str, AfterValidator(check_image)]
Environment = Annotated[dict[str, str], AfterValidator(check_environment)]
JsonObject = dict[str, JsonValue]
Address = Annotated[IPvAnyAddress, BeforeValidator(check_address)]
