"""The loop beside code that misbehaves: objects with ways of their own, handlers of logging that raise, no memory, threads."""

from __future__ import annotations

import asyncio
import copy
import itertools
import logging
import pickle
import socket
import sys
import threading
import time

import pytest
import uvloop
from loop_tools import PROLOGUE, borrow, python

import mqcore
import mqcore.loop._reactor
from mqcore import READ, WRITE

# Objects


class Contrary(int):
    """A number that compares as it likes."""

    def __ge__(self, other):
        return True

    def __le__(self, other):
        return True

    def __eq__(self, other):
        return True

    def __hash__(self):
        return 1

    def __format__(self, form):
        raise RuntimeError


@pytest.mark.parametrize("events", [0, 4, 15, 255, -1, 2**31, 2**70, -(2**70)])
@pytest.mark.parametrize("kind", [int, Contrary])
def test_events_that_are_no_events(owner, socket_pair, kind, events):
    _, context = borrow(owner)
    with pytest.raises(ValueError, match="events must be READ, WRITE or READ"):
        context.watch(socket_pair[0], kind(events), print)
    watcher = context.watch(socket_pair[0], READ, print)
    with pytest.raises(ValueError, match="events must be READ, WRITE or READ"):
        watcher.events = kind(events)
    watcher.stop()


@pytest.mark.parametrize(("events", "value"), [(True, READ), (Contrary(READ), READ), (Contrary(WRITE), WRITE)])
def test_events_of_a_subclass(owner, socket_pair, events, value):
    _, context = borrow(owner)
    watcher = context.watch(socket_pair[0], events, print)
    assert watcher.events == value
    assert type(watcher.events) is int
    watcher.stop()


def test_seconds_that_close_the_dispatcher(owner):
    dispatcher, context = borrow(owner)

    class Seconds:
        def __float__(self):
            dispatcher.close()
            return 0.0

    with pytest.raises(mqcore.DispatcherClosed):
        context.start_timer(Seconds(), print)


def test_an_fd_that_closes_the_dispatcher(owner, socket_pair):
    dispatcher, context = borrow(owner)

    class File:
        def fileno(self):
            dispatcher.close()
            return socket_pair[0].fileno()

    with pytest.raises(mqcore.DispatcherClosed):
        context.watch(File(), READ, print)


class Finalizer:
    """Calls a function when its last reference goes."""

    def __init__(self, function):
        self.function = function

    def __del__(self):
        self.function()


# What was called last in a turn is dropped: by that the next one may be stopped.


def test_a_watcher_that_is_stopped_as_the_one_before_it_is_dropped(owner):
    _, context = borrow(owner)
    called, watchers = [], {}

    def ready(watcher, events, number, *args):
        called.append(number)
        watcher.stop()

    pairs = [socket.socketpair() for _ in range(3)]
    context.watch(pairs[0][0], WRITE, ready, 0, Finalizer(lambda: watchers.pop(1).stop()))
    for number in (1, 2):
        watchers[number] = context.watch(pairs[number][0], WRITE, ready, number)
    owner.run_until(lambda: 2 in called)
    assert called == [0, 2]
    for each in itertools.chain(*pairs):
        each.close()


def test_a_timer_that_is_stopped_as_the_one_before_it_is_dropped(owner):
    _, context = borrow(owner)
    called, timers = [], []
    context.start_timer(0, lambda finalizer: called.append(0), Finalizer(lambda: timers.pop().stop()))
    timers.append(context.start_timer(0, called.append, 1))
    context.start_timer(0, called.append, 2)
    owner.run_until(lambda: 2 in called)
    assert called == [0, 2]


# Types


def handles_of(context, fd):
    return context.start_timer(100, print), context.watch(fd, READ, print)


def test_what_mqcore_alone_makes(owner, socket_pair):
    _, context = borrow(owner)
    timer, watcher = handles_of(context, socket_pair[0])
    lifetime, handle = type(context).__mro__[-2], type(timer).__mro__[1]
    for each in (type(timer), type(watcher), lifetime, handle):
        for make in (each, lambda each=each: each.__new__(each), lambda each=each: object.__new__(each)):
            with pytest.raises(TypeError):
                make()
    for base in (lifetime, handle):
        with pytest.raises(TypeError):
            type("Derived", (base,), {})()
    for each in (timer, watcher):
        with pytest.raises(TypeError):
            type("Derived", (type(each),), {})
        for use in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError):
                use(each)
        assert each.__init__() is None  # object's, which does nothing
        assert each.stop() is True


@pytest.mark.parametrize("other", [1, None, object(), mqcore.Message()], ids=["int", "None", "object", "message"])
def test_methods_with_another_self(owner, socket_pair, other):
    _, context = borrow(owner)
    timer, watcher = handles_of(context, socket_pair[0])
    methods = (mqcore.Timer.stop, mqcore.Timer.reset, mqcore.Watcher.stop, type(context).start_timer, type(context).watch)
    for function in methods:
        with pytest.raises(TypeError):
            function(other)
        with pytest.raises(TypeError):
            function(other, 1)
    with pytest.raises(TypeError):
        mqcore.Timer.reset(watcher, 1)
    timer.stop()
    watcher.stop()


# Telling of errors


class Handler(logging.Handler):
    """A handler of logging that raises."""

    def __init__(self, error):
        super().__init__()
        self.error = error

    def handle(self, record):
        raise self.error


