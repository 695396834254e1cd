"""Draws what a run wrote: `python bench/plot.py RESULTS.json FOLDER` makes one SVG file for each group of rows."""

from __future__ import annotations

import json
import sys
from itertools import groupby
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib import pyplot

Row = dict[str, Any]

COLOURS = {"mqcore": "#0b6e4f", "floor": "#9aa5b1"}
OTHERS = ("#d98e04", "#b23a48", "#5e60ce", "#7f5539", "#219ebc", "#c77dff", "#606c38", "#ffafcc")


def costs_of(row: Row) -> dict[str, float]:
    """What each contender costs."""
    peers = {name: ratio * row["base_cost"] for name, ratio in row["peers"].items()}
    return {row["base"]: row["base_cost"], "mqcore": row["mqcore_cost"], **peers}


def draw_bars(rows: list[Row], axes: Any) -> None:
    """A bar for each contender of each case; times differ so much that the axis is logarithmic."""
    names = list(dict.fromkeys(name for row in rows for name in costs_of(row)))
    others = [name for name in names if name not in COLOURS]
    colours = COLOURS | {name: OTHERS[number % len(OTHERS)] for number, name in enumerate(others)}
    seen: set[str] = set()
    top = 0
    ticks = []
    for row in rows:
        costs = costs_of(row)
        ticks.append((top + (len(costs) - 1) / 2, row["case"]))
        for name, cost in costs.items():
            axes.barh(top, cost, color=colours[name], label="" if name in seen else name)
            axes.text(cost, top, f" {cost:,.0f}", va="center", fontsize=6)
            seen.add(name)
            top += 1
        top += 1
    axes.set_yticks([place for place, _ in ticks], [case for _, case in ticks], fontsize=8)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.set_xlabel(rows[0]["unit"])
    axes.legend(fontsize=7)


def draw_growth(rows: list[Row], axes: Any) -> None:
    """Each row's cost as a multiple of its base, against what grows."""
    for base, each in groupby(rows, key=lambda row: row["base"]):
        line = list(each)
        axes.plot([row["at"] for row in line], [row["ratio"] for row in line], marker="o", label=f"beside {base}")
    axes.set_xscale("log")
    axes.set_ylim(0, 2)
    axes.axhline(1, color="#9aa5b1", linewidth=0.5)
    axes.set_xlabel("messages held, plugins without the hook, retries in a step")
    axes.set_ylabel("cost, as a multiple")
    axes.legend(fontsize=7)


def main(results: str, folder: str) -> None:
    """Draw all groups."""
    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "mqcore"  # the same file from the same figures
    rows = json.loads(Path(results).read_text(encoding="utf-8"))["rows"]
    for group, each in groupby(sorted(rows, key=lambda row: str(row["group"])), key=lambda row: str(row["group"])):
        drawn = list(each)
        grows = drawn[0]["at"] is not None
        bars = sum(len(row["peers"]) + 3 for row in drawn)
        figure, axes = pyplot.subplots(figsize=(8, 4 if grows else 1 + 0.16 * bars), layout="constrained")
        (draw_growth if grows else draw_bars)(drawn, axes)
        axes.set_title(group)
        figure.savefig(Path(folder) / f"{group.replace(' ', '-')}.svg", metadata={"Date": None})
        pyplot.close(figure)


if __name__ == "__main__":
    main(*sys.argv[1:])
