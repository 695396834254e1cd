"""The example plugins as they are, all of them inside a real Postfix."""

from __future__ import annotations

import contextlib
import json
import smtplib
import socketserver
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_tools import serve
from free_ports import free_port
from mail_tools import EXAMPLES, read_maildir
from milter_partners import need_postfix
from partner_servers import Postfix

HEAD = "Date: Sun, 29 Nov 2026 08:00:00 +0000\r\nMessage-Id: <1@sender.example>\r\n"
GREYLISTED = "450 4.7.1 greylisted, come again in a few minutes"


@pytest.fixture(autouse=True)
def _needs_postfix() -> None:
    need_postfix()


class Policy(socketserver.StreamRequestHandler):
    """Refuses one sender, and drops the mail of another."""

    def handle(self) -> None:
        asked = dict(line.decode().rstrip("\n").split("=", 1) for line in iter(self.rfile.readline, b"\n"))
        name = asked["sender"].partition("@")[0]
        self.wfile.write(f"action={ {'bad': 'REJECT not today', 'drop': 'DISCARD'}.get(name, 'DUNNO')}\n\n".encode())


class Spamd(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        self.rfile.readline()
        length = int(self.rfile.readline().removeprefix(b"Content-length: "))
        self.rfile.readline()
        spam = b"LOCKED" in self.rfile.read(length)
        self.wfile.write(b"SPAMD/1.1 0 EX_OK\r\nSpam: %s ; 9.1 / 5.0\r\n\r\n" % (b"True" if spam else b"False"))


@contextlib.contextmanager
def answering(handler: type[socketserver.BaseRequestHandler]) -> Iterator[str]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield "{}:{}".format(*server.server_address)
        finally:
            server.shutdown()


def send(port: int, sender: str, head: str) -> str:
    """What the client is told at last."""
    with smtplib.SMTP("127.0.0.1", port, timeout=60, local_hostname="client.example") as client:
        try:
            client.sendmail(sender, ["b@example.net"], f"From: {sender}\r\n{HEAD}{head}\r\nhello\r\n")
        except smtplib.SMTPResponseException as error:
            return f"{error.smtp_code} {error.smtp_error.decode()}"
        except smtplib.SMTPRecipientsRefused as error:
            code, text = error.recipients["b@example.net"]
            return f"{code} {text.decode()}"
    return "250"


def send_until_known(port: int, sender: str, head: str) -> str:
    """Who is greylisted comes again."""
    said, give_up = send(port, sender, head), time.monotonic() + 30
    assert said == GREYLISTED
    while said == GREYLISTED and time.monotonic() < give_up:
        time.sleep(0.05)
        said = send(port, sender, head)
    return said


def test_all_example_plugins_in_postfix(tmp_path: Path) -> None:
    port, settings = free_port(), tmp_path / "mqcore.toml"
    with (
        answering(Policy) as policy,
        answering(Spamd) as spamd,
        serve("--to", f"maildir:{tmp_path}/arrived") as mailboxes,
    ):
        values = {
            "20-trusted": {"domains": ["trusted.example"]},
            "30-pace": {"per_second": 1000},
            "40-policy": {"address": policy},
            "50-spamd": {"address": spamd},
            "70-greylist": {"database": f"{tmp_path}/greylist.sqlite3", "delay": 0.5},
        }
        lines = (
            f"[plugins.{plugin}]\n" + "".join(f"{name} = {json.dumps(value)}\n" for name, value in each.items())
            for plugin, each in values.items()
        )
        settings.write_text("".join(lines))
        asks = f"{{ inet:127.0.0.1:{port}, default_action=tempfail }}"
        with (
            serve("--plugins", EXAMPLES / "plugins", "--config", settings, source=f"milter://127.0.0.1:{port}") as milter,
            Postfix(tmp_path / "postfix", smtpd_milters=asks, relayhost=f"[127.0.0.1]:{mailboxes.port}") as postfix,
        ):
            assert send_until_known(postfix.port, "a@sender.example", "Subject: an invoice\r\n") == "250"
            assert send(postfix.port, "a@sender.example", "Subject: LOCKED\r\n") == "550 5.7.1 this looks like spam"
            assert send_until_known(postfix.port, "bad@sender.example", "") == "550 5.7.1 not today"
            assert send_until_known(postfix.port, "drop@sender.example", "") == "250"
            srs = "SRS0=hash=day=trusted.example=alice@sender.example"
            assert send_until_known(postfix.port, srs, "Subject: SRS\r\n") == "250"
            postfix.wait_until_sent(2)
            said = milter.stop()
        assert "mq_smtp_out_data of 90-dkim is never called" in said.stderr
    trusted, tagged = sorted(read_maildir(tmp_path / "arrived"), key=lambda mail: b"\r\nSubject: SRS\r\n" not in mail)
    assert b"\r\nX-Tag: invoice\r\n" in tagged and b"\r\nX-Spam-Score: 9.1\r\n" in tagged
    assert trusted.count(b"X-Spam-Score") == 1 and trusted.startswith(b"Return-Path: <alice@trusted.example>")
