"""How the lines of the log look: text for people, JSON for programs.

    handler = logging.StreamHandler()
    handler.setFormatter(mqcore.server.logs.JsonFormatter())

Whatever a client put into a record, it stays one line (or, in text, lines that are indented), and changes no terminal: line
ends, control characters, and what makes text run from right to left are escaped.
"""

from __future__ import annotations

import json
import logging
import time
from typing import Any

FORMATS = ("text", "json")
LEVELS = ("debug", "info", "warning", "error")

KEYS = ("time", "level", "logger", "plugin", "hook", "connection", "mail", "event")
"""That each line in JSON has, in this order; null is what does not apply. Then comes `message`, and what else there is."""

PLUGINS = "mqcore.plugins."
"""What the names of plugins' loggers begin with."""

_STANDARD = frozenset(logging.LogRecord("", 0, "", 0, "", None, None).__dict__) | {"message", "asctime", "taskName"}


class TextFormatter(logging.Formatter):
    """`2026-11-29T18:25:00.123Z WARNING mqcore.plugins.20-slow: what it says`; all lines but the first are indented."""

    def __init__(self) -> None:
        super().__init__("%(levelname)s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        lines = map(printable, super().format(record).split("\n"))
        return f"{utc(record.created)} " + "\n  ".join(lines)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: the KEYS, `message`, what the record was given as `extra`, and `exception`, a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        extra = {name: value for name, value in record.__dict__.items() if name not in _STANDARD}
        plugin = record.name.removeprefix(PLUGINS) if record.name.startswith(PLUGINS) else None
        line: dict[str, Any] = dict.fromkeys(KEYS)
        line |= {"time": utc(record.created), "level": record.levelname, "logger": record.name, "plugin": plugin}
        line |= {"event": "log", "message": record.getMessage()} | extra
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        if record.stack_info:
            line["stack"] = record.stack_info
        return json.dumps(line, default=_as_text)  # of ASCII alone: nothing in it ends the line, or turns it round


def new_formatter(format: str) -> logging.Formatter:
    """That of one of FORMATS."""
    return JsonFormatter() if format == "json" else TextFormatter()


def utc(seconds: float) -> str:
    """A time since 1970 as ISO 8601 has it."""
    whole, thousandths = divmod(int(seconds * 1000), 1000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(whole))}.{thousandths:03}Z"


def printable(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def _as_text(value: object) -> str:
    try:
        return str(value)
    except Exception:  # what plugins log may be anything
        return f"an object of class {type(value).__name__}, whose str raises"
