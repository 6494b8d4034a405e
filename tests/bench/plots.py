"""The plots of the results, as SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib as mpl

mpl.use("svg")
from matplotlib import pyplot as plt

from bench.table import Result

COLOURS = {
    "sse_pg": "#2b6cb0", "sse-pg": "#2b6cb0", "INSERT": "#2b6cb0", "HTTP": "#63b3ed", "NDJSON": "#2b6cb0",
    "array": "#63b3ed", "plain": "#718096", "\\copy": "#718096", "bare LISTEN": "#718096", "usual": "#c05621",
    "locked": "#975a16", "node": "#2f855a", "nchan": "#c05621",
}  # fmt: skip


def draw(result: Result, directory: Path) -> None:
    """Draw what there is to draw of a result."""
    directory.mkdir(parents=True, exist_ok=True)
    mpl.rcParams.update(
        {"svg.hashsalt": "sse-pg", "axes.spines.top": False, "axes.spines.right": False, "font.size": 9}
    )
    drawn = globals().get(f"_{result.name}")
    if drawn is None:
        return
    drawn(result.data)
    plt.tight_layout()
    path = directory / f"{result.name}.svg"
    plt.savefig(path, metadata={"Date": None, "Creator": "tests/bench"})
    plt.close("all")
    # matplotlib ends some lines with a space.
    path.write_text("".join(line.rstrip() + "\n" for line in path.read_text().splitlines()))


def _bars(axes: Any, groups: Sequence[str], series: Mapping[str, Sequence[float]], unit: str) -> None:
    width = 0.8 / len(series)
    for place, (name, values) in enumerate(series.items()):
        at = [x + (place - (len(series) - 1) / 2) * width for x in range(len(groups))]
        bars = axes.bar(at, values, width * 0.95, label=name, color=COLOURS.get(name))
        axes.bar_label(
            bars, [f"{value:,.0f}" if value >= 20 else f"{value:.1f}" for value in values], fontsize=6, padding=1
        )
    axes.set_xticks(range(len(groups)), groups)
    axes.set_ylabel(unit)
    axes.legend(frameon=False, fontsize=8)


def _cumulative(axes: Any, name: str, values: Sequence[float]) -> None:
    ordered = sorted(values)
    axes.plot(
        [value * 1e3 for value in ordered],
        [place / len(ordered) for place in range(1, len(ordered) + 1)],
        label=name,
        color=COLOURS.get(name),
    )
    axes.set_xlabel("delay, ms")
    axes.set_ylabel("share of the events")


def _sql(data: Mapping[str, Any]) -> None:
    _, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), width_ratios=(3, 2))
    counts = sorted({int(key.split()[1]) for key in data["tps"]})
    names = ("plain", "sse_pg", "usual", "locked")
    _bars(
        left,
        [f"{count} clients" for count in counts],
        {name: [median(data["tps"][f"{name} {count}"]) for count in counts] for name in names},
        "commits/s",
    )
    _cumulative(right, "sse_pg", data["spread"])
    right.set_title("32 clients, INSERT to client", fontsize=9)


def _delay(data: Mapping[str, Any]) -> None:
    _, all_axes = plt.subplots(1, 2, figsize=(9, 3.0))
    for axes, kind, title in zip(all_axes, ("flushed", "unflushed"), ("real fsync", "fsync off"), strict=True):
        for name, values in data[kind].items():
            _cumulative(axes, name, values)
        axes.set_title(title, fontsize=9)
        axes.set_xlim(0, 1e3 * max(sorted(values)[int(len(values) * 0.98)] for values in data[kind].values()))
        axes.legend(frameon=False, fontsize=8)


def _memory(data: Mapping[str, Any]) -> None:
    _, axes = plt.subplots(figsize=(4, 3))
    _bars(axes, ["idle stream"], {name: [median(values)] for name, values in data.items()}, "KiB")


def _http(data: Mapping[str, Any]) -> None:
    _, (left, middle, right) = plt.subplots(1, 3, figsize=(10, 3.0))
    single, bulk = data["single"], data["bulk"]
    counts = sorted({int(key.split()[1]) for key in single})
    groups = [f"{count} conn." for count in counts]
    for axes, key, unit in ((left, "rate", "requests/s"), (middle, "p50", "p50, ms")):
        series = {name: [median(single[f"{name} {count} {key}"]) for count in counts] for name in ("sse-pg", "node")}
        _bars(axes, groups, series, unit)
    _bars(right, ["rows in one request"], {name: [median(values)] for name, values in bulk.items()}, "rows/s")


def _fanout(data: Mapping[str, Any]) -> None:
    _, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2), width_ratios=(3, 2))
    names = [name for name in ("sse-pg", "nchan", "node") if f"{name} one" in data]
    kinds = {"one": "one at a time", "saturated": "saturated", "burst": "bursts of 100"}
    _bars(
        left,
        list(kinds.values()),
        {name: [median(data[f"{name} {kind}"]) / 1e3 for kind in kinds] for name in names},
        "1,000 deliveries/s",
    )
    for name in names:
        _cumulative(right, name, data["delays"][name])
    right.set_title("10 events/s", fontsize=9)
    right.legend(frameon=False, fontsize=8)


def _growth(data: Mapping[str, Any]) -> None:
    _, axes = plt.subplots(figsize=(7, 3))
    kinds = ("publish", "replay", "history", "purge")
    sizes = [key.removesuffix(" publish") for key in data if key.endswith("events publish")]
    for place, size in enumerate(sizes):
        at = [x + (place - (len(sizes) - 1) / 2) * 0.8 / len(sizes) for x in range(len(kinds))]
        values = [median(data[f"{size} {kind}"]) * 1e3 for kind in kinds]
        bars = axes.bar(at, values, 0.76 / len(sizes), label=size, color=("#90cdf4", "#4299e1", "#2c5282")[place])
        axes.bar_label(bars, [f"{value:.1f}" for value in values], fontsize=6, padding=1)
    axes.set_xticks(range(len(kinds)), kinds)
    axes.set_ylabel("ms")
    axes.legend(frameon=False, fontsize=8)


def _connects(data: Mapping[str, Any]) -> None:
    _, axes = plt.subplots(figsize=(5, 2.6))
    axes.plot([count / 1e3 for count in data["opened"]], [size / 2**20 for size in data["resident"]], color="#2b6cb0")
    axes.set_ylim(0, None)
    axes.set_xlabel("1,000 streams opened and closed")
    axes.set_ylabel("resident MiB")


def _storm(data: Mapping[str, Any]) -> None:
    _, axes = plt.subplots(1, 3, figsize=(8, 2.6))
    rings = [key.removesuffix(" seconds") for key in data if key.endswith(" seconds")]
    for place, (key, unit, scale) in enumerate(
        (("seconds", "s", 1), ("queries", "queries", 1), ("peak", "peak MiB", 2**20))
    ):
        axes[place].bar(rings, [median(data[f"{ring} {key}"]) / scale for ring in rings], color=COLOURS["sse-pg"])
        axes[place].set_ylabel(unit)
        axes[place].tick_params(axis="x", labelsize=7)
