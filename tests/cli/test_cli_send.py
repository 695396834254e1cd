"""`mqcore run --to smtp://...`: real servers, chains of the command, its end, and what it says when it cannot send."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import json
import os
import pwd
import re
import signal
import smtplib
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiosmtpd.controller import Controller
from aiosmtpd.smtp import Envelope
from cli_tools import TEXT, finish, need, serve, wait_until
from free_ports import free_port
from mail_tools import (
    EXAMPLES,
    counted,
    make_maildir,
    move,
    read_maildir,
    read_mbox,
    real_mails,
    report,
    run,
    start,
    untraced,
    write_mbox,
    write_plugin,
)
from smtp_tools import certificate

from mqcore.mail import SinkError
from mqcore.mail.smtp.sink import LmtpSink, SmtpSink

TO_ALICE = 'def mq_smtp_in_message(context, message): message.recipient = "alice@example.org"\n'
SAMPLE = EXAMPLES / "sample.mbox"


@pytest.fixture
def plugins(tmp_path: Path) -> Path:
    write_plugin(tmp_path / "plugins", "10-to", TO_ALICE)
    return tmp_path / "plugins"


class Inbox:
    """What aiosmtpd calls."""

    def __init__(self) -> None:
        self.mails: list[Envelope] = []
        self.tls: list[bool] = []

    async def handle_DATA(self, server, session, envelope):  # noqa: N802
        self.tls.append(server.transport.get_extra_info("sslcontext") is not None)
        self.mails.append(envelope)
        return "250 2.0.0 thank you"


@contextlib.contextmanager
def aiosmtpd(*, tls: str | None = None) -> Iterator[tuple[Inbox, str]]:
    """An aiosmtpd server, and its URL. `tls` is "starttls" or "implicit"."""
    context = None
    if tls is not None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate().file)
    port = free_port()
    inbox = Inbox()
    options = {"ssl_context": context} if tls == "implicit" else {"tls_context": context, "require_starttls": tls is not None}
    controller = Controller(inbox, hostname="127.0.0.1", port=port, enable_SMTPUTF8=True, **options)
    controller.start()
    try:
        yield inbox, f"{'smtps' if tls == 'implicit' else 'smtp'}://127.0.0.1:{port}"
    finally:
        controller.stop()


def on_the_wire(mail: bytes) -> bytes:
    lines = mail.replace(b"\r\n", b"\n").replace(b"\r", b" ")
    return (lines if lines.endswith(b"\n") else lines + b"\n").replace(b"\n", b"\r\n")


def read(mbox: Path) -> list[bytes]:
    """Its mails, without the mbox's quoting."""
    return [re.sub(rb"(?m)^>(>*From )", rb"\1", mail) for mail in read_mbox(mbox)]


def source_copy(tmp_path: Path) -> Path:
    copy = tmp_path / "sample.mbox"
    copy.write_bytes(SAMPLE.read_bytes())
    return copy


# Real servers


def test_from_an_mbox_to_aiosmtpd(tmp_path, plugins):
    sample = source_copy(tmp_path)
    with aiosmtpd() as (inbox, url):
        assert counted(move(f"mbox:{sample}", url, "--plugins", plugins)) == {"continued": 20}
        assert sorted(mail.content for mail in inbox.mails) == sorted(map(on_the_wire, read(SAMPLE)))
        assert {tuple(mail.rcpt_tos) for mail in inbox.mails} == {("alice@example.org",)}
        assert "x7731@example.com" in {mail.mail_from for mail in inbox.mails}
        assert counted(move(f"mbox:{sample}", url, "--plugins", plugins)) == {"present": 20}
        assert len(inbox.mails) == 20


def test_every_real_mail_from_a_maildir(tmp_path, plugins):
    mails = [mail for _, mail in real_mails()] + [b"no newline", b".\n..\n", b"a\r\n.\r\nb\r\n"]
    source = make_maildir(tmp_path / "in", mails)
    write_plugin(plugins, "20-from", 'def mq_smtp_out_data(context, message): message.envelope = ""\n')
    with aiosmtpd() as (inbox, url):
        move(f"maildir:{source}", url, "--plugins", plugins)
        assert sorted(mail.content for mail in inbox.mails) == sorted(map(on_the_wire, mails))


def test_starttls(tmp_path, plugins):
    with aiosmtpd(tls="starttls") as (inbox, url):
        move(f"mbox:{source_copy(tmp_path)}", url, "--plugins", plugins)
        assert inbox.tls == [True] * 20


