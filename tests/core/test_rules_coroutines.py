"""The rules of control for coroutine hooks and for awaiting a step: asyncio on uvloop."""

from __future__ import annotations

import asyncio
import collections.abc
import contextvars
import threading
from types import SimpleNamespace

import pytest
import uvloop
from loop_tools import Lender

import mqcore

WHO = contextvars.ContextVar("who", default="nobody")


def let_pass(context, message):
    return False


def outcome_of(owner, step, message):
    """The outcome of a step, whichever way it comes."""
    outcome = step.run(message, done=owner.done)
    if outcome is None:
        owner.run_until(lambda: owner.finished)
        ((ended, outcome),) = owner.finished
        assert ended is message
        owner.finished.clear()
    owner.turn()
    assert owner.finished == []
    return outcome


# Awaiting


def test_rule_03_awaiting_a_step_that_is_not_held(uvloop_owner):
    dispatcher = uvloop_owner.start({"a": let_pass})

    async def main():
        return await dispatcher.hook("mq_step")(mqcore.Message())

    assert uvloop_owner.run(main()) is mqcore.CONTINUE


@pytest.mark.parametrize("what", ["continue_", "complete", "retry"])
def test_rule_05_awaiting_a_step_that_is_held(uvloop_owner, what):
    trace = []

    def hook(context, message):
        trace.append("a")
        if message.retries:
            return False
        context.start_timer(0, getattr(context, what), message)
        return True

    dispatcher = uvloop_owner.start({"a": hook})

    async def main():
        return await dispatcher.hook("mq_step")(mqcore.Message())

    assert uvloop_owner.run(main()) is (mqcore.COMPLETE if what == "complete" else mqcore.CONTINUE)
    assert trace == ["a"] * (2 if what == "retry" else 1)


def test_rule_13_awaiting_a_step_that_fails(uvloop_owner):
    def hook(context, message):
        raise ValueError("bad")

    dispatcher = uvloop_owner.start({"a": hook})

    async def main():
        message = mqcore.Message()
        return await dispatcher.hook("mq_step")(message), message.error

    outcome, error = uvloop_owner.run(main())
    assert outcome is mqcore.FAIL
    assert isinstance(error, ValueError)


def test_rule_14_cancel_gives_an_awaiter_fail(uvloop_owner):
    dispatcher = uvloop_owner.start({"a": Lender()})

    async def main():
        message = mqcore.Message()
        task = asyncio.ensure_future(wait(message))
        await asyncio.sleep(0)
        assert message.holder == "a"
        assert dispatcher.cancel(message) is True
        return await task, message.error

    async def wait(message):
        return await dispatcher.hook("mq_step")(message)

    outcome, error = uvloop_owner.run(main())
    assert outcome is mqcore.FAIL
    assert isinstance(error, mqcore.Cancelled)


def test_rule_14_an_awaiter_whose_task_is_cancelled_cancels_the_step(uvloop_owner):
    holder = Lender()
    dispatcher = uvloop_owner.start({"a": holder})

    async def wait(message):
        return await dispatcher.hook("mq_step")(message)

    async def main():
        message = mqcore.Message()
        task = asyncio.ensure_future(wait(message))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert isinstance(message.error, mqcore.Cancelled)
        with pytest.raises(mqcore.NotHeld):
            holder.context.continue_(message)
        return message

    message = uvloop_owner.run(main())
    assert message.holder is None
    stats = dispatcher.stats()
    assert (stats.cancelled, stats.held, stats.running) == (1, 0, 0)


def test_rule_14_a_timeout_around_an_awaiter(uvloop_owner):
    dispatcher = uvloop_owner.start({"a": Lender()})

    async def main():
        message = mqcore.Message()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await dispatcher.hook("mq_step")(message)
        return message

    message = uvloop_owner.run(main())
    assert isinstance(message.error, mqcore.Cancelled)


