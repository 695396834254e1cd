"""A byte passed round a ring of sockets: each place reads it when its loop says that it is there, and writes it on."""

from __future__ import annotations

import asyncio
import os
import socket
from typing import Any

import pyuv
from subjects import PASSES_ON, Subject, functions_of

import mqcore


class Ring:
    """Two places or more. The base waits for nothing: it is for a loop to call `ready`."""

    def __init__(self, loop: Any, places: int, count: int) -> None:
        """`count`: how often the byte is passed on in a round."""
        self.loop = loop
        self.count = count
        self.left = 0
        self.pairs = [socket.socketpair() for _ in range(places)]
        for pair in self.pairs:
            for end in pair:
                end.setblocking(False)
        writers = [pair[0].fileno() for pair in self.pairs]
        readers = [pair[1].fileno() for pair in self.pairs]
        self.places = tuple(zip(readers, writers[1:] + writers[:1], strict=True))
        self.open()

    def open(self) -> None:
        """Watch the sockets."""

    def close(self) -> None:
        """Close all."""
        for pair in self.pairs:
            for end in pair:
                end.close()

    def ready(self, reads: int, writes: int) -> None:
        """The byte is there."""
        byte = os.read(reads, 1)
        self.left -= 1
        if self.left:
            os.write(writes, byte)
        else:
            self.loop.stop()

    def start(self) -> None:
        """Write the byte."""
        self.left = self.count
        os.write(self.places[-1][1], b"x")

    def round(self) -> None:
        """All of it."""
        self.start()
        self.loop.run_forever()


class ByMqcore(Ring):
    """`context.watch`."""

    def open(self) -> None:
        """A dispatcher with one plugin."""
        self.subject = Subject(self.loop, functions_of(PASSES_ON, 1))
        for reads, writes in self.places:
            self.subject.contexts[0].watch(reads, mqcore.READ, self.came, writes)

    def came(self, watcher: mqcore.Watcher, events: int, writes: int) -> None:
        """The callback; what `ready` does."""
        byte = os.read(watcher.fd, 1)
        self.left -= 1
        if self.left:
            os.write(writes, byte)
        else:
            self.loop.stop()

    def close(self) -> None:
        """Close the dispatcher first."""
        self.subject.dispatcher.close()
        super().close()


class ByAddReader(Ring):
    """`add_reader` of uvloop."""

    def open(self) -> None:
        """Watch all."""
        for reads, writes in self.places:
            self.loop.add_reader(reads, self.ready, reads, writes)

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
        """The callback."""
        reads = poll.fileno()
        self.ready(reads, self.writes[reads])

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


WAYS: dict[str, type[Ring]] = {"mqcore": ByMqcore, "uvloop": ByAddReader, "asyncio": ByAsyncio, "pyuv": ByPyuv}
