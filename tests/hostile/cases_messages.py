"""Messages that change while they are held, early give-backs, stale tokens, and cancels."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from case_tools import case, raised, settle, uvloop_only
from cases_errors import BadClass, BadRepr
from hostile_tools import Finalizer, Owner, books, mqcore

# ------------------------------------------------------------------------------------------------------ a class is changed


@case
def finalizer_by_another_class(owner: Owner) -> None:
    """A held message gets a class with a finalizer, and is dropped: its step is over, or it is still there."""

    class Mail(mqcore.Message):
        pass

    class Final(mqcore.Message):
        def __del__(self) -> None:
            pass

    _change_while_held(owner, Mail, lambda message: setattr(message, "__class__", Final))


@case
def finalizer_added_to_the_class(owner: Owner) -> None:
    class Mail(mqcore.Message):
        pass

    _change_while_held(owner, Mail, lambda message: setattr(Mail, "__del__", lambda self: None))


@case
def finalizer_added_to_a_base(owner: Owner) -> None:
    class Mixin:
        pass

    class Mail(Mixin, mqcore.Message):
        pass

    _change_while_held(owner, Mail, lambda message: setattr(Mixin, "__del__", lambda self: None))


@case
def finalizer_added_and_no_memory(owner: Owner) -> None:
    """Dropped where nothing can be allocated, the messages are abandoned when there is memory again."""
    import _testcapi

    class Mail(mqcore.Message):
        pass

    outcomes: list[Any] = []
    dispatcher = owner.start({"10-hold": lambda context, message: True}, hold_timeout=0)
    messages = [Mail() for _ in range(3)]
    done = lambda message, outcome: outcomes.append((outcome, message.error))  # noqa: E731
    assert dispatcher.hook("mq_step").run_many(messages, done=done) == [None] * 3
    Mail.__del__ = lambda self: None  # type: ignore[attr-defined]
    _testcapi.set_nomemory(0, 0)
    try:
        messages.clear()
    finally:
        _testcapi.remove_mem_hooks()
    assert books(dispatcher) == (0, 0, 0, 0, 0, 3)
    _told_once(owner, dispatcher, outcomes, 3)


def _change_while_held(owner: Owner, kind: type, change: Callable[[Any], None]) -> None:
    count = 200
    dispatcher = owner.start({"10-hold": lambda context, message: True}, hold_timeout=0)
    step = dispatcher.hook("mq_step")
    outcomes: list[Any] = []
    messages = [kind() for _ in range(count)]
    for message in messages:
        assert step.run(message, done=lambda message, outcome: outcomes.append((outcome, message.error))) is None
        change(message)
    del message
    messages.clear()
    junk = [bytes(size) for size in range(400)]  # what is freed too early is written over
    _told_once(owner, dispatcher, outcomes, count)
    del junk


def _told_once(owner: Owner, dispatcher: Any, outcomes: list[Any], count: int) -> None:
    """Each of the dropped messages is abandoned; one that is held strongly is there to be seen, and to be cancelled."""
    owner.run_until(lambda: len(dispatcher.held()) + len(outcomes) == count)
    held = dispatcher.held()
    assert all(outcome is mqcore.FAIL and isinstance(error, mqcore.Abandoned) for outcome, error in outcomes), outcomes[:3]
    for each in held:
        assert each.message is not None and dispatcher.cancel(each.message)
    del held
    owner.turn()
    assert len(outcomes) == count
    assert books(dispatcher)[2:] == (books(dispatcher)[2], count - books(dispatcher)[2], 0, 0)


# ------------------------------------------------------------------------------------------------ rule 7, early give-backs


@case
def early_give_back_drops_what_cancels(owner: Owner) -> None:
    """The hold of an early give-back is over with the hook; what its timer lets go of cancels the step: `done` once."""

    def hook(context: Any, message: Any) -> bool:
        hold = context.hold(message)
        hold.start_timer(100, print, Finalizer(lambda: dispatcher.cancel(message)))
        context.continue_(message)
        return True

    dispatcher = owner.start({"10-early": hook})
    message = mqcore.Message()
    assert dispatcher.hook("mq_step").run(message, done=owner.done) is None
    settle(owner, dispatcher)
    gc.collect()
    settle(owner, dispatcher)
    assert len(owner.finished) == 1 and owner.finished[0][0] is message, owner.finished
    assert owner.finished[0][1] is mqcore.FAIL and isinstance(message.error, mqcore.Cancelled), owner.finished
    assert books(dispatcher) == (0, 0, 0, 1, 0, 0)


@case
def early_give_back_then_another_step_and_another_chain(owner: Owner) -> None:
    once = [1]

    def hook(context: Any, message: Any) -> bool:
        if once:
            once.pop()
            hold = context.hold(message)
            hold.start_timer(100, print, Finalizer(lambda: dispatcher.cancel(message)))
            context.continue_(message)
        return True

    plugins = owner.plugins({"10-early": hook, "20-other": lambda context, message: False})
    dispatcher = owner.dispatcher(plugins)
    step = dispatcher.hook("mq_step")
    message = mqcore.Message()
    told: list[Any] = []
    assert step.run(message, done=lambda message, outcome: told.append(("first", outcome))) is None
    plugins.add("30-new", SimpleNamespace(mq_step=lambda context, message: False))
    second = raised(step.run, message, done=lambda message, outcome: told.append(("second", outcome)))
    for name in ("30-new", "20-other", "10-early"):
        plugins.remove(name)
    gc.collect()
    junk = [bytearray(size) for size in range(4000)]
    dispatcher.held()
    dispatcher.cancel(message)
    settle(owner, dispatcher)
    expected = [("first", mqcore.FAIL)] + ([] if second else [("second", mqcore.FAIL)])
    assert sorted(told) == expected, (told, second)
    assert second is None or isinstance(second, mqcore.MqError)
    assert books(dispatcher)[4:] == (0, 0)
    del junk


# ------------------------------------------------------------------------------------------------------- tokens and cancels


@case
def resurrected_hold(owner: Owner) -> None:
    """A Hold that the collector found and a finalizer kept never ends a later hold."""
    saved: list[Any] = []

    class Keeper:
        def __del__(self) -> None:
            saved.append(self.hold)  # type: ignore[attr-defined]

    def hook(context: Any, message: Any) -> bool:
        if not saved and not made:
            keeper = Keeper()
            made.append(1)
            keeper.hold = context.hold(message)  # type: ignore[attr-defined]
            keeper.me = keeper  # type: ignore[attr-defined]
            message.data["tracked"] = keeper.__dict__ and {}
        return True

    made: list[int] = []
    dispatcher = owner.start({"10-hold": hook})
    step = dispatcher.hook("mq_step")
    message = mqcore.Message()
    told: list[Any] = []
    fired: list[int] = []
    assert step.run(message, done=lambda message, outcome: told.append(("first", outcome))) is None
    gc.collect()
    (hold,) = saved
    with contextlib.suppress(mqcore.NotHeld):
        hold.start_timer(0.01, fired.append, 1)
    assert dispatcher.cancel(message)
    assert told == [("first", mqcore.FAIL)]
    assert step.run(message, done=lambda message, outcome: told.append(("second", outcome))) is None
    limit = time.monotonic() + 0.05
    owner.run_until(lambda: time.monotonic() > limit)
    assert fired == []
    for give in (hold.continue_, hold.complete, hold.retry, lambda: hold.fail("late")):
        assert isinstance(raised(give), mqcore.NotHeld)
    settle(owner, dispatcher)
    assert told == [("first", mqcore.FAIL)] and message.holder == "10-hold"
    assert books(dispatcher) == (0, 0, 0, 1, 1, 0)


@case
def cancel_by_another_dispatcher(owner: Owner) -> None:
    """... of a message that waits in run_many for its turn, is in a hook, or is held: False, and nothing changes."""
    answers: list[Any] = []

    def hook(context: Any, message: Any) -> bool:
        answers.extend(other.cancel(each) for each in messages)
        return False

    dispatcher = owner.start({"10-look": hook})
    holding = owner.start({"10-hold": lambda context, message: True})
    other = owner.start({})
    messages = [mqcore.Message() for _ in range(4)]
    assert dispatcher.hook("mq_step").run_many(messages, done=owner.done) == [mqcore.CONTINUE] * 4
    assert answers == [False] * 16
    assert holding.hook("mq_step").run_many(messages, done=owner.done) == [None] * 4
    assert [other.cancel(each) for each in messages] == [False] * 4
    assert books(dispatcher) == (4, 0, 0, 0, 0, 0) and books(holding) == (0, 0, 0, 0, 4, 0)
    assert books(other) == (0, 0, 0, 0, 0, 0)
    assert [holding.cancel(each) for each in messages] == [True] * 4


@case
def cancel_of_what_waits_in_run_many(owner: Owner) -> None:
    """By its own dispatcher: its step ends as cancelled or has not begun yet, and the books say so."""
    answers: list[bool] = []

    def hook(context: Any, message: Any) -> bool:
        answers.append(dispatcher.cancel(messages[-1]))
        return False

    dispatcher = owner.start({"10-look": hook})
    messages = [mqcore.Message() for _ in range(4)]
    outcomes = dispatcher.hook("mq_step").run_many(messages, done=owner.done)
    settle(owner, dispatcher)
    entered = dispatcher.stats().entered
    assert len(outcomes) == 4 and entered == 4, (outcomes, entered)
    assert outcomes[:3] == [mqcore.CONTINUE] * 3 and outcomes[3] in (mqcore.CONTINUE, mqcore.FAIL)
    if any(answers):
        assert outcomes[3] is mqcore.FAIL and isinstance(messages[3].error, mqcore.Cancelled)
    assert owner.finished == []


@case
def refused_run_many(owner: Owner) -> None:
    """Whatever stops it before it starts, all its messages are as they were."""

    def broken() -> Any:
        yield messages[0]
        yield messages[1]
        raise OSError("no more")

    def reentrant() -> Any:
        yield messages[0]
        assert step.run(messages[0]) is mqcore.CONTINUE
        dispatcher.close()
        yield messages[1]

    class Strange(list):  # type: ignore[type-arg]
        def __iter__(self) -> Any:
            return iter([messages[0], BadRepr()])

    dispatcher = owner.start({"10-pass": lambda context, message: message is held})
    step = dispatcher.hook("mq_step")
    held = mqcore.Message()
    assert step.run(held) is None
    messages = [mqcore.Message() for _ in range(3)]
    for wrong, expected in (
        ([*messages, None], TypeError),
        ([*messages, 1], TypeError),
        ([*messages, BadRepr()], TypeError),
        ([*messages, BadClass()], TypeError),
        (Strange(), TypeError),
        ([*messages, messages[0]], mqcore.MqError),
        ([*messages, held], mqcore.MqError),
        (broken(), OSError),
        (None, TypeError),
    ):
        error = raised(step.run_many, wrong, done=owner.done)
        assert isinstance(error, expected), (wrong, error)
        assert step.run_many(messages) == [mqcore.CONTINUE] * 3
    for options in ({"done": 1}, {"nothing": 1}):
        assert isinstance(raised(step.run_many, messages, **options), TypeError)
    assert isinstance(raised(step.run_many, messages, "extra"), TypeError)
    assert step.run_many(messages) == [mqcore.CONTINUE] * 3
    before = dispatcher.stats().entered
    assert isinstance(raised(step.run_many, reentrant()), mqcore.DispatcherClosed)
    assert dispatcher.stats().entered == before + 1
    another = owner.start({})
    assert another.hook("mq_step").run_many([*messages, held]) == [mqcore.CONTINUE] * 4
    assert owner.finished == []


@case
@uvloop_only
def coroutine_hook_whose_step_was_ended_meanwhile(owner: Owner) -> None:
    """It raises, or returns, only after its step was cancelled and the message is in the next one: nothing happens to that."""
    for late in ("raise", "complete", "return"):
        go = asyncio.Event()
        ended: list[str] = []

        class Plugin:
            calls = 0

            async def mq_step(self, context: Any, message: Any, late: str = late, go: Any = go, ended: Any = ended) -> Any:
                self.calls += 1
                if self.calls == 2:
                    await asyncio.sleep(3600)
                while not go.is_set():
                    with contextlib.suppress(asyncio.CancelledError):  # it does not let itself be cancelled
                        await go.wait()
                ended.append(late)
                if late == "raise":
                    raise ValueError("late")
                return mqcore.COMPLETE if late == "complete" else None

        dispatcher = owner.start({"10-late": Plugin()})
        step = dispatcher.hook("mq_step")
        message = mqcore.Message()
        told: list[Any] = []

        async def main(
            dispatcher: Any = dispatcher,
            step: Any = step,
            message: Any = message,
            told: list[Any] = told,
            go: Any = go,
            ended: Any = ended,
        ) -> None:
            assert step.run(message, done=lambda message, outcome: told.append(("first", outcome))) is None
            await asyncio.sleep(0.01)
            assert dispatcher.cancel(message) and told == [("first", mqcore.FAIL)]
            assert step.run(message, done=lambda message, outcome: told.append(("second", outcome))) is None
            await asyncio.sleep(0.01)
            go.set()
            while not ended:
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.02)
            assert told == [("first", mqcore.FAIL)] and message.holder == "10-late" and message.error is None, told
            assert books(dispatcher) == (0, 0, 0, 1, 1, 0)
            dispatcher.cancel(message)
            await asyncio.sleep(0.01)
            assert told == [("first", mqcore.FAIL), ("second", mqcore.FAIL)]

        owner.run(main())  # type: ignore[attr-defined]
        owner.loop_errors.clear()


@case
def garbage_ends_what_held_lists(owner: Owner) -> None:
    """The collector runs while held() makes its list, and what it finds cancels all messages that are on it."""
    dispatcher = owner.start({"10-hold": lambda context, message: True}, hold_timeout=0)
    messages = [mqcore.Message() for _ in range(10)]

    class Garbage:
        def __init__(self, left: int) -> None:
            self.left = left
            self.me = self

        def __del__(self) -> None:
            if self.left:
                Garbage(self.left - 1)
                return
            for message in messages:
                dispatcher.cancel(message)

    for number in range(60):  # at each allocation once
        dispatcher.hook("mq_step").run_many(messages)
        Garbage(number)
        gc.set_threshold(1, 1, 1)
        try:
            listed = dispatcher.held()
        finally:
            gc.set_threshold(700, 10, 10)
        assert all(each.plugin == "10-hold" and each.hook == "mq_step" for each in listed)
        gc.collect()
        for message in messages:
            dispatcher.cancel(message)