def test_many_awaiters(uvloop_owner):
    def hook(context, message):
        context.start_timer(0.001, context.continue_, message)
        return True

    dispatcher = uvloop_owner.start({"a": hook})

    async def one():
        return await dispatcher.hook("mq_step")(mqcore.Message())

    async def main():
        return await asyncio.gather(*(one() for _ in range(1000)))

    assert uvloop_owner.run(main()) == [mqcore.CONTINUE] * 1000


def test_awaiting_a_second_step_of_one_message(uvloop_owner):
    dispatcher = uvloop_owner.start({"a": Lender()})

    async def main():
        message = mqcore.Message()
        dispatcher.hook("mq_step").run(message)
        with pytest.raises(mqcore.MqError):
            await dispatcher.hook("mq_step")(message)
        dispatcher.cancel(message)

    uvloop_owner.run(main())


def test_async_with_a_dispatcher_on_the_running_loop():
    async def main():
        with mqcore.Plugins(hooks=[mqcore.HookSpec("mq_step")]) as plugins:
            plugins.add("a", SimpleNamespace(mq_step=let_pass))
            async with mqcore.Dispatcher(plugins) as dispatcher:
                assert await dispatcher.hook("mq_step")(mqcore.Message()) is mqcore.CONTINUE
            with pytest.raises(mqcore.DispatcherClosed):
                await dispatcher.hook("mq_step")(mqcore.Message())

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


# Coroutine hooks


@pytest.mark.parametrize("sleeps", [0, 1, 3])
@pytest.mark.parametrize(
    ("verdict", "outcome", "calls"),
    [
        (False, mqcore.CONTINUE, "ab"),
        (None, mqcore.CONTINUE, "ab"),
        (mqcore.CONTINUE, mqcore.CONTINUE, "ab"),
        (mqcore.COMPLETE, mqcore.COMPLETE, "a"),
        (mqcore.RETRY, mqcore.CONTINUE, "aab"),
        (mqcore.FAIL, mqcore.FAIL, "a"),
        ("x", mqcore.FAIL, "a"),
    ],
)
def test_rule_05_what_a_coroutine_returns_is_its_verdict(uvloop_owner, sleeps, verdict, outcome, calls):
    trace = []

    async def hook(context, message):
        trace.append("a")
        again = message.retries
        for _ in range(sleeps):
            await asyncio.sleep(0)
        return False if again else verdict

    dispatcher = uvloop_owner.start({"a": hook, "b": lambda context, message: trace.append("b")})
    message = mqcore.Message()
    assert outcome_of(uvloop_owner, dispatcher.hook("mq_step"), message) is outcome
    assert "".join(trace) == calls
    assert isinstance(message.error, TypeError) == (outcome is mqcore.FAIL)


def test_rule_04_a_coroutine_holds_until_it_returns(uvloop_owner):
    go = []

    async def hook(context, message):
        while not go:
            await asyncio.sleep(0.001)

    dispatcher = uvloop_owner.start({"10-waits": hook, "20": let_pass})
    message = mqcore.Message()
    assert dispatcher.hook("mq_step").run(message, done=uvloop_owner.done) is None
    uvloop_owner.turn()
    assert message.holder == "10-waits"
    assert dispatcher.stats().held == 1
    assert [held.plugin for held in dispatcher.held()] == ["10-waits"]
    go.append(True)
    uvloop_owner.run_until(lambda: uvloop_owner.finished)
    assert uvloop_owner.finished == [(message, mqcore.CONTINUE)]


@pytest.mark.parametrize("by", ["true", "hold"])
def test_rule_04_a_coroutine_that_returns_true_keeps_holding(uvloop_owner, by):
    contexts, holds = [], []

    async def hook(context, message):
        contexts.append(context)
        await asyncio.sleep(0)
        if by == "true":
            return True
        holds.append(context.hold(message))
        return holds[0]

    dispatcher = uvloop_owner.start({"a": hook})
    message = mqcore.Message()
    assert dispatcher.hook("mq_step").run(message, done=uvloop_owner.done) is None
    for _ in range(3):
        uvloop_owner.turn()
    assert message.holder == "a"
    if by == "true":
        contexts[0].complete(message)
    else:
        holds[0].complete()
    uvloop_owner.run_until(lambda: uvloop_owner.finished)
    assert uvloop_owner.finished == [(message, mqcore.COMPLETE)]


