"""Rules 6 to 8: giving back is queued, may come early, and comes exactly once."""

from __future__ import annotations

import sys

import pytest
from rules_tools import BACK, OUTCOMES, Holder, give, in_thread

import mqcore


def depth():
    frame, n = sys._getframe(), 0
    while frame := frame.f_back:
        n += 1
    return n


# Rule 6


@pytest.mark.parametrize("what", BACK)
def test_rule_06_never_nested_in_the_caller(engine, what):
    trace = []
    holder = Holder()
    dispatcher = engine.start({"a": holder, "b": lambda context, message: trace.append("b")})
    message = engine.Message()
    dispatcher.hook("mq_step").run(message, done=lambda *args: trace.append("done"))
    give(holder.context, message, what)
    trace.append("returned")
    stats = dispatcher.stats()
    assert (stats.held, stats.running) == (0, 1)  # a message queued to go on is running
    engine.run_until(lambda: "done" in trace)
    assert trace == ["returned", *(["b"] if what in ("continue_", "retry") else []), "done"]


@pytest.mark.parametrize("what", BACK)
def test_rule_06_never_nested_in_a_hook_or_in_done(engine, what):
    """Two messages held: the hook of a third gives back one of them, and `done` of that one gives back the other."""
    trace = []
    holder = Holder(times=2)
    dispatcher = engine.start({"a": holder, "b": lambda context, message: hook(message)})
    step = dispatcher.hook("mq_step")
    first, second, third = engine.Message(), engine.Message(), engine.Message()

    def hook(message):
        if message is third:
            trace.append("hook begins")
            give(holder.context, first, what)
            trace.append("hook ends")

    def done(message, outcome):
        name = "first" if message is first else "second"
        trace.append(f"done {name} begins")
        if message is first:
            give(holder.context, second, what)
        trace.append(f"done {name} ends")

    assert step.run_many([first, second], done=done) == [None, None]
    assert step.run(third) is mqcore.CONTINUE
    engine.run_until(lambda: "done second ends" in trace)
    assert trace == [
        "hook begins",
        "hook ends",
        "done first begins",
        "done first ends",
        "done second begins",
        "done second ends",
    ]


def test_rule_06_never_nested_in_a_callback_of_the_loop(owner):
    trace = []

    def callback(context, message):
        context.continue_(message)
        trace.append("callback ends")

    def hook(context, message):
        context.start_timer(0, callback, context, message)
        return True

    dispatcher = owner.start({"a": hook, "b": lambda context, message: trace.append("b")})
    dispatcher.hook("mq_step").run(owner.Message(), done=owner.done)
    owner.run_until(lambda: owner.finished)
    assert trace == ["callback ends", "b"]


def test_rule_06_never_nested_in_asyncio_code(uvloop_owner):
    trace = []
    holder = Holder()
    dispatcher = uvloop_owner.start({"a": holder, "b": lambda context, message: trace.append("b")})

    async def main():
        message = mqcore.Message()
        ended = uvloop_owner.loop.create_future()
        dispatcher.hook("mq_step").run(message, done=lambda message, outcome: ended.set_result(outcome))
        holder.context.continue_(message)
        trace.append("returned")
        return await ended

    assert uvloop_owner.run(main()) is mqcore.CONTINUE
    assert trace == ["returned", "b"]


def test_rule_06_a_message_is_given_back_in_the_order_of_the_give_backs(engine):
    holder = Holder(times=1000)
    dispatcher = engine.start({"a": holder})
    messages = [engine.Message() for _ in range(1000)]
    dispatcher.hook("mq_step").run_many(messages, done=engine.done)
    for message in reversed(messages):
        holder.context.continue_(message)
    engine.run_until(lambda: len(engine.finished) == 1000)
    assert [message for message, _ in engine.finished] == messages[::-1]


def test_rule_06_100_000_give_backs_in_a_row_do_not_grow_the_stack(engine):
    """Each message is given back at once, and its `done` runs the next one."""
    depths = set()
    left = 100_000

    def hook(context, message):
        depths.add(depth())
        context.continue_(message)
        return True

    def done(message, outcome):
        nonlocal left
        left -= 1
        if left:
            assert step.run(engine.Message(), done=done) is None

    step = engine.start({"a": hook}).hook("mq_step")
    assert step.run(engine.Message(), done=done) is None
    engine.run_until(lambda: left == 0, timeout=60)
    assert len(depths) <= 2 and max(depths) < 100


