"""What a worker does beside its mail: it tells its supervisor how it is, and does what that says."""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import json
import logging
import signal
import socket
from collections.abc import AsyncIterator
from typing import Any

from .. import MqError
from ..mail.base import Source
from ..mail.listening import Listening
from ..server import Server
from ..server.commands import CommandError, Commands, Encoded
from ..server.figures import PORTION
from .channel import Channel, Said
from .page import Page
from .start import Shared, Start

BEAT = 1.0
"""Seconds from one sign of life to the next."""
TURNS = 10
"""Of the loop, until the source listens, or cannot."""


log = logging.getLogger("mqcore.server")


class Worker(Shared):
    """This process, from the time when it finds that it is one."""

    def __init__(self, start: Start) -> None:
        self.start = start
        self._page = Page(start.page)
        self.counts = self._page.counts
        self.hand = self._page.hand(start.seed)
        self._end = socket.socket(fileno=start.channel)
        self._told: dict[tuple[str, str], object] = {}
        """Rows of figures, as they were told last."""
        self._answers: dict[int, asyncio.Task[None]] = {}
        faulthandler.enable()
        for number in (signal.SIGINT, signal.SIGHUP):  # which a terminal sends to all: the supervisor says what follows
            signal.signal(number, signal.SIG_IGN)

    def part_of(self, limit: int) -> int:
        """Of a limit of the run, rounded up."""
        return -(-limit // self.start.workers)

    def close(self) -> None:
        """What is its own, where it never came to serve."""
        self._end.close()

    @property
    def is_first(self) -> bool:
        """Of all there ever are: what is to be said once is said by this one."""
        return self.start.generation == 1

    def of_source(self, kind: type[Source]) -> dict[str, Any]:
        if kind.listens:
            return {"listening": Listening.handed_over(self.start.url, self.start.listeners)}
        return {"starts_slowly": self.start.after_crash} if kind.is_queue else {}

    def of_sink(self, path: str) -> dict[str, Any]:
        return {"writer": self.start.writer} if path and path in self.start.maildirs else {}

    def of_gateway(self) -> dict[str, Any]:
        return {"counts": self.counts, "hand": self.hand, "processes": self.start.workers}

    @contextlib.asynccontextmanager
    async def serving(self, server: Server) -> AsyncIterator[None]:
        """Around the run of the server's gateway, in its coroutine."""
        self._server, self._gateway = server, server.gateway
        self._commands = Commands(server)
        self._take(list(self.start.suspects), list(self.start.refused))
        self.hand.survived = lambda digest: self._channel.say(tell="survived", digest=digest)
        for name in self.start.paused:
            with contextlib.suppress(MqError):  # there is none of this name any more
                server.pause(name)
        self._channel = Channel(self._heard, self._gone)
        self._end.setblocking(False)
        await self._channel.open(self._end)
        beating = asyncio.create_task(self._beat())
        try:
            yield
        finally:
            beating.cancel()
            for answer in self._answers.values():
                answer.cancel()
            await self._tell_figures()
            self._channel.close()

    async def _beat(self) -> None:
        for _ in range(TURNS):
            await asyncio.sleep(0)
        self._channel.say(tell="ready")
        while True:
            self._channel.say(tell="beat")
            await self._tell_figures()
            await asyncio.sleep(BEAT)

    async def _tell_figures(self) -> None:
        """Of the plugins, what is another than before; in portions, as there may be many."""
        changed = []
        for row in self._gateway.dispatcher.stats().hooks:
            if self._told.get((row.plugin, row.hook)) != row:
                self._told[row.plugin, row.hook] = row
                changed.append(row._asdict())
        refusals = [[stage, code, count] for (stage, code), count in self._gateway.refusals.counts.items()]
        for begin in range(0, max(1, len(changed)), PORTION):
            self._channel.say(tell="figures", hooks=changed[begin : begin + PORTION], refusals=refusals)
            await asyncio.sleep(0)

    # What the supervisor says

    def _heard(self, said: Said) -> None:
        match said["do"]:
            case "stop":
                self._gateway.stop(signal.SIGTERM)
            case "drain":
                self._gateway.drain(None, signal.SIGTERM)
            case "ask":
                number = said["number"]
                answer = self._answers[number] = asyncio.create_task(self._answer(number, said["request"]))
                answer.add_done_callback(lambda _: self._answers.pop(number, None))
            case "forget":
                if (waiting := self._answers.get(said["number"])) is not None:
                    waiting.cancel()
            case "blame":
                self._take(said["suspects"], said["refused"])

    def _take(self, suspects: list[int], refused: list[int]) -> None:
        self.hand.suspects, self.hand.refused = frozenset(suspects), frozenset(refused)

    def _gone(self) -> None:
        """Nobody looks after this process any more."""
        if not self._gateway.is_stopping:
            self._gateway.stop(signal.SIGTERM)

    async def _answer(self, number: int, request: object) -> None:
        try:
            result = await self._commands.run(request)
        except CommandError as error:
            self._channel.say(tell="answer", number=number, ok=False, kind=error.kind, error=str(error))
            return
        except Exception as error:
            log.exception("a command failed")
            text = f"{type(error).__name__}: {error}"
            self._channel.say(tell="answer", number=number, ok=False, kind="failed", error=text)
            return
        if isinstance(result, Encoded):
            result = json.loads("".join(result))
        self._channel.say(tell="answer", number=number, ok=True, result=result)
