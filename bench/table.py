"""The table of ratios."""

from __future__ import annotations

from collections.abc import Iterator

from comparing import Row


def lines_of(rows: list[Row]) -> Iterator[str]:
    """The table, one group after the other."""
    width = max(len(row.case) for row in rows)
    goals = max(len("goal"), *(len(row.goal) for row in rows))
    group = None
    for row in rows:
        if (row.group, row.base, row.unit) != group:
            group = (row.group, row.base, row.unit)
            yield ""
            costs = f"{f'{row.base}, {row.unit}':>22}  {f'mqcore, {row.unit}':>10}"
            yield f"{row.group:{width}}  {costs}  {'ratio':>6}  {'spread':>6}  {'goal':{goals}}  kept  peers"
        kept = {None: "", True: "yes", False: "NO"}[row.kept]
        peers = ", ".join(f"{name} {ratio:.3g}" for name, ratio in row.peers.items())
        yield (
            f"{row.case:{width}}  {row.base_cost:22,.1f}  {row.mqcore_cost:10,.1f}  {row.ratio:6.2f}  {row.spread:5.1%}"
            f"  {row.goal:{goals}}  {kept:4}  {peers}"
        )
