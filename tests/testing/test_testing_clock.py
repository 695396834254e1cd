"""The virtual clock: mqcore's timers and deadlines, and asyncio's, in one order; the world outside stays real."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
import uvloop

import mqcore
from mqcore.loop import _clock
from mqcore.testing import Clock, Mq, PluginFactory, make_mail

HOOK = "mq_smtp_in_message"


@pytest.fixture(params=["uvloop", "pyuv"])
def clock(request: pytest.FixtureRequest, factory: PluginFactory) -> Iterator[Clock]:
    with Clock(request.param) as made:
        yield made


@pytest.fixture
def uv_clock(factory: PluginFactory) -> Iterator[Clock]:
    with Clock() as made:
        yield made


class Lends:
    context: Any = None

    def mq_context_initialize(self, context: Any) -> None:
        self.context = context

    def mq_smtp_in_message(self, context: Any, message: Any) -> bool:
        return True


@pytest.fixture
def lent(clock: Clock, factory: PluginFactory) -> Iterator[Any]:
    """A plugin's context."""
    lender = Lends()
    with Mq(clock, factory(obj=lender)) as mq:
        assert mq.dispatcher
        yield lender.context


def test_timers_come_at_their_times_in_their_order(clock: Clock, lent: Any) -> None:
    seen: list[tuple[str, float]] = []
    for name, seconds in (("d", 600), ("a", 0.05), ("c", 70), ("b", 0.05), ("0", 0)):
        lent.start_timer(seconds, lambda name=name: seen.append((name, clock.now)))
    assert clock.next_due() == 0
    clock.run_until_idle()
    assert seen == [("0", 0)] and clock.next_due() == 0.05
    clock.advance(3600)
    assert seen[1:] == [("a", 0.05), ("b", 0.05), ("c", 70), ("d", 600)]
    assert clock.now == 3600 and clock.next_due() is None


def test_a_timer_that_is_started_in_a_timer_counts_from_then(clock: Clock, lent: Any) -> None:
    seen: list[float] = []

    def again() -> None:
        seen.append(clock.now)
        if len(seen) < 5:
            lent.start_timer(1.5, again)

    lent.start_timer(1.5, again)
    clock.advance(4)
    assert seen == [1.5, 3] and clock.now == 4
    clock.advance(100)
    assert seen == [1.5, 3, 4.5, 6, 7.5]


def test_a_stopped_timer_is_due_no_more(clock: Clock, lent: Any) -> None:
    timer = lent.start_timer(5, pytest.fail)
    other = lent.start_timer(100, lambda: None)
    assert clock.next_due() == 5
    timer.stop()
    assert clock.next_due() == 100
    other.reset(200)
    assert clock.next_due() == 200
    clock.advance(1000)


def test_a_hold_ends_at_its_timeout(clock: Clock, factory: PluginFactory) -> None:
    with Mq(clock, factory(obj=Lends(), config={"hold_timeout": 400})) as mq:
        step = mq.start(HOOK, make_mail())
        assert step.held_by == "plugin" and mq.next_deadline() == 400
        clock.advance(399)
        assert step.held_by == "plugin"
        result = step.result()
        assert (result.outcome, type(result.error), clock.now) == (mqcore.FAIL, mqcore.HoldTimeout, 400)
        assert mq.next_deadline() is None


def test_asyncio_and_timers_have_one_time(uv_clock: Clock, factory: PluginFactory) -> None:
    lender = Lends()
    seen: list[tuple[str, float]] = []
    with Mq(uv_clock, factory(obj=lender)) as mq:
        assert mq.dispatcher

        def note(name: str) -> None:
            seen.append((name, uv_clock.now))

        async def main() -> None:
            lender.context.start_timer(150, note, "timer 150")
            lender.context.start_timer(450, note, "timer 450")
            await asyncio.sleep(300)
            note("slept")
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(200):
                    await asyncio.Event().wait()
            note("timeout")
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(asyncio.sleep(50), 10)
            note("wait_for")
            assert asyncio.get_running_loop().time() == uv_clock.loop.time()

        uv_clock.run(main())
    assert seen == [("timer 150", 150), ("slept", 300), ("timer 450", 450), ("timeout", 500), ("wait_for", 510)]


def test_calls_of_one_time_keep_their_order(uv_clock: Clock) -> None:
    seen: list[int] = []
    loop = uv_clock.loop
    for number in range(100):
        loop.call_later(5, seen.append, number)
    loop.call_at(loop.time() + 5, seen.append, 100)
    loop.call_later(4, seen.append, -1).cancel()
    loop.call_later(0, seen.append, -2)
    uv_clock.run_until_idle()
    assert seen == [-2] and uv_clock.next_due() == 5
    uv_clock.advance(5)
    assert seen[1:] == list(range(101))


