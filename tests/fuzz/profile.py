"""How the properties are tried: the same few examples in each run with the other tests."""

from hypothesis import HealthCheck, Phase, settings

# Without Phase.explain, which takes longer than it helps here.
_PHASES = (Phase.explicit, Phase.generate, Phase.shrink)


def of(examples: int, *, derandomize: bool) -> settings:
    return settings(
        max_examples=examples, derandomize=derandomize, database=None, deadline=None, print_blob=True,
        suppress_health_check=list(HealthCheck), phases=_PHASES,
    )  # fmt: skip


# `make fuzz` puts another in its place before the properties are imported.
FUZZ = of(200, derandomize=True)
