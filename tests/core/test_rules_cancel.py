"""Rules 14 and 15: steps that are cancelled, and `done`."""

from __future__ import annotations

import pytest
from loop_tools import Lender

import mqcore


def let_pass(context, message):
    return False


# Rule 14


def test_rule_14_cancel_ends_a_step_at_once(engine):
    holder = Lender()
    dispatcher = engine.start({"a": holder, "b": lambda context, message: pytest.fail("called")})
    message = engine.Message()
    dispatcher.hook("mq_step").run(message, done=engine.done)
    hold = holder.context.hold(message)
    assert dispatcher.cancel(message) is True
    assert engine.finished == [(message, mqcore.FAIL)]
    assert isinstance(message.error, mqcore.Cancelled)
    stats = dispatcher.stats()
    assert (stats.cancelled, stats.failed, stats.held) == (1, 0, 0)
    for give_back in (hold.continue_, hold.complete, hold.retry, lambda: holder.context.continue_(message)):
        with pytest.raises(mqcore.NotHeld):
            give_back()
    assert dispatcher.cancel(message) is False
    engine.turn()
    assert len(engine.finished) == 1


def test_rule_14_cancel_of_a_message_that_is_queued(engine):
    holder = Lender()
    dispatcher = engine.start({"a": holder, "b": lambda context, message: pytest.fail("called")})
    messages = [engine.Message() for _ in range(3)]
    dispatcher.hook("mq_step").run_many(messages, done=engine.done)
    for message in messages:
        holder.context.complete(message)
    assert dispatcher.cancel(messages[1]) is True
    assert engine.finished == [(messages[1], mqcore.FAIL)]
    engine.run_until(lambda: len(engine.finished) == 3)
    assert engine.finished[1:] == [(messages[0], mqcore.COMPLETE), (messages[2], mqcore.COMPLETE)]


def test_rule_14_cancel_of_what_is_in_no_step(engine):
    dispatcher = engine.start({"a": let_pass})
    message = engine.Message()
    assert dispatcher.cancel(message) is False
    dispatcher.hook("mq_step").run(message)
    assert dispatcher.cancel(message) is False
    assert message.error is None
    for bad in (None, "x"):
        with pytest.raises(TypeError):
            dispatcher.cancel(bad)


@pytest.mark.parametrize("verdict", [False, True, mqcore.COMPLETE, mqcore.RETRY, "raise", "early", "hold"], ids=str)
def test_rule_14_cancel_from_within_its_hook_takes_effect_when_that_returns(engine, verdict):
    trace = []

    def hook(context, message):
        hold = context.hold(message)
        if verdict == "early":
            context.complete(message)
        assert dispatcher.cancel(message) is True
        trace.append("a")
        assert dispatcher.stats().running == 1
        if verdict == "raise":
            raise ValueError
        return {"early": True, "hold": hold}.get(verdict, verdict)

    dispatcher = engine.start({"a": hook, "b": lambda context, message: trace.append("b")})
    message = engine.Message()
    assert dispatcher.hook("mq_step").run(message, done=engine.done) is mqcore.FAIL
    assert isinstance(message.error, mqcore.Cancelled)
    assert trace == ["a"]
    assert dispatcher.stats().cancelled == 1
    engine.turn()
    assert engine.finished == []


def test_rule_14_cancel_from_a_hook_of_another_message(engine):
    holder = Lender()

    def hook(context, message):
        if message is second:
            assert dispatcher.cancel(first) is True
            assert engine.finished == [(first, mqcore.FAIL)]
        return False

    dispatcher = engine.start({"a": hook, "b": holder})
    first, second = engine.Message(), engine.Message()
    step = dispatcher.hook("mq_step")
    step.run_many([first, second], done=engine.done)
    assert second.holder == "b"


def test_rule_14_a_cancelled_message_can_run_again_in_done(engine):
    holder = Lender()
    outcomes = []

    def done(message, outcome):
        outcomes.append(type(message.error))
        if len(outcomes) == 1:
            assert step.run(message, done=done) is None

    dispatcher = engine.start({"a": holder})
    step = dispatcher.hook("mq_step")
    message = engine.Message()
    step.run(message, done=done)
    assert dispatcher.cancel(message) is True
    assert outcomes == [mqcore.Cancelled]
    assert message.holder == "a" and message.error is None
    holder.context.complete(message)
    engine.run_until(lambda: len(outcomes) == 2)
    assert outcomes == [mqcore.Cancelled, type(None)]


