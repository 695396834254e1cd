"""What whole dialogues in memory are made of: what is in the place of sockets, and of a place for mail."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sequence
from typing import Any, NamedTuple, cast

from .. import FAIL
from ..mail import Connection, Mail, Sink, Verdict
from ..mail.listening import Listening
from ..mail.timeline import Timeline, Tracer

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
