"""Timers: what they keep alive, and what they end with."""

from __future__ import annotations

import gc
import logging
import re
import threading
import time
import weakref

import pytest
from loop_tools import borrow

import mqcore
import mqcore.loop._reactor


class Anything:
    """What can be referred to weakly."""


# What they refuse


def test_a_give_back_as_a_callback_that_takes_another_number_of_arguments_is_refused_there(owner):
    def hook(context, message):
        hold = context.hold(message)
        told = "Hold.continue_() takes no arguments, and would get"
        with pytest.raises(TypeError, match=re.escape(f"start_timer(): {told} 1: what follows the callback")):
            hold.start_timer(0.001, hold.continue_, message)
        with pytest.raises(TypeError, match=re.escape(f"watch(): {told} 2: the watcher, the events")):
            hold.watch(0, mqcore.READ, hold.continue_)
        with pytest.raises(TypeError, match=re.escape("Hold.fail() takes 1 argument, and would get 0")):
            hold.start_timer(0.001, hold.fail)
        with pytest.raises(TypeError, match=re.escape("Context.complete() takes 1 argument, and would get 2")):
            context.start_timer(0.001, context.complete, message, 1)
        context.start_timer(0.001, context.fail, message, "this one fits")
        return mqcore.HOLD

    dispatcher = owner.start({"a": hook})
    message = mqcore.Message()
    assert dispatcher.hook("mq_step").run(message) is None
    owner.run_until(lambda: message.holder is None)
    assert str(message.error) == "this one fits"


# What they keep alive


def test_a_running_timer_needs_no_reference(owner):
    _, context = borrow(owner)
    fired = []
    context.start_timer(0.005, fired.append, 1)
    gc.collect()
    owner.run_until(lambda: fired)


def test_a_running_timer_keeps_its_callback_and_arguments(owner):
    _, context = borrow(owner)
    argument, fired = Anything(), []
    seen = weakref.ref(argument)
    context.start_timer(0.005, fired.append, argument)
    del argument
    gc.collect()
    owner.run_until(lambda: fired)
    assert fired.pop() is seen()
    gc.collect()
    assert seen() is None


@pytest.mark.parametrize("end", ["stop", "fire", "close", "raise"])
def test_a_timer_in_a_cycle_is_collected_once_it_is_over(owner, end, monkeypatch):
    monkeypatch.setattr(logging.getLogger("mqcore.plugins.lender"), "disabled", True)  # a record would keep the error
    dispatcher, context = borrow(owner)
    knot = Anything()
    fired = []

    def callback(knot):
        fired.append(1)
        if end == "raise":
            raise LookupError(knot)

    knot.timer = context.start_timer(0 if end in ("fire", "raise") else 100, callback, knot)
    knot.itself = knot
    seen = weakref.ref(knot)
    timer = knot.timer
    del knot
    gc.collect()
    assert seen() is not None  # it runs
    if end == "stop":
        assert timer.stop() is True
    elif end == "close":
        dispatcher.close()
    else:
        owner.run_until(lambda: fired)
    del timer
    gc.collect()
    assert seen() is None


def test_a_timer_in_a_cycle_that_is_reset_is_not_collected(owner):
    _, context = borrow(owner)
    knot = Anything()
    knot.timer = context.start_timer(100, lambda knot: None, knot)
    seen = weakref.ref(knot)
    knot.timer.stop()
    knot.timer.reset(100)
    del knot
    gc.collect()
    assert seen() is not None
    seen().timer.stop()
    gc.collect()
    assert seen() is None


def test_a_timer_in_a_cycle_with_a_message_and_its_hold(owner):
    class Message(mqcore.Message):
        pass

    def hook(context, message):
        hold = context.hold(message)
        message.data["timer"] = hold.start_timer(0.002, hold.complete)
        return hold

    dispatcher = owner.start({"a": hook})
    message = Message()
    seen = weakref.ref(message)
    outcomes = []
    dispatcher.hook("mq_step").run(message, done=lambda message, outcome: outcomes.append(outcome))
    del message
    gc.collect()
    owner.run_until(lambda: outcomes)  # the timer kept it: not abandoned
    assert outcomes == [mqcore.COMPLETE]
    gc.collect()
    assert seen() is None


def test_an_argument_whose_finalizer_starts_and_stops_timers(owner):
    _, context = borrow(owner)
    log = []

    class Busy:
        def __del__(self):
            log.append(other.stop())
            context.start_timer(0, log.append, "started by a finalizer")

    other = context.start_timer(100, pytest.fail)
    context.start_timer(100, pytest.fail, Busy()).stop()
    owner.run_until(lambda: len(log) == 2)
    assert log == [True, "started by a finalizer"]


def test_an_argument_whose_finalizer_runs_when_the_dispatcher_closes(owner):
    dispatcher, context = borrow(owner)
    log = []

    class Busy:
        def __del__(self):
            log.append(other.stop())
            try:
                context.start_timer(0, pytest.fail)
            except mqcore.DispatcherClosed:
                log.append("closed")
            dispatcher.close()

    other = context.start_timer(100, pytest.fail)
    for _ in range(3):
        context.start_timer(100, pytest.fail, Busy())
    dispatcher.close()
    assert log.count("closed") == 3
    owner.turn()


# Threads


def in_thread(function):
    """What `function` raises in a thread of its own, or None."""
    raised = []

    def run():
        try:
            function()
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return raised[0] if raised else None


