"""Timers and watchers of native plugins, the loop they are on, and the data and life of contexts."""

from __future__ import annotations

import ctypes
import logging
import os
import threading
import time

import pytest
from native_tools import TIMER_CALLBACK, WATCH_CALLBACK, Puppet, compile_plugin, mq, refused, start

import mqcore
from mqcore import READ, WRITE


def inside(owner, puppet, function):
    """Call `function(context)` in a call of the puppet's hook. What it returned."""
    results = []

    def step(context, connection, message):
        results.append(function(context))
        return False

    puppet.step = step
    assert owner.dispatchers[-1].hook("mq_step").run(mqcore.Message()) is mqcore.CONTINUE
    puppet.step = None
    assert not puppet.errors, puppet.errors
    return results[0]


def test_timers_fire_in_order_once_and_never_early(owner, puppet):
    start(owner, [puppet])
    fired = []
    begin = time.monotonic()

    def begin_all(context):
        for number, seconds in enumerate((0.03, 0.0, 0.01, 0.02)):
            assert puppet.timer(context, seconds, lambda data: fired.append((data, time.monotonic() - begin)), number + 1)

    inside(owner, puppet, begin_all)
    owner.run_until(lambda: len(fired) == 4)
    owner.turn()
    assert [data for data, _ in fired] == [2, 3, 4, 1]
    assert all(when >= least for (_, when), least in zip(fired, (0, 0.01, 0.02, 0.03), strict=True))


def test_a_native_timer_keeps_the_loop_going(uvloop_owner, puppet):
    start(uvloop_owner, [puppet])
    fired = []
    inside(uvloop_owner, puppet, lambda context: puppet.timer(context, 0.02, fired.append))
    uvloop_owner.run_until(lambda: fired)


def test_stop_and_reset(owner, puppet):
    dispatcher = start(owner, [puppet])
    fired = []

    def play(context):
        stopped, reset, kept = (puppet.timer(context, 0.01, fired.append, data) for data in (1, 2, 3))
        mq.MQ_stopTimer(stopped)
        mq.MQ_resetTimer(reset, 0.03)
        mq.MQ_stopTimer(stopped)  # again
        mq.MQ_resetTimer(stopped, 0.0)
        return kept, reset

    kept, reset = inside(owner, puppet, play)
    owner.run_until(lambda: len(fired) == 2)
    assert fired == [3, 2]
    inside(owner, puppet, lambda context: [mq.MQ_stopTimer(kept), mq.MQ_resetTimer(reset, 0.0)])  # they fired
    owner.run_until(lambda: refused(dispatcher) == 4)
    assert fired == [3, 2]


def test_a_timer_is_over_when_its_callback_is_called(owner, puppet):
    dispatcher = start(owner, [puppet])
    fired, timers = [], []

    def callback(data):
        mq.MQ_resetTimer(timers[0], 0.0)
        mq.MQ_stopTimer(timers[0])
        fired.append(data)
        if len(fired) < 3:
            timers[0] = puppet.timer(puppet.context, 0.0, callback)

    inside(owner, puppet, lambda context: timers.append(puppet.timer(context, 0.0, callback)))
    owner.run_until(lambda: len(fired) == 3 and refused(dispatcher) == 6)


@pytest.mark.parametrize("seconds", [-1.0, float("nan"), float("inf"), 1e10, -0.0001])
def test_no_number_of_seconds(owner, puppet, seconds):
    dispatcher = start(owner, [puppet])

    def play(context):
        assert puppet.timer(context, seconds, print) == 0
        timer = puppet.timer(context, 100, print)
        mq.MQ_resetTimer(timer, seconds)
        mq.MQ_stopTimer(timer)

    inside(owner, puppet, play)
    owner.run_until(lambda: refused(dispatcher) == 2)


def test_without_a_callback(owner, puppet):
    dispatcher = start(owner, [puppet])
    inside(owner, puppet, lambda context: mq.MQ_startTimer(context, 0, TIMER_CALLBACK(), 0))
    inside(owner, puppet, lambda context: mq.MQ_ioWatch(context, 0, READ, WATCH_CALLBACK(), 0))
    owner.run_until(lambda: refused(dispatcher) == 2)


def test_a_hundred_thousand_timers_started_and_stopped(owner, puppet):
    start(owner, [puppet])

    def play(context):
        timers = [puppet.timer(context, 10, print) for _ in range(20_000)]
        assert len(set(timers)) == len(timers)
        for timer in timers:
            mq.MQ_stopTimer(timer)

    for _ in range(5):
        inside(owner, puppet, play)
        puppet.callbacks.clear()


