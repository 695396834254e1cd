"""Rules 10 and 11: a hold ends at its deadline, and a step after so many retries."""

from __future__ import annotations

import time

import pytest
from loop_tools import Lender

import mqcore
import mqcore.loop._reactor


def holds(context, message):
    return True


# Rule 10


@pytest.mark.parametrize("by", ["message", "hold"])
def test_rule_10_a_hold_that_is_too_long_fails_the_step(engine, by):
    kept = []

    def hook(context, message):
        if by == "message":
            return True
        kept.append(context.hold(message))
        return kept[0]

    dispatcher = engine.start({"10-slow": hook, "20": lambda context, message: pytest.fail("called")}, hold_timeout=0.02)
    message = engine.Message()
    dispatcher.hook("mq_step").run(message, done=engine.done)
    engine.run_until(lambda: engine.finished)
    assert engine.finished == [(message, mqcore.FAIL)]
    assert isinstance(message.error, mqcore.HoldTimeout)
    assert "10-slow" in str(message.error) and "mq_step" in str(message.error)
    assert message.holder is None
    (row,) = [row for row in dispatcher.stats().hooks if (row.plugin, row.hook) == ("10-slow", "mq_step")]
    assert (row.holds, row.timeouts, row.failures, row.abandoned) == (1, 1, 1, 0)


def test_rule_10_a_give_back_after_the_deadline_is_not_held(engine):
    holder = Lender()
    dispatcher = engine.start({"a": holder}, hold_timeout=0.005)
    message = engine.Message()
    dispatcher.hook("mq_step").run(message, done=engine.done)
    hold = holder.context.hold(message)
    engine.run_until(lambda: engine.finished)
    for give_back in (hold.continue_, lambda: holder.context.continue_(message)):
        with pytest.raises(mqcore.NotHeld):
            give_back()
    engine.turn()
    assert len(engine.finished) == 1


def test_rule_10_never_early(owner):
    """Not even when the hook blocked the loop before it began to hold, and many holds begin at different times."""
    begun, early = {}, []

    def hook(context, message):
        time.sleep(0.003)
        begun[message] = time.monotonic()
        return True

    def done(message, outcome):
        early.append(time.monotonic() - begun[message] < 0.05)

    step = owner.start({"a": hook}, hold_timeout=0.05).hook("mq_step")
    messages = [owner.Message() for _ in range(20)]
    for message in messages:
        step.run(message, done=done)
        owner.turn()
    owner.run_until(lambda: len(early) == 20)
    assert not any(early)


def test_rule_10_each_hold_has_a_deadline_of_its_own(engine):
    """What is given back in time starts afresh at the next plugin."""
    holder, came_on = Lender(), []
    dispatcher = engine.start({"a": holder, "b": lambda context, message: came_on.append(message) or True}, hold_timeout=0.05)
    first, second = engine.Message(), engine.Message()
    dispatcher.hook("mq_step").run_many([first, second], done=engine.done)
    if engine.name == "reference":  # its clock stands still
        engine.spin(wait=True)
    holder.context.continue_(first)
    engine.run_until(lambda: len(engine.finished) == 2)
    assert came_on == [first]
    assert [message for message, _ in engine.finished] == [second, first]
    assert isinstance(first.error, mqcore.HoldTimeout) and isinstance(second.error, mqcore.HoldTimeout)


def test_rule_10_per_plugin_in_its_config(engine):
    slow, quick = Lender(), Lender()
    dispatcher = engine.start({"a": slow}, config={"a": {"hold_timeout": 1000}}, hold_timeout=0.005)
    other = engine.start({"b": quick}, config={"b": {"hold_timeout": 0.005}}, hold_timeout=1000)
    patient, hasty = engine.Message(), engine.Message()
    dispatcher.hook("mq_step").run(patient, done=engine.done)
    other.hook("mq_step").run(hasty, done=engine.done)
    engine.run_until(lambda: engine.finished)
    assert engine.finished == [(hasty, mqcore.FAIL)]
    assert patient.holder == "a"


@pytest.mark.parametrize("where", ["option", "config"])
def test_rule_10_no_deadline(engine, where):
    """A hold_timeout of 0 is none; a plugin beside it shows that time has passed."""
    holder = Lender()
    config = {"a": {"hold_timeout": 0.01}, **({"b": {"hold_timeout": 0}} if where == "config" else {})}
    option = {"hold_timeout": 0} if where == "option" else {"hold_timeout": 0.005}

    def first(context, message):
        return message is hasty

    dispatcher = engine.start({"a": first, "b": holder}, config=config, **option)
    endless, hasty = engine.Message(), engine.Message()
    dispatcher.hook("mq_step").run_many([endless, hasty], done=engine.done)
    engine.run_until(lambda: engine.finished)
    engine.turn()
    assert engine.finished == [(hasty, mqcore.FAIL)]
    assert endless.holder == "b"
    holder.context.continue_(endless)
    engine.run_until(lambda: len(engine.finished) == 2)


