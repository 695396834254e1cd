"""A dispatcher that is busy when its loop ends."""

from __future__ import annotations

import asyncio
import socket

import pytest
from owners import STEP, assert_conserved

import mqcore
from mqcore import READ


class Busy:
    """A dispatcher on a uvloop loop with all that can be open, and what became of it."""

    def __init__(self, loop=None, **options):
        self.outcomes = []
        self.contexts = []
        self.cleaned = []
        self.errors = []
        self.kept = []
        self.ends = socket.socketpair()
        self.ends[0].setblocking(False)
        self.plugins = mqcore.Plugins(hooks=[STEP, mqcore.HookSpec("mq_other"), mqcore.HookSpec("mq_async")])
        self.plugins.add("10-holds", self)
        self.dispatcher = mqcore.Dispatcher(self.plugins, loop=loop, **options)
        self.dispatcher.loop.set_exception_handler(self.on_error)
        self.context = self.contexts[0]

    def on_error(self, loop, told):
        if "was destroyed but it is pending" not in told["message"]:  # asyncio's own words, when a loop is just closed
            self.errors.append(told)

    def mq_context_initialize(self, context):
        self.contexts.append(context)

    def mq_context_cleanup(self, context):
        self.cleaned.append(context)

    def mq_step(self, context, message):
        return True

    def mq_other(self, context, message):
        hold = context.hold(message)
        hold.start_timer(100, hold.complete)
        hold.watch(self.ends[0], READ, print, hold)
        return hold

    async def mq_async(self, context, message):
        await asyncio.sleep(100)

    def done(self, message, outcome):
        self.outcomes.append((message, outcome, type(message.error)))

    def fill(self):
        """Held messages, by True and by a Hold, one that is queued, timers and watchers, far off and due."""
        step, other = self.dispatcher.hook("mq_step"), self.dispatcher.hook("mq_other")
        self.messages = [mqcore.Message() for _ in range(12)]
        for message in self.messages[:10]:
            assert step.run(message, done=self.done) is None
        for message in self.messages[10:]:
            assert other.run(message, done=self.done) is None
        for number in range(20):
            self.kept.append(self.context.start_timer(100 + number, pytest.fail, "fired"))
        self.kept += [self.context.watch(self.ends[number % 2], READ, pytest.fail) for number in range(4)]
        self.context.complete(self.messages[0])
        return self

    def suspend(self):
        """Two coroutine hooks."""
        hook = self.dispatcher.hook("mq_async")
        for _ in range(2):
            self.messages.append(message := mqcore.Message())
            assert hook.run(message, done=self.done) is None

    def check(self, ended=(mqcore.DispatcherClosed,)):
        """Everything has ended, and was told once."""
        assert_conserved(self.dispatcher)
        stats = self.dispatcher.stats()
        assert (stats.held, stats.running) == (0, 0)
        assert self.cleaned == self.contexts
        told = {id(message): (outcome, error) for message, outcome, error in self.outcomes}
        assert len(told) == len(self.outcomes) == len(self.messages)
        for number, message in enumerate(self.messages):
            outcome, error = told[id(message)]
            if number > 0 or outcome is mqcore.FAIL:  # the first was queued, and may have had its turn
                assert outcome is mqcore.FAIL and error in ended
            assert message.holder is None
        assert not self.errors
        for each in self.kept:
            assert each.stop() is False
        with pytest.raises(mqcore.DispatcherClosed):
            self.context.start_timer(0, print)
        with pytest.raises(mqcore.DispatcherClosed):
            self.dispatcher.hook("mq_step").run(mqcore.Message())
        assert self.dispatcher.held() == []
        self.dispatcher.close()
        assert self.cleaned == self.contexts
        self.plugins.close()
        for end in self.ends:
            end.close()
