"""Rule 12: a step whose message nobody can give back any more fails."""

from __future__ import annotations

import asyncio
import gc
import logging
import sysconfig
import threading
import weakref
from types import SimpleNamespace

import pytest

import mqcore


class Holder:
    """Holds every message, by itself or by a Hold that `holds` keeps."""

    def __init__(self, by="message"):
        self.by = by
        self.context = None
        self.holds = []

    def mq_step(self, context, message):
        self.context = context
        if self.by == "message":
            return True
        self.holds.append(context.hold(message))
        return self.holds[-1]


def let_pass(context, message):
    return False


def in_thread(function, *args):
    thread = threading.Thread(target=function, args=args)
    thread.start()
    thread.join()


def run_tagged(engine, step, tag, cls=None, **options):
    """Run a message that nobody but the engine refers to; True when it is held."""
    message = (cls or tagged(engine))()
    message.tag = tag
    return step.run(message, **options) is None


def tagged(engine):
    class Tagged(engine.Message):
        pass

    return Tagged


@pytest.fixture
def ended(engine):
    """What `done` was told, without keeping the messages: (tag, outcome, type of the error, thread)."""
    told = []

    def done(message, outcome):
        told.append((message.tag, outcome, type(message.error), threading.get_ident()))

    return told, done


HERE = threading.get_ident()


def test_rule_12_true_and_the_message_is_dropped(engine, ended):
    told, done = ended
    dispatcher = engine.start({"10-drops": Holder(), "20": lambda context, message: pytest.fail("called")})
    assert run_tagged(engine, dispatcher.hook("mq_step"), "it", done=done)
    assert told == []  # the finalizer only queues
    engine.run_until(lambda: told)
    assert told == [("it", mqcore.FAIL, mqcore.Abandoned, HERE)]
    (row,) = [row for row in dispatcher.stats().hooks if (row.plugin, row.hook) == ("10-drops", "mq_step")]
    assert (row.holds, row.abandoned, row.failures, row.timeouts) == (1, 1, 1, 0)


def test_rule_12_the_error_names_plugin_and_hook(engine):
    errors = []
    dispatcher = engine.start({"10-drops": Holder()})
    message = engine.Message()
    dispatcher.hook("mq_step").run(message, done=lambda message, outcome: errors.append(str(message.error)))
    del message
    engine.run_until(lambda: errors)
    assert "10-drops" in errors[0] and "mq_step" in errors[0]


def test_rule_12_while_someone_has_the_message_it_is_held(engine, ended):
    told, done = ended
    kept = []

    class Keeper(Holder):
        def mq_step(self, context, message):
            kept.append(message)
            return super().mq_step(context, message)

    holder = Keeper()
    dispatcher = engine.start({"a": holder})
    assert run_tagged(engine, dispatcher.hook("mq_step"), 1, done=done)
    engine.turn()
    gc.collect()
    engine.turn()
    assert told == [] and kept[0].holder == "a"
    holder.context.continue_(kept.pop())  # given back, and the last reference gone at once
    engine.run_until(lambda: told)
    assert told == [(1, mqcore.CONTINUE, type(None), HERE)]


def test_rule_12_a_queued_message_does_not_die(engine):
    holder = Holder()
    dispatcher = engine.start({"a": holder, "b": let_pass})
    message = engine.Message()
    dispatcher.hook("mq_step").run(message)
    ref = weakref.ref(message)
    holder.context.continue_(message)
    del message
    gc.collect()
    assert ref() is not None
    engine.run_until(lambda: ref() is None)
    stats = dispatcher.stats()
    assert (stats.continued, stats.failed) == (1, 0)


@pytest.mark.parametrize("number", [1, 3])
def test_rule_12_dropped_while_it_is_queued_and_then_held(engine, ended, number):
    """The queue had the last reference: the hold that comes after it is abandoned at once, in the turn that began it."""
    told, done = ended
    first = Holder()
    dispatcher = engine.start({"a": first, "b": Holder()})
    messages = [tagged(engine)() for _ in range(number)]
    for message in messages:
        message.tag = "it"
    dispatcher.hook("mq_step").run_many(messages, done=done)
    while messages:
        message = messages.pop()
        first.context.continue_(message)
    del message
    engine.run_until(lambda: len(told) == number)
    assert told == [("it", mqcore.FAIL, mqcore.Abandoned, HERE)] * number


