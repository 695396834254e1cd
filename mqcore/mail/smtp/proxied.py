"""What a balancer says of a client before that is heard."""

from __future__ import annotations

import asyncio
import socket

from ...smtp.proxy import MAX_REST, ProxyError, ProxyReader

TIMEOUT = 5.0
"""Seconds for the header."""


async def read_header(loop: asyncio.AbstractEventLoop, client: socket.socket) -> str | None:
    """The client's address by its PROXY header, of which nothing is left in the socket, and nothing else was taken; empty if
    the header does not say. None if the balancer left without a word. Raises ProxyError."""
    reader = ProxyReader()
    try:
        async with asyncio.timeout(TIMEOUT):
            while not reader.done:
                await _wait(loop, client)
                text = client.recv(16 + MAX_REST, socket.MSG_PEEK)
                if not text and not reader.has_begun:
                    return None
                if not text:
                    raise ProxyError("the connection ended within it")
                client.recv(reader.feed(text))
    except TimeoutError:
        raise ProxyError(f"it did not come within {TIMEOUT:g} s") from None
    return reader.address


async def _wait(loop: asyncio.AbstractEventLoop, client: socket.socket) -> None:
    """Until something can be read."""
    ready = asyncio.Event()
    loop.add_reader(client, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(client)