def test_smtps(tmp_path, plugins, monkeypatch):
    """Its certificate must be one that the system trusts."""
    sample = source_copy(tmp_path)
    with aiosmtpd(tls="implicit") as (inbox, url):
        result = run("run", "--from", f"mbox:{sample}", "--to", url, "--plugins", plugins)
        assert result.returncode == 4
        assert "CERTIFICATE_VERIFY_FAILED" in result.stderr
        assert inbox.mails == []
        authority = tmp_path / "authority.pem"
        authority.write_text("".join(map(ssl.DER_cert_to_PEM_cert, certificate().client.get_ca_certs(binary_form=True))))
        monkeypatch.setenv("SSL_CERT_FILE", str(authority))
        move(f"mbox:{sample}", url, "--plugins", plugins)
        assert inbox.tls == [True] * 20


@contextlib.contextmanager
def smtp_sink(*options: str) -> Iterator[str]:
    """Postfix's smtp-sink, and its URL."""
    port = free_port()
    user = ["-u", pwd.getpwnam("nobody").pw_name] if os.getuid() == 0 else []
    with subprocess.Popen([need("smtp-sink", "postfix"), *user, *options, f"127.0.0.1:{port}", "100"]) as process:
        try:
            while True:
                assert process.poll() is None
                with contextlib.suppress(ConnectionRefusedError), socket.create_connection(("127.0.0.1", port)):
                    break
            yield f"smtp://127.0.0.1:{port}"
        finally:
            process.terminate()


def test_postfixs_smtp_sink(tmp_path, plugins):
    with smtp_sink() as url:
        mbox = write_mbox(tmp_path / "mbox", 500)
        assert counted(move(f"mbox:{mbox}", url, "--plugins", plugins)) == {"continued": 500}


@pytest.mark.parametrize("refused", ["MAIL", "RCPT", "DATA", "."])
def test_postfixs_smtp_sink_that_refuses(tmp_path, plugins, refused):
    with smtp_sink("-f", refused) as url:
        mbox = write_mbox(tmp_path / "mbox", 50)
        options = ("--plugins", plugins, "--failed", f"maildir:{tmp_path}/failed")
        assert counted(move(f"mbox:{mbox}", url, *options, code=1)) == {"rejected": 50}
    assert len(read_maildir(tmp_path / "failed")) == 50
    reason = json.loads((tmp_path / "failed" / "mqcore.reasons.jsonl").read_text().splitlines()[0])
    assert reason["rejected"]["code"] == reason["results"][0]["code"] >= 500


# Chains of the command


def test_from_server_to_server(tmp_path):
    with serve("--to", f"maildir:{tmp_path}/in") as last:
        options = ("--failed", f"maildir:{tmp_path}/failed")
        with (
            serve("--to", last.url, *options) as middle,
            serve("--to", middle.url, "--one-recipient") as first,
            first.client() as client,
        ):
            for number in range(20):
                client.sendmail("a@example.org", ["b@example.org"], TEXT + b"%d\r\n" % number)
                # The 250 has come, so it is there.
                assert len(list((tmp_path / "in" / "new").iterdir())) == number + 1
    assert untraced(read_maildir(tmp_path / "in")) == [TEXT + b"%d\r\n" % number for number in range(20)]
    for server in (first, middle, last):
        assert counted(server.figures) == {"continued": 20}


def test_refusals_go_back_to_the_client(tmp_path):
    write_plugin(
        tmp_path / "plugins",
        "10-users",
        """
        def mq_smtp_in_rcptto(context, message, address):
            name = address.partition("@")[0]
            if name == "no":
                message.reject(550, "5.1.1 no such user")
            if name == "later":
                message.reject(450, "4.2.1 later")
        """,
    )
    with (
        serve("--to", f"maildir:{tmp_path}/in", "--plugins", tmp_path / "plugins") as last,
        serve("--to", last.url, "--one-recipient") as first,
        first.client() as client,
    ):
        for name, said in (("no", "550, b'5.1.1 no such user'"), ("later", "450, b'4.2.1 later'")):
            with pytest.raises(smtplib.SMTPDataError, match=said):
                client.sendmail("a@example.org", [f"{name}@example.org"], TEXT)
        client.sendmail("a@example.org", ["yes@example.org"], TEXT)
    assert untraced(read_maildir(tmp_path / "in")) == [TEXT]
    assert counted(first.figures) == {"continued": 1, "rejected": 2}


def test_recipients_one_by_one_where_the_next_server_takes_no_more(tmp_path):
    recipients = [f"{number}@example.org" for number in range(5)]
    with (
        serve("--to", f"maildir:{tmp_path}/in") as last,
        serve("--to", last.url, "--failed", f"maildir:{tmp_path}/failed") as first,
        first.client() as client,
    ):
        client.sendmail("a@example.org", recipients, TEXT)
    assert untraced(read_maildir(tmp_path / "in")) == [TEXT] * 5
    assert counted(first.figures) == counted(last.figures) == {"continued": 5}


