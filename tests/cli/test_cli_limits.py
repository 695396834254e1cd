"""Options for the limits of a server, on the command line and in the TOML file."""

from __future__ import annotations

import functools
import resource
import smtplib
from typing import Any

import pytest
from cli_tools import TEXT, Server, serve
from mail_tools import NO_PLUGINS, run, start, write_mbox, write_plugin
from smtp_tools import certificate

TLS = ("--tls-certificate", certificate().file)


def test_sizes_and_numbers(tmp_path):
    (tmp_path / "mqcore.toml").write_text("[run]\nmax-message-size = 1000\nmax-recipients = 100\n")
    options = ("--config", tmp_path / "mqcore.toml", "--max-recipients", 2)
    with serve("--to", "null:", *options) as server, server.client() as client:
        assert b"SIZE 1000\n" in client.ehlo()[1] + b"\n"
        assert client.docmd("MAIL FROM:<a@example.org> SIZE=1001") == (552, b"5.3.4 a message may have 1000 octets")
        client.docmd("MAIL FROM:<a@example.org>")
        replies = [client.docmd(f"RCPT TO:<{number}@example.org>")[0] for number in range(3)]
        assert replies == [250, 250, 452]
        client.rset()
        with pytest.raises(smtplib.SMTPSenderRefused, match="a message may have 1000 octets"):
            client.sendmail("a@example.org", ["b@example.org"], b"x" * 70 + b"\r\n" + TEXT * 100)


def test_connections(tmp_path):
    with serve("--to", "null:", "--max-connections", 3, "--max-connections-per-ip", 2) as server:
        clients = [server.client() for _ in range(2)]
        with pytest.raises(smtplib.SMTPConnectError, match="too many connections from your network"):
            server.client()
        other = smtplib.SMTP("127.0.0.1", server.port, source_address=("127.0.0.2", 0), timeout=30)
        with pytest.raises(smtplib.SMTPConnectError, match="4.3.2 too many connections"):
            smtplib.SMTP("127.0.0.1", server.port, source_address=("127.0.0.3", 0), timeout=30)
        for client in (*clients, other):
            client.quit()


def test_tls_and_a_login_are_required(tmp_path):
    write_plugin(tmp_path / "plugins", "10-login", """
        def mq_smtp_in_authenticate(context, message, login, password):
            message.connection.authenticated = password == "secret"
        """)
    options = ("--require-tls", "--require-login", *TLS, "--plugins", tmp_path / "plugins")
    with serve("--to", "null:", *options) as server, server.client() as client:
        client.ehlo()
        assert client.docmd("MAIL FROM:<a@example.org>") == (530, b"5.7.0 say STARTTLS first")
        client.starttls(context=certificate().client)
        client.ehlo()
        assert client.docmd("MAIL FROM:<a@example.org>") == (530, b"5.7.0 log in first")
        client.login("a", "secret")
        assert client.sendmail("a@example.org", ["b@example.org"], TEXT) == {}


@pytest.mark.parametrize(("options", "complaint"), [
    (["--require-tls"], "--require-tls needs --tls-certificate"),
    (["--require-login"], "--require-login needs --tls-certificate, or --auth-without-tls"),
    (["--one-recipient", "--max-recipients", "3"], "--one-recipient is --max-recipients 1; give one of them"),
    (["--max-message-size", "0"], "'0' is no whole number above 0"),
    (["--timeout", "never"], "'never' is no whole number above 0"),
])
def test_what_does_not_go_together(options, complaint):
    result = run("run", "--from", "smtp://127.0.0.1:0", "--to", "null:", *options)
    assert result.returncode == 2 and complaint in result.stderr


def test_nobody_could_log_in():
    result = run("run", "--from", "smtp://127.0.0.1:0", "--to", "null:", "--require-login", "--auth-without-tls")
    assert result.returncode == 4, result
    assert "--require-login: no plugin has the hook mq_smtp_in_authenticate, so nobody could log in" in result.stderr


def said(**options: Any) -> str:
    """By a server that ran for a moment."""
    with start("run", "--from", "smtp://127.0.0.1:0", "--to", "null:", "--json", **options) as process:
        server = Server(process, 0)
        server.client().quit()
        return server.stop().stderr


def test_few_files_are_told_of():
    few = functools.partial(resource.setrlimit, resource.RLIMIT_NOFILE, (100, 100))
    warning = "50 clients can be there at once, as this process may open 100 files; raise the limit (ulimit -n)"
    assert warning in said(preexec_fn=few)
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    if hard >= 4096 or hard == resource.RLIM_INFINITY:
        assert "clients can be there at once" not in said()


def test_a_soft_limit_of_files_is_raised(tmp_path):
    """For runs without a server too; what the system does not let be raised is told of at the start."""
    box = write_mbox(tmp_path / "box", 300)
    few = functools.partial(resource.setrlimit, resource.RLIMIT_NOFILE, (16, 2000))
    result = run("run", "--from", f"mbox:{box}", "--to", f"maildir:{tmp_path / 'out'}", preexec_fn=few)
    assert (result.returncode, result.stderr) == (0, NO_PLUGINS)
    few = functools.partial(resource.setrlimit, resource.RLIMIT_NOFILE, (40, 40))
    result = run("run", "--from", f"mbox:{box}", "--to", f"maildir:{tmp_path / 'more'}", preexec_fn=few)
    warning = "mqcore: this process may open 40 files, which may be too few; raise the limit (ulimit -n)\n"
    assert (result.returncode, result.stderr) == (0, warning + NO_PLUGINS)
