"""The command, in a process of its own: what it moves, what it says, and its exit codes."""

from __future__ import annotations

import json
import logging
import os
import pty
import re
import subprocess
import sys
import textwrap
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from mail_tools import (
    EXAMPLES,
    NO_PLUGINS,
    counted,
    make_maildir,
    move,
    read_maildir,
    read_mbox,
    real_mails,
    run,
    start,
    write_mbox,
    write_plugin,
)

import mqcore
from mqcore.cli.output import StandardError

FAILS_ON_ODD = """
    def mq_smtp_in_message(context, message):
        number = int(message.mime.split()[2])
        message.mime = b"spoilt"
        if number % 2:
            raise ValueError(f"{number} is odd")
        if number % 4:
            message.reject(550, "not divisible by four")
    """


@pytest.fixture
def plugins(tmp_path: Path) -> Path:
    (tmp_path / "plugins").mkdir()
    return tmp_path / "plugins"


# From mailbox to mailbox


def test_from_mbox_to_maildir_and_back_is_the_same_file(tmp_path):
    sample = EXAMPLES / "sample.mbox"
    assert counted(move(f"mbox:{sample}", f"maildir:{tmp_path}/out")) == {"continued": 20}
    assert counted(move(f"maildir:{tmp_path}/out", f"mbox:{tmp_path}/back")) == {"continued": 20}
    assert (tmp_path / "back").read_bytes() == sample.read_bytes()


def test_from_maildir_to_mbox_and_back_every_real_mail_is_the_same(tmp_path):
    mails = [mail for _, mail in real_mails()] + [b"", b"\n", b"\0\xff", b"From nobody\n", b"no newline"]
    make_maildir(tmp_path / "in", mails)
    move(f"maildir:{tmp_path}/in", f"mbox:{tmp_path}/mbox")
    move(f"mbox:{tmp_path}/mbox", f"maildir:{tmp_path}/out")
    assert read_maildir(tmp_path / "out") == mails
    assert len(read_mbox(tmp_path / "mbox")) == len(mails)


def test_from_mbox_to_mbox_and_from_maildir_to_maildir(tmp_path):
    mbox = write_mbox(tmp_path / "mbox", 50)
    move(f"mbox:{mbox}", f"mbox:{tmp_path}/copy")
    assert (tmp_path / "copy").read_bytes() == mbox.read_bytes()
    path = make_maildir(tmp_path / "in", [b"a", b"b"])
    os.rename(path / "new" / "1700000000.M000001.example", path / "cur" / "1700000000.M000001.example:2,F")
    move(f"maildir:{path}", f"maildir:{tmp_path}/out")
    assert read_maildir(tmp_path / "out") == [b"a", b"b"]
    assert [file.name[-4:] for file in (tmp_path / "out" / "cur").iterdir()] == [":2,F"]


@pytest.mark.parametrize("sink", ["mbox", "maildir"])
def test_a_second_run_adds_only_what_is_new(tmp_path, sink):
    mbox = write_mbox(tmp_path / "mbox", 30)
    move(f"mbox:{mbox}", f"{sink}:{tmp_path}/out")
    with mbox.open("ab") as file:
        file.write(b"From new@example.org Tue Nov 24 06:00:00 2026\nSubject: new\n\nnew\n\n")
    assert counted(move(f"mbox:{mbox}", f"{sink}:{tmp_path}/out")) == {"present": 30, "continued": 1}
    assert counted(move(f"mbox:{mbox}", f"{sink}:{tmp_path}/out")) == {"present": 31}


def test_the_null_sink_counts_and_drops(tmp_path):
    mbox = write_mbox(tmp_path / "mbox", 10)
    for _ in range(2):
        assert counted(move(f"mbox:{mbox}", "null:")) == {"continued": 10}
    assert sorted(file.name for file in tmp_path.iterdir()) == ["mbox"]


def test_an_empty_source(tmp_path):
    (tmp_path / "mbox").touch()
    assert counted(move(f"mbox:{tmp_path}/mbox", f"maildir:{tmp_path}/out")) == {}


