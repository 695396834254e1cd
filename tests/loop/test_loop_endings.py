"""A loop that is closed, and a dispatcher that closes, with everything still open."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import gc
import os
import threading
import time

import pytest
import uvloop
from busy import Busy
from loop_tools import Lender, borrow
from waiting import until

import mqcore
from mqcore import READ

# A plain loop.close()


@pytest.mark.parametrize("turns", [0, 1, 3])
def test_close_of_a_loop_that_did_not_run_when_the_dispatcher_was_made(turns):
    loop = uvloop.new_event_loop()
    busy = Busy(loop).fill()
    for _ in range(turns):
        loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    busy.check()


def test_close_of_a_loop_that_ran_when_the_dispatcher_was_made():
    async def main():
        return Busy().fill()

    loop = uvloop.new_event_loop()
    busy = loop.run_until_complete(main())
    loop.close()
    busy.check()


def test_close_of_a_loop_with_coroutine_hooks_suspended():
    async def main():
        busy = Busy().fill()
        busy.suspend()
        await asyncio.sleep(0.001)
        return busy

    loop = uvloop.new_event_loop()
    busy = loop.run_until_complete(main())
    loop.close()
    gc.collect()
    busy.check()


def test_close_of_a_loop_with_tasks_that_await_steps():
    async def main():
        busy = Busy().fill()
        waiting = asyncio.create_task(busy.dispatcher.hook("mq_step")(mqcore.Message()))
        await asyncio.sleep(0.001)
        return busy, waiting

    loop = uvloop.new_event_loop()
    busy, waiting = loop.run_until_complete(main())
    loop.close()
    del waiting
    gc.collect()
    busy.check()


def test_close_of_a_loop_with_due_timers_and_ready_fds():
    loop = uvloop.new_event_loop()
    busy = Busy(loop).fill()
    loop.run_until_complete(asyncio.sleep(0))
    for _ in range(10):
        busy.context.start_timer(0, pytest.fail, "fired")
    for end in busy.ends:
        end.send(b"x")
    time.sleep(0.002)
    loop.close()
    busy.check()


def test_close_of_a_loop_that_ran_in_another_thread():
    loop = uvloop.new_event_loop()
    busy = Busy(loop)
    filled = threading.Event()

    def fill():
        try:
            busy.fill()
        finally:
            filled.set()

    loop.call_soon(fill)  # the first that the loop does
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        assert filled.wait(60)
        for method in (busy.dispatcher.close, busy.dispatcher.held, lambda: busy.context.start_timer(0, print)):
            with pytest.raises(mqcore.MqError, match="thread"):
                method()
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
    assert not busy.errors
    busy.check()


def test_close_of_a_loop_on_another_thread_than_it_ran_on():
    loop = uvloop.new_event_loop()
    busy = Busy(loop).fill()
    loop.run_until_complete(asyncio.sleep(0))
    thread = threading.Thread(target=loop.close)
    thread.start()
    thread.join()
    busy.check()


def test_a_loop_that_runs_on_one_thread_after_another():
    """The thread of a dispatcher is the one that runs its loop."""
    loop = uvloop.new_event_loop()
    busy = Busy(loop).fill()
    fired = []
    busy.context.start_timer(0.001, lambda: fired.append(threading.get_ident()))
    threads = []

    def run():
        threads.append(threading.get_ident())
        loop.run_until_complete(until(lambda: fired))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert fired == threads

    async def go_on():
        busy.context.start_timer(0.001, lambda: fired.append(threading.get_ident()))
        await until(lambda: len(fired) == 2)

    try:
        loop.run_until_complete(go_on())
    finally:
        loop.close()
    assert fired == [*threads, threading.get_ident()]
    busy.check()


def test_two_dispatchers_on_a_loop_that_closes():
    loop = uvloop.new_event_loop()
    both = [Busy(loop).fill(), Busy(loop).fill()]
    loop.run_until_complete(asyncio.sleep(0))
    both.append(Busy(loop).fill())
    loop.close()
    for busy in both:
        busy.check()


def test_a_dispatcher_that_was_closed_before_its_loop():
    loop = uvloop.new_event_loop()
    busy = Busy(loop).fill()
    loop.run_until_complete(asyncio.sleep(0))
    busy.dispatcher.close()
    loop.close()
    busy.check()


def test_a_loop_that_is_dropped_is_kept_by_its_dispatcher():
    loop = uvloop.new_event_loop()
    dispatcher = mqcore.Dispatcher(mqcore.Plugins(), loop=loop)
    del loop
    gc.collect()
    dispatcher.loop.run_until_complete(asyncio.sleep(0))
    dispatcher.loop.close()
    with pytest.raises(mqcore.DispatcherClosed):
        dispatcher.hook("mq_smtp_in_close")


def test_a_dispatcher_that_is_dropped_goes_on_until_its_loop_ends():
    loop = uvloop.new_event_loop()
    fired = []

    class Plugin:
        def mq_context_initialize(self, context):
            context.start_timer(0.002, fired.append, 1)

        def mq_context_cleanup(self, context):
            fired.append(2)

    plugins = mqcore.Plugins()
    plugins.add("a", Plugin())
    mqcore.Dispatcher(plugins, loop=loop)
    gc.collect()
    loop.run_until_complete(until(lambda: fired))
    assert fired == [1]
    loop.close()
    assert fired == [1, 2]
    plugins.close()


# What keeps a loop going


def test_a_held_message_keeps_a_pyuv_loop_going(pyuv_owner):
    owner = pyuv_owner
    owner._alive.stop()
    dispatcher, context = borrow(owner)
    owner.loop.run()  # nothing to do: returns
    message = owner.Message()
    dispatcher.hook("mq_step").run(message, done=owner.done)
    thread = threading.Timer(0.05, context.complete, [message])
    thread.start()
    owner.loop.run()
    thread.join()
    assert owner.finished == [(message, mqcore.COMPLETE)]
    owner.loop.run()


@pytest.mark.parametrize("what", ["timer", "watcher"])
def test_timers_and_watchers_keep_a_pyuv_loop_going(pyuv_owner, socket_pair, what):
    owner = pyuv_owner
    owner._alive.stop()
    _, context = borrow(owner)
    fired = []
    if what == "timer":
        context.start_timer(0.01, fired.append, 1)
    else:
        context.watch(socket_pair[0], READ, lambda watcher, events: fired.append(watcher.stop()))
        threading.Timer(0.01, socket_pair[1].send, [b"x"]).start()
    owner.loop.run()
    assert len(fired) == 1
    owner.loop.run()


def test_a_deadline_keeps_nothing_going(pyuv_owner):
    """What is held does, and when it is given back the loop may end, long before its deadline."""
    owner = pyuv_owner
    owner._alive.stop()
    dispatcher, context = borrow(owner, hold_timeout=100)
    message = owner.Message()
    dispatcher.hook("mq_step").run(message, done=owner.done)
    context.start_timer(0.005, context.complete, message)
    owner.loop.run()
    assert owner.finished == [(message, mqcore.COMPLETE)]


def test_an_idle_dispatcher_does_not_wake_up(owner):
    """CPU time over 200 ms of nothing to do, after it has been busy."""
    dispatcher, context = borrow(owner, hold_timeout=0.05)
    messages = [owner.Message() for _ in range(100)]
    dispatcher.hook("mq_step").run_many(messages, done=owner.done)
    for message in messages[1:]:
        context.complete(message)
    dispatcher.cancel(messages[0])
    owner.run_until(lambda: len(owner.finished) == 100)
    owner.turn()
    turns = 0
    if owner.name == "uvloop":
        before = os.times()
        owner.loop.run_until_complete(asyncio.sleep(0.2))
    else:
        owner._alive.stop()
        timer = owner._pyuv.Timer(owner.loop)
        timer.start(lambda timer: timer.close(), 0.2, 0)
        before = os.times()
        while not timer.closed:
            owner.loop.run(owner._pyuv.UV_RUN_ONCE)
            turns += 1
        assert turns <= 3
    after = os.times()
    assert after.user + after.system - before.user - before.system <= 0.1


def test_an_idle_dispatcher_leaves_the_loop_without_timers(uvloop_owner, socket_pair):
    """With one, each look at the kernel would read the clock to make a time out of it."""
    loop = uvloop_owner.loop
    _, context = borrow(uvloop_owner)
    signature = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)
    pointer_of = signature(("PyCapsule_GetPointer", ctypes.pythonapi))
    timeout_of = ctypes.CDLL(uvloop.loop.__file__).uv_backend_timeout
    timeout_of.argtypes = [ctypes.c_void_p]
    timeouts = []

    def ask():
        timeouts.append(timeout_of(pointer_of(uvloop.loop.libuv_get_loop_t_ptr(loop), None)))
        loop.remove_reader(socket_pair[0])
        loop.stop()

    reader, writer = os.pipe()
    context.watch(reader, READ, list)
    loop.add_reader(socket_pair[0], ask)  # which uvloop calls where libuv calls back
    sender = threading.Timer(0.05, socket_pair[1].send, [b"x"])
    sender.start()
    loop.run_forever()
    sender.join()
    uvloop_owner.dispatchers[-1].close()
    os.close(reader)
    os.close(writer)
    assert timeouts == [-1]


def test_no_file_is_left_for_a_dispatcher(uvloop_owner, monkeypatch):
    """It is not made, and closed again in order."""
    def refuse(*args):
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    lender = Lender()
    plugins = uvloop_owner.plugins({"lender": lender})
    with monkeypatch.context() as patch:
        patch.setattr("mqcore.loop._ending.socket.socket", refuse)
        with pytest.raises(OSError, match="Too many open files"):
            mqcore.Dispatcher(plugins, loop=uvloop_owner.loop)
    assert lender.cleaned == 1
    uvloop_owner.turn()
    dispatcher = uvloop_owner.dispatcher(plugins)
    assert dispatcher.hook("mq_step").run(mqcore.Message()) is None
