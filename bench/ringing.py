"""Bytes that pass through sockets: each place reads one when its loop says that it is there.

In a *ring* one byte goes round: each place writes it on to the next. *At once* all places get one, and read it; so often
that it is of no account what it costs to start and stop the loop.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from typing import Any

import gevent
import gevent.hub
import picows
import pyuv
import uvloop.loop
from building import build
from subjects import PASSES_ON, Subject, functions_of

import mqcore

floor = build("_floor_loop")
TIMES = 10
Pair = tuple[socket.socket, socket.socket]


def tcp_pair() -> Pair:
    """The two ends of a connection over TCP."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        pair = socket.create_connection(listener.getsockname()), listener.accept()[0]
    for end in pair:
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return pair


class Ring:
    """Two places or more. All ways but the floor call the same callback with the same arguments."""

    def __init__(self, loop: Any, places: int, count: int, connect: Callable[[], Pair] = socket.socketpair) -> None:
        """`count`: how often the byte is passed on in a round; 0: all places get one at once, TIMES times."""
        self.loop = loop
        self.count = count
        self.left = 0
        self.times = 0
        self.pairs = [connect() for _ in range(places)]
        for pair in self.pairs:
            for end in pair:
                end.setblocking(False)
        writers = [pair[0].fileno() for pair in self.pairs]
        readers = [pair[1].fileno() for pair in self.pairs]
        self.places = tuple(zip(readers, writers[1:] + writers[:1], strict=True))
        self.callback = self.pass_on if count else self.take
        self.open()

    def open(self) -> None:
        """Watch the sockets."""

    def close(self) -> None:
        """Close all."""
        for pair in self.pairs:
            for end in pair:
                end.close()

    def pass_on(self, watcher: Any, events: int, reads: int, writes: int) -> None:
        """The callback of a ring. It begins with what mqcore passes to each."""
        byte = os.read(reads, 1)
        self.left -= 1
        if self.left:
            os.write(writes, byte)
        else:
            self.loop.stop()

    def take(self, watcher: Any, events: int, reads: int, writes: int) -> None:
        """The callback where all have a byte at once."""
        os.read(reads, 1)
        self.left -= 1
        if not self.left:
            self.times -= 1
            if self.times:
                self.write_all()
            else:
                self.loop.stop()

    def write_all(self) -> None:
        """Give a byte to each place."""
        self.left = len(self.places)
        floor.write_all(self.places)

    def start(self) -> None:
        """Write what is to be read."""
        if self.count:
            self.left = self.count
            os.write(self.places[-1][1], b"x")
        else:
            self.times = TIMES
            self.write_all()

    def round(self) -> None:
        """All of it."""
        self.start()
        self.loop.run_forever()


class ByEpoll(Ring):
    """The floor: epoll, read and write from C."""

    def open(self) -> None:
        """An epoll of its own."""
        floor.open_epoll(self.places)

    def round(self) -> None:
        """All of it, where a ring has no other start."""
        if self.count:
            floor.pass_on(self.count)
        else:
            for _ in range(TIMES):
                self.write_all()
                floor.take_all()

    def close(self) -> None:
        """Close the epoll first."""
        floor.close_epoll()
        super().close()


class ByMqcore(Ring):
    """`context.watch`."""

    def open(self) -> None:
        """A dispatcher with one plugin."""
        self.subject = Subject(self.loop, functions_of(PASSES_ON, 1))
        for reads, writes in self.places:
            self.subject.contexts[0].watch(reads, mqcore.READ, self.callback, reads, writes)

    def close(self) -> None:
        """Close the dispatcher first."""
        self.subject.dispatcher.close()
        super().close()


class ByAddReader(Ring):
    """`add_reader` of uvloop."""

    def open(self) -> None:
        """Watch all."""
        for reads, writes in self.places:
            self.loop.add_reader(reads, self.callback, None, 0, reads, writes)

    def close(self) -> None:
        """Stop watching first."""
        for reads, _ in self.places:
            self.loop.remove_reader(reads)
        super().close()


class Place(asyncio.Protocol):
    """Passes on what comes to the transport `next`."""

    next: asyncio.Transport

    def __init__(self, ring: Ring) -> None:
        """The ring counts."""
        self.ring = ring

    def data_received(self, data: bytes) -> None:
        """It is read already."""
        self.ring.left -= 1
        if self.ring.left:
            self.next.write(data)
        else:
            self.ring.loop.stop()


class ByProtocol(Ring):
    """A transport of uvloop for each end, with a Protocol where a byte comes: it calls back with what it has read."""

    def open(self) -> None:
        """Both ends of all."""
        writers = [self.connect(asyncio.Protocol, writes)[0] for writes, _ in self.pairs]
        self.ends = [self.connect(lambda: Place(self), reads) for _, reads in self.pairs]
        for (_, place), writer in zip(self.ends, writers[1:] + writers[:1], strict=True):
            place.next = writer
        self.transports = [*writers, *(transport for transport, _ in self.ends)]

    def connect(self, protocol: Callable[[], Any], end: socket.socket) -> tuple[Any, Any]:
        """A transport and its protocol."""
        made: tuple[Any, Any] = self.loop.run_until_complete(self.loop.create_connection(protocol, sock=end))
        return made

    def start(self) -> None:
        """Write what is to be read."""
        self.left = self.count
        self.ends[-1][1].next.write(b"x")

    def close(self) -> None:
        """Transports close their sockets, in a turn of the loop."""
        for transport in self.transports:
            transport.abort()
        self.loop.run_until_complete(asyncio.sleep(0))
        super().close()