def test_timers_belong_to_the_thread_of_the_dispatcher(owner):
    _, context = borrow(owner)
    timer = context.start_timer(100, pytest.fail)
    for attempt in (
        lambda: context.start_timer(0, pytest.fail),
        timer.stop,
        lambda: timer.reset(0),
    ):
        error = in_thread(attempt)
        assert type(error) is mqcore.MqError and "thread" in str(error)
    owner.turn()
    assert timer.stop() is True


def test_a_timer_may_be_dropped_on_another_thread(owner):
    _, context = borrow(owner)
    fired = []
    running = [context.start_timer(0.005, fired.append, 1)]
    stopped = [context.start_timer(100, pytest.fail)]
    stopped[0].stop()
    assert in_thread(running.clear) is None
    assert in_thread(stopped.clear) is None
    gc.collect()
    owner.run_until(lambda: fired)


# After close()


def test_after_close(owner):
    dispatcher, context = borrow(owner)
    timer = context.start_timer(0.001, pytest.fail, "fired")
    over = context.start_timer(0.001, pytest.fail, "fired")
    over.stop()
    dispatcher.close()
    time.sleep(0.002)
    owner.turn()
    for each in (timer, over):
        assert each.stop() is False
        with pytest.raises(mqcore.DispatcherClosed):
            each.reset(0)
        assert "stopped" in repr(each)
    with pytest.raises(mqcore.DispatcherClosed):
        context.start_timer(0, pytest.fail)
    owner.turn()


def test_close_in_a_timer_callback(owner):
    dispatcher, context = borrow(owner)
    fired = []

    def close():
        dispatcher.close()
        fired.append(own.stop())
        with pytest.raises(mqcore.DispatcherClosed):
            own.reset(0)

    own = context.start_timer(0, close)
    others = [context.start_timer(0, pytest.fail, "fired") for _ in range(100)]
    time.sleep(0.002)
    owner.run_until(lambda: fired)
    owner.turn()
    assert fired == [False]
    assert not any(timer.stop() for timer in others)


def test_close_when_timers_are_due(owner):
    """In a turn, and between the moment libuv finds them due and their turn."""
    dispatcher, context = borrow(owner)
    for _ in range(100):
        context.start_timer(0, pytest.fail, "fired")
    time.sleep(0.002)
    if owner.name == "uvloop":
        owner.loop.call_later(0, dispatcher.close)
    else:
        dispatcher.close()
    owner.turn()


def test_a_timer_outlives_its_dispatcher(owner):
    dispatcher, context = borrow(owner)
    timer = context.start_timer(0.001, pytest.fail, "fired")
    dispatcher.close()
    del dispatcher, context
    owner.dispatchers.clear()
    owner.turn()
    gc.collect()
    owner.turn()
    assert timer.stop() is False
    with pytest.raises(mqcore.DispatcherClosed):
        timer.reset(1)


# Holds


def test_timers_end_with_their_hold(owner):
    kept = []

    def hook(context, message):
        kept.append(context.hold(message))
        return kept[-1]

    dispatcher = owner.start({"a": hook})
    message = owner.Message()
    dispatcher.hook("mq_step").run(message, done=owner.done)
    timer = kept[0].start_timer(0.001, pytest.fail, "fired")
    kept[0].complete()
    time.sleep(0.002)
    owner.run_until(lambda: owner.finished)
    owner.turn()
    assert timer.stop() is False
    with pytest.raises(mqcore.NotHeld):
        timer.reset(0)
    with pytest.raises(mqcore.NotHeld):
        kept[0].start_timer(0, pytest.fail)


@pytest.mark.parametrize("first", ["give back", "timer"])
def test_a_hold_that_ends_in_the_turn_in_which_its_timer_is_due(owner, first):
    kept = []
    fired = []

    def hook(context, message):
        kept.append(context.hold(message))
        return kept[-1]

    dispatcher = owner.start({"a": hook})
    dispatcher.hook("mq_step").run(message := owner.Message(), done=owner.done)
    if first == "timer":
        kept[0].start_timer(0.001, fired.append, 1)
    kept[0].start_timer(0.001, kept[0].complete)
    if first != "timer":
        kept[0].start_timer(0.001, fired.append, 1)
    time.sleep(0.005)
    owner.run_until(lambda: owner.finished)
    owner.turn()
    assert owner.finished == [(message, mqcore.COMPLETE)]
    assert fired == ([1] if first == "timer" else [])


@pytest.mark.parametrize("when", ["at once", "due"])
def test_timers_of_a_hold_given_back_on_another_thread(owner, when):
    """They are stopped on the dispatcher's thread, and not called before."""
    kept = []

    def hook(context, message):
        kept.append(context.hold(message))
        return kept[-1]

    dispatcher = owner.start({"a": hook})
    dispatcher.hook("mq_step").run(message := owner.Message(), done=owner.done)
    timers = [kept[0].start_timer(0.001, pytest.fail, "fired") for _ in range(100)]
    if when == "due":
        time.sleep(0.003)
    assert in_thread(kept[0].complete) is None
    owner.run_until(lambda: owner.finished)
    owner.turn()
    assert owner.finished == [(message, mqcore.COMPLETE)]
    assert not any(timer.stop() for timer in timers)


def test_a_repr(owner):
    _, context = borrow(owner)
    timer = context.start_timer(100, print)
    assert "running" in repr(timer) and "print" in repr(timer)
    timer.stop()
    assert "stopped" in repr(timer)
