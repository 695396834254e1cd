"""The rules of control, for native plugins: in one chain with Python plugins, on both kinds of loop."""

from __future__ import annotations

import asyncio
import gc
import itertools
import threading
import weakref
from types import SimpleNamespace

import pytest
import uvloop
from native_tools import Puppet, compile_plugin, mq, refused, start

import mqcore
from mqcore.native import accessors

CONTINUE, COMPLETE, FAIL = mqcore.CONTINUE, mqcore.COMPLETE, mqcore.FAIL


def run(owner, dispatcher, message=None):
    """One step to its end: its outcome."""
    message = message or mqcore.Message()
    owner.finished.clear()
    outcome = dispatcher.hook("mq_step").run(message, done=owner.done)
    if outcome is None:
        owner.run_until(lambda: owner.finished)
        ((finished, outcome),) = owner.finished
        assert finished is message
    return outcome


def test_rule_1_native_and_python_plugins_are_called_in_order_of_their_names(owner, tmp_path):
    calls = []
    puppets = [
        Puppet(tmp_path / f"{name}.so", lambda *_, name=name: calls.append(name)) for name in ("30-c", "10-a", "35-d", "50-f")
    ]
    others = {name: lambda context, message, name=name: calls.append(name) for name in ("20-b", "40-e")}
    dispatcher = start(owner, puppets, others)
    assert dispatcher.plugins.order("mq_step") == ["10-a", "20-b", "30-c", "35-d", "40-e", "50-f"]
    assert run(owner, dispatcher) is CONTINUE
    assert calls == ["10-a", "20-b", "30-c", "35-d", "40-e", "50-f"]
    assert [plugin.kind for plugin in dispatcher.plugins] == ["native", "python", "native", "native", "python", "native"]
    assert all(hook.calls == 1 for hook in dispatcher.stats().hooks)


def test_rule_4_true_holds_and_the_next_plugin_is_called_after_the_give_back(owner, puppet):
    calls, held = [], []

    def step(context, connection, message):
        held.append(connection)
        return True

    puppet.step = step
    dispatcher = start(owner, [puppet], {"30-last": lambda context, message: calls.append("last")})
    message = mqcore.Message()
    assert dispatcher.hook("mq_step").run(message, done=owner.done) is None
    owner.turn()
    assert message.holder == "20-puppet" and not calls
    mq.MQ_continue(held[0])
    assert not owner.finished  # rule 6: nothing is called before it returns
    owner.run_until(lambda: owner.finished)
    assert owner.finished == [(message, CONTINUE)] and calls == ["last"]
    assert message.holder is None


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("from_thread", [False, True])
@pytest.mark.parametrize("after", ["native", "python", "nothing"])
@pytest.mark.parametrize(("give", "outcome"), [("continue", CONTINUE), ("complete", COMPLETE), ("retry", CONTINUE)])
def test_rules_5_to_9_each_give_back(owner, tmp_path, give, outcome, early, from_thread, after):
    """Given back in the hook or later, here or by another thread, before a plugin of either kind or none."""
    calls = []
    function = getattr(mq, f"MQ_{give}")

    def give_back(connection):
        if from_thread:
            thread = threading.Thread(target=function, args=(connection,))
            thread.start()
            thread.join()
        else:
            function(connection)

    held = []

    def step(context, connection, message):
        calls.append("first")
        if len(calls) > 1 and give == "retry":
            return False
        held.append(connection)
        if early:
            give_back(connection)
        return True

    first = Puppet(tmp_path / "10-first.so", step)
    puppets, others = [first], {}
    if after == "native":
        puppets.append(Puppet(tmp_path / "20-after.so", lambda *_: calls.append("after")))
    elif after == "python":
        others["20-after"] = lambda context, message: calls.append("after")
    dispatcher = start(owner, puppets, others)
    message = mqcore.Message()
    assert dispatcher.hook("mq_step").run(message, done=owner.done) is None  # rule 7: also an early one is a hold
    if not early:
        give_back(held[0])
    owner.run_until(lambda: owner.finished)
    assert owner.finished == [(message, outcome)]
    called_after = ["after"] if after != "nothing" and give != "complete" else []
    assert calls == ["first"] * (2 if give == "retry" else 1) + called_after
    assert message.retries == (give == "retry")
    counted = dispatcher.stats().hooks[0]
    assert (counted.holds, counted.continues, counted.completes, counted.retries, counted.refused) == (
        1, give == "continue", give == "complete", give == "retry", 0,
    )
    assert not first.errors