@pytest.mark.parametrize("early", [True, False])
def test_rule_06_100_000_retries_in_a_row_do_not_grow_the_stack(engine, early):
    depths = set()

    def hook(context, message):
        depths.add(depth())
        if message.retries == 100_000:
            return False
        if not early:
            return mqcore.RETRY
        context.retry(message)
        return True

    dispatcher = engine.start({"a": hook}, max_retries=100_000)
    message = engine.Message()
    outcome = dispatcher.hook("mq_step").run(message, done=engine.done)
    assert outcome is (None if early else mqcore.CONTINUE)
    if early:
        engine.run_until(lambda: engine.finished, timeout=60)
        assert engine.finished == [(message, mqcore.CONTINUE)]
    assert message.retries == 100_000
    assert len(depths) <= 2 and max(depths) < 100


def test_rule_06_100_000_give_backs_before_one_turn(engine):
    holder = Holder(times=100_000)
    dispatcher = engine.start({"a": holder})
    messages = [engine.Message() for _ in range(100_000)]
    dispatcher.hook("mq_step").run_many(messages, done=engine.done)
    assert dispatcher.stats().held == 100_000
    for message in messages:
        holder.context.complete(message)
    assert dispatcher.stats().running == 100_000
    engine.run_until(lambda: len(engine.finished) == 100_000, timeout=60)


def test_rule_06_a_plugin_that_gives_back_for_ever_does_not_starve_the_loop(owner):
    """The queue is never empty, and still a timer fires."""
    fired = []

    def hook(context, message):
        if not message.retries:
            context.start_timer(0.02, fired.append, message)
        if fired:
            return False
        context.retry(message)
        return True

    dispatcher = owner.start({"a": hook}, max_retries=2**31 - 1)
    message = owner.Message()
    dispatcher.hook("mq_step").run(message, done=owner.done)
    owner.run_until(lambda: owner.finished)
    assert message.retries > 0


def test_rule_06_only_run_starts_at_once_also_in_a_hook(engine):
    trace = []

    def hook(context, message):
        trace.append("begins")
        if len(trace) < 3:
            trace.append(step.run(engine.Message(), done=engine.done))
        trace.append("ends")
        return False

    step = engine.start({"a": hook}).hook("mq_step")
    assert step.run(engine.Message(), done=engine.done) is mqcore.CONTINUE
    assert trace == ["begins"] * 3 + ["ends", mqcore.CONTINUE] * 2 + ["ends"]
    engine.turn()
    assert engine.finished == []


# Rule 7


@pytest.mark.parametrize("by", ["context", "hold", "thread"])
@pytest.mark.parametrize(
    ("early", "verdict", "outcome", "through_the_queue"),
    [
        ("continue_", True, mqcore.CONTINUE, True),
        ("continue_", "hold", mqcore.CONTINUE, True),
        ("complete", True, mqcore.COMPLETE, True),
        ("complete", "hold", mqcore.COMPLETE, True),
        ("retry", True, mqcore.CONTINUE, True),
        ("retry", "hold", mqcore.CONTINUE, True),
        ("continue_", False, mqcore.CONTINUE, False),
        ("continue_", None, mqcore.CONTINUE, False),
        ("continue_", mqcore.CONTINUE, mqcore.CONTINUE, False),
        ("complete", mqcore.COMPLETE, mqcore.COMPLETE, False),
        ("retry", mqcore.RETRY, mqcore.CONTINUE, False),
        ("complete", False, mqcore.MqError, False),
        ("retry", None, mqcore.MqError, False),
        ("continue_", mqcore.COMPLETE, mqcore.MqError, False),
        ("continue_", mqcore.RETRY, mqcore.MqError, False),
        ("retry", mqcore.COMPLETE, mqcore.MqError, False),
        ("complete", mqcore.CONTINUE, mqcore.MqError, False),
    ],
)
def test_rule_07_early_give_back(engine, by, early, verdict, outcome, through_the_queue):
    trace = []

    def hook(context, message):
        trace.append("a")
        if message.retries:
            return False
        hold = context.hold(message) if by == "hold" or verdict == "hold" else None
        if by == "hold":
            getattr(hold, early)()
        elif by == "thread":
            in_thread(getattr(context, early), message)
        else:
            getattr(context, early)(message)
        return hold if verdict == "hold" else verdict

    dispatcher = engine.start({"a": hook, "b": lambda context, message: trace.append("b")})
    message = engine.Message()
    result = dispatcher.hook("mq_step").run(message, done=engine.done)
    if outcome is mqcore.MqError:
        assert result is mqcore.FAIL
        assert isinstance(message.error, mqcore.MqError)
        assert "plugin" in str(message.error) and "mq_step" in str(message.error)
        assert trace == ["a"]
    elif through_the_queue:
        assert result is None
        assert trace == ["a"]
        engine.run_until(lambda: engine.finished)
        assert engine.finished == [(message, outcome)]
    else:
        assert result is outcome
    if outcome is not mqcore.MqError:
        assert message.error is None
        assert trace == {"continue_": ["a", "b"], "complete": ["a"], "retry": ["a", "a", "b"]}[early]
    calls = list(trace)
    engine.turn()
    assert trace == calls
    assert len(engine.finished) == through_the_queue


