"""One connection to a broker: sockets, TLS and heartbeats, on top of `mqcore.amqp`."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import ssl
from collections.abc import Callable
from typing import Any, NamedTuple, Self, cast

from ...amqp.client import (
    ChannelClosed,
    ChannelOpened,
    ClientOptions,
    ClientProtocol,
    ConfirmSelected,
    ConnectionClosed,
    ConnectionOpened,
    ConsumeCancelled,
    ConsumeStarted,
    Delivery,
    Event,
    ExchangeDeclared,
    GetEmpty,
    Outcome,
    QosSet,
    QueueDeclared,
    QueueDeleted,
    QueuePurged,
)
from ...amqp.errors import ACCESS_REFUSED, NOT_ALLOWED, NOT_FOUND
from ..errors import speaks_no_tls
from ._link import Link

CONNECT_TIMEOUT = 10.0
"""Seconds until the broker has said that the connection is open."""
CLOSE_TIMEOUT = 5.0
ANSWER_TIMEOUT = 120.0
"""Seconds: a broker that is there, and has not answered a request by then, never will. It has tried for 65 by itself."""
HALF = 0.5
"""Of an interval, from one beat to the next, as a broker's clock and ours do not tick at once."""
SILENT_BEATS = 4
"""A broker that has said nothing for so many, two intervals, is dead. Beats, not seconds: while a plugin keeps the loop,
nothing is read."""

_REPLIES = (
    ChannelOpened,
    ConfirmSelected,
    ConsumeStarted,
    ExchangeDeclared,
    GetEmpty,
    QosSet,
    QueueDeclared,
    QueueDeleted,
    QueuePurged,
)


class Writable(NamedTuple):
    """What was published is on its way: more may be."""


class Address(NamedTuple):
    host: str
    port: int
    tls: ssl.SSLContext | None = None

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class BrokerError(Exception):
    """What the broker says, or what happened to the connection. `code`: a reply code of AMQP; `final`: trying again is no
    use."""

    def __init__(self, event: ConnectionClosed | ChannelClosed) -> None:
        super().__init__(event.text)
        self.code = event.code
        self.final = event.by_broker and event.code in (ACCESS_REFUSED, NOT_ALLOWED, NOT_FOUND)


class Unreachable(Exception):
    """There is no connection to the broker, or it cannot be used. `code`: what the broker said, if it did; `final`: trying
    again is no use."""

    def __init__(self, reason: str, cause: BrokerError | None = None, *, final: bool = False) -> None:
        super().__init__(reason)
        self.code = 0 if cause is None else cause.code
        self.final = final if cause is None else cause.final


