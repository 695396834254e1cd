"""A loop that a runner ends, with everything still open: asyncio.run, uvloop.run, Runner."""

from __future__ import annotations

import asyncio
import gc
import sys
import time

import pytest
import uvloop
from busy import Busy
from loop_tools import borrow
from owners import assert_conserved
from waiting import until

import mqcore
from mqcore import READ

# The runners


def with_uvloop_run(main):
    return uvloop.run(main())


def with_asyncio_run(main):
    if sys.version_info >= (3, 12):
        return asyncio.run(main(), loop_factory=uvloop.new_event_loop)
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    try:
        return asyncio.run(main())
    finally:
        asyncio.set_event_loop_policy(None)


def with_runner(main):
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main())


def by_hand(main):
    loop = uvloop.new_event_loop()
    try:
        return loop.run_until_complete(main())
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


RUNNERS = [with_uvloop_run, with_asyncio_run, with_runner, by_hand]


@pytest.fixture(params=RUNNERS, ids=lambda runner: runner.__name__)
def run(request):
    return request.param


def test_the_runner_ends_with_messages_held(run):
    async def main():
        busy = Busy().fill()
        await asyncio.sleep(0.002)
        return busy

    run(main).check()


def test_the_runner_ends_at_once(run):
    async def main():
        return Busy().fill()

    run(main).check()


def test_the_runner_ends_with_coroutine_hooks_suspended(run):
    """asyncio cancels their tasks first, where it has the time."""
    async def main():
        busy = Busy().fill()
        busy.suspend()
        await asyncio.sleep(0.002)
        return busy

    run(main).check(ended=(mqcore.DispatcherClosed, asyncio.CancelledError))


def test_the_runner_ends_with_tasks_awaiting(run):
    seen = []

    async def wait(busy):
        try:
            seen.append(await busy.dispatcher.hook("mq_step")(mqcore.Message()))
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    async def main():
        busy = Busy().fill()
        main.tasks = [asyncio.create_task(wait(busy)) for _ in range(3)]
        await asyncio.sleep(0.002)
        return busy

    busy = run(main)
    busy.check()
    if run is by_hand:  # nobody cancelled the tasks
        assert busy.dispatcher.stats().cancelled == 0
    else:
        assert seen == ["cancelled"] * 3
        assert busy.dispatcher.stats().cancelled == 3
    main.tasks.clear()
    gc.collect()
    assert not busy.errors


def test_the_runner_ends_with_an_error(run):
    made = []

    async def main():
        made.append(Busy().fill())
        await asyncio.sleep(0.002)
        raise LookupError("the end")

    with pytest.raises(LookupError, match="the end"):
        run(main)
    made[0].check()


def test_the_runner_ends_in_a_task_that_still_runs_messages_when_it_is_cancelled(run):
    """A task that works on in its `finally`, while the runner waits for it."""
    outcomes = []

    async def work(busy):
        try:
            await asyncio.sleep(100)
        finally:
            message = mqcore.Message()
            busy.dispatcher.hook("mq_step").run(message, done=lambda message, outcome: outcomes.append(outcome))
            busy.context.start_timer(0.001, busy.context.complete, message)
            await until(lambda: outcomes)

    async def main():
        busy = Busy().fill()
        main.task = asyncio.create_task(work(busy))
        await asyncio.sleep(0.002)
        if run is by_hand:
            main.task.cancel()
            await asyncio.gather(main.task, return_exceptions=True)
        return busy

    run(main).check()
    assert outcomes == [mqcore.COMPLETE]


def test_the_runner_ends_with_a_dispatcher_of_before():
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        busy = Busy(runner.get_loop()).fill()
        runner.run(asyncio.sleep(0.002))
        runner.run(asyncio.sleep(0))
        assert not busy.cleaned
    busy.check()


def test_the_runner_ends_before_anything_ran():
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        busy = Busy(runner.get_loop()).fill()
    busy.check()


@pytest.mark.parametrize("how", ["with", "async with", "close"])
def test_a_dispatcher_closed_in_time(run, how):
    async def main():
        busy = Busy().fill()
        await asyncio.sleep(0.001)
        if how == "with":
            with busy.dispatcher as entered:
                assert entered is busy.dispatcher
        elif how == "async with":
            async with busy.dispatcher as entered:
                assert entered is busy.dispatcher
        else:
            busy.dispatcher.close()
        await asyncio.sleep(0.001)
        return busy

    run(main).check()


def test_many_dispatchers_one_after_another(run):
    async def main():
        made = []
        for _ in range(30):
            made.append(Busy().fill())
            await asyncio.sleep(0)
            if len(made) % 2:
                made[-1].dispatcher.close()
        return made

    for busy in run(main):
        busy.check()


