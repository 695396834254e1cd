"""Options of the trace, and of the host's name: on the command line and in the TOML file."""

from __future__ import annotations

import re
import smtplib
import time
from email import message_from_bytes
from email.utils import parsedate_to_datetime
from pathlib import Path

import pytest
from cli_tools import TEXT, serve
from mail_tools import read_maildir, run, untraced, write_mbox


def received(folder: Path) -> bytes:
    (mail,) = read_maildir(folder)
    return mail


def test_the_hostname(tmp_path):
    with serve("--to", f"maildir:{tmp_path}/in", "--hostname", "mx.example.net") as server, server.client() as client:
        assert client.ehlo()[1].startswith(b"mx.example.net\n")
        client.sendmail("a@example.org", ["b@example.org"], TEXT)
    assert re.match(
        rb"Return-Path: <a@example.org>\r\nDelivered-To: b@example.org\r\n"
        rb"Received: from client.example \(\[127.0.0.1\]\)\r\n\tby mx.example.net \(mqcore [0-9a-f]{16}\)\r\n"
        rb"\twith ESMTP id [0-9a-f]{32}\r\n\tfor <b@example.org>;\r\n"
        rb"\t\w{3}, \d+ \w{3} \d{4} \d\d:\d\d:\d\d [+-]\d{4}\r\nSubject",
        received(tmp_path / "in"),
    )


@pytest.mark.parametrize(("zone", "written"), [("XXX3:30", "-0330"), ("XXX-5:45", "+0545"), ("UTC0", "+0000")])
def test_the_time_is_that_of_the_machine(tmp_path, zone, written, monkeypatch):
    monkeypatch.setenv("TZ", zone)
    before = int(time.time())
    with serve("--to", f"maildir:{tmp_path}/in") as server, server.client() as client:
        client.sendmail("a@example.org", ["b@example.org"], TEXT)
    date = message_from_bytes(received(tmp_path / "in"))["Received"].rpartition(";")[2].strip()
    assert date.endswith(f" {written}") and before <= parsedate_to_datetime(date).timestamp() <= time.time()


def test_the_trace_is_the_same_in_every_run(tmp_path):
    traces = set()
    for number in range(2):
        folder = tmp_path / str(number)
        with serve("--to", f"maildir:{folder}", source=f"lmtp:unix:{tmp_path}/lmtp") as server:
            with smtplib.LMTP(str(tmp_path / "lmtp"), local_hostname="client.example") as client:
                client.sendmail("a@example.org", ["b@example.org"], TEXT)
            assert server.url
        traces.add(re.search(rb"\(mqcore ([0-9a-f]{16})\)", received(folder))[1])
    assert len(traces) == 1


def test_a_name_that_is_not_full_is_warned_of(tmp_path):
    with serve("--to", "null:", "--hostname", "mx") as server:
        server.client().quit()  # it is there
        assert "mx is no full name of a host, as mx.example.org; give one with --hostname" in server.stop().stderr


def test_in_the_file(tmp_path):
    """The command line wins. A table that is for other runs too may have options for places that are not there."""
    config = tmp_path / "mqcore.toml"
    config.write_text('[run]\nhostname = "mx.example.net"\nno-trace = true\ntls-out = "require"\none-recipient = false\n')
    with serve("--to", f"maildir:{tmp_path}/in", "--config", config, "--hostname", "mx.example.com") as server:
        with server.client() as client:
            assert client.ehlo()[1].startswith(b"mx.example.com\n")
            client.sendmail("a@example.org", ["b@example.org"], TEXT)
        assert "WARNING" not in server.stop().stderr
    assert read_maildir(tmp_path / "in") == [TEXT]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[run]\nhostnam = 'x'", "[run] has hostnam, which is no option that it may have; did you mean hostname?"),
        ("[run]\nx = 1", "[run] has x, which is no option that it may have; there are auth-without-tls, control, "),
        ("[run]\nhostname = 1", "hostname in [run] is a text, not 1"),
        ("[run]\nhostname = 'a b'", "--hostname 'a b' is no name of a host; write it as mx.example.org"),
        ("[run]\nmax-loops = 0", "max-loops in [run] is a whole number above 0, not 0"),
        ("[run]\nmax-loops = true", "max-loops in [run] is a whole number above 0, not True"),
        ("[run]\nno-trace = 'yes'", "no-trace in [run] is true or false, not 'yes'"),
        ("[run]\ntls-out = 'no'", "tls-out in [run] is one of may, none, require, verify, not 'no'"),
        ("run = 1", "run is a table of options, not 1; write [run]"),
    ],
)
def test_wrong_tables(tmp_path, text, said):
    (tmp_path / "mqcore.toml").write_text(text)
    result = run("run", "--from", "smtp://127.0.0.1:0", "--to", "null:", "--config", tmp_path / "mqcore.toml")
    assert result.returncode == 2 and said in result.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--hostname", "a b"], "--hostname 'a b' is no name of a host"),
        (["--max-loops", "0"], "'0' is no whole number above 0"),
        (["--max-loops", "3", "--no-trace"], "--max-loops counts Received lines, which --no-trace leaves out"),
    ],
)
def test_wrong_options(options, said):
    result = run("run", "--from", "smtp://127.0.0.1:0", "--to", "null:", *options)
    assert result.returncode == 2 and said in result.stderr


def test_what_is_for_servers_alone(tmp_path):
    mbox = write_mbox(tmp_path / "mbox", 1)
    for option in (["--no-trace"], ["--hostname", "mx.example.org"], ["--max-loops", "3"]):
        result = run("run", "--from", f"mbox:{mbox}", "--to", f"maildir:{tmp_path}/to", *option)
        assert result.returncode == 2 and f"{option[0]} is for --from smtp:" in result.stderr


def test_without_a_trace_to_the_next_server(tmp_path):
    with (
        serve("--to", f"maildir:{tmp_path}/in") as last,
        serve("--to", last.url, "--no-trace", "--one-recipient") as first,
    ):
        with first.client() as client:
            client.sendmail("a@example.org", ["b@example.org"], TEXT)
        assert "without a Received line" in first.stop().stderr
    (mail,) = read_maildir(tmp_path / "in")
    assert mail.count(b"Received:") == 1 and untraced([mail]) == [TEXT]
