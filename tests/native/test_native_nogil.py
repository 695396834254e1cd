"""Native plugins without the GIL: what a chain of them does while another thread keeps it."""

from __future__ import annotations

import collections
import ctypes
import gc
import itertools
import queue
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from native_tools import Puppet, compile_plugin, mq, start
from owners import assert_conserved

import mqcore
from mqcore import COMPLETE, CONTINUE, FAIL

# Takes each message and gives it back: by a timer, by a watcher of a pipe, or from a thread of its own.
TAKES = """
#include <pthread.h>
#include <unistd.h>

static int pipes[2];

static void by_timer(void *data) { MQ_continue(data); }

static void by_watcher(MQ_IOWatcher *watcher, int fd, int events, void *data)
{
    (void)fd, (void)events;
    MQ_ioUnwatch(watcher);
    MQ_continue(data);
}

static void *by_thread(void *data)
{
    usleep(20000);
    MQ_continue(data);
    return NULL;
}

MQ_EXPORT bool mq_step(MQ_Context *context, MQ_Connection *connection, MQ_Message *message)
{
    pthread_t thread;
    (void)message, (void)by_timer, (void)by_watcher, (void)by_thread, (void)pipes, (void)thread;
    %s
    return true;
}
"""

BY_TIMER = "MQ_startTimer(context, 0.02f, by_timer, connection);"
BY_WATCHER = """
    if (pipe(pipes) < 0 || write(pipes[1], "x", 1) != 1)
        return false;
    MQ_ioWatch(context, pipes[0], MQ_READ, by_watcher, connection);
"""
BY_THREAD = """
    (void)context;
    if (pthread_create(&thread, NULL, by_thread, connection) == 0)
        pthread_detach(thread);
"""

# The first of a chain: gives the message back when another thread, in `keep_the_gil`, has the GIL, which it keeps until
# the message has come to the last.
FIRST = """
#include <unistd.h>

static MQ_Context *here;
static int started, kept, rounds;

static bool comes(int *flag)
{
    for (int tries = 0; tries < 10000 && !__atomic_load_n(flag, __ATOMIC_ACQUIRE); tries++)
        usleep(1000);
    return __atomic_load_n(flag, __ATOMIC_ACQUIRE);
}

MQ_EXPORT bool wait_for_start(void) { return comes(&started); }

MQ_EXPORT bool keep_the_gil(int *ended)
{
    __atomic_store_n(&kept, 1, __ATOMIC_RELEASE);
    return comes(ended);
}

static void start(void *data)
{
    if (++rounds < 5) { /* by then whoever runs the loop has called all Python code of its beginning */
        MQ_startTimer(here, 0.01f, start, data);
        return;
    }
    __atomic_store_n(&started, 1, __ATOMIC_RELEASE);
    if (comes(&kept))
        MQ_continue(data);
}

MQ_EXPORT bool mq_step(MQ_Context *context, MQ_Connection *connection, MQ_Message *message)
{
    (void)message;
    here = context;
    MQ_startTimer(context, 0.01f, start, connection);
    return true;
}
"""
LAST = """
MQ_EXPORT int ended;

MQ_EXPORT bool mq_step(MQ_Context *context, MQ_Connection *connection, MQ_Message *message)
{
    (void)context, (void)connection, (void)message;
    __atomic_store_n(&ended, 1, __ATOMIC_RELEASE);
    return false;
}
"""

# Notes its argument, in a hook that is called when the plugin before it gave the message back.
WITH_ARGUMENTS = """
#include <string.h>

static char seen[32];

MQ_EXPORT void seen_text(char *copy) { strcpy(copy, seen); }

static void by_timer(void *data) { MQ_continue(data); }

MQ_EXPORT bool mq_smtp_in_data(MQ_Context *context, MQ_Connection *connection, const char *mime, size_t size)
{
    if (mime != NULL && size < sizeof seen)
        memcpy(seen, mime, size);
    MQ_startTimer(context, 0, by_timer, connection);
    return true;
}
"""

# Takes each message, and takes its time for those that come again; gives all back when it is told to.
HOARDS = """
#include <unistd.h>

static MQ_Connection *held[16];
MQ_EXPORT int count;

MQ_EXPORT void give_all_back(void)
{
    for (int each = 0; each < count; each++)
        MQ_continue(held[each]);
}

MQ_EXPORT bool mq_step(MQ_Context *context, MQ_Connection *connection, MQ_Message *message)
{
    (void)context, (void)message;
    if (count == 16) {
        usleep(2000);
        return false;
    }
    held[count++] = connection;
    return true;
}
"""

