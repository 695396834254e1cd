"""A server in memory, and clients that talk to it."""

from __future__ import annotations

import base64
from typing import Any

from .. import Dispatcher
from ..mail import Gateway, Mail, SmtpSource, SmtpsSource
from ..mail.smtp._connection import SmtpConnection
from ..mail.smtp.server import SmtpServer
from .mail import bytes_of
from .memory import Dialogue, Dialogues, Nowhere, Reply, Stored
from .steps import Mq

HOSTNAME = "mx.example.org"


class SmtpDialogues(Dialogues):
    """Whole dialogues of SMTP clients with the real server, all of it but the sockets, on the clock of an `Mq`.

    `stored`: the mails that were accepted, as the plugins left them, in order. `failed`: why steps failed, as `HOOK: ERROR`,
    told when the transaction or connection is over.

    `close()` it before the `Mq`, or use `with`: the clients go then, and what a mail came to is settled. On uvloop only. Other
    options than the defaults of `mqcore.mail.SmtpSource` are given as they are there, such as `max_message_size=1000`; what is
    wrong with them, that source raises when the first client connects.
    """

    def __init__(self, mq: Mq, **options: Any) -> None:
        super().__init__(mq)
        self._options: dict[str, Any] = {"hostname": HOSTNAME} | options
        self._sink = Stored()
        self._servers: dict[bool, SmtpServer] = {}

    @property
    def stored(self) -> list[Mail]:
        """The mails that were accepted, as the plugins left them, in order."""
        return self._sink.mails

    def connect(self, peer: str = "192.0.2.7", tls: bool = False) -> Client:
        """A client from this address, with what the server said first in `client.greeting`. `tls`: it came by TLS, of which
        nothing else is there."""
        self._begin()
        client = Client(self._mq, self._servers[tls], peer)
        self._clients.append(client)
        return client

    def _serve(self, dispatcher: Dispatcher) -> Gateway:
        plain = SmtpSource("//memory", listening=Nowhere("smtp"), **self._options)
        secure = SmtpsSource("//memory", listening=Nowhere("smtp"), **self._options)
        gateway = Gateway(dispatcher, plain, self._sink)
        self._servers = {False: SmtpServer(plain, gateway), True: SmtpServer(secure, gateway)}
        return gateway


class Client(Dialogue):
    """What an SMTP client says, and what it is answered, each a `Reply`: `greeting` is what the server said first. Of
    `SmtpDialogues.connect`, and until that is closed.

    What is sent raises MqError when the server has closed the connection, and AssertionError when no reply comes in a day of
    the test's clock.
    """

    who = "server"

    def __init__(self, mq: Mq, server: SmtpServer, peer: str) -> None:
        super().__init__(mq, SmtpConnection(server.host, peer), peer)
        self.greeting = self._reply()

    def ehlo(self, name: str = "client.example.org") -> Reply:
        """EHLO, by which it says who it is."""
        return self.say(f"EHLO {name}")

    def login(self, user: str, password: str) -> Reply:
        """By AUTH PLAIN."""
        return self.say("AUTH PLAIN " + base64.b64encode(f"\0{user}\0{password}".encode()).decode())

    def mail(self, sender: str = "sender@example.org", parameters: str = "") -> Reply:
        """MAIL: who it is from, `""` for a bounce. `parameters`: what stands behind that, as `SIZE=1000`."""
        return self.say(f"MAIL FROM:<{sender}> {parameters}".rstrip())

    def rcpt(self, recipient: str = "recipient@example.net", parameters: str = "") -> Reply:
        """RCPT: to whom; once for each recipient."""
        return self.say(f"RCPT TO:<{recipient}> {parameters}".rstrip())

    def data(self, mail: Mail | bytes = b"Subject: test\r\n\r\ntest\r\n") -> Reply:
        """The message: what the server says to DATA if that is no 354, and else to what follows."""
        reply = self.say("DATA")
        if reply.code != 354:
            return reply
        self.send_data(mail)
        return self._reply()

    def send_data(self, mail: Mail | bytes) -> None:
        """The message, with the dot at its end, and do not wait for the reply, as for a client that goes then."""
        lines = bytes_of(mail).replace(b"\r\n", b"\n").removesuffix(b"\n").split(b"\n")
        stuffed = (b"." + line if line.startswith(b".") else line for line in lines)
        self._send(b"\r\n".join([*stuffed, b".", b""]))

    def quit(self) -> Reply:
        """QUIT, after which the server closes the connection."""
        return self.say("QUIT")

    def say(self, line: str) -> Reply:
        """Any command, and the reply to it, for which time passes. Raises AssertionError where none comes."""
        self._send(line.encode() + b"\r\n")
        return self._reply()

    def _reply(self) -> Reply:
        lines = self._wait(_length_of_reply).decode(errors="replace").splitlines()
        if self._transport.closes and not self._transport.written:
            self.drop()
        return Reply(int(lines[0][:3]), "\n".join(line[4:] for line in lines))


def _length_of_reply(written: bytearray) -> int:
    """Of the first reply, 0 if it is not whole yet."""
    at = 0
    while (end := written.find(b"\r\n", at)) >= 0:
        if written[at + 3 : at + 4] != b"-":
            return end + 2
        at = end + 2
    return 0