def test_threads_and_sockets_are_real(uv_clock: Clock) -> None:
    async def main() -> tuple[Any, bytes, float]:
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(30):
            job = await loop.run_in_executor(None, lambda: time.sleep(0.05) or "done")
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with ours, theirs:
            loop.call_later(10, theirs.send, b"hello")
            data = await loop.sock_recv(ours, 100)
        return job, data, uv_clock.now

    assert uv_clock.run(main()) == ("done", b"hello", 10)


def test_what_another_thread_gives_back_is_in_time(clock: Clock, factory: PluginFactory) -> None:
    threads = []

    def hook(context: Any, message: Any) -> bool:
        threads.append(threading.Timer(0.05, context.continue_, [message]))
        threads[0].start()
        return True

    with Mq(clock, factory(obj=SimpleNamespace(mq_smtp_in_message=hook))) as mq:
        result = mq.run(HOOK, make_mail())
    threads[0].join()
    assert result.outcome is mqcore.CONTINUE and clock.now == 0


def test_a_watcher_is_called_before_time_passes(clock: Clock, factory: PluginFactory) -> None:
    ours, theirs = socket.socketpair()

    def readable(watcher: Any, events: int, context: Any, message: Any) -> None:
        watcher.stop()
        context.complete(message)

    def hook(context: Any, message: Any) -> bool:
        context.watch(ours, mqcore.READ, readable, context, message)
        context.start_timer(5, theirs.send, b"x")
        return True

    with ours, theirs, Mq(clock, factory(obj=SimpleNamespace(mq_smtp_in_message=hook))) as mq:
        assert mq.run(HOOK, make_mail()).outcome is mqcore.COMPLETE
    assert clock.now == 5


def test_uninstalling_restores(factory: PluginFactory) -> None:
    with Clock() as clock, Mq(clock, factory(obj=Lends())) as mq:
        assert mq.dispatcher and _clock.is_installed()
        with pytest.raises(mqcore.MqError, match="another loop has the virtual clock"):
            Clock()
        with pytest.raises(mqcore.MqError, match="still open"):
            clock.close()
    assert not _clock.is_installed()
    clock.close()

    async def main() -> float:
        lender = Lends()
        with mqcore.Dispatcher(factory(obj=lender)):
            loop, came = asyncio.get_running_loop(), asyncio.Event()
            began = time.monotonic()
            lender.context.start_timer(0.01, came.set)
            await came.wait()
            assert abs(loop.time() - time.monotonic()) < 5
            return time.monotonic() - began

    assert uvloop.run(main()) >= 0.009


def test_other_loops_keep_their_time(uv_clock: Clock, factory: PluginFactory) -> None:
    async def main() -> float:
        lender = Lends()
        with mqcore.Dispatcher(factory(obj=lender)):
            came = asyncio.Event()
            lender.context.start_timer(0.01, came.set)
            await came.wait()
            return asyncio.get_running_loop().time()

    loop = uvloop.new_event_loop()
    assert loop.run_until_complete(main()) != uv_clock.loop.time()
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()
    assert uv_clock.now == 0


def test_real_time_passes_really(factory: PluginFactory) -> None:
    lender = Lends()
    seen: list[float] = []
    with Clock(real_time=True) as clock, Mq(clock, factory(obj=lender)) as mq:
        assert mq.dispatcher
        lender.context.start_timer(0.02, lambda: seen.append(clock.now))
        began = time.monotonic()
        clock.advance(0.03)
        assert time.monotonic() - began >= 0.03
        assert seen == [0.02] and clock.now == 0.03


def test_what_never_comes_is_an_error(uv_clock: Clock) -> None:
    with pytest.raises(mqcore.MqError, match="never comes"):
        uv_clock.run(asyncio.Event().wait())
    with pytest.raises(ValueError, match="advance"):
        uv_clock.advance(-1)
    with pytest.raises(TypeError, match="takes seconds, a number, not '5'"):
        uv_clock.advance("5")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="does not go back"):
        _clock.move_to(1)
    with pytest.raises(ValueError, match="uvloop or pyuv"):
        Clock("trio")


def test_in_a_coroutine_it_says_what_to_do(uv_clock: Clock) -> None:
    async def main() -> None:
        with pytest.raises(mqcore.MqError, match="plain function"):
            uv_clock.run_until_idle()

    asyncio.run(main())