# Its end


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_stopped_in_the_middle(tmp_path, plugins, number, code):
    mbox = write_mbox(tmp_path / "mbox", 3000)
    inbox = tmp_path / "in" / "new"
    with serve("--to", f"maildir:{tmp_path}/in") as next_server:
        arguments = ("--from", f"mbox:{mbox}", "--to", next_server.url, "--plugins", plugins)
        with start("run", *arguments, "--json") as process:
            wait_until(lambda: len(list(inbox.iterdir())) > 100, process)
            process.send_signal(number)
            result = finish(process)
        assert result.returncode == code, result
        figures = report(result)
        stored = figures["messages"]["stored"]
        assert 100 < stored < 3000 and figures["messages"]["in_doubt"] == 0
        assert len(list(inbox.iterdir())) == stored
        rest = {"present": stored, "continued": 3000 - stored}
        assert counted(move(f"mbox:{mbox}", next_server.url, "--plugins", plugins)) == rest
    assert sorted(untraced(read_maildir(tmp_path / "in"))) == sorted(map(on_the_wire, read_mbox(mbox)))


def test_killed_and_run_again(tmp_path, plugins):
    """No mail is missing, and no more are there twice than were on their way."""
    mbox = write_mbox(tmp_path / "mbox", 3000)
    inbox = tmp_path / "in" / "new"
    with serve("--to", f"maildir:{tmp_path}/in") as next_server:
        arguments = ("--from", f"mbox:{mbox}", "--to", next_server.url, "--plugins", plugins, "--max-in-flight", "50")
        with start("run", *arguments) as process:
            wait_until(lambda: len(list(inbox.iterdir())) > 500, process)
            process.kill()
        figures = move(f"mbox:{mbox}", next_server.url, "--plugins", plugins)
        assert figures["messages"]["present"] > 400
    mails = untraced(read_maildir(tmp_path / "in"))
    assert set(mails) == set(map(on_the_wire, read_mbox(mbox)))
    assert len(mails) <= 3000 + 50


def test_the_next_server_is_killed_and_comes_back(tmp_path, plugins):
    mbox = write_mbox(tmp_path / "mbox", 3000)
    inbox = tmp_path / "in" / "new"
    with serve("--to", f"maildir:{tmp_path}/in") as next_server:
        with start("run", "--from", f"mbox:{mbox}", "--to", next_server.url, "--plugins", plugins, "--json") as process:
            wait_until(lambda: len(list(inbox.iterdir())) > 500, process)
            next_server.process.kill()
            next_server.process.wait()
            with serve("--to", f"maildir:{tmp_path}/in", source=next_server.url):
                result = finish(process)
        assert result.returncode == 0, result
    figures = report(result)
    assert figures["messages"]["stored"] == 3000
    mails = untraced(read_maildir(tmp_path / "in"))
    assert set(mails) == set(map(on_the_wire, read_mbox(mbox)))
    assert len(mails) - 3000 <= figures["messages"]["in_doubt"] <= 20


# Where it cannot send


def test_nobody_says_to_whom(tmp_path):
    mbox = write_mbox(tmp_path / "mbox", 1)
    result = run("run", "--from", f"mbox:{mbox}", "--to", "smtp://127.0.0.1:25")
    assert result.returncode == 2
    assert f"mbox:{mbox} does not say to whom its mails are to be sent: a plugin must set message.recipient" in result.stderr
    assert os.listdir(tmp_path) == ["mbox"]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--to", "smtp://127.0.0.1"], "'//127.0.0.1' is not //HOST:PORT"),
        (["--to", "smtp://me:secret@127.0.0.1:25"], "a user and a password have no place in it"),
        (["--to", "smtp://mx..example.org:25"], "'mx..example.org' is no name of a host"),
        (["--to", "lmtp:unix:"], "'unix:' is not //HOST:PORT"),
        (["--to", "smtps:unix:/run/smtp"], "'smtps:unix:/run/smtp' is no sink"),
        (["--to", "null:", "--tls-out", "none"], "--tls-out is for --to smtp: and --to lmtp:"),
        (["--to", "lmtp:unix:/run/lmtp", "--tls-out", "none"], "--tls-out is for --to lmtp://HOST:PORT; a socket"),
        (["--to", "smtps://127.0.0.1:465", "--tls-out", "verify"], "--tls-out is for --to smtp: and --to lmtp:"),
        (["--to", "smtp://127.0.0.1:25", "--tls-out", "maybe"], "invalid choice: 'maybe'"),
        (["--to", "null:", "--failed", "smtp://127.0.0.1:25"], "'smtp://127.0.0.1:25' is no place for failed mails"),
    ],
)
def test_wrong_usage(arguments, why):
    result = run("run", "--from", "mbox:x", *arguments)
    assert result.returncode == 2
    assert why in result.stderr


