"""Who the client is, behind HAProxy and behind Postfix."""

from __future__ import annotations

import smtplib
import socket
import ssl
from pathlib import Path

import pytest
from cli_tools import serve
from free_ports import free_port
from haproxy import haproxy
from mail_tools import read_maildir, write_plugin
from partner_servers import Postfix
from smtp_tools import certificate

TEXT = b"From: a@sender.example\r\nTo: b@example.org\r\nSubject: hello\r\nMessage-Id: <1@sender.example>\r\n" \
    b"Date: Sun, 29 Nov 2026 08:00:00 +0000\r\n\r\nhello\r\n"  # fmt: skip
TELL = """
def mq_smtp_in_message(context, message):
    known = message.connection
    message.mime = f"X-Peer: {known.peer}\\r\\nX-Forwarded: {known.forwarded}\\r\\n".encode() + message.mime
"""


@pytest.fixture
def plugins(tmp_path: Path) -> Path:
    write_plugin(tmp_path / "plugins", "10-tell", TELL)
    return tmp_path / "plugins"


def send(port: int, source: str = "127.0.0.1", **how: object) -> None:
    with smtplib.SMTP("127.0.0.1", port, timeout=60, source_address=(source, 0)) as client:
        if how:
            client.starttls(context=certificate().client)
        client.sendmail("a@sender.example", ["b@example.org"], TEXT)


@pytest.mark.parametrize("how", ["send-proxy", "send-proxy-v2"])
@pytest.mark.parametrize("tls", [False, True])
def test_behind_haproxy(how, tls, plugins, tmp_path):
    """Its client has another address than HAProxy itself."""
    options = ("--to", f"maildir:{tmp_path}/in", "--plugins", plugins, "--proxy-from", "127.0.0.1")
    if tls:
        options += ("--tls-certificate", certificate().file)
    with serve(*options) as server, haproxy(tmp_path, server.port, how) as port:
        send(port, "127.0.0.7", **({"tls": tls} if tls else {}))
    (mail,) = read_maildir(tmp_path / "in")
    assert b"\r\nX-Peer: 127.0.0.7\r\n" in mail and b" ([127.0.0.7])\r\n" in mail


@pytest.mark.parametrize("how", ["send-proxy", "send-proxy-v2"])
def test_behind_haproxy_with_tls_at_once(how, plugins, tmp_path):
    options = ("--to", f"maildir:{tmp_path}/in", "--plugins", plugins, "--proxy-from", "127.0.0.0/8", "--tls-certificate",
               certificate().file)  # fmt: skip
    with serve(*options, source="smtps://127.0.0.1:0") as server, haproxy(tmp_path, server.port, how) as port:
        context: ssl.SSLContext = certificate().client
        with smtplib.SMTP_SSL("127.0.0.1", port, timeout=60, source_address=("127.0.0.7", 0), context=context) as client:
            client.sendmail("a@sender.example", ["b@example.org"], TEXT)
    (mail,) = read_maildir(tmp_path / "in")
    assert b"\r\nX-Peer: 127.0.0.7\r\n" in mail


def test_what_haproxy_asks_about_health_is_no_fault(plugins, tmp_path):
    """Its checks begin with a header that says LOCAL, or are a connection without a word."""
    options = ("--to", "null:", "--plugins", plugins, "--proxy-from", "127.0.0.0/8")
    with serve(*options) as server, haproxy(tmp_path, server.port, "send-proxy-v2", "check check-send-proxy inter 1s") as port:
        for _ in range(5):
            send(port)
        with socket.create_connection(("127.0.0.1", server.port)):
            pass
        said = server.stop()
    assert "PROXY" not in said.stderr


FRONT = """127.0.0.1:{back} inet n - n - - smtpd
    -o smtpd_authorized_xforward_hosts=127.0.0.0/8
"""


