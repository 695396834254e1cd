"""Behind Postfix the filter of docs/filter.md refuses nothing that Postfix alone takes: both are asked, with odd mails."""

from __future__ import annotations

import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from cli_tools import serve
from free_ports import free_port
from odd_mails import HEAD, MESSAGES, RECIPIENTS, SENDERS
from partner_servers import Postfix

SENDER, RECIPIENT = b"<a@sender.example>", b"<b@example.org>"
MESSAGE = HEAD + b"\r\nhello\r\n"
CASES = [
    *((f"MAIL FROM:{text[:60]!r}", (text, RECIPIENT, MESSAGE)) for text in SENDERS),
    *((f"RCPT TO:{text[:60]!r}", (SENDER, text, MESSAGE)) for text in RECIPIENTS),
    *((f"message {text[len(HEAD):][:40]!r}", (SENDER, RECIPIENT, text)) for text in MESSAGES),
]
SERVER = """127.0.0.1:{plain} inet n - n - - smtpd
127.0.0.1:{back} inet n - n - - smtpd
    -o smtpd_authorized_xforward_hosts=127.0.0.0/8
"""


class Servers(NamedTuple):
    postfix: Postfix
    alone: int
    filtered: int


@pytest.fixture(params=["yes", "no"])
def servers(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Servers]:
    """With `smtputf8_enable = no`, Postfix takes addresses of any bytes."""
    alone, back = free_port(), free_port()
    with (
        serve("--to", f"smtp://127.0.0.1:{back}", "--failed", f"maildir:{tmp_path}/failed", "--lenient") as filter,
        Postfix(
            tmp_path / "postfix",
            master=SERVER.format(plain=alone, back=back),
            default_transport="discard:",
            smtputf8_enable=request.param,
            smtpd_hard_error_limit="100000",
            smtpd_soft_error_limit="100000",
        ) as postfix,
    ):
        (tmp_path / "postfix" / "etc" / "master.cf").write_text(
            (tmp_path / "postfix" / "etc" / "master.cf").read_text().replace(
                "smtpd\n", f"smtpd\n    -o smtpd_proxy_filter=127.0.0.1:{filter.port}\n", 1
            )
        )
        postfix.reload()
        yield Servers(postfix, alone, postfix.port)


class Talk:
    """One connection, to which anything can be said."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self._file = self._socket.makefile("rb")
        self.reply()
        self.ask(b"EHLO client.example\r\n")

    def ask(self, text: bytes) -> str:
        self._socket.sendall(text)
        return self.reply()

    def reply(self) -> str:
        while (line := self._file.readline())[3:4] == b"-":
            pass
        assert line.endswith(b"\r\n"), "the server closed the connection"
        return line.decode("ascii").rstrip()

    def send(self, sender: bytes, recipient: bytes, message: bytes) -> list[str]:
        """The replies to one transaction."""
        replies = [self.ask(b"MAIL FROM:" + sender + b"\r\n")]
        if replies[-1].startswith("250"):
            replies.append(self.ask(b"RCPT TO:" + recipient + b"\r\n"))
        if len(replies) > 1 and replies[-1].startswith("250"):
            replies.append(self.ask(b"DATA\r\n"))
            replies.append(self.ask(message + b".\r\n"))
        self.ask(b"RSET\r\n")
        return replies

    def close(self) -> None:
        self._file.close()
        self._socket.close()


def asked(postfix: Postfix, port: int) -> dict[str, list[object]]:
    """What became of each: replies, and from whom and to whom it is in the queue."""
    talk = Talk(port)
    told: dict[str, list[object]] = {}
    for name, case in CASES:
        told[name] = list(talk.send(*case))
    talk.close()
    for name, replies in told.items():
        match = re.search(r"queued as (\w+)", str(replies[-1]))
        if match is not None:
            postfix.wait_for(rf"qmgr\[\d+\]: {match[1]}: removed")
            told[name] = [str(reply)[:3] for reply in replies] + re.findall(
                rf"{match[1]}: ((?:from|to)=<.*?>),", postfix.log, re.MULTILINE)
    return told


def test_the_replies_are_equal(servers):
    alone = asked(servers.postfix, servers.alone)
    filtered = asked(servers.postfix, servers.filtered)
    assert sum(replies[-1].startswith("to=") for replies in alone.values()) > 100
    differ = {name: (alone[name], filtered[name]) for name in alone if alone[name] != filtered[name]}
    assert differ == {}
