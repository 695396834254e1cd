"""The closing table. Importing this takes rich with it, where that is installed."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from ..mail.report import Report
from ..server.durations import write_duration

try:
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table
except ModuleNotFoundError:
    HAS_RICH = False
else:
    HAS_RICH = True

WIDE = 160
"""Columns of a file or a pipe: nothing is folded there."""


def print_report(report: Report) -> None:
    """Say what became of the mails, and what each plugin did and took, on standard output."""
    outcomes, (headings, plugins) = _outcomes(report), _plugins(report)
    end = f"{report.seconds:,.2f} s, {report.per_second:,.0f} mails a second"
    if report.workers is not None:
        end += f"\nworkers: {len(report.workers)}, crashes: {report.crashes}, restarts: {report.restarts}"
    if HAS_RICH:
        _print_with_rich(outcomes, headings, plugins, end)
    else:
        _print_plainly(outcomes, headings, plugins, end)


def _print_with_rich(
    outcomes: Sequence[Sequence[str]], headings: Sequence[str], plugins: Sequence[Sequence[str]], end: str
) -> None:
    console = Console(highlight=False, markup=False, emoji=False, width=None if sys.stdout.isatty() else WIDE)
    table = Table(box=None, show_header=False)
    table.add_column(justify="right", no_wrap=True)
    table.add_column()
    for row in outcomes:
        table.add_row(*row)
    console.print(table)
    if plugins:
        table = _rich_table(headings, plugins)
        wanted = console.measure(table, options=console.options.update_width(10_000)).maximum
        if headings[1] in NAMES and wanted > console.width:
            table = _rich_table(*_make_narrow(headings, plugins))
        console.print(table)
    console.print(end)


def _make_narrow(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> tuple[list[str], list[list[str]]]:
    """The two names one below the other, and headings of two lines."""
    below = ["\n".join(heading.rsplit(" ", 1)) for heading in headings[2:]]
    return ["\n".join(headings[:2]), *below], [["\n".join(row[:2]), *row[2:]] for row in rows]


def _rich_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for number, heading in enumerate(headings):
        # A name goes on in the next line rather than being cut: two that are cut may look alike.
        is_name = number == 0 or heading in NAMES
        table.add_column(heading, justify="left" if is_name else "right", overflow="fold", no_wrap=not is_name)
    for row in rows:
        table.add_row(*row)
    return table


def _print_plainly(
    outcomes: Sequence[Sequence[str]], headings: Sequence[str], plugins: Sequence[Sequence[str]], end: str
) -> None:
    width = max(len(count) for count, _ in outcomes)
    for count, what in outcomes:
        print(f"{count:>{width}}  {what}")
    if plugins:
        print()
        table = [headings, *plugins]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        for row in table:
            cells = zip(headings, row, widths, strict=True)
            print("  ".join(f"{cell:{'<' if heading in NAMES else '>'}{width}}" for heading, cell, width in cells).rstrip())
        print()
    print(end)


def _outcomes(report: Report) -> list[tuple[str, str]]:
    counts = report.counts
    rows = [
        (counts.read, "mails read"),
        (counts.present, "in the sink already, from an earlier run"),
        (counts.continued, "stored"),
        (counts.completed, "stored, as a plugin skipped the plugins after it"),
        (counts.failed, "failed"),
        (counts.rejected, "rejected, by a plugin or by the next server"),
        (counts.discarded, "discarded, as a plugin wanted"),
        (counts.retried, "put back into their queue, to be tried again later"),
        (counts.unfinished, "not finished; the source still has them"),
        (counts.unanswered, "of those stored, not known to be so by their client, who may send them again"),
        (counts.in_doubt, "sent or set aside without an answer, so that they may be there twice"),
        (counts.redelivered, "given to somebody before by their queue: so many at most may be there twice"),
        (counts.returned, "messages that went to no queue"),
        (counts.nacked, "times that a queue refused a message, as it was full"),
        (counts.reconnects, "times that the connection to a broker was made again"),
        (counts.in_clear, "sent in the clear, as STARTTLS of the next server fails"),
    ]
    shown = [(count, what) for number, (count, what) in enumerate(rows) if count or number == 0 or what == "stored"]
    shown += [(count, f"refused with {code} at {stage}") for (stage, code), count in sorted(report.refusals.items())]
    return [(f"{count:,}", what) for count, what in shown]


NAMES = ("plugin", "hook")
"""The columns with names; all others have numbers."""


def _plugins(report: Report) -> tuple[list[str], list[list[str]]]:
    """Headings and rows."""
    names = NAMES if len({hook.hook for hook in report.hooks}) > 1 else NAMES[:1]
    rows = []
    for hook in report.hooks:
        counts = (hook.calls, hook.holds, hook.failures)
        times = [write_duration(each) if each else "-" for each in (hook.seconds, hook.longest, hook.held_seconds)]
        rows.append([getattr(hook, name) for name in names] + [f"{count:,}" for count in counts] + times)
    return [*names, "calls", "holds", "failures", "time in hook", "longest", "time held"], rows
