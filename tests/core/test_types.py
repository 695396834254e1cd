"""The types as a user meets them. mypy --strict checks this file, and the tests check that what it was told is true."""

from __future__ import annotations

import logging
import os
import typing
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from typing import Any, assert_type

import pytest
import uvloop

import mqcore
from mqcore.stats import Held, HookStats, Stats


class Mail(mqcore.Message):
    """A message of a user's own."""

    def __init__(self, text: str) -> None:
        self.text = text


class Plugin:
    """A plugin with full annotations."""

    def __init__(self) -> None:
        self.read: list[tuple[bytes, str]] = []

    def mq_context_initialize(self, context: mqcore.Context) -> None:
        assert_type(context.plugin, mqcore.Plugin)
        assert_type(context.config, Mapping[str, Any])
        assert_type(context.data, dict[Any, Any])
        assert_type(context.log, logging.Logger)
        assert isinstance(context.config, Mapping) and isinstance(context.data, dict)
        assert isinstance(context.log, logging.Logger) and isinstance(context.plugin, mqcore.Plugin)

    def mq_verdict(self, context: mqcore.Context, message: Mail) -> mqcore.HookResult:
        if message.text == "complete":
            return mqcore.COMPLETE
        if message.text == "retry" and not message.retries:
            return mqcore.RETRY
        return message.text == "no verdict" or None

    def mq_timer(self, context: mqcore.Context, message: Mail) -> mqcore.Verdict:
        timer = context.start_timer(0, context.continue_, message)  # a callback of Message takes a Mail
        assert_type(timer, mqcore.Timer)
        assert_type(timer.reset(0.001), None)
        assert_type(context.start_timer(1, print, "anything", 1).stop(), bool)
        with pytest.raises(TypeError):
            context.start_timer("1", context.complete, message)  # type: ignore[arg-type]
        return mqcore.HOLD

    def mq_watch(self, context: mqcore.Context, message: Mail) -> mqcore.Hold:
        hold = context.hold(message)
        assert_type(hold, mqcore.Hold)
        assert_type(hold.message, mqcore.Message | None)
        ours, theirs = os.pipe()
        os.write(theirs, b"x")
        os.close(theirs)
        watcher = hold.watch(ours, mqcore.READ, self.ready, hold, "extra")
        assert_type(watcher, mqcore.Watcher)
        assert_type(watcher.fd, int)
        assert_type(watcher.events, int)
        assert_type(watcher.error, OSError | None)
        watcher.events = mqcore.READ
        assert (watcher.fd, watcher.events, watcher.error) == (ours, mqcore.READ, None)
        with pytest.raises(AttributeError):
            watcher.fd = 3  # type: ignore[misc]
        return hold

    def ready(self, watcher: mqcore.Watcher, events: int, hold: mqcore.Hold, extra: str) -> None:
        self.read.append((os.read(watcher.fd, 10), extra))
        watcher.stop()
        os.close(watcher.fd)
        hold.fail("with a str")

    def mq_retry(self, context: mqcore.Context, message: Mail) -> mqcore.HookResult:
        return mqcore.RETRY

    async def mq_coroutine(self, context: mqcore.Context, message: Mail) -> bool:
        with pytest.raises(TypeError):
            context.fail(message, 1)  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            context.complete("no message")  # type: ignore[arg-type]
        context.fail(message, ValueError())
        return True


HOOKS = [mqcore.HookSpec(name) for name in ("mq_verdict", "mq_timer", "mq_watch", "mq_coroutine", "mq_retry")]


async def asynchronous() -> AsyncIterator[Mail]:
    yield Mail("complete")


