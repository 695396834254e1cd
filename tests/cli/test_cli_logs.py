"""The log of the command: formats, levels, a line for each mail, and the watchdog's lines in it."""

from __future__ import annotations

import json
import re

import pytest
from cli_tools import TEXT, serve
from mail_tools import run, write_mbox, write_plugin

REJECTS_ONE = """
    def mq_smtp_in_message(context, message):
        if message.envelope == "sender1@example.org":
            message.reject(550, "5.7.1 no")
        if message.envelope == "sender2@example.org":
            message.discard()
"""


def logged(result, event):
    """The lines in JSON of one event."""
    lines = [json.loads(line) for line in result.stderr.splitlines()]
    return [line for line in lines if line["event"] == event]


def test_a_line_for_each_mail(tmp_path):
    plugins = write_plugin(tmp_path / "plugins", "10-rejects", REJECTS_ONE).parent
    places = ("--from", f"mbox:{write_mbox(tmp_path / 'box', 3)}", "--to", "null:", "--plugins", plugins)
    result = run("run", *places, "--log-format", "json", "--log-level", "info")
    told = [{name: line[name] for name in ("envelope", "outcome", "code", "recipients")} for line in logged(result, "mail")]
    assert sorted(told, key=str) == [
        {"envelope": "sender0@example.org", "outcome": "accepted", "code": 250, "recipients": 1},
        {"envelope": "sender1@example.org", "outcome": "rejected", "code": 550, "recipients": 1},
        {"envelope": "sender2@example.org", "outcome": "discarded", "code": 250, "recipients": 1},
    ]
    (refused,) = logged(result, "refused")
    assert (refused["plugin"], refused["stage"], refused["code"]) == ("10-rejects", "message", 550)


def test_the_line_of_a_mail_from_a_client(tmp_path):
    with serve("--to", "null:", "--log-level", "info") as server:
        with server.client() as client:
            client.sendmail("a@example.org", ["b@example.org", "c@example.org"], TEXT)
        said = server.stop().stderr
    (line,) = [line for line in said.splitlines() if "mqcore.mail.done" in line]
    assert re.fullmatch(
        r"\S+Z INFO mqcore\.mail\.done: mail='[0-9a-f]{32}' peer='127\.0\.0\.1\S*' envelope='a@example\.org' recipients=2 "
        r"outcome='accepted' code=250 seconds=[0-9.]+ bytes=[0-9]+",
        line,
    )


def test_levels(tmp_path):
    """Without one there are warnings and refusals, but no line for a mail; with one, that alone counts."""
    plugins = write_plugin(tmp_path / "plugins", "10-rejects", REJECTS_ONE).parent
    places = ("--from", f"mbox:{write_mbox(tmp_path / 'box', 3)}", "--to", "null:", "--plugins", plugins)
    said = {level: run("run", *places, *(["--log-level", level] if level else [])).stderr for level in ("", "error", "info")}
    assert "mqcore.mail.refused" in said[""] and "mqcore.mail.done" not in said[""]
    assert said["error"] == ""
    assert said["info"].count("mqcore.mail.done") == 3


def test_json_has_no_other_lines(tmp_path):
    result = run("run", "--from", f"mbox:{write_mbox(tmp_path / 'box', 1)}", "--to", "null:", "--log-format", "json")
    (notice,) = logged(result, "notice")
    assert (notice["message"], notice["logger"]) == ("there are no plugins", "mqcore")


def test_a_wrong_call_of_the_log_fails_no_mail(tmp_path):
    code = """
        def mq_smtp_in_message(context, message):
            context.log.warning("%d mails", "some")
            context.log.warning("a strange extra", extra={"strange": {(1, 2): 3}})
    """
    plugins = write_plugin(tmp_path / "plugins", "10-wrong", code).parent
    places = ("--from", f"mbox:{write_mbox(tmp_path / 'box', 1)}", "--to", "null:", "--plugins", plugins)
    result = run("run", *places, "--log-format", "json")
    assert result.returncode == 0
    assert "1  stored" in result.stdout
    assert "'%d mails'" in result.stderr  # logging's own words
    assert "a strange extra" in result.stderr


def test_what_is_not_written_is_told(tmp_path):
    plugins = write_plugin(
        tmp_path / "plugins", "10-talks", "def mq_smtp_in_message(context, message): context.log.warning('hello')\n"
    ).parent
    places = ("--from", f"mbox:{write_mbox(tmp_path / 'box', 150)}", "--to", "null:", "--plugins", plugins)
    result = run("run", *places, "--log-format", "json")
    assert len(logged(result, "log")) == 100
    first, last = logged(result, "suppressed")
    assert first["message"].startswith("said 100 things, and is silent for a while")
    assert (last["message"], last["logger"]) == ("50 lines were not written", "mqcore.plugins.10-talks")


# Each hook keeps the loop until the line of it is on standard error, which is a file.
KEEPS = """
    import os, time
    def mq_smtp_in_message(context, message):
        while b"20-slow has" + b" kept" not in open({log!r}, "rb").read():
            time.sleep(0.001)
"""


@pytest.mark.parametrize("format", ["text", "json"])
def test_the_watchdog_tells_while_a_plugin_keeps_the_loop(tmp_path, format):
    log = tmp_path / "log"
    plugins = write_plugin(tmp_path / "plugins", "20-slow", KEEPS.format(log=str(log))).parent
    places = ("--from", f"mbox:{write_mbox(tmp_path / 'box', 1)}", "--to", "null:", "--plugins", plugins)
    with open(log, "w") as file:
        result = run("run", *places, "--watchdog", "20ms", "--log-format", format, stderr=file)
    assert result.returncode == 0
    line = next(line for line in log.read_text().splitlines() if "20-slow has kept the loop" in line)
    if format == "json":
        told = json.loads(line)
        assert (told["event"], told["plugin"], told["hook"]) == ("blocked", "20-slow", "mq_smtp_in_message")
    else:
        assert re.fullmatch(
            r"\S+Z WARNING mqcore\.watchdog: plugin 20-slow has kept the loop for [0-9.]+ s in mq_smtp_in_message", line
        )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--watchdog", "fast"], "argument --watchdog: 'fast' is no duration; write 500ms, 10s, 5m or 2h"),
        (["--watchdog", "1ms"], "--watchdog: watchdog is a limit in seconds, 0.01 to 3600, or 0 for none, not 0.001"),
        (["--watchdog-abort", "100ms"], "--watchdog: the watchdog's abort comes after its limit, 0.5 s, not after 0.1 s"),
        (["--watchdog", "0", "--watchdog-abort", "1m"], "--watchdog-abort needs the watchdog; leave --watchdog 0 out"),
        (["--log-level", "loud"], "argument --log-level: invalid choice: 'loud'"),
    ],
)
def test_wrong_usage(options, said):
    result = run("run", "--from", "mbox:x", "--to", "null:", *options)
    assert result.returncode == 2 and said in result.stderr
