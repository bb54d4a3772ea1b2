"""The upstream orchestrator's job JSON, translated to the fields of `Job`. Pure."""

import json
import re
import reprlib
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from cronium_worker.models.fields import check_depth

_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h)")
_UNIT_S = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_SECONDS_MAX = 86400
_NANOSECONDS_MIN = 10**9
_RESOURCES = {"cpuLimit": "cpu", "memoryLimit": "memory", "diskLimit": "disk", "pidsLimit": "pids"}
# What the orchestrator keeps for itself: it has no meaning for a worker.
_IGNORED = {"type", "createdAt", "updatedAt", "scheduledFor", "attempts", "status", "userId", "eventId"}


def seconds(value: object, field: str) -> float:
    """A duration as the orchestrator writes it, in seconds.

    Its API writes seconds, its Go code `time.Duration` (nanoseconds, or text like `"1m30s"`). No job runs
    for less than a second of nanoseconds or for more than a day, so the ranges do not overlap; what lies
    between them is refused rather than guessed. Raises ValueError.
    """
    if isinstance(value, str):
        parts = _DURATION.findall(value)
        if parts and "".join(number + unit for number, unit in parts) == value:
            return sum(float(number) * _UNIT_S[unit] for number, unit in parts)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        with suppress(OverflowError):
            if value <= _SECONDS_MAX:
                return float(value)
            if value >= _NANOSECONDS_MIN:
                return value / 1e9
    raise ValueError(
        f"{field}: {reprlib.repr(value)} is no duration: give seconds (≤ 86400), nanoseconds or text like 1m30s"
    )


def _mapping(payload: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = payload.get(key)
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ValueError(f"{key}: must be an object")  # noqa: TRY004 - callers expect ValueError alone
    return dict(value)


def _retry(policy: dict[str, Any]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    # Upstream counts 0 as "no retry"; here the first run is attempt 1.
    if policy.get("maxAttempts") is not None:
        fields["max_attempts"] = 1 if policy["maxAttempts"] == 0 else policy["maxAttempts"]
    if policy.get("backoffDelay") is not None:
        fields["delay"] = seconds(policy["backoffDelay"], "execution.retryPolicy.backoffDelay")
    if policy.get("backoffType") in ("fixed", "constant"):
        fields["backoff"] = 1
    return fields


def job_fields(payload: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments of `Job` for an orchestrator's payload. Raises ValueError naming the field."""
    execution = _mapping(payload, "execution")
    if not execution:
        raise ValueError("execution: missing; it must hold the script")
    target = _mapping(execution, "target").get("type", "local")
    if target not in ("local", "container"):
        raise ValueError(
            f"execution.target.type: {reprlib.repr(target)} is not run here; only local (container) jobs are"
        )
    unknown = payload.keys() - _IGNORED - {"id", "priority", "execution", "metadata", "queue"}
    if unknown:
        name = min(unknown)[:80]
        raise ValueError(f"{name if name.isprintable() else ascii(name)}: unknown field")
    metadata = _mapping(payload, "metadata")
    fields: dict[str, Any] = {key: payload[key] for key in ("id", "priority", "queue") if key in payload}
    script = _mapping(execution, "script")
    # Go writes the zero value of what was not set.
    fields["script"] = {key: value for key, value in script.items() if key != "workingDirectory" or value}
    for upstream, ours in (
        ("environment", "environment"),
        ("inputData", "input_data"),
        ("variables", "variables"),
    ):
        if execution.get(upstream) is not None:
            fields[ours] = execution[upstream]
    if execution.get("timeout"):
        fields["timeout"] = seconds(execution["timeout"], "execution.timeout")
    limits = _mapping(execution, "resources")
    given = {ours: limits[theirs] for theirs, ours in _RESOURCES.items() if limits.get(theirs)}
    if given:
        fields["resources"] = given
    if execution.get("retryPolicy"):
        fields["retry"] = _retry(_mapping(execution, "retryPolicy"))
    try:
        check_depth(metadata)
    except ValueError as error:
        raise ValueError(f"metadata: {error}") from None
    fields["event"] = metadata
    fields["metadata"] = {
        key: value if isinstance(value, str) else json.dumps(value) for key, value in metadata.items()
    }
    return fields