def test_what_plugins_changed_is_what_is_stored(tmp_path, plugins):
    write_plugin(
        plugins,
        "10-change",
        """
        def mq_smtp_in_message(context, message):
            message.mime = b"X-Seen: yes\\n" + message.mime
            message.envelope = "changed@example.org"
        """,
    )
    mbox = write_mbox(tmp_path / "mbox", 3)
    move(f"mbox:{mbox}", f"mbox:{tmp_path}/out", "--plugins", plugins)
    mails = read_mbox(tmp_path / "out")
    assert mails == [b"X-Seen: yes\n" + mail for mail in read_mbox(mbox)]
    assert (tmp_path / "out").read_bytes().count(b"From changed@example.org Tue Nov 24 05:31:47 2026\n") == 3


def test_every_way_to_end_a_step(tmp_path, plugins):
    """Held ones on timers, in coroutines and given back at once, among ones that are not held."""
    write_plugin(
        plugins,
        "10-ways",
        """
        import asyncio, mqcore

        def mq_smtp_in_message(context, message):
            number = int(message.mime.split()[2])
            if number % 5 == 0:
                context.start_timer(number / 10_000, context.continue_, message)
                return True
            if number % 5 == 1:
                context.complete(message)
                return True
            if number % 5 == 2:
                return mqcore.COMPLETE
            if number % 5 == 3 and message.retries == 0:
                return mqcore.RETRY
        """,
    )
    write_plugin(
        plugins,
        "20-coroutine",
        """
        import asyncio

        async def mq_smtp_in_message(context, message):
            await asyncio.sleep(0.001)
        """,
    )
    mbox = write_mbox(tmp_path / "mbox", 1000)
    figures = move(f"mbox:{mbox}", f"mbox:{tmp_path}/out", "--plugins", plugins)
    assert counted(figures) == {"continued": 600, "completed": 400}
    assert sorted(read_mbox(tmp_path / "out")) == sorted(read_mbox(mbox))
    ways, coroutine = figures["plugins"]
    assert (ways["plugin"], ways["hook"], ways["calls"], ways["holds"]) == ("10-ways", "mq_smtp_in_message", 1200, 400)
    assert (coroutine["plugin"], coroutine["calls"], coroutine["holds"]) == ("20-coroutine", 600, 600)


@pytest.mark.parametrize("limit", [1, 7])
def test_no_more_mails_than_allowed_are_on_the_way(tmp_path, plugins, limit):
    write_plugin(
        plugins,
        "10-count",
        """
        def mq_smtp_in_message(context, message):
            held = context.data.setdefault("held", set())
            held.add(message)
            with open(context.config["log"], "a") as file:
                print(len(held), file=file)
            context.start_timer(0.01, go_on, context, message)
            return True

        def go_on(context, message):
            context.data["held"].discard(message)
            context.continue_(message)
        """,
    )
    (tmp_path / "mqcore.toml").write_text(f'[plugins.10-count]\nlog = "{tmp_path}/log"\n')
    mbox = write_mbox(tmp_path / "mbox", 30)
    options = ("--plugins", plugins, "--config", tmp_path / "mqcore.toml", "--max-in-flight", limit)
    move(f"mbox:{mbox}", "null:", *options)
    assert max(map(int, (tmp_path / "log").read_text().split())) == limit


# Mails that fail


def test_without_a_place_for_them_failed_mails_stay_in_the_source_and_are_counted(tmp_path, plugins):
    write_plugin(plugins, "10-odd", FAILS_ON_ODD)
    mbox = write_mbox(tmp_path / "mbox", 8)
    figures = move(f"mbox:{mbox}", f"maildir:{tmp_path}/out", "--plugins", plugins, code=1)
    assert counted(figures) == {"continued": 2, "failed": 4, "rejected": 2}
    assert read_maildir(tmp_path / "out") == [b"spoilt"] * 2


