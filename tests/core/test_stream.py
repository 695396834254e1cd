"""`hook.stream`: what comes out of it, in both orders, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import threading
import weakref
from types import SimpleNamespace

import pytest
from loop_tools import python
from waiting import until

import mqcore

ORDERS = pytest.mark.parametrize("ordered", [False, True])
KINDS = pytest.mark.parametrize("kind", [iter, "async"], ids=["sync", "async"])


class Mail(mqcore.Message):
    def __init__(self, number, what=None):
        self.number = number
        self.what = what


class Sorter:
    """A plugin that does with each message what that says."""

    def __init__(self):
        self.held = {}
        self.context = None

    def mq_context_initialize(self, context):
        self.context = context

    def mq_step(self, context, message):
        if message.what == "hold":
            self.held[message.number] = message
            return mqcore.HOLD
        if message.what == "abandon":
            return mqcore.HOLD
        if message.what == "raise":
            raise ValueError(message.number)
        if message.what == "later":
            context.start_timer(0.01, context.continue_, message)
            return mqcore.HOLD
        if message.what == "last":  # of two that are held, the later one goes on first
            for number in sorted(self.held, reverse=True):
                context.start_timer(0, self.give_back, number)
        return False

    async def mq_other(self, context, message, extra):
        await asyncio.sleep(0)
        message.what = extra, VARIABLE.get()
        return mqcore.COMPLETE

    def give_back(self, number):
        self.context.continue_(self.held.pop(number))


VARIABLE = contextvars.ContextVar("VARIABLE", default=None)


async def asynchronous(messages):
    for message in messages:
        await asyncio.sleep(0)
        yield message
        del message


def source_of(kind, messages):
    return asynchronous(messages) if kind == "async" else kind(messages)


def numbers(pairs):
    return [message.number for message, _ in pairs]


async def collect(stream):
    return [pair async for pair in stream]


async def settled(read, wanted):
    """What was read comes to be this, however busy the machine is, and no more."""
    await until(lambda: len(read) >= len(wanted))
    await asyncio.sleep(0.01)
    assert read == wanted


async def soon():
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.fixture
def sorter():
    return Sorter()


@pytest.fixture
def hook(uvloop_owner, sorter):
    return uvloop_owner.start({"10-sorter": sorter}).hook("mq_step")


# -------------------------------------------------------------------------------------------------------------- Outcomes

@ORDERS
@KINDS
def test_what_comes_out(uvloop_owner, hook, kind, ordered):
    mails = [Mail(number, what) for number, what in enumerate(["hold", None, "raise", "hold", "last"])]
    pairs = uvloop_owner.run(collect(hook.stream(source_of(kind, mails), ordered=ordered)))
    assert numbers(pairs) == ([0, 1, 2, 3, 4] if ordered else [1, 2, 4, 3, 0])
    outcomes = {mail.number: outcome for mail, outcome in pairs}
    assert outcomes == dict.fromkeys([0, 1, 3, 4], mqcore.CONTINUE) | {2: mqcore.FAIL}
    assert isinstance(mails[2].error, ValueError)


@ORDERS
@KINDS
def test_held_messages_are_referred_to_weakly(uvloop_owner, hook, sorter, kind, ordered):
    gone = []

    def mails():
        yield Mail(0, "hold")
        mail = Mail(1, "abandon")
        gone.append(weakref.ref(mail))
        yield mail
        del mail
        yield Mail(2)

    async def run():
        stream = hook.stream(source_of(kind, mails()), ordered=ordered)
        task = asyncio.create_task(collect(stream))
        await until(lambda: gone and 0 in sorter.held)
        sorter.give_back(0)
        return await task

    pairs = uvloop_owner.run(run())
    assert sorted(numbers(pairs)) == [0, 1, 2]
    (abandoned,) = [mail for mail, outcome in pairs if outcome is mqcore.FAIL]
    assert isinstance(abandoned.error, mqcore.Abandoned) and gone[0]() is abandoned


def test_the_arguments_and_the_context_of_the_hook(uvloop_owner):
    hook = uvloop_owner.start({"10-sorter": Sorter()}).hook("mq_other")

    async def run():
        VARIABLE.set("variable")
        return await collect(hook.stream([Mail(1), Mail(2)], "extra")) + await collect(
            hook.stream(asynchronous([Mail(3)]), "extra")
        )

    pairs = uvloop_owner.run(run())
    assert [outcome for _, outcome in pairs] == [mqcore.COMPLETE] * 3
    assert {mail.what for mail, _ in pairs} == {("extra", "variable")}


@ORDERS
@KINDS
def test_so_many_are_in_flight_and_no_more(uvloop_owner, hook, sorter, kind, ordered):
    async def run():
        read = []

        def mails():
            for number in range(10):
                read.append(number)
                yield Mail(number, "hold")

        task = asyncio.create_task(collect(hook.stream(source_of(kind, mails()), max_in_flight=3, ordered=ordered)))
        await settled(read, [0, 1, 2])
        assert hook.dispatcher.counts()["held"] == 3
        sorter.give_back(1)
        await settled(read, [0, 1, 2] if ordered else [0, 1, 2, 3])  # 1 is not yielded before 0
        sorter.give_back(0)
        await settled(read, [0, 1, 2, 3, 4])
        while not task.done():
            for number in sorted(sorter.held, reverse=True):
                sorter.give_back(number)
            await asyncio.sleep(0)
        return task.result()

    pairs = uvloop_owner.run(run())
    assert sorted(numbers(pairs)) == list(range(10))
    assert numbers(pairs) == list(range(10)) or not ordered


@KINDS
def test_what_was_read_and_not_yielded_counts_as_in_flight(uvloop_owner, hook, kind):
    async def run():
        read = []

        def mails():
            for number in range(10):
                read.append(number)
                yield Mail(number)

        stream = hook.stream(source_of(kind, mails()), max_in_flight=2)
        async for mail, _ in stream:
            await asyncio.sleep(0.001)
            assert len(read) <= mail.number + 3
        assert len(read) == 10

    uvloop_owner.run(run())


@KINDS
def test_the_loop_has_its_turns(uvloop_owner, hook, kind):
    async def run():
        turns = 0

        async def count():
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        async def ready(mails):
            for mail in mails:
                yield mail

        counter = asyncio.create_task(count())
        mails = [Mail(number) for number in range(20_000)]
        done = 0
        async for _ in hook.stream(ready(mails) if kind == "async" else mails, max_in_flight=100_000):
            done += 1
        assert done == 20_000 and turns >= 20_000 // 4096
        counter.cancel()

    uvloop_owner.run(run())


def test_nothing_waits_where_nothing_is_held(hook):
    stream = hook.stream([Mail(1), Mail(2)])
    for number in (1, 2):
        with pytest.raises(StopIteration) as stop:
            stream.__anext__().send(None)
        assert stop.value.value[0].number == number and stop.value.value[1] is mqcore.CONTINUE
    with pytest.raises(StopAsyncIteration):
        stream.__anext__().send(None)
    with pytest.raises(StopAsyncIteration):
        next(stream.__anext__())


# ---------------------------------------------------------------------------------------------------------------- Errors

@ORDERS
@KINDS
def test_what_the_source_raises_comes_after_what_was_in_flight(uvloop_owner, hook, kind, ordered):
    async def run():
        def mails():
            yield Mail(0, "later")
            yield Mail(1)
            raise KeyError("source")

        pairs = []
        stream = hook.stream(source_of(kind, mails()), ordered=ordered)

        async def add_all():
            async for pair in stream:
                pairs.append(pair)

        with pytest.raises(KeyError, match="source"):
            await add_all()
        assert sorted(numbers(pairs)) == [0, 1]
        assert [pair async for pair in stream] == []

    uvloop_owner.run(run())


@KINDS
@pytest.mark.parametrize("what", ["no message", "in a step", "twice"])
def test_what_cannot_be_run_is_an_error_of_the_source(uvloop_owner, hook, sorter, kind, what):
    async def run():
        closed = []
        held = Mail(9, "hold")
        hook.run(held)
        later = Mail(0, "later")

        def mails():
            try:
                yield later
                yield {"no message": 7, "in a step": held, "twice": later}[what]
            finally:
                closed.append(True)

        stream = hook.stream(source_of(kind, mails()))
        assert (await anext(stream))[0] is later
        with pytest.raises(TypeError if what == "no message" else mqcore.MqError, match="message"):
            await anext(stream)
        gc.collect()
        assert closed == [True]
        assert sorter.held == {9: held} and held.holder
        sorter.give_back(9)

    uvloop_owner.run(run())


@pytest.mark.parametrize("error", [StopIteration, StopAsyncIteration])
def test_an_error_that_would_end_something_else_is_a_runtime_error(uvloop_owner, hook, error):
    class Bad:
        def __iter__(self):
            return self

        def __next__(self):
            raise StopAsyncIteration("x")

    class BadAsync:
        def __aiter__(self):
            return self

        async def __anext__(self):
            raise ValueError

        def __getattribute__(self, name):
            return super().__getattribute__(name)

    class Worse(BadAsync):
        def __anext__(self):
            raise StopIteration("x")

    async def run():
        with pytest.raises(RuntimeError):
            await collect(hook.stream(Bad() if error is StopAsyncIteration else Worse()))

    uvloop_owner.run(run())


def test_what_stream_itself_refuses(uvloop_owner, hook):
    for options, error in (
        ({"max_in_flight": 0}, ValueError),
        ({"max_in_flight": -(10**30)}, ValueError),
        ({"max_in_flight": 1.5}, TypeError),
        ({"max_in_flight": "x"}, TypeError),
        ({"max_in_flight": None}, TypeError),
    ):
        with pytest.raises(error):
            hook.stream([], **options)
    with pytest.raises(TypeError):
        hook.stream(7)
    with pytest.raises(TypeError, match="extra arguments"):
        hook.stream([], "extra")
    assert uvloop_owner.run(collect(hook.stream([], max_in_flight=10**30))) == []
    hook.dispatcher.close()
    with pytest.raises(mqcore.DispatcherClosed):
        hook.stream([])


def test_pyuv_has_no_streams(pyuv_owner):
    hook = pyuv_owner.start({"10-sorter": lambda context, message: False}).hook("mq_step")
    with pytest.raises(mqcore.MqError, match="uvloop"):
        hook.stream([])


@KINDS
def test_a_closed_dispatcher_fails_what_is_in_flight_and_then_the_source(uvloop_owner, hook, kind):
    async def run():
        def mails():
            yield Mail(0, "hold")
            yield Mail(1)
            yield Mail(2)

        stream = hook.stream(source_of(kind, mails()))
        assert (await anext(stream))[0].number == 1
        hook.dispatcher.close()
        pairs = []
        with contextlib.suppress(mqcore.DispatcherClosed):
            async for pair in stream:
                pairs.append(pair)
        assert {mail.number: outcome for mail, outcome in pairs}[0] is mqcore.FAIL
        assert isinstance(pairs[0][0].error, mqcore.DispatcherClosed) or pairs[0][0].number == 2

    uvloop_owner.run(run())


def test_a_second_next_while_one_waits(uvloop_owner, hook, sorter):
    async def run():
        stream = hook.stream([Mail(0, "hold")])
        task = asyncio.create_task(anext(stream, None))
        await soon()
        with pytest.raises(RuntimeError, match="iterated already"):
            await anext(stream)
        sorter.give_back(0)
        assert (await task)[0].number == 0
        used = stream.__anext__()
        with pytest.raises(StopAsyncIteration):
            await used
        with pytest.raises(RuntimeError, match="reuse"):
            await used

    uvloop_owner.run(run())


def test_only_the_dispatchers_thread(uvloop_owner, hook):
    stream = hook.stream([Mail(0)])
    raised = []

    def ask():
        for call in (lambda: stream.__anext__().send(None), lambda: stream.aclose().send(None)):
            with pytest.raises(mqcore.MqError) as error:
                call()
            raised.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    thread.join()
    assert len(raised) == 2
    assert uvloop_owner.run(collect(stream))[0][0].number == 0


# ------------------------------------------------------------------------------------------------------------------- End

class Closing:
    """A source that says when it is closed: a generator of either kind."""

    def __init__(self):
        self.closed = 0

    def sync(self, mails):
        try:
            yield from mails
        finally:
            self.closed += 1

    async def asynchronous(self, mails):
        try:
            for mail in mails:
                yield mail
                del mail
            await asyncio.sleep(100)
        finally:
            await asyncio.sleep(0)
            self.closed += 1

    def of(self, kind, mails):
        return self.asynchronous(mails) if kind == "async" else self.sync(mails)


@ORDERS
@KINDS
@pytest.mark.parametrize("how", ["aclose", "cancel", "drop", "aclose while one waits"])
def test_the_end_cancels_the_rest_and_closes_the_source(uvloop_owner, hook, sorter, kind, ordered, how):
    source = Closing()
    told = {}

    async def run():
        mails = [Mail(number, "hold") for number in range(5)] + [Mail(9), Mail(10)]
        stream = hook.stream(source.of(kind, mails), max_in_flight=6, ordered=ordered)
        if ordered:
            task = asyncio.create_task(anext(stream))
            await until(lambda: 0 in sorter.held)
            sorter.give_back(0)
            assert (await task)[0].number == 0
            del task  # it keeps what it awaited
        else:
            assert (await anext(stream))[0].number == 9
        if how == "cancel":
            task = asyncio.create_task(collect(stream))
            del stream
            await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        elif how == "aclose while one waits":
            task = asyncio.create_task(collect(stream))
            await asyncio.sleep(0.01)
            await stream.aclose()
            await task
            await stream.aclose()
        elif how == "aclose":
            await stream.aclose()
            await stream.aclose()
            assert await collect(stream) == []
        else:
            del stream
            gc.collect()
            await until(lambda: source.closed)
        assert source.closed == 1
        told.update({number: mail.error for number, mail in sorter.held.items()})

    uvloop_owner.run(run())
    assert len(told) >= 4 and all(isinstance(error, mqcore.Cancelled) for error in told.values())
    assert hook.dispatcher.counts()["held"] == 0
    for mail in sorter.held.values():
        with pytest.raises(mqcore.NotHeld):
            sorter.context.continue_(mail)


@KINDS
def test_a_stream_that_was_never_iterated(uvloop_owner, hook, kind):
    source = Closing()

    async def run():
        for close in (True, False):
            stream = hook.stream(source.of(kind, [Mail(1)]))
            if close:
                await stream.aclose()
            del stream
            await soon()

    uvloop_owner.run(run())
    assert source.closed == 0  # generators that never began have nothing to close


@KINDS
def test_the_last_reference_goes_on_another_thread(uvloop_owner, hook, sorter, kind):
    source = Closing()

    async def run():
        streams = [hook.stream(source.of(kind, [Mail(0, "hold"), Mail(1)]))]
        assert (await anext(streams[0]))[0].number == 1
        await asyncio.to_thread(streams.clear)
        await until(lambda: source.closed and sorter.held[0].error)
        assert source.closed == 1 and isinstance(sorter.held[0].error, mqcore.Cancelled)

    uvloop_owner.run(run())


def test_the_end_of_one_stream_closes_the_dispatcher_before_that_of_another(uvloop_owner):
    dispatcher = uvloop_owner.start({"10-holds": SimpleNamespace(mq_other=lambda context, message, extra: mqcore.HOLD)})

    class Last:
        def __del__(self):
            dispatcher.close()

    def begin(extra):
        coroutine = dispatcher.hook("mq_other").stream([mqcore.Message()], extra).__anext__()
        coroutine.send(None)
        return coroutine

    async def main():
        coroutines = [begin(Last()), begin(None)]
        while coroutines:
            coroutines.pop(0).close()

    uvloop_owner.run(main())
    uvloop_owner.turn()
    assert not uvloop_owner.loop_errors


def test_a_timeout_of_the_source_means_the_source(uvloop_owner, hook, sorter):
    async def mails():
        yield Mail(0, "hold")
        try:
            async with asyncio.timeout(0.01):
                await asyncio.sleep(10)
        except TimeoutError:
            yield Mail(1)

    async def run():
        stream = hook.stream(mails())
        assert (await anext(stream))[0].number == 1
        sorter.give_back(0)
        assert (await anext(stream))[0].number == 0
        assert await collect(stream) == []

    uvloop_owner.run(run())


def test_a_source_that_waits_keeps_no_outcome_back(uvloop_owner, hook, sorter):
    async def mails():
        yield Mail(0, "hold")
        await asyncio.sleep(100)

    async def run():
        stream = hook.stream(mails())
        task = asyncio.create_task(anext(stream))
        await until(lambda: 0 in sorter.held)
        sorter.give_back(0)
        assert (await asyncio.wait_for(task, 5))[0].number == 0
        await stream.aclose()

    uvloop_owner.run(run())


# -------------------------------------------------------------------------------------------------------------- Hostile

def test_a_hook_that_closes_the_stream(uvloop_owner):
    streams = []
    errors = []

    def closes(context, message):
        try:
            streams[0].aclose().send(None)
        except BaseException as error:
            errors.append(type(error))
        return message.number == 2

    hook = uvloop_owner.start({"10-closes": closes}).hook("mq_step")

    async def run():
        mails = [Mail(number) for number in range(4)]
        streams.append(hook.stream(iter(mails)))
        assert await collect(streams[0]) == []
        assert isinstance(mails[0].error, mqcore.Cancelled)

    uvloop_owner.run(run())
    assert errors == [StopIteration]


def test_a_source_that_closes_or_iterates_its_own_stream(uvloop_owner, hook):
    streams = []

    def iterates():
        yield Mail(0)
        with pytest.raises(RuntimeError, match="already"):
            streams[0].__anext__().send(None)
        yield Mail(1)

    def closes():
        yield Mail(0)
        with pytest.raises(StopIteration):
            streams[0].aclose().send(None)
        yield Mail(1)

    async def closes_async():
        yield Mail(0)
        await streams[0].aclose()
        yield Mail(1)

    async def run():
        streams.append(hook.stream(iterates()))
        assert numbers(await collect(streams[0])) == [0, 1]
        streams[0] = hook.stream(closes())
        assert numbers(await collect(streams[0])) == [0]
        streams[0] = hook.stream(closes_async())
        assert len(await collect(streams[0])) <= 1

    uvloop_owner.run(run())


def test_what_a_source_raises_while_it_is_closed(uvloop_owner, hook):
    def sync():
        try:
            yield Mail(0)
            yield Mail(1)
        finally:
            raise KeyError("closing")

    async def asynchronous():
        try:
            yield Mail(0)
            await asyncio.sleep(100)
        finally:
            raise KeyError("closing")

    async def run():
        for source in (sync, asynchronous):
            stream = hook.stream(source())
            await anext(stream)
            with pytest.raises(KeyError, match="closing"):
                await stream.aclose()
            stream = hook.stream(source())
            await anext(stream)
            wanted = len(uvloop_owner.loop_errors) + 1
            del stream
            await until(lambda wanted=wanted: len(uvloop_owner.loop_errors) == wanted)

    uvloop_owner.run(run())
    assert [str(error) for error in uvloop_owner.loop_errors] == ["'closing'"] * 2
    uvloop_owner.loop_errors.clear()


def test_a_source_that_is_being_closed_is_not_cancelled_again(uvloop_owner, hook, sorter):
    """By whichever ways: what it still awaits in its `finally` would be broken off, and half of what it cleans up left."""
    ends = []

    async def source():
        try:
            yield Mail(0)
            await asyncio.sleep(100)
        finally:
            await asyncio.sleep(0.02)
            ends.append("cleaned up")

    async def run():
        for ways in (("iterating", "closing"), ("closing", "closing"), ("closing", "dropping"), ("closing", "the dispatcher")):
            stream = hook.stream(source())
            assert (await anext(stream))[0].number == 0
            tasks = [asyncio.create_task(collect(stream))]
            await asyncio.sleep(0.005)
            if ways[0] == "iterating":
                tasks[0].cancel()
            else:
                tasks.append(asyncio.create_task(stream.aclose()))
            await asyncio.sleep(0.005)
            if ways[1] == "closing":
                tasks.append(asyncio.create_task(stream.aclose()))
            elif ways[1] == "the dispatcher":
                hook.dispatcher.close()
            del stream
            await asyncio.gather(*tasks, return_exceptions=True)
            del tasks
            gc.collect()
            await until(lambda ways=ways: ends == ["cleaned up"])
            ends.clear()

    uvloop_owner.run(run())


def test_throw_close_and_send(uvloop_owner, hook, sorter):
    stream = hook.stream([Mail(0, "hold"), Mail(1, "hold")])
    fresh = stream.__anext__()
    with pytest.raises(KeyError):
        fresh.throw(KeyError("x"))
    with pytest.raises(RuntimeError):
        fresh.send(None)
    waiting = stream.__anext__()
    uvloop_owner.loop.call_soon(lambda: None)

    async def run():
        assert waiting.send(None) is not None
        with pytest.raises(RuntimeError, match="already"):
            stream.__anext__().send(None)
        waiting.close()
        await until(lambda: sorter.held[0].error)
        assert isinstance(sorter.held[0].error, mqcore.Cancelled)
        assert await collect(stream) == []
        other = hook.stream([Mail(2, "hold")]).__anext__()
        other.send(None)
        with pytest.raises(KeyError):
            other.throw(KeyError("y"))
        assert isinstance(sorter.held[2].error, mqcore.Cancelled)

    uvloop_owner.run(run())


def test_an_interrupt_in_the_source_does_not_wait(uvloop_owner, hook, sorter):
    def mails():
        yield Mail(0, "hold")
        raise KeyboardInterrupt

    async def run():
        await collect(hook.stream(mails()))

    with pytest.raises(KeyboardInterrupt):
        uvloop_owner.run(run())
    assert isinstance(sorter.held[0].error, mqcore.Cancelled)


def test_a_stream_in_a_cycle_with_its_source(uvloop_owner, hook):
    closed = []

    def mails(streams):
        try:
            yield Mail(1)
            yield Mail(2)
        finally:
            closed.append(len(streams))

    async def run():
        streams = []
        streams.append(hook.stream(mails(streams)))
        stream = weakref.ref(streams[0])
        await anext(streams[0])
        del streams

        def gone():
            gc.collect()
            return stream() is None and closed

        await until(gone)

    uvloop_owner.run(run())


@pytest.mark.slow
@ORDERS
@KINDS
def test_a_million_messages_take_no_memory(uvloop_owner, hook, kind, ordered):
    import resource

    async def run():
        def mails():
            for number in range(1_000_000):
                yield Mail(number, "later" if number % 1000 == 0 else None)

        async def ready():
            for mail in mails():
                yield mail

        count = 0
        at_first = 0
        async for _ in hook.stream(ready() if kind == "async" else mails(), ordered=ordered):
            count += 1
            if count == 10_000:
                at_first = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        assert count == 1_000_000
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - at_first < 4_000  # KB

    uvloop_owner.run(run())


# Memory runs out at the n-th allocation, for each n: no message is lost, and nothing is left open.
NO_MEMORY = """
import asyncio, gc
import _testcapi
import uvloop
import mqcore

