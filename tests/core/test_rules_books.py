"""Rules 16 to 20, as far as a dispatcher has a part in them: the books, the life of contexts, reload."""

from __future__ import annotations

import os
import time
from types import SimpleNamespace

import pytest
from loop_tools import Lender, borrow
from owners import STEP, assert_conserved

import mqcore
from mqcore.stats import HOLD_TIMES


class Lives:
    """A plugin that notes what is called of it in `trace`."""

    def __init__(self, trace, name, verdict=False):
        self.trace, self.name, self.verdict = trace, name, verdict
        self.context = None

    def mq_initialize(self):
        self.trace.append((self.name, "initialize"))

    def mq_cleanup(self):
        self.trace.append((self.name, "cleanup"))

    def mq_context_initialize(self, context):
        self.trace.append((self.name, "context_initialize"))
        self.context = context

    def mq_context_cleanup(self, context):
        assert context is self.context
        self.trace.append((self.name, "context_cleanup"))

    def mq_step(self, context, message):
        self.trace.append((self.name, "step"))
        return self.verdict


def books(dispatcher):
    s = dispatcher.stats()
    return (s.entered, s.continued, s.completed, s.failed, s.cancelled, s.held, s.running)


# Rule 16


def test_rule_16_every_step_is_in_one_place_at_every_moment(engine):
    """Entered, continued, completed, failed, cancelled, held, running: at each moment of the steps of four messages."""
    seen = []
    holder = Lender()

    def look(context, message):
        seen.append(books(dispatcher))
        assert_conserved(dispatcher)
        return message.data.get("verdict", False)

    def done(message, outcome):
        seen.append(books(dispatcher))
        assert_conserved(dispatcher)

    dispatcher = engine.start({"a": look, "b": holder, "c": look})
    step = dispatcher.hook("mq_step")
    assert books(dispatcher) == (0, 0, 0, 0, 0, 0, 0)
    completes, first, second = engine.Message(), engine.Message(), engine.Message()
    completes.data["verdict"] = mqcore.COMPLETE
    step.run(completes, done=done)
    assert books(dispatcher) == (1, 0, 1, 0, 0, 0, 0)
    step.run_many([first, second], done=done)
    assert books(dispatcher) == (3, 0, 1, 0, 0, 2, 0)
    holder.context.continue_(first)
    assert books(dispatcher) == (3, 0, 1, 0, 0, 1, 1)
    engine.run_until(lambda: dispatcher.stats().continued == 1)
    dispatcher.cancel(second)
    assert books(dispatcher) == (3, 1, 1, 0, 1, 0, 0)
    assert seen == [
        (1, 0, 0, 0, 0, 0, 1),  # the hook of the one that completes
        (2, 0, 1, 0, 0, 0, 1),  # of the first
        (3, 0, 1, 0, 0, 1, 1),  # of the second
        (3, 0, 1, 0, 0, 1, 1),  # of the first again, by the last plugin
        (3, 1, 1, 0, 0, 1, 0),  # its done
        (3, 1, 1, 0, 1, 0, 0),  # the done of the second
    ]


def test_rule_16_nested_runs(engine):
    def hook(context, message):
        if message.data.get("outer"):
            for _ in range(3):
                step.run(engine.Message())
            assert books(dispatcher) == (4, 3, 0, 0, 0, 0, 1)
        return False

    dispatcher = engine.start({"a": hook})
    step = dispatcher.hook("mq_step")
    message = engine.Message()
    message.data["outer"] = True
    step.run(message)
    assert books(dispatcher) == (4, 4, 0, 0, 0, 0, 0)


def test_rule_16_per_plugin_and_hook(engine):
    plans = {"pass": [False], "hold": [True], "retry": [mqcore.RETRY], "complete": [mqcore.COMPLETE], "bad": ["bad"]}
    held = []

    def hook(context, message):
        plan = message.data["plan"]
        verdict = plan.pop(0) if plan else False
        if verdict is True:
            held.append((context, message))
        return verdict

    dispatcher = engine.start({"a": hook, "b": lambda context, message: False})
    for plan in plans.values():
        message = engine.Message()
        message.data["plan"] = list(plan)
        dispatcher.hook("mq_step").run(message, done=engine.done)
    ((context, message),) = held
    context.continue_(message)
    engine.run_until(lambda: engine.finished)
    with pytest.raises(mqcore.NotHeld):
        context.continue_(message)
    rows = {row.plugin: row for row in dispatcher.stats().hooks if row.hook == "mq_step"}
    a, b = rows["a"], rows["b"]
    assert (a.calls, a.holds, a.failures, a.refused) == (6, 1, 1, 1)
    assert (b.calls, b.holds, b.failures, b.refused) == (3, 0, 0, 0)
    for row in (a, b):
        assert (row.timeouts, row.abandoned) == (0, 0)
        assert row.seconds >= 0 and row.longest >= 0 and row.held_seconds >= 0


