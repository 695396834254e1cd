"""Giving back in a signal handler of a plugin, wherever it interrupts the process."""

from __future__ import annotations

import ctypes
import time

from native_tools import compile_plugin

import mqcore

# A plugin that holds every message, and gives one back each time the timer signal comes; and then once more.
SIGNALLED = """
#include <signal.h>
#include <sys/time.h>

enum { MOST = 1 << 16 };
static MQ_Connection *held[MOST];
static unsigned added, taken;

static void on_signal(int number)
{
    (void)number;
    for (int each = 0; each < 3; each++) {
        unsigned mine = __atomic_load_n(&taken, __ATOMIC_ACQUIRE);
        if (mine == __atomic_load_n(&added, __ATOMIC_ACQUIRE))
            return;
        __atomic_store_n(&taken, mine + 1, __ATOMIC_RELEASE);
        MQ_continue(held[mine % MOST]);
        if (mine % 16 == 0)
            MQ_complete(held[mine % MOST]);
    }
}

MQ_EXPORT void begin(void)
{
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    struct itimerval often = {{0, 150}, {0, 150}};
    sigaction(SIGALRM, &action, NULL);
    setitimer(ITIMER_REAL, &often, NULL);
}

MQ_EXPORT void end(void)
{
    struct itimerval never = {{0, 0}, {0, 0}};
    setitimer(ITIMER_REAL, &never, NULL);
    signal(SIGALRM, SIG_IGN);
}

static void nothing(void *data) { (void)data; }

MQ_EXPORT bool mq_step(MQ_Context *context, MQ_Connection *connection, MQ_Message *message)
{
    (void)message;
    MQ_stopTimer(MQ_startTimer(context, 1, nothing, NULL));
    held[added % MOST] = connection;
    __atomic_store_n(&added, added + 1, __ATOMIC_RELEASE);
    for (volatile int each = 0; each < 2000; each++)
        ;
    return true;
}
"""


def test_give_back_in_a_signal_handler(owner, tmp_path):
    """In the hook, between hooks, while the loop waits, in Python code and in mqcore's own."""
    path = compile_plugin(tmp_path / "10-signal.so", SIGNALLED)
    library = ctypes.PyDLL(str(path))
    plugins = owner.plugins({})
    plugins.load(path)
    dispatcher = owner.dispatcher(plugins)
    hook = dispatcher.hook("mq_step")
    count, deadline = 0, time.monotonic() + 3
    library.begin()
    try:
        while count < 20_000 and time.monotonic() < deadline:
            messages = [mqcore.Message() for _ in range(50)]
            count += len(messages)
            hook.run_many(messages, done=owner.done)
            owner.run_until(lambda count=count: len(owner.finished) > count - 30)
        owner.run_until(lambda: len(owner.finished) == count)
    finally:
        library.end()
    assert {outcome for _, outcome in owner.finished} == {mqcore.CONTINUE}
    owner.turn()
    assert dispatcher.stats().hooks[0].refused > 0