def test_a_host_that_does_not_exist(tmp_path, plugins):
    mbox = write_mbox(tmp_path / "mbox", 10)
    figures = move(f"mbox:{mbox}", "smtp://no.such.host.invalid:25", "--plugins", plugins, code=4)
    assert figures["error"].startswith("cannot reach smtp://no.such.host.invalid:25: ")
    assert counted(figures) == {"unfinished": 10}


def test_no_host():
    with pytest.raises(SinkError, match=r"^smtp://:25 does not say to which host mails are to be sent$"):
        SmtpSink("//:25")


# The record of what is sent


class Mail:
    def __init__(self, number: int) -> None:
        self.origin = type("", (), {"id": f"{number:032x}"})


def write_half(fd, data, write=os.write):
    if len(data) <= 10:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return write(fd, data[:10])


def test_a_record_for_which_there_is_no_room(tmp_path, monkeypatch):
    """What comes next begins a line."""
    with contextlib.closing(SmtpSink("//mx.example:25", source=tmp_path / "mbox")) as sink:
        with monkeypatch.context() as full:
            full.setattr(os, "write", write_half)
            with pytest.raises(SinkError, match="No space left on device"):
                asyncio.run(sink.note([Mail(1)], {}))
        asyncio.run(sink.note([Mail(2)], {}))
    with contextlib.closing(SmtpSink("//mx.example:25", source=tmp_path / "mbox")) as sink:
        assert [f"{number:032x}" in sink for number in (1, 2)] == [False, True]


def test_a_record_that_is_not_written_while_whoever_writes_it_is_cancelled(tmp_path, monkeypatch):
    """The others whose lines it had must learn of it."""
    writes = itertools.count()
    begun, go_on = [threading.Event() for _ in range(2)], [threading.Event() for _ in range(2)]

    def write(fd, data):
        number = next(writes)
        begun[number].set()
        assert go_on[number].wait(60)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    async def main(sink):
        first = asyncio.create_task(sink.note([Mail(1)], {}))
        await asyncio.to_thread(begun[0].wait, 60)
        second, third = [asyncio.create_task(sink.note([Mail(number)], {})) for number in (2, 3)]
        await asyncio.sleep(0)
        go_on[0].set()
        await asyncio.to_thread(begun[1].wait, 60)
        second.cancel()
        await asyncio.sleep(0)
        go_on[1].set()
        return await asyncio.gather(first, second, third, return_exceptions=True)

    with contextlib.closing(SmtpSink("//mx.example:25", source=tmp_path / "mbox")) as sink:
        monkeypatch.setattr(os, "write", write)
        ends = asyncio.run(main(sink))
    assert [type(end) for end in ends] == [SinkError, asyncio.CancelledError, SinkError]


def test_the_record(tmp_path):
    with contextlib.closing(SmtpSink("//mx.example:25", source=tmp_path / "mbox")) as sink:
        asyncio.run(sink.note([Mail(1), Mail(2)], {Mail(3): ["é@example.org", "b@example.org"]}))
    record = tmp_path / "mbox.sent.smtp.mx.example:25"
    whole = record.read_bytes()
    record.write_bytes(whole + b"0" * 31)  # a run was killed while it wrote
    with contextlib.closing(SmtpSink("//mx.example:25", source=tmp_path / "mbox")) as sink:
        assert [f"{number:032x}" in sink for number in (1, 2, 3)] == [True, True, False]
        assert sink.recipients_of(f"{3:032x}") == {"é@example.org", "b@example.org"}
        assert record.read_bytes() == whole
        with pytest.raises(SinkError, match="another mqcore sends these mails to smtp://mx.example:25"):
            SmtpSink("//mx.example:25", source=tmp_path / "mbox")
    (tmp_path / "maildir").mkdir()
    SmtpSink("//mx.example:25", source=tmp_path / "maildir").close()
    assert os.listdir(tmp_path / "maildir") == ["mqcore.sent.smtp.mx.example:25"]
    LmtpSink("unix:/run/50%/lmtp", source=tmp_path / "mbox").close()
    assert (tmp_path / "mbox.sent.lmtp.unix:%2Frun%2F50%25%2Flmtp").exists()


def test_a_record_that_cannot_be_written(tmp_path):
    with pytest.raises(SinkError, match=r"^cannot write to .*/missing/mbox.sent.smtp.mx.example:25: No such file"):
        SmtpSink("//mx.example:25", source=tmp_path / "missing" / "mbox")
