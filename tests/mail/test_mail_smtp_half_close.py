"""Clients that close their own side and wait for replies, as Exim does after the final dot and QUIT."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
from collections.abc import Callable
from typing import Any

import pytest
from smtp_tools import ALL, EHLO, OPEN, TEXT, Holds, certificate, codes, run, serving


@pytest.mark.parametrize("stage", ["connect", "mailfrom", "rcptto", "data", "message"])
@run
async def test_whole_commands_and_a_whole_message_are_answered(stage):
    holds = Holds(stage)
    async with serving({"10-hold": holds}) as it:
        client = await it.connect()
        client.send(ALL + b"QUIT\r\n")
        client.half_close()
        await it.until(lambda: holds.held)
        holds.release()
        assert codes([await client.reply() for _ in range(7)])[-2:] == ["250 2.6.0", "221 2.0.0"]
        assert await client.is_closed()
        assert len(it.sink.mails) == 1


@run
async def test_what_is_being_stored_is_answered():
    async with serving() as it:
        it.sink.gate.clear()
        client = await it.opened()
        client.send(TEXT + b".\r\nQUIT\r\n")
        client.half_close()
        await it.until(it.sink.waits.is_set)
        await asyncio.sleep(0.01)
        it.sink.gate.set()
        assert codes([await client.reply(), await client.reply()]) == ["250 2.6.0", "221 2.0.0"]
        assert await client.is_closed()
    assert it.gateway.report.counts.unanswered == 0


@pytest.mark.parametrize("sent", [b"", b"NOO", OPEN.removeprefix(EHLO) + TEXT, OPEN.removeprefix(EHLO) + TEXT + b".\r"])
@run
async def test_what_is_not_whole_is_dropped(sent):
    holds = Holds("secure")
    async with serving({"10-close": holds}) as it:
        client = await it.greeted()
        client.send(sent)
        client.half_close()
        assert await client.is_closed()
        await it.until(lambda: holds.closed and not it.server.host.connections)
        assert it.sink.mails == []
        assert it.gateway.report.counts.read == 0


@run
async def test_commands_that_wait_for_a_client_that_does_not_read():
    async with serving() as it:
        client = await it.greeted()
        client.send(b"NOOP\r\n" * 90 + ALL.removeprefix(EHLO) + b"QUIT\r\n")
        client.half_close()
        assert codes([await client.reply() for _ in range(95)])[-2:] == ["250 2.6.0", "221 2.0.0"]


@run
async def test_a_client_that_is_gone_is_noticed_when_the_reply_cannot_be_written():
    holds = Holds("message")
    async with serving({"10-hold": holds}) as it:
        client = await it.greeted()
        client.send(ALL.removeprefix(EHLO))
        await it.until(lambda: holds.held)
        for code in ("250", "250", "354"):  # what a client has not read when it closes makes a reset of it
            assert (await client.reply()).startswith(code)
        client.writer.close()
        await asyncio.sleep(0.01)
        assert not holds.closed
        holds.release()
        await it.until(lambda: not it.server.host.connections)
        assert len(it.sink.mails) == 1


class TlsClient:
    """Whose side of TLS can be closed while the other is open, which `ssl.SSLSocket` does not do."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), 20)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = certificate().client.wrap_bio(self._incoming, self._outgoing, server_hostname="localhost")
        self._do(self._tls.do_handshake)

    def _do(self, step: Callable[[], Any]) -> Any:
        while True:
            try:
                result = step()
            except ssl.SSLWantReadError:
                self._socket.sendall(self._outgoing.read())
                self._incoming.write(self._socket.recv(1 << 16))
            else:
                self._socket.sendall(self._outgoing.read())
                return result

    def ask(self, data: bytes) -> bytes:
        self._do(lambda: self._tls.write(data))
        return self.reply()

    def reply(self) -> bytes:
        return self._do(lambda: self._tls.read(4096))

    def send(self, data: bytes) -> None:
        self._do(lambda: self._tls.write(data))

    def half_close(self) -> None:
        with contextlib.suppress(ssl.SSLWantReadError):
            self._tls.unwrap()
        self._socket.sendall(self._outgoing.read())

    def close(self) -> None:
        self._socket.close()


@run
async def test_under_tls():
    """The message is read before it is known that the client closes its side."""

    def talk(port: int) -> bytes:
        with contextlib.closing(TlsClient(port)) as client:
            client.reply()
            for command in OPEN.splitlines(keepends=True):
                client.ask(command)
            client.send(TEXT + b".\r\nQUIT\r\n")
            assert storing.wait(60)
            client.half_close()
            gate.set()
            replies = client.reply()
            return replies if b"221" in replies else replies + client.reply()

    storing = threading.Event()
    async with serving(tls="implicit") as it:
        gate = it.sink.gate
        gate.clear()
        it.sink.waits = storing
        replies = (await asyncio.to_thread(talk, it.port)).decode().splitlines()
        assert codes(replies) == ["250 2.6.0", "221 2.0.0"]
    assert it.gateway.report.counts.unanswered == 0
