"""`mqcore top`: what a running server does, as it does it."""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import sys
import termios
import tty
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from ..mail.report import OK, SOME_FAILED, UNREACHABLE
from ..server.durations import write_duration
from .ctl import EXIT_CODES, SOCKET, as_cell, exchange, explain, path_of
from .output import complain

if TYPE_CHECKING:
    from rich.console import RenderableType

    from . import Commands

PERIOD = 1.0
HELD = 15
"""Of a plugin's held messages, so many are shown."""
KEYS = "q quit, s sort, arrows choose, p pause or resume, Enter what it holds"
UP, DOWN = "\x1b[A", "\x1b[B"

Ask = Callable[[dict[str, Any]], Any]
Row = dict[str, Any]


def add_to(commands: Commands) -> None:
    top = commands.add_parser("top", help="watch a server that runs with --control", epilog=EXIT_CODES)
    top.add_argument("--socket", "--control", metavar="PATH", help=SOCKET)
    top.set_defaults(command=watch, parser=top)


def watch(options: argparse.Namespace) -> int:
    try:
        from rich.console import Console
        from rich.live import Live
    except ModuleNotFoundError:
        return complain("mqcore top needs rich: pip install 'mqcore[cli]'", UNREACHABLE)
    path = path_of(options)
    console = Console(highlight=False, markup=False, emoji=False)
    view = View(lambda request: _result(path, request))
    try:
        view.update()
        if not (sys.stdin.isatty() and console.is_terminal):
            console.print(view.draw(), width=max(console.width, 80))
            return OK
        with _single_keys() as keys, Live(view.draw(), console=console, screen=True, auto_refresh=False) as live:
            for key in keys:
                if not view.press(key):
                    return OK
                live.update(view.draw(), refresh=True)
    except RefusedError as error:
        return complain(error, SOME_FAILED)
    except (OSError, ValueError) as error:
        return complain(explain(error, path), UNREACHABLE)
    return OK


class RefusedError(Exception):
    """The server says no."""


def _result(path: str, request: dict[str, Any]) -> Any:
    answer = exchange(path, request)
    if not answer["ok"]:
        raise RefusedError(answer["error"])
    return answer["result"]


@contextlib.contextmanager
def _single_keys() -> Iterator[Iterator[str]]:
    """What is pressed, key by key; "" when nothing was for a while. The terminal is as before in the end."""
    before = termios.tcgetattr(sys.stdin)

    def keys() -> Iterator[str]:
        while True:
            if not select.select([sys.stdin], [], [], PERIOD)[0]:
                yield ""
            elif not (pressed := os.read(sys.stdin.fileno(), 16)):
                return  # the terminal is gone
            else:
                text = pressed.decode(errors="replace")
                yield from ((text,) if text.startswith("\x1b") else text)

    try:
        tty.setcbreak(sys.stdin)
        yield keys()
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


# Columns: heading, value of a row, and how it is written.

_Column = tuple[str, Callable[[Row], Any], Callable[[Any], str]]


def _count(number: float) -> str:
    return f"{number:,.0f}" if number < 1e7 else f"{number / 1e6:,.0f}M"


def _rate(number: float) -> str:
    return f"{number:.1f}" if number < 10 else _count(number)


def _seconds(seconds: float | None) -> str:
    return "-" if seconds is None else write_duration(seconds)


def _lag(lag: dict[str, Any], before: Sequence[int] | None) -> str:
    """The bound of the longest turn of the loop since the figures before."""
    if before is None:
        return "-"
    new = [number for number, (now, then) in enumerate(zip(lag["counts"], before, strict=True)) if now > then]
    if not new:
        return "0"
    bounds = lag["bounds"]
    return f"up to {write_duration(bounds[new[-1]])}" if new[-1] < len(bounds) else f"over {write_duration(bounds[-1])}"


COLUMNS: Sequence[_Column] = (
    ("calls/s", lambda row: row["rate"], _rate),
    ("held", lambda row: row["held"], _count),
    ("oldest", lambda row: row["held_oldest"], _seconds),
    ("failures", lambda row: row["failures"], _count),
    ("each", lambda row: row["seconds"] / row["calls"] if row["calls"] else None, _seconds),
)


