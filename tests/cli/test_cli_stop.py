"""A run that is stopped, killed, or out of disk, and a second run: each mail ends up in the sink exactly once."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from cli_tools import finish, wait_until
from mail_tools import (
    NO_PLUGINS,
    counted,
    make_maildir,
    move,
    read_maildir,
    read_mbox,
    report,
    small_disk,
    start,
    write_mbox,
    write_plugin,
)

from mqcore.cli.run import _stopped_by_signals

HOLDS_ODD_ONES = """
    def mq_smtp_in_message(context, message):
        if int(message.mime.split()[2]) % 2:
            held = context.data.setdefault("held", [])
            held.append(message)
            if len(held) == 100:
                context.log.warning("has 100")
            return True
    """

STOPS_BEFORE_THE_END = """
    def mq_smtp_in_message(context, message):
        context.data["count"] = count = context.data.get("count", 0) + 1
        return count > 39_000 and context.data.setdefault("held", []).append(message) is None
    """


def sink_holds(sink: str, path: Path) -> Callable[[], bool]:
    """Whether something was stored already."""
    if sink == "mbox":
        return lambda: path.exists() and path.stat().st_size > 0
    return lambda: (path / "new").exists() and any((path / "new").iterdir())


def read_sink(sink: str, path: Path) -> list[bytes]:
    return read_mbox(path) if sink == "mbox" else read_maildir(path)


@pytest.mark.parametrize("sink", ["mbox", "maildir"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_in_the_middle(tmp_path, sink, number, code):
    mbox, out = write_mbox(tmp_path / "mbox", 20_000), tmp_path / "out"
    with start("run", "--from", f"mbox:{mbox}", "--to", f"{sink}:{out}", "--json") as process:
        wait_until(sink_holds(sink, out), process)
        process.send_signal(number)
        result = finish(process)
    assert result.returncode == code, result
    said = "mqcore: stopping when what the plugins are done with is stored; once more to stop at once\n"
    assert result.stderr == NO_PLUGINS + said
    figures = report(result)
    assert (figures["stopped"], figures["exit_code"]) == (number.name, code)
    stored = figures["messages"]["stored"]
    assert 0 < stored < 20_000
    assert len(read_sink(sink, out)) == stored
    assert counted(move(f"mbox:{mbox}", f"{sink}:{out}")) == {"present": stored, "continued": 20_000 - stored}
    assert read_sink(sink, out) == read_mbox(mbox)


STOPPED_AT_ONCE = """
    import os, signal, sys
    from mqcore.cli import main, run

    def complain(text, code, complain=run.complain):
        complain(text, code)
        if text.startswith("listening on "):
            os.kill(os.getpid(), signal.SIGTERM)

    run.complain = complain
    sys.exit(main(["run", "--from", "smtp://127.0.0.1:0", "--to", "null:", "--json"]))