@pytest.mark.parametrize("how", ["deadline", "drop"])
def test_rule_12_run_again_by_done_and_dropped(engine, how):
    """`done` was the last to have the message; the hold that it began is abandoned, or ends with its deadline."""
    told = []

    def done(message, outcome):
        told.append(type(message.error))
        if len(told) == 1:
            assert step.run(message, done=done) is None

    config = {"a": {"hold_timeout": 0.005 if how == "deadline" else 1000}, "b": {"hold_timeout": 0.02}}
    dispatcher = engine.start({"a": lambda context, message: not told, "b": Holder()}, config=config)
    step = dispatcher.hook("mq_step")
    kept = [engine.Message()]
    assert step.run(kept[0], done=done) is None
    if how == "deadline":
        engine.run_until(lambda: kept[0].holder == "b")
    kept.clear()
    engine.run_until(lambda: len(told) == 2)
    # Dropped once, a message is held strongly: its finalizer does not run again.
    assert told == ([mqcore.HoldTimeout, mqcore.Abandoned] if how == "deadline" else [mqcore.Abandoned, mqcore.HoldTimeout])


def test_rule_12_run_again_by_done_of_its_deadline_and_dropped_by_it(engine):
    """The deadline has the last reference when `done` returns, and the loop must be told of the end of the second hold."""
    told, kept = [], []

    def done(message, outcome):
        told.append(type(message.error))
        if len(told) == 1:
            assert step.run(message, done=done) is None
            kept.clear()

    config = {"a": {"hold_timeout": 0.005}, "b": {"hold_timeout": 1000}}
    step = engine.start({"a": lambda context, message: not told, "b": Holder()}, config=config).hook("mq_step")
    kept.append(engine.Message())
    assert step.run(kept[0], done=done) is None
    engine.run_until(lambda: len(told) == 2)
    assert told == [mqcore.HoldTimeout, mqcore.Abandoned]


def test_rule_12_a_hold_that_was_returned_is_what_counts(engine, ended):
    """Though the message is alive, and the plugin could name it."""
    told, done = ended
    holder = Holder("hold")
    dispatcher = engine.start({"a": holder})
    message = tagged(engine)()
    message.tag = "it"
    dispatcher.hook("mq_step").run(message, done=done)
    engine.turn()
    assert told == []
    holder.holds.clear()
    assert told == []
    engine.run_until(lambda: told)
    assert told == [("it", mqcore.FAIL, mqcore.Abandoned, HERE)]
    assert dispatcher.stats().failed == 1


def test_rule_12_a_hold_keeps_its_message_alive(engine, ended):
    told, done = ended
    holder = Holder("hold")
    dispatcher = engine.start({"a": holder})
    assert run_tagged(engine, dispatcher.hook("mq_step"), 1, done=done)
    gc.collect()
    engine.turn()
    assert told == []
    holder.holds.pop().complete()
    engine.run_until(lambda: told)
    assert told == [(1, mqcore.COMPLETE, type(None), HERE)]


def test_rule_12_true_and_a_hold_is_dropped_that_was_not_returned(engine, ended):
    told, done = ended
    holder = Holder()
    dispatcher = engine.start({"a": holder})
    message = tagged(engine)()
    message.tag = "it"
    dispatcher.hook("mq_step").run(message, done=done)
    holder.context.hold(message)
    engine.turn()
    assert told == [] and message.holder == "a"
    holder.context.continue_(message)
    engine.run_until(lambda: told)


def test_rule_12_an_old_hold_dropped_does_not_end_a_new_one(engine, ended):
    told, done = ended
    holder = Holder("hold")
    dispatcher = engine.start({"a": holder})
    message = tagged(engine)()
    message.tag = "it"
    dispatcher.hook("mq_step").run(message, done=done)
    holder.holds[0].retry()
    engine.run_until(lambda: len(holder.holds) == 2)
    del holder.holds[0]
    gc.collect()
    engine.turn()
    assert told == [] and message.holder == "a"
    holder.holds[0].complete()
    engine.run_until(lambda: told)
    assert told == [("it", mqcore.COMPLETE, type(None), HERE)]


