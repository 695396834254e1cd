"""Draws the rows of a group, of one run or of several side by side, as SVG."""

from __future__ import annotations

from itertools import cycle, groupby
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot
from matplotlib.patches import Patch

Row = dict[str, Any]
Runs = dict[str, list[Row]]
"""The rows of a group in each run, by the run's name."""

# On a white page and on a black one, text and lines have the same contrast, and every bar is seen.
INK = "#797979"
COLOURS = {"mqcore": "#1f9d6b", "floor": "#9aa5b1"}
OTHERS = ("#d98e04", "#c8505f", "#7678d8", "#9c6b4a", "#219ebc", "#b56be0", "#7d8a3c", "#d987a5")

STYLE: dict[Any, Any] = {
    "svg.hashsalt": "mqcore",  # the same file from the same figures
    "svg.fonttype": "none",  # text stays text
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 8,
    "savefig.transparent": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
}


def costs_of(row: Row) -> dict[str, float]:
    """What each contender costs."""
    peers = {name: ratio * row["base_cost"] for name, ratio in row["peers"].items()}
    return {row["base"]: row["base_cost"], "mqcore": row["mqcore_cost"], **peers}


def as_text(cost: float) -> str:
    """As a person reads it."""
    return f"{cost:,.0f}" if cost >= 10 else f"{cost:.1f}"


def bars_of(runs: Runs) -> list[tuple[str, str] | None]:
    """The case and the contender of each bar, whichever run has it; None for the space between two cases."""
    cases: dict[str, dict[str, None]] = {}
    for rows in runs.values():
        for row in rows:
            cases.setdefault(row["case"], {}).update(dict.fromkeys(costs_of(row)))
    bars: list[tuple[str, str] | None] = []
    for case, names in cases.items():
        bars += [*((case, name) for name in names), None]
    return bars[:-1]


def draw_bars(runs: Runs) -> Any:
    """A bar for each contender of each case; where costs differ much, the axis is logarithmic."""
    bars = bars_of(runs)
    figure, panels = panels_of(runs, height=1 + 0.14 * len(bars))
    names = list(dict.fromkeys(bar[1] for bar in bars if bar))
    others = cycle(OTHERS)
    colours = {name: COLOURS.get(name) or next(others) for name in names}
    costs = {
        run: {(row["case"], name): cost for row in rows for name, cost in costs_of(row).items()} for run, rows in runs.items()
    }
    some = sorted(cost for each in costs.values() for cost in each.values() if cost > 0)
    scale, left = ("log", some[0] / 2) if some[-1] > 10 * some[0] else ("linear", 0.0)
    panels[0].set_xscale(scale)
    panels[0].set_xlim(left, some[-1] * 1.1)
    for axes, run in zip(panels, runs, strict=True):
        for place, bar in enumerate(bars):
            if bar in costs[run]:
                cost = costs[run][bar]
                end = max(cost, left)  # some memory costs nothing
                axes.barh(place, end - left, left=left, color=colours[bar[1]])
                axes.text(end, place, f" {as_text(cost)}", va="center", fontsize=6)
        axes.set_xlabel(next(iter(runs.values()))[0]["unit"])
    cases = [bar and bar[0] for bar in bars]
    middles = {case: cases.index(case) + (cases.count(case) - 1) / 2 for case in cases if case}
    panels[0].set_yticks(list(middles.values()), list(middles))
    panels[0].set_ylim(len(bars), -1)
    keys = [Patch(color=colours[name]) for name in names]
    figure.legend(keys, names, loc="outside upper center", ncols=4)
    return figure


def draw_growth(runs: Runs) -> Any:
    """Each row's cost as a multiple of its base, against what grows."""
    figure, panels = panels_of(runs, height=3.5)
    for axes, rows in zip(panels, runs.values(), strict=True):
        lines = groupby(rows, key=lambda row: str(row["base"]))
        for (base, line), colour in zip(lines, cycle(OTHERS), strict=False):
            points = [(row["at"], row["ratio"]) for row in line]
            axes.plot(*zip(*points, strict=True), marker="o", color=colour, label=f"beside {base}")
        axes.axhline(1, color=INK, linewidth=0.5)
        axes.set_xscale("log")
        axes.set_ylim(0, 2)
        axes.set_xlabel("messages held, plugins without the hook, retries in a step")
    panels[0].set_ylabel("cost, as a multiple")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper center", ncols=4)
    return figure


def panels_of(runs: Runs, height: float) -> tuple[Any, Any]:
    """A figure with a panel for each run."""
    width = 3 + 4.5 * len(runs)
    figure, panels = pyplot.subplots(
        1, len(runs), figsize=(width, height), sharex=True, sharey=True, squeeze=False, layout="constrained"
    )
    for axes, run in zip(panels[0], runs, strict=True):
        axes.set_title(run)
    return figure, panels[0]


def draw(runs: Runs, path: Path) -> None:
    """Draw a group into a file."""
    mpl.use("svg")
    grows = next(iter(runs.values()))[0]["at"] is not None
    with mpl.rc_context(STYLE):
        figure = (draw_growth if grows else draw_bars)(runs)
        figure.savefig(path, metadata={"Date": None, "Creator": None})
        pyplot.close(figure)
