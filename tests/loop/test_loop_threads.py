"""Several threads: giving back from any of them, and a dispatcher in each."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import random
import sys
import threading
import time
from functools import partial

import pytest
import uvloop
from loop_tools import Lender, borrow
from owners import STEP, assert_conserved

import mqcore
from mqcore import READ


@pytest.fixture
def switching():
    """Threads that take turns as often as they can."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(interval)


def start(*functions):
    threads = [threading.Thread(target=function) for function in functions]
    for thread in threads:
        thread.start()
    return threads


# Giving back


def test_give_back_wakes_a_loop_that_sleeps(owner):
    dispatcher, context = borrow(owner)
    message = owner.Message()
    dispatcher.hook("mq_step").run(message, done=owner.done)
    owner.turn()
    (thread,) = start(lambda: (time.sleep(0.02), context.complete(message)))
    owner.run_until(lambda: owner.finished)
    thread.join()
    assert owner.finished == [(message, mqcore.COMPLETE)]


def test_give_back_wakes_a_uvloop_loop_that_has_nothing_else():
    async def main():
        plugins = mqcore.Plugins(hooks=[STEP])
        plugins.add("lender", lender := Lender())
        with mqcore.Dispatcher(plugins) as dispatcher:
            for verdict in ("continue_", "complete", "continue_"):
                message = mqcore.Message()
                timer = threading.Timer(0.01, getattr(lender.context, verdict), [message])
                timer.start()
                outcome = await dispatcher.hook("mq_step")(message)
                assert outcome is (mqcore.COMPLETE if verdict == "complete" else mqcore.CONTINUE)
                timer.join()
        plugins.close()

    uvloop.run(main())


def test_callbacks_run_on_the_dispatchers_thread(owner):
    threads = []

    class Second(Lender):
        def mq_step(self, context, message):
            threads.append(threading.get_ident())

    lender = Lender()
    dispatcher = owner.start({"a": lender, "b": Second()})

    def done(message, outcome):
        threads.append(threading.get_ident())
        owner.done(message, outcome)

    message = owner.Message()
    dispatcher.hook("mq_step").run(message, done=done)
    (thread,) = start(lambda: lender.context.continue_(message))
    thread.join()
    assert not threads
    owner.run_until(lambda: owner.finished)
    assert threads == [threading.get_ident()] * 2


def test_only_one_of_many_threads_can_give_back(owner, switching):
    """The claim is made in the calling thread."""
    dispatcher, context = borrow(owner)
    messages = [owner.Message() for _ in range(200)]
    dispatcher.hook("mq_step").run_many(messages, done=owner.done)
    barrier = threading.Barrier(4)
    won, refused = [], []

    def give_back():
        barrier.wait()
        for message in messages:
            try:
                context.complete(message)
                won.append(message)
            except mqcore.NotHeld:
                refused.append(message)

    threads = start(*[give_back] * 4)
    owner.run_until(lambda: len(won) + len(refused) == 800)
    for thread in threads:
        thread.join()
    owner.run_until(lambda: len(owner.finished) == 200)
    assert len(won) == 200 and len({id(message) for message in won}) == 200
    (row,) = [row for row in dispatcher.stats().hooks if row.hook == "mq_step"]
    assert (row.completes, row.refused) == (200, 600)


@pytest.mark.parametrize("returned", [True, "hold", "coroutine", "coroutine that returns true"])
def test_no_give_back_is_lost_while_the_hook_returns(owner, switching, returned):
    """From the moment the hook shows the message to another thread."""
    if owner.name == "pyuv" and "coroutine" in str(returned):
        pytest.skip("coroutine hooks need uvloop")
    work = queue.SimpleQueue()

    def hook(context, message):
        if returned == "hold":
            work.put((hold := context.hold(message)).complete)
            return hold
        work.put(partial(context.complete, message))
        return True

    async def coroutine(context, message):
        work.put(partial(context.complete, message))
        await asyncio.sleep(0)
        return True if returned == "coroutine that returns true" else None

    def give_back():
        while (complete := work.get()) is not None:
            try:
                complete()
            except mqcore.NotHeld as error:  # by then a coroutine may have returned
                refused.append(error)

    refused = []
    threads = start(give_back, give_back)
    try:
        dispatcher = owner.start({"a": coroutine if "coroutine" in str(returned) else hook}, hold_timeout=0)
        step = dispatcher.hook("mq_step")
        messages = [owner.Message() for _ in range(2000)]
        outcomes = [step.run(message, done=owner.done) for message in messages]
        owner.run_until(lambda: outcomes.count(None) == len(owner.finished), timeout=120)  # 2,000 errors are told
    finally:
        for _ in threads:
            work.put(None)
        for thread in threads:
            thread.join()
    outcomes += [outcome for _, outcome in owner.finished]
    if returned == "coroutine":
        # Given back in time: an early COMPLETE, and None for a verdict, which do not go together. Or else too late.
        assert outcomes.count(mqcore.CONTINUE) == len(refused)
        assert outcomes.count(mqcore.FAIL) == 2000 - len(refused)
    else:
        assert not refused
        assert outcomes.count(mqcore.COMPLETE) == 2000


