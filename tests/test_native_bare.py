"""Native plugins without the GIL: what a chain of them does while another thread keeps it."""

from __future__ import annotations

import ctypes
import threading

import pytest
from native_tools import compile_plugin

import mqcore
from mqcore import CONTINUE

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

static int started, kept;

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
    __atomic_store_n(&started, 1, __ATOMIC_RELEASE);
    if (comes(&kept))
        MQ_continue(data);
}

MQ_EXPORT bool mq_step(MQ_Context *context, MQ_Connection *connection, MQ_Message *message)
{
    (void)message;
    MQ_startTimer(context, 0.02f, start, connection);
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