@pytest.mark.parametrize("kind", ["mbox", "maildir"])
def test_failed_mails_go_where_they_are_told_as_they_were(tmp_path, plugins, kind):
    plugin = write_plugin(plugins, "10-odd", FAILS_ON_ODD)
    mbox = write_mbox(tmp_path / "mbox", 8)
    mails = read_mbox(mbox)
    route = (f"mbox:{mbox}", f"maildir:{tmp_path}/out", "--plugins", plugins, "--failed", f"{kind}:{tmp_path}/failed")
    for _ in range(2):  # the second time, those that failed before fail again, and are not doubled
        figures = move(*route, code=1)
        assert (figures["messages"]["failed"], figures["messages"]["rejected"]) == (4, 2)
        failed = read_maildir(tmp_path / "failed") if kind == "maildir" else read_mbox(tmp_path / "failed")
        assert failed == [mails[number] for number in (1, 2, 3, 5, 6, 7)]
    notes = tmp_path / ("failed/mqcore.reasons.jsonl" if kind == "maildir" else "failed.reasons.jsonl")
    reasons = [json.loads(line) for line in notes.read_text().splitlines()]
    assert len(reasons) == 12
    error, rejection = reasons[:2]
    assert error["error"] == "ValueError: 1 is odd"
    assert "10-odd" in "".join(error["where"])
    assert (error["source"], error["envelope"]) == (f"mbox:{mbox}", "sender1@example.org")
    assert mbox.read_bytes()[error["place"] :].startswith(b"From sender1@")
    assert rejection["rejected"] == {"code": 550, "text": "not divisible by four"}

    plugin.write_text("def mq_smtp_in_message(context, message): return False\n")
    assert counted(move(*route)) == {"present": 2, "continued": 6}


def test_a_failed_mail_is_reported_on_standard_error(tmp_path, plugins):
    write_plugin(plugins, "10-odd", FAILS_ON_ODD)
    mbox = write_mbox(tmp_path / "mbox", 2)
    result = run("run", "--from", f"mbox:{mbox}", "--to", "null:", "--plugins", plugins)
    assert result.returncode == 1
    assert "ValueError: 1 is odd" in result.stderr
    assert "10-odd" in result.stderr


def test_a_plugins_own_task_that_fails_is_told_with_its_name(tmp_path, plugins):
    write_plugin(
        plugins,
        "10-tasks",
        """
        import asyncio
        import json

        async def work(function):
            function()

        async def mq_smtp_in_message(context, message):
            for function in (lambda: 1 / 0, lambda: json.loads("?")):
                asyncio.create_task(work(function))
            asyncio.get_running_loop().call_soon(lambda: 1 + "")
            for _ in range(3):
                await asyncio.sleep(0)
            asyncio.get_running_loop().call_exception_handler({"message": "of no plugin"})
        """,
    )
    result = run("run", "--from", f"mbox:{write_mbox(tmp_path / 'mbox', 1)}", "--to", "null:", "--plugins", plugins)
    lines = [line[25:] for line in result.stderr.splitlines() if line[25:].startswith("ERROR")]
    own = [line.removeprefix("ERROR mqcore.plugins.10-tasks: plugin 10-tasks: ").partition(" <")[0] for line in lines]
    assert sorted(own) == [
        "ERROR asyncio: of no plugin",
        "Exception in callback",
        "Task exception was never retrieved",
        "Task exception was never retrieved",
    ]
    for error in ("ZeroDivisionError", "JSONDecodeError", "TypeError: unsupported operand"):
        assert error in result.stderr


def test_a_thousand_failures_of_one_kind_are_not_told_a_thousand_times(tmp_path, plugins):
    write_plugin(plugins, "10-odd", FAILS_ON_ODD)
    mbox = write_mbox(tmp_path / "mbox", 2000)
    result = run("run", "--from", f"mbox:{mbox}", "--to", "null:", "--plugins", plugins)
    assert result.stderr.count("Traceback") == 100
    assert "is silent for a while; what failed is counted at the end\n" in result.stderr


def test_what_goes_wrong_later_is_told_again(capsys, monkeypatch):
    """By a server that runs for months."""
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    handler = StandardError()

    def say(count: int) -> int:
        for _ in range(count):
            handler.emit(logging.makeLogRecord({"name": "plugin", "msg": "failed"}))
        return capsys.readouterr().err.count("\n")

    assert [say(90), say(90), say(90)] == [90, 11, 0]
    now += handler.PERIOD + 1
    assert [say(90), say(90)] == [91, 11]  # and how many were not written
    assert handler.suppressed == {"plugin": 250}