"""


def test_a_server_that_is_stopped_as_soon_as_it_listens():
    path = os.pathsep.join(path or os.getcwd() for path in sys.path)
    result = subprocess.run(
        [sys.executable, "-P", "-c", textwrap.dedent(STOPPED_AT_ONCE)],
        capture_output=True, text=True, timeout=60, check=False, env=os.environ | {"PYTHONPATH": path},
    )
    assert result.returncode == 0, result
    assert report(result)["exit_code"] == 0


def test_what_plugins_hold_is_taken_back(tmp_path):
    """Stopped while nothing moves: all that is on the way is held, and the loop is asleep."""
    plugins, mbox, out = tmp_path / "plugins", write_mbox(tmp_path / "mbox", 3000), tmp_path / "out"
    plugin = write_plugin(plugins, "10-hold", HOLDS_ODD_ONES)
    route = (f"mbox:{mbox}", f"maildir:{out}", "--plugins", plugins, "--failed", f"maildir:{tmp_path}/failed")
    with start("run", "--from", route[0], "--to", *route[1:], "--json", "--max-in-flight", "100") as process:
        # 100 are held when 200 have been read.
        assert "has 100" in process.stderr.readline()
        wait_until(lambda: (out / "new").exists() and len(list((out / "new").iterdir())) >= 99, process)
        process.send_signal(signal.SIGINT)
        result = finish(process)
    assert result.returncode == 130, result
    figures = report(result)
    assert figures["messages"]["unfinished"] == 100
    assert figures["messages"]["stored"] == len(read_maildir(out)) >= 99
    assert figures["messages"]["failed"] == 0
    assert read_maildir(tmp_path / "failed") == []
    plugin.unlink()
    move(*route)
    assert read_maildir(out) == read_mbox(mbox)


def test_a_second_signal_stops_at_once_even_a_plugin_that_never_returns(tmp_path):
    write_plugin(
        tmp_path / "plugins",
        "10-block",
        """
        def mq_smtp_in_message(context, message):
            open(context.config["blocked"], "w").close()
            while True:
                pass
        """,
    )
    mbox, blocked, config = write_mbox(tmp_path / "mbox", 10), tmp_path / "blocked", tmp_path / "mqcore.toml"
    config.write_text(f'[plugins.10-block]\nblocked = "{blocked}"\n')
    options = ("--plugins", tmp_path / "plugins", "--config", config)
    with start("run", "--from", f"mbox:{mbox}", "--to", f"mbox:{tmp_path}/out", *options) as process:
        wait_until(blocked.exists, process)
        process.send_signal(signal.SIGINT)
        assert "once more" in process.stderr.readline()
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert finish(process).returncode == -signal.SIGINT
    assert (tmp_path / "out.lock").exists()
    move(f"mbox:{mbox}", f"mbox:{tmp_path}/out")
    assert read_mbox(tmp_path / "out") == read_mbox(mbox)


@pytest.mark.parametrize("sink", ["mbox", "maildir"])
@pytest.mark.parametrize("delay", [0.02, *(pytest.param(delay, marks=pytest.mark.slow) for delay in (0.0, 0.1))])
def test_killed_in_the_middle(tmp_path, sink, delay):
    mbox, out = write_mbox(tmp_path / "mbox", 40_000), tmp_path / "out"
    folder = write_plugin(tmp_path / "plugins", "10-stops", STOPS_BEFORE_THE_END).parent
    with start("run", "--from", f"mbox:{mbox}", "--to", f"{sink}:{out}", "--plugins", folder) as process:
        wait_until(sink_holds(sink, out), process)
        time.sleep(delay)
        process.kill()
    figures = move(f"mbox:{mbox}", f"{sink}:{out}")
    assert figures["messages"]["present"] < 40_000
    assert read_sink(sink, out) == read_mbox(mbox)
    if sink == "maildir":
        assert list((out / "tmp").iterdir()) == []
    assert counted(move(f"mbox:{mbox}", f"{sink}:{out}")) == {"present": 40_000}


@pytest.mark.parametrize("sink", ["mbox", "maildir"])
def test_a_disk_that_is_full(tmp_path, sink):
    source = make_maildir(tmp_path / "in", [b"x" * 10_000 + b"%d\n" % number for number in range(200)])
    with small_disk(tmp_path / "disk") as disk:
        ballast, out = disk / "ballast", disk / "out"
        ballast.write_bytes(b"\0" * 500_000)
        with start(
            "run", "--from", f"maildir:{source}", "--to", f"{sink}:{out}", "--json", "--max-in-flight", "20"
        ) as process:
            result = finish(process)
        assert result.returncode == 4, result
        assert result.stderr == NO_PLUGINS + f"mqcore: cannot write to {sink}:{out}: No space left on device\n"
        figures = report(result)
        stored = figures["messages"]["stored"]
        assert 0 < stored < 100
        assert len(read_sink(sink, out)) == stored
        ballast.unlink()
        subprocess.run(["mount", "-o", "remount,size=8m", disk], check=True)
        figures = move(f"maildir:{source}", f"{sink}:{out}")
        assert counted(figures) == {"present": stored, "continued": 200 - stored}
        assert sorted(read_sink(sink, out)) == sorted(read_maildir(source))


def test_a_full_disk_for_failed_mails_ends_the_run_too(tmp_path):
    write_plugin(
        tmp_path / "plugins", "10-fail", "def mq_smtp_in_message(context, message): message.reject(550, 'no')\n"
    )
    source = make_maildir(tmp_path / "in", [b"x" * 10_000 + b"%d\n" % number for number in range(200)])
    with small_disk(tmp_path / "disk") as disk:
        options = ("--plugins", tmp_path / "plugins", "--failed", f"mbox:{disk}/failed")
        figures = move(f"maildir:{source}", f"maildir:{tmp_path}/out", *options, code=4)
        assert figures["error"] == f"cannot write to mbox:{disk}/failed: No space left on device"
        assert figures["messages"]["rejected"] == len(read_mbox(disk / "failed"))


EXITS = """
    import sys

    def mq_smtp_in_message(context, message):
        if b"mail 5" in message.mime:
            sys.exit({0})
    """


@pytest.mark.parametrize("code", ["", "0", "9", "'enough'"])
@pytest.mark.parametrize("hook", ["def", "async def"])
def test_a_plugin_that_exits_ends_the_run_in_good_order(tmp_path, code, hook):
    """Its mail fails, what the others are done with is stored, and nobody takes it for success."""
    write_plugin(tmp_path / "plugins", "10-exit", EXITS.format(code).replace("def", hook))
    mbox, out = write_mbox(tmp_path / "mbox", 10), tmp_path / "out"
    options = ("--plugins", tmp_path / "plugins", "--failed", f"mbox:{tmp_path}/failed")
    with start("run", "--from", f"mbox:{mbox}", "--to", f"mbox:{out}", "--json", *options) as process:
        result = finish(process)
    assert result.returncode == 1, result
    said = f"plugin 10-exit, hook mq_smtp_in_message, ended the run: sys.exit({code})"
    assert f"mqcore: {said}\n" in result.stderr
    figures = report(result)
    assert figures["error"] == said
    assert figures["messages"]["failed"] == 1
    assert read_mbox(tmp_path / "failed") == [read_mbox(mbox)[5]]
    assert len(read_mbox(out)) == figures["messages"]["stored"]
    assert not (tmp_path / "out.lock").exists()
    (tmp_path / "plugins" / "10-exit.py").unlink()
    move(f"mbox:{mbox}", f"mbox:{out}")
    assert sorted(read_mbox(out)) == sorted(read_mbox(mbox))


def test_a_signal_that_comes_while_standard_error_is_written(monkeypatch):
    """print() cannot be called within itself; the RuntimeError came out of whatever had been printing."""
    written = []

    class Raw(io.RawIOBase):
        def writable(self):
            return True

        def write(self, data):
            if not written:
                written.append(b"")
                signal.raise_signal(signal.SIGTERM)
            written.append(bytes(data))
            return len(data)

    async def main():
        stopped = []
        gateway = SimpleNamespace(stop=stopped.append, ends_when="all is over")
        with _stopped_by_signals(gateway):
            print("a line", file=sys.stderr, flush=True)
            await asyncio.sleep(0)
        return stopped

    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(io.BufferedWriter(Raw())))
    assert asyncio.run(main()) == [signal.SIGTERM]
    assert b"".join(written).splitlines() == [b"a line", b"mqcore: stopping when all is over; once more to stop at once"]
