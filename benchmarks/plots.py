"""The pictures of the documentation, from the figures of a run."""

from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

DOCS = Path(__file__).parent.parent / "docs"
_BLUE, _ORANGE, _GREY = "#1f5fa8", "#d9741a", "#8a8f98"


def _clean(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, which="major", color="#e3e6ea", linewidth=0.8)
    axes.set_axisbelow(True)


def plot_scale(found: dict[str, Any], path: Path = DOCS / "scaling.png") -> None:
    """The load model: Redis's one thread, and how long a job's ways take."""
    rows = found["hosts"]
    hosts = [row["hosts"] for row in rows]
    figure, (left, right) = plt.subplots(1, 2, figsize=(10.5, 4.2), layout="constrained")
    left.loglog(hosts, [100 * row["idle_cpu"] for row in rows], "o-", color=_BLUE, label="idle hosts")
    left.loglog(hosts, [100 * row["load_cpu"] for row in rows], "s-", color=_ORANGE, label="with jobs")
    for row in rows:
        left.annotate(
            f"{row['rate']:g} jobs/s", (row["hosts"], 100 * row["load_cpu"]),
            textcoords="offset points", xytext=(0, 7), ha="center", fontsize=8, color=_ORANGE,
        )  # fmt: skip
    left.axhline(100, color=_GREY, linestyle="--", linewidth=1)
    left.text(hosts[0], 108, "one thread, full", fontsize=8, color=_GREY, va="bottom")
    left.set_ylim(top=220)
    left.set(xlabel="hosts", ylabel="Redis: % of a core", title="What Redis's one thread does")
    left.legend(frameon=False, loc="lower right")
    ways = (("claimed_ms", "call → claimed", _BLUE), ("returned_ms", "end → get() returns", _ORANGE))
    for name, label, color in ways:
        right.loglog(hosts, [row[f"{name}_p50"] for row in rows], "o-", color=color, label=f"{label}, p50")
        right.loglog(hosts, [row[f"{name}_p95"] for row in rows], "o--", color=color, alpha=0.6, label=f"{label}, p95")
    right.set(xlabel="hosts, all simulated on the same cores", ylabel="ms", title="A job's ways through Redis")
    right.legend(frameon=False, fontsize=9)
    for axes in (left, right):
        axes.set_xticks(hosts, [f"{count:,}" for count in hosts])
        axes.minorticks_off()
        _clean(axes)
    figure.savefig(path, dpi=110)
    plt.close(figure)
