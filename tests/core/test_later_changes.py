"""Rule 18: a change of plugins that another thread makes is taken over in ticks, in portions, and comes between steps."""

from __future__ import annotations

import gc
import threading
import time
from types import SimpleNamespace

import pytest

import mqcore

COUNT = 40


class World:
    """Plugins whose contexts take a while to begin, and what they did."""

    def __init__(self, owner):
        self.owner = owner
        self.begun, self.ended, self.called = [], [], []
        self.dispatcher = owner.start({"0": self.plugin("0", 0)})
        self.plugins = self.dispatcher.plugins
        self.turns = 0

    def plugin(self, name, seconds=0.0005):
        def initialize(context):
            self.begun.append(name)
            until = time.perf_counter() + seconds
            while time.perf_counter() < until:
                pass

        return SimpleNamespace(
            mq_step=lambda context, message: self.called.append(name),
            mq_context_initialize=initialize,
            mq_context_cleanup=lambda context: self.ended.append(name),
        )

    def add(self, *names):
        for name in names:
            self.plugins.add(name, self.plugin(name))

    def add_in_thread(self, *names):
        thread = threading.Thread(target=self.add, args=names)
        thread.start()
        thread.join()

    def turn(self):
        self.turns += 1
        self.owner.spin(wait=False)

    def order(self):
        self.called.clear()
        assert self.dispatcher.hook("mq_step").run(mqcore.Message()) is mqcore.CONTINUE
        return list(self.called)


@pytest.fixture
def world(owner):
    return World(owner)


NAMES = tuple(f"1{number:02}" for number in range(COUNT))


def test_the_loop_has_its_turns_meanwhile_and_steps_the_plugins_of_before(world):
    world.add_in_thread(*NAMES)
    while len(world.order()) == 1:
        world.turn()
    assert world.order() == ["0", *NAMES] == world.begun
    assert world.turns > 5
    assert world.ended == []


def test_another_one_by_the_dispatchers_own_thread_is_in_force_when_it_returns(world):
    world.add_in_thread(*NAMES)
    world.turn()
    assert 1 < len(world.begun) < COUNT
    world.add("2")
    assert world.order() == ["0", *NAMES, "2"] == world.begun
    world.owner.turn()
    assert world.ended == []


def test_another_one_by_another_thread_follows(world):
    world.add_in_thread(*NAMES)
    world.turn()
    world.add_in_thread("2")
    thread = threading.Thread(target=world.plugins.remove, args=(NAMES[0],))
    thread.start()
    thread.join()
    while "2" not in world.order():
        world.turn()
    assert world.order() == ["0", *NAMES[1:], "2"]
    world.owner.run_until(lambda: world.ended)
    assert world.ended == [NAMES[0]]


def test_the_dispatcher_is_closed_meanwhile(world):
    world.add_in_thread(*NAMES)
    world.turn()
    begun = len(world.begun)
    assert 1 < begun < COUNT
    world.dispatcher.close()
    assert sorted(world.ended) == sorted(world.begun) and len(world.begun) == begun
    world.owner.turn()
    world.plugins.remove("0")  # nothing uses it any more


def test_a_plugin_closes_the_dispatcher_meanwhile(world):
    last = world.plugin("2")
    last.mq_context_initialize = lambda context: (world.begun.append("2"), world.dispatcher.close())
    thread = threading.Thread(target=lambda: (world.add(*NAMES[:5]), world.plugins.add("2", last)))
    thread.start()
    thread.join()
    world.owner.run_until(lambda: "2" in world.begun)
    assert sorted(world.ended) == sorted(world.begun) == ["0", *NAMES[:5], "2"]
    (error,) = world.owner.loop_errors
    assert isinstance(error, mqcore.DispatcherClosed)
    world.owner.loop_errors.clear()


def test_a_plugin_fails_meanwhile(world):
    wrong = SimpleNamespace(mq_step=lambda context, message: None, mq_context_initialize=lambda context: 1 / 0)
    thread = threading.Thread(target=lambda: (world.add(*NAMES), world.plugins.add("2", wrong)))
    thread.start()
    thread.join()
    world.owner.run_until(lambda: world.owner.loop_errors)
    assert world.order() == ["0"] and sorted(world.ended) == list(NAMES)
    (error,) = world.owner.loop_errors
    assert isinstance(error, mqcore.PluginError) and "ZeroDivisionError" in str(error)
    world.owner.loop_errors.clear()
    world.plugins.remove("2")
    assert world.order() == ["0", *NAMES]


def test_the_chain_of_a_hook_whose_plugins_did_not_change_stays(owner):
    def chain_of(hook):
        (chain,) = [each for each in gc.get_referents(hook) if type(each).__name__ == "Chain"]
        return chain

    step = SimpleNamespace(mq_step=lambda context, message: None)
    other = SimpleNamespace(mq_other=lambda context, message, extra: None)
    dispatcher = owner.start({"a": step, "b": other})
    hooks = [dispatcher.hook(name) for name in ("mq_step", "mq_other")]
    before = [chain_of(hook) for hook in hooks]
    dispatcher.plugins.add("c", other)
    after = [chain_of(hook) for hook in hooks]
    assert after[0] is before[0] and after[1] is not before[1]
