"""A real Postfix and a real Sendmail that ask our plugins as milters do, and send what they took to a server of ours."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from cli_tools import need
from partner_servers import Postfix, Sendmail
from senders import unpacked
from smtp_tools import Client, ListSink, serving
from waiting import until

import mqcore
from mqcore.mail import FailedSink, Gateway, Mail
from mqcore.mail.milter.sink import MilterSink
from mqcore.mail.milter.source import MilterSource
from mqcore.milter.edits import join, split


def need_postfix() -> None:
    """To be asked by a fixture, as within a loop nothing can be skipped."""
    if os.geteuid() != 0:
        pytest.skip("Postfix is started by root")
    need("postfix")


def need_sendmail() -> None:
    unpacked("usr/libexec/sendmail/sendmail")
    need("m4")


async def send(client: Client, mime: bytes, *recipients: str, sender: str = "<a@sender.example>") -> str:
    """The reply that ends the transaction; if all recipients are refused, what the last was told."""
    reply = await client.ask(f"MAIL FROM:{sender}\r\n".encode())
    taken = False
    for recipient in (recipients or ("b@example.org",)) if reply.startswith("250") else ():
        reply = await client.ask(f"RCPT TO:<{recipient}>\r\n".encode())
        taken |= reply.startswith("250")
    if not taken:
        await client.ask(b"RSET\r\n")
        return reply
    assert (await client.ask(b"DATA\r\n")).startswith("354")
    return await client.ask((b"\r\n" + mime).replace(b"\r\n.", b"\r\n..")[2:] + b".\r\n")


class Asking:
    """A mail server that asks our plugins, and sends what it took to `arrived`."""

    def __init__(self, gateway: Gateway, server: Any, arrived: ListSink, aside: ListSink) -> None:
        self.gateway, self.server, self.arrived, self.aside = gateway, server, arrived, aside

    async def connect(self) -> Client:
        return Client(*await asyncio.open_connection("127.0.0.1", self.server.port))

    @contextlib.asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        client = await self.connect()
        try:
            assert (await client.reply()).startswith("220")
            assert (await client.ask(b"EHLO client.example\r\n")).startswith("250")
            yield client
        finally:
            client.leave()

    async def until_arrived(self, count: int) -> None:
        await until(lambda: len(self.arrived.mails) >= count)


@contextlib.asynccontextmanager
async def listening(
    plugins: tuple[Any, ...],
    *,
    failed: bool = False,
    sink: Any = None,
    where: str = "//127.0.0.1:0",
    hold_timeout: float = 30.0,
) -> AsyncIterator[tuple[Gateway, MilterSource, ListSink]]:
    """Our milter, and where it sets mails aside."""
    loaded = mqcore.Plugins()
    for number, one in enumerate(plugins):
        loaded.add(f"{number}0-test", one)
    with mqcore.Dispatcher(loaded, hold_timeout=hold_timeout) as dispatcher, contextlib.closing(MilterSource(where)) as source:
        aside = ListSink()
        gateway = Gateway(dispatcher, source, sink or MilterSink(source.url), FailedSink(aside, source.url) if failed else None)
        running = asyncio.create_task(gateway.run())
        try:
            yield gateway, source, aside
        finally:
            gateway.stop()
            await running


@contextlib.asynccontextmanager
async def asking_postfix(
    folder: Path,
    *plugins: Any,
    failed: bool = False,
    sink: Any = None,
    where: str = "//127.0.0.1:0",
    hold_timeout: float = 30.0,
    **settings: str,
) -> AsyncIterator[Asking]:
    """`settings`: more lines of its main.cf."""
    async with (
        serving(no_trace=True, max_loops=100) as arrived,
        listening(plugins, failed=failed, sink=sink, where=where, hold_timeout=hold_timeout) as (gateway, source, aside),
    ):
        asked = f"inet:127.0.0.1:{source.port}" if source.port else where
        settings = {
            "smtpd_milters": f"{{ {asked}, default_action=tempfail }}",
            "relayhost": f"[127.0.0.1]:{arrived.port}",
            "local_header_rewrite_clients": "",
        } | settings
        postfix = Postfix(folder / "postfix", **settings)
        await asyncio.to_thread(postfix.__enter__)
        try:
            yield Asking(gateway, postfix, arrived.sink, aside)
        finally:
            await asyncio.to_thread(postfix.__exit__, None, None, None)


@contextlib.asynccontextmanager
async def asking_sendmail(folder: Path, *plugins: Any, failed: bool = False, **options: str) -> AsyncIterator[Asking]:
    """`options` are those of a Sendmail."""
    async with (
        serving(no_trace=True, max_loops=100) as arrived,
        listening(plugins, failed=failed) as (gateway, source, aside),
    ):
        sendmail = Sendmail(folder / "sendmail", source.port or 0, arrived.port, **options)
        await asyncio.to_thread(sendmail.__enter__)
        try:
            yield Asking(gateway, sendmail, arrived.sink, aside)
        finally:
            await asyncio.to_thread(sendmail.__exit__)


def delivered(mail: Mail) -> bytes:
    """What Postfix delivered, without the line that it put on top."""
    fields, body = split(mail.origin.mime)
    assert fields[0][0] == b"Received"
    return join(fields[1:], body)