def test_a_thread_gives_back_a_million_times(owner):
    given_back = finished = 0
    work = queue.SimpleQueue()

    class Plugin(Lender):
        def mq_step(self, context, message):
            return True

    plugin = Plugin()
    dispatcher = owner.start({"a": plugin})
    step = dispatcher.hook("mq_step")
    messages = [owner.Message() for _ in range(10_000)]

    def give_back():
        nonlocal given_back
        while (batch := work.get()) is not None:
            complete = plugin.context.complete
            for message in batch:
                complete(message)
            given_back += len(batch)

    def done(message, outcome):
        nonlocal finished
        finished += 1

    (thread,) = start(give_back)
    for _ in range(100):
        before = finished
        step.run_many(messages, done=done)
        work.put(messages)
        owner.run_until(lambda before=before: finished == before + 10_000, timeout=30)
    work.put(None)
    thread.join()
    assert given_back == finished == 1_000_000
    assert dispatcher.stats().completed == 1_000_000


def test_threads_and_the_loop_give_back_at_once(owner, switching):
    """Retries, deadlines and cancels among them: each step ends once."""
    lender = Lender()
    dispatcher = owner.start({"a": lender}, hold_timeout=0.005, max_retries=100_000)
    step = dispatcher.hook("mq_step")
    context = lender.context
    outcomes = {}
    messages = [owner.Message() for _ in range(300)]
    stop = False

    def done(message, outcome):
        assert message not in outcomes
        outcomes[message] = outcome

    def give_back(seed):
        chance = random.Random(seed)
        while not stop:
            accepted = False
            for message in messages:
                with contextlib.suppress(mqcore.NotHeld):
                    getattr(context, chance.choice(["retry", "retry", "retry", "continue_"]))(message)
                    accepted = True
            if not accepted:
                time.sleep(0.001)  # under valgrind, which runs one thread at a time, the loop would hardly get its turn

    threads = start(lambda: give_back(1), lambda: give_back(2))
    try:
        for _ in range(5):
            outcomes.clear()
            step.run_many(messages, done=done)
            for message in messages[::50]:
                dispatcher.cancel(message)
            owner.run_until(lambda: len(outcomes) == 300)
            assert_conserved(dispatcher)
    finally:
        stop = True
        for thread in threads:
            thread.join()
    assert not owner.loop_errors


def test_the_last_reference_goes_on_another_thread(owner):
    lender = Lender()
    dispatcher = owner.start({"a": lender})
    outcomes = []
    kept = [owner.Message() for _ in range(100)]
    dispatcher.hook("mq_step").run_many(kept, done=lambda message, outcome: outcomes.append(message.error))
    (thread,) = start(kept.clear)
    thread.join()
    owner.run_until(lambda: len(outcomes) == 100)
    assert all(isinstance(error, mqcore.Abandoned) for error in outcomes)


def test_close_while_threads_give_back(owner, switching):
    for _ in range(10):
        dispatcher, context = borrow(owner)
        messages = [owner.Message() for _ in range(200)]
        told = []
        dispatcher.hook("mq_step").run_many(messages, done=lambda message, outcome, told=told: told.append(message))

        def give_back(messages=messages, context=context):
            for message in messages:
                with contextlib.suppress(mqcore.NotHeld, mqcore.DispatcherClosed):
                    context.complete(message)

        threads = start(give_back, give_back)
        owner.spin(wait=False)
        dispatcher.close()
        for thread in threads:
            thread.join()
        owner.turn()
        assert sorted(map(id, told)) == sorted(map(id, messages))
        assert_conserved(dispatcher)
        owner.dispatchers.remove(dispatcher)


def test_holds_that_end_on_other_threads_stop_their_timers_and_watchers(owner, socket_pair, switching):
    holds = []

    def hook(context, message):
        hold = context.hold(message)
        holds.append(hold)
        hold.start_timer(100, pytest.fail)
        hold.start_timer(0.002, pytest.fail, "fired after its hold")
        hold.watch(socket_pair[0], READ, pytest.fail)
        return hold

    dispatcher = owner.start({"a": hook})
    dispatcher.hook("mq_step").run_many([owner.Message() for _ in range(500)], done=owner.done)
    halves = holds[::2], holds[1::2]
    threads = start(*[lambda half=half: [hold.complete() for hold in half] for half in halves])
    for thread in threads:
        thread.join()
    socket_pair[1].send(b"x")
    owner.run_until(lambda: len(owner.finished) == 500)
    owner.turn()
    assert {outcome for _, outcome in owner.finished} == {mqcore.COMPLETE}