def test_rule_10_deadlines_come_in_the_order_in_which_they_are_due(engine):
    config = {name: {"hold_timeout": seconds} for name, seconds in {"a": 0.09, "b": 0.03, "c": 0.06}.items()}
    plugins = {name: (lambda context, message: message.data["who"] == context.plugin.name) for name in config}
    step = engine.start(plugins, config=config).hook("mq_step")
    messages = []
    for name in config:
        messages.append(engine.Message())
        messages[-1].data["who"] = name
    assert step.run_many(messages, done=engine.done) == [None] * 3
    engine.run_until(lambda: len(engine.finished) == 3)
    assert [message.data["who"] for message, _ in engine.finished] == ["b", "c", "a"]


def test_rule_10_one_timer_serves_all_holds(owner):
    dispatcher = owner.start({"a": holds}, hold_timeout=0.05)
    step = dispatcher.hook("mq_step")
    messages = [owner.Message() for _ in range(10_000)]
    step.run(messages[0], done=owner.done)
    before = mqcore.loop._reactor.handles()
    step.run_many(messages[1:], done=owner.done)
    assert mqcore.loop._reactor.handles() == before
    owner.run_until(lambda: len(owner.finished) == 10_000)
    assert mqcore.loop._reactor.handles()[0] == before[0]
    assert dispatcher.stats().failed == 10_000


def test_rule_10_a_deadline_in_done_of_a_deadline(engine):
    """`done` of a step that failed at its deadline runs the message again, which is held to its deadline again."""
    outcomes = []

    def done(message, outcome):
        outcomes.append(type(message.error))
        if len(outcomes) < 3:
            step.run(message, done=done)

    step = engine.start({"a": holds}, hold_timeout=0.005).hook("mq_step")
    message = engine.Message()
    step.run(message, done=done)
    engine.run_until(lambda: len(outcomes) == 3)
    assert outcomes == [mqcore.HoldTimeout] * 3


@pytest.mark.parametrize("bad", [-1, float("nan"), "30", None, -0.5], ids=repr)
def test_hold_timeout_is_checked(owner, bad):
    with pytest.raises((ValueError, TypeError)):
        owner.start({}, hold_timeout=bad)


@pytest.mark.parametrize("bad", [-1, 1.5, "16", None], ids=repr)
def test_max_retries_is_checked(owner, bad):
    with pytest.raises((ValueError, TypeError)):
        owner.start({}, max_retries=bad)


def test_rule_10_a_loop_ends_when_nothing_is_held_and_not_before(pyuv_owner):
    """`Loop.run` returns when nothing keeps it alive: an idle dispatcher does not, a held message does."""
    dispatcher = pyuv_owner.start({"a": holds}, hold_timeout=0.03)
    pyuv_owner._alive.stop()
    pyuv_owner.loop.run()
    message = pyuv_owner.Message()
    dispatcher.hook("mq_step").run(message, done=pyuv_owner.done)
    pyuv_owner.loop.run()
    assert pyuv_owner.finished == [(message, mqcore.FAIL)]
    pyuv_owner.loop.run()


# Rule 11


@pytest.mark.parametrize("limit", [0, 1, 3])
@pytest.mark.parametrize("by", ["verdict", "early", "late"])
def test_rule_11_the_retry_after_the_last_fails(engine, limit, by):
    calls = []

    def hook(context, message):
        calls.append(context)
        if by == "verdict":
            return mqcore.RETRY
        if by == "early":
            context.retry(message)
        return True

    dispatcher = engine.start({"10-again": hook}, max_retries=limit)
    message = engine.Message()
    outcome = dispatcher.hook("mq_step").run(message, done=engine.done)
    if by == "verdict":
        assert outcome is mqcore.FAIL
    else:
        while not engine.finished:
            if by == "late":
                calls[-1].retry(message)
            n = len(calls)
            engine.run_until(lambda n=n: engine.finished or len(calls) > n)
        assert engine.finished == [(message, mqcore.FAIL)]
    assert isinstance(message.error, mqcore.RetryLimit)
    assert "10-again" in str(message.error)
    assert len(calls) == limit + 1
    (row,) = [row for row in dispatcher.stats().hooks if row.hook == "mq_step"]
    assert row.failures == 1


def test_rule_11_counts_the_retries_of_all_plugins_in_one_step_only(engine):
    def hook(context, message):
        tries = message.data.setdefault("tries", {})
        tries[context.plugin.name] = tries.get(context.plugin.name, 0) + 1
        return mqcore.RETRY if tries[context.plugin.name] <= 2 else False

    step = engine.start({"a": hook, "b": hook}, max_retries=4).hook("mq_step")
    for _ in range(2):
        message = engine.Message()
        assert step.run(message) is mqcore.CONTINUE
        assert message.retries == 4
        message.data.clear()
        assert step.run(message) is mqcore.CONTINUE
        assert message.retries == 4
    step = engine.start({"a": hook, "b": hook}, max_retries=3).hook("mq_step")
    message = engine.Message()
    assert step.run(message) is mqcore.FAIL
    assert isinstance(message.error, mqcore.RetryLimit)


def test_rule_11_the_default_is_16(engine):
    step = engine.start({"a": lambda context, message: mqcore.RETRY}).hook("mq_step")
    message = engine.Message()
    assert step.run(message) is mqcore.FAIL
    assert isinstance(message.error, mqcore.RetryLimit)
    assert message.retries in (16, 17)