def test_timers_end_with_their_context(owner, puppet):
    fired, stopped = [], []
    dispatcher = start(owner, [puppet])
    timers = inside(owner, puppet, lambda context: [puppet.timer(context, 0.001, fired.append) for _ in range(10)])
    puppet.end = lambda context: stopped.append([mq.MQ_stopTimer(timer) for timer in timers[:3]])  # it may, there
    time.sleep(0.005)
    dispatcher.close()
    assert len(stopped) == 1
    owner.turn()
    assert not fired


def test_in_context_functions(owner, puppet):
    """They have the whole context; but nothing starts any more while it ends."""
    fired = []

    def begin(context):
        mq.MQ_setContextData(context, 42)
        assert puppet.timer(context, 0.0, fired.append, 7)
        assert mq.MQ_uv(context)

    def end(context):
        assert mq.MQ_contextData(context) == 42
        assert puppet.timer(context, 0.0, fired.append) == 0
        ours, theirs = os.pipe()
        assert puppet.watch(context, ours, READ, print) == 0
        os.close(ours)
        os.close(theirs)

    puppet.begin, puppet.end = begin, end
    dispatcher = start(owner, [puppet])
    owner.run_until(lambda: fired == [7])
    dispatcher.close()


def test_context_data_is_of_each_plugin_and_dispatcher(owner, tmp_path):
    puppets = [Puppet(tmp_path / f"{name}.so") for name in ("10-a", "20-b")]
    for puppet, value in zip(puppets, (11, 22), strict=True):
        puppet.begin = lambda context, value=value: mq.MQ_setContextData(context, value)
    dispatcher = start(owner, puppets)
    seen = []
    for puppet in puppets:
        puppet.step = lambda context, connection, message: seen.append(mq.MQ_contextData(context))
    dispatcher.hook("mq_step").run(mqcore.Message())
    assert seen == [11, 22]
    assert not puppets[0].errors and not puppets[1].errors


# Watchers


def test_watch(owner, puppet, socket_pair):
    ours, theirs = socket_pair
    start(owner, [puppet])
    events = []

    def ready(watcher, fd, came, data):
        events.append((watcher, fd, came, data, os.read(fd, 10)))

    watcher = inside(owner, puppet, lambda context: puppet.watch(context, ours.fileno(), READ, ready, 77))
    owner.turn()
    assert not events
    for text in (b"one", b"two"):
        theirs.send(text)
        owner.run_until(lambda text=text: events and events[-1][4] == text)
    assert {each[:4] for each in events} == {(watcher, ours.fileno(), READ, 77)}
    inside(owner, puppet, lambda context: mq.MQ_ioUnwatch(watcher))
    theirs.send(b"three")
    owner.turn()
    assert len(events) == 2


def test_unwatch_in_the_callback_and_again(owner, puppet, socket_pair):
    ours, _ = socket_pair
    dispatcher = start(owner, [puppet])
    events = []

    def ready(watcher, fd, came, data):
        events.append(came)
        mq.MQ_ioUnwatch(watcher)
        mq.MQ_ioUnwatch(watcher)

    watcher = inside(owner, puppet, lambda context: puppet.watch(context, ours.fileno(), READ | WRITE, ready))
    owner.run_until(lambda: events)
    owner.turn()
    assert events == [WRITE]
    inside(owner, puppet, lambda context: mq.MQ_ioUnwatch(watcher))
    owner.run_until(lambda: refused(dispatcher) == 2)


def test_one_watcher_stops_another_that_is_ready_too(owner, puppet, socket_pair):
    ours, _ = socket_pair
    start(owner, [puppet])
    called, watchers = [], []

    def ready(watcher, fd, came, data):
        called.append(watcher)
        for each in watchers:
            mq.MQ_ioUnwatch(each)

    inside(owner, puppet, lambda context: watchers.extend(
        puppet.watch(context, ours.fileno(), WRITE, ready) for _ in range(3)))
    owner.run_until(lambda: called)
    owner.turn()
    assert len(called) == 1


def test_watchers_share_an_fd_with_those_of_python(owner, puppet, socket_pair):
    ours, theirs = socket_pair
    contexts, seen = [], []
    dispatcher = start(owner, [puppet], {"10-python": lambda context, message: contexts.append(context)})
    dispatcher.hook("mq_step").run(mqcore.Message())
    contexts[0].watch(ours, READ, lambda watcher, events: (seen.append("python"), watcher.stop()))
    inside(owner, puppet, lambda context: puppet.watch(
        context, ours.fileno(), READ, lambda watcher, *_: (seen.append("native"), mq.MQ_ioUnwatch(watcher))))
    theirs.send(b"x")
    owner.run_until(lambda: len(seen) == 2)
    assert sorted(seen) == ["native", "python"]


