"""A scripted server for plugins that ask one over TCP."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Any, Self

from .clock import Clock

Act = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Any]


class Peer:
    """A server on 127.0.0.1 that does what its script says, with each client anew: `expect`, `send`, `delay` and
    `close_connection`, in the order in which they were called. When the script is over, the connection stays open until the
    client closes it.

        peer.expect(b"PING\\r\\n").delay(5).send(b"PONG\\r\\n")
        ... connect to peer.host, peer.port

    Delays are those of the test's clock. What a client sent that was not expected is an AssertionError of `check`, which
    `close` calls. On uvloop only.
    """

    host = "127.0.0.1"

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._script: list[Act] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self.received: list[bytes] = []
        """What was expected, and came, of all clients."""
        self.problems: list[str] = []
        self.clients = 0
        """How many there were."""
        self._server: asyncio.Server | None = clock.run(self._listen())
        self.port: int = self._server.sockets[0].getsockname()[1] if self._server is not None else 0

    async def _listen(self) -> asyncio.Server:
        return await asyncio.start_server(self._serve, sock=socket.create_server((self.host, 0)))

    # The script

    def expect(self, data: bytes) -> Self:
        """The client sends exactly this."""

        async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                came = await reader.readexactly(len(data))
            except asyncio.IncompleteReadError as error:
                came = error.partial
            if came != data:
                raise AssertionError(f"the peer expected {data!r}, and {came!r} came")
            self.received.append(came)

        return self._then(act)

    def send(self, data: bytes) -> Self:
        """The client is sent this."""

        async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(data)
            await writer.drain()

        return self._then(act)

    def delay(self, seconds: float) -> Self:
        """So much time passes, of the test's clock."""

        async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await asyncio.sleep(seconds)

        return self._then(act)

    def close_connection(self) -> Self:
        """The connection is closed."""

        async def act(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.close()

        return self._then(act)

    def _then(self, act: Act) -> Self:
        self._script.append(act)
        return self

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.clients += 1
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            for act in tuple(self._script):
                await act(reader, writer)
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
        """`check()`, and listen no more. More than once is fine."""
        if self._server is None:
            return
        server, self._server = self._server, None
        try:
            self.check()
        finally:
            server.close()
            for task in tuple(self._tasks):
                task.cancel()
            self._clock.run_until_idle()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()