@pytest.mark.parametrize("how", ["give back", "cancel", "deadline", "close"])
def test_rule_14_timers_and_watchers_on_a_hold_end_with_it(owner, socket_pair, how):
    ours, theirs = socket_pair
    fired, holds, late = [], [], []

    def hook(context, message):
        hold = context.hold(message)
        hold.start_timer(0.2, fired.append, "timer")
        hold.watch(ours.fileno(), mqcore.READ, lambda watcher, events: fired.append("watcher"))
        context.start_timer(0.22, late.append, "of the context")
        holds.append(hold)
        return hold

    dispatcher = owner.start({"a": hook}, hold_timeout=0.005 if how == "deadline" else 30)
    other = owner.start({"b": lambda context, message: context.start_timer(0.22, late.append, "other") is None})
    other.hook("mq_step").run(owner.Message())
    message = owner.Message()
    dispatcher.hook("mq_step").run(message, done=owner.done)
    if how == "give back":
        holds[0].continue_()
    elif how == "cancel":
        dispatcher.cancel(message)
    elif how == "close":
        dispatcher.close()
    owner.run_until(lambda: owner.finished)
    theirs.send(b"x")
    owner.run_until(lambda: len(late) == (1 if how == "close" else 2))
    assert fired == []


def test_rule_14_a_timer_on_a_hold_that_is_over_raises(owner):
    holds = []

    def hook(context, message):
        holds.append(context.hold(message))
        return False

    owner.start({"a": hook}).hook("mq_step").run(owner.Message())
    with pytest.raises(mqcore.NotHeld):
        holds[0].start_timer(0, print)
    with pytest.raises(mqcore.NotHeld):
        holds[0].watch(0, mqcore.READ, print)


# Rule 15


def test_rule_15_done_is_not_called_for_a_step_that_ended_in_run(engine):
    def hook(context, message):
        if message.data["what"] == "raise":
            raise ValueError
        return message.data["what"]

    step = engine.start({"a": hook}).hook("mq_step")
    for what in (False, mqcore.COMPLETE, mqcore.RETRY, "bad", "raise"):
        message = engine.Message()
        message.data["what"] = what
        assert step.run(message, done=engine.done) is not None
    engine.turn()
    assert engine.finished == []


def test_rule_15_done_is_called_once_for_each_run_that_was_held(engine):
    holders = [Lender(), Lender()]
    dispatcher = engine.start({"a": holders[0], "b": holders[1]})
    step = dispatcher.hook("mq_step")
    message = engine.Message()
    for n in range(1, 4):
        assert step.run(message, done=engine.done) is None
        holders[0].context.continue_(message)
        engine.run_until(lambda: message.holder == "b")
        assert len(engine.finished) == n - 1
        holders[1].context.continue_(message)
        engine.run_until(lambda n=n: len(engine.finished) == n)
    engine.turn()
    assert engine.finished == [(message, mqcore.CONTINUE)] * 3


def test_rule_15_without_done_the_outcome_is_nobodys(engine):
    holder = Lender()
    dispatcher = engine.start({"a": holder})
    message = engine.Message()
    assert dispatcher.hook("mq_step").run(message) is None
    holder.context.complete(message)
    engine.run_until(lambda: dispatcher.stats().completed == 1)


def test_rule_15_done_that_raises_goes_to_the_loops_exception_handler(engine):
    holder = Lender()
    dispatcher = engine.start({"a": holder})
    error = ValueError("in done")
    first, second = engine.Message(), engine.Message()

    def done(message, outcome):
        engine.done(message, outcome)
        if message is first:
            raise error

    dispatcher.hook("mq_step").run_many([first, second], done=done)
    holder.context.continue_(first)
    holder.context.continue_(second)
    engine.run_until(lambda: len(engine.finished) == 2 and engine.loop_errors)
    assert engine.loop_errors == [error]
    engine.loop_errors.clear()
    assert first.error is None
    assert dispatcher.stats().continued == 2


def test_rule_15_done_that_raises_does_not_leave_through_cancel_or_close(engine):
    dispatcher = engine.start({"a": Lender()})
    messages = [engine.Message() for _ in range(3)]

    def done(message, outcome):
        engine.done(message, outcome)
        raise ValueError("in done")

    dispatcher.hook("mq_step").run_many(messages, done=done)
    assert dispatcher.cancel(messages[0]) is True
    dispatcher.close()
    assert len(engine.finished) == 3
    engine.turn()
    assert len(engine.loop_errors) == 3
    engine.loop_errors.clear()


def test_rule_15_done_must_be_callable(engine):
    dispatcher = engine.start({"a": Lender()})
    with pytest.raises(TypeError):
        dispatcher.hook("mq_step").run(engine.Message(), done=3)
    assert dispatcher.stats().entered == 0