@pytest.mark.parametrize("by", ["message", "hold"])
def test_rule_12_a_cycle_counts_when_the_collector_finds_it(engine, ended, by):
    told, done = ended
    holder = Holder(by)
    dispatcher = engine.start({"a": holder})
    message = tagged(engine)()
    message.tag = "it"
    message.data["itself"] = message
    if by == "hold":
        message.mine = []
        dispatcher.hook("mq_step").run(message, done=done)
        message.mine.append(holder.holds.pop())
    else:
        message.mine = message
        dispatcher.hook("mq_step").run(message, done=done)
    gc.disable()
    try:
        del message
        engine.turn()
        assert told == []
        gc.collect()
        assert told == []
        engine.run_until(lambda: told)
    finally:
        gc.enable()
    assert told == [("it", mqcore.FAIL, mqcore.Abandoned, HERE)]


def test_rule_12_a_cycle_of_a_plain_message_through_its_data(engine):
    """An object that started out unknown to the collector is found as soon as it can be part of a cycle."""
    outcomes = []
    dispatcher = engine.start({"a": Holder()})
    message = engine.Message()
    message.data["itself"] = message
    dispatcher.hook("mq_step").run(message, done=lambda message, outcome: outcomes.append(type(message.error)))
    del message
    gc.collect()
    engine.run_until(lambda: outcomes)
    assert outcomes == [mqcore.Abandoned]


@pytest.mark.parametrize("by", ["message", "hold"])
def test_rule_12_dropped_in_another_thread(engine, ended, by):
    told, done = ended
    holder = Holder(by)
    step = engine.start({"a": holder}).hook("mq_step")
    kept = []
    for i in range(200):
        message = tagged(engine)()
        message.tag = i
        step.run(message, done=done)
        kept.append(message)
    del message

    def drop():
        while kept:
            kept.pop()
            if holder.holds:
                holder.holds.pop()

    in_thread(drop)
    assert told == []
    engine.run_until(lambda: len(told) == 200)
    assert {(outcome, error, thread) for _, outcome, error, thread in told} == {(mqcore.FAIL, mqcore.Abandoned, HERE)}
    assert sorted(tag for tag, *_ in told) == list(range(200))


def test_rule_12_collected_in_another_thread(engine, ended):
    told, done = ended
    dispatcher = engine.start({"a": Holder()})
    message = tagged(engine)()
    message.tag, message.itself = "it", message
    dispatcher.hook("mq_step").run(message, done=done)
    del message
    in_thread(gc.collect)
    engine.run_until(lambda: told)
    assert told == [("it", mqcore.FAIL, mqcore.Abandoned, HERE)]


def test_rule_12_a_dropped_message_wakes_a_loop_that_sleeps(owner):
    told, kept = [], [owner.Message()]
    dispatcher = owner.start({"a": Holder()})
    dispatcher.hook("mq_step").run(kept[0], done=lambda message, outcome: told.append(outcome))
    timer = threading.Timer(0.02, kept.clear)
    timer.start()
    owner.run_until(lambda: told)
    timer.join()
    assert told == [mqcore.FAIL]


def test_rule_12_a_message_that_was_dropped_once_can_run_again(engine):
    """Its finalizer has run, and does not run again: from now on it is held strongly, to its deadline."""
    saved, errors = [], []

    def done(message, outcome):
        errors.append(type(message.error))
        saved.append(message)

    dispatcher = engine.start({"a": Holder()}, hold_timeout=0.02)
    step = dispatcher.hook("mq_step")
    step.run(engine.Message(), done=done)
    engine.run_until(lambda: saved)
    assert errors == [mqcore.Abandoned]
    assert step.run(saved.pop(), done=done) is None
    engine.run_until(lambda: saved)
    assert errors[1] in (mqcore.Abandoned, mqcore.HoldTimeout)
    message = saved.pop()
    ref = weakref.ref(message)
    del message
    gc.collect()
    assert ref() is None


@pytest.mark.parametrize("calls_super", [True, False])
@pytest.mark.parametrize("by", ["message", "hold"])
def test_rule_12_a_subclass_with_a_finalizer_of_its_own(engine, by, calls_super):
    """It may never be found abandoned, but its step ends, once, with the message intact."""
    finalized, told = [], []

    class Mine(engine.Message):
        def __del__(self):
            finalized.append(self.tag)
            if calls_super:
                super().__del__()

    holder = Holder(by)
    dispatcher = engine.start({"a": holder}, hold_timeout=0.02)
    step = dispatcher.hook("mq_step")
    done = lambda message, outcome: told.append((message.tag, outcome, type(message.error)))  # noqa: E731
    assert run_tagged(engine, step, "dropped", cls=Mine, done=done)
    holder.holds.clear()
    gc.collect()
    engine.run_until(lambda: told)
    ((tag, outcome, error),) = told
    assert (tag, outcome) == ("dropped", mqcore.FAIL)
    assert error in (mqcore.Abandoned, mqcore.HoldTimeout)
    if by == "hold":
        assert error is mqcore.Abandoned
    engine.turn()
    gc.collect()
    assert finalized == ["dropped"]
    assert len(told) == 1