def test_mail_is_moved_though_nobody_reads_standard_error(tmp_path, plugins):
    """As in `mqcore run ... 2>&1 | head`, once head has seen enough."""
    write_plugin(plugins, "10-odd", FAILS_ON_ODD)
    mbox = write_mbox(tmp_path / "mbox", 2000)
    ours, theirs = os.pipe()
    os.close(ours)
    arguments = ("run", "--from", f"mbox:{mbox}", "--to", f"maildir:{tmp_path}/out", "--plugins", plugins)
    with start(*arguments, stderr=theirs) as process:
        os.close(theirs)
        process.communicate(timeout=60)
    assert process.returncode == 1
    assert len(read_maildir(tmp_path / "out")) == 500


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_figures_that_cannot_be_written(tmp_path, form):
    """As on the disk that the mails have filled."""
    mbox = write_mbox(tmp_path / "mbox", 2)
    with open("/dev/full", "w") as full:
        result = run("run", "--from", f"mbox:{mbox}", "--to", f"maildir:{tmp_path}/out", *form, stdout=full)
    assert result.stderr == NO_PLUGINS + "mqcore: cannot write to standard output: No space left on device\n"
    assert result.returncode == 0
    assert len(read_maildir(tmp_path / "out")) == 2


@pytest.mark.parametrize("closed", ["2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_started_without_standard_files(tmp_path, closed):
    mbox = write_mbox(tmp_path / "mbox", 2)
    shell = ("sh", "-c", f'exec "$@" {closed}', "sh")
    result = run("run", "--from", f"mbox:{mbox}", "--to", f"maildir:{tmp_path}/out", under=shell)
    assert (result.returncode, result.stderr) == (0, "")
    assert len(read_maildir(tmp_path / "out")) == 2


# What it says


def test_the_closing_table(tmp_path, plugins):
    write_plugin(plugins, "10-odd", FAILS_ON_ODD)
    mbox = write_mbox(tmp_path / "mbox", 2000)
    result = run("run", "--from", f"mbox:{mbox}", "--to", "null:", "--plugins", plugins)
    lines = [" ".join(line.split()) for line in result.stdout.splitlines()]
    assert lines[:4] == ["2,000 mails read", "500 stored", "1,000 failed", "500 rejected, by a plugin or by the next server"]
    (row,) = [line for line in lines if line.startswith("10-odd")]
    assert row.split()[1:4] == ["2,000", "0", "1,000"]
    assert re.fullmatch(r"[\d.]+ s, [\d,]+ mails a second", lines[-1])


def test_on_a_terminal_it_shows_how_far_it_is(tmp_path, plugins):
    write_plugin(
        plugins,
        "10-wait",
        """
        def mq_smtp_in_message(context, message):
            context.start_timer(0.5, context.continue_, message)
            return True
        """,
    )
    mbox = write_mbox(tmp_path / "mbox", 1200)
    ours, theirs = pty.openpty()
    arguments = ("run", "--from", f"mbox:{mbox}", "--to", "null:", "--plugins", plugins)
    with start(*arguments, stderr=theirs) as process:
        os.close(theirs)
        shown = b""
        try:
            while part := os.read(ours, 4096):
                shown += part
        except OSError:
            pass  # the other end is closed
        finally:
            os.close(ours)
        out, _ = process.communicate(timeout=60)
    assert process.returncode == 0, (shown, out)
    assert b"1,200 read" in shown
    assert b"1,000 read" in shown
    assert "1,200  stored" in out


# Exit code 2: wrong usage


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: COMMAND"),
        (["walk"], "invalid choice: 'walk'"),
        (["run", "--from", "mbox:x"], "the following arguments are required: --to"),
        (["run", "--from", "imap:x", "--to", "null:"], "'imap:x' is no source; it can be mbox:PATH or maildir:PATH"),
        (["run", "--from", "null:", "--to", "null:"], "'null:' is no source; it can be mbox:PATH or maildir:PATH"),
        (
            ["run", "--from", "mbox:x", "--to", "./out"],
            "'./out' is no sink; it can be mbox:PATH or maildir:PATH or null:",
        ),
        (["run", "--from", "mbox:", "--to", "null:"], "'mbox:' is no source; it can be mbox:PATH or maildir:PATH"),
        (["run", "--from", "mbox:x", "--to", "null:", "--max-in-flight", "0"], "'0' is no whole number above 0"),
        (["run", "--from", "mbox:x", "--to", "mbox:./x"], "/x are the same mailbox"),
        (["run", "--from", "mbox:x", "--to", "mbox:y", "--failed", "maildir:y"], "/y are the same"),
        (["check"], "which plugins? Give paths, or --entry-points"),
    ],
)
def test_wrong_usage(tmp_path, arguments, message):
    result = run(*arguments, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (2, "")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


# Exit code 3: a plugin did not load


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("def mq_smtp_in_message(context, message:\n    pass\n", "10-bad.py:1"),
        ("def mq_smtp_in_mesage(context, message):\n    pass\n", "mq_smtp_in_message"),
        ("\ndef mq_smtp_in_message(context):\n    pass\n", "10-bad.py:2"),
        ("x = 1\nraise RuntimeError('no database')\n", "no database"),
        ("def mq_initialize():\n    raise RuntimeError('no licence')\n", "no licence"),
        ("def mq_context_initialize(context):\n    raise RuntimeError('no room')\n", "no room"),
    ],
)
def test_a_plugin_that_does_not_load(tmp_path, plugins, source, message):
    write_plugin(plugins, "05-good", "def mq_smtp_in_message(context, message): pass\n")
    write_plugin(plugins, "10-bad", source)
    mbox = write_mbox(tmp_path / "mbox", 1)
    result = run("run", "--from", f"mbox:{mbox}", "--to", f"maildir:{tmp_path}/out", "--plugins", plugins)
    assert (result.returncode, result.stdout) == (3, "")
    assert result.stderr.startswith("mqcore: ")
    assert message in result.stderr
    assert "10-bad" in result.stderr
    assert "Traceback" not in result.stderr