@pytest.mark.parametrize(("give", "outcome"), [("continue", CONTINUE), ("complete", FAIL), ("retry", FAIL)])
def test_rule_7_given_back_early_and_then_false(owner, puppet, give, outcome):
    calls = []

    def step(context, connection, message):
        getattr(mq, f"MQ_{give}")(connection)
        return False

    puppet.step = step
    dispatcher = start(owner, [puppet], {"30-last": lambda context, message: calls.append("last")})
    message = mqcore.Message()
    assert dispatcher.hook("mq_step").run(message) is outcome
    assert calls == (["last"] if outcome is CONTINUE else [])
    if outcome is FAIL:
        assert f"gave the message back in mq_step ({give}), but then returned False" in str(message.error)


def test_rule_7_a_plugin_with_on_error_continue_is_forgiven(owner, puppet):
    def step(context, connection, message):
        mq.MQ_complete(connection)
        return False

    puppet.step = step
    dispatcher = start(owner, [puppet], config={"20-puppet": {"on_error": "continue"}})
    assert run(owner, dispatcher) is CONTINUE


def test_rule_10_deadline(owner, puppet):
    held = []
    puppet.step = lambda context, connection, message: held.append(connection) or True
    dispatcher = start(owner, [puppet], hold_timeout=0.02)
    message = mqcore.Message()
    assert run(owner, dispatcher, message) is FAIL
    assert isinstance(message.error, mqcore.HoldTimeout)
    mq.MQ_continue(held[0])
    owner.run_until(lambda: refused(dispatcher))
    assert dispatcher.stats().hooks[0].refused == 1


def test_rule_10_given_back_in_time_by_another_thread_is_not_too_late(owner, puppet):
    held = []
    puppet.step = lambda context, connection, message: held.append(connection) or True
    dispatcher = start(owner, [puppet], hold_timeout=0.05)
    message = mqcore.Message()
    assert dispatcher.hook("mq_step").run(message, done=owner.done) is None
    mq.MQ_continue(held[0])
    threading.Event().wait(0.1)  # the loop does not run: when it does, both are there
    owner.run_until(lambda: owner.finished)
    assert owner.finished == [(message, CONTINUE)]
    assert refused(dispatcher) == 0


def test_rule_10_failed_in_time_is_failed_with_what_the_plugin_said(owner, puppet):
    held = []
    puppet.step = lambda context, connection, message: held.append(connection) or True
    dispatcher = start(owner, [puppet], hold_timeout=0.05)
    message = mqcore.Message()
    assert dispatcher.hook("mq_step").run(message, done=owner.done) is None
    mq.MQ_fail(held[0], b"no disk")
    threading.Event().wait(0.1)
    owner.run_until(lambda: owner.finished)
    assert owner.finished == [(message, FAIL)]
    assert str(message.error) == "no disk"


def test_rule_11_retry_limit(owner, puppet):
    def step(context, connection, message):
        mq.MQ_retry(connection)
        return True

    puppet.step = step
    dispatcher = start(owner, [puppet], max_retries=3)
    message = mqcore.Message()
    assert run(owner, dispatcher, message) is FAIL
    assert isinstance(message.error, mqcore.RetryLimit)
    assert dispatcher.stats().hooks[0].calls == 4


