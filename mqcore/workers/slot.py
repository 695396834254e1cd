"""A place for a worker: it is always to have one."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Sequence

from .process import State, Worker

FIRST_PAUSE = 0.1
LONGEST_PAUSE = 30.0
"""Seconds from a crash to the next start: twice as long after each."""
LONG_LIFE = 60.0
"""Seconds: a worker that lived for so long begins with the first pause again."""
SHORT_LIFE = 10.0
"""A worker that did not live for so long might as well not have been started."""


class Slot:
    def __init__(self, number: int, listeners: Sequence[socket.socket]) -> None:
        self.number = number
        self.listeners = listeners
        self.worker: Worker | None = None
        """Whose place it is."""
        self.next: Worker | None = None
        """Who is to take it, at a reload."""
        self.early_crashes = 0
        """In a row."""
        self._pause = 0.0
        self.empty_since: float | None = 0.0
        """When it was last served, in the loop's time; None: it is."""

    @property
    def is_served(self) -> bool:
        return any(one is not None and one.state is State.READY for one in (self.worker, self.next))

    def crashed(self, worker: Worker) -> float:
        """Seconds until the next one is started."""
        self.early_crashes = self.early_crashes + 1 if worker.age < SHORT_LIFE else 0
        if worker.age >= LONG_LIFE or not self._pause:
            self._pause = FIRST_PAUSE
        else:
            self._pause = min(2 * self._pause, LONGEST_PAUSE)
        return self._pause


class Doorman:
    """Says to clients, while nobody serves them, that they shall come again: `421`, or, where TLS begins at once, nothing."""

    REPLY = b"421 4.3.2 this server starts just now; try again later\r\n"

    def __init__(self, *, silent: bool) -> None:
        self._reply = b"" if silent else self.REPLY
        self._loop = asyncio.get_running_loop()
        self._watched: set[socket.socket] = set()
        self.turned_away = 0

    def stand_at(self, listeners: Sequence[socket.socket]) -> None:
        for one in listeners:
            if one not in self._watched:
                one.setblocking(False)
                self._watched.add(one)
                self._loop.add_reader(one, self._turn_away, one)

    def leave(self, listeners: Sequence[socket.socket]) -> None:
        for one in listeners:
            if one in self._watched:
                self._watched.discard(one)
                self._loop.remove_reader(one)

    def _turn_away(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            client, _ = listener.accept()
            self.turned_away += 1
            with client:
                client.setblocking(False)
                client.send(self._reply)
