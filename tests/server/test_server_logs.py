"""How the lines of the log look, and that nobody forges one."""

from __future__ import annotations

import json
import logging
import re
import sys

import pytest

from mqcore.server.logs import FORMATS, KEYS, JsonFormatter, TextFormatter, new_formatter

FORGED = [
    "mail\n2026-11-29T18:25:00.123Z WARNING mqcore: all is well",
    'mail"}\n{"time": "2026-11-29T18:25:00.123Z", "level": "INFO"}',
    "mail\r\x1b[2J\x00\x7f",
    "mail\x85next\u2028line\u2029paragraph\x0b\x0c\x1c",
    "mail\u202etxet\u2066\u200f\ufeff",
    "mail\udcff",
]


def record(message: str, *args: object, name: str = "mqcore.plugins.20-slow", **extra: object) -> logging.LogRecord:
    made = logging.getLogger(name).makeRecord(name, logging.WARNING, "", 0, message, args, None, extra=extra)
    made.created = 1795976700.123
    return made


def test_text():
    assert TextFormatter().format(record("it %s", "says")) == "2026-11-29T18:25:00.123Z WARNING mqcore.plugins.20-slow: it says"


def test_json():
    line = json.loads(JsonFormatter().format(record("it %s", "says", hook="mq_step", seconds=1.5)))
    assert list(line)[: len(KEYS)] == list(KEYS)
    assert line == {
        "time": "2026-11-29T18:25:00.123Z",
        "level": "WARNING",
        "logger": "mqcore.plugins.20-slow",
        "plugin": "20-slow",
        "hook": "mq_step",
        "connection": None,
        "mail": None,
        "event": "log",
        "message": "it says",
        "seconds": 1.5,
    }


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("text", FORGED)
def test_no_line_can_be_forged(format, text):
    """By what a client chose, in the text or in what comes with it; on one line, or on lines that are indented."""
    line = new_formatter(format).format(record("%s", text, envelope=text))
    first, *others = line.split("\n")
    assert all(each.startswith("  ") for each in others)
    assert all(each.isprintable() for each in (first, *others))
    if format == "json":
        assert not others and line.isascii()
        assert json.loads(line)["message"] == json.loads(line)["envelope"] == text


@pytest.mark.parametrize("format", FORMATS)
def test_a_traceback_whose_text_is_a_clients(format):
    try:
        raise ValueError(FORGED[0])
    except ValueError:
        made = record("failed")
        made.exc_info = sys.exc_info()
    line = new_formatter(format).format(made)
    if format == "json":
        assert FORGED[0] in json.loads(line)["exception"]
    else:
        assert re.findall(r"^\S.*", line, re.MULTILINE) == ["2026-11-29T18:25:00.123Z WARNING mqcore.plugins.20-slow: failed"]


def test_whatever_plugins_log():
    class Hostile:
        def __str__(self):
            raise ValueError

    line = json.loads(JsonFormatter().format(record("it says", what=Hostile(), which={1, 2})))
    assert line["what"] == "an object of class Hostile, whose str raises"
    assert line["which"] == "{1, 2}"