@pytest.mark.parametrize("verdict", [False, True, mqcore.COMPLETE, mqcore.RETRY, "raise"], ids=str)
def test_rule_07_early_fail_fails_whatever_is_returned(engine, verdict):
    error = ValueError("mine")

    def hook(context, message):
        context.fail(message, error)
        if verdict == "raise":
            raise LookupError
        return verdict

    dispatcher = engine.start({"a": hook})
    message = engine.Message()
    result = dispatcher.hook("mq_step").run(message, done=engine.done)
    if result is None:
        engine.run_until(lambda: engine.finished)
        assert engine.finished == [(message, mqcore.FAIL)]
    else:
        assert result is mqcore.FAIL
    if verdict == "raise":
        assert isinstance(message.error, LookupError)
    else:
        assert message.error is error


def test_rule_07_a_second_early_give_back_is_not_held(engine):
    def hook(context, message):
        context.complete(message)
        for what in BACK:
            with pytest.raises(mqcore.NotHeld):
                give(context, message, what)
        return True

    dispatcher = engine.start({"a": hook})
    message = engine.Message()
    dispatcher.hook("mq_step").run(message, done=engine.done)
    engine.run_until(lambda: engine.finished)
    assert engine.finished == [(message, mqcore.COMPLETE)]
    assert sum(row.refused for row in dispatcher.stats().hooks) == 4


@pytest.mark.parametrize("what", BACK)
def test_rule_07_raising_after_an_early_give_back_fails_the_step(engine, what):
    def hook(context, message):
        give(context, message, what)
        raise LookupError("after all")

    dispatcher = engine.start({"a": hook, "b": lambda context, message: pytest.fail("called")})
    message = engine.Message()
    assert dispatcher.hook("mq_step").run(message, done=engine.done) is mqcore.FAIL
    assert isinstance(message.error, LookupError)
    engine.turn()
    assert engine.finished == []


# Rule 8


@pytest.mark.parametrize("first", BACK)
@pytest.mark.parametrize("second", BACK)
def test_rule_08_giving_back_twice(engine, first, second):
    holder = Holder()
    dispatcher = engine.start({"a": holder})
    message = engine.Message()
    dispatcher.hook("mq_step").run(message, done=engine.done)
    give(holder.context, message, first)
    with pytest.raises(mqcore.NotHeld):  # while it is queued
        give(holder.context, message, second)
    engine.run_until(lambda: engine.finished)
    with pytest.raises(mqcore.NotHeld):  # and when the step is over
        give(holder.context, message, second)
    assert engine.finished == [(message, OUTCOMES[first])]
    (row,) = [row for row in dispatcher.stats().hooks if row.hook == "mq_step"]
    assert row.refused == 2


@pytest.mark.parametrize("what", BACK)
def test_rule_08_what_was_never_held(engine, what):
    holder = Holder(times=0)
    dispatcher = engine.start({"a": holder})
    message = engine.Message()
    dispatcher.hook("mq_step").run(message)
    with pytest.raises(mqcore.NotHeld):
        give(holder.context, message, what)
    with pytest.raises(mqcore.NotHeld):
        give(holder.context, engine.Message(), what)
    with pytest.raises(mqcore.NotHeld):
        holder.context.hold(message)
    for bad in (None, "x", object()):
        with pytest.raises(TypeError):
            give(holder.context, bad, what)