def test_aclose_of_other_generators_comes_to_its_end(run):
    """Our own generator is not in the way of others."""
    log = []

    async def numbers():
        try:
            yield 1
            yield 2
        finally:
            await asyncio.sleep(0.001)
            log.append("closed")

    async def main():
        busy = Busy().fill()
        main.kept = numbers()
        await main.kept.__anext__()
        return busy

    run(main).check()
    assert log == ["closed"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_the_program_is_ended_in_a_callback(run, error):
    made = []

    def end():
        raise error

    async def main():
        made.append(busy := Busy().fill())
        busy.context.start_timer(0.001, end)
        await asyncio.sleep(100)

    with pytest.raises(error):
        run(main)
    made[0].check()


# close() from inside


@pytest.fixture
def quiet(caplog):
    caplog.set_level("CRITICAL")


def all_ended(owner, dispatcher, messages, outcome=mqcore.FAIL, error=mqcore.DispatcherClosed):
    owner.turn()
    assert_conserved(dispatcher)
    assert len(owner.finished) == len({id(message) for message, _ in owner.finished}) == len(messages)
    for _, each in owner.finished:
        assert each is outcome
    for message in messages:
        assert isinstance(message.error, error)


def test_close_in_a_hook(owner):
    def hook(context, message):
        if message.data:
            dispatcher.close()
            dispatcher.close()
        return True

    cleaned = []
    plugin = type("Plugin", (), {"mq_step": staticmethod(hook), "mq_context_cleanup": staticmethod(cleaned.append)})
    dispatcher = owner.start({"a": plugin()})
    step = dispatcher.hook("mq_step")
    held = [owner.Message() for _ in range(5)]
    step.run_many(held, done=owner.done)
    message = owner.Message()
    message.data["close"] = True
    assert step.run(message, done=pytest.fail) is mqcore.FAIL
    assert isinstance(message.error, mqcore.DispatcherClosed)
    assert len(cleaned) == 1
    all_ended(owner, dispatcher, held)


def test_close_in_a_hook_of_run_many(owner):
    def hook(context, message):
        if message.data:
            dispatcher.close()
        return True

    dispatcher = owner.start({"a": hook})
    messages = [owner.Message() for _ in range(5)]
    messages[2].data["close"] = True
    outcomes = dispatcher.hook("mq_step").run_many(messages, done=owner.done)
    owner.turn()
    assert outcomes == [None, None, mqcore.FAIL, mqcore.FAIL, mqcore.FAIL]
    assert [message for message, _ in owner.finished] == messages[:2]
    assert all(isinstance(message.error, mqcore.DispatcherClosed) for message in messages)


@pytest.mark.parametrize("then", ["true", "false", "raise", "complete", "retry"])
def test_close_in_a_hook_that_is_called_from_the_loop(owner, then, quiet):
    def second(context, message):
        dispatcher.close()
        if then == "raise":
            raise LookupError("after close")
        return {"true": True, "false": False, "complete": mqcore.COMPLETE, "retry": mqcore.RETRY}[then]

    def first(context, message):
        context.start_timer(0.001, context.continue_, message)
        return True

    dispatcher = owner.start({"a": first, "b": second, "c": lambda context, message: pytest.fail("called")})
    messages = [owner.Message() for _ in range(5)]
    dispatcher.hook("mq_step").run_many(messages, done=owner.done)
    owner.run_until(lambda: len(owner.finished) == 5)
    all_ended(owner, dispatcher, messages, error=(LookupError, mqcore.DispatcherClosed))


def test_close_in_done(owner):
    dispatcher, context = borrow(owner)
    messages = [owner.Message() for _ in range(10)]

    def done(message, outcome):
        owner.done(message, outcome)
        dispatcher.close()

    dispatcher.hook("mq_step").run_many(messages, done=done)
    for message in messages[:5]:
        context.complete(message)
    owner.run_until(lambda: owner.finished)
    owner.turn()
    assert_conserved(dispatcher)
    assert sorted(map(id, messages)) == sorted(id(message) for message, _ in owner.finished)
    assert owner.finished[0] == (messages[0], mqcore.COMPLETE)
    assert all(outcome is mqcore.FAIL for _, outcome in owner.finished[1:])


def test_done_during_close_may_try_anything(owner):
    dispatcher, context = borrow(owner)
    messages = [owner.Message() for _ in range(6)]
    step = dispatcher.hook("mq_step")
    refused = []

    def done(message, outcome):
        owner.done(message, outcome)
        dispatcher.close()
        dispatcher.cancel(messages[3])
        for attempt in (
            lambda: step.run(owner.Message()),
            lambda: step.run(message),
            lambda: context.complete(messages[5]),
            lambda: context.start_timer(0, print),
            lambda: context.hold(messages[5]),
            lambda: dispatcher.hook("mq_step"),
        ):
            try:
                attempt()
            except mqcore.MqError as error:
                refused.append(error)

    step.run_many(messages, done=done)
    context.complete(messages[4])
    dispatcher.close()
    owner.turn()
    assert sorted(map(id, messages)) == sorted(id(message) for message, _ in owner.finished)
    assert all(outcome is mqcore.FAIL for _, outcome in owner.finished)
    assert len(refused) == 36
    assert all(isinstance(error, mqcore.DispatcherClosed) for error in refused)


def test_done_during_close_drops_other_messages(owner):
    dispatcher, _ = borrow(owner)
    messages = [owner.Message() for _ in range(6)]
    calls = []

    def done(message, outcome):
        calls.append(outcome)
        messages.clear()

    dispatcher.hook("mq_step").run_many(messages, done=done)
    dispatcher.close()
    owner.turn()
    assert calls == [mqcore.FAIL] * 6
    assert dispatcher.stats().failed == 6


def test_done_during_close_raises(owner):
    dispatcher, _ = borrow(owner)
    messages = [owner.Message() for _ in range(3)]

    def done(message, outcome):
        owner.done(message, outcome)
        raise LookupError("done")

    dispatcher.hook("mq_step").run_many(messages, done=done)
    dispatcher.close()
    assert len(owner.finished) == 3
    assert [type(error) for error in owner.loop_errors] == [LookupError] * 3
    owner.loop_errors.clear()


def test_close_in_mq_context_cleanup(owner):
    calls = []

    class Plugin:
        def mq_context_initialize(self, context):
            self.context = context

        def mq_context_cleanup(self, context):
            calls.append(context)
            dispatcher.close()
            with pytest.raises(mqcore.DispatcherClosed):
                context.start_timer(0, print)

        def mq_step(self, context, message):
            return True

    plugins = {"a": Plugin(), "b": Plugin()}
    dispatcher = owner.start(plugins)
    dispatcher.hook("mq_step").run(message := owner.Message(), done=owner.done)
    dispatcher.close()
    assert calls == [plugins["b"].context, plugins["a"].context]
    all_ended(owner, dispatcher, [message])


def test_mq_context_cleanup_stops_timers_and_watchers(owner, socket_pair):
    class Plugin:
        def mq_context_initialize(self, context):
            self.timer = context.start_timer(0.001, pytest.fail, "fired")
            self.watcher = context.watch(socket_pair[0], READ, pytest.fail)

        def mq_context_cleanup(self, context):
            self.stopped = self.timer.stop(), self.watcher.stop()

    plugin = Plugin()
    dispatcher = owner.start({"a": plugin})
    socket_pair[1].send(b"x")
    dispatcher.close()
    time.sleep(0.002)
    owner.turn()
    assert plugin.stopped == (True, True)


def test_mq_context_initialize_that_raises_leaves_no_timers(owner, socket_pair):
    class Plugin:
        def mq_context_initialize(self, context):
            self.context = context
            self.timer = context.start_timer(0, pytest.fail, "fired")
            self.watcher = context.watch(socket_pair[0], READ, pytest.fail)
            raise LookupError("no context")

    plugin = Plugin()
    socket_pair[1].send(b"x")
    plugins = owner.plugins({"a": plugin})
    with pytest.raises((mqcore.PluginError, LookupError)):
        owner.dispatcher(plugins)
    time.sleep(0.002)
    owner.turn()
    owner.turn()
    assert plugin.timer.stop() is False
    assert plugin.watcher.stop() is False
    with pytest.raises(mqcore.DispatcherClosed):
        plugin.context.start_timer(0, print)


@pytest.mark.parametrize("moment", ["before the loop ran", "after"])
def test_close_twice_and_more(owner, moment):
    dispatcher, _ = borrow(owner)
    if moment == "after":
        owner.turn()
    for _ in range(3):
        dispatcher.close()
    owner.turn()
    dispatcher.close()


def test_a_dispatcher_that_is_closed_and_made_again(owner):
    """On one loop, with the close callbacks of the first still to come."""
    for _ in range(50):
        dispatcher, context = borrow(owner)
        context.start_timer(0, list)
        dispatcher.close()
        owner.dispatchers.remove(dispatcher)
    owner.turn()


def test_two_dispatchers_on_one_loop(owner, socket_pair):
    fired = []
    (one, one_context), (_, two_context) = borrow(owner), borrow(owner)
    one_context.watch(socket_pair[0], READ, lambda watcher, events: fired.append("one") or watcher.stop())
    two_context.watch(socket_pair[1], READ, lambda watcher, events: fired.append("two") or watcher.stop())
    for end in socket_pair:
        end.send(b"x")
    for _ in range(3):
        one_context.start_timer(0, fired.append, "one")
        two_context.start_timer(0, fired.append, "two")
    owner.run_until(lambda: len(fired) == 8)
    one.close()
    two_context.start_timer(0.001, fired.append, "last")
    owner.run_until(lambda: "last" in fired)
    with pytest.raises(mqcore.NotHeld):
        two_context.complete(owner.Message())


def test_a_message_goes_from_one_dispatcher_to_the_other(owner):
    (one, one_context), (two, two_context) = borrow(owner), borrow(owner)
    message = owner.Message()
    one.hook("mq_step").run(message, done=owner.done)
    with pytest.raises(mqcore.MqError):
        two.hook("mq_step").run(message)
    with pytest.raises(mqcore.NotHeld):
        two_context.complete(message)
    assert two.cancel(message) is False
    one_context.complete(message)
    owner.run_until(lambda: owner.finished)
    two.hook("mq_step").run(message, done=owner.done)
    with pytest.raises(mqcore.NotHeld):
        one_context.complete(message)
    one.close()
    two_context.complete(message)
    owner.run_until(lambda: len(owner.finished) == 2)
