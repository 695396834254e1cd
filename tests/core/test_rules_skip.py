"""Rule 5: where `skip_others` was called, continue and retry are the same as complete when control goes back."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from rules_tools import BACK, give, in_thread

import mqcore

OUTCOMES = {"continue_": mqcore.COMPLETE, "complete": mqcore.COMPLETE, "retry": mqcore.COMPLETE, "fail": mqcore.FAIL}


class Plugins:
    """`a`, which does what the test says; and `b`, which must not be called."""

    def __init__(self, engine, step, **config):
        self.called = []
        self.contexts = []
        self.dispatcher = engine.start(
            {"a": SimpleNamespace(mq_step=step, mq_context_initialize=self.contexts.append),
             "b": lambda context, message: self.called.append(message)},
            **config,
        )
        self.hook = self.dispatcher.hook("mq_step")

    @property
    def context(self):
        return self.contexts[-1]


@pytest.mark.parametrize("verdict", [False, None, mqcore.CONTINUE, mqcore.COMPLETE, mqcore.RETRY])
def test_a_hook_that_returns(engine, verdict):
    plugins = Plugins(engine, lambda context, message: message.skip_others() or verdict)
    message = engine.Message()
    assert plugins.hook.run(message) is mqcore.COMPLETE
    assert (plugins.called, message.retries) == ([], 0)


def test_a_hook_that_raises_fails(engine):
    def step(context, message):
        message.skip_others()
        raise ValueError

    assert Plugins(engine, step).hook.run(engine.Message()) is mqcore.FAIL


def test_a_hook_that_raises_and_is_forgiven_has_decided(engine):
    def step(context, message):
        message.skip_others()
        raise ValueError

    plugins = Plugins(engine, step, config={"a": {"on_error": "continue"}})
    assert plugins.hook.run(engine.Message()) is mqcore.COMPLETE
    assert plugins.called == []


@pytest.mark.parametrize("thread", [False, True])
@pytest.mark.parametrize("what", BACK)
@pytest.mark.parametrize("when", ["in the hook", "while it holds", "after giving back"])
def test_a_hook_that_holds(engine, when, what, thread):
    outcomes = []

    def step(context, message):
        if when == "in the hook":
            message.skip_others()
        return True

    def let_go():
        if when == "while it holds":
            message.skip_others()
        give(plugins.context, message, what)
        if when == "after giving back":
            message.skip_others()

    plugins = Plugins(engine, step)
    message = engine.Message()
    assert plugins.hook.run(message, done=lambda message, outcome: outcomes.append(outcome)) is None
    in_thread(let_go) if thread else let_go()
    engine.run_until(lambda: outcomes)
    assert (outcomes, plugins.called) == ([OUTCOMES[what]], [])


@pytest.mark.parametrize("verdict", [True, False])
@pytest.mark.parametrize("first", [True, False])
def test_an_early_give_back(engine, first, verdict):
    outcomes = []

    def step(context, message):
        if first:
            message.skip_others()
        context.continue_(message)
        if not first:
            message.skip_others()
        return verdict

    plugins = Plugins(engine, step)
    outcome = plugins.hook.run(engine.Message(), done=lambda message, outcome: outcomes.append(outcome))
    engine.run_until(lambda: outcome or outcomes)
    assert [outcome or outcomes[0], plugins.called] == [mqcore.COMPLETE, []]


@pytest.mark.parametrize("sleeps", [0, 1])
@pytest.mark.parametrize("verdict", [False, mqcore.RETRY, mqcore.COMPLETE])
def test_a_coroutine(uvloop_owner, sleeps, verdict):
    async def step(context, message):
        for _ in range(sleeps):
            await asyncio.sleep(0)
        message.skip_others()
        return verdict

    plugins = Plugins(uvloop_owner, step)
    outcome = uvloop_owner.loop.run_until_complete(plugins.hook(uvloop_owner.Message()))
    assert (outcome, plugins.called) == (mqcore.COMPLETE, [])


def test_it_is_for_one_step(engine):
    plugins = Plugins(engine, lambda context, message: message.skip_others() if once and once.pop() else None)
    once, message = [True], engine.Message()
    assert plugins.hook.run(message) is mqcore.COMPLETE
    assert plugins.hook.run(message) is mqcore.CONTINUE
    assert plugins.called == [message]


def test_a_message_in_no_step(engine):
    plugins = Plugins(engine, lambda context, message: False)
    message = engine.Message()
    message.skip_others()
    assert plugins.hook.run(message) is mqcore.CONTINUE
    message.skip_others()
    assert plugins.hook.run(message) is mqcore.CONTINUE
    assert plugins.called == [message, message]


def test_a_message_that_waits_in_run_many(engine):
    """It is in no plugin's hands yet."""
    plugins = Plugins(engine, lambda context, message: second.skip_others() if message is first else False)
    first, second = engine.Message(), engine.Message()
    assert plugins.hook.run_many([first, second]) == [mqcore.CONTINUE, mqcore.CONTINUE]
    assert plugins.called == [first, second]


def test_a_failing_step_is_no_step_of_the_next(engine):
    """What ended it otherwise forgets it."""
    plugins = Plugins(engine, lambda context, message: bool(holding))
    holding, message = [1], engine.Message()
    plugins.hook.run(message)
    message.skip_others()
    plugins.dispatcher.cancel(message)
    holding.clear()
    assert plugins.hook.run(message) is mqcore.CONTINUE
    assert plugins.called == [message]