async def outcomes() -> list[mqcore.Outcome]:
    plugin = Plugin()
    plugins = mqcore.Plugins(hooks=HOOKS)
    plugins.add("plugin", plugin)
    async with mqcore.Dispatcher(plugins, hold_timeout=5, max_retries=1) as dispatcher:
        assert_type(dispatcher, mqcore.Dispatcher)
        assert_type(dispatcher.plugins, mqcore.Plugins)
        hook = dispatcher.hook("mq_verdict")
        assert_type(hook, mqcore.Hook)
        assert_type((hook.name, hook.spec, hook.dispatcher), tuple[str, mqcore.HookSpec, mqcore.Dispatcher])
        assert (hook.name, hook.spec, hook.dispatcher) == ("mq_verdict", HOOKS[0], dispatcher)

        told: list[tuple[str, mqcore.Outcome]] = []

        def done(mail: Mail, outcome: mqcore.Outcome) -> None:
            told.append((mail.text, outcome))

        def done_with_anything(message: mqcore.Message, outcome: mqcore.Outcome) -> None:
            """What takes any message takes a Mail."""

        assert_type(hook.run(Mail("retry"), done=done), mqcore.Outcome | None)
        assert_type(hook.run_one(Mail("complete"), (), done), mqcore.Outcome | None)
        several = hook.run_many((Mail(text) for text in ("complete", "no verdict")), done=done_with_anything)
        assert_type(several, list[mqcore.Outcome | None])
        assert several == [mqcore.COMPLETE, None]
        held = Mail("no verdict")
        assert hook.run(held, done=done) is None
        with pytest.raises(TypeError):
            hook.run("no message")  # type: ignore[type-var]
        with pytest.raises(TypeError):
            hook.run(Mail(""), done=1)  # type: ignore[arg-type]

        assert_type(dispatcher.held(), list[Held])
        assert [(each.message, each.plugin) for each in dispatcher.held()] == [(held, "plugin")]
        assert len(dispatcher.held(1, "plugin", "mq_verdict")) == len(dispatcher.held(limit=1, plugin="plugin")) == 1
        assert dispatcher.held(0) == dispatcher.held(hook="mq_timer") == []
        with pytest.raises(TypeError):
            dispatcher.held("1")  # type: ignore[arg-type]
        assert_type((held.holder, held.retries, held.data), tuple[str | None, int, dict[str, Any]])
        assert (held.holder, held.retries, held.data) == ("plugin", 0, {})
        assert_type(dispatcher.cancel(held), bool)
        assert told == [("no verdict", mqcore.FAIL)]
        assert_type(held.error, BaseException | None)
        assert isinstance(held.error, mqcore.Cancelled)

        assert_type(await hook.checked(Mail("complete")), mqcore.Outcome)
        with pytest.raises(mqcore.RetryLimit):
            await dispatcher.hook("mq_retry").checked(Mail(""))
        loaded = mqcore.Message(["anything"])
        assert_type(loaded.payload, Any)
        loaded.payload = mqcore.Message(payload=1).payload
        assert (loaded.payload, Mail("").payload) == (1, None)

        async for mail, outcome in hook.stream([Mail("complete")], max_in_flight=10, ordered=True):
            assert_type((mail, outcome), tuple[Mail, mqcore.Outcome])
            assert (mail.text, outcome) == ("complete", mqcore.COMPLETE)
        stream = hook.stream(asynchronous())
        assert (await anext(stream))[1] is mqcore.COMPLETE
        assert_type(await stream.aclose(), None)  # type: ignore[func-returns-value]

        assert_type(dispatcher.stats(), Stats)
        assert_type(dispatcher.stats().hooks, tuple[HookStats, ...])
        assert dispatcher.stats().cancelled == 1
        results = [await dispatcher.hook(name)(Mail("")) for name in ("mq_timer", "mq_watch", "mq_coroutine")]
        assert_type(results, list[mqcore.Outcome])
    assert plugin.read == [(b"x", "extra")]
    return results


def test_types_are_what_the_stubs_say() -> None:
    assert uvloop.run(outcomes()) == [mqcore.CONTINUE, mqcore.FAIL, mqcore.FAIL]


def plain(context: mqcore.Context, message: mqcore.Message, verdict: str) -> mqcore.HookResult:
    if verdict == "hold":
        return mqcore.HOLD
    if verdict == "retry":
        return mqcore.RETRY
    if verdict == "complete":
        return mqcore.COMPLETE
    if verdict == "continue":
        return mqcore.CONTINUE
    if verdict == "token":
        return context.hold(message)
    if verdict == "coroutine":
        return waiting(context, message, verdict)
    if verdict == "none":
        return None
    return verdict == "true"


async def waiting(context: mqcore.Context, message: mqcore.Message, verdict: str) -> bool | None:
    return None


async def waiting_for_a_verdict(context: mqcore.Context, message: mqcore.Message, verdict: str) -> mqcore.Hold | mqcore.Verdict:
    return context.hold(message) if verdict else mqcore.HOLD


def fails(context: mqcore.Context, message: mqcore.Message, verdict: str) -> mqcore.HookResult:
    return mqcore.FAIL  # type: ignore[return-value]


async def waits_and_fails(context: mqcore.Context, message: mqcore.Message, verdict: str) -> mqcore.Outcome:
    return mqcore.FAIL


def counts(context: mqcore.Context, message: mqcore.Message, verdict: str) -> int:
    return 1


HOOK_FUNCTIONS: list[Callable[[mqcore.Context, mqcore.Message, str], mqcore.HookResult]] = [
    plain,
    waiting,
    waiting_for_a_verdict,
    fails,
    waits_and_fails,  # type: ignore[list-item]
    counts,  # type: ignore[list-item]
]


def test_hold_is_a_verdict_of_its_own() -> None:
    assert mqcore.HOLD is mqcore.Verdict.HOLD
    assert list(mqcore.Verdict) == [mqcore.HOLD, mqcore.RETRY]
    assert repr(mqcore.HOLD) == "<Verdict.HOLD: 'hold'>"


def test_a_hook_result_is_there_when_annotations_are_read() -> None:
    told = typing.get_args(typing.get_type_hints(plain)["return"])
    assert {bool, mqcore.Hold, type(None)} <= set(told)
    literals = next(each for each in told if typing.get_origin(each) is typing.Literal)
    assert set(typing.get_args(literals)) == {mqcore.CONTINUE, mqcore.COMPLETE, mqcore.HOLD, mqcore.RETRY}
    assert any(typing.get_origin(each) is Coroutine for each in told)
