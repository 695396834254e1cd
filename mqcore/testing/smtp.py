"""A server in memory, and clients that talk to it."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Callable
from typing import Any, Self

from .. import Dispatcher
from ..errors import MqError
from ..mail import Gateway, Mail, SmtpSource, SmtpsSource
from ..mail.smtp._connection import SmtpConnection
from ..mail.smtp.server import SmtpServer
from ..mail.timeline import add_tracer
from .memory import LONGEST, Failures, Nowhere, Reply, Stored, Transport
from .steps import Mq

HOSTNAME = "mx.example.org"


class SmtpDialogues:
    """Whole dialogues of SMTP clients with the real server, all of it but the sockets, on the clock of an `Mq`.

    `stored`: the mails that were accepted, as the plugins left them, in order. `failed`: why steps failed, as `HOOK: ERROR`,
    told when the transaction or connection is over.

    `close()` it before the `Mq`, or use `with`. On uvloop only. Other options than the defaults of `mqcore.mail.SmtpSource` are
    given as they are there, such as `max_message_size=1000`.
    """

    def __init__(self, mq: Mq, **options: Any) -> None:
        self._mq = mq
        self._options: dict[str, Any] = {"hostname": HOSTNAME} | options
        self._sink = Stored()
        self._failures = Failures()
        self._servers: dict[bool, SmtpServer] = {}
        self._gateway: Gateway | None = None
        self._serving: asyncio.Task[Any] | None = None
        self._clients: list[Client] = []

    @property
    def stored(self) -> list[Mail]:
        return self._sink.mails

    @property
    def failed(self) -> list[str]:
        return self._failures.errors

    def connect(self, peer: str = "192.0.2.7", tls: bool = False) -> Client:
        """A client from this address, with what the server said first in `client.greeting`. `tls`: it came by TLS, of which
        nothing else is there."""
        if self._gateway is None:
            self._mq.clock.run(self._begin(self._mq.dispatcher))
        client = Client(self._mq, self._servers[tls], peer)
        self._clients.append(client)
        return client

    async def _begin(self, dispatcher: Dispatcher) -> None:
        plain = SmtpSource("//memory", listening=Nowhere("smtp"), **self._options)
        self._gateway = Gateway(dispatcher, plain, self._sink)
        add_tracer(self._gateway, self._failures)
        self._serving = asyncio.create_task(self._gateway.run())
        secure = SmtpsSource("//memory", listening=Nowhere("smtp"), **self._options)
        self._servers = {False: SmtpServer(plain, self._gateway), True: SmtpServer(secure, self._gateway)}

    def close(self) -> None:
        """The clients go, and the server stops. More than once is fine."""
        while self._clients:
            self._clients.pop().drop()
        if self._gateway is not None and self._serving is not None:
            self._gateway.stop()
            self._mq.clock.run_until(self._serving.done)
            self._gateway = None
            self._serving.result()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class Client:
    """What an SMTP client says, and what it is answered: `greeting` is what the server said first."""

    def __init__(self, mq: Mq, server: SmtpServer, peer: str) -> None:
        self._mq = mq
        self._transport = Transport(peer)
        self._connection = SmtpConnection(server.host, peer)
        self._call(self._connection.connection_made, self._transport)
        self.greeting = self._reply()

    @property
    def is_closed(self) -> bool:
        """Whether the server has closed the connection."""
        return self._transport.is_closed

    def ehlo(self, name: str = "client.example.org") -> Reply:
        return self.say(f"EHLO {name}")

    def login(self, user: str, password: str) -> Reply:
        """By AUTH PLAIN."""
        return self.say("AUTH PLAIN " + base64.b64encode(f"\0{user}\0{password}".encode()).decode())

    def mail(self, sender: str = "sender@example.org", parameters: str = "") -> Reply:
        return self.say(f"MAIL FROM:<{sender}> {parameters}".rstrip())

    def rcpt(self, recipient: str = "recipient@example.net", parameters: str = "") -> Reply:
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
        mime = mail if isinstance(mail, bytes) else mail.mime
        lines = mime.replace(b"\r\n", b"\n").removesuffix(b"\n").split(b"\n")
        stuffed = (b"." + line if line.startswith(b".") else line for line in lines)
        self._send(b"\r\n".join([*stuffed, b".", b""]))

    def quit(self) -> Reply:
        return self.say("QUIT")

    def say(self, line: str) -> Reply:
        """Any command, and the reply to it, for which time passes. Raises AssertionError where none comes."""
        self._send(line.encode() + b"\r\n")
        return self._reply()

    def drop(self) -> None:
        """The connection is gone, without a word."""
        self._transport.is_closed = True
        self._call(self._connection.connection_lost, None)

    def _send(self, data: bytes) -> None:
        if self.is_closed:
            raise MqError("the server has closed the connection")
        self._call(self._connection.data_received, data)

    def _call(self, function: Callable[[Any], object], argument: object) -> None:
        """As the loop would."""
        self._mq.clock.loop.call_soon(function, argument)
        self._mq.clock.run_until_idle()

    def _reply(self) -> Reply:
        clock, written = self._mq.clock, self._transport.written
        end = clock.now + LONGEST
        clock.run_until(lambda: _length_of_reply(written) or self.is_closed or clock.now > end)
        length = _length_of_reply(written)
        assert length, "the server closed the connection, and gave no reply" if self.is_closed else "no reply came in a day"
        lines = bytes(written[:length]).decode(errors="replace").splitlines()
        del written[:length]
        if self._transport.closes and not written:
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