taken = []

def mq_step(context, message):
    if message.payload % 3:
        return False
    context.start_timer(0, context.continue_, message)
    return True

async def asynchronous(mails):
    for mail in mails:
        yield mail

async def rest(stream):
    while True:
        try:
            async for pair in stream:
                taken.append(pair)
            return
        except (MemoryError, KeyError):
            pass

got = [None]
in_use = []

async def first(stream):
    got[0] = await stream.__anext__()

async def scenario(dispatcher, source, ordered, n):
    mails = [mqcore.Message(number) for number in range(6)]
    stream = dispatcher.hook("mq_step").stream(source(mails), ordered=ordered)
    coroutine = first(stream)
    before = dispatcher.counts()["entered"]
    got[0] = None
    # CPython has some iterators of futures at hand for the next `await`, unless it was built without the GIL: use them up.
    in_use.extend(asyncio.get_running_loop().create_future().__await__() for _ in range(10))
    _testcapi.set_nomemory(n, n + 1)
    try:
        waits = True
        coroutine.send(None)
    except BaseException:
        waits = False
    _testcapi.remove_mem_hooks()
    coroutine.close()  # where it waits, that closes the stream
    coroutine = None
    taken.clear()
    if got[0]:
        taken.append(got[0])
    await rest(stream)
    books = dispatcher.counts()
    assert waits or books["held"] == books["running"] == 0, (n, books)
    assert waits or len(taken) == books["entered"] - before, (n, source, ordered, taken, books)  # what was run is yielded
    assert len(taken) == len({id(mail) for mail, _ in taken}), (n, taken)
    stream = None
    for _ in range(10):
        await asyncio.sleep(0)
    assert dispatcher.counts()["held"] == dispatcher.counts()["running"] == 0, n

async def main():
    plugins = mqcore.Plugins(hooks=[mqcore.HookSpec("mq_step")])
    plugins.add("p", type("P", (), {"mq_step": staticmethod(mq_step)}))
    with mqcore.Dispatcher(plugins) as dispatcher:
        for source in (iter, asynchronous):
            for ordered in (False, True):
                for n in range(100):
                    await scenario(dispatcher, source, ordered, n)

uvloop.run(main())
print("ok")
"""


def test_memory_that_runs_out():
    assert python(NO_MEMORY, stderr=None, dev=False) == "ok\n"