def test_rule_12_resurrected_by_a_finalizer_of_its_own(engine):
    risen, told = [], []

    class Mine(engine.Message):
        def __del__(self):
            risen.append(self)

    holder = Holder()
    dispatcher = engine.start({"a": holder})
    step = dispatcher.hook("mq_step")
    message = Mine()
    del message
    message = risen.pop()
    step.run(message, done=lambda message, outcome: told.append(outcome))
    holder.context.continue_(message)
    del message
    engine.run_until(lambda: told)
    assert told == [mqcore.CONTINUE]


@pytest.mark.parametrize("cyclic", ["data", "attribute", "argument", "done"])
@pytest.mark.parametrize("way", ["finalizer", "class"])
def test_rule_12_garbage_whose_finalizer_came_while_it_was_held(owner, way, cyclic):
    """The collector does not see its end coming. Of what its step needs it clears nothing."""

    class Mine(mqcore.Message):
        pass

    class Final(mqcore.Message):
        def __del__(self):
            pass

    class Done:
        def __init__(self):
            self.told = told

        def __call__(self, message, outcome):
            self.told.append(outcome)

    told: list[mqcore.Outcome] = []
    hold = SimpleNamespace(mq_step=lambda context, message: True, mq_other=lambda context, message, extra: True)
    dispatcher = owner.start({"a": hold}, hold_timeout=0.02)
    message, extra, done = Mine(), [], Done()
    if cyclic == "data":
        message.data["me"] = message
    elif cyclic == "attribute":
        message.me = message
    elif cyclic == "argument":
        extra.append(message)
    else:
        done.message = message
    assert dispatcher.hook("mq_other").run(message, extra, done=done) is None
    if way == "finalizer":
        Mine.__del__ = lambda self: None
    else:
        message.__class__ = Final
    del message, extra, done
    gc.collect()
    owner.run_until(lambda: told)
    owner.turn()
    assert told == [mqcore.FAIL]
    assert dispatcher.stats().held == 0


def test_rule_12_done_may_keep_an_abandoned_message(engine):
    dispatcher = engine.start({"a": Holder()})
    message = engine.Message()
    message.data["mark"] = "kept"
    dispatcher.hook("mq_step").run(message, done=engine.done)
    del message
    engine.run_until(lambda: engine.finished)
    ((message, outcome),) = engine.finished
    assert outcome is mqcore.FAIL
    assert message.data == {"mark": "kept"} and message.holder is None
    assert isinstance(message.error, mqcore.Abandoned)


def test_rule_12_many_at_once(engine, caplog):
    caplog.set_level(logging.CRITICAL, "mqcore")  # each is logged, which takes much longer than all else
    outcomes = []
    dispatcher = engine.start({"a": Holder()})
    step = dispatcher.hook("mq_step")
    messages = [engine.Message() for _ in range(20_000)]
    step.run_many(messages, done=lambda message, outcome: outcomes.append(type(message.error)))
    assert dispatcher.stats().held == 20_000
    messages.clear()
    engine.run_until(lambda: len(outcomes) == 20_000)
    assert set(outcomes) == {mqcore.Abandoned}