@pytest.mark.parametrize("by", ["true", "hold"])
def test_rule_12_what_a_coroutine_holds_on_to_can_be_abandoned(uvloop_owner, by):
    told = []

    async def hook(context, message):
        await asyncio.sleep(0)
        return True if by == "true" else context.hold(message)

    dispatcher = uvloop_owner.start({"a": hook})
    dispatcher.hook("mq_step").run(mqcore.Message(), done=lambda message, outcome: told.append(type(message.error)))
    uvloop_owner.run_until(lambda: told)
    assert told == [mqcore.Abandoned]


class Again(collections.abc.Coroutine):
    """Returns itself, for ever."""

    closed = 0

    def send(self, value):
        raise StopIteration(self)

    def throw(self, *error):
        raise error[0]

    def close(self):
        self.closed += 1

    def __await__(self):
        yield


@pytest.mark.parametrize("sleeps", [0, 1])
@pytest.mark.parametrize("kind", ["native", "of a class"])
def test_rule_13_a_coroutine_that_returns_a_coroutine(uvloop_owner, kind, sleeps):
    """It is not run: most likely an `await` is missing."""
    again = Again()

    async def inner():
        raise AssertionError

    async def hook(context, message):
        for _ in range(sleeps):
            await asyncio.sleep(0)
        return inner() if kind == "native" else again

    dispatcher = uvloop_owner.start({"a": hook, "b": lambda context, message: True})
    message = mqcore.Message()
    assert outcome_of(uvloop_owner, dispatcher.hook("mq_step"), message) is mqcore.FAIL
    assert isinstance(message.error, TypeError)
    assert "plugin a returned <" in str(message.error) and "from mq_step" in str(message.error)
    assert again.closed == (kind == "of a class")


def test_rule_13_a_coroutine_that_returns_itself(uvloop_owner):
    again = Again()
    dispatcher = uvloop_owner.start({"a": lambda context, message: again})
    message = mqcore.Message()
    assert outcome_of(uvloop_owner, dispatcher.hook("mq_step"), message) is mqcore.FAIL
    assert isinstance(message.error, TypeError)
    assert again.closed == 1


@pytest.mark.parametrize("sleeps", [0, 1])
@pytest.mark.parametrize("where", ["repr", "close"])
def test_rule_14_a_step_that_is_cancelled_while_a_wrong_result_is_looked_at(uvloop_owner, where, sleeps):
    class Wrong(Again):
        def close(self):
            cancelled.append(where == "close" and dispatcher.cancel(message))

        def __repr__(self):
            cancelled.append(where == "repr" and dispatcher.cancel(message))
            return "Wrong"

    async def hook(context, message):
        for _ in range(sleeps):
            await asyncio.sleep(0)
        return Wrong()

    cancelled = []
    dispatcher = uvloop_owner.start({"a": hook})
    message = mqcore.Message()
    assert outcome_of(uvloop_owner, dispatcher.hook("mq_step"), message) is mqcore.FAIL
    assert isinstance(message.error, mqcore.Cancelled)
    assert sorted(cancelled) == [False, True]


def test_rule_13_a_generator_is_no_coroutine(uvloop_owner):
    dispatcher = uvloop_owner.start({"a": lambda context, message: (each for each in ())})
    message = mqcore.Message()
    assert outcome_of(uvloop_owner, dispatcher.hook("mq_step"), message) is mqcore.FAIL
    assert isinstance(message.error, TypeError)