@pytest.mark.parametrize("events", [0, 4, -1, 7])
def test_no_events(owner, puppet, socket_pair, events):
    dispatcher = start(owner, [puppet])
    assert inside(owner, puppet, lambda context: puppet.watch(context, socket_pair[0].fileno(), events, print)) == 0
    owner.run_until(lambda: refused(dispatcher) == 1)


def test_a_descriptor_that_cannot_be_watched(owner, puppet, tmp_path, caplog):
    start(owner, [puppet])
    with open(tmp_path / "file", "w") as file:
        for fd in (file.fileno(), 9999, -1):
            assert inside(owner, puppet, lambda context, fd=fd: puppet.watch(context, fd, WRITE, print)) == 0
    assert [record.name for record in caplog.records] == ["mqcore.plugins.20-puppet"] * 3
    assert "plugin 20-puppet: MQ_ioWatch: [Errno 9] fd 9999 is not open" in caplog.text


def test_errno_of_a_descriptor_that_cannot_be_watched(owner, tmp_path):
    plugins = owner.plugins({})
    plugins.load(compile_plugin(tmp_path / "10-a.so", """
        #include <errno.h>
        static void never(MQ_IOWatcher *watcher, int fd, int events, void *data)
        {
            (void)watcher, (void)fd, (void)events, (void)data;
        }
        MQ_EXPORT bool mq_step(MQ_Context *context, MQ_Connection *connection, MQ_Message *message)
        {
            (void)message;
            errno = 0;
            if (MQ_ioWatch(context, 9999, MQ_READ, never, NULL) == NULL && errno == EBADF)
                MQ_complete(connection);
            return true;
        }
    """))
    dispatcher = owner.dispatcher(plugins)
    dispatcher.hook("mq_step").run(mqcore.Message(), done=owner.done)
    owner.run_until(lambda: owner.finished)
    assert owner.finished[0][1] is mqcore.COMPLETE


def test_a_descriptor_that_is_closed_under_its_watcher(owner, puppet, socket_pair):
    """It shows at the latest when the number is watched again, now for another file."""
    ours, theirs = os.pipe()
    dispatcher = start(owner, [puppet])
    told = []

    def ready(watcher, fd, events, data):
        told.append((fd, events))
        mq.MQ_ioUnwatch(watcher)  # it has ended

    def play(context):
        assert puppet.watch(context, ours, READ, ready)
        os.dup2(socket_pair[0].fileno(), ours)
        mq.MQ_ioUnwatch(puppet.watch(context, ours, READ, ready))

    inside(owner, puppet, play)
    owner.run_until(lambda: refused(dispatcher) == 1)
    assert told == [(ours, 0)]
    os.close(ours)
    os.close(theirs)


@pytest.mark.parametrize("way", ["the descriptor is watched again", "the other watcher is stopped"])
def test_a_descriptor_that_is_closed_when_its_watcher_is_ready(owner, puppet, socket_pair, way):
    """In the callback of another watcher of it. What came before it was closed is nothing to be called for any more."""
    ours, theirs = os.pipe()
    start(owner, [puppet])
    told = []

    def close_it(watcher, fd, events, data):
        os.dup2(socket_pair[0].fileno(), fd)
        if way == "the descriptor is watched again":
            watcher = puppet.watch(puppet.context, fd, READ, print)
        mq.MQ_ioUnwatch(watcher)

    def play(context):
        puppet.watch(context, ours, READ | WRITE, close_it)  # so that another union of events is left when it is stopped
        puppet.watch(context, ours, READ, lambda watcher, fd, events, data: told.append(events))

    os.write(theirs, b"x")
    inside(owner, puppet, play)
    owner.run_until(lambda: told)
    owner.turn()
    assert told == [0]
    os.close(ours)
    os.close(theirs)


def test_watchers_end_with_their_context(owner, puppet, socket_pair):
    ours, _ = socket_pair
    called = []
    dispatcher = start(owner, [puppet])
    watchers = inside(owner, puppet, lambda context: [
        puppet.watch(context, ours.fileno(), WRITE, lambda *_: called.append(1)) for _ in range(5)])
    assert all(watchers)
    puppet.end = lambda context: mq.MQ_ioUnwatch(watchers[0])
    dispatcher.close()
    owner.turn()
    assert not called


# The loop itself


def test_uv_and_its_functions(owner, puppet):
    start(owner, [puppet])

    def look(context):
        loop = mq.MQ_uv(context)
        version = ctypes.CFUNCTYPE(ctypes.c_char_p)(mq.MQ_uvSymbol(context, b"uv_version_string"))()
        backend = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p)(mq.MQ_uvSymbol(context, b"uv_backend_fd"))(loop)
        assert not mq.MQ_uvSymbol(context, b"uv_no_such_thing")
        assert not mq.MQ_uvSymbol(context, b"malloc")
        assert not mq.MQ_uvSymbol(context, b"")
        assert not mq.MQ_uvSymbol(context, None)
        return version.decode(), backend

    version, backend = inside(owner, puppet, look)
    assert version.startswith("1.") and backend > 0
    if owner.name == "pyuv":
        import pyuv

        assert version == pyuv.LIBUV_VERSION