class Connection(Link, asyncio.BufferedProtocol):
    """Made by `open`. `on_event` is called with what the broker says unasked, with `ConnectionClosed` last; `on_message` with
    deliveries and outcomes. All that is said in a turn of the loop is sent at its end.
    """

    def __init__(
        self, options: ClientOptions, on_event: Callable[[Event | Writable], object], on_message: Callable[[Any], object]
    ) -> None:
        self._loop = asyncio.get_running_loop()
        super().__init__(ClientProtocol(options), self._loop, on_message)
        self.server: dict[str, Any] = {}
        """What the broker says of itself."""
        self._on_event = on_event
        self._on_message = on_message
        self._transport: asyncio.Transport | None = None
        self._closed: asyncio.Future[None] = self._loop.create_future()
        self._waiting: dict[int, collections.deque[asyncio.Future[Any]]] = {0: collections.deque()}
        self._heartbeat: asyncio.TimerHandle | None = None
        self._interval = 0
        self._has_spoken = False
        self._is_paused = False
        self._lost = "the broker closed the connection"

    @classmethod
    async def open(
        cls,
        address: Address,
        options: ClientOptions,
        on_event: Callable[[Event | Writable], object],
        on_message: Callable[[Any], object] | None = None,
    ) -> Self:
        """`on_message`: hears deliveries and outcomes in place of `on_event`. Raises Unreachable."""
        loop = asyncio.get_running_loop()
        connection: Self | None = None
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT):
                _, connection = await loop.create_connection(
                    lambda: cls(options, on_event, on_message or on_event), address.host, address.port, ssl=address.tls,
                    server_hostname=address.host if address.tls else None,
                )  # fmt: skip
                await connection._wait(0)
        except BaseException as error:
            if connection is not None:
                connection.abort(str(error))
            if isinstance(error, BrokerError):
                raise Unreachable(f"{address}: {error}", error) from error
            if isinstance(error, TimeoutError):
                raise Unreachable(f"{address}: no answer within {CONNECT_TIMEOUT:g} s") from error
            if isinstance(error, ssl.SSLCertVerificationError):
                raise Unreachable(f"{address}: its certificate is not valid: {error.verify_message}", final=True) from error
            if isinstance(error, OSError):
                raise Unreachable(f"{address}: {error.strerror or error}{speaks_no_tls(error)}") from error
            raise
        return connection

    # What asyncio calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.flush()

    def pause_writing(self) -> None:
        self.is_writable = False

    def resume_writing(self) -> None:
        self.is_writable = True
        self._on_event(Writable())

    def connection_lost(self, error: Exception | None) -> None:
        if self._heartbeat is not None:
            self._heartbeat.cancel()
        if isinstance(error, OSError):
            self._lost = f"the connection broke: {error.strerror or error}"
        for event in self.protocol.lost(self._lost):
            self.hear(event)
        self._transport = None
        if not self._closed.done():
            self._closed.set_result(None)

    # What the broker says

    def hear(self, event: Event) -> None:
        if isinstance(event, _REPLIES) or (isinstance(event, ConsumeCancelled) and not event.by_broker):
            self._reply(event.channel, event)
        elif isinstance(event, ConnectionOpened):
            self.server = dict(event.server)
            self._begin_heartbeat(event.heartbeat)
            self._reply(0, event)
        elif isinstance(event, Delivery) and event.consumer_tag is None:
            self._reply(event.channel, event)
        elif isinstance(event, Outcome):  # with the end of its channel
            self._on_message(event)
        else:
            self._on_event(event)
            if isinstance(event, ChannelClosed):
                self._fail(event.channel, event)
            elif isinstance(event, ConnectionClosed):
                for channel in list(self._waiting):
                    self._fail(channel, event)
                self.flush()
                if self._transport is not None:
                    self._transport.close()
                    self._loop.call_later(CLOSE_TIMEOUT, self.abort, event.text)  # what is left may find no reader

    def _reply(self, channel: int, event: Event) -> None:
        waiting = self._waiting[channel].popleft()
        if not waiting.done():
            waiting.set_result(event)

    def _fail(self, channel: int, event: ChannelClosed | ConnectionClosed) -> None:
        for waiting in self._waiting.pop(channel, ()):
            if not waiting.done():
                waiting.set_exception(BrokerError(event))

    # Heartbeats

    def _begin_heartbeat(self, interval: int) -> None:
        self._interval = interval
        if interval:
            self._heartbeat = self._loop.call_later(interval * HALF, self._beat)

    def _beat(self) -> None:
        if not self._is_paused:  # else what it says waits for us
            self.silent_beats += 1
        if self.silent_beats > SILENT_BEATS:
            self.abort(f"the broker has said nothing for {SILENT_BEATS * self._interval // 2} s")
            return
        if not self._has_spoken:
            self.protocol.send_heartbeat()
            self.flush()
        self._has_spoken = False
        self._heartbeat = self._loop.call_later(self._interval * HALF, self._beat)

    def pause_reading(self) -> None:
        """As long as too much is held that it sent."""
        if not self._is_paused and self._transport is not None and not self._transport.is_closing():
            self._is_paused = True
            self._transport.pause_reading()

    def gather(self, size: int) -> None:
        """Take so many octets before it is not writable."""
        if self._transport is not None:
            self._transport.set_write_buffer_limits(size)

    def resume_reading(self) -> None:
        if self._is_paused and self._transport is not None:
            self._is_paused = False
            self.silent_beats = 0
            if not self._transport.is_closing():
                self._transport.resume_reading()

    # What is said to the broker

    def send(self, parts: list[bytes | memoryview]) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._has_spoken = True
            self._transport.writelines(parts)

    async def open_channel(self, *, confirms: bool = False) -> int:
        """Raises BrokerError."""
        channel = self.protocol.open_channel()
        self._waiting[channel] = collections.deque()
        await self._wait(channel)
        if confirms:
            await self.ask(channel, self.protocol.select_confirm)
        return channel

    async def ask(self, channel: int, request: Callable[..., None], *arguments: Any, **options: Any) -> Any:
        """Make a request of the protocol's on a channel, and return what the broker answers. Raises BrokerError."""
        request(channel, *arguments, **options)
        return await self._wait(channel)

    async def _wait(self, channel: int) -> Any:
        waiting = self._loop.create_future()
        self._waiting[channel].append(waiting)
        self.flush_soon()
        timer = self._loop.call_later(ANSWER_TIMEOUT, self._give_up, waiting)
        try:
            return await waiting
        finally:
            timer.cancel()

    def _give_up(self, waiting: asyncio.Future[Any]) -> None:
        if waiting.done():
            return
        if self._is_paused:  # the answer may be there, and waits for us
            self._loop.call_later(ANSWER_TIMEOUT, self._give_up, waiting)
        else:
            self.abort(f"the broker has left a request without an answer for {ANSWER_TIMEOUT:g} s")

    @property
    def is_open(self) -> bool:
        return self.protocol.is_open

    async def close(self) -> None:
        """In good order, if the broker does its part."""
        self.protocol.close()
        self.flush()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_TIMEOUT):
                await asyncio.shield(self._closed)
        self.abort("closed")

    def abort(self, reason: str) -> None:
        """Let go of it at once."""
        self._lost = reason
        if self._transport is not None:
            self._transport.abort()