def row_of(dispatcher, plugin):
    return next(row for row in dispatcher.stats().hooks if (row.plugin, row.hook) == (plugin, "mq_step"))


def test_rule_16_held_now_and_hold_times(engine):
    """Whatever ends a hold, it is held no more and counted once by how long it took."""
    holder, other = Lender(), Lender()
    dispatcher = engine.start({"a": holder, "b": other}, hold_timeout=0)
    messages = [engine.Message() for _ in range(4)]
    for message in messages:
        dispatcher.hook("mq_step").run(message, done=engine.done)
    row = row_of(dispatcher, "a")
    assert (row.held, row.holds, sum(row.hold_times)) == (4, 4, 0)
    holder.context.complete(messages[0])
    assert row_of(dispatcher, "a").held == 3
    engine.run_until(lambda: len(engine.finished) == 1)
    holder.context.continue_(messages[1])
    engine.run_until(lambda: row_of(dispatcher, "b").held)
    dispatcher.cancel(messages[2])
    row = row_of(dispatcher, "a")
    assert (row.held, sum(row.hold_times)) == (1, 3)
    assert row_of(dispatcher, "b").held == 1
    dispatcher.close()
    row = row_of(dispatcher, "a")
    assert (row.held, row.holds, sum(row.hold_times)) == (0, 4, 4)


def test_hold_times_have_the_bounds_that_they_say(owner):
    dispatcher, context = borrow(owner)
    message = mqcore.Message()
    dispatcher.hook("mq_step").run(message, done=owner.done)
    time.sleep(0.0021)
    context.continue_(message)
    owner.run_until(lambda: owner.finished)
    row = row_of(dispatcher, "lender")
    (place,) = [place for place, count in enumerate(row.hold_times) if count]
    bounds = (0.0, *HOLD_TIMES, float("inf"))
    assert len(row.hold_times) == len(HOLD_TIMES) + 1
    assert bounds[place] < row.held_seconds <= bounds[place + 1]


def test_the_oldest_of_each_that_holds(owner):
    """As far as it is among the oldest that are looked at."""
    dispatcher = owner.start({"a": lambda context, message: message.payload == "a", "b": Lender()})
    messages = [mqcore.Message(payload) for payload in "aab"]
    for message in messages:
        dispatcher.hook("mq_step").run(message, done=owner.done)
    oldest = dispatcher.oldest_held()
    assert list(oldest) == [("a", "mq_step"), ("b", "mq_step")]
    assert oldest["a", "mq_step"] >= oldest["b", "mq_step"] >= 0
    assert list(dispatcher.oldest_held(2)) == [("a", "mq_step")]
    assert dispatcher.oldest_held(0) == {}
    with pytest.raises(ValueError, match="among is a number of messages"):
        dispatcher.oldest_held(-1)
    dispatcher.close()
    assert dispatcher.oldest_held() == {}


def test_rule_16_stats_survive_close(engine):
    dispatcher = engine.start({"a": lambda context, message: False})
    dispatcher.hook("mq_step").run(engine.Message())
    dispatcher.close()
    assert books(dispatcher) == (1, 1, 0, 0, 0, 0, 0)
    assert dispatcher.held() == []


# Rule 17


def test_rule_17_contexts_begin_and_end_with_the_dispatcher(engine):
    trace = []
    plugins = engine.plugins({"a": Lives(trace, "a"), "b": Lives(trace, "b")})
    assert trace == [("a", "initialize"), ("b", "initialize")]
    trace.clear()
    dispatcher = engine.dispatcher(plugins)
    assert trace == [("a", "context_initialize"), ("b", "context_initialize")]
    trace.clear()
    dispatcher.close()
    assert sorted(trace) == [("a", "context_cleanup"), ("b", "context_cleanup")]
    dispatcher.close()
    assert len(trace) == 2
    trace.clear()
    plugins.close()
    assert sorted(trace) == [("a", "cleanup"), ("b", "cleanup")]