def test_rule_12_a_finalizer_inside_an_allocation_of_a_hook(engine):
    """The collector runs inside whatever allocates: here inside hooks, `done` and give-backs."""
    # Without the GIL, that of CPython looks at all objects each time.
    count = 30 if sysconfig.get_config_var("Py_GIL_DISABLED") else 300
    told = []

    class Cyclic(engine.Message):
        pass

    def hook(context, message):
        gc.collect(0)
        if message.retries == 0:
            context.retry(message)
            return True
        return message.keep

    def done(message, outcome):
        gc.collect(0)
        told.append(outcome)

    dispatcher = engine.start({"a": hook, "b": let_pass})
    step = dispatcher.hook("mq_step")
    threshold = gc.get_threshold()
    gc.set_threshold(5)
    try:
        for i in range(count):
            message = Cyclic()
            message.itself, message.keep = message, i % 2 == 0
            step.run(message, done=done)
            del message
            if i % 10 == 0:
                engine.turn()
        engine.run_until(lambda: gc.collect() >= 0 and len(told) == count)
    finally:
        gc.set_threshold(*threshold)
    assert sorted(told, key=str) == [mqcore.CONTINUE] * (count // 2) + [mqcore.FAIL] * (count // 2)


def test_rule_12_closing_with_messages_dropped_and_not_yet_failed(engine, ended):
    told, done = ended
    dispatcher = engine.start({"a": Holder()})
    assert run_tagged(engine, dispatcher.hook("mq_step"), 1, done=done)
    dispatcher.close()
    ((tag, outcome, error, _),) = told
    assert (tag, outcome) == (1, mqcore.FAIL)
    assert error in (mqcore.Abandoned, mqcore.DispatcherClosed)
    engine.turn()
    assert len(told) == 1


# What refers strongly


def test_rule_12_an_active_timer_that_carries_the_message_keeps_it(owner):
    told = []

    def hook(context, message):
        context.start_timer(0.02, context.continue_, message)
        return True

    dispatcher = owner.start({"a": hook})
    dispatcher.hook("mq_step").run(owner.Message(), done=lambda message, outcome: told.append(outcome))
    gc.collect()
    owner.run_until(lambda: told)
    assert told == [mqcore.CONTINUE]


def test_rule_12_a_timer_that_is_stopped_lets_go(owner):
    told, timers = [], []

    def hook(context, message):
        timers.append(context.start_timer(1000, context.continue_, message))
        return True

    dispatcher = owner.start({"a": hook})
    dispatcher.hook("mq_step").run(owner.Message(), done=lambda message, outcome: told.append(type(message.error)))
    gc.collect()
    owner.turn()
    assert told == []
    timers[0].stop()
    timers.clear()
    owner.run_until(lambda: told)
    assert told == [mqcore.Abandoned]


def test_rule_12_a_timer_on_a_hold_keeps_it_until_it_has_fired(owner):
    told, fired = [], []

    def hook(context, message):
        hold = context.hold(message)
        hold.start_timer(0.2, fired.append, True)
        return hold

    dispatcher = owner.start({"a": hook})
    message = owner.Message()
    dispatcher.hook("mq_step").run(message, done=lambda message, outcome: told.append(type(message.error)))
    owner.turn()
    gc.collect()
    assert told == [] and fired == []
    owner.run_until(lambda: told)
    assert fired == [True]
    assert told == [mqcore.Abandoned]


def test_rule_12_an_active_watcher_that_carries_the_message_keeps_it(owner, socket_pair):
    told = []
    ours, theirs = socket_pair

    def ready(watcher, events, context, message):
        watcher.stop()
        context.complete(message)

    def hook(context, message):
        context.watch(ours.fileno(), mqcore.READ, ready, context, message)
        return True

    dispatcher = owner.start({"a": hook})
    dispatcher.hook("mq_step").run(owner.Message(), done=lambda message, outcome: told.append(outcome))
    gc.collect()
    owner.turn()
    assert told == []
    theirs.send(b"x")
    owner.run_until(lambda: told)
    assert told == [mqcore.COMPLETE]


def test_rule_12_an_awaiter_keeps_the_message_to_its_deadline(uvloop_owner):
    """Whoever awaits has the message in hand: only the deadline or a cancel ends it."""
    dispatcher = uvloop_owner.start({"a": Holder()}, hold_timeout=0.03)

    async def main():
        message = mqcore.Message()
        ref = weakref.ref(message)
        waiting = dispatcher.hook("mq_step")(message)
        del message
        outcome = await waiting
        return outcome, ref

    outcome, _ = uvloop_owner.run(main())
    assert outcome is mqcore.FAIL
    (row,) = [row for row in dispatcher.stats().hooks if row.hook == "mq_step"]
    assert (row.timeouts, row.abandoned) == (1, 0)


def test_rule_12_a_coroutine_hook_keeps_the_message(uvloop_owner):
    told = []

    class Waits:
        async def mq_step(self, context, message):
            del message
            await asyncio.sleep(0.01)
            gc.collect()

    dispatcher = uvloop_owner.start({"a": Waits()})
    dispatcher.hook("mq_step").run(mqcore.Message(), done=lambda message, outcome: told.append(outcome))
    uvloop_owner.run_until(lambda: told)
    assert told == [mqcore.CONTINUE]