class WebSocketEnd(picows.WSListener):
    """Passes on what comes to the other end."""

    ring: Ring
    transport: Any

    def on_ws_connected(self, transport: Any) -> None:
        """The handshake is over."""
        self.transport = transport

    def on_ws_frame(self, transport: Any, frame: Any) -> None:
        """One has come."""
        self.ring.left -= 1
        if self.ring.left:
            transport.send(frame.msg_type, frame.get_payload_as_bytes())
        else:
            self.ring.loop.stop()


class ByPicows(Ring):
    """picows: a WebSocket with a frame of one byte, on uvloop. Two places only, which are the ends of one connection."""

    def open(self) -> None:
        """A server and its client."""
        self.loop.run_until_complete(self.open_both())

    async def open_both(self) -> None:
        """Over TCP."""

        def end(*_: Any) -> WebSocketEnd:
            made = WebSocketEnd()
            made.ring = self
            return made

        self.server = await picows.ws_create_server(end, "127.0.0.1", 0)
        port = self.server.sockets[0].getsockname()[1]
        self.client, _ = await picows.ws_connect(end, f"ws://127.0.0.1:{port}/")

    def start(self) -> None:
        """Send what is to be read."""
        self.left = self.count
        self.client.send(picows.WSMsgType.BINARY, b"x")

    def close(self) -> None:
        """Both ends, in turns of the loop."""
        self.client.disconnect()
        self.server.close()
        self.loop.run_until_complete(self.server.wait_closed())
        super().close()


class ByAsyncio(ByAddReader):
    """`add_reader` of asyncio's own loop."""

    def __init__(self, loop: Any, places: int, count: int) -> None:
        """A loop of its own."""
        super().__init__(asyncio.SelectorEventLoop(), places, count)

    def close(self) -> None:
        """Close the loop too."""
        super().close()
        self.loop.close()


class ByLibuv(Ring):
    """A `uv_poll_t` for each, from C, whose callback takes the GIL: the least that a Python callback costs on libuv."""

    def open(self) -> None:
        """On a loop of its own, which `stop` ends."""
        floor.open_library(uvloop.loop.__file__)
        self.loop = floor
        reads = tuple(reads for reads, _ in self.places)
        floor.open_polls(reads, tuple((None, 0, *place) for place in self.places), self.callback)

    def round(self) -> None:
        """The loop has another name for it."""
        self.start()
        floor.run()

    def close(self) -> None:
        """Close the polls first."""
        floor.close_polls()
        super().close()


class ByPyuv(Ring):
    """A `pyuv.Poll` for each."""

    def open(self) -> None:
        """On a loop of its own."""
        self.loop = pyuv.Loop()
        self.writes = dict(self.places)
        self.polls = [pyuv.Poll(self.loop, reads) for reads, _ in self.places]
        for poll in self.polls:
            poll.start(pyuv.UV_READABLE, self.came)

    def came(self, poll: pyuv.Poll, events: int, error: int | None) -> None:
        """pyuv's callback has no arguments of one's own."""
        reads = poll.fileno()
        self.callback(poll, events, reads, self.writes[reads])

    def round(self) -> None:
        """pyuv's loop has another name for it."""
        self.start()
        self.loop.run()

    def close(self) -> None:
        """Close the polls first."""
        for poll in self.polls:
            poll.close()
        self.loop.run()
        super().close()


class ByGevent(Ring):
    """An io watcher of libev for each, by gevent."""

    def open(self) -> None:
        """On the hub's loop, which runs while the main greenlet waits."""
        self.loop = self
        self.waiter = gevent.hub.Waiter()
        self.watchers = [gevent.get_hub().loop.io(reads, 1) for reads, _ in self.places]
        for watcher, place in zip(self.watchers, self.places, strict=True):
            watcher.start(self.callback, None, 0, *place)

    def stop(self) -> None:
        """Let the main greenlet go on."""
        self.waiter.switch(None)

    def round(self) -> None:
        """All of it."""
        self.start()
        self.waiter.get()
        self.waiter = gevent.hub.Waiter()

    def close(self) -> None:
        """Stop watching first."""
        for watcher in self.watchers:
            watcher.close()
        super().close()


WAYS: dict[str, type[Ring]] = {
    "floor": ByEpoll,
    "mqcore": ByMqcore,
    "uvloop": ByAddReader,
    "libuv from C": ByLibuv,
    "asyncio": ByAsyncio,
    "pyuv": ByPyuv,
    "gevent": ByGevent,
}

TCP_WAYS: dict[str, type[Ring]] = {
    "uvloop": ByAddReader,
    "mqcore": ByMqcore,
    "uvloop, a protocol": ByProtocol,
    "picows": ByPicows,
}
"""Between the two ends of connections over TCP."""