def test_plugins_that_everyone_may_write_to(tmp_path, plugins):
    plugin = write_plugin(plugins, "10-open", "def mq_smtp_in_message(context, message): pass\n")
    plugin.chmod(0o666)
    mbox = write_mbox(tmp_path / "mbox", 1)
    arguments = ("run", "--from", f"mbox:{mbox}", "--to", "null:", "--plugins", plugins)
    result = run(*arguments)
    assert result.returncode == 3
    assert "0666" in result.stderr
    assert "--trust-writable" in result.stderr
    assert run(*arguments, "--trust-writable").returncode == 0


def test_two_plugins_of_one_name(tmp_path, plugins):
    for folder in ("one", "two"):
        write_plugin(plugins / folder, "10-same", "def mq_smtp_in_message(context, message): pass\n")
    result = run("order", "--plugins", plugins / "one", "--plugins", plugins / "two")
    assert result.returncode == 3
    assert "10-same" in result.stderr


def test_a_mistake_in_the_configuration(tmp_path, plugins):
    config = tmp_path / "mqcore.toml"
    config.write_text("[plugins.10-a]\nword = \n")
    result = run("order", "--plugins", plugins, "--config", config)
    assert result.returncode == 3
    assert f"{config}:2" in result.stderr
    result = run("order", "--plugins", plugins, "--config", tmp_path / "missing.toml")
    assert result.returncode == 3
    assert "missing.toml" in result.stderr


@pytest.mark.parametrize(
    ("text", "name", "hint"),
    [
        ("[plugins.10-tga]", "10-tga", "load it, or take its table away"),
        ("[plugins]\nhold_timeout = 3", "hold_timeout", "write [plugins.NAME]"),
    ],
)
def test_settings_of_no_plugin_are_pointed_out(tmp_path, plugins, text, name, hint):
    config = tmp_path / "mqcore.toml"
    config.write_text(text)
    write_plugin(plugins, "20-other", "def mq_smtp_in_message(context, message): pass\n")
    mbox = write_mbox(tmp_path / "mbox", 1)
    result = run("run", "--from", f"mbox:{mbox}", "--to", "null:", "--plugins", plugins, "--config", config)
    assert result.returncode == 0
    where = f"{config}:{len(text.splitlines())}"
    assert result.stderr == f"mqcore: {where} has {name}, and there is no plugin of that name; {hint}\n"


# Exit code 4: source or sink cannot be used. What exactly is said is tested with the sources and sinks.


@pytest.mark.parametrize(
    ("source", "sink", "message"),
    [
        ("mbox:{0}/missing", "null:", "cannot read mbox:{0}/missing: No such file or directory"),
        ("maildir:{0}", "null:", "maildir:{0} is no Maildir: it has neither new/ nor cur/"),
        (
            "mbox:{0}/mbox",
            "mbox:{0}/no/such/folder",
            "cannot write to mbox:{0}/no/such/folder: No such file or directory; make the folder {0}/no/such first",
        ),
        ("mbox:{0}/mbox", "maildir:{0}/mbox/x", "cannot write to maildir:{0}/mbox/x: {0}/mbox/x/tmp: Not a directory"),
    ],
)
def test_a_source_or_sink_that_cannot_be_used(tmp_path, source, sink, message):
    write_mbox(tmp_path / "mbox", 1)
    result = run("run", "--from", source.format(tmp_path), "--to", sink.format(tmp_path), "--json")
    assert (result.returncode, result.stdout) == (4, "")
    assert result.stderr == f"mqcore: {message.format(tmp_path)}\n"