# Passes each message on, and has a timer whose callback ends when another thread says so.
STAYS = """
#include <unistd.h>

static int inside, over;

static bool comes(int *flag)
{
    for (int tries = 0; tries < 2000 && !__atomic_load_n(flag, __ATOMIC_ACQUIRE); tries++)
        usleep(1000);
    return __atomic_load_n(flag, __ATOMIC_ACQUIRE);
}

MQ_EXPORT bool wait_until_inside(void) { return comes(&inside); }
MQ_EXPORT bool is_inside(void) { return __atomic_load_n(&inside, __ATOMIC_ACQUIRE); }
MQ_EXPORT void leave(void) { __atomic_store_n(&over, 1, __ATOMIC_RELEASE); }

static void stay(void *data)
{
    (void)data;
    __atomic_store_n(&inside, 1, __ATOMIC_RELEASE);
    comes(&over);
    __atomic_store_n(&inside, 0, __ATOMIC_RELEASE);
}

MQ_EXPORT bool mq_step(MQ_Context *context, MQ_Connection *connection, MQ_Message *message)
{
    (void)connection, (void)message;
    MQ_startTimer(context, 0, stay, NULL);
    return false;
}
"""


def dispatcher_for(owner, *paths):
    plugins = owner.plugins({})
    for path in paths:
        plugins.load(path)
    return owner.dispatcher(plugins)


def run_without_python(owner):
    """Run the loop, with no callback of Python's on it, until something stops it."""
    if owner.name == "uvloop":
        owner.loop.run_forever()
    else:
        owner._alive.stop()
        owner.loop.run()


@pytest.mark.parametrize("way", [BY_TIMER, BY_WATCHER, BY_THREAD], ids=["timer", "watcher", "thread"])
def test_a_thread_that_keeps_the_gil_does_not_stop_a_native_chain(owner, tmp_path, way):
    """From before its first plugin gives the message back until it has come to the last one, another thread keeps the GIL."""
    first = compile_plugin(tmp_path / "0-first.so", FIRST)
    takers = [compile_plugin(tmp_path / f"{number}-takes.so", TAKES % way) for number in range(1, 4)]
    last = compile_plugin(tmp_path / "9-last.so", LAST)
    dispatcher = dispatcher_for(owner, first, *takers, last)
    came = []
    outcomes = []

    def keep_the_gil():
        came.append(ctypes.CDLL(str(first)).wait_for_start())
        came.append(ctypes.PyDLL(str(first)).keep_the_gil(ctypes.byref(ctypes.c_int.in_dll(ctypes.CDLL(str(last)), "ended"))))

    def done(message, outcome):
        outcomes.append(outcome)
        owner.loop.stop()

    assert dispatcher.hook("mq_step").run(mqcore.Message(), done=done) is None
    keeper = threading.Thread(target=keep_the_gil)
    keeper.start()
    run_without_python(owner)
    keeper.join()
    assert came == [True, True]
    assert outcomes == [CONTINUE]


def test_how_long_a_message_was_held_is_counted_once(owner, tmp_path):
    """Also when other native plugins had it between the give-back and the end."""
    takers = [compile_plugin(tmp_path / f"{number}-takes.so", TAKES % BY_TIMER) for number in range(1, 4)]
    last = compile_plugin(tmp_path / "9-last.so", LAST)
    dispatcher = dispatcher_for(owner, *takers, last)
    begin = time.monotonic()
    assert dispatcher.hook("mq_step").run(mqcore.Message(), done=owner.done) is None
    owner.run_until(lambda: owner.finished)
    took = time.monotonic() - begin
    held = [hook.held_seconds for hook in dispatcher.stats().hooks]
    assert min(held[:3]) >= 0.02
    assert held[3] == 0
    assert sum(held) <= took


@pytest.mark.parametrize("what", ["cancel", "close", "contradiction"])
def test_a_step_that_ends_in_a_hook_without_the_gil(owner, tmp_path, what):
    """The second plugin is called when the first gave the message back by a timer."""
    message = mqcore.Message()

    def take(context, connection, _):
        first.timer(context, 0.0, lambda data: mq.MQ_continue(connection))
        return True

    def end(context, connection, _):
        if what == "cancel":
            dispatcher.cancel(message)
        elif what == "close":
            dispatcher.close()
        else:
            mq.MQ_complete(connection)  # and then says that it passes the message on
        return False

    first = Puppet(tmp_path / "10-first.so", take)
    second = Puppet(tmp_path / "20-second.so", end)
    third = Puppet(tmp_path / "30-third.so", lambda *_: calls.append("third"))
    calls = []
    dispatcher = start(owner, [first, second, third])
    assert dispatcher.hook("mq_step").run(message, done=owner.done) is None
    owner.run_until(lambda: owner.finished)
    assert owner.finished == [(message, FAIL)]
    expected = {"cancel": mqcore.Cancelled, "close": mqcore.DispatcherClosed, "contradiction": mqcore.MqError}
    assert type(message.error) is expected[what]
    assert not calls and not first.errors and not second.errors


