"""One connection to a next server: when it may be used again."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator

import pytest
from sending_tools import next_server
from smtp_tools import certificate, run
from waiting import until

from mqcore.mail.smtp.outgoing import Client
from mqcore.mail.smtp.upstream import Health, Upstream
from mqcore.smtp.content import make_content

CONTENT = make_content(b"Subject: hello\n\nhello\n")


class Threaded:
    """A server in a thread: it takes one mail, and when it is told to, does something more while our loop stands still."""

    def __init__(self, more: Callable[[socket.socket], object], tls: ssl.SSLContext | None) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.more, self.tls = more, tls
        self.go, self.done, self.over = threading.Event(), threading.Event(), threading.Event()
        self.thread = threading.Thread(target=self.serve)
        self.thread.start()

    def serve(self) -> None:
        connection, _ = self.listener.accept()
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # what is said is there at once
        if self.tls is not None:
            connection = self.tls.wrap_socket(connection, server_side=True)
        with connection, connection.makefile("rb") as lines:
            connection.sendall(b"220 mx\r\n")
            for reply in (b"250 mx", b"250 ok", b"250 ok", b"354 go"):
                lines.readline()
                connection.sendall(reply + b"\r\n")
            while lines.readline() != b".\r\n":
                pass
            connection.sendall(b"250 queued\r\n")
            assert self.go.wait(30)
            self.more(connection)
            self.done.set()
            assert self.over.wait(30)


@contextlib.contextmanager
def threaded(more: Callable[[socket.socket], object], tls: ssl.SSLContext | None = None) -> Iterator[Threaded]:
    it = Threaded(more, tls)
    with it.listener:
        yield it
    it.go.set()
    it.over.set()
    it.thread.join(30)


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
@pytest.mark.parametrize(
    "more",
    [
        lambda connection: connection.sendall(b"550 and another thing\r\n"),
        lambda connection: connection.sendall(b"4"),
        lambda connection: connection.shutdown(socket.SHUT_RDWR),
    ],
    ids=["a reply", "an octet", "closed"],
)
@run
async def test_what_is_not_read_yet_is_not_taken_for_the_next_reply(more, tls):
    """It lies in the socket, where the loop has not looked."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate().file)
    with threaded(more, context if tls else None) as server:
        address = server.listener.getsockname()
        upstream = Upstream("smtp:", address, "me.example", implicit_tls=tls, tls=certificate().client if tls else None)
        client = await Client.connect(upstream, Health("smtp:"))
        try:
            replies = await client.send("", ["b@example.org"], CONTENT)
            assert replies["b@example.org"].is_delivered
            assert client.is_reusable
            server.go.set()
            assert server.done.wait(30)
            assert not client.is_reusable
        finally:
            client.close()


@run
async def test_a_reply_that_nobody_asked_for_ends_the_connection():
    async with next_server({"message": ["250 ok\r\n550 and another thing"]}) as server:
        client = await Client.connect(Upstream("smtp:", ("127.0.0.1", server.port), "me.example"), Health("smtp:"))
        assert (await client.send("", ["b@example.org"], CONTENT))["b@example.org"].is_delivered
        assert not client.is_reusable


@run
async def test_what_was_begun_and_left_is_not_used_again():
    async with next_server({"rcptto": ["silence"]}) as server:
        client = await Client.connect(Upstream("smtp:", ("127.0.0.1", server.port), "me.example"), Health("smtp:"))
        sending = asyncio.create_task(client.send("", ["b@example.org"], CONTENT))
        await server.silent.wait()
        sending.cancel()
        await asyncio.wait([sending])
        server.speak.set()
        await asyncio.sleep(0.01)
        assert not client.is_reusable and not client.is_in_doubt
        client.close()


@run
async def test_connecting_that_is_broken_off():
    async with next_server({"greeting": ["silence"]}) as server:
        connecting = asyncio.create_task(
            Client.connect(Upstream("smtp:", ("127.0.0.1", server.port), "me.example"), Health("smtp:"))
        )
        await server.silent.wait()
        connecting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await connecting
        server.speak.set()
        await until(lambda: not server.open)


@run
async def test_a_goodbye_that_is_broken_off():
    """As when a run is stopped while it looks at what the next server offers."""
    async with next_server({"quit": ["silence"]}) as server:
        client = await Client.connect(Upstream("smtp:", ("127.0.0.1", server.port), "me.example"), Health("smtp:"))
        leaving = asyncio.create_task(client.quit())
        await server.silent.wait()
        leaving.cancel()
        await asyncio.wait([leaving])
        assert client._transport.is_closing()


@run
async def test_a_server_that_does_not_reply_to_groups(monkeypatch):
    """The next connection asks one by one."""
    monkeypatch.setattr("mqcore.mail.smtp.outgoing.COMMAND_TIMEOUT", 0.1)
    async with next_server({"rcptto": ["silence"]}) as server:
        server.extensions = ["PIPELINING"]
        upstream, health = Upstream("smtp:", ("127.0.0.1", server.port), "me.example"), Health("smtp:")
        client = await Client.connect(upstream, health)
        with pytest.raises(Exception, match="timed out"):
            await client.send("", ["b@example.org"], CONTENT)
        assert not health.pipelining
        client = await Client.connect(upstream, health)
        assert (await client.send("", ["b@example.org"], CONTENT))["b@example.org"].is_delivered
        client.close()