@pytest.mark.parametrize("thread", [False, True])
@pytest.mark.parametrize(
    ("early", "verdict", "outcome"),
    [
        ("continue_", False, mqcore.CONTINUE),
        ("continue_", True, mqcore.CONTINUE),
        ("complete", True, mqcore.COMPLETE),
        ("complete", mqcore.COMPLETE, mqcore.COMPLETE),
        ("complete", False, mqcore.FAIL),
        ("retry", mqcore.COMPLETE, mqcore.FAIL),
        ("fail", False, mqcore.FAIL),
    ],
)
def test_rule_07_what_a_coroutine_gives_back_takes_effect_when_it_returns(uvloop_owner, thread, early, verdict, outcome):
    trace = []

    async def hook(context, message):
        trace.append("gives back")
        call = (context.fail, message, "no") if early == "fail" else (getattr(context, early), message)
        if thread:
            await asyncio.to_thread(*call)
        else:
            call[0](*call[1:])
        with pytest.raises(mqcore.NotHeld):
            context.continue_(message)
        await asyncio.sleep(0.002)
        trace.append("returns")
        return verdict

    dispatcher = uvloop_owner.start({"a": hook, "b": lambda context, message: trace.append("b")})
    message = mqcore.Message()
    assert outcome_of(uvloop_owner, dispatcher.hook("mq_step"), message) is outcome
    assert trace == ["gives back", "returns", *(["b"] if outcome is mqcore.CONTINUE else [])]
    uvloop_owner.run(uvloop_owner.loop.shutdown_default_executor())


def test_rule_10_a_coroutine_is_cancelled_by_its_deadline(uvloop_owner):
    trace = []

    async def hook(context, message):
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            trace.append("cancelled")
            raise

    dispatcher = uvloop_owner.start({"a": hook}, hold_timeout=0.01)
    message = mqcore.Message()
    assert outcome_of(uvloop_owner, dispatcher.hook("mq_step"), message) is mqcore.FAIL
    assert isinstance(message.error, mqcore.HoldTimeout)
    uvloop_owner.run_until(lambda: trace)


@pytest.mark.parametrize("how", ["cancel", "close"])
def test_rule_14_a_coroutine_is_cancelled_with_its_step(uvloop_owner, how):
    trace = []

    async def hook(context, message):
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            trace.append("cancelled")
            raise

    dispatcher = uvloop_owner.start({"a": hook})
    message = mqcore.Message()
    dispatcher.hook("mq_step").run(message, done=uvloop_owner.done)
    uvloop_owner.turn()
    if how == "cancel":
        dispatcher.cancel(message)
    else:
        dispatcher.close()
    assert uvloop_owner.finished == [(message, mqcore.FAIL)]
    uvloop_owner.run_until(lambda: trace)
    assert trace == ["cancelled"]


@pytest.mark.parametrize("what", ["returns", "raises"])
def test_rule_14_a_coroutine_that_ignores_its_cancellation_changes_nothing(uvloop_owner, what):
    trace = []

    async def hook(context, message):
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            trace.append("cancelled")
        await asyncio.sleep(0)
        trace.append("goes on")
        if what == "raises":
            raise ValueError("after cancel")
        return mqcore.COMPLETE

    dispatcher = uvloop_owner.start({"a": hook, "b": lambda context, message: trace.append("b")})
    message = mqcore.Message()
    dispatcher.hook("mq_step").run(message, done=uvloop_owner.done)
    uvloop_owner.turn()
    dispatcher.cancel(message)
    uvloop_owner.run_until(lambda: len(trace) == 2)
    uvloop_owner.turn()
    assert trace == ["cancelled", "goes on"]
    assert uvloop_owner.finished == [(message, mqcore.FAIL)]
    assert isinstance(message.error, mqcore.Cancelled)