def test_rule_17_each_dispatcher_has_contexts_of_its_own(engine):
    contexts = []
    plugin = SimpleNamespace(mq_context_initialize=contexts.append, mq_step=lambda context, message: False)
    plugins = engine.plugins({"a": plugin})
    first, second = engine.dispatcher(plugins), engine.dispatcher(plugins)
    assert len(contexts) == 2 and contexts[0] is not contexts[1]
    assert [context.plugin.name for context in contexts] == ["a", "a"]
    first.close()
    assert second.hook("mq_step").run(engine.Message()) is mqcore.CONTINUE


def test_rule_17_a_context_that_fails_to_begin_names_the_plugin_and_leaves_nothing(engine):
    trace = []

    class Bad(Lives):
        def mq_context_initialize(self, context):
            raise ValueError("no context")

    plugins = engine.plugins({"10": Lives(trace, "10"), "20-bad": Bad(trace, "20-bad"), "30": Lives(trace, "30")})
    trace.clear()
    with pytest.raises(mqcore.PluginError, match="20-bad") as caught:
        engine.dispatcher(plugins)
    assert "no context" in str(caught.value) or "no context" in str(caught.value.__cause__)
    begun = [name for name, what in trace if what == "context_initialize"]
    assert sorted(name for name, what in trace if what == "context_cleanup") == sorted(begun)
    plugins.remove("20-bad")
    dispatcher = engine.dispatcher(plugins)
    assert dispatcher.hook("mq_step").run(engine.Message()) is mqcore.CONTINUE


def test_rule_17_adding_a_plugin_whose_context_fails_leaves_everything_as_it_was(engine):
    trace = []

    class Bad(Lives):
        def mq_context_initialize(self, context):
            raise ValueError("no context")

    plugins = engine.plugins({"10": Lives(trace, "10")})
    step = engine.dispatcher(plugins).hook("mq_step")
    before = plugins.snapshot
    with pytest.raises(mqcore.PluginError, match="20-bad"):
        plugins.add("20-bad", Bad(trace, "20-bad"))
    assert plugins.snapshot == before
    trace.clear()
    assert step.run(engine.Message()) is mqcore.CONTINUE
    assert trace == [("10", "step")]


def test_rule_17_a_cleanup_that_raises_is_logged_and_the_others_are_called(engine, caplog):
    trace = []

    class Bad(Lives):
        def mq_context_cleanup(self, context):
            super().mq_context_cleanup(context)
            raise ValueError("no end")

    dispatcher = engine.start({"10": Lives(trace, "10"), "20-bad": Bad(trace, "20-bad"), "30": Lives(trace, "30")})
    trace.clear()
    dispatcher.close()
    assert sorted(name for name, what in trace if what == "context_cleanup") == ["10", "20-bad", "30"]
    assert "20-bad" in caplog.text and "no end" in caplog.text


def test_rule_17_with_a_dispatcher(engine):
    trace = []
    with engine.start({"a": Lives(trace, "a")}) as dispatcher:
        assert dispatcher.hook("mq_step").run(engine.Message()) is mqcore.CONTINUE
    assert trace[-1] == ("a", "context_cleanup")
    with pytest.raises(mqcore.DispatcherClosed):
        dispatcher.hook("mq_step").run(engine.Message())


# Closing


def test_close_ends_what_is_held_and_what_is_queued(engine):
    trace = []
    holder = Lives(trace, "a", verdict=True)
    dispatcher = engine.start({"a": holder, "b": Lives(trace, "b")})
    step = dispatcher.hook("mq_step")
    messages = [engine.Message() for _ in range(4)]
    step.run_many(messages, done=engine.done)
    trace.clear()
    for message in messages[2:]:
        holder.context.continue_(message)
    dispatcher.close()
    assert sorted(map(id, messages)) == sorted(id(message) for message, _ in engine.finished)
    assert {outcome for _, outcome in engine.finished} == {mqcore.FAIL}
    assert {type(message.error) for message in messages} == {mqcore.DispatcherClosed}
    assert sorted(trace) == [("a", "context_cleanup"), ("b", "context_cleanup")]
    dispatcher.close()
    for call in (
        lambda: step.run(engine.Message()),
        lambda: step.run_many([engine.Message()]),
    ):
        with pytest.raises(mqcore.DispatcherClosed):
            call()
    with pytest.raises((mqcore.DispatcherClosed, mqcore.NotHeld)):
        holder.context.continue_(messages[0])
    engine.turn()
    assert len(engine.finished) == 4


