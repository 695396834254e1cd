"""The peers of the SMTP server, each a program that listens on 127.0.0.1 until it is stopped.

    python smtp_servers.py aiosmtpd PORT PLUGINS
    python smtp_servers.py uvloop PORT

*aiosmtpd* calls the same functions of the same plugins, in loops, at the same stages. *uvloop* is the least that a server in
Python can do: a protocol that takes every line for a command that is right, calls nothing, and says what it always says.
"""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import uvloop


def make_aiosmtpd(folder: str) -> Callable[[], asyncio.Protocol]:
    from aiosmtpd.smtp import SMTP

    modules = []
    for path in sorted(Path(folder).glob("*.py")):
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None and spec.loader is not None
        modules.append(importlib.util.module_from_spec(spec))
        spec.loader.exec_module(modules[-1])

    class Handler:
        async def handle_MAIL(self, server: Any, session: Any, envelope: Any, address: str, options: Any) -> str:  # noqa: N802
            for module in modules:
                module.mq_smtp_in_mailfrom(session, envelope, address)
            envelope.mail_from = address
            return "250 OK"

        async def handle_RCPT(self, server: Any, session: Any, envelope: Any, address: str, options: Any) -> str:  # noqa: N802
            for module in modules:
                module.mq_smtp_in_rcptto(session, envelope, address)
            envelope.rcpt_tos.append(address)
            return "250 OK"

        async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802
            for module in modules:
                module.mq_smtp_in_message(session, envelope)
            return "250 OK"

    return lambda: SMTP(Handler(), hostname="localhost")


class Floor(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport: Any = transport
        self.in_message = False
        self.transport.write(b"220 localhost ESMTP\r\n")

    def data_received(self, data: bytes) -> None:
        if self.in_message:
            if data.endswith(b"\r\n.\r\n"):
                self.in_message = False
                self.transport.write(b"250 OK\r\n")
        elif data == b"QUIT\r\n":
            self.transport.write(b"221 bye\r\n")
            self.transport.close()
        else:
            self.in_message = data.endswith(b"DATA\r\n")
            replies = b"250 OK\r\n" * (data.count(b"\n") - self.in_message)
            self.transport.write(replies + b"354 go on\r\n" if self.in_message else replies)


async def serve(make_protocol: Callable[[], asyncio.Protocol], port: int) -> None:
    server = await asyncio.get_running_loop().create_server(make_protocol, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    _, kind, port, *plugins = sys.argv
    uvloop.run(serve(make_aiosmtpd(*plugins) if kind == "aiosmtpd" else Floor, int(port)))
