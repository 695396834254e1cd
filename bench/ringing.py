"""Bytes that pass through sockets: each place reads one when its loop says that it is there.

In a *ring* one byte goes round: each place writes it on to the next. *At once* all places get one, and read it; so often
that it is of no account what it costs to start and stop the loop.
"""

from __future__ import annotations

import asyncio
import os
import socket
from typing import Any

import gevent
import gevent.hub
import pyuv
import uvloop.loop
from building import build
from subjects import PASSES_ON, Subject, functions_of

import mqcore

floor = build("_floor_loop")
TIMES = 10


class Ring:
    """Two places or more. All ways but the floor call the same callback with the same arguments."""

    def __init__(self, loop: Any, places: int, count: int) -> None:
        """`count`: how often the byte is passed on in a round; 0: all places get one at once, TIMES times."""
        self.loop = loop
        self.count = count
        self.left = 0
        self.times = 0
        self.pairs = [socket.socketpair() for _ in range(places)]
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