def test_rule_12_a_native_hold_keeps_its_message(owner, puppet):
    held = []
    puppet.step = lambda context, connection, message: held.append(connection) or True
    dispatcher = start(owner, [puppet])
    message = mqcore.Message()
    reference = weakref.ref(message)
    dispatcher.hook("mq_step").run(message, done=owner.done)
    del message
    gc.collect()
    owner.turn()
    assert reference() is not None and reference().holder == "20-puppet"
    mq.MQ_complete(held[0])
    owner.run_until(lambda: owner.finished)
    assert owner.finished[0][1] is COMPLETE
    owner.finished.clear()
    gc.collect()
    assert reference() is None


def test_rule_14_cancel_and_a_late_give_back(owner, puppet):
    held = []
    puppet.step = lambda context, connection, message: held.append(connection) or True
    dispatcher = start(owner, [puppet])
    message = mqcore.Message()
    dispatcher.hook("mq_step").run(message, done=owner.done)
    assert dispatcher.cancel(message)
    assert owner.finished == [(message, FAIL)] and isinstance(message.error, mqcore.Cancelled)
    mq.MQ_continue(held[0])
    owner.run_until(lambda: refused(dispatcher))


def test_rule_14_cancelled_between_the_give_back_and_its_turn(owner, puppet):
    held = []
    puppet.step = lambda context, connection, message: held.append(connection) or True
    dispatcher = start(owner, [puppet])
    for _ in range(3):
        message = mqcore.Message()
        dispatcher.hook("mq_step").run(message, done=owner.done)
        mq.MQ_continue(held[-1])
        assert dispatcher.cancel(message)
        owner.turn()
    assert [outcome for _, outcome in owner.finished] == [FAIL] * 3
    assert refused(dispatcher) == 3


def test_rule_14_cancelled_in_the_hook(owner, puppet):
    """By Python code that runs meanwhile, such as a handler of logging."""
    messages = [mqcore.Message() for _ in range(2)]

    def step(context, connection, message):
        assert dispatcher.cancel(messages[0])
        return messages.pop(0) is not None

    puppet.step = step
    dispatcher = start(owner, [puppet])
    message = messages[0]
    assert dispatcher.hook("mq_step").run(message) is FAIL
    assert isinstance(message.error, mqcore.Cancelled)


@pytest.mark.parametrize("taken", [False, True])
def test_closed_in_the_hook(owner, puppet, taken):
    def step(context, connection, message):
        dispatcher.close()
        return taken

    puppet.step = step
    dispatcher = start(owner, [puppet])
    message = mqcore.Message()
    assert dispatcher.hook("mq_step").run(message) is FAIL
    assert isinstance(message.error, mqcore.DispatcherClosed)


def test_closed_while_held(owner, puppet):
    held = []
    puppet.step = lambda context, connection, message: held.append(connection) or True
    dispatcher = start(owner, [puppet])
    messages = [mqcore.Message() for _ in range(100)]
    dispatcher.hook("mq_step").run_many(messages, done=owner.done)
    for connection in held[::3]:
        mq.MQ_continue(connection)
    dispatcher.close()
    assert len(owner.finished) == 100
    assert all(isinstance(message.error, mqcore.DispatcherClosed) for message in messages)
    for connection in held:
        mq.MQ_continue(connection)


def test_a_hook_runs_another_message(owner, puppet):
    """Nested: each step has a slot of its own."""
    inner = mqcore.Message()
    held = []

    def step(context, connection, message):
        if not held:
            held.append(connection)
            assert dispatcher.hook("mq_step").run(inner, done=owner.done) is None
            mq.MQ_continue(connection)
            return True
        held.append(connection)
        return True

    puppet.step = step
    dispatcher = start(owner, [puppet])
    outer = mqcore.Message()
    assert dispatcher.hook("mq_step").run(outer, done=owner.done) is None
    owner.run_until(lambda: owner.finished)
    assert owner.finished == [(outer, CONTINUE)] and inner.holder == "20-puppet"
    mq.MQ_complete(held[1])
    owner.run_until(lambda: len(owner.finished) == 2)
    assert len(set(held)) == 2