def test_retry_without_the_gil(owner, tmp_path):
    """Up to the limit, and with the chain as it is then."""
    rounds = []

    def take(context, connection, _):
        rounds.append(len(rounds))
        first.timer(context, 0.0, lambda data: mq.MQ_retry(connection))
        return True

    first = Puppet(tmp_path / "10-first.so", take)
    other = Puppet(tmp_path / "05-other.so", lambda *_: rounds.append("other"))
    dispatcher = start(owner, [first], max_retries=5)
    message = mqcore.Message()
    assert dispatcher.hook("mq_step").run(message, done=owner.done) is None
    owner.run_until(lambda: owner.finished)
    assert rounds == list(range(6))
    assert message.retries == 5 and isinstance(message.error, mqcore.RetryLimit)

    def take_and_add(context, connection, _):
        if len(rounds) == 6:
            dispatcher.plugins.load(other.path)
            first.timer(context, 0.0, lambda data: mq.MQ_retry(connection))
            rounds.append("taken")
            return True
        return False

    first.step = take_and_add
    owner.finished.clear()
    assert dispatcher.hook("mq_step").run(message, done=owner.done) is None
    owner.run_until(lambda: owner.finished)
    assert owner.finished == [(message, CONTINUE)]
    assert rounds[6:] == ["taken", "other"]
    assert not first.errors


@pytest.mark.parametrize("arguments", [(b"bytes",), ("text",), ("t\u00e9xt",), (None,)], ids=["bytes", "ascii", "utf8", "none"])
def test_arguments_without_the_gil(owner, tmp_path, arguments):
    """A hook that is called when another plugin gave the message back has the same arguments."""
    plugins = mqcore.Plugins(hooks=[mqcore.HookSpec("mq_smtp_in_data", "mime")])
    owner.made_plugins.append(plugins)
    for number in range(2):
        plugins.load(compile_plugin(tmp_path / f"{number}-plugin.so", WITH_ARGUMENTS))
    dispatcher = owner.dispatcher(plugins)
    message = mqcore.Message()
    assert dispatcher.hook("mq_smtp_in_data").run(message, *arguments, done=owner.done) is None
    owner.run_until(lambda: owner.finished)
    assert owner.finished == [(message, CONTINUE)]
    value = arguments[0]
    expected = b"" if value is None else value if isinstance(value, bytes) else value.encode()
    for path in tmp_path.glob("*.so"):
        library = ctypes.CDLL(str(path))
        seen = ctypes.create_string_buffer(32)
        library.seen_text(seen)
        assert seen.value == expected


