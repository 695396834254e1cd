"""One worker, as the supervisor sees it."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import os
import signal
import socket
import threading
from collections.abc import Callable, Sequence
from typing import Any

from .channel import Channel, Said
from .page import Page
from .start import Start, spawn

LAST_WORDS = 5.0
"""Seconds for what a process said before it ended, unless it left another one behind that has its end of the channel."""


class State(enum.Enum):
    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"
    """It was told to."""
    ENDED = "ended"


class Worker:
    """A process, from its start to its end. All of it belongs to the thread of the loop."""

    def __init__(
        self,
        start: Callable[[int, int], Start],
        arguments: Sequence[str],
        page: Page,
        on_end: Callable[[Worker], object],
        on_told: Callable[[Worker, Said], object],
    ) -> None:
        """`start` makes what it is given, of the descriptors of its end of the channel and of its page. `on_end`: is called
        once when the process is gone; `on_told`: when it is ready, and with what it found of a message. Raises OSError where no
        process can be made."""
        self.page = page
        self.hooks: dict[tuple[str, str], dict[str, Any]] = {}
        """The figures of its plugins, by plugin and hook, as it told them last."""
        self.refusals: list[list[Any]] = []
        self.state = State.STARTING
        self.was_asked = False
        """To end, before it did."""
        self.hung = False
        """It gave no sign of life, and was ended."""
        self.code: int | None = None
        """When it is gone: its exit code, or minus the signal."""
        self._loop = asyncio.get_running_loop()
        self.began = self.last_beat = self._loop.time()
        self._on_end = on_end
        self._on_told = on_told
        self.settled = asyncio.Event()
        """When it is ready, or gone."""
        self.ended = asyncio.Event()
        self._asked: dict[int, asyncio.Future[Said]] = {}
        self._numbers = 0
        self._hurries = False
        self._silent = asyncio.Event()
        """It has said all that it will."""
        self._timer: asyncio.TimerHandle | None = None
        ours, its = socket.socketpair()
        try:
            with its:
                self.start = start(its.fileno(), page.fd)
                self._process = spawn(self.start, arguments)
        except BaseException:
            ours.close()
            raise
        ours.setblocking(False)
        self._channel = Channel(self._heard, self._gone)
        self._opening = self._loop.create_task(self._channel.open(ours))
        threading.Thread(target=self._wait, daemon=True).start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def age(self) -> float:
        """Seconds."""
        return self._loop.time() - self.began

    def signal(self, number: signal.Signals) -> None:
        """Not by Popen, which takes away a process that has just died: who waits for it would never hear of its end."""
        if self.code is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def stop(self, patience: float | None, *, hurry: bool = True) -> None:
        """Let it end when what is open is over, in a `hurry` as SIGTERM does it; after `patience` seconds, if that is given, it
        is killed."""
        if self._hurries:
            return
        self._hurries = hurry
        if self.state is State.STARTING:
            self.signal(signal.SIGTERM)  # it does not hear yet what else it is told
        if self.state is not State.ENDED:
            self.state = State.STOPPING
            self.tell(do="stop" if hurry else "drain")
            self.kill_in(patience)

    def kill_in(self, patience: float | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if patience is None else self._loop.call_later(patience, self.signal, signal.SIGKILL)

    def tell(self, **said: Any) -> None:
        self._channel.say(**said)

    async def ask(self, request: dict[str, Any]) -> Said:
        """Its answer, as `Control` gives it. Raises ConnectionResetError if it is gone before that."""
        if self.state is State.ENDED:
            raise ConnectionResetError("it is gone")
        self._numbers += 1
        number = self._numbers
        answer = self._asked[number] = self._loop.create_future()
        self._channel.say(do="ask", number=number, request=request)
        try:
            said: Said = await answer
            return said
        finally:
            if self._asked.pop(number, None) is not None and answer.cancelled():
                self._channel.say(do="forget", number=number)

    # What it says

    def _heard(self, said: Said) -> None:
        self.last_beat = self._loop.time()
        match said.pop("tell"):
            case "ready":
                if self.state is State.STARTING:
                    self.state = State.READY
                    self.settled.set()
                    self._on_told(self, {"ready": True})
            case "figures":
                for row in said["hooks"]:
                    self.hooks[row["plugin"], row["hook"]] = row
                self.refusals = said.get("refusals", self.refusals)
            case "answer":
                answer = self._asked.pop(said.pop("number"), None)
                if answer is not None and not answer.done():
                    answer.set_result(said)
            case "survived":
                self._on_told(self, said)

    def _gone(self) -> None:
        self._silent.set()

    # Its end

    def _wait(self) -> None:
        """In a thread of its own. The process is not taken away here: its number would be another's before the loop knows."""
        if hasattr(os, "waitid"):
            with contextlib.suppress(ChildProcessError):  # who started us ignores SIGCHLD, so that dead ones go by themselves
                os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        else:
            self._process.wait()
        with contextlib.suppress(RuntimeError):  # the loop is over
            self._loop.call_soon_threadsafe(self._begin_end)

    def _begin_end(self) -> None:
        self._ending = self._loop.create_task(self._end())

    async def _end(self) -> None:
        self.code = self._process.wait()
        with contextlib.suppress(OSError, TimeoutError):
            await self._opening
            async with asyncio.timeout(LAST_WORDS):
                await self._silent.wait()
        self.kill_in(None)
        self._channel.close()
        for answer in self._asked.values():
            if not answer.done():
                answer.set_exception(ConnectionResetError("it is gone"))
        self.was_asked, self.state = self.state is State.STOPPING, State.ENDED
        try:
            self._on_end(self)
        finally:
            self.page.close()
            self.ended.set()
            self.settled.set()

    @property
    def exit_code(self) -> int:
        """As a shell has it."""
        code = self.code or 0
        return 128 - code if code < 0 else code

    @property
    def why(self) -> str:
        """How it ended, for people."""
        assert self.code is not None
        if self.code < 0:
            with contextlib.suppress(ValueError):
                return signal.Signals(-self.code).name
            return f"signal {-self.code}"
        return f"exit code {self.code}"
