"""Rule 9: any thread gives back, and all else belongs to the dispatcher's."""

from __future__ import annotations

import sys
import threading

import pytest
from rules_tools import BACK, OUTCOMES, Holder, give, in_thread

import mqcore


@pytest.mark.parametrize("by", ["context", "hold"])
@pytest.mark.parametrize("what", BACK)
def test_rule_09_any_thread_gives_back_and_it_takes_effect_on_the_dispatchers(engine, by, what):
    threads = []
    holder = Holder()

    def hook(context, message):
        threads.append(threading.get_ident())

    def done(message, outcome):
        threads.append(threading.get_ident())
        engine.done(message, outcome)

    dispatcher = engine.start({"a": holder, "b": hook})
    message = engine.Message()
    dispatcher.hook("mq_step").run(message, done=done)
    hold = holder.context.hold(message)
    if by == "context":
        in_thread(give, holder.context, message, what)
    else:
        in_thread(*([hold.fail, "no"] if what == "fail" else [getattr(hold, what)]))
    engine.run_until(lambda: engine.finished)
    assert engine.finished == [(message, OUTCOMES[what])]
    assert set(threads) == {threading.get_ident()}


def test_rule_09_not_held_is_raised_in_the_calling_thread(engine):
    holder = Holder()
    dispatcher = engine.start({"a": holder})
    message = engine.Message()
    dispatcher.hook("mq_step").run(message, done=engine.done)
    in_thread(holder.context.continue_, message)
    with pytest.raises(mqcore.NotHeld):
        in_thread(holder.context.continue_, message)
    with pytest.raises(mqcore.NotHeld):
        holder.context.continue_(message)
    engine.run_until(lambda: engine.finished)


def test_rule_09_a_give_back_from_a_thread_wakes_the_loop(owner):
    """The loop sleeps, with nothing else to do, until the thread gives back."""
    holder = Holder(times=20)
    dispatcher = owner.start({"a": holder})
    messages = [owner.Message() for _ in range(20)]
    dispatcher.hook("mq_step").run_many(messages, done=owner.done)
    go = threading.Event()

    def work():
        for i, message in enumerate(messages):
            while len(owner.finished) < i:
                go.wait(0.0005)
            holder.context.continue_(message)

    thread = threading.Thread(target=work)
    thread.start()
    owner.run_until(lambda: len(owner.finished) == 20)
    thread.join()


def test_rule_09_what_is_given_back_goes_on_in_that_order_whoever_does_it(engine):
    holder = Holder(times=20)
    dispatcher = engine.start({"a": holder})
    messages = [engine.Message() for _ in range(20)]
    dispatcher.hook("mq_step").run_many(messages, done=engine.done)
    for number, message in enumerate(messages):
        if number % 3:
            holder.context.continue_(message)
        else:
            thread = threading.Thread(target=holder.context.continue_, args=[message])
            thread.start()
            thread.join()
    engine.run_until(lambda: len(engine.finished) == 20)
    assert [message for message, _ in engine.finished] == messages


def test_rule_09_of_many_threads_exactly_one_gives_back(engine):
    holder = Holder(times=500)
    dispatcher = engine.start({"a": holder}, hold_timeout=0)
    messages = [engine.Message() for _ in range(500)]
    dispatcher.hook("mq_step").run_many(messages, done=engine.done)
    start = threading.Barrier(5)
    won, refused = [], []

    def work():
        start.wait()
        for message in messages:
            try:
                holder.context.continue_(message)
            except mqcore.NotHeld:
                refused.append(message)
            else:
                won.append(message)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        start.wait()
        engine.run_until(lambda: len(engine.finished) == 500)
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert len(won) == 500 and len({id(message) for message in won}) == 500
    assert len(refused) == 1500
    (row,) = [row for row in dispatcher.stats().hooks if row.hook == "mq_step"]
    assert row.refused == 1500


def test_rule_09_everything_else_belongs_to_the_dispatchers_thread(owner):
    holder = Holder()
    dispatcher = owner.start({"a": holder})
    step = dispatcher.hook("mq_step")
    message = owner.Message()
    step.run(message)
    context = holder.context
    hold = context.hold(message)
    timer = context.start_timer(1000, print)
    calls = [
        (step.run, owner.Message()),
        (step.run_many, [owner.Message()]),
        (dispatcher.cancel, message),
        (dispatcher.close,),
        (context.start_timer, 0, print),
        (context.watch, 0, mqcore.READ, print),
        (hold.start_timer, 0, print),
        (hold.watch, 0, mqcore.READ, print),
        (timer.stop,),
        (timer.reset, 1),
    ]
    errors = []

    def while_the_loop_runs():
        for function, *arguments in calls:
            try:
                errors.append(in_thread(function, *arguments))
            except (mqcore.MqError, RuntimeError) as error:
                errors.append(str(error))

    context.start_timer(0, while_the_loop_runs)
    owner.run_until(lambda: len(errors) == len(calls))
    assert ["thread" in str(error) for error in errors] == [True] * len(calls), errors
    assert message.holder == "a"
    assert dispatcher.stats().entered == 1
    timer.stop()


def test_rule_09_run_from_another_thread_starts_nothing(engine):
    holder = Holder()
    dispatcher = engine.start({"a": holder})
    with pytest.raises((mqcore.MqError, RuntimeError), match="thread"):
        in_thread(dispatcher.hook("mq_step").run, engine.Message())
    assert holder.calls == 0
    assert dispatcher.stats().entered == 0