def test_close_from_within_a_hook(engine):
    trace = []

    def hook(context, message):
        dispatcher.close()
        trace.append("a")
        return False

    dispatcher = engine.start({"a": hook, "b": lambda context, message: trace.append("b")})
    message = engine.Message()
    assert dispatcher.hook("mq_step").run(message, done=engine.done) is mqcore.FAIL
    assert isinstance(message.error, mqcore.DispatcherClosed)
    assert trace == ["a"]
    assert engine.finished == []


def test_close_from_within_done(engine):
    holder = Lender()
    dispatcher = engine.start({"a": holder})
    messages = [engine.Message() for _ in range(5)]

    def done(message, outcome):
        engine.done(message, outcome)
        dispatcher.close()

    dispatcher.hook("mq_step").run_many(messages, done=done)
    for message in messages[:3]:
        holder.context.complete(message)
    engine.run_until(lambda: len(engine.finished) == 5)
    outcomes = [outcome for _, outcome in engine.finished]
    assert outcomes == [mqcore.COMPLETE] + [mqcore.FAIL] * 4
    assert sorted(id(message) for message, _ in engine.finished) == sorted(map(id, messages))


def test_a_hook_of_a_closed_dispatcher_cannot_be_run_from_done(engine):
    refused = []

    def done(message, outcome):
        try:
            step.run(message)
        except mqcore.DispatcherClosed as error:
            refused.append(error)

    dispatcher = engine.start({"a": Lender()})
    step = dispatcher.hook("mq_step")
    messages = [engine.Message() for _ in range(2)]
    step.run_many(messages, done=done)
    dispatcher.close()
    assert len(refused) == 2


# Rule 18


def test_rule_18_a_removed_plugin_ends_when_its_last_hold_has_ended(engine):
    trace = []
    old = Lives(trace, "b", verdict=True)
    plugins = engine.plugins({"a": Lives(trace, "a"), "b": old, "c": Lives(trace, "c")})
    step = engine.dispatcher(plugins).hook("mq_step")
    first, second = engine.Message(), engine.Message()
    step.run_many([first, second], done=engine.done)
    trace.clear()
    plugins.remove("b")
    assert step.run(engine.Message()) is mqcore.CONTINUE
    assert trace == [("a", "step"), ("c", "step")]
    trace.clear()
    old.context.continue_(first)
    engine.run_until(lambda: len(engine.finished) == 1)
    assert trace == [("c", "step")]
    old.context.complete(second)
    engine.run_until(lambda: len(engine.finished) == 2)
    engine.run_until(lambda: ("b", "cleanup") in trace)
    assert trace == [("c", "step"), ("b", "context_cleanup"), ("b", "cleanup")]


def test_rule_18_a_plugin_that_is_removed_and_holds_nothing_ends_at_once(engine):
    trace = []
    plugins = engine.plugins({"a": Lives(trace, "a"), "b": Lives(trace, "b")})
    dispatcher = engine.dispatcher(plugins)
    assert dispatcher.hook("mq_step").run(engine.Message()) is mqcore.CONTINUE
    trace.clear()
    plugins.remove("a")
    engine.run_until(lambda: len(trace) == 2)
    assert trace == [("a", "context_cleanup"), ("a", "cleanup")]


PLUGIN = """
def mq_step(context, message):
    message.data.setdefault("trace", []).append({what!r})
    message.data["context"] = context
    return message.data.get("hold", False)
"""


def test_rule_18_reload_swaps_chains_between_steps(engine, tmp_path):
    directory = tmp_path / "plugins"
    directory.mkdir(mode=0o755)
    write(directory / "10-a.py", PLUGIN.format(what="old a"))
    write(directory / "20-b.py", PLUGIN.format(what="old b"))
    plugins = engine.plugins({})
    plugins.load(directory)
    plugins.add("30-object", SimpleNamespace(mq_step=lambda context, message: message.data["trace"].append("object")))
    dispatcher = engine.dispatcher(plugins)
    step = dispatcher.hook("mq_step")
    held = engine.Message()
    held.data["hold"] = True
    step.run(held, done=engine.done)
    write(directory / "10-a.py", PLUGIN.format(what="new a"))
    (directory / "20-b.py").unlink()
    write(directory / "25-c.py", PLUGIN.format(what="new c"))
    plugins.reload()
    message = engine.Message()
    assert step.run(message) is mqcore.CONTINUE
    assert message.data["trace"] == ["new a", "new c", "object"]
    held.data["hold"] = False
    held.data["context"].continue_(held)
    engine.run_until(lambda: engine.finished)
    assert engine.finished == [(held, mqcore.CONTINUE)]
    assert held.data["trace"] == ["old a", "old b", "object"]
    assert dispatcher.stats().failed == 0


