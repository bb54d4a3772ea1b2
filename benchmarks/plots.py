"""The pictures of the documentation, from the figures of a run. `python -m benchmarks.plots` draws them anew."""

import json
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.axes import Axes

DOCS = Path(__file__).parent.parent / "docs"
RESULTS = Path(__file__).parent / "results"
# "claim, 10,000 waiting", "memory for each of 1,000 records": what, how many, of what.
_GROWN = re.compile(r"(.+?)(?:,| for each of) ([\d,]+) (waiting|records)")
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
    left.legend(frameon=False, loc="center left")
    ways = (("claimed_ms", "call → claimed", _BLUE), ("returned_ms", "end → get() returns", _ORANGE))
    for name, label, color in ways:
        right.loglog(hosts, [row[f"{name}_p50"] for row in rows], "o-", color=color, label=f"{label}, p50")
        right.loglog(hosts, [row[f"{name}_p95"] for row in rows], "o--", color=color, alpha=0.6, label=f"{label}, p95")
    right.set(xlabel="hosts, all simulated on the same cores", ylabel="ms", title="A job's ways through Redis")
    right.legend(frameon=False, fontsize=9)
    for axes in (left, right):
        axes.set_xticks(hosts, [f"{count:,}" for count in hosts])
        axes.yaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        axes.margins(x=0.09)
        _clean(axes)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def plot_performance(figures: Sequence[Mapping[str, Any]], path: Path = DOCS / "performance.png") -> None:
    """All figures that have a floor or a peer, as ratios: left, what a job costs; right, what grows."""
    grown: dict[str, list[tuple[int, float]]] = defaultdict(list)
    beside: list[tuple[str, float, str]] = []
    for row in figures:
        match = _GROWN.fullmatch(row["name"])
        if match:
            what, count, of = match.groups()
            grown[f"{what}, {of}"].append((int(count.replace(",", "")), row["ratio"] or 1.0))
        elif row["ratio"] is not None:
            beside.append((row["name"], row["ratio"], f"{row['p50']:.3g} {row['unit']}"))
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(12.5, 1.6 + 0.26 * max(14, len(beside))), layout="constrained", width_ratios=(1.15, 1)
    )
    _dots(left, beside)
    colors: dict[str, str] = {}
    for name, points in grown.items():
        what, _, of = name.rpartition(", ")
        color = colors.setdefault(what, f"C{len(colors)}")
        style = "--" if of == "waiting" else "-"
        right.plot(*zip(*points, strict=True), marker="o", markersize=4, label=name, color=color, linestyle=style)
    right.axhline(1, color=_GREY, linewidth=1)
    right.set(
        xscale="log", yscale="log", xlabel="messages waiting, or records", title="As the queue and the records grow"
    )
    right.set_ylabel("beside the smallest, p50")
    right.set_ylim(0.3, max(30, 6 * max((ratio for points in grown.values() for _, ratio in points), default=1)))
    right.yaxis.set_major_formatter("{x:g}x")
    _clean(right)
    if grown:
        right.legend(frameon=False, fontsize=7.5, loc="upper left", ncols=2)
    figure.savefig(path, dpi=100)
    plt.close(figure)


def _dots(axes: Axes, rows: Sequence[tuple[str, float, str]]) -> None:
    places = range(len(rows), 0, -1)
    ratios = [max(ratio, 1e-3) for _, ratio, _ in rows]
    axes.hlines(places, 1, ratios, color="#c9d3e0", linewidth=2)
    axes.plot(ratios, places, "o", color=_BLUE)
    for place, ratio, (_, _, text) in zip(places, ratios, rows, strict=True):
        left = ratio < 1
        axes.annotate(
            text, (ratio, place), textcoords="offset points", xytext=(-7 if left else 7, -3),
            ha="right" if left else "left", fontsize=7.5, color=_GREY,
        )  # fmt: skip
    axes.axvline(1, color=_GREY, linewidth=1)
    axes.set_yticks(places, [name for name, _, _ in rows], fontsize=8)
    axes.set(xscale="log", xlabel="beside the floor or the peer of the same run, p50", title="What a job costs")
    axes.margins(x=0.25)
    axes.xaxis.set_major_formatter("{x:g}x")
    _clean(axes)


def main() -> None:
    if (latest := RESULTS / "latest.json").exists():
        plot_performance(json.loads(latest.read_text()))
    plot_scale(json.loads((RESULTS / "scale.json").read_text()))


if __name__ == "__main__":
    main()