@pytest.mark.parametrize("what", BACK)
def test_rule_08_another_plugins(engine, what):
    first, second = Holder(times=0), Holder()
    dispatcher = engine.start({"10-first": first, "20-second": second})
    message = engine.Message()
    dispatcher.hook("mq_step").run(message, done=engine.done)
    with pytest.raises(mqcore.NotHeld) as caught:
        give(first.context, message, what)
    for part in ("10-first", "20-second", "mq_step"):  # the plugin, who holds it now, the hook
        assert part in str(caught.value)
    with pytest.raises(mqcore.NotHeld):
        first.context.hold(message)
    assert message.holder == "20-second"
    engine.turn()
    assert engine.finished == []
    refused = {row.plugin: row.refused for row in dispatcher.stats().hooks if row.hook == "mq_step"}
    assert refused["10-first"] >= 1 and refused["20-second"] == 0
    give(second.context, message, what)
    engine.run_until(lambda: engine.finished)


def test_rule_08_another_dispatchers(engine):
    holder, other = Holder(), Holder()
    dispatcher = engine.start({"a": holder})
    engine.start({"a": other}).hook("mq_step").run(engine.Message())
    message = engine.Message()
    dispatcher.hook("mq_step").run(message)
    with pytest.raises(mqcore.NotHeld):
        other.context.continue_(message)
    assert message.holder == "a"


def test_rule_08_a_stale_hold(engine):
    """Between two holds of one message by one plugin only a Hold can tell which is meant."""
    holds = []

    def hook(context, message):
        holds.append(context.hold(message))
        return holds[-1] if len(holds) < 3 else False

    dispatcher = engine.start({"a": hook})
    message = engine.Message()
    dispatcher.hook("mq_step").run(message, done=engine.done)
    holds[0].retry()
    engine.run_until(lambda: len(holds) == 2)
    for what in ("continue_", "complete", "retry"):
        with pytest.raises(mqcore.NotHeld):
            getattr(holds[0], what)()
    with pytest.raises(mqcore.NotHeld):
        holds[0].fail(ValueError("late"))
    assert message.holder == "a"
    holds[1].retry()
    engine.run_until(lambda: engine.finished)
    for hold in holds:
        with pytest.raises(mqcore.NotHeld):
            hold.continue_()
    assert engine.finished == [(message, mqcore.CONTINUE)]


def test_rule_08_a_hold_taken_later_is_of_the_same_hold(engine):
    holder = Holder()
    dispatcher = engine.start({"a": holder})
    message = engine.Message()
    dispatcher.hook("mq_step").run(message, done=engine.done)
    one, two = holder.context.hold(message), holder.context.hold(message)
    one.complete()
    with pytest.raises(mqcore.NotHeld):
        two.complete()
    with pytest.raises(mqcore.NotHeld):
        holder.context.complete(message)
    engine.run_until(lambda: engine.finished)
    assert engine.finished == [(message, mqcore.COMPLETE)]


def test_rule_08_a_hold_of_a_hook_that_returned_false_is_stale(engine):
    holds = []

    def hook(context, message):
        holds.append(context.hold(message))
        return False

    holder = Holder()
    dispatcher = engine.start({"a": hook, "b": holder})
    message = engine.Message()
    dispatcher.hook("mq_step").run(message)
    with pytest.raises(mqcore.NotHeld):
        holds[0].continue_()
    assert message.holder == "b"


@pytest.mark.parametrize("error", [None, 3, ValueError, object()], ids=["None", "int", "class", "object"])
def test_fail_takes_an_exception_or_a_text(engine, error):
    holder = Holder()
    dispatcher = engine.start({"a": holder})
    message = engine.Message()
    dispatcher.hook("mq_step").run(message, done=engine.done)
    with pytest.raises(TypeError):
        holder.context.fail(message, error)
    assert message.holder == "a"
    holder.context.fail(message, "in words")
    engine.run_until(lambda: engine.finished)
    assert isinstance(message.error, mqcore.MqError) and str(message.error) == "in words"
