"""The closing table. Importing this takes rich with it."""

from __future__ import annotations

import sys

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from ..mail.report import Report


def print_report(report: Report) -> None:
    """Say what became of the mails, and what each plugin did and took, on standard output."""
    # A file or a pipe has no width: nothing is cut off there.
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 160)
    console.print(_outcomes(report))
    if report.hooks:
        console.print(_plugins(report))
    console.print(f"{report.seconds:,.2f} s, {report.per_second:,.0f} mails a second")


def _outcomes(report: Report) -> Table:
    counts = report.counts
    table = Table(box=None, show_header=False)
    table.add_column(justify="right")
    table.add_column()
    rows = [
        (counts.read, "mails read"),
        (counts.present, "in the sink already, from an earlier run"),
        (counts.continued, "stored"),
        (counts.completed, "stored, as a plugin skipped the plugins after it"),
        (counts.failed, "failed"),
        (counts.rejected, "rejected, by a plugin or by the next server"),
        (counts.unfinished, "not finished; the source still has them"),
        (counts.unanswered, "of those stored, not known to be so by their client, who may send them again"),
        (counts.in_doubt, "sent or set aside without an answer, so that they may be there twice"),
        (counts.in_clear, "sent in the clear, as STARTTLS of the next server fails"),
    ]
    for number, (count, what) in enumerate(rows):
        if count or number == 0 or what == "stored":
            table.add_row(f"{count:,}", what)
    return table


def _plugins(report: Report) -> Table:
    table = Table(box=SIMPLE_HEAD)
    table.add_column("plugin")
    several = len({hook.hook for hook in report.hooks}) > 1
    if several:
        table.add_column("hook")
    for heading in ("calls", "holds", "failures", "time in hook", "longest", "time held"):
        table.add_column(heading, justify="right")
    for hook in report.hooks:
        counts = (hook.calls, hook.holds, hook.failures)
        times = (hook.seconds, hook.longest, hook.held_seconds)
        names = (hook.plugin, hook.hook) if several else (hook.plugin,)
        table.add_row(*names, *(f"{count:,}" for count in counts), *map(_duration, times))
    return table


def _duration(seconds: float) -> str:
    """With the unit that gives three digits or fewer before the point."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("us", 1e-6)):
        if seconds >= size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds * 1e9:.0f} ns" if seconds else "-"
