"""Postfix and Sendmail as a source: `milter://HOST:PORT`, `milter:unix:PATH`. They ask about each mail before they take it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from ...smtp.limits import MAX_MESSAGE
from ..base import Option, Source
from ..listening import Listening
from .sink import MilterSink

if TYPE_CHECKING:
    import socket

    from .._gateway import Gateway
    from .server import MilterServer


class MilterSource(Source):
    """Sockets that listen for mail servers; a `MilterServer` does the rest.

    Mail stays with the server that asks, unless a sink takes it: see `MilterSink`.
    """

    finite = False
    has_waiting_client = True
    knows_recipients = True
    traces = False
    lenient = True
    ends_when = "the transactions that are open are over"
    own_sink = MilterSink
    options: ClassVar[Sequence[Option]] = (
        Option("max-message-size", "octets that a mail may have (default: 52428800)", "N", is_number=True),
        Option("max-connections", "clients that may be there at once (default: 20000)", "N", is_number=True),
    )
    _server: MilterServer | None = None

    def __init__(self, path: str, *, max_message_size: int = MAX_MESSAGE, max_connections: int | None = None) -> None:
        """`path` is `//HOST:PORT` or `unix:PATH`. `max_message_size` is in octets. Raises SourceError."""
        self.max_message_size = max_message_size
        self.max_connections = max_connections
        self._listening = Listening("milter", path)
        self.url = self._listening.url
        self.port = self._listening.port
        self.is_local = self._listening.is_local

    @property
    def listeners(self) -> Sequence[socket.socket]:
        return self._listening.listeners

    async def run(self, gateway: Gateway) -> None:
        from .server import MilterServer  # takes its time, which other places need not wait for

        self._server = MilterServer(self, gateway)
        if gateway.is_draining:
            self._server.stop()
        await self._server.run()

    def stop(self) -> None:
        if self._server is not None:
            self._server.stop()

    def cut(self) -> None:
        if self._server is not None:
            self._server.cut()

    def figures(self) -> dict[str, Any]:
        return {} if self._server is None else {"milter": self._server.figures()}

    def close(self) -> None:
        self._listening.close()
