"""What becomes of the old code when a native plugin is reloaded: it leaves memory, or there is a limit that says so."""

from __future__ import annotations

import gc
import os
from pathlib import Path

import pytest
from loop_tools import python
from native_tools import compile_plugin

import mqcore
from mqcore.native import _library, _shared, accessors

pytestmark = pytest.mark.skipif(
    os.environ.get("MQCORE_SANITIZE", "0") not in ("", "0"),
    reason="what a sanitizer puts into a plugin keeps its code in memory",
)

HOLDS = """
#include <stdlib.h>
static char *kept;
MQ_EXPORT void mq_initialize(void) { kept = calloc(1, 100); }
MQ_EXPORT void mq_cleanup(void) { free(kept); }
static void later(void *connection) { MQ_continue(connection); }
MQ_EXPORT bool mq_step(MQ_Context *context, MQ_Connection *connection, MQ_Message *message)
{
    (void)message;
    return MQ_startTimer(context, 0, later, connection) != NULL;
}
"""

HAS_THREADS = """
#include <pthread.h>
static void *run(void *data) { return data; }
MQ_EXPORT void mq_initialize(void)
{
    pthread_t thread;
    if (pthread_create(&thread, NULL, run, NULL) == 0)
        pthread_detach(thread);
}
MQ_EXPORT bool mq_step(MQ_Context *context, MQ_Connection *connection, MQ_Message *message)
{
    (void)context, (void)connection, (void)message;
    return false;
}
"""

ASKS = """
MQ_EXPORT bool mq_step(MQ_Context *context, MQ_Connection *connection, MQ_Message *message)
{
    (void)context, (void)connection;
    MQ_json(message);
    MQ_json(message);
    return false;
}
"""


def mapped(name: str) -> int:
    """How many of this process's mappings are of a file of that name, or of a private copy of it."""
    return sum(line.rstrip().endswith(name) for line in Path("/proc/self/maps").read_text().splitlines())


@pytest.mark.parametrize("times", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_old_code_leaves_memory(owner, tmp_path, times):
    """Each version still holds a message when the next one comes."""
    plugins = owner.plugins({})
    plugins.load(compile_plugin(tmp_path / "10-closes.so", HOLDS))
    dispatcher = owner.dispatcher(plugins)
    hook = dispatcher.hook("mq_step")
    most = 0
    for number in range(times):
        hook.run(mqcore.Message(), done=owner.done)
        plugins.reload()
        owner.run_until(lambda number=number: len(owner.finished) == number + 1)
        if number % 50 == 0:
            most = max(most, mapped("-10-closes.so"))
    assert {outcome for _, outcome in owner.finished} == {mqcore.CONTINUE}
    assert 0 < most < 50
    assert len(list(Path(_shared._folder()).glob("*-10-closes.so"))) < 10


def test_code_that_may_have_threads_stays(owner, tmp_path):
    plugins = owner.plugins({})
    plugins.load(compile_plugin(tmp_path / "10-threads.so", HAS_THREADS))
    owner.dispatcher(plugins)
    for _ in range(5):
        plugins.reload()
        owner.turn()
    gc.collect()
    _library.close_idle()
    assert mapped("10-threads.so") >= 6 * 2


def test_the_limit_of_versions(owner, tmp_path, monkeypatch):
    plugins = owner.plugins({})
    plugins.load(compile_plugin(tmp_path / "10-threads.so", HAS_THREADS))
    dispatcher = owner.dispatcher(plugins)
    before = list(plugins)
    monkeypatch.setattr(_shared, "most_open", lambda: _library.count_open())
    with pytest.raises(mqcore.PluginError, match="objects of plugins are in memory already.*start the process anew"):
        plugins.reload()
    assert list(plugins) == before
    assert dispatcher.hook("mq_step").run(mqcore.Message()) is mqcore.CONTINUE


RELOADS = """
import mqcore, pathlib, sys
plugins = mqcore.Plugins(hooks=[mqcore.HookSpec("mq_step")])
plugins.load(sys.argv[1])
for number in range(10_000):
    try:
        plugins.reload()
    except mqcore.PluginError as error:
        assert "objects of plugins are in memory already" in str(error), error
        assert len(list(plugins)) == 1
        break
else:
    raise AssertionError("no limit")
mapped = len(pathlib.Path("/proc/self/maps").read_text().splitlines())
assert mapped < int(pathlib.Path("/proc/sys/vm/max_map_count").read_text()) * 3 // 4
import json, decimal, http.client  # there is room for code of others
print("refused after", number)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/sys/vm/max_map_count").exists(), reason="this system has no such limit")
def test_ten_thousand_versions_that_stay_end_with_the_limit(tmp_path):
    """Where none may leave memory, in a process of its own, which is no use afterwards."""
    plugin = compile_plugin(tmp_path / "10-threads.so", HAS_THREADS)
    assert python(RELOADS, str(plugin), dev=False, timeout=240).startswith("refused after ")


def test_code_stays_as_long_as_a_call_of_it_goes_on(owner, tmp_path):
    """Its hook asks an accessor, which reloads the plugin twice, with nothing left that refers to the old one."""

    class Reloads(mqcore.Message):
        pass

    class ReloadsAccessors(accessors.Accessors):
        def json(self, message):
            plugins.reload()
            gc.collect()
            return "{}"

    accessors.register(Reloads, ReloadsAccessors())
    plugins = owner.plugins({})
    plugins.load(compile_plugin(tmp_path / "10-asks.so", ASKS))
    dispatcher = owner.dispatcher(plugins)
    for _ in range(20):
        assert dispatcher.hook("mq_step").run(Reloads()) is mqcore.CONTINUE
        owner.turn()


def test_functions_of_code_that_was_removed_can_still_be_called(owner, tmp_path):
    """What refers to them keeps it in memory."""
    plugins = owner.plugins({})
    plugins.load(compile_plugin(tmp_path / "10-closes.so", HOLDS))
    (plugin,) = plugins
    version, life = plugin._life["mq_version"], plugin._life
    plugins.remove("10-closes")
    del plugin
    gc.collect()
    _library.close_idle()
    assert version() == life["mq_version"]() == mqcore.hooks.API_VERSION


def test_a_type_of_the_loader_is_made_by_mqcore_alone():
    for kind in (_library.Library,):
        with pytest.raises(TypeError, match="made by mqcore alone"):
            kind()