# MQ_log


def test_log(owner, puppet, caplog):
    caplog.set_level(logging.DEBUG)
    start(owner, [puppet])

    def say(context):
        for priority in (2, 3, 4, 6, 7, 0, -1, 99):
            mq.MQ_log(priority, b"100 %s of \xff\xc3\xa9")
        mq.MQ_log(2, None)

    inside(owner, puppet, say)
    levels = [logging.CRITICAL, logging.ERROR, logging.WARNING, logging.INFO, logging.DEBUG, *[logging.INFO] * 3]
    assert [record.levelno for record in caplog.records] == levels
    assert {record.name for record in caplog.records} == {"mqcore.plugins.20-puppet"}
    assert [record.getMessage() for record in caplog.records] == ["100 %s of \ufffdé"] * 5 + [
        "(invalid priority) 100 %s of \ufffdé"] * 3


LOGS = """
#include <pthread.h>
static pthread_t thread;
static void *say(void *text) { MQ_log(MQ_WARN, text); return NULL; }
MQ_EXPORT void mq_initialize(void) { MQ_log(MQ_INFO, "initialized"); }
MQ_EXPORT void mq_cleanup(void) { MQ_log(MQ_INFO, "cleaned up"); }
MQ_EXPORT void mq_context_initialize(MQ_Context *context) { (void)context; MQ_log(MQ_INFO, "context"); }
MQ_EXPORT void mq_context_cleanup(MQ_Context *context)
{
    (void)context;
    pthread_join(thread, NULL);
    MQ_log(MQ_INFO, "end of context");
}
MQ_EXPORT bool mq_step(MQ_Context *context, MQ_Connection *connection, MQ_Message *message)
{
    (void)context, (void)connection, (void)message;
    pthread_create(&thread, NULL, say, "from a thread");
    return false;
}
"""


def test_log_on_other_threads_and_in_the_life_of_the_plugin(owner, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    plugins = owner.plugins({})
    plugins.load(compile_plugin(tmp_path / "10-a.so", LOGS, "-pthread"))
    dispatcher = owner.dispatcher(plugins)
    dispatcher.hook("mq_step").run(mqcore.Message())
    owner.run_until(lambda: "from a thread" in caplog.text)
    dispatcher.close()
    plugins.close()
    assert [(record.name, record.getMessage()) for record in caplog.records] == [
        ("mqcore.plugins.10-a", text)
        for text in ("initialized", "context", "from a thread", "end of context", "cleaned up")
    ]


def test_a_handler_of_logging_that_raises_ends_nothing(owner, puppet, caplog):
    class Raises(logging.Handler):
        def emit(self, record):
            raise ValueError("no log today")

    handler = Raises()
    logging.getLogger("mqcore.plugins").addHandler(handler)
    try:
        start(owner, [puppet])
        inside(owner, puppet, lambda context: mq.MQ_log(2, b"x"))
        mq.MQ_continue(1)
        owner.turn()
    finally:
        logging.getLogger("mqcore.plugins").removeHandler(handler)
    assert all(isinstance(error, ValueError) for error in owner.loop_errors)
    owner.loop_errors.clear()


def test_context_functions_may_block(uvloop_owner, tmp_path):
    """They are called without the GIL: other threads go on."""
    plugins = uvloop_owner.plugins({})
    plugins.load(compile_plugin(tmp_path / "10-a.so", """
        #include <unistd.h>
        MQ_EXPORT void mq_initialize(void) { usleep(50000); }
        MQ_EXPORT void mq_cleanup(void) { usleep(50000); }
        MQ_EXPORT void mq_context_initialize(MQ_Context *context) { (void)context; usleep(50000); }
        MQ_EXPORT void mq_context_cleanup(MQ_Context *context) { (void)context; usleep(50000); }
    """))
    ticks, over = [], threading.Event()

    def tick():
        while not over.wait(0.001):
            ticks.append(time.monotonic())

    thread = threading.Thread(target=tick)
    thread.start()
    try:
        begin = time.monotonic()
        dispatcher = uvloop_owner.dispatcher(plugins)
        dispatcher.close()
        plugins.close()
        end = time.monotonic()
    finally:
        over.set()
        thread.join()
    assert end - begin >= 0.15
    assert len([each for each in ticks if begin < each < end]) > 20