@pytest.mark.parametrize("last", ["native", "python", "none"])
def test_run_many_with_messages_of_every_kind(owner, tmp_path, last):
    """Those before and after one that takes another way are not touched by it, nor is the order of what is returned."""
    kinds = ["false", "hold", "false", "complete", "early", "contradiction", "retry", "false", "cancels the next", "false"] * 60
    dispatcher, held, seen = None, [], []

    def step(context, connection, message):
        kind = kinds[mq.MQ_fileDescriptor(connection)]
        seen.append(kind)
        if kind == "hold":
            held.append(connection)
            return True
        if kind in ("complete", "contradiction"):
            mq.MQ_complete(connection)
        elif kind == "early":
            mq.MQ_continue(connection)
        elif kind == "retry" and seen[-2:] != ["retry", "retry"]:
            mq.MQ_retry(connection)
            return True
        elif kind == "cancels the next":
            dispatcher.cancel(messages[mq.MQ_fileDescriptor(connection) + 1])
        return kind in ("complete", "early")

    puppets, others = [Puppet(tmp_path / "10-a.so", step)], {}
    if last == "native":
        puppets.append(Puppet(tmp_path / "20-b.so", lambda *_: False))
    elif last == "python":
        others["20-b"] = lambda context, message: False
    dispatcher = start(owner, puppets, others)
    messages = [Numbered(number) for number in range(len(kinds))]
    outcomes = dispatcher.hook("mq_step").run_many(messages, done=owner.done)
    now = {"false": CONTINUE, "contradiction": FAIL, "cancels the next": CONTINUE}
    expected = [now.get(kind) for kind in kinds]
    for number, kind in enumerate(kinds):
        if kind == "cancels the next":
            expected[number + 1] = FAIL
    assert outcomes == expected
    for connection in held:
        mq.MQ_complete(connection)
    owner.run_until(lambda: len(owner.finished) == expected.count(None))
    later = {"hold": COMPLETE, "complete": COMPLETE, "early": CONTINUE, "retry": CONTINUE}
    assert all(outcome is later[kinds[message.number]] for message, outcome in owner.finished)
    assert refused(dispatcher) == 0 and not puppets[0].errors


@pytest.mark.parametrize("what", ["close", "remove", "add"])
def test_run_many_while_the_chain_changes(owner, tmp_path, what):
    """From the next message on the chain is another one; or the dispatcher is closed."""
    calls = []

    def step(context, connection, message):
        calls.append("first")
        if calls.count("first") == 2:
            if what == "close":
                dispatcher.close()
            elif what == "remove":
                dispatcher.plugins.remove("20-b")
            else:
                dispatcher.plugins.load(third.path)
        return False

    first = Puppet(tmp_path / "10-a.so", step)
    second = Puppet(tmp_path / "20-b.so", lambda *_: calls.append("second"))
    third = Puppet(tmp_path / "30-c.so", lambda *_: calls.append("third"))
    dispatcher = start(owner, [first, second])
    messages = [mqcore.Message() for _ in range(6)]
    outcomes = dispatcher.hook("mq_step").run_many(messages)
    assert not first.errors and not second.errors
    if what == "close":
        assert outcomes == [CONTINUE] + [FAIL] * 5 and calls == ["first", "second", "first"]
        assert all(isinstance(message.error, mqcore.DispatcherClosed) for message in messages[1:])
    else:
        assert outcomes == [CONTINUE] * 6
        after = ["first"] if what == "remove" else ["first", "second", "third"]
        assert calls == ["first", "second"] * 2 + after * 4


class Numbered(mqcore.Message):
    def __init__(self, number):
        self.number = number


class Numbers(accessors.Accessors):
    """Lets a native plugin know which message it is: one of its functions tells the number."""

    def file_descriptor(self, message):
        return message.number


accessors.register(Numbered, Numbers())


def test_ten_thousand_held_at_once(owner, puppet):
    held = []
    puppet.step = lambda context, connection, message: held.append(connection) or True
    dispatcher = start(owner, [puppet])
    messages = [mqcore.Message() for _ in range(10_000)]
    dispatcher.hook("mq_step").run_many(messages, done=owner.done)
    assert dispatcher.stats().held == 10_000 and len(set(held)) == 10_000
    for connection in reversed(held):
        mq.MQ_continue(connection)
    owner.run_until(lambda: len(owner.finished) == 10_000)
    assert {outcome for _, outcome in owner.finished} == {CONTINUE}
    assert refused(dispatcher) == 0