@pytest.mark.parametrize("text", ["def mq_step(:\n", "raise ValueError\n", "def mq_setp(context, message): pass\n"])
def test_rule_18_a_reload_that_fails_leaves_everything_as_it_was(engine, tmp_path, text):
    directory = tmp_path / "plugins"
    directory.mkdir(mode=0o755)
    write(directory / "10-a.py", PLUGIN.format(what="old a"))
    write(directory / "20-b.py", PLUGIN.format(what="old b"))
    plugins = engine.plugins({})
    plugins.load(directory)
    step = engine.dispatcher(plugins).hook("mq_step")
    held = engine.Message()
    held.data["hold"] = True
    step.run(held, done=engine.done)
    write(directory / "10-a.py", PLUGIN.format(what="new a"))
    write(directory / "20-b.py", text)
    before = plugins.snapshot
    with pytest.raises(mqcore.PluginError, match=r"20-b"):
        plugins.reload()
    assert plugins.snapshot == before
    message = engine.Message()
    assert step.run(message) is mqcore.CONTINUE
    assert message.data["trace"] == ["old a", "old b"]
    held.data["context"].retry(held)
    held.data["hold"] = False
    engine.run_until(lambda: engine.finished)
    assert held.data["trace"] == ["old a", "old a", "old b"]


def test_rule_18_of_two_dispatchers_either_both_change_or_none(engine):
    contexts = []

    class Second:
        """Its second context cannot begin."""

        def mq_context_initialize(self, context):
            contexts.append("begins")
            if len(contexts) == 2:
                raise ValueError

        def mq_context_cleanup(self, context):
            contexts.append("ends")

        def mq_step(self, context, message):
            return mqcore.COMPLETE

    plugins = engine.plugins({})
    steps = [engine.dispatcher(plugins).hook("mq_step") for _ in range(2)]
    with pytest.raises(mqcore.PluginError):
        plugins.add("a", Second())
    assert contexts == ["begins", "begins", "ends"]
    assert [step.run(engine.Message()) for step in steps] == [mqcore.CONTINUE] * 2


# Rules 19 and 20


def test_rule_19_an_unknown_hook_name_is_an_error_that_knows_better(engine):
    trace = []
    plugins = engine.plugins({"10": Lives(trace, "10")})
    step = engine.dispatcher(plugins).hook("mq_step")
    with pytest.raises(mqcore.PluginError, match=r"mq_setp(.|\n)*mq_step"):
        plugins.add("20", SimpleNamespace(mq_setp=lambda context, message: False))
    with pytest.raises(mqcore.PluginError, match="mq_step"):
        plugins.add("20", SimpleNamespace(mq_step=lambda context: False))
    with pytest.raises(mqcore.PluginError, match="mq_other"):
        plugins.add("20", SimpleNamespace(mq_other=lambda context, message: False))
    trace.clear()
    assert step.run(engine.Message()) is mqcore.CONTINUE
    assert trace == [("10", "step")]


@pytest.mark.parametrize("what", ["file", "directory"])
def test_rule_20_a_plugin_that_everyone_may_write_is_refused(tmp_path, what):
    directory = tmp_path / "plugins"
    directory.mkdir()
    os.chmod(directory, 0o755)
    file = directory / "10-a.py"
    write(file, PLUGIN.format(what="a"))
    os.chmod(file, 0o664)
    mqcore.Plugins(directory, hooks=[STEP]).close()  # group-writable is fine
    changed = file if what == "file" else directory
    os.chmod(changed, 0o777)
    with pytest.raises(mqcore.PluginError, match="777"):
        mqcore.Plugins(directory, hooks=[STEP])
    mqcore.Plugins(directory, hooks=[STEP], trust_writable=True).close()


def write(path, text):
    path.write_text(text)
    os.chmod(path, 0o644)
