"""Errors and values with which nothing can be done."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from case_tools import CASES, case, raised, settle
from hostile_tools import Owner, books, mqcore

# --------------------------------------------------------------------------------------- errors and values that break rules


@dataclass(frozen=True)
class Frozen(Exception):
    code: int


class NoNotes(Exception):
    def add_note(self, note: str) -> None:
        raise RuntimeError("no notes")

    @property
    def __notes__(self) -> Any:
        raise RuntimeError("no notes here")

    def __str__(self) -> str:
        raise RuntimeError("no text")

    __repr__ = __str__


class Unmade(BaseException):
    """No Exception, and none of those that end a program."""


class BadRepr:
    def __repr__(self) -> str:
        raise RuntimeError("detached")


class BadClass:
    @property
    def __class__(self) -> Any:
        raise RuntimeError("no class")

    @__class__.setter
    def __class__(self, value: Any) -> None:
        raise RuntimeError("no class")


class BadAll:
    def __eq__(self, other: object) -> bool:
        raise RuntimeError("no comparison")

    def __hash__(self) -> int:
        raise RuntimeError("no hash")

    def __bool__(self) -> bool:
        raise RuntimeError("neither")

    def __getattribute__(self, name: str) -> Any:
        raise RuntimeError(f"no {name}")


ERRORS: dict[str, Callable[[], BaseException]] = {
    "frozen": lambda: Frozen(5),
    "no_notes": NoNotes,
    "base": Unmade,
    "memory": MemoryError,
    "recursion": RecursionError,
    "generator_exit": GeneratorExit,
    "stop": StopIteration,
    "stop_async": StopAsyncIteration,
    "cancelled": asyncio.CancelledError,
}
VALUES: dict[str, Callable[[], Any]] = {"repr": BadRepr, "class": BadClass, "all": BadAll}


def _fails(owner: Owner, hook: Callable[[Any, Any], Any], held: bool = False) -> BaseException:
    """The step fails, by `run`, `run_many` and `await` alike, and the message can be run again."""
    dispatcher = owner.start({"10-bad": hook})
    step = dispatcher.hook("mq_step")
    message = mqcore.Message()
    for _ in range(2):
        if held:
            assert step.run(message, done=owner.done) is None
            owner.run_until(lambda: owner.finished)
            assert owner.finished.pop() == (message, mqcore.FAIL)
        else:
            assert step.run(message, done=owner.done) is mqcore.FAIL
        assert message.error is not None and message.holder is None
    others = [mqcore.Message() for _ in range(3)]
    expected = None if held else mqcore.FAIL
    assert step.run_many(others, done=owner.done) == [expected] * 3
    if held:
        owner.run_until(lambda: len(owner.finished) == 3)
    if owner.name == "uvloop":

        async def wait() -> Any:
            return await asyncio.wait_for(step(mqcore.Message()), 60)

        assert owner.run(wait()) is mqcore.FAIL  # type: ignore[attr-defined]
    settle(owner, dispatcher)
    assert books(dispatcher)[2:] == (6 if owner.name == "uvloop" else 5, 0, 0, 0)
    owner.finished.clear()
    owner.loop_errors.clear()
    return message.error


def _raiser(make: Callable[[], BaseException]) -> Callable[[Any, Any], Any]:
    def hook(context: Any, message: Any) -> None:
        raise make()

    return hook


def _timer_raiser(make: Callable[[], BaseException]) -> Callable[[Any, Any], Any]:
    def hook(context: Any, message: Any) -> Any:
        def callback() -> None:
            raise make()

        hold = context.hold(message)
        hold.start_timer(0, callback)
        return hold

    return hook


def _add_errors() -> None:
    for name, make in ERRORS.items():

        def in_hook(owner: Owner, make: Callable[[], BaseException] = make) -> None:
            error = _fails(owner, _raiser(make))
            assert type(error) is type(make()), error

        def in_callback(owner: Owner, make: Callable[[], BaseException] = make) -> None:
            error = _fails(owner, _timer_raiser(make), held=True)
            assert type(error) is type(make()), error

        CASES[f"error_in_hook_{name}"] = in_hook
        CASES[f"error_in_callback_of_hold_{name}"] = in_callback
    for name, value in VALUES.items():

        def returned(owner: Owner, value: Callable[[], Any] = value) -> None:
            error = _fails(owner, lambda context, message: value())
            assert isinstance(error, TypeError) and "10-bad" in str(error), repr(error)

        CASES[f"value_with_bad_{name}"] = returned


_add_errors()


class IntOfItsOwn(int):
    """Says that it is in any range."""

    def __ge__(self, other: object) -> bool:
        return True

    __le__ = __lt__ = __gt__ = __eq__ = __ge__

    def __hash__(self) -> int:
        return 0

    def __and__(self, other: object) -> Any:
        return 0

    __rand__ = __or__ = __ror__ = __invert__ = __and__  # type: ignore[assignment]


@case
def events_with_comparisons_of_their_own(owner: Owner) -> None:
    contexts: list[Any] = []
    owner.start({"10-watch": SimpleNamespace(mq_context_initialize=contexts.append)})
    ours, theirs = socket.socketpair()
    with ours, theirs:
        for wrong in (0, 4, 8, 15, 255, -1, 2**40, 2**70):
            assert isinstance(raised(contexts[0].watch, ours, IntOfItsOwn(wrong), print), ValueError), wrong
        watcher = contexts[0].watch(ours, mqcore.READ, print)
        for wrong in (0, 4, 15, -1, 2**70):
            assert isinstance(raised(setattr, watcher, "events", IntOfItsOwn(wrong)), ValueError), wrong
        assert watcher.events == mqcore.READ
        owner.turn()
        watcher.stop()
