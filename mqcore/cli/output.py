"""What the command says on standard error, and outputs that nobody reads."""

from __future__ import annotations

import logging
import os
import select
import sys
import time
from collections import Counter

from ..mail import refusals
from ..mail.done import log as mail_log
from ..server.logs import new_formatter

UNLIMITED = (refusals.log.name, mail_log.name)


class StandardError(logging.Handler):
    """Writes what each logger says to standard error, up to a limit: a million mails may fail in the same way.

    The limit is for some time only, as a server may run for months. Refusals have one of their own, and mails none. But clients
    make these, as many as they like: where nobody reads fast enough they are dropped, as else the server would wait.

    `suppressed`: how many records of each logger were not written. That is told, when there is something to write again.
    """

    LIMIT = 100
    PERIOD = 600.0

    def __init__(self) -> None:
        super().__init__()
        self.suppressed: Counter[str] = Counter()
        self._told: Counter[str] = Counter()
        self._said: Counter[str] = Counter()
        self._since = time.monotonic()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._emit(record)
        except Exception:  # a record that cannot be formatted must not fail whoever logs it
            self.handleError(record)

    def _emit(self, record: logging.LogRecord) -> None:
        if time.monotonic() - self._since > self.PERIOD:
            self._since = time.monotonic()
            self.tell_suppressed()
            self._said.clear()
        if record.name in UNLIMITED:
            self._say_if_read(record)
            return
        self._said[record.name] += 1
        if self._said[record.name] <= self.LIMIT:
            say(self.format(record))
            return
        if self._said[record.name] == self.LIMIT + 1:
            self._notice(record.name, f"said {self.LIMIT} things, and is silent for a while; what failed is counted at the end")
        self.suppressed[record.name] += 1

    def _say_if_read(self, record: logging.LogRecord) -> None:
        poll = select.poll()
        poll.register(2, select.POLLOUT)
        if not poll.poll(0):  # a pipe that has no room for a line
            self.suppressed[record.name] += 1
            return
        self._tell_suppressed(record.name)
        say(self.format(record))

    def tell_suppressed(self) -> None:
        """How much was not written, if that was not told yet."""
        for name in list(self.suppressed):
            self._tell_suppressed(name)

    def _tell_suppressed(self, name: str) -> None:
        count = self.suppressed[name] - self._told[name]
        if count:
            self._told[name] += count
            self._notice(name, f"{count} lines were not written")

    def _notice(self, name: str, text: str) -> None:
        """A line about the lines of a logger."""
        record = logging.LogRecord(name, logging.WARNING, "", 0, text, None, None)
        record.event = "suppressed"
        say(self.format(record))


class Notices:
    """How `complain` says things: as plain lines, until `log` is a handler whose lines are JSON."""

    log: logging.Handler | None = None


def complain(problem: object, code: int) -> int:
    """Say what is wrong, and return the exit code."""
    if Notices.log is None:
        say(f"mqcore: {problem}")
    else:
        record = logging.LogRecord("mqcore", logging.WARNING if code else logging.INFO, "", 0, str(problem), None, None)
        record.event = "notice"
        say(Notices.log.format(record))
    return code


def begin_log(format: str, level: str | None) -> None:
    """From now on, what is logged is written in this format. Without a level warnings are, refusals, and what is done to the
    server."""
    root = logging.getLogger()
    for handler in root.handlers:
        if isinstance(handler, StandardError):
            handler.setFormatter(new_formatter(format))
            Notices.log = handler if format == "json" else None
    root.setLevel((level or "warning").upper())
    for name in (refusals.log.name, "mqcore.server"):
        logging.getLogger(name).setLevel(logging.INFO if level is None else logging.NOTSET)


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
