"""`mqcore top`: what is shown of a server's figures, what the keys do, and that the terminal is as before in the end."""

from __future__ import annotations

import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from fcntl import ioctl

import pytest
from cli_tools import serve
from mail_tools import run, write_plugin

pytest.importorskip("rich")

from rich.console import Console

from mqcore.cli.top import DOWN, UP, RefusedError, View

PASSES = """
def mq_smtp_in_message(context, message):
    return False
"""


def row(plugin, hook="mq_smtp_in_message", **numbers):
    figures = dict.fromkeys(("calls", "held", "failures", "refused"), 0) | {"seconds": 0.0, "held_oldest": None}
    return {"plugin": plugin, "hook": hook} | figures | numbers


class Asked:
    """A server that answers with these rows, and notes what it was asked beside."""

    def __init__(self, *rows):
        self.rows = rows
        self.paused = []
        self.asked = []
        self.now = 100.0
        self.figures = {}

    def __call__(self, request):
        if request["command"] == "held":
            about = {"peer": "1.2.3.4", "envelope": "a\x1b[2J", "recipient": None}
            return {"oldest": [{"age": 7.5, "hook": "mq_smtp_in_data", **about}]}
        if request["command"] != "figures":
            self.asked.append(request)
            return {}
        self.now += 2
        return {
            "time": self.now, "paused": self.paused, "plugins": [dict(each) for each in self.rows],
            "mails": {"read": 10 * self.now},
            "in_flight": 3, "in_flight_limit": 1000, "steps": {"held": 4}, "source": "smtp://a", "sink": "null:", "ready": True,
            "loop": None, "smtp": {"connections_open": 5},
        } | self.figures  # fmt: skip


def text_of(view):
    console = Console(width=80, file=open(os.devnull, "w"), record=True)  # noqa: SIM115
    console.print(view.draw())
    console.file.close()
    return console.export_text()


def test_what_is_shown():
    busy = row("30-b", calls=7, held=4, held_oldest=61.0, failures=2, seconds=0.014)
    ask = Asked(row("10-a", calls=100), row("20-quiet"), busy)
    view = View(ask)
    view.update()
    text = text_of(view)
    assert "running: smtp://a -> null:" in text
    assert "0.0 mails/s, 3 of 1,000 in flight, 4 held, 5 clients" in text
    assert "20-quiet" not in text
    ask.rows[0]["calls"] += 30
    view.update()
    text = text_of(view)
    assert "\n10 mails/s" in text
    assert re.search(r"10-a +smtp_in_message +15 +0 +- +0 +0", text)
    assert re.search(r"30-b +smtp_in_message +0.0 +4 +61 s +2 +2 ms", text)
    assert all(len(line) <= 80 for line in text.splitlines())


def test_keys():
    ask = Asked(row("10-a", calls=100), row("30-b", calls=7, held=4))
    view = View(ask)
    view.update()
    assert view.press("s")  # by what is held
    assert [each["plugin"] for each in view.rows()] == ["30-b", "10-a"]
    view.press("p")  # it has chosen the first by calls a second, where all are alike: that of the first row
    view.press(DOWN)
    view.press(DOWN)
    view.press("p")
    view.press(UP)
    ask.paused = ["30-b"]
    view.update()
    assert "30-b (paused)" in text_of(view)
    view.press("p")
    assert [tuple(each.values()) for each in ask.asked] == [("pause", "10-a"), ("pause", "10-a"), ("resume", "30-b")]
    view.press("\n")
    text = text_of(view)
    assert "held by 30-b" in text and "7.5 s" in text and "\x1b" not in text
    view.press("\n")
    assert "10-a" in text_of(view)
    assert view.press("x") and view.press("") and not view.press("q")


def test_the_lag_is_that_of_now():
    """Not the longest turn that there ever was."""
    ask = Asked(row("10-a", calls=1))
    figures = ask.figures = {"loop": {"lag": {"bounds": [0.005, 0.01], "counts": [7, 0, 1], "sum": 9.0}, "longest": 8.0}}
    view = View(ask)
    view.update()
    assert "loop lag -" in text_of(view)
    later = [([9, 0, 1], "up to 5 ms"), ([9, 2, 1], "up to 10 ms"), ([9, 2, 1], "0"), ([9, 2, 2], "over 10 ms")]
    for counts, text in later:
        figures["loop"] = {"lag": {"bounds": [0.005, 0.01], "counts": counts, "sum": 9.0}, "longest": 8.0}
        view.update()
        assert f"loop lag {text}\n" in text_of(view)


def test_a_plugin_that_a_reload_has_taken_away():
    """Its figures stay; the server says that there is none, and it goes on."""

    def ask(request):
        if request["command"] == "pause":
            raise RefusedError("no plugin is named '10-a'\x1b")
        return asked(request)

    asked = Asked(row("10-a", calls=1))
    view = View(ask)
    view.update()
    assert view.press("p")
    assert "no plugin is named '10-a'" in text_of(view) and "\x1b" not in text_of(view)
    assert view.press("") and "no plugin is named" in text_of(view)
    assert view.press("s") and "no plugin is named" not in text_of(view)


def test_a_server_without_plugins():
    view = View(Asked())
    view.update()
    assert view.press("p") and view.press("\n") and view.press(DOWN)
    assert "running" in text_of(view)


def test_without_a_terminal_it_prints_once(tmp_path):
    write_plugin(tmp_path / "plugins", "10-pass", PASSES)
    path = tmp_path / "control.sock"
    with serve("--to", "null:", "--plugins", tmp_path / "plugins", "--control", path) as server:
        with server.client() as client:
            client.sendmail("a@example.org", ["b@example.org"], b"Subject: hello\r\n\r\nhello\r\n")
        done = run("top", "--socket", path)
        assert (done.returncode, done.stderr) == (0, "")
        assert re.search(r"10-pass +smtp_in_message", done.stdout)
        in_a_terminal(path)
    done = run("top", "--socket", path)
    assert done.returncode == 4 and "is a server running with --control" in done.stderr


def in_a_terminal(path):
    """It draws, `q` ends it, and echo is on again."""
    ours, its = pty.openpty()
    ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    before = termios.tcgetattr(its)
    command = [sys.executable, "-m", "mqcore", "top", "--socket", str(path)]
    process = subprocess.Popen(command, stdin=its, stdout=its, stderr=its, env=os.environ | {"TERM": "xterm"})
    try:
        drawn, give_up = b"", time.monotonic() + 60
        while b"10-pass" not in drawn or b"quit" not in drawn:
            assert time.monotonic() < give_up, drawn
            if select.select([ours], [], [], 1)[0]:
                drawn += os.read(ours, 1 << 16)
        os.write(ours, b"q")
        while process.poll() is None:
            assert time.monotonic() < give_up
            if select.select([ours], [], [], 0.05)[0]:
                os.read(ours, 1 << 16)
        assert process.returncode == 0
        assert termios.tcgetattr(its) == before
    finally:
        process.kill()
        process.wait(30)
        os.close(ours)
        os.close(its)