def test_postfix_forwards_by_xforward_and_we_to_the_next_postfix(plugins, tmp_path):
    """As in docs/filter.md: plugins know the real client, and so does the log of the server behind the filter."""
    back = free_port()
    with serve("--to", f"smtp://127.0.0.1:{back}", "--one-recipient", "--plugins", plugins, "--lenient",
               "--xforward-from", "127.0.0.0/8") as filter:  # fmt: skip
        settings = {
            "smtpd_authorized_xclient_hosts": "127.0.0.0/8",
            "default_transport": "discard:",
            "mynetworks": "127.0.0.0/8 192.0.2.0/24",
        }
        master = FRONT.format(back=back) + (
            f"127.0.0.1:{(front := free_port())} inet n - n - - smtpd\n    -o smtpd_proxy_filter=127.0.0.1:{filter.port}\n"
        )
        with Postfix(tmp_path / "postfix", master=master, **settings) as postfix:
            with smtplib.SMTP("127.0.0.1", front, timeout=60) as client:
                client.ehlo()
                # Postfix believes us, as we are among smtpd_authorized_xclient_hosts, and forwards what it believes.
                assert client.docmd("XCLIENT", "NAME=real.example ADDR=192.0.2.7 PORT=4711")[0] == 220
                client.ehlo("there.example")
                client.sendmail("a@sender.example", ["b@example.org"], TEXT)
            postfix.wait_for(r"status=sent")
            log = postfix.log
    queued = [line for line in log.splitlines() if "smtpd[" in line and ": client=" in line and "NOQUEUE" not in line]
    assert queued and all("orig_client=real.example[192.0.2.7]" in line for line in queued), queued


def test_postfix_as_a_client_sends_xforward(plugins, tmp_path):
    options = ("--to", f"maildir:{tmp_path}/in", "--plugins", plugins, "--xforward-from", "127.0.0.0/8")
    with serve(*options) as server:
        settings = {
            "smtp_send_xforward_command": "yes",
            "smtpd_authorized_xclient_hosts": "127.0.0.0/8",
            "mynetworks": "127.0.0.0/8 192.0.2.0/24",
            "relayhost": f"[127.0.0.1]:{server.port}",
        }
        with Postfix(tmp_path / "postfix", **settings) as postfix:
            with smtplib.SMTP("127.0.0.1", postfix.port, timeout=60) as client:
                client.ehlo()
                assert client.docmd("XCLIENT", "NAME=real.example ADDR=192.0.2.7")[0] == 220
                client.ehlo("there.example")
                client.sendmail("a@sender.example", ["b@example.org"], TEXT)
            postfix.wait_until_sent(1)
    (mail,) = read_maildir(tmp_path / "in")
    assert b"\r\nX-Peer: 127.0.0.1\r\n" in mail
    forwarded = mail.partition(b"X-Forwarded: ")[2].partition(b"\r\n")[0]
    assert b"'addr': '192.0.2.7'" in forwarded and b"'name': 'real.example'" in forwarded
    assert b"'helo': 'there.example'" in forwarded and b"'ident': '" in forwarded, forwarded


def test_what_speaks_xclient_to_postfix_speaks_it_to_us(plugins, tmp_path):
    """The example of Postfix's XCLIENT_README."""
    options = ("--to", f"maildir:{tmp_path}/in", "--plugins", plugins, "--xclient-from", "127.0.0.0/8")
    with serve(*options) as server, server.client() as client:
        assert client.ehlo()[0] == 250 and "NAME ADDR" in client.esmtp_features["xclient"]
        assert client.docmd("XCLIENT", "NAME=spike.porcupine.org ADDR=168.100.189.2")[0] == 220
        client.ehlo("spike.porcupine.org")
        client.sendmail("wietse@porcupine.org", ["b@example.org"], TEXT)
    (mail,) = read_maildir(tmp_path / "in")
    assert b"from spike.porcupine.org ([168.100.189.2])\r\n" in mail and b"X-Peer: 168.100.189.2\r\n" in mail