# Python code that runs while a hold ends: finalizers of what its timers carry, and log handlers


class Late:
    """Tries to give a message back when it is dropped, here and on another thread."""

    def __init__(self, context, message, log):
        self.given = context, message, log

    def __del__(self):
        context, message, log = self.given

        def give_back():
            try:
                context.complete(message)
                log.append("accepted")
            except mqcore.MqError as error:
                log.append(type(error))

        give_back()
        for thread in start(give_back):
            thread.join()


@pytest.mark.parametrize("end", ["hold.complete", "hold.fail", "cancel", "deadline", "close", "thread"])
def test_a_finalizer_gives_back_while_the_hold_ends(owner, end, caplog):
    """The hold is over from the moment that somebody claimed it."""
    log, kept = [], []

    def hook(context, message):
        hold = context.hold(message)
        kept.append(hold)
        hold.start_timer(100, print, Late(context, message, log))
        return hold

    dispatcher = owner.start({"a": hook}, hold_timeout=0.005 if end == "deadline" else 0)
    message = owner.Message()
    dispatcher.hook("mq_step").run(message, done=owner.done)
    hold = kept[0]
    if end == "hold.complete":
        hold.complete()
    elif end == "hold.fail":
        hold.fail("no")
    elif end == "cancel":
        dispatcher.cancel(message)
    elif end == "close":
        dispatcher.close()
    elif end == "thread":
        for thread in start(hold.complete):
            thread.join()
    owner.run_until(lambda: owner.finished)
    owner.turn()
    refused = mqcore.DispatcherClosed if end == "close" else mqcore.NotHeld
    assert log == [refused] * 2
    complete = end in ("hold.complete", "thread")
    assert owner.finished == [(message, mqcore.COMPLETE if complete else mqcore.FAIL)]


class Closing:
    """Closes a dispatcher when it is dropped."""

    def __init__(self, dispatcher):
        self.dispatcher = dispatcher

    def __del__(self):
        self.dispatcher.close()


@pytest.mark.parametrize("end", ["complete", "cancel", "deadline"])
def test_a_finalizer_closes_the_dispatcher_while_the_hold_ends(owner, end):
    """The step ends all the same, once: what a hold had is only dropped when its step has gone on."""
    kept = []

    def hook(context, message):
        hold = context.hold(message)
        kept.append(hold)
        hold.start_timer(100, print, Closing(dispatcher))
        return hold

    dispatcher = owner.start({"a": hook}, hold_timeout=0.005 if end == "deadline" else 0)
    message = owner.Message()
    dispatcher.hook("mq_step").run(message, done=owner.done)
    if end == "complete":
        kept[0].complete()
    elif end == "cancel":
        dispatcher.cancel(message)
    owner.run_until(lambda: owner.finished)
    owner.turn()
    assert owner.finished == [(message, mqcore.FAIL)]
    assert_conserved(dispatcher)


@pytest.mark.parametrize("verdict", [False, mqcore.CONTINUE, mqcore.COMPLETE, mqcore.RETRY, "raise", "wrong"], ids=repr)
def test_a_finalizer_gives_back_while_the_step_goes_on(owner, verdict, caplog):
    """The hook asked for a hold, and did not take the message."""
    log, calls = [], []

    def hook(context, message):
        calls.append(1)
        if len(calls) > 1:
            return False
        context.hold(message).start_timer(100, print, Late(context, message, log))
        if verdict == "raise":
            raise LookupError("no")
        return verdict

    dispatcher = owner.start({"a": hook, "b": lambda context, message: False})
    message = owner.Message()
    outcome = dispatcher.hook("mq_step").run(message, done=pytest.fail)
    owner.turn()
    assert log == [mqcore.NotHeld] * 2
    expected = {mqcore.COMPLETE: mqcore.COMPLETE, "raise": mqcore.FAIL, "wrong": mqcore.FAIL}
    assert outcome is expected.get(verdict, mqcore.CONTINUE)