def wrong():
    raise LookupError("a callback")


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_a_handler_of_logging_ends_the_program(owner, error):
    dispatcher, context = borrow(owner)
    log, handler = logging.getLogger("mqcore.plugins.lender"), Handler(error("from a handler"))
    log.addHandler(handler)
    fired = []
    context.start_timer(0, wrong)
    context.start_timer(0.001, fired.append, 1)
    try:
        if owner.name == "uvloop":
            with pytest.raises(error, match="from a handler"):
                owner.run_until(lambda: fired)
        owner.run_until(lambda: fired)
    finally:
        log.removeHandler(handler)
    if owner.name == "pyuv":
        with pytest.raises(error, match="from a handler"):
            dispatcher.close()


def test_every_handler_raises(uvloop_owner):
    """All ways of telling fail: the loop goes on, and one line on stderr is left."""
    said = python(PROLOGUE + """
import logging
class Handler(logging.Handler):
    def handle(self, record):
        raise RecursionError("a handler")
logging.getLogger("mqcore").addHandler(Handler())
loop.call_exception_handler = None
class Loop(uvloop.Loop):
    def call_exception_handler(self, context):
        raise MemoryError
loop.close()
loop = Loop()
dispatcher, context = borrow()
def wrong():
    raise LookupError
context.start_timer(0, wrong)
context.start_timer(0.001, print, "goes on")
turn(20)
dispatcher.close()
turn()
loop.close()
""".replace("loop.call_exception_handler = None\n", ""), "uvloop",
                  stderr="mqcore could not tell of an error of type MemoryError\n")
    assert said == "goes on\n"


# No memory

SCARCE = """
import _testcapi
import mqcore.loop._reactor
borrow()[0].close()
turn()  # all is imported, and caches are filled
plugins = mqcore.Plugins(hooks=[mqcore.HookSpec("mq_step")])
made = None
n = 0
while made is None:
    n += 1
    enough = True
    try:
        _testcapi.set_nomemory(n, n + 1)
        made = mqcore.Dispatcher(plugins, loop=loop)
    except (MemoryError, SystemError):  # the second by CPython itself, for an error that it could not make
        enough = False
    finally:
        _testcapi.remove_mem_hooks()
    if made is not None and n < 1_000:  # it may have done without that allocation
        made.close()
        made = None
    turn(0)
    opened, closed = mqcore.loop._reactor.handles()
    assert made is not None or opened == closed, (n, opened, closed)
made.close()
turn()
opened, closed = mqcore.loop._reactor.handles()
assert opened == closed
if sys.argv[1] == "uvloop":
    loop.close()
print("closed")
"""


def test_no_memory_for_a_dispatcher(owner):
    """Whichever allocation fails, nothing is half open, and the loop can be closed."""
    pytest.importorskip("_testcapi")
    if sys.version_info[:2] == (3, 13):
        pytest.skip("CPython 3.13 by itself frees a code object where memory ends in a frame (python/cpython#151763)")
    assert python(PROLOGUE + SCARCE, owner.name, stderr=None, dev=False) == "closed\n"


# Threads


def test_a_dispatcher_for_a_loop_that_runs_in_another_thread():
    loop = uvloop.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    plugins = mqcore.Plugins(hooks=[mqcore.HookSpec("mq_step")])
    made = mqcore.loop._reactor.handles()[0]
    thread.start()
    try:
        while not loop.is_running():
            time.sleep(0.001)
        with pytest.raises(mqcore.MqError, match="the loop runs in another thread"):
            mqcore.Dispatcher(plugins, loop=loop)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
    assert mqcore.loop._reactor.handles()[0] == made
    mqcore.Dispatcher(plugins, loop=loop).close()
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()


def test_another_thread_closes_what_is_watched(owner):
    """libuv would abort the process. Each watcher is told at most once, with events 0."""
    said = python(PROLOGUE + """
import queue
dispatcher, context = borrow()
numbers = queue.SimpleQueue()
def close_all():
    while True:
        number = numbers.get()
        if number is None:
            return
        os.close(number)
threads = [threading.Thread(target=close_all) for _ in range(2)]
for thread in threads:
    thread.start()
sys.setswitchinterval(1e-6)
told = {}
def note(watcher, events):
    assert events == 0 and watcher.error.errno == errno.EBADF, (events, watcher.error)
    told[watcher] = told.get(watcher, 0) + 1
end = time.monotonic() + 1.5
while time.monotonic() < end:
    ends = []
    for _ in range(20):
        reads, writes = os.pipe()
        ends.append(writes)
        context.watch(reads, READ, note)
        numbers.put(reads)
    turn(0)
    for each in ends:
        while not numbers.empty():
            time.sleep(0)
        os.close(each)
for thread in threads:
    numbers.put(None)
for thread in threads:
    thread.join()
dispatcher.close()
turn()
print(set(told.values()) <= {1})
""", owner.name, stderr=None)
    assert said == "True\n"


def test_a_file_that_another_process_has_open(owner):
    """Its number was closed, so that nobody can take it out of the epoll: the loop does not spin."""
    ours, theirs = socket.socketpair()
    with theirs, ours.dup() as double:
        _, context = borrow(owner)
        calls = []
        watcher = context.watch(ours, READ, lambda watcher, events: calls.append(events))
        owner.turn()
        number = ours.fileno()
        ours.close()
        theirs.send(b"x")
        watcher.stop()
        owner.turn()
        start = time.process_time()
        end = time.monotonic() + 0.1
        owner.run_until(lambda: time.monotonic() > end) if owner.name == "pyuv" else owner.run(asyncio.sleep(0.1))
        if owner.name == "uvloop":
            assert time.process_time() - start < 0.05
        assert not calls
        assert double.recv(10) == b"x"
        assert number >= 0