class View:
    """What is shown, of what `ask` answers: a server's figures, its plugins and hooks, one of which is chosen."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._figures: dict[str, Any] = {}
        self._paused: set[str] = set()
        self._rates = {"mails": 0.0}
        self._lags: Sequence[int] | None = None
        """How long turns of the loop were, until the figures before."""
        self._said = ""
        """What the server said to the last key, if that was no."""
        self._sorted = 0
        self._chosen: tuple[str, str] | None = None
        self._held: list[Row] | None = None
        """Of the chosen plugin, when they are shown."""

    def update(self) -> None:
        """Ask for what is now."""
        before, self._figures = self._figures, self._ask({"command": "figures"})
        if before and before["loop"] is not None:
            self._lags = before["loop"]["lag"]["counts"]
        self._paused = set(self._figures["paused"])
        seconds = self._figures["time"] - before["time"] if before else 0.0
        calls = {(row["plugin"], row["hook"]): row["calls"] for row in before.get("plugins", ())}
        for row in self._figures["plugins"]:
            more = row["calls"] - calls.get((row["plugin"], row["hook"]), row["calls"])
            row["rate"] = more / seconds if seconds else 0.0
        if seconds:
            self._rates["mails"] = (self._figures["mails"]["read"] - before["mails"]["read"]) / seconds
        if self._held is not None and self._chosen is not None:
            self._held = self._ask({"command": "held", "plugin": self._chosen[0], "limit": HELD})["oldest"]

    def rows(self) -> list[Row]:
        """Those of plugins that have done anything, sorted, the most first."""
        value = COLUMNS[self._sorted][1]
        rows = [row for row in self._figures["plugins"] if row["calls"] or row["refused"]]
        return sorted(rows, key=lambda row: value(row) or 0.0, reverse=True)

    def press(self, key: str) -> bool:
        """Whether to go on."""
        keys = [(row["plugin"], row["hook"]) for row in self.rows()]
        if self._chosen not in keys:
            self._chosen = keys[0] if keys else None
        place = keys.index(self._chosen) if self._chosen is not None else 0
        if key == "q":
            return False
        if key:
            self._said = ""
        if key == "s":
            self._sorted = (self._sorted + 1) % len(COLUMNS)
        elif key in (UP, DOWN) and keys:
            self._chosen = keys[max(0, min(len(keys) - 1, place + (1 if key == DOWN else -1)))]
        elif key == "p" and self._chosen is not None:
            plugin = self._chosen[0]
            try:
                self._ask({"command": "resume" if plugin in self._paused else "pause", "plugin": plugin})
            except RefusedError as error:  # a reload has taken it away, and its figures stay
                self._said = str(error)
        elif key in ("\n", "\r"):
            self._held = [] if self._held is None else None
        self.update()
        return True

    def draw(self) -> RenderableType:
        from rich.console import Group
        from rich.text import Text

        figures = self._figures
        smtp, lag = figures.get("smtp"), figures["loop"]
        parts = [
            f"{_rate(self._rates['mails'])} mails/s",
            f"{_count(figures['in_flight'])} of {_count(figures['in_flight_limit'])} in flight",
            f"{_count(figures['steps']['held'])} held",
        ]
        if smtp is not None:
            parts.append(f"{_count(smtp['connections_open'])} clients")
        if lag is not None:
            parts.append(f"loop lag {_lag(lag['lag'], self._lags)}")
        state = "running" if figures["ready"] else "draining"
        head = f"{state}: {as_cell(figures['source'])} -> {as_cell(figures['sink'])}"
        shown = self._draw_plugins() if self._held is None else self._draw_held(self._held)
        last = Text(as_cell(self._said), style="bold") if self._said else Text(KEYS, style="dim")
        return Group(Text(head), Text(", ".join(parts)), shown, last)

    def _draw_plugins(self) -> RenderableType:
        from rich.box import SIMPLE_HEAD
        from rich.table import Table

        table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), expand=False)
        table.add_column("plugin", overflow="ellipsis", no_wrap=True, max_width=24)
        table.add_column("hook", overflow="ellipsis", no_wrap=True, max_width=22)
        for number, (heading, _, _) in enumerate(COLUMNS):
            table.add_column(f"{heading}*" if number == self._sorted else heading, justify="right", no_wrap=True)
        for row in self.rows():
            plugin = as_cell(row["plugin"]) + (" (paused)" if row["plugin"] in self._paused else "")
            style = "reverse" if (row["plugin"], row["hook"]) == self._chosen else ""
            cells = [write(value(row)) for _, value, write in COLUMNS]
            table.add_row(plugin, row["hook"].removeprefix("mq_"), *cells, style=style)
        return table

    def _draw_held(self, held: list[Row]) -> RenderableType:
        from rich.box import SIMPLE_HEAD
        from rich.table import Table

        plugin = "" if self._chosen is None else as_cell(self._chosen[0])
        table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), title=f"held by {plugin}", title_justify="left")
        for name in ("age", "hook", "peer", "envelope", "recipient"):
            table.add_column(name, overflow="ellipsis", no_wrap=True)
        for row in held:
            hook = row["hook"].removeprefix("mq_")
            table.add_row(write_duration(row["age"]), hook, *(as_cell(row[name]) for name in ("peer", "envelope", "recipient")))
        return table