@pytest.mark.parametrize("thread", [False, True])
def test_a_log_handler_gives_back_while_a_deadline_passes(owner, thread):
    """Whoever claims it first: each step ends once."""
    lender = Lender()
    dispatcher = owner.start({"a": lender}, hold_timeout=0.005)
    messages = [owner.Message() for _ in range(20)]
    accepted = []

    class Handler(logging.Handler):
        def emit(self, record):
            def give_back():
                for message in messages:
                    with contextlib.suppress(mqcore.NotHeld):
                        lender.context.complete(message)
                        accepted.append(message)

            if thread:
                for each in start(give_back):
                    each.join()
            else:
                give_back()

    dispatcher.hook("mq_step").run_many(messages, done=owner.done)
    logging.getLogger("mqcore").addHandler(handler := Handler())
    try:
        owner.run_until(lambda: len(owner.finished) == 20)
    finally:
        logging.getLogger("mqcore").removeHandler(handler)
    assert_conserved(dispatcher)
    for message, outcome in owner.finished:
        assert outcome is (mqcore.COMPLETE if message in accepted else mqcore.FAIL)
    assert len(accepted) == len({id(message) for message in accepted}) >= 19  # the log comes once for the portion


# A dispatcher in each thread


class Worker:
    """A dispatcher on a loop of its own, in a thread of its own, that works until told to stop."""

    def __init__(self, name, rounds):
        self.name = name
        self.rounds = rounds
        self.finished = 0
        self.error = self.over = None
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self):
        try:
            self.work_on_uvloop() if self.name == "uvloop" else self.work_on_pyuv()
        except BaseException as error:
            self.error = error

    def make(self, loop):
        lender = Lender()
        plugins = mqcore.Plugins(hooks=[STEP])
        plugins.add("lender", lender)
        self.dispatcher = mqcore.Dispatcher(plugins, loop=loop)
        self.step = self.dispatcher.hook("mq_step")
        self.context = lender.context
        self.again()

    def again(self):
        if self.finished < self.rounds:
            message = mqcore.Message()
            self.step.run(message, done=self.done)
            self.context.start_timer(0, self.context.complete, message)
        elif self.over is not None:
            self.over.set()

    def done(self, message, outcome):
        assert threading.current_thread() is self.thread
        self.finished += 1
        self.again()

    def work_on_uvloop(self):
        async def main():
            self.over = asyncio.Event()
            self.make(None)
            await self.over.wait()
            self.dispatcher.close()

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main())

    def work_on_pyuv(self):
        import pyuv

        loop = pyuv.Loop()
        self.make(loop)
        loop.run()  # until nothing is left to do
        self.dispatcher.close()
        loop.run()

    def join(self):
        self.thread.join()
        if self.error is not None:
            raise self.error
        assert self.finished == self.rounds
        assert self.dispatcher.stats().completed == self.rounds


@pytest.mark.parametrize("names", [["uvloop"] * 2, ["pyuv"] * 2, ["uvloop", "pyuv"], ["uvloop", "pyuv"] * 3])
def test_a_dispatcher_in_each_thread(names, switching):
    for worker in [Worker(name, 300) for name in names]:
        worker.join()


def test_messages_go_from_thread_to_thread(switching):
    """Each dispatcher's messages are given back by the other one's thread."""
    results = []

    async def main(mine, other):
        outcomes = []
        plugins = mqcore.Plugins(hooks=[STEP])
        plugins.add("lender", lender := Lender())
        async with mqcore.Dispatcher(plugins) as dispatcher:
            step = dispatcher.hook("mq_step")
            sent = given_back = 0
            while len(outcomes) < 300 or given_back < 300:
                if sent < 300:
                    sent += 1
                    message = mqcore.Message()
                    step.run(message, done=lambda message, outcome: outcomes.append(outcome))
                    other.put((lender.context, message))
                while not mine.empty():
                    context, message = mine.get()
                    context.complete(message)
                    given_back += 1
                await asyncio.sleep(0 if sent < 300 else 0.0005)
        plugins.close()
        results.append(outcomes)

    def run(*queues):
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(main(*queues))

    one, two = queue.SimpleQueue(), queue.SimpleQueue()
    for thread in start(lambda: run(one, two), lambda: run(two, one)):
        thread.join(60)
        assert not thread.is_alive()
    assert results == [[mqcore.COMPLETE] * 300] * 2


def test_a_dispatcher_belongs_to_the_thread_that_made_it(owner):
    dispatcher, context = borrow(owner)
    step = dispatcher.hook("mq_step")
    message = owner.Message()
    step.run(message, done=owner.done)
    hold = context.hold(message)
    refused = []

    def attempt():
        for action in (
            lambda: step.run(owner.Message()),
            lambda: step.run_many([owner.Message()]),
            lambda: dispatcher.cancel(message),
            dispatcher.held,
            dispatcher.close,
            lambda: context.hold(message),
            lambda: context.start_timer(0, print),
            lambda: hold.start_timer(0, print),
            lambda: context.watch(0, READ, print),
            lambda: hold.watch(0, READ, print),
        ):
            try:
                action()
            except mqcore.MqError as error:
                refused.append("thread" in str(error))
        dispatcher.stats()

    (thread,) = start(attempt)
    thread.join()
    assert refused == [True] * 10
    hold.complete()
    owner.run_until(lambda: owner.finished)
