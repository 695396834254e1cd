"""Objects that misbehave: what they do, they ask their world (machine.World), so that a seed decides it.

Each may run in the middle of anything that the core does: while it drops a reference, compares, formats, logs or calls.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from types import FrameType
from typing import Any

import mqcore


class Hostile(BaseException):
    """Marks the exceptions that are expected, as they are ours."""


class PlainError(Hostile, Exception):
    pass


@dataclass(frozen=True)
class FrozenError(Hostile, Exception):
    code: int


class NoNotesError(Hostile, Exception):
    def add_note(self, note: str) -> None:
        raise PlainError("no notes")

    @property
    def __notes__(self) -> Any:
        raise PlainError("no notes")


class TextlessError(Hostile, Exception):
    def __str__(self) -> str:
        raise NoNotesError

    __repr__ = __str__


class BusyError(Hostile, Exception):
    """Does whatever it likes while the core tells of it."""

    def __init__(self, world: Any) -> None:
        self.world = world

    def add_note(self, note: str) -> None:
        self.world.mischief()
        super().add_note(note)

    def __str__(self) -> str:
        self.world.mischief()
        return "busy"

    __repr__ = __str__

    def __del__(self) -> None:
        self.world.mischief()


class OwnBase(Hostile, BaseException):
    pass


class WrongClass(Hostile, Exception):
    @property
    def __class__(self) -> Any:
        raise PlainError("no class")

    @__class__.setter
    def __class__(self, value: Any) -> None:
        raise PlainError("no class")


def make_error(world: Any) -> BaseException:
    kind = world.random.choice(ERRORS)
    if kind is FrozenError:
        return FrozenError(5)
    if kind is BusyError:
        return BusyError(world)
    error: BaseException = kind("on purpose")
    return error


ERRORS: list[type[BaseException]] = [
    PlainError,
    FrozenError,
    NoNotesError,
    TextlessError,
    BusyError,
    OwnBase,
    WrongClass,
    MemoryError,
    RecursionError,
    asyncio.CancelledError,
    StopIteration,
    StopAsyncIteration,
    GeneratorExit,
    KeyboardInterrupt,
    SystemExit,
    mqcore.NotHeld,
    mqcore.DispatcherClosed,
]


class Value:
    """Returned by a hook, given as an argument, kept in `data`: nothing can be done with it that does not do something."""

    def __init__(self, world: Any) -> None:
        self.world = world
        self.me = self if world.random.random() < 0.5 else None  # garbage for the collector

    def _ask(self) -> None:
        self.world.mischief()
        if self.world.random.random() < 0.5:
            raise make_error(self.world)

    def __del__(self) -> None:
        self.world.mischief()

    def __repr__(self) -> str:
        self._ask()
        return "<a value>"

    def __eq__(self, other: object) -> bool:
        self._ask()
        return True

    def __hash__(self) -> int:
        self._ask()
        return 1

    def __bool__(self) -> bool:
        self._ask()
        return True

    @property
    def __class__(self) -> Any:
        self._ask()
        return mqcore.Hold

    @__class__.setter
    def __class__(self, value: Any) -> None:
        raise PlainError("no class")

    def __call__(self, *args: Any) -> None:
        self._ask()


class Mail(mqcore.Message):
    """An ordinary message of a user's own."""


class FinalMail(mqcore.Message):
    """One with a finalizer that does something, and may bring it back."""

    world: Any = None

    def __del__(self) -> None:
        if self.world is not None:
            self.world.mischief()
            if self.world.random.random() < 0.2:
                self.world.messages.append(self)  # resurrected


class WrongMail(mqcore.Message):
    """Cannot be compared, hashed, formatted."""

    def __eq__(self, other: object) -> bool:
        raise PlainError("no comparison")

    def __hash__(self) -> int:
        raise PlainError("no hash")

    def __repr__(self) -> str:
        raise PlainError("no repr")


def late_mail() -> type[mqcore.Message]:
    """A class of its own, which may get a finalizer later."""
    return type("LateMail", (mqcore.Message,), {})


class Done:
    """The `done` of one run or run_many: counts first, then misbehaves."""

    def __init__(self, world: Any, record: Any) -> None:
        self.world, self.record = world, record

    def __call__(self, message: Any, outcome: Any) -> None:
        self.record.note(message)
        self.misbehave()

    def misbehave(self) -> None:
        self.world.mischief()
        if self.world.random.random() < 0.1:
            raise make_error(self.world)


class Handler(logging.Handler):
    """Raises, or does something, while the core logs."""

    world: Any = None

    def emit(self, record: logging.LogRecord) -> None:
        if self.world is None:
            return
        if self.world.random.random() < 0.3:
            record.getMessage()
        self.world.mischief()
        if self.world.random.random() < 0.2:
            raise make_error(self.world)


class Plug:
    """A plugin, one of whose hooks does what its world says."""

    def __init__(self, world: Any, life: bool) -> None:
        self.world = world
        if life:
            self.mq_context_initialize = self._live
            self.mq_context_cleanup = self._live
            self.mq_cleanup = self._end

    def _live(self, context: Any) -> None:
        self.world.contexts.append(context)
        self.world.mischief()
        if self.world.random.random() < 0.1:
            raise make_error(self.world)

    def _end(self) -> None:
        self.world.mischief()

    def mq_step(self, context: Any, message: Any) -> Any:
        return self.world.called(context, message)

    def mq_other(self, context: Any, message: Any, extra: Any) -> Any:
        return self.world.called(context, message)


class CoroutinePlug:
    """Its coroutine is not cancelled at once, and may end as any hook may."""

    def __init__(self, world: Any) -> None:
        self.world = world

    async def mq_step(self, context: Any, message: Any) -> Any:
        swallow = self.world.random.randrange(3)
        for _ in range(self.world.random.randrange(4)):
            try:
                await asyncio.sleep(self.world.random.choice([0, 0, 0.001]))
            except asyncio.CancelledError:
                if not swallow:
                    raise
                swallow -= 1
        return self.world.called(context, message)


# Where a signal handler or a trace function may raise: in the code above, and in what the core calls to tell of errors.
SAFE = {Done.__call__.__code__}
LOGGING = {"log", "_log", "makeRecord", "getMessage", "error", "warning", "callHandlers"}  # which hold no lock


def may_raise_in(frame: FrameType | None) -> bool:
    if frame is None or frame.f_code in SAFE:
        return False
    name = frame.f_code.co_filename
    if name.endswith("logging/__init__.py"):
        return frame.f_code.co_name in LOGGING
    return name == __file__ or name.endswith("mqcore/_waiting.py")