def test_every_call_has_a_handle_of_its_own(owner, puppet):
    seen = []
    puppet.step = lambda context, connection, message: seen.append(connection)
    dispatcher = start(owner, [puppet])
    for _ in range(5_000):
        run(owner, dispatcher)
    assert len(set(seen)) == len(seen) == 5_000
    assert all(connection >> 56 for connection in seen)  # no address of this process looks like one


CHAIN = """
static void fire(void *data) { MQ_continue((MQ_Connection *)data); }
MQ_EXPORT bool mq_step(MQ_Context *context, MQ_Connection *connection, MQ_Message *message)
{
    (void)message;
    return MQ_startTimer(context, 0, fire, connection) != NULL;
}
"""


@pytest.mark.parametrize("kinds", list(itertools.product("np", repeat=4)), ids="".join)
def test_mixed_chains_that_hold(owner, tmp_path, kinds):
    """All chains of four plugins, native and Python: each holds the message until a timer fires."""
    plugins = owner.plugins({})
    for number, kind in enumerate(kinds):
        if kind == "n":
            plugins.load(compile_plugin(tmp_path / f"{number}-native.so", CHAIN))
        else:
            plugins.add(f"{number}-python", SimpleNamespace(mq_step=hold_for_a_moment))
    dispatcher = owner.dispatcher(plugins)
    messages = [mqcore.Message() for _ in range(20)]
    dispatcher.hook("mq_step").run_many(messages, done=owner.done)
    owner.run_until(lambda: len(owner.finished) == 20)
    assert {outcome for _, outcome in owner.finished} == {CONTINUE}
    assert all(hook.holds == hook.continues == 20 for hook in dispatcher.stats().hooks)


def hold_for_a_moment(context, message):
    context.start_timer(0, context.continue_, message)
    return True


def test_threads_that_race(owner, puppet):
    """Many threads give the same messages back: exactly one give-back of each counts."""
    held = []
    puppet.step = lambda context, connection, message: held.append(connection) or True
    dispatcher = start(owner, [puppet])
    messages = [mqcore.Message() for _ in range(300)]
    dispatcher.hook("mq_step").run_many(messages, done=owner.done)
    ready = threading.Barrier(4)

    def give_back(function):
        ready.wait()
        for connection in held:
            function(connection)

    functions = (mq.MQ_continue, mq.MQ_complete, mq.MQ_continue, mq.MQ_complete)
    threads = [threading.Thread(target=give_back, args=(function,)) for function in functions]
    for thread in threads:
        thread.start()
    owner.run_until(lambda: not any(thread.is_alive() for thread in threads))
    owner.run_until(lambda: len(owner.finished) == 300 and refused(dispatcher) == 900)
    counted = dispatcher.stats().hooks[0]
    assert counted.continues + counted.completes == 300


def test_two_dispatchers_in_two_threads(tmp_path):
    """They share the plugins, and each has handles of its own."""
    paths = [compile_plugin(tmp_path / f"{name}.so", CHAIN) for name in ("10-a", "20-b")]
    outcomes = []

    async def main(plugins):
        with mqcore.Dispatcher(plugins) as dispatcher:
            hook = dispatcher.hook("mq_step")
            for _ in range(20):
                outcomes.extend(await asyncio.gather(*(hook(mqcore.Message()) for _ in range(25))))
            assert all(each.holds == each.continues == 500 for each in dispatcher.stats().hooks)
            assert refused(dispatcher) == 0

    with mqcore.Plugins(*paths, hooks=[mqcore.HookSpec("mq_step")]) as plugins:
        threads = [threading.Thread(target=lambda: uvloop.run(main(plugins))) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert outcomes == [CONTINUE] * 1_000
