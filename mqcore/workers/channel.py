"""What supervisor and worker say to each other, on a socketpair: a JSON object a line."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable
from typing import Any, cast

Said = dict[str, Any]


class Channel(asyncio.Protocol):
    """One end. `heard` is called with each object, and `gone` once, when the other process is gone or has closed its end."""

    def __init__(self, heard: Callable[[Said], object], gone: Callable[[], object]) -> None:
        self._heard = heard
        self._gone = gone
        self._rest: list[bytes] = []
        self._transport: asyncio.WriteTransport | None = None
        self._early: list[bytes] = []
        """What was said before there was a loop's transport."""

    async def open(self, end: socket.socket) -> None:
        """From now on it hears; `end` belongs to it."""
        await asyncio.get_running_loop().create_unix_connection(lambda: self, sock=end)

    def say(self, **said: Any) -> None:
        """Also when nobody hears it any more."""
        line = json.dumps(said, separators=(",", ":")).encode() + b"\n"
        if self._transport is None:
            self._early.append(line)
        elif not self._transport.is_closing():
            self._transport.write(line)

    def close(self) -> None:
        """What was said is still sent."""
        if self._transport is not None:
            self._transport.close()

    # What the loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.WriteTransport, transport)
        for line in self._early:
            self._transport.write(line)
        self._early.clear()

    def data_received(self, data: bytes) -> None:
        *lines, rest = data.split(b"\n")
        for line in lines:
            self._rest.append(line)
            whole = b"".join(self._rest)
            self._rest.clear()
            self._heard(json.loads(whole))
        self._rest.append(rest)

    def connection_lost(self, error: Exception | None) -> None:
        self._gone()