def test_python_and_native_holds_given_back_by_many_threads(owner, tmp_path):
    """Native plugins run without the GIL while other threads give back, and drop, what Python plugins hold."""
    count = 3_000
    waiting = queue.SimpleQueue()
    ways = itertools.cycle(["continue_", "continue_", "retry", "complete", "drop"])

    def python(context, message):
        if message.retries:
            return False
        hold = context.hold(message)
        waiting.put((hold, next(ways)))
        return hold

    def give_back():
        while (item := waiting.get()) is not None:
            hold, way = item
            if way != "drop":
                getattr(hold, way)()
            del hold, item

    takers = [compile_plugin(tmp_path / f"{number}-takes.so", TAKES % BY_TIMER.replace("0.02f", "0")) for number in (1, 3)]
    plugins = owner.plugins({"2-python": python})
    for path in takers:
        plugins.load(path)
    dispatcher = owner.dispatcher(plugins)
    threads = [threading.Thread(target=give_back) for _ in range(4)]
    for thread in threads:
        thread.start()
    messages = [mqcore.Message() for _ in range(count)]
    dispatcher.hook("mq_step").run_many(messages, done=owner.done)
    owner.run_until(lambda: assert_conserved(dispatcher) or len(owner.finished) == count, timeout=60)
    for _ in threads:
        waiting.put(None)
    for thread in threads:
        thread.join()
    outcomes = collections.Counter(outcome for _, outcome in owner.finished)
    assert outcomes == {CONTINUE: count * 3 // 5, COMPLETE: count // 5, FAIL: count // 5}
    assert all(isinstance(message.error, mqcore.Abandoned) for message, outcome in owner.finished if outcome is FAIL)


def test_the_books_are_in_order_for_other_threads(owner, tmp_path):
    """Read all the time by another thread, while native plugins take and pass on messages without the GIL."""
    takes = compile_plugin(tmp_path / "1-takes.so", TAKES % BY_TIMER.replace("0.02f", "0"))
    last = compile_plugin(tmp_path / "2-last.so", LAST)
    holding, passing = dispatcher_for(owner, takes, last), dispatcher_for(owner, last)
    over = threading.Event()
    looks = []

    def look():
        while not over.is_set():
            assert_conserved(holding)
            assert_conserved(passing)
            looks.append(1)

    looking = ThreadPoolExecutor(1)
    watched = looking.submit(look)
    messages = [mqcore.Message() for _ in range(2_000)]
    for _ in range(10):
        owner.finished.clear()
        holding.hook("mq_step").run_many(messages, done=owner.done)
        owner.run_until(lambda: len(owner.finished) == len(messages))
        assert passing.hook("mq_step").run_many(messages) == [CONTINUE] * len(messages)
    over.set()
    watched.result()
    looking.shutdown()
    assert looks


def test_rule_10_what_was_given_back_in_time_is_not_too_late(owner, tmp_path):
    """Also when it takes longer than a turn until all of it goes on, and the deadline passes meanwhile."""
    hoards, slow = (compile_plugin(tmp_path / f"{name}.so", HOARDS) for name in ("1-hoards", "2-slow"))
    plugins = owner.plugins({})
    for path in (hoards, slow):
        plugins.load(path)
    dispatcher = owner.dispatcher(plugins, hold_timeout=0.1)
    messages = [mqcore.Message() for _ in range(16)]
    ctypes.c_int.in_dll(ctypes.CDLL(str(slow)), "count").value = 16
    dispatcher.hook("mq_step").run_many(messages, done=owner.done)
    ctypes.CDLL(str(hoards)).give_all_back()
    time.sleep(0.15)
    owner.run_until(lambda: len(owner.finished) == 16)
    assert {outcome for _, outcome in owner.finished} == {CONTINUE}


def test_a_message_that_another_thread_deallocates_waits_for_no_native_plugin(owner, tmp_path):
    """A Python plugin holds it, and its class gained a finalizer meanwhile. The dispatcher's thread is in a native callback and
    leaves it only when the message is gone; the Python code that comes next in that tick finds nothing of it."""

    class Mail(mqcore.Message):
        pass

    told, held, dropped, contexts = [], [], [], []
    holds = SimpleNamespace(mq_other=lambda context, message, extra: True, mq_context_initialize=contexts.append)
    plugins = owner.plugins({"20-holds": holds})
    plugins.load(compile_plugin(tmp_path / "10-stays.so", STAYS))
    library = ctypes.CDLL(str(tmp_path / "10-stays.so"))
    for function in (library.wait_until_inside, library.is_inside):
        function.restype = ctypes.c_bool
    dispatcher = owner.dispatcher(plugins)
    messages = [Mail() for _ in range(3)]
    for message in messages:
        done = lambda message, outcome: told.append((type(message), outcome, type(message.error)))  # noqa: E731
        assert dispatcher.hook("mq_other").run(message, None, done=done) is None
    del message
    Mail.__del__ = lambda self: None

    def drop():
        dropped.append(library.wait_until_inside())
        messages.clear()
        dropped.append(library.is_inside())
        library.leave()

    def look():
        held.append(len(dispatcher.held()))
        if not dropped:
            contexts[0].start_timer(0, look)

    look()
    assert dispatcher.hook("mq_step").run(mqcore.Message()) is CONTINUE
    thread = threading.Thread(target=drop)
    thread.start()
    owner.run_until(lambda: len(told) == 3)
    thread.join()
    assert dropped == [True, True]
    assert held[0] == 3 and held[-1] == 0
    assert told == [(mqcore.Message, FAIL, mqcore.Abandoned)] * 3
    assert_conserved(dispatcher)


def test_the_collector_sees_the_same_of_a_message_whatever_native_plugins_do(owner, tmp_path):
    """It looks more than once, and they go on without the GIL in between."""

    class Final(mqcore.Message):
        def __del__(self):
            pass

    def take(context, connection, _):
        seen.append(gc.get_referents(message))
        puppet.timer(context, 0.0, lambda data: mq.MQ_continue(connection))
        return True

    puppet = Puppet(tmp_path / "10-takes.so", take)
    dispatcher = start(owner, [puppet])
    payload, seen = [], []
    message = Final(payload=payload)
    assert dispatcher.hook("mq_step").run(message, done=owner.done) is None
    seen.append(gc.get_referents(message))
    owner.run_until(lambda: owner.finished)
    assert owner.finished == [(message, CONTINUE)]
    assert [sum(each is payload for each in members) for members in seen] == [1, 1]