def test_a_source_that_fails_on_the_way(tmp_path, plugins):
    """What was read before is stored, and the figures say so."""
    write_plugin(
        plugins,
        "10-truncate",
        """
        import os

        def mq_smtp_in_message(context, message):
            os.truncate(context.config["mbox"], 3_000_000)
        """,
    )
    mbox = write_mbox(tmp_path / "mbox", 1000, lines=100)
    (tmp_path / "mqcore.toml").write_text(f'[plugins.10-truncate]\nmbox = "{mbox}"\n')
    options = ("--plugins", plugins, "--config", tmp_path / "mqcore.toml")
    figures = move(f"mbox:{mbox}", f"maildir:{tmp_path}/out", *options, code=4)
    stored = counted(figures)["continued"]
    assert 0 < stored < 1000
    assert len(read_maildir(tmp_path / "out")) == stored
    assert "became shorter" in figures["error"]


# The other commands


def test_order(plugins):
    write_plugin(plugins, "20-b", "def mq_smtp_in_message(context, message): pass\n")
    write_plugin(plugins, "10-a", "def mq_smtp_in_message(context, message): pass\ndef mq_smtp_out_data(c, m): pass\n")
    result = run("order", "--plugins", plugins)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == (
        f"mq_smtp_in_message\n    10-a  ({plugins}/10-a.py)\n    20-b  ({plugins}/20-b.py)\n"
        f"mq_smtp_out_data\n    10-a  ({plugins}/10-a.py)\n"
    )
    assert run("order").stdout == ""


def test_check(plugins):
    good = write_plugin(plugins, "20-good", "def mq_smtp_in_message(context, message): pass\n")
    none = write_plugin(plugins, "30-none", "def mq_initialize(): pass\n")
    bad = write_plugin(plugins, "10-bad", "def mq_smtp_in_mesage(context, message): pass\n")
    result = run("check", good, none)
    assert result.returncode == 0
    assert result.stdout == "20-good: mq_smtp_in_message\n30-none: no hooks\n"
    result = run("check", bad, good)
    assert (result.returncode, result.stdout) == (3, "20-good: mq_smtp_in_message\n")
    assert f"{bad}:1" in result.stderr
    assert "mq_smtp_in_message" in result.stderr


def test_version():
    try:
        expected = f"mqcore {version('mqcore')}\n"
    except PackageNotFoundError:
        pytest.skip(f"{mqcore.__file__} is not installed as a distribution")
    assert run("--version").stdout == expected


UNUSED = """
    email tempfile random secrets platform tomllib termios importlib.metadata rich
    mqcore.mail.smtp.sender mqcore.mail.smtp.server mqcore.testing mqcore.mail.timeline mqcore.cli.ctl mqcore.cli.top
    mqcore.smtp.events mqcore.cli.order mqcore.cli.new mqcore.cli.check mqcore.cli.try_ mqcore.cli.config mqcore.cli.include
"""


def test_a_start_waits_for_nothing_that_it_may_not_need(tmp_path):
    """Of these modules nothing is needed to take a mail from a file; each takes a while to load."""
    write_mbox(tmp_path / "in", 1)
    code = f"""
        import sys
        from mqcore.cli import main

        code = main(["run", "--from", "mbox:{tmp_path}/in", "--to", "null:", "--json"])
        print([name for name in {UNUSED.split()} if name in sys.modules])
        sys.exit(code)
    """
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    command = [sys.executable, "-P", "-c", textwrap.dedent(code)]
    result = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60)
    assert (result.returncode, result.stdout.splitlines()[-1], result.stderr) == (0, "[]", NO_PLUGINS)


def test_help():
    result = run("run", "--help")
    assert result.returncode == 0
    assert "mbox:PATH" in result.stdout
    assert "exit codes:" in result.stdout


def test_a_reader_that_goes_away(plugins):
    """As in `mqcore order | head -0`."""
    write_plugin(plugins, "10-a", "def mq_smtp_in_message(context, message): pass\n")
    with start("order", "--plugins", plugins) as process:
        process.stdout.close()
        assert process.wait(timeout=60) == 141
        assert process.stderr.read() == ""
