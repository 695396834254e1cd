"""Whom the command believes, and what it says when that, or a login, is given wrongly: one line, before anything is opened."""

from __future__ import annotations

import pytest
from cli_tools import serve
from mail_tools import run, write_mbox, write_plugin


@pytest.mark.parametrize(
    ("source", "options", "said"),
    [
        ("smtp://127.0.0.1:0", ("--proxy-from", "10.0.0.1/8"), "--proxy-from 10.0.0.1/8: 10.0.0.1/8 has host bits set; write"),
        ("smtp://127.0.0.1:0", ("--xclient-from", "x"), "--xclient-from x: 'x' does not appear to be an IPv4 or IPv6"),
        ("lmtp:unix:/tmp/none", ("--xforward-from", "::/0"), "--xforward-from is for --from lmtp://HOST:PORT; a Unix"),
        ("mbox:in", ("--proxy-from", "::/0"), "--proxy-from is for --from smtp:, --from smtps: and --from lmtp:"),
        ("mbox:in", ("--lenient",), "--lenient is for --from smtp:"),
    ],
)
def test_wrong_networks(source, options, said):
    result = run("run", "--from", source, "--to", "null:", *options)
    assert result.returncode == 2 and said in result.stderr.replace("\n", " "), result.stderr


@pytest.mark.parametrize(
    ("sink", "options", "code", "said"),
    [
        ("smtp://localhost:1", ("--tls-out", "may"), 2, "--credentials: they are sent under TLS only; with them --tls"),
        ("smtp://localhost:1", ("--tls-out", "none"), 2, "--credentials: they are sent under TLS only; with them --tls"),
        ("smtp://localhost:1", ("--credentials-env",), 2, "--credentials or --credentials-env; give one of them"),
        ("smtp:unix:/tmp/none", (), 2, "--credentials is for --to smtp://HOST:PORT; they are sent under TLS only"),
        ("lmtp://localhost:1", (), 2, "--credentials is for --from amqp:, --from amqps:, --to smtp:, --to smtps:"),
        ("smtp://localhost:1", ("open",), 4, "others may read {path}, which has a password in it; run chmod 600 {path}"),
        ("smtp://localhost:1", ("short",), 4, "{path} should have two lines, the login and the password"),
        ("smtp://localhost:1", ("long",), 4, "{path} should have two lines, the login and the password"),
        ("smtp://localhost:1", ("missing",), 4, "cannot read {path}: No such file or directory"),
        ("smtp://localhost:1", ("env",), 4, "--credentials-env: MQCORE_LOGIN and MQCORE_PASSWORD must both be set"),
    ],
)
def test_wrong_credentials(sink, options, code, said, monkeypatch, tmp_path):
    monkeypatch.setenv("MQCORE_LOGIN", "alice")
    monkeypatch.delenv("MQCORE_PASSWORD", raising=False)
    path = tmp_path / "credentials"
    kind = options[0] if options and not options[0].startswith("--") else ""
    path.write_text({"short": "alice\n", "long": "alice\ns3cret\nmore\n"}.get(kind, "alice\ns3cret\n"))
    path.chmod(0o640 if kind == "open" else 0o600)
    if kind == "missing":
        path.unlink()
    plugins = write_plugin(tmp_path / "plugins", "10-to", "def mq_smtp_in_message(context, message): message.recipient = 'b'")
    how = ("--credentials-env",) if kind == "env" else ("--credentials", path)
    more = ("--plugins", plugins, *(() if kind else options))
    result = run("run", "--from", f"mbox:{write_mbox(tmp_path / 'in', 1)}", "--to", sink, *how, *more)
    assert result.returncode == code and said.format(path=path) in result.stderr, result.stderr
    assert "s3cret" not in result.stderr


def test_in_the_file(tmp_path):
    """Of several networks, and of a server that is lenient."""
    config = tmp_path / "mqcore.toml"
    config.write_text('[run]\nlenient = true\nxforward-from = "10.0.0.0/8,127.0.0.0/8"\nxclient-from = "::/0"\n')
    with serve("--to", "null:", "--config", config) as server, server.client() as client:
        client.ehlo()
        assert client.has_extn("xforward") and not client.has_extn("xclient")
        assert client.docmd("MAIL FROM: a")[0] == 250
