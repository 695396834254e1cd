"""`hook.run_traced`: what is told of a step, and that the step is the same as without."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import weakref
from types import SimpleNamespace

import pytest
from loop_tools import Lender
from rules_tools import in_thread

import mqcore
from mqcore import COMPLETE, CONTINUE, FAIL, HOLD, RETRY, Trace


class Lends(Lender):
    verdict: object = True

    def mq_step(self, context, message):
        return self.verdict


def said(trace):
    return [(call.plugin, call.verdict) for call in trace.calls]


def run(owner, dispatcher, message=None, **options):
    """A traced step to its end: its outcome, and the trace."""
    trace = Trace(**options)
    message = owner.Message() if message is None else message
    owner.finished.clear()
    outcome = dispatcher.hook("mq_step").run_traced(message, trace, done=owner.done)
    if outcome is None:
        owner.run_until(lambda: owner.finished)
        ((finished, outcome),) = owner.finished
        assert finished is message
    else:
        assert not owner.finished
    assert trace.outcome is outcome
    assert trace.seconds >= sum((call.seconds or 0) + (call.held or 0) for call in trace.calls)
    return outcome, trace


def holds(give):
    """A hook that holds its message, and gives it back from a callback of the loop."""

    def hook(context, message):
        context.start_timer(0, getattr(context, give), message)
        return HOLD

    return hook


def test_calls_in_order_with_their_times(owner):
    dispatcher = owner.start({"10-a": lambda *_: False, "20-b": holds("continue_"), "30-c": lambda *_: None})
    outcome, trace = run(owner, dispatcher)
    assert (outcome, trace.name, trace.error, trace.not_called, trace.left_out) == (CONTINUE, "mq_step", None, (), 0)
    assert said(trace) == [("10-a", "CONTINUE"), ("20-b", "CONTINUE"), ("30-c", "CONTINUE")]
    assert [call.held is not None for call in trace.calls] == [False, True, False]
    begins = [call.begin for call in trace.calls]
    assert begins == sorted(begins) and all(call.seconds >= 0 for call in trace.calls)
    assert trace.started > 1.6e9
    assert [(row.calls, row.holds) for row in dispatcher.stats().hooks] == [(1, 0), (1, 1), (1, 0)]


@pytest.mark.parametrize("hold", [False, True])
@pytest.mark.parametrize(("give", "outcome"), [("complete", COMPLETE), ("continue_", CONTINUE)])
def test_what_is_not_called(owner, give, outcome, hold):
    verdict = {"complete": COMPLETE, "continue_": CONTINUE}[give]
    ends = holds(give) if hold else lambda *_: verdict
    dispatcher = owner.start({"10-a": lambda *_: False, "20-b": ends, "30-c": lambda *_: False, "40-d": lambda *_: False})
    found, trace = run(owner, dispatcher)
    assert found is outcome
    assert trace.not_called == (("30-c", "40-d") if outcome is COMPLETE else ())
    assert said(trace)[1] == ("20-b", outcome.name)


def test_a_step_without_plugins(owner):
    outcome, trace = run(owner, owner.start({}))
    assert (outcome, trace.calls, trace.not_called) == (CONTINUE, [], ())


@pytest.mark.parametrize("hold", [False, True])
def test_retry(owner, hold):
    calls = []

    def retries(context, message):
        calls.append(1)
        if len(calls) > 2:
            return False
        return holds("retry")(context, message) if hold else RETRY

    dispatcher = owner.start({"10-a": lambda *_: False, "20-b": retries})
    outcome, trace = run(owner, dispatcher)
    assert outcome is CONTINUE
    assert said(trace) == [("10-a", "CONTINUE"), ("20-b", "RETRY")] * 2 + [("10-a", "CONTINUE"), ("20-b", "CONTINUE")]


def test_a_retry_after_a_change_of_plugins(owner):
    """It goes on with the plugins that there are by then, and is told of to its end."""
    lender = Lends()
    dispatcher = owner.start({"10-a": lambda *_: False, "20-b": lender})
    message, trace = owner.Message(), Trace()
    assert dispatcher.hook("mq_step").run_traced(message, trace, done=owner.done) is None
    dispatcher.plugins.remove("10-a")
    dispatcher.plugins.add("30-new", SimpleNamespace(mq_step=lambda *_: COMPLETE))
    dispatcher.plugins.add("40-new", SimpleNamespace(mq_step=lambda *_: False))
    lender.verdict = False
    lender.context.retry(message)
    owner.run_until(lambda: owner.finished)
    assert said(trace) == [("10-a", "CONTINUE"), ("20-b", "RETRY"), ("20-b", "CONTINUE"), ("30-new", "COMPLETE")]
    assert trace.not_called == ("40-new",)


def test_a_change_of_plugins_without_retry(owner):
    """Rule 18: the step ends with the plugins that it began with; they end when it has ended."""
    lender, cleaned = Lends(), []
    last = SimpleNamespace(mq_step=lambda *_: False, mq_context_cleanup=lambda context: cleaned.append(1))
    dispatcher = owner.start({"20-b": lender, "30-c": last})
    message, trace = owner.Message(), Trace()
    assert dispatcher.hook("mq_step").run_traced(message, trace, done=owner.done) is None
    dispatcher.plugins.remove("30-c")
    owner.turn()
    assert not cleaned
    lender.context.continue_(message)
    owner.run_until(lambda: owner.finished)
    assert said(trace) == [("20-b", "CONTINUE"), ("30-c", "CONTINUE")]
    owner.run_until(lambda: cleaned)  # though the trace is there


@pytest.mark.parametrize("on_error", ["fail", "continue"])
def test_a_hook_that_raises(owner, on_error):
    def raises(context, message):
        raise ValueError("no")

    dispatcher = owner.start(
        {"10-a": raises, "20-b": lambda *_: False}, config={"10-a": {"on_error": on_error}}
    )
    outcome, trace = run(owner, dispatcher)
    assert trace.calls[0].error == "ValueError: no"
    if on_error == "fail":
        assert (outcome, said(trace), trace.error) == (FAIL, [("10-a", "FAIL")], "ValueError: no")
        assert trace.not_called == ("20-b",)
    else:
        assert (outcome, said(trace), trace.error) == (CONTINUE, [("10-a", "CONTINUE"), ("20-b", "CONTINUE")], None)


@pytest.mark.parametrize("how", ["cancel", "timeout", "abandoned", "fail", "close", "retry_limit"])
def test_steps_that_fail_while_they_are_held(owner, how):
    texts = {
        "cancel": "Cancelled: ",
        "timeout": "HoldTimeout: ",
        "abandoned": "Abandoned: ",
        "fail": "MqError: too bad",
        "close": "DispatcherClosed: ",
        "retry_limit": "RetryLimit: ",
    }
    context = None

    def hook(given, message):
        nonlocal context
        context = given
        return RETRY if how == "retry_limit" else HOLD

    timeout = 0.01 if how == "timeout" else 30
    dispatcher = owner.start({"10-a": hook, "20-b": lambda *_: False}, hold_timeout=timeout, max_retries=2)
    trace, finished = Trace(), []
    message = owner.Message()
    outcome = dispatcher.hook("mq_step").run_traced(message, trace, done=lambda _, outcome: finished.append(outcome))
    if how == "cancel":
        assert dispatcher.cancel(message)
    elif how == "close":
        dispatcher.close()
    elif how == "fail":
        context.fail(message, "too bad")
    elif how == "abandoned":
        del message
        gc.collect()
    owner.run_until(lambda: finished or outcome)
    assert (outcome or finished[0]) is trace.outcome is FAIL
    assert trace.error.startswith(texts[how])
    assert trace.calls[-1].error == trace.error and trace.calls[-1].verdict == "FAIL"
    assert trace.not_called == ("20-b",)
    assert (trace.calls[-1].held is None) == (how == "retry_limit")


def test_coroutine_hooks(uvloop_owner):
    async def waits(context, message):
        await asyncio.sleep(0)
        return COMPLETE

    async def returns(context, message):
        return False

    dispatcher = uvloop_owner.start({"10-a": returns, "20-b": waits, "30-c": lambda *_: False})
    outcome, trace = run(uvloop_owner, dispatcher)
    assert (outcome, said(trace)) == (COMPLETE, [("10-a", "CONTINUE"), ("20-b", "COMPLETE")])
    assert trace.calls[1].held is not None  # a coroutine that does not wait is no hold where tasks begin at once


def test_given_back_early_and_by_a_thread(owner):
    def early(context, message):
        context.continue_(message)
        return True

    def by_thread(context, message):
        hold = context.hold(message)
        in_thread(hold.continue_)
        return hold

    outcome, trace = run(owner, owner.start({"10-a": early, "20-b": by_thread, "30-c": lambda *_: False}))
    assert outcome is CONTINUE
    assert [call.held is not None for call in trace.calls] == [True, True, False]


def test_extra_arguments(owner):
    got = []
    plugin = SimpleNamespace(mq_other=lambda context, message, extra: got.append(extra))
    dispatcher = owner.start({"10-a": plugin})
    trace = Trace()
    assert dispatcher.hook("mq_other").run_traced(owner.Message(), trace, "x") is CONTINUE
    assert (got, said(trace)) == (["x"], [("10-a", "CONTINUE")])
    with pytest.raises(TypeError, match="0 extra arguments were given, 1 are needed"):
        dispatcher.hook("mq_other").run_traced(owner.Message(), Trace())


def test_what_changed(owner):
    def look(message):
        before, message.data["seen"] = message.data.get("seen"), message.payload
        return [f"{before} -> {message.payload}"] if before != message.payload else []

    def changes(value):
        def hook(context, message):
            message.payload = value

        return hook

    def holds_and_changes(context, message):
        def later():
            message.payload = 3
            context.continue_(message)

        context.start_timer(0, later)
        return True

    dispatcher = owner.start({"10-a": changes(1), "20-b": changes(1), "30-c": holds_and_changes})
    outcome, trace = run(owner, dispatcher, owner.Message(0), look=look)
    assert outcome is CONTINUE
    assert [call.changes for call in trace.calls] == [("0 -> 1",), (), ("1 -> 3",)]


def test_a_look_that_raises_fails_nothing(owner):
    def look(message):
        raise ValueError("no")

    outcome, trace = run(owner, owner.start({"10-a": lambda *_: False}), look=look)
    assert outcome is CONTINUE
    assert trace.calls[0].changes == ("cannot be looked at: ValueError: no",)


def test_no_more_calls_are_noted_than_most(owner):
    dispatcher = owner.start({"10-a": lambda *_: RETRY}, max_retries=10)
    outcome, trace = run(owner, dispatcher, most=4)
    assert (outcome, len(trace.calls), trace.left_out) == (FAIL, 4, 7)


def test_the_message_is_not_kept(owner):
    dispatcher = owner.start({"10-a": lambda *_: False})
    message, trace = owner.Message(), Trace()
    weak = weakref.ref(message)
    assert dispatcher.hook("mq_step").run_traced(message, trace) is CONTINUE
    del message
    assert weak() is None


def test_what_a_trace_refers_to_goes_without_the_collector(owner):
    dispatcher = owner.start({"10-a": lambda *_: False})
    gc.collect()
    gc.disable()
    try:
        trace = Trace()
        dispatcher.hook("mq_step").run_traced(owner.Message(), trace)
        del trace
        assert gc.collect() == 0
    finally:
        gc.enable()


def test_wrong_use(owner):
    lender = Lends()
    dispatcher = owner.start({"10-a": lender})
    step, message, trace = dispatcher.hook("mq_step"), owner.Message(), Trace()
    assert step.run_traced(message, trace, done=owner.done) is None
    with pytest.raises(mqcore.MqError, match="the trace has been used: each step needs a new one"):
        step.run_traced(owner.Message(), trace)
    with pytest.raises(mqcore.MqError, match="the message is in a step of mq_step that has not ended"):
        step.run_traced(message, other := Trace())
    with pytest.raises(mqcore.MqError, match="in use"):
        trace.__init__()
    for wrong in (None, "trace"):
        with pytest.raises(TypeError):
            step.run_traced(owner.Message(), wrong)
    with pytest.raises(ValueError, match="most is a number of calls, not 0"):
        Trace(most=0)
    lender.context.continue_(message)
    owner.run_until(lambda: owner.finished)
    assert said(trace) == [("10-a", "CONTINUE")]  # what was refused changed nothing
    lender.verdict = False
    assert step.run_traced(owner.Message(), other) is CONTINUE
    assert repr(trace) == "<mqcore.Trace of mq_step, 1 calls>" and repr(Trace()) == "<mqcore.Trace, not used yet>"
    dispatcher.close()
    with pytest.raises(mqcore.DispatcherClosed):
        step.run_traced(owner.Message(), Trace())


def test_what_ends_the_program_in_a_look_leaves_through_the_call(uvloop_owner):
    """Rule 13: it fails the step, or comes after it; it is not lost."""
    looks = []

    def look(message):
        looks.append(1)
        if len(looks) == 2:
            raise SystemExit("enough")
        return ()

    dispatcher = uvloop_owner.start({"10-a": lambda *_: False, "20-b": lambda *_: False})
    trace = Trace(look)
    message = uvloop_owner.Message()
    with contextlib.suppress(SystemExit):
        dispatcher.hook("mq_step").run_traced(message, trace)
        uvloop_owner.turn()
        pytest.fail("it was lost")
    assert said(trace) == [("20-b", "CONTINUE")] and trace.left_out == 1


def test_the_books_are_the_same(owner):
    """As without: calls, holds, and the steps."""
    hooks = {"10-a": lambda *_: False, "20-b": holds("continue_"), "30-c": lambda *_: COMPLETE, "40-d": lambda *_: False}
    rows = []
    for traced in (False, True):
        dispatcher = owner.start(hooks)
        message = owner.Message()
        owner.finished.clear()
        if traced:
            assert dispatcher.hook("mq_step").run_traced(message, Trace(), done=owner.done) is None
        else:
            assert dispatcher.hook("mq_step").run(message, done=owner.done) is None
        owner.run_until(lambda: owner.finished)
        stats = dispatcher.stats()
        rows.append([(row.plugin, row.calls, row.holds, row.continues, row.completes) for row in stats.hooks] + [stats.entered])
    assert rows[0] == rows[1]
