"""What the command says on standard error, and outputs that nobody reads."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections import Counter

from ..mail import refusals


class OneLine(logging.Formatter):
    """Whoever chose a part of the text, as clients do, cannot make it look like two lines, or change a terminal: all lines but
    the first are indented, and what does not print is escaped."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n  ".join(map(_printable, super().format(record).split("\n")))


def _printable(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


class StandardError(logging.Handler):
    """Writes what each logger says to standard error, up to a limit: a million mails may fail in the same way.

    The limit is for some time only, as a server may run for months. Refusals have a limit of their own.

    """

    LIMIT = 100
    PERIOD = 600.0

    def __init__(self) -> None:
        super().__init__()
        self._said: Counter[str] = Counter()
        self._since = time.monotonic()

    def emit(self, record: logging.LogRecord) -> None:
        if time.monotonic() - self._since > self.PERIOD:
            self._since = time.monotonic()
            self._said.clear()
        self._said[record.name] += 1
        if self._said[record.name] <= self.LIMIT or record.name == refusals.log.name:
            say(self.format(record))
        elif self._said[record.name] == self.LIMIT + 1:
            say(f"{record.name} said {self.LIMIT} things, and is silent for a while; what failed is counted at the end")


def complain(problem: object, code: int) -> int:
    """Say what is wrong, and return the exit code."""
    say(f"mqcore: {problem}")
    return code


def say(text: str) -> None:
    # Not a stream that was kept: the progress bar puts itself in the place of sys.stderr.
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        drop(2)  # as in `2>&1 | head`; it must not stop the mail


def drop(fd: int) -> None:
    """Let go what is written to an output that nobody reads any more, and what waits in a buffer: else Python, which tries
    once more when it exits, would end with an exit code of its own."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, fd)
    os.close(null)


def open_standard_files() -> None:
    """A server may be started without them. Then its connections would be the standard files, which libuv never closes."""
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(fd, True)
    os.close(fd)
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
