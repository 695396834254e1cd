"""A plugin that is paused: out of what begins from now on, while what it holds goes on (rule 18)."""

from __future__ import annotations

import threading
from types import SimpleNamespace

import pytest

from mqcore import COMPLETE, CONTINUE, HOLD, RETRY, HookSpec, MqError, PluginError, Plugins

HOOKS = [HookSpec("mq_step")]


def sees(name, log, result=None):
    def mq_step(context, message):
        log.append(name)
        return result

    return mq_step


def test_it_is_in_no_new_step(owner):
    log: list[str] = []
    plugins = owner.plugins({"a": sees("a", log), "b": sees("b", log)})
    step = owner.dispatcher(plugins).hook("mq_step")
    plugins.pause("a")
    assert (plugins.order("mq_step"), plugins.paused) == (["b"], {"a"})
    assert [plugin.name for plugin in plugins] == ["a", "b"]
    assert step.run(owner.Message()) is CONTINUE
    assert log == ["b"]
    plugins.resume("a")
    assert (plugins.order("mq_step"), plugins.paused) == (["a", "b"], frozenset())
    assert step.run(owner.Message()) is CONTINUE
    assert log == ["b", "a", "b"]


def test_what_it_holds_goes_on_as_it_began(owner):
    log: list[str] = []
    contexts = []

    def hold(context, message):
        contexts.append(context)
        return HOLD

    plugins = owner.plugins({"a": hold, "b": sees("b", log), "c": sees("c", log, COMPLETE)})
    dispatcher = owner.dispatcher(plugins)
    step = dispatcher.hook("mq_step")
    step.run(held := owner.Message(), done=owner.done)
    plugins.pause("a")
    plugins.pause("b")
    assert step.run(owner.Message()) is COMPLETE
    assert log == ["c"]
    contexts[0].continue_(held)
    owner.run_until(lambda: owner.finished)
    assert owner.finished == [(held, COMPLETE)]
    assert log == ["c", "b", "c"]
    plugins.resume("a")
    plugins.resume("b")
    assert len(set(contexts)) == 1  # one context all the time


def test_retry_begins_with_the_chain_as_it_is_now(owner):
    log: list[str] = []
    plugins = owner.plugins({})

    def pauses(context, message):
        if message.retries == 0:
            plugins.pause("a")
            return RETRY
        return None

    plugins.add("a", SimpleNamespace(mq_step=sees("a", log)))
    plugins.add("b", SimpleNamespace(mq_step=pauses))
    assert owner.dispatcher(plugins).hook("mq_step").run(owner.Message()) is CONTINUE
    assert log == ["a"]


def test_its_context_and_timers_live(owner):
    life: list[str] = []
    plugin = SimpleNamespace(
        mq_context_initialize=lambda context: life.append("in"),
        mq_context_cleanup=lambda context: life.append("out"),
        mq_step=lambda context, message: None,
    )
    plugins = owner.plugins({"a": plugin})
    owner.dispatcher(plugins)
    plugins.pause("a")
    owner.turn()
    plugins.resume("a")
    owner.turn()
    assert life == ["in"]


def test_of_what_is_not_there_and_twice():
    plugins = Plugins(hooks=HOOKS)
    plugins.add("10-quota", SimpleNamespace(mq_step=lambda context, message: None))
    for change in (plugins.pause, plugins.resume):
        with pytest.raises(PluginError, match="no plugin is named '10-qouta'; the nearest name is 10-quota"):
            change("10-qouta")
    plugins.resume("10-quota")
    plugins.pause("10-quota")
    plugins.pause("10-quota")
    assert plugins.paused == {"10-quota"}
    plugins.resume("10-quota")
    assert plugins.paused == set()
    plugins.close()
    with pytest.raises(MqError, match="closed"):
        plugins.pause("10-quota")


def test_over_a_reload_and_a_removal(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.py").write_text("def mq_step(context, message): pass\n")
    with Plugins(tmp_path, hooks=HOOKS) as plugins:
        plugins.pause("a")
        plugins.pause("b")
        (tmp_path / "b.py").unlink()
        plugins.reload()
        assert (plugins.order("mq_step"), plugins.paused) == ([], {"a"})
        (tmp_path / "b.py").write_text("def mq_step(context, message): pass\n")
        plugins.reload()  # it is another plugin than the one that was paused
        assert (plugins.order("mq_step"), plugins.paused) == (["b"], {"a"})
        plugins.remove("a")
        assert plugins.paused == set()


def test_a_dispatcher_that_refuses_leaves_it_as_it_was():
    class Refuses:
        def _prepare(self, plugins):
            raise PluginError("no")

    plugins = Plugins(hooks=HOOKS)
    plugins.add("a", SimpleNamespace(mq_step=lambda context, message: None))
    refuses = Refuses()
    with plugins._attach(refuses):
        pass
    with pytest.raises(PluginError, match="no"):
        plugins.pause("a")
    assert (plugins.order("mq_step"), plugins.paused) == (["a"], set())
    plugins._detach(refuses)
    plugins.close()


def test_from_another_thread(uvloop_owner):
    """It reaches the dispatcher in a later tick, as every change of another thread does."""
    owner, log = uvloop_owner, []
    plugins = owner.plugins({"a": sees("a", log)})
    step = owner.dispatcher(plugins).hook("mq_step")
    thread = threading.Thread(target=plugins.pause, args=("a",))
    thread.start()
    thread.join()
    owner.turn()
    assert step.run(owner.Message()) is CONTINUE
    assert log == []


def test_a_plugin_cannot_pause_in_a_change():
    plugins = Plugins(hooks=HOOKS)
    plugins.add("a", SimpleNamespace())
    with pytest.raises(PluginError, match="cannot change the set of plugins"):
        plugins.add("b", SimpleNamespace(mq_initialize=lambda: plugins.pause("a")))
    plugins.close()


def test_a_dispatcher_that_is_made_while_one_is_paused(uvloop_owner):
    owner, log = uvloop_owner, []
    plugins = owner.plugins({"a": sees("a", log)})
    plugins.pause("a")
    assert owner.dispatcher(plugins).hook("mq_step").run(owner.Message()) is CONTINUE
    assert log == []


def test_native_plugins(uvloop_owner, puppet):
    """Also in the chains that run without the GIL."""
    from native_tools import start

    called = []
    puppet.step = lambda context, connection, message: called.append(message) is not None
    dispatcher = start(uvloop_owner, [puppet])
    step, plugins = dispatcher.hook("mq_step"), dispatcher.plugins
    assert step.run_many([uvloop_owner.Message() for _ in range(3)]) == [CONTINUE] * 3
    plugins.pause("20-puppet")
    assert step.run_many([uvloop_owner.Message() for _ in range(3)]) == [CONTINUE] * 3
    assert len(called) == 3
    plugins.resume("20-puppet")
    assert step.run_many([uvloop_owner.Message() for _ in range(3)]) == [CONTINUE] * 3
    assert len(called) == 6
