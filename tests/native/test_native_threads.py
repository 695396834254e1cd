"""Threads of a plugin that give back whatever they find, against each other, while dispatchers come, reload and go.

Here a crash or a wrong count would show; `scripts/dev tsan` runs the same and reports every race.
"""

from __future__ import annotations

import ctypes
import random
import threading
from concurrent.futures import ThreadPoolExecutor

from native_tools import compile_plugin
from owners import assert_conserved

import mqcore
import mqcore.native._abi

# What the threads share: the newest handles, live or stale. In a library of its own, as a plugin that is reloaded has new ones.
STORM = """
#include <unistd.h>
enum { MOST = 64 };
static _Atomic uint64_t handles[MOST];
static _Atomic unsigned kept;
static _Atomic int over;

MQ_EXPORT void keep_handle(void *handle) { handles[kept++ % MOST] = (uint64_t)(uintptr_t)handle; }
MQ_EXPORT void stop_storm(int stop) { over = stop; }

MQ_EXPORT unsigned storm(unsigned seed)
{
    unsigned given = 0;
    while (!over) {
        seed = seed * 1103515245 + 12345;
        uint64_t handle = handles[seed >> 16 & (MOST - 1)];
        if ((seed >> 8 & 31) == 0)
            handle ^= 1ull << (seed >> 24 & 63);
        switch (seed >> 12 & 3) {
            case 0: MQ_complete((MQ_Connection *)(uintptr_t)handle); break;
            case 1: MQ_json((MQ_Message *)(uintptr_t)(handle + 1)); break;
            default: MQ_continue((MQ_Connection *)(uintptr_t)handle);
        }
        given++;
        usleep(30);
    }
    return given;
}
"""

HOLDS = """
void keep_handle(void *handle);
static void later(void *connection) { MQ_continue(connection); }
static _Atomic unsigned calls;
MQ_EXPORT bool mq_step(MQ_Context *context, MQ_Connection *connection, MQ_Message *message)
{
    (void)message;
    keep_handle(connection);
    unsigned call = calls++;
    if (call % 4 == 3)
        return false;
    if (call % 4 == 2)
        MQ_startTimer(context, 0, later, connection);
    return true;
}
"""


def test_threads_against_each_other(owner, tmp_path, caplog):
    caplog.set_level("ERROR", "mqcore.plugins")  # of misuses, there are many
    mqcore.native._abi.make_global()
    library = ctypes.CDLL(str(compile_plugin(tmp_path / "storm.so", STORM)), ctypes.RTLD_GLOBAL)
    library.stop_storm(0)
    threads = [threading.Thread(target=library.storm, args=(seed,)) for seed in range(2)]
    chance = random.Random(1)
    plugins = owner.plugins({})
    plugins.load(compile_plugin(tmp_path / "plugins" / "10-holds.so", HOLDS))
    plugins.load(compile_plugin(tmp_path / "plugins" / "20-holds.so", HOLDS + "/* another */"))
    for thread in threads:
        thread.start()
    try:
        count = waiting = 0
        for number in range(12):
            dispatcher = owner.dispatcher(plugins)
            hook = dispatcher.hook("mq_step")
            for _ in range(3):
                messages = [mqcore.Message() for _ in range(chance.randrange(1, 60))]
                waiting += hook.run_many(messages, done=owner.done).count(None)
                owner.turn()
                for message in messages[::7]:
                    dispatcher.cancel(message)
            if number % 3 == 0:
                plugins.reload()
            if number % 2:
                for _ in range(20):
                    owner.turn()
            count += dispatcher.stats().entered
            assert_conserved(dispatcher)
            dispatcher.close()
            owner.turn()
    finally:
        library.stop_storm(1)
        for thread in threads:
            thread.join()
    assert count > 100 and len(owner.finished) == waiting


def test_dispatchers_on_two_threads_that_reload_and_close(owner, tmp_path, caplog):
    """Of the same plugins, one of whose threads gives back what it finds of both."""
    caplog.set_level("ERROR", "mqcore.plugins")
    mqcore.native._abi.make_global()
    library = ctypes.CDLL(str(compile_plugin(tmp_path / "storm.so", STORM)), ctypes.RTLD_GLOBAL)
    library.stop_storm(0)
    plugins = owner.plugins({})
    plugins.load(compile_plugin(tmp_path / "plugins" / "10-holds.so", HOLDS))
    plugins.load(compile_plugin(tmp_path / "plugins" / "20-holds.so", HOLDS + "/* another */"))

    def work(mine):
        waiting = 0
        for number in range(10):
            dispatcher = mine.dispatcher(plugins)
            for _ in range(3):
                messages = [mqcore.Message() for _ in range(30)]
                waiting += dispatcher.hook("mq_step").run_many(messages, done=mine.done).count(None)
                mine.turn()
                dispatcher.cancel(messages[number])
                if number % 2:
                    plugins.reload()
                mine.turn()
            assert_conserved(dispatcher)
            dispatcher.close()
            mine.turn()
        assert len(mine.finished) == waiting

    def work_elsewhere():
        mine = type(owner)()
        work(mine)
        mine.finish()

    with ThreadPoolExecutor(2) as threads:
        storm = threads.submit(library.storm, 1)
        elsewhere = threads.submit(work_elsewhere)
        try:
            work(owner)
            elsewhere.result(timeout=120)
        finally:
            library.stop_storm(1)
        assert storm.result(timeout=120) > 100
