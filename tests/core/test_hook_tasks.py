"""The task of a coroutine hook is as asyncio's own: what a coroutine sees in one is compared with what it sees in the other."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import gc
import sys
import threading
import types
import weakref
from collections.abc import Callable, Coroutine, Generator
from typing import Any

import pytest
from effort import examples
from hypothesis import example, given, settings
from hypothesis import strategies as st
from owners import UvloopOwner

import mqcore

WHO = contextvars.ContextVar("who", default="nobody")
TURNS = 10
EAGER = {"eager_start": True} if sys.version_info >= (3, 12) else {}


# What random coroutines do ---------------------------------------------------------------------------------------------------


class Yields:
    """An awaitable that yields what it was given, right or wrong."""

    def __init__(self, what: Any) -> None:
        self.what = what

    def __await__(self) -> Generator[Any, Any, Any]:
        return (yield self.what)


class World:
    """Futures and a coroutine that awaits them, as a program says; all that it sees is noted in `seen`."""

    def __init__(self, body: list[tuple[Any, ...]], deeds: list[tuple[Any, ...]]) -> None:
        self.body = body
        self.deeds = deeds
        self.seen: list[Any] = []
        self.task: Any = None
        self.loop = asyncio.get_running_loop()
        self.futures = [self.loop.create_future() for _ in range(3)]
        self.other_loop = types.SimpleNamespace(get_debug=bool)

    def note(self, *what: Any) -> None:
        self.seen.append(what)

    async def coroutine(self) -> Any:
        self.task = asyncio.current_task()
        self.note("begins", WHO.get(), isinstance(self.task, asyncio.Task), self.task.done())
        for index, (what, argument, swallows) in enumerate(self.body):
            try:
                self.note(index, await getattr(self, what)(argument))
            except BaseException as error:
                self.note(index, type(error), *(error.args if isinstance(error, asyncio.CancelledError) else ()))
                if not swallows:
                    raise
            assert asyncio.current_task() is self.task
            self.note(self.task.cancelling(), self.task in asyncio.all_tasks(), WHO.get(), self.task._fut_waiter)
        return False

    async def sleep(self, _: int) -> Any:
        return await asyncio.sleep(0, "slept")

    async def future(self, which: int) -> Any:
        return await self.futures[which]

    async def shielded(self, which: int) -> Any:
        return await asyncio.shield(self.futures[which])

    async def in_time(self, which: int) -> Any:
        async with asyncio.timeout(0):
            return await self.futures[which]

    async def group(self, which: int) -> Any:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(self.child(which))
        return task.result()

    async def child(self, which: int) -> str:
        await asyncio.sleep(0)
        if which == 2:
            raise ValueError("a child")
        return "child"

    async def inner(self, which: int) -> Any:
        return await asyncio.ensure_future(self.child(which))

    async def wrong(self, which: int) -> Any:
        future: Any = asyncio.Future(loop=self.other_loop)  # type: ignore[arg-type]
        future._asyncio_future_blocking = which == 1
        return await Yields((1, future, (each for each in ()))[which])

    async def not_blocking(self, which: int) -> Any:
        return await Yields(self.futures[which])

    async def itself(self, _: int) -> Any:
        return await self.task

    async def cancels(self, which: int) -> Any:
        return self.task.cancel("itself" if which else None)

    async def uncancels(self, _: int) -> Any:
        return self.task.uncancel()

    async def sets(self, which: int) -> Any:
        WHO.set(f"hook {which}")

    async def raises(self, which: int) -> Any:
        raise (ValueError("bad"), asyncio.CancelledError("own"), GeneratorExit())[which]

    async def outside(self) -> None:
        """What others do meanwhile, turn by turn."""
        for turn in range(TURNS):
            for when, what, which in self.deeds:
                if when == turn:
                    self.do(what, which)
            await asyncio.sleep(0)
        for _ in range(1_000):  # end it
            if self.task.done():
                break
            for future in self.futures:
                if not future.done():
                    future.set_result("late")
            await asyncio.sleep(0.001)
        for future in self.futures:
            if future.done() and not future.cancelled():
                future.exception()

    def do(self, what: str, which: int) -> None:
        if what == "cancels":
            self.note("told", self.task.cancel(*(("a word",) if which else ())), self.task.cancelling())
        elif what == "uncancels":
            self.note("told", self.task.uncancel())
        elif what == "looks":
            self.note("looks", self.task.done(), self.task in asyncio.all_tasks(), asyncio.current_task() is self.task)
        elif not self.futures[which].done():
            if what == "sets":
                self.futures[which].set_result(which)
            elif what == "fails":
                self.futures[which].set_exception(KeyError(which))
            else:
                self.futures[which].cancel("the future")


AWAITS = ("sleep", "future", "shielded", "in_time", "group", "inner", "wrong", "not_blocking", "itself", "cancels", "uncancels",
          "sets", "raises")  # fmt: skip
DEEDS = ("cancels", "uncancels", "looks", "sets", "fails", "ends")
BODY = st.lists(st.tuples(st.sampled_from(AWAITS), st.integers(0, 2), st.booleans()), max_size=6)
OUTSIDE = st.lists(st.tuples(st.integers(0, TURNS - 1), st.sampled_from(DEEDS), st.integers(0, 2)), max_size=8)


def without_futures(seen: list[Any]) -> list[Any]:
    """With each future by its state, as no two are equal."""
    return [
        tuple(each if not isinstance(each, asyncio.Future) else ("future", each.done()) for each in what) for what in seen
    ]


async def in_a_task(body: list[Any], deeds: list[Any]) -> Any:
    world = World(body, deeds)
    task: asyncio.Task[Any] = asyncio.Task(world.coroutine(), loop=world.loop, **EAGER)  # type: ignore[arg-type]
    if not EAGER:
        await asyncio.sleep(0)
    await world.outside()
    assert task.done()
    if task.cancelled():
        with pytest.raises(asyncio.CancelledError) as told:
            task.result()
        end: Any = (asyncio.CancelledError, *told.value.args)
    elif task.exception() is not None:
        end = (type(task.exception()),)
    else:
        end = (task.result(),)
    return without_futures(world.seen), end, end


async def in_a_hook(step: mqcore.Hook, worlds: list[World], body: list[Any], deeds: list[Any]) -> Any:
    world = World(body, deeds)
    worlds.append(world)
    message = mqcore.Message()
    outcome = step.run(message)
    await world.outside()
    while message.holder is not None:
        await asyncio.sleep(0.001)
    await asyncio.sleep(0.001)
    error = message.error
    assert outcome is None or (error is None) == (outcome is mqcore.CONTINUE)
    if error is None:
        end: Any = (False,)
    else:
        end = (type(error), *(error.args if isinstance(error, asyncio.CancelledError) else ()))
    assert world.task.done()
    if world.task.cancelled():
        with pytest.raises(asyncio.CancelledError) as told:
            world.task.result()
        of_task: Any = (asyncio.CancelledError, *told.value.args)
    elif world.task.exception() is not None:
        of_task = (type(world.task.exception()),)
    else:
        of_task = (world.task.result(),)
    return without_futures(world.seen), end, of_task


@pytest.fixture(scope="module")
def compared() -> Any:
    """A function that runs a program both ways, many times on one dispatcher: so tasks are used again."""
    owner = UvloopOwner()
    worlds: list[World] = []

    async def hook(context: mqcore.Context, message: mqcore.Message) -> Any:
        return await worlds.pop().coroutine()

    step = owner.start({"a": hook}).hook("mq_step")

    def compare(body: list[Any], deeds: list[Any]) -> None:
        expected = owner.run(in_a_task(body, deeds))
        assert owner.run(in_a_hook(step, worlds, body, deeds)) == expected

    yield compare
    owner.loop_errors.clear()
    owner.finish()


@example(body=[("future", 0, True), ("future", 1, True)], deeds=[(0, "cancels", 1), (0, "cancels", 0), (3, "uncancels", 0)])
@example(body=[("cancels", 1, True), ("future", 0, True), ("sleep", 0, True)], deeds=[])
@example(body=[("cancels", 1, True)], deeds=[])
@example(body=[("itself", 0, True), ("wrong", 0, True), ("wrong", 1, True), ("wrong", 2, False)], deeds=[])
@settings(max_examples=examples(300), deadline=None)
@given(body=BODY, deeds=OUTSIDE)
def test_as_a_task_of_asyncio(compared: Any, body: list[Any], deeds: list[Any]) -> None:
    compared(body, deeds)


# The task, and its next life --------------------------------------------------------------------------------------------------


def start(owner: UvloopOwner, hook: Callable[..., Any]) -> Callable[[], Any]:
    """Runs one message through this hook, until it is through: the message."""
    step = owner.start({"10-plugin": hook}).hook("mq_step")

    async def run() -> mqcore.Message:
        message = mqcore.Message()
        await step(message)
        return message

    return lambda: owner.run(run())


@pytest.mark.parametrize("sleeps", [0, 1])
def test_a_task_that_nobody_knows_is_used_again(uvloop_owner: UvloopOwner, sleeps: int) -> None:
    tasks = []

    async def hook(context: Any, message: Any) -> None:
        task = asyncio.current_task()
        assert task is not None and task.get_name() == "10-plugin:mq_step"
        assert not task.cancelling() and not getattr(task, "__dict__", None) and not task.done()
        tasks.append(id(task))
        for _ in range(sleeps):
            await asyncio.sleep(0)

    run = start(uvloop_owner, hook)
    for _ in range(10):
        run()
    assert len(set(tasks[1:])) == 1  # in the first of all, the class keeps something


CHANGES: dict[str, Callable[[Any, list[Any]], object]] = {
    "kept": lambda task, kept: kept.append(task),
    "weakly": lambda task, kept: kept.append(weakref.ref(task)),
    "weakly, with a callback": lambda task, kept: kept.append(weakref.ref(task, print)),
    "callback": lambda task, kept: task.add_done_callback(kept.append),
    "callback of a future": lambda task, kept: asyncio.Future.add_done_callback(task, kept.append),
    "attribute": lambda task, kept: setattr(task, "mine", 1),
    "attribute of an object": lambda task, kept: object.__setattr__(task, "mine", 1),
    "name": lambda task, kept: task.set_name("mine"),
    "its driver": lambda task, kept: kept.append(task._driver),
    "without its driver": lambda task, kept: delattr(task, "_driver"),
    "cancelled and not": lambda task, kept: (task.cancel(), task.uncancel()),
    "made again": lambda task, kept: asyncio.Future.__init__(task, loop=task.get_loop()),
    "ended by hand": lambda task, kept: asyncio.Future.set_result(task, 1),
}


@pytest.mark.parametrize("sleeps", [0, 1])
@pytest.mark.parametrize("change", CHANGES)
def test_what_a_hook_does_to_its_task_is_nothing_to_the_next(uvloop_owner: UvloopOwner, change: str, sleeps: int) -> None:
    kept: list[Any] = []
    seen = []
    changes = [False, True, False, False]

    async def hook(context: Any, message: Any) -> None:
        task: Any = asyncio.current_task()
        seen.append((task.get_name(), task.cancelling(), hasattr(task, "mine"), task.done(), task._callbacks))
        if changes.pop(0):
            CHANGES[change](task, kept)
        del task
        for _ in range(sleeps):
            await asyncio.sleep(0)

    run = start(uvloop_owner, hook)
    for _ in range(4):
        run()
    assert seen == [("10-plugin:mq_step", 0, False, False, None)] * 4
    if change == "kept":
        assert kept[0].done() and kept[0].result() is None and "finished" in repr(kept[0])
        assert kept[0].cancel() is False
    elif change.startswith("callback"):
        assert [task.result() for task in kept] == [None]
    uvloop_owner.loop_errors.clear()  # of a task that was ended by hand


def test_a_cancellation_that_a_hook_did_not_wait_for_fails_it(uvloop_owner: UvloopOwner) -> None:
    async def hook(context: Any, message: Any) -> None:
        task = asyncio.current_task()
        assert task is not None
        if not cancelled:
            cancelled.append(task.cancel("why"))

    cancelled: list[bool] = []
    run = start(uvloop_owner, hook)
    error = run().error
    assert isinstance(error, asyncio.CancelledError) and error.args == ("why",)
    assert run().error is None


def test_it_is_among_all_tasks_as_long_as_it_runs(uvloop_owner: UvloopOwner) -> None:
    async def hook(context: Any, message: Any) -> None:
        assert asyncio.current_task() in asyncio.all_tasks()
        await asyncio.sleep(0)
        assert asyncio.current_task() in asyncio.all_tasks()

    async def others() -> int:
        return len(asyncio.all_tasks())

    run = start(uvloop_owner, hook)
    for _ in range(3):
        assert run().error is None
    assert uvloop_owner.run(others()) == 1


def test_hooks_within_hooks_have_tasks_of_their_own(uvloop_owner: UvloopOwner) -> None:
    async def hook(context: Any, message: Any) -> None:
        task = asyncio.current_task()
        assert task not in tasks
        tasks.append(task)
        if len(tasks) < 5:
            step.run(mqcore.Message())
        assert asyncio.current_task() is task
        await asyncio.sleep(0)
        assert asyncio.current_task() is task

    tasks: list[Any] = []
    step = uvloop_owner.start({"a": hook}).hook("mq_step")

    async def run() -> None:
        task = asyncio.current_task()
        message = mqcore.Message()
        await step(message)
        assert message.error is None
        assert asyncio.current_task() is task

    uvloop_owner.run(run())
    assert len(tasks) == 5


def test_cancelled_before_its_first_step(uvloop_owner: UvloopOwner) -> None:
    async def hook(context: Any, message: Any) -> None:
        begun.append(True)

    begun: list[bool] = []
    dispatcher = uvloop_owner.start({"a": hook})
    message = mqcore.Message()
    assert dispatcher.hook("mq_step").run(message, done=uvloop_owner.done) is None  # the loop does not run
    assert dispatcher.cancel(message)
    uvloop_owner.turn()
    assert (begun, uvloop_owner.finished) == ([], [(message, mqcore.FAIL)])


def test_cancelled_in_its_first_step_it_ends_and_its_task_is_used_again(uvloop_owner: UvloopOwner) -> None:
    """The step is over before it waits: nobody is told of its end."""

    async def hook(context: Any, message: Any) -> None:
        tasks.append(id(asyncio.current_task()))
        dispatcher.cancel(message)
        try:
            await asyncio.sleep(1000)
        finally:
            ended.append(True)

    tasks: list[int] = []
    ended: list[bool] = []
    dispatcher = uvloop_owner.start({"a": hook})

    async def run() -> mqcore.Message:
        message = mqcore.Message()
        assert await dispatcher.hook("mq_step")(message) is mqcore.FAIL
        await asyncio.sleep(0.001)
        return message

    for number in range(1, 6):
        assert isinstance(uvloop_owner.run(run()).error, mqcore.Cancelled)
        assert len(ended) == number
    assert len(set(tasks[1:])) == 1  # in the first of all, the class keeps something


def test_a_coroutine_that_was_awaited_already(uvloop_owner: UvloopOwner) -> None:
    async def nothing() -> None: ...

    coroutine = nothing()
    with pytest.raises(StopIteration):
        coroutine.send(None)
    assert isinstance(start(uvloop_owner, lambda context, message: coroutine)().error, RuntimeError)


# What misbehaves ------------------------------------------------------------------------------------------------------------


class Misbehaves(Coroutine[Any, Any, Any]):
    """A coroutine of a class, each of whose methods does as it is told."""

    def __init__(self, **methods: Callable[..., Any]) -> None:
        self.methods = methods
        self.steps = 0

    def do(self, name: str, *args: Any) -> Any:
        self.steps += 1
        return self.methods.get(name, lambda *args: None)(*args)

    def send(self, value: Any) -> Any:
        return self.do("send", value)

    def throw(self, *error: Any) -> Any:
        return self.do("throw", *error)

    def close(self) -> None:
        self.do("close")

    def __await__(self) -> Any:
        return iter(())


def throws(error: BaseException) -> Callable[..., Any]:
    def call(*args: Any) -> Any:
        raise error

    return call


class BadFuture:
    """Like a future, but for what is told."""

    def __init__(self, **attributes: Any) -> None:
        self._asyncio_future_blocking = True
        self.get_loop = asyncio.get_running_loop
        self.add_done_callback: Callable[..., Any] = lambda callback, context: None
        self.cancel: Callable[..., Any] = lambda msg: True
        vars(self).update(attributes)


class NoBlocking(BadFuture):
    @property
    def _asyncio_future_blocking(self) -> Any:
        raise OSError("no")

    @_asyncio_future_blocking.setter
    def _asyncio_future_blocking(self, value: bool) -> None: ...


COROUTINES: dict[str, Callable[[], Any]] = {
    "send raises": lambda: Misbehaves(send=throws(OSError("no"))),
    "send raises, close too": lambda: Misbehaves(send=throws(OSError("no")), close=throws(KeyError("no"))),
    "send ends": lambda: Misbehaves(send=throws(StopIteration(7))),
    "throw ends": lambda: Misbehaves(send=lambda value: 1, throw=throws(StopIteration(7))),
    "throw returns": lambda: Misbehaves(send=lambda value: 1, throw=lambda *error: None),
    "throw raises": lambda: Misbehaves(send=lambda value: 1, throw=throws(OSError("no"))),
    "no future": lambda: Misbehaves(send=lambda value: NoBlocking()),
    "no future, close raises": lambda: Misbehaves(send=lambda value: NoBlocking(), close=throws(KeyError("no"))),
    "no callback": lambda: Misbehaves(send=lambda value: BadFuture(add_done_callback=throws(OSError("no")))),
    "calls back at once": lambda: Misbehaves(send=lambda value: BadFuture(add_done_callback=lambda call, context: call())),
    "no loop": lambda: Misbehaves(send=lambda value: BadFuture(get_loop=throws(OSError("no")))),
}


@pytest.mark.parametrize("what", COROUTINES)
def test_what_misbehaves_ends_its_own_step(uvloop_owner: UvloopOwner, what: str) -> None:
    async def run() -> mqcore.Message:
        message = mqcore.Message()
        assert await step(message) is mqcore.FAIL
        assert asyncio.current_task() is not None
        return message

    endless: list[Any] = []
    step = uvloop_owner.start({"a": lambda context, message: endless[0] if endless else COROUTINES[what]()}).hook("mq_step")
    if what == "throw returns":
        made = COROUTINES[what]()
        made.methods["throw"] = lambda *error: throws(OSError("enough"))() if made.steps > 50 else 1
        endless.append(made)
    for _ in range(3):
        assert type(uvloop_owner.run(run()).error) in (OSError, TypeError, RuntimeError)
    uvloop_owner.loop_errors.clear()


@pytest.mark.parametrize("cancel", [throws(OSError("no")), lambda msg: False, lambda msg: BadFuture])
def test_a_future_that_cannot_be_cancelled(uvloop_owner: UvloopOwner, cancel: Any) -> None:
    async def hook(context: Any, message: Any) -> None:
        await Yields(BadFuture(cancel=cancel, add_done_callback=lambda callback, context: waiting.append(callback)))

    waiting: list[Any] = []
    dispatcher = uvloop_owner.start({"a": hook})

    async def run() -> None:
        message = mqcore.Message()
        dispatcher.hook("mq_step").run(message)
        dispatcher.cancel(message)
        assert isinstance(message.error, mqcore.Cancelled)

    uvloop_owner.run(run())
    uvloop_owner.loop_errors.clear()
    uvloop_owner.loop.call_soon(waiting[0])  # it ends the coroutine
    uvloop_owner.turn()


def test_its_callback_is_called_by_others(uvloop_owner: UvloopOwner) -> None:
    """By another thread, within itself, before its time, and when all is over."""
    told: list[Any] = []

    def attempt(callback: Any, *args: Any) -> None:
        try:
            told.append(callback(*args))
        except Exception as error:
            told.append(type(error))

    async def hook(context: Any, message: Any) -> None:
        attempt(asyncio.current_task()._driver)  # type: ignore[union-attr]
        try:
            await futures[-1]
        except asyncio.InvalidStateError:
            told.append("woken")
        attempt(callbacks[-1], futures[-1])

    futures: list[asyncio.Future[None]] = []
    callbacks: list[Any] = []
    step = uvloop_owner.start({"a": hook}).hook("mq_step")

    async def run() -> None:
        futures.append(asyncio.get_running_loop().create_future())
        message = mqcore.Message()
        step.run(message, done=uvloop_owner.done)
        callbacks.append(futures[-1]._callbacks[0][0])  # type: ignore[index]
        thread = threading.Thread(target=attempt, args=(callbacks[-1], futures[-1]))
        thread.start()
        thread.join()
        contextvars.copy_context().run(attempt, callbacks[-1], futures[-1])
        attempt(callbacks[-1], futures[-1])
        futures[-1].set_result(None)
        attempt(callbacks[-1], futures[-1])
        await asyncio.sleep(0.001)
        assert message.error is None and message.holder is None

    for _ in range(3):
        told.clear()
        uvloop_owner.run(run())
        assert told == [RuntimeError, RuntimeError, "woken", RuntimeError, None, *[asyncio.InvalidStateError] * 2]
    uvloop_owner.loop_errors.clear()


def hook_task(owner: UvloopOwner) -> Any:
    """One that has ended."""
    tasks: list[Any] = []

    async def hook(context: Any, message: Any) -> None:
        tasks.append(asyncio.current_task())

    start(owner, hook)()
    return tasks[0]


def test_nobody_else_makes_one(uvloop_owner: UvloopOwner) -> None:
    kind = type(hook_task(uvloop_owner))
    with pytest.raises(TypeError, match="made by mqcore alone"):
        kind()
    with pytest.raises(TypeError, match="made by mqcore alone"):
        kind.__init__(hook_task(uvloop_owner))
    with pytest.raises(TypeError, match="subclass"):
        type("Sub", (kind,), {})


@pytest.mark.parametrize("state", ["running", "waiting", "over", "of nobody"])
def test_all_of_its_methods_by_whatever_way(uvloop_owner: UvloopOwner, state: str) -> None:
    """Also those of its bases, which it does not have itself: they return or raise. (Not of an object that asyncio made and
    never initialized: there, asyncio's own methods crash.)"""

    def attack(task: Any) -> None:
        for kind in (type(task), *(() if state == "of nobody" else (asyncio.Task, asyncio.Future))):
            for name in vars(kind) if state == "of nobody" else dir(kind):
                if name in ("print_stack", "__del__"):
                    continue
                for args in ((), (None,), (print,), (1, 2)):
                    try:
                        value = getattr(kind, name)
                        value(task, *args) if callable(value) else value.__get__(task)
                    except BaseException as error:
                        if isinstance(error, (SystemError, KeyboardInterrupt, SystemExit)):
                            raise
        count.append(1)

    async def hook(context: Any, message: Any) -> None:
        task = asyncio.current_task()
        if state == "running":
            attack(task)
        elif state == "waiting":
            asyncio.get_running_loop().call_soon(attack, task)
        for _ in range(3):
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(0)

    count: list[int] = []
    run = start(uvloop_owner, hook)
    if state == "over":
        attack(hook_task(uvloop_owner))
    elif state == "of nobody":
        attack(asyncio.Task.__new__(type(hook_task(uvloop_owner))))
    else:
        for _ in range(3):
            run()
    assert count
    gc.collect()
    uvloop_owner.turn()
    uvloop_owner.loop_errors.clear()