def test_rule_14_a_message_runs_again_while_the_old_coroutine_ends(uvloop_owner):
    """What the coroutine of the step before does in the end is nothing to the new step."""
    trace = []

    async def hook(context, message):
        if trace:
            trace.append("second")
            await asyncio.sleep(0.01)
            return mqcore.COMPLETE
        trace.append("first")
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            return False

    dispatcher = uvloop_owner.start({"a": hook})
    message = mqcore.Message()
    dispatcher.hook("mq_step").run(message, done=uvloop_owner.done)
    uvloop_owner.turn()
    dispatcher.cancel(message)
    dispatcher.hook("mq_step").run(message, done=uvloop_owner.done)
    uvloop_owner.run_until(lambda: len(uvloop_owner.finished) == 2)
    assert [outcome for _, outcome in uvloop_owner.finished] == [mqcore.FAIL, mqcore.COMPLETE]
    assert trace == ["first", "second"]


@pytest.mark.parametrize("sleeps", [0, 1])
@pytest.mark.parametrize("error", [ValueError("bad"), asyncio.CancelledError("its own"), GeneratorExit()], ids=repr)
@pytest.mark.parametrize("config", [None, {"10-bad": {"on_error": "continue"}}], ids=["fail", "continue"])
def test_rule_13_a_coroutine_that_raises(uvloop_owner, caplog, sleeps, error, config):
    trace = []

    async def hook(context, message):
        for _ in range(sleeps):
            await asyncio.sleep(0)
        raise error

    hooks = {"10-bad": hook, "20": lambda context, message: trace.append("20")}
    dispatcher = uvloop_owner.start(hooks, config=config)
    message = mqcore.Message()
    outcome = outcome_of(uvloop_owner, dispatcher.hook("mq_step"), message)
    if config:
        assert outcome is mqcore.CONTINUE
        assert trace == ["20"]
        assert message.error is None
    else:
        assert outcome is mqcore.FAIL
        assert trace == []
        assert type(message.error) is type(error)
        assert "10-bad" in " ".join(message.error.__notes__)
    assert "10-bad" in caplog.text and "mq_step" in caplog.text


@pytest.mark.parametrize("sleeps", [0, 1])
@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_rule_13_what_ends_a_program_leaves_through_the_loop(uvloop_owner, sleeps, error):
    async def hook(context, message):
        for _ in range(sleeps):
            await asyncio.sleep(0)
        raise error

    dispatcher = uvloop_owner.start({"a": hook})
    message = mqcore.Message()
    left = []
    if dispatcher.hook("mq_step").run(message, done=uvloop_owner.done) is not None:
        uvloop_owner.done(message, mqcore.FAIL)
    for _ in range(5):
        try:
            uvloop_owner.turn()
        except (KeyboardInterrupt, SystemExit) as raised:
            left.append(type(raised))
    assert left == [error]
    assert uvloop_owner.finished == [(message, mqcore.FAIL)]
    assert isinstance(message.error, error)


def test_rule_13_what_ends_a_program_while_a_wrong_result_is_looked_at(uvloop_owner):
    class Wrong:
        def __repr__(self):
            raise KeyboardInterrupt

    async def hook(context, message):
        await asyncio.sleep(0)
        return Wrong()

    dispatcher = uvloop_owner.start({"a": hook})
    message = mqcore.Message()
    assert dispatcher.hook("mq_step").run(message, done=uvloop_owner.done) is None
    left = []
    for _ in range(5):
        try:
            uvloop_owner.turn()
        except KeyboardInterrupt as raised:
            left.append(raised)
    assert uvloop_owner.finished == [(message, mqcore.FAIL)]
    assert left == [message.error]


def test_coroutine_hooks_see_the_context_variables_of_run(uvloop_owner):
    seen = []

    async def hook(context, message):
        seen.append(WHO.get())
        WHO.set("the hook")
        await asyncio.sleep(0)
        seen.append(WHO.get())

    dispatcher = uvloop_owner.start({"a": hook, "b": hook})

    async def client(name):
        WHO.set(name)
        await dispatcher.hook("mq_step")(mqcore.Message())
        return WHO.get()

    async def main():
        return [await asyncio.create_task(client(name)) for name in ("one", "two")]

    assert uvloop_owner.run(main()) == ["one", "two"]
    assert seen == ["one", "the hook"] * 2 + ["two", "the hook"] * 2


