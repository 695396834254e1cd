"""A scripted server for plugins that ask one over TCP."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

from .clock import Clock

MOST = 65_536
"""Octets that are read at once."""


@dataclass
class _Client:
    """`unread`: what came, and no `expect` has taken yet."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    unread: bytearray = field(default_factory=bytearray)


class _Act(NamedTuple):
    """`expected`: what has to come, None where nothing has to."""

    run: Callable[[_Client], Coroutine[Any, Any, None]]
    expected: bytes | None


class Peer:
    """A server on 127.0.0.1 that does what its script says: `expect`, `send`, `delay` and `close_connection`, in the order in
    which they were called. The script is played anew, from its beginning, for each client. When it is over, the connection
    stays open until the client closes it.

        peer.expect(b"PING\\r\\n").delay(5).send(b"PONG\\r\\n")
        ... connect to peer.host, peer.port

    Delays are in seconds of the test's clock. `check`, which `close` calls, raises AssertionError for what came and was not
    expected; `close` also for a script that nobody began, and for what was expected and no client sent. For the thread of the
    clock, which has to be one of uvloop. `close()` it before the clock, or use `with`.
    """

    host = "127.0.0.1"
    """Where it listens, at the port `port`."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._script: list[_Act] = []
        self._furthest = 0  # that any client came in the script
        self._tasks: set[asyncio.Task[None]] = set()
        self.received: list[bytes] = []
        """What was expected, and came, of all clients."""
        self.problems: list[str] = []
        self.clients = 0
        """How many there were."""
        self.must_be_asked = True
        """Whether `close` tells of what was expected and never came. Set it to False where a plugin may also not ask, or is to
        go before it does."""
        self._server: asyncio.Server | None = clock.run(self._listen())
        self.port: int = self._server.sockets[0].getsockname()[1] if self._server is not None else 0

    async def _listen(self) -> asyncio.Server:
        return await asyncio.start_server(self._serve, sock=socket.create_server((self.host, 0)))

    # The script

    def expect(self, data: bytes) -> Self:
        """The client sends exactly this: these bytes, in any pieces, and the next `expect` begins with the byte after them."""
        _refuse_all_but_bytes("expect", data)

        async def act(client: _Client) -> None:
            while len(client.unread) < len(data) and data.startswith(client.unread):
                came = await client.reader.read(MOST)
                if not came:
                    raise AssertionError(f"the peer expected {data!r}, and {bytes(client.unread)!r} came, and then the end")
                client.unread += came
            if not client.unread.startswith(data):
                raise AssertionError(f"the peer expected {data!r}, and {bytes(client.unread)!r} came")
            del client.unread[: len(data)]
            self.received.append(data)

        return self._then(act, data)

    def send(self, data: bytes) -> Self:
        """The client is sent this."""
        _refuse_all_but_bytes("send", data)

        async def act(client: _Client) -> None:
            client.writer.write(data)
            await client.writer.drain()

        return self._then(act)

    def delay(self, seconds: float) -> Self:
        """So much time passes, of the test's clock."""
        if not isinstance(seconds, int | float):
            raise TypeError(f"delay() takes seconds, a number, not {seconds!r}")

        async def act(client: _Client) -> None:
            await asyncio.sleep(seconds)

        return self._then(act)

    def close_connection(self) -> Self:
        """The connection is closed."""

        async def act(client: _Client) -> None:
            client.writer.close()

        return self._then(act)

    def _then(self, run: Callable[[_Client], Coroutine[Any, Any, None]], expected: bytes | None = None) -> Self:
        self._script.append(_Act(run, expected))
        return self

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.clients += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            client = _Client(reader, writer)
            for place, act in enumerate(tuple(self._script), 1):
                await act.run(client)
                self._furthest = max(self._furthest, place)
            await reader.read()
        except AssertionError as error:
            self.problems.append(str(error))
        except (ConnectionError, asyncio.CancelledError):
            pass  # the client, or the test, is gone
        finally:
            self._tasks.discard(task)
            writer.close()

    # The end

    def check(self) -> None:
        """Raises AssertionError when something came that was not expected."""
        self._clock.run_until_idle()
        if self.problems:
            raise AssertionError("\n".join(self.problems))

    def close(self) -> None:
        """`check()`, also of what never came, and listen no more. More than once is fine; what is done then is nothing."""
        if self._server is None:
            return
        server, self._server = self._server, None
        try:
            self.check()
            if self.must_be_asked and (missing := self._missing()):
                raise AssertionError(f"{missing}; if that is right, set must_be_asked = False")
        finally:
            server.close()
            for task in tuple(self._tasks):
                task.cancel()
            self._clock.run_until_idle()

    def _missing(self) -> str | None:
        """What no client did."""
        if self._script and not self.clients:
            return "nobody connected to the peer, which has a script"
        for act in self._script[self._furthest :]:
            if act.expected is not None:
                return f"the peer expected {act.expected!r}, which never came"
        return None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _refuse_all_but_bytes(name: str, data: object) -> None:
    if not isinstance(data, bytes):
        hint = f"; write {name}({data.encode()!r})" if isinstance(data, str) else ""
        raise TypeError(f"{name}() takes bytes, as they are on the wire, not {data!r}{hint}")
