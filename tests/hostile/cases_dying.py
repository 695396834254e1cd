"""Messages whose deallocation ends a hold unseen, as their class gained a finalizer meanwhile; and what may happen then."""

from __future__ import annotations

import _testcapi
import gc
import os
import warnings
import weakref
from types import SimpleNamespace
from typing import Any

from case_tools import case
from hostile_tools import Finalizer, Owner, books, mqcore


def _held(owner: Owner, count: int, done: Any, mortal: bool = False) -> tuple[Any, list[Any]]:
    """A dispatcher, and messages that it holds and whose finalizer Python will not call; with `mortal` it will."""

    class Mail(mqcore.Message):
        pass

    hold = SimpleNamespace(mq_step=lambda context, message: True)
    dispatcher = owner.start({"10-hold": hold}, hold_timeout=0)
    messages = [Mail() for _ in range(count)]
    assert dispatcher.hook("mq_step").run_many(messages, done=done) == [None] * count
    if not mortal:
        Mail.__del__ = lambda self: None  # type: ignore[attr-defined]
    return dispatcher, messages


def _row(dispatcher: Any) -> Any:
    (row,) = [row for row in dispatcher.stats().hooks if row.hook == "mq_step"]
    return row


@case
def dead_when_the_dispatcher_closes(owner: Owner) -> None:
    told: list[Any] = []
    done = lambda message, outcome: told.append((type(message), outcome, type(message.error)))  # noqa: E731
    dispatcher, messages = _held(owner, 3, done)
    messages.clear()
    dispatcher.close()
    assert told == [(mqcore.Message, mqcore.FAIL, mqcore.DispatcherClosed)] * 3, told
    assert books(dispatcher) == (0, 0, 3, 0, 0, 0)
    owner.turn()


@case
def dead_when_the_dispatcher_closes_without_memory(owner: Owner) -> None:
    """For one there is a stand-in. The others' steps end, and nobody is told; but all is counted, and nothing left."""
    told: dict[Any, Any] = {0: 0}
    del told[0]  # from now on it has room without memory
    payloads: list[Any] = []
    dispatcher, messages = _held(owner, 3, told.setdefault)
    for message in messages:
        message.payload = {"payload"}
        payloads.append(weakref.ref(message.payload))
    del message
    messages.clear()
    _testcapi.set_nomemory(0, 0)
    try:
        dispatcher.close()
    except MemoryError:
        pass
    finally:
        _testcapi.remove_mem_hooks()
    dispatcher.close()
    assert list(told.values()) == [mqcore.FAIL], told
    assert books(dispatcher) == (0, 0, 3, 0, 0, 0)
    row = _row(dispatcher)
    assert (row.holds, row.held, sum(row.hold_times), row.failures, row.abandoned) == (3, 0, 3, 3, 2), row
    owner.turn()
    gc.collect()
    assert [payload() for payload in payloads] == [None] * 3


@case
def dead_in_the_child_of_a_fork(owner: Owner) -> None:
    """There nothing waits for them; where they were dropped before the fork, the parent goes on with them."""
    told: list[Any] = []
    done = lambda message, outcome: told.append(outcome)  # noqa: E731
    dispatcher, messages = _held(owner, 4, done)
    del messages[:2]
    warnings.simplefilter("ignore", DeprecationWarning)  # of fork, in a process that may have threads
    child = os.fork()
    if child == 0:
        try:
            messages.pop()
            dispatcher.close()
            messages.pop()
            del dispatcher
            gc.collect()
        except BaseException:
            os._exit(1)
        os._exit(0 if told == [] else 2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    messages.clear()
    owner.run_until(lambda: len(told) == 4)
    assert told == [mqcore.FAIL] * 4
    assert books(dispatcher) == (0, 0, 4, 0, 0, 0)


@case
def closed_by_what_a_dying_message_had(owner: Owner) -> None:
    """An attribute's finalizer closes the dispatcher, when no reference to the message is left and the hold is not over."""
    told: list[Any] = []
    done = lambda message, outcome: told.append((type(message), outcome, type(message.error)))  # noqa: E731
    dispatcher, messages = _held(owner, 2, done)
    kinds = (mqcore.Message, type(messages[1]))
    payload = {"payload"}
    gone = [weakref.ref(payload), weakref.ref(messages[0]), weakref.ref(type(messages[0]))]
    messages[0].payload = payload
    messages[0].closes = Finalizer(dispatcher.close)
    del payload
    messages.pop(0)
    assert sorted(told, key=str) == sorted(((kind, mqcore.FAIL, mqcore.DispatcherClosed) for kind in kinds), key=str), told
    assert books(dispatcher) == (0, 0, 2, 0, 0, 0)
    del kinds, told[:], messages[:]
    owner.turn()
    gc.collect()
    assert [each() for each in gone] == [None] * 3


@case
def closed_by_what_a_dying_message_had_without_memory(owner: Owner) -> None:
    """The one stand-in that there is takes the place of another one: of this one nobody is told."""
    told: dict[Any, Any] = {0: 0}
    del told[0]  # from now on it has room without memory
    dispatcher, messages = _held(owner, 2, told.setdefault)
    gone = [weakref.ref(messages[1]), weakref.ref(type(messages[1]))]

    def close() -> None:
        _testcapi.set_nomemory(0, 0)
        try:
            dispatcher.close()
        except MemoryError:
            pass
        finally:
            _testcapi.remove_mem_hooks()

    messages[1].closes = Finalizer(close)
    messages.pop(0)
    messages.clear()
    dispatcher.close()
    assert list(told.values()) == [mqcore.FAIL], told
    assert books(dispatcher) == (0, 0, 2, 0, 0, 0)
    owner.turn()
    gc.collect()
    assert [each() for each in gone] == [None] * 2


@case
def closed_while_a_deallocation_is_put_off(owner: Owner) -> None:
    """CPython does that for objects that are deeply nested, before their finalizer is called."""
    for mortal in (False, True):
        for depth in range(40, 60):
            told: list[Any] = []
            dispatcher, messages = _held(owner, 1, lambda message, outcome, told=told: told.append(outcome), mortal)
            gone = weakref.ref(messages[0])
            nested: Any = messages.pop()
            for _ in range(depth):
                nested = [nested]
            outer = [Finalizer(dispatcher.close), nested]
            del nested, outer
            owner.turn()
            dispatcher.close()
            assert told == [mqcore.FAIL], (mortal, depth, told)
            assert books(dispatcher) == (0, 0, 1, 0, 0, 0)
            gc.collect()
            assert gone() is None
