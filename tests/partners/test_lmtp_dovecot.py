"""Delivering to Dovecot by LMTP."""

from __future__ import annotations

import json
import smtplib
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_tools import serve
from dovecot import Dovecot, dovecot
from mail_tools import counted, move, read_maildir, real_mails, write_mbox, write_plugin

TEXT = b"Subject: hello\r\n\r\n" + b"x" * 70 * 5 + b"\r\n"


@pytest.fixture
def server() -> Iterator[Dovecot]:
    with dovecot() as it:
        yield it


def to(folder: Path, *names: str) -> Path:
    """A plugin that says to whom."""
    recipients = [f"{name}@example.org" for name in names]
    write_plugin(folder, "10-to", f"def mq_smtp_in_message(context, message): message.recipients = {recipients!r}\n")
    return folder


@pytest.mark.parametrize("way", ["unix", "url"])
def test_from_an_mbox(server, way, tmp_path):
    url = getattr(server, way)
    mbox = write_mbox(tmp_path / "mbox", 100)
    plugins = to(tmp_path / "plugins", "alice", "bob")
    assert counted(move(f"mbox:{mbox}", url, "--plugins", plugins)) == {"continued": 100}
    assert len(server.mails("alice")) == len(server.mails("bob")) == 100
    assert sorted(server.mails("alice")) == sorted(server.mails("bob"))
    assert counted(move(f"mbox:{mbox}", url, "--plugins", plugins)) == {"present": 100}
    assert len(server.mails("alice")) == 100


def test_each_recipient_has_a_verdict_of_its_own(server, tmp_path):
    """And a second run sends it to nobody who has it."""
    mbox = write_mbox(tmp_path / "mbox", 1, lines=40)
    plugins = to(tmp_path / "plugins", "alice", "nobody", "full", "bob")
    options = ("--plugins", plugins, "--failed", f"maildir:{tmp_path}/failed")
    assert counted(move(f"mbox:{mbox}", server.unix, *options, code=1)) == {"rejected": 1}
    reason = json.loads((tmp_path / "failed" / "mqcore.reasons.jsonl").read_text())
    told = {result["recipient"].partition("@")[0]: (result["state"], result["code"]) for result in reason["results"]}
    assert told == {"alice": ("message", 250), "bob": ("message", 250), "nobody": ("rcptto", 550), "full": ("message", 552)}
    assert counted(move(f"mbox:{mbox}", server.unix, *options, code=1)) == {"rejected": 1}
    assert [len(server.mails(name)) for name in ("alice", "bob", "full")] == [1, 1, 0]
    assert server.head("alice").startswith(b"Return-Path: <sender0@example.org>\n")


def test_from_a_client(server, tmp_path):
    names = ("alice", "full", "bob", "broken", "nobody")
    with (
        serve("--to", server.unix, "--failed", f"maildir:{tmp_path}/failed") as it,
        it.client() as client,
    ):
        client.sendmail("a@example.org", [f"{name}@example.org" for name in names], TEXT)
        with pytest.raises(smtplib.SMTPDataError, match="552"):
            client.sendmail("a@example.org", ["full@example.org"], TEXT)
        with pytest.raises(smtplib.SMTPDataError, match="451"):
            client.sendmail("a@example.org", ["broken@example.org"], TEXT)
    assert [len(server.mails(name)) for name in ("alice", "bob", "full")] == [1, 1, 0]
    assert len(read_maildir(tmp_path / "failed")) == 3
    assert counted(it.figures) == {"continued": 2, "rejected": 5}


def test_a_nul_arrives_as_it_is(server, tmp_path):
    """With `--lenient`, as Dovecot has no BINARYMIME; without, it is refused."""
    text = TEXT + b"a NUL \0 here\r\n.\r\n"
    (tmp_path / "in" / "new").mkdir(parents=True)
    (tmp_path / "in" / "new" / "1").write_bytes(text)
    plugins = to(tmp_path / "plugins", "alice")
    write_plugin(plugins, "20-from", 'def mq_smtp_out_data(context, message): message.envelope = ""\n')
    assert counted(move(f"maildir:{tmp_path}/in", server.unix, "--plugins", plugins, code=1)) == {"rejected": 1}
    assert server.mails("alice") == []
    assert counted(move(f"maildir:{tmp_path}/in", server.unix, "--plugins", plugins, "--lenient")) == {"continued": 1}
    assert [mail.replace(b"\r\n", b"\n") for mail in server.mails("alice")] == [text.replace(b"\r\n", b"\n")]


def test_every_real_mail(server, tmp_path):
    mails = [mail for _, mail in real_mails()]
    (tmp_path / "in" / "new").mkdir(parents=True)
    for number, mail in enumerate(mails):
        (tmp_path / "in" / "new" / f"{number}").write_bytes(mail)
    plugins = to(tmp_path / "plugins", "carol")
    write_plugin(plugins, "20-from", 'def mq_smtp_out_data(context, message): message.envelope = ""\n')
    figures = move(f"maildir:{tmp_path}/in", server.unix, "--plugins", plugins)
    assert figures["messages"]["stored"] == len(mails) == len(server.mails("carol"))


@pytest.mark.parametrize(("level", "code"), [("may", 0), ("require", 0), ("verify", 4), ("none", 0)])
def test_starttls(level, code, tmp_path):
    with dovecot(ssl=True) as server:
        mbox = write_mbox(tmp_path / "mbox", 3)
        options = ("--plugins", to(tmp_path / "plugins", "alice"), "--tls-out", level)
        move(f"mbox:{mbox}", server.url, *options, code=code)
        assert len(server.mails("alice")) == (0 if code else 3)
        if not code:
            (file, *_) = (server.folder / "mail" / "alice" / "new").iterdir()
            assert (b"TLS" in file.read_bytes()) == (level != "none")


def test_a_socket_that_is_not_there(tmp_path):
    with (
        serve("--to", f"lmtp:unix:{tmp_path}/lmtp", "--one-recipient") as it,
        it.client() as client,
        pytest.raises(smtplib.SMTPDataError, match="451.* cannot reach the next server: No such file or directory"),
    ):
        client.sendmail("a@example.org", ["alice@example.org"], TEXT)
