"""Rules 1 to 5: who is called, in which order, and what a verdict means."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

import mqcore


def say(trace, name, verdict=False):
    """A hook that notes its name and returns the verdict."""

    def hook(context, message):
        trace.append(name)
        return verdict

    return hook


def test_rule_01_byte_order_of_names(engine):
    trace = []
    names = ["b", "10-b", "a", "2-c", "B", "é", "10-a", "_", "zz", "1", "10", "𝔸", "~"]
    dispatcher = engine.start({name: say(trace, name) for name in names})
    assert dispatcher.hook("mq_step").run(engine.Message()) is mqcore.CONTINUE
    assert trace == sorted(names, key=str.encode)


def test_rule_01_a_plugin_that_comes_later_takes_its_place_in_the_order(engine):
    trace = []
    plugins = engine.plugins({"10": say(trace, "10"), "30": say(trace, "30")})
    step = engine.dispatcher(plugins).hook("mq_step")
    plugins.add("20", SimpleNamespace(mq_step=say(trace, "20")))
    plugins.add("05", SimpleNamespace(mq_step=say(trace, "05")))
    assert step.run(engine.Message()) is mqcore.CONTINUE
    assert trace == ["05", "10", "20", "30"]
    assert plugins.order("mq_step") == trace


def test_rule_01_two_plugins_of_one_name_are_an_error(engine):
    trace = []
    plugins = engine.plugins({"10": say(trace, "first")})
    step = engine.dispatcher(plugins).hook("mq_step")
    with pytest.raises(mqcore.PluginError, match="10"):
        plugins.add("10", SimpleNamespace(mq_step=say(trace, "second")))
    step.run(engine.Message())
    assert trace == ["first"]


def test_rule_02_only_plugins_with_the_hook_are_in_the_chain(engine):
    trace = []
    hooks = {f"{i:04}": SimpleNamespace(mq_other=lambda context, message, extra: True) for i in range(200)}
    for name in ("0000", "0100", "0199"):
        hooks[name] = say(trace, name)
    dispatcher = engine.start(hooks)
    assert dispatcher.hook("mq_step").run(engine.Message()) is mqcore.CONTINUE
    assert trace == ["0000", "0100", "0199"]
    rows = [row for row in dispatcher.stats().hooks if row.hook == "mq_step"]
    assert [(row.plugin, row.calls) for row in rows] == [(name, 1) for name in trace]


def test_rule_02_an_empty_chain_is_continue(engine):
    dispatcher = engine.start({})
    assert dispatcher.hook("mq_step").run(engine.Message(), done=engine.done) is mqcore.CONTINUE
    assert dispatcher.hook("mq_other").run_many([engine.Message()], 1) == [mqcore.CONTINUE]
    engine.turn()
    assert engine.finished == []


def test_a_hook_that_was_not_declared_has_no_step(engine):
    dispatcher = engine.start({})
    with pytest.raises((mqcore.MqError, LookupError), match="mq_unheard_of"):
        dispatcher.hook("mq_unheard_of")


@pytest.mark.parametrize("verdict", [False, None, mqcore.CONTINUE], ids=str)
def test_rule_03_false_goes_on_to_the_next(engine, verdict):
    trace = []
    dispatcher = engine.start({name: say(trace, name, verdict) for name in "abc"})
    message = engine.Message()
    assert dispatcher.hook("mq_step").run(message, done=engine.done) is mqcore.CONTINUE
    assert trace == ["a", "b", "c"]
    assert message.error is None and message.holder is None
    engine.turn()
    assert engine.finished == []


def test_rule_03_run_many_in_order(engine):
    trace = []

    def hook(context, message):
        trace.append((context.plugin.name, message.number))
        return message.number % 3 == 2 or (mqcore.COMPLETE if message.number % 3 else False)

    dispatcher = engine.start({"a": hook, "b": hook})
    messages = [numbered(engine, i) for i in range(6)]
    outcomes = dispatcher.hook("mq_step").run_many(messages, done=engine.done)
    assert outcomes == [mqcore.CONTINUE, mqcore.COMPLETE, None] * 2
    assert trace == [("a", 0), ("b", 0), ("a", 1), ("a", 2), ("a", 3), ("b", 3), ("a", 4), ("a", 5)]


def numbered(engine, number):
    class Numbered(engine.Message):
        pass

    message = Numbered()
    message.number = number
    return message


def test_run_many_checks_all_messages_before_it_starts_any(engine):
    trace = []
    dispatcher = engine.start({"a": say(trace, "a", True)})
    step = dispatcher.hook("mq_step")
    held = engine.Message()
    step.run(held)
    for bad, error in ((held, mqcore.MqError), (None, TypeError), ("x", TypeError)):
        with pytest.raises(error):
            step.run_many([engine.Message(), bad])
    assert trace == ["a"]
    assert dispatcher.stats().entered == 1


def test_run_takes_messages_only(engine):
    step = engine.start({}).hook("mq_step")
    for bad in (None, "x", object(), engine.Message):
        with pytest.raises(TypeError):
            step.run(bad)


@pytest.mark.parametrize("by", ["message", "hold"])
def test_rule_04_true_holds(engine, by):
    trace = []
    holds = []

    def hook(context, message):
        trace.append("b")
        if by == "message":
            return True
        holds.append(context.hold(message))
        return holds[0]

    dispatcher = engine.start({"a": say(trace, "a"), "b": hook, "c": say(trace, "c")})
    message = engine.Message()
    assert dispatcher.hook("mq_step").run(message, done=engine.done) is None
    engine.turn()
    assert trace == ["a", "b"]
    assert message.holder == "b"
    assert dispatcher.stats().held == 1
    (held,) = dispatcher.held()
    assert (held.message, held.plugin, held.hook) == (message, "b", "mq_step")
    assert held.age >= 0
    assert engine.finished == []


@pytest.mark.parametrize("by", ["message", "hold"])
@pytest.mark.parametrize(
    ("what", "outcome", "calls"),
    [
        ("continue_", mqcore.CONTINUE, ["a", "b", "c"]),
        ("complete", mqcore.COMPLETE, ["a", "b"]),
        ("retry", mqcore.CONTINUE, ["a", "b", "a", "b", "c"]),
        ("fail", mqcore.FAIL, ["a", "b"]),
    ],
)
def test_rule_05_giving_back(engine, by, what, outcome, calls):
    trace = []
    givers = []

    def hook(context, message):
        trace.append("b")
        if givers:
            return False
        givers.append(context.hold(message) if by == "hold" else context)
        return givers[0] if by == "hold" else True

    dispatcher = engine.start({"a": say(trace, "a"), "b": hook, "c": say(trace, "c")})
    message = engine.Message()
    assert dispatcher.hook("mq_step").run(message, done=engine.done) is None
    error = ValueError("no")
    arguments = ([message] if by == "message" else []) + ([error] if what == "fail" else [])
    getattr(givers[0], what)(*arguments)
    assert message.holder is None
    engine.run_until(lambda: engine.finished)
    assert engine.finished == [(message, outcome)]
    assert trace == calls
    assert message.retries == (what == "retry")
    assert message.error is (error if what == "fail" else None)


def test_rule_05_verdicts_complete_and_retry(engine):
    trace = []

    def hook(context, message):
        trace.append("b")
        return mqcore.RETRY if message.retries < 2 else mqcore.COMPLETE

    dispatcher = engine.start({"a": say(trace, "a"), "b": hook, "c": say(trace, "c")})
    message = engine.Message()
    assert dispatcher.hook("mq_step").run(message, done=engine.done) is mqcore.COMPLETE
    assert trace == ["a", "b"] * 3
    assert message.retries == 2
    engine.turn()
    assert engine.finished == []


@pytest.mark.parametrize("what", ["continue_", "retry"])
def test_rule_05_continue_keeps_the_chain_and_retry_takes_the_new_one(engine, what):
    trace = []
    contexts = []

    def hook(context, message):
        trace.append("b")
        contexts.append(context)
        return True

    plugins = engine.plugins({"a": say(trace, "a"), "b": hook, "c": say(trace, "c")})
    step = engine.dispatcher(plugins).hook("mq_step")
    message = engine.Message()
    step.run(message, done=engine.done)
    plugins.remove("b")
    plugins.remove("c")
    plugins.add("d", SimpleNamespace(mq_step=say(trace, "d")))
    getattr(contexts[0], what)(message)
    engine.run_until(lambda: engine.finished)
    assert trace == ["a", "b", *(["c"] if what == "continue_" else ["a", "d"])]
    trace.clear()
    assert step.run(message) is mqcore.CONTINUE
    assert trace == ["a", "d"]


def test_rule_05_a_step_that_runs_keeps_its_chain_too(engine):
    trace = []

    def hook(context, message):
        trace.append("a")
        plugins.remove("c")
        plugins.add("b", SimpleNamespace(mq_step=say(trace, "b")))
        return False

    plugins = engine.plugins({"a": hook, "c": say(trace, "c")})
    step = engine.dispatcher(plugins).hook("mq_step")
    assert step.run(engine.Message()) is mqcore.CONTINUE
    assert trace == ["a", "c"]


def test_extra_arguments_reach_every_plugin_however_it_is_reached(engine):
    trace = []
    contexts = {}

    class Holds:
        @staticmethod
        def mq_other(context, message, extra):
            trace.append((context.plugin.name, extra))
            contexts[context.plugin.name] = context
            return True

    dispatcher = engine.start({"a": Holds, "b": Holds})
    extra, message = object(), engine.Message()
    dispatcher.hook("mq_other").run(message, extra, done=engine.done)
    contexts["a"].continue_(message)
    engine.run_until(lambda: message.holder == "b")
    contexts["b"].retry(message)
    engine.run_until(lambda: message.holder == "a")
    contexts["a"].complete(message)
    engine.run_until(lambda: engine.finished)
    assert trace == [("a", extra), ("b", extra), ("a", extra)]


@pytest.mark.parametrize(
    "verdict",
    [0, 1, 0.0, "x", "", b"", [], object(), mqcore.FAIL, mqcore.Outcome, NotImplemented],
    ids=lambda verdict: type(verdict).__name__,
)
def test_any_other_verdict_fails_the_step(engine, verdict):
    trace = []
    dispatcher = engine.start({"10-bad": say(trace, "bad", verdict), "20": say(trace, "20")})
    message = engine.Message()
    assert dispatcher.hook("mq_step").run(message, done=engine.done) is mqcore.FAIL
    assert trace == ["bad"]
    assert isinstance(message.error, TypeError)
    for part in ("10-bad", "mq_step", repr(verdict)):
        assert part in str(message.error)
    engine.turn()
    assert engine.finished == []
    assert dispatcher.stats().failed == 1


@pytest.mark.parametrize("which", ["another message's", "an earlier one", "another plugin's"])
def test_a_hold_that_is_not_this_one_is_no_verdict(engine, which):
    holds = []

    def first(context, message):
        if which == "another plugin's" and not holds:
            holds.append(context.hold(message))
        return False

    def second(context, message):
        if holds:
            return holds[0]
        holds.append(context.hold(message))
        return mqcore.RETRY if which == "an earlier one" else False

    dispatcher = engine.start({"a": first, "b": second})
    step = dispatcher.hook("mq_step")
    message = engine.Message()
    if which == "another message's":
        assert step.run(engine.Message()) is mqcore.CONTINUE
    assert step.run(message) is mqcore.FAIL
    assert isinstance(message.error, TypeError)


def test_a_message_is_in_one_step_at_a_time(engine):
    errors = []

    def hook(context, message):
        try:
            step.run(message)
        except mqcore.MqError as error:
            errors.append(error)
        return True

    dispatcher = engine.start({"a": hook})
    step = dispatcher.hook("mq_step")
    message = engine.Message()
    step.run(message, done=engine.done)
    with pytest.raises(mqcore.MqError, match="step"):
        step.run(message, done=engine.done)
    with pytest.raises(mqcore.MqError):
        dispatcher.hook("mq_other").run(message, 1)
    assert len(errors) == 1
    assert dispatcher.stats().entered == 1
    assert dispatcher.cancel(message)
    assert engine.finished == [(message, mqcore.FAIL)]


def test_a_message_is_in_one_step_at_a_time_over_all_dispatchers(engine):
    first = engine.start({"a": say([], "a", True)})
    second = engine.start({"a": say([], "a", False)})
    message = engine.Message()
    first.hook("mq_step").run(message)
    with pytest.raises(mqcore.MqError):
        second.hook("mq_step").run(message)
    assert second.cancel(message) is False
    assert first.cancel(message) is True
    assert second.hook("mq_step").run(message) is mqcore.CONTINUE


def test_error_and_retries_are_those_of_the_last_step(engine):
    def hook(context, message):
        assert message.error is None
        if message.retries < 1:
            return mqcore.RETRY
        raise ValueError("first time")

    plugins = engine.plugins({"a": hook})
    step = engine.dispatcher(plugins).hook("mq_step")
    message = engine.Message()
    assert step.run(message) is mqcore.FAIL
    assert isinstance(message.error, ValueError) and message.retries == 1
    plugins.remove("a")
    assert step.run(message) is mqcore.CONTINUE
    assert message.error is None and message.retries == 0


def test_data_of_a_message_and_of_a_context(engine):
    seen = []

    def hook(context, message):
        context.data["calls"] = context.data.get("calls", 0) + 1
        message.data[context.plugin.name] = context.data["calls"]
        seen.append(context)
        return False

    dispatcher = engine.start({"a": hook, "b": hook})
    step = dispatcher.hook("mq_step")
    message = engine.Message()
    step.run(message)
    step.run(message)
    assert message.data == {"a": 2, "b": 2}
    assert seen[0] is seen[2] and seen[0] is not seen[1]
    assert engine.Message().data == {}


def test_a_subclass_of_message_has_attributes_and_a_constructor_of_its_own(engine):
    class Mail(engine.Message):
        def __init__(self, sender, *, size=0):
            super().__init__()
            self.sender, self.size = sender, size

    got = []
    dispatcher = engine.start({"a": lambda context, message: got.append((message.sender, message.size))})
    assert dispatcher.hook("mq_step").run(Mail("me", size=3)) is mqcore.CONTINUE
    assert got == [("me", 3)]
