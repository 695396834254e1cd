"""What whole dialogues in memory are made of: what is in the place of sockets, and of a place for mail."""

from __future__ import annotations

import asyncio
import socket
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple, Self, cast

from .. import FAIL, Dispatcher
from ..errors import MqError
from ..mail import Connection, Gateway, Mail, Sink, Verdict
from ..mail.listening import Listening
from ..mail.timeline import Timeline, Tracer, add_tracer
from .steps import Mq

PORT = 40_000
"""Of each client."""
LONGEST = 86_400.0
"""Seconds of the clock that a reply is waited for."""


class Reply(NamedTuple):
    """What the server says. `text`: without the code, and of several lines with line ends between them."""

    code: int
    text: str

    def __str__(self) -> str:
        return f"{self.code} {self.text}"


class Nowhere(Listening):
    """In the place of sockets."""

    def __init__(self, scheme: str) -> None:
        self.url = f"{scheme}://memory"
        self.port = 0

    @property
    def listeners(self) -> list[socket.socket]:
        return []

    def close(self) -> None:
        """There is nothing to close."""


class Stored(Sink):
    """Keeps what it gets."""

    url = "memory:"

    def __init__(self) -> None:
        self.mails: list[Mail] = []

    async def deliver(self, mails: Sequence[Mail]) -> list[Verdict]:
        self.mails += mails
        return [Verdict.accepted()] * len(mails)


class Failures(Tracer):
    """Why steps failed, as `HOOK: ERROR`."""

    def __init__(self) -> None:
        self.errors: list[str] = []

    def wants_from_connect(self, connection: Connection, id: str) -> bool:
        return True

    def wants(self, connection: Connection | None, id: str) -> bool:
        return True

    def ended(self, timeline: Timeline) -> None:
        failed = (step for step in timeline.steps if step.trace.outcome is FAIL)
        self.errors += [f"{step.hook}: {step.trace.error}" for step in failed]


class Transport(asyncio.Transport):
    """What the connection writes to."""

    def __init__(self, peer: str) -> None:
        super().__init__({"peername": (peer, PORT), "sockname": ("192.0.2.25", 25)})
        self.written = bytearray()
        self.closes = False
        self.is_closed = False

    def write(self, data: Any) -> None:
        self.written += cast("bytes", data)

    def close(self) -> None:
        self.closes = True

    def abort(self) -> None:
        self.closes = self.is_closed = True

    def is_closing(self) -> bool:
        return self.closes

    def pause_reading(self) -> None:
        """What is sent to it waits in the protocol."""

    def resume_reading(self) -> None:
        """See there."""


class Dialogues(ABC):
    """A server on the clock of an `Mq`, all of it but the sockets, from the first client until `close`."""

    def __init__(self, mq: Mq) -> None:
        self._mq = mq
        self._failures = Failures()
        self._gateway: Gateway | None = None
        self._serving: asyncio.Task[Any] | None = None
        self._clients: list[Dialogue] = []

    @abstractmethod
    def _serve(self, dispatcher: Dispatcher) -> Gateway:
        """Make the server; called on the loop."""

    @property
    def failed(self) -> list[str]:
        """Why steps failed, as `HOOK: ERROR`."""
        return self._failures.errors

    def _begin(self) -> None:
        """Unless there is a server already."""

        async def begin(dispatcher: Dispatcher) -> None:
            self._gateway = self._serve(dispatcher)
            add_tracer(self._gateway, self._failures)
            self._serving = asyncio.create_task(self._gateway.run())

        if self._gateway is None:
            self._mq.clock.run(begin(self._mq.dispatcher))

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


class Dialogue:
    """A connection to a server in memory."""

    who: ClassVar[str]
    """What the other side is called."""

    def __init__(self, mq: Mq, protocol: Any, peer: str) -> None:
        self._mq = mq
        self._protocol = protocol
        self._transport = Transport(peer)
        self._call(protocol.connection_made, self._transport)

    @property
    def is_closed(self) -> bool:
        """Whether the other side has closed the connection."""
        return self._transport.is_closed

    def drop(self) -> None:
        """The connection is gone, without a word."""
        self._transport.is_closed = True
        self._call(self._protocol.connection_lost, None)

    def _send(self, data: bytes) -> None:
        if self.is_closed:
            raise MqError(f"the {self.who} has closed the connection")
        self._call(self._protocol.data_received, data)

    def _call(self, function: Callable[[Any], object], argument: object) -> None:
        """As the loop would."""
        self._mq.clock.loop.call_soon(function, argument)
        self._mq.clock.run_until_idle()

    def _wait(self, size: Callable[[bytearray], int]) -> bytes:
        """What the other side says next, for which time passes. `size`: of that, in what was written; 0 if it is not whole yet.
        Raises AssertionError where nothing comes."""
        clock, written = self._mq.clock, self._transport.written
        end = clock.now + LONGEST
        clock.run_until(lambda: size(written) or self.is_closed or clock.now > end)
        whole = size(written)
        assert whole, f"the {self.who} closed the connection, and said nothing" if self.is_closed else "nothing came in a day"
        said = bytes(written[:whole])
        del written[:whole]
        return said