def test_coroutine_hooks_after_a_give_back_see_the_context_variables_of_run_too(uvloop_owner):
    seen = []
    holder = Lender()

    async def hook(context, message):
        seen.append(WHO.get())

    dispatcher = uvloop_owner.start({"a": holder, "b": hook})
    message = mqcore.Message()
    context = contextvars.copy_context()
    context.run(WHO.set, "the caller")
    context.run(dispatcher.hook("mq_step").run, message, done=uvloop_owner.done)
    thread = threading.Thread(target=holder.context.continue_, args=(message,))
    thread.start()
    thread.join()
    uvloop_owner.run_until(lambda: uvloop_owner.finished)
    assert seen == ["the caller"]


def test_a_coroutine_hook_is_a_task_of_its_own(uvloop_owner):
    """`current_task`, `timeout` and `TaskGroup` work in it, and do nothing to the caller's task."""
    tasks = []

    async def hook(context, message):
        tasks.append(asyncio.current_task())
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.005):
                await asyncio.sleep(1000)
        async with asyncio.TaskGroup() as group:
            inner = group.create_task(asyncio.sleep(0, "inner"))
        assert inner.result() == "inner"
        tasks.append(asyncio.current_task())
        return mqcore.COMPLETE

    dispatcher = uvloop_owner.start({"a": hook})

    async def main():
        caller = asyncio.current_task()
        outcome = await dispatcher.hook("mq_step")(mqcore.Message())
        assert asyncio.current_task() is caller
        assert not caller.cancelling()
        return outcome, caller

    outcome, caller = uvloop_owner.run(main())
    assert outcome is mqcore.COMPLETE
    assert tasks[0] is tasks[1] and tasks[0] is not None and tasks[0] is not caller


def test_a_coroutine_hook_that_times_out_at_once(uvloop_owner):
    async def hook(context, message):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0):
                await asyncio.sleep(1000)

    dispatcher = uvloop_owner.start({"a": hook})

    async def main():
        return await dispatcher.hook("mq_step")(mqcore.Message()), asyncio.current_task().cancelling()

    assert uvloop_owner.run(main()) == (mqcore.CONTINUE, 0)


def test_run_of_a_coroutine_hook_when_the_loop_does_not_run(uvloop_owner):
    async def hook(context, message):
        await asyncio.sleep(0)
        return mqcore.COMPLETE

    dispatcher = uvloop_owner.start({"a": hook})
    messages = [mqcore.Message() for _ in range(100)]
    assert dispatcher.hook("mq_step").run_many(messages, done=uvloop_owner.done) == [None] * 100
    uvloop_owner.run_until(lambda: len(uvloop_owner.finished) == 100)
    assert {outcome for _, outcome in uvloop_owner.finished} == {mqcore.COMPLETE}


def test_on_pyuv_awaiting_is_an_error(pyuv_owner):
    step = pyuv_owner.start({"a": let_pass}).hook("mq_step")

    async def main():
        return await step(mqcore.Message())

    coroutine = main()
    with pytest.raises((mqcore.MqError, TypeError, RuntimeError), match="(?i)pyuv|asyncio|uvloop|await"):
        coroutine.send(None)
    coroutine.close()


def test_on_pyuv_a_coroutine_hook_is_an_error_when_the_dispatcher_is_made(pyuv_owner):
    async def hook(context, message):
        return False

    plugins = pyuv_owner.plugins({"10-async": hook})
    with pytest.raises(mqcore.MqError, match="10-async"):
        pyuv_owner.dispatcher(plugins)
    plugins.remove("10-async")
    pyuv_owner.dispatcher(plugins)
    with pytest.raises(mqcore.MqError, match="10-async"):
        plugins.add("10-async", SimpleNamespace(mq_step=hook))
