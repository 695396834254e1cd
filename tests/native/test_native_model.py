"""Native plugins against the reference: random give-backs, by handles that are right, stale or another plugin's.

Both worlds have two native plugins, with a Python plugin between them or not. A message carries a script: what the hooks do,
one call after the other. In the reference a Hold is what the handle of one call is in C: both stand for that call and nothing
else. What native plugins do later they do in a callback of a timer or a watcher, the reference when it is looked at next.
"""

from __future__ import annotations

import itertools
import logging
import os
import threading

import pytest
from effort import examples
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test
from native_tools import Puppet, mq
from owners import OWNERS, ReferenceOwner, assert_conserved

import mqcore
from mqcore.native import accessors

CHAINS = {"mixed": ("10-native", "20-python", "30-native"), "native": ("10-native", "30-native")}
BACK = ("continue", "complete", "retry")
NOW = ("now",)
LATER = {"timer": ("timer", "timer that is reset", "timer that is stopped"), "watcher": ("watcher", "watcher that is stopped")}


def scripts_of(whens):
    """What hooks do: give back, when, and what they return."""
    return st.lists(
        st.one_of(
            st.sampled_from(["false", "true", "true"]).map(lambda verdict: (None, "now", verdict)),
            st.tuples(st.sampled_from(BACK), st.sampled_from(whens), st.sampled_from(["false", "true"])),
        ),
        max_size=6,
    )


class World:
    """What both worlds do alike."""

    def __init__(self, owner):
        self.owner = owner
        self.calls = []  # what stands for each call of a hook, and the number of its message, in order
        self.messages = []
        self.outcomes = {}
        self.refused = 0

        class Mine(owner.Message):
            def __init__(self, number, script):
                self.number, self.script = number, list(script)

        self.kind = Mine

    def begin(self, scripts):
        hook = self.dispatcher.hook("mq_step")
        messages = [self.kind(len(self.messages) + place, script) for place, script in enumerate(scripts)]
        self.messages += messages
        run = hook.run_many if len(messages) > 1 else lambda messages, done: [hook.run(*messages, done=done)]
        for message, outcome in zip(messages, run(messages, done=self.ended), strict=True):
            if outcome is not None:
                self.ended(message, outcome)

    def ended(self, message, outcome):
        assert message.number not in self.outcomes
        self.outcomes[message.number] = outcome.name

    def play(self, message, token):
        """A hook."""
        self.calls.append((message.number, token))
        back, when, verdict = message.script.pop(0) if message.script else (None, "now", "false")
        if when != "now":
            self.give_later(token, back, when)
        elif back is not None:
            self.give(token, back)
        return verdict == "true"

    def give_by_hold(self, token, back):
        try:
            getattr(token, "continue_" if back == "continue" else back)()
        except mqcore.MqError:
            self.refused += 1

    def token(self, number, in_order):
        """One of the last calls; where callbacks may come between, the order in which messages have theirs is not certain."""
        calls = self.calls if in_order else sorted(self.calls, key=lambda call: call[0])
        return calls[-1 - number % len(calls)][1]

    def python_step(self, context, message):
        return self.play(message, context.hold(message))

    def seen(self):
        self.owner.turn()
        self.come_to_rest()
        assert_conserved(self.dispatcher)
        counted = [
            (hook.plugin, hook.calls, hook.holds, hook.continues, hook.completes, hook.retries, hook.failures)
            for hook in self.dispatcher.stats().hooks
            if hook.hook == "mq_step"
        ]
        held = [(message.holder, message.retries, type(message.error).__name__) for message in self.messages]
        return self.outcomes, held, counted, len(self.calls), self.refused


class ReferenceWorld(World):
    def __init__(self, names):
        super().__init__(ReferenceOwner())
        self.dispatcher = self.owner.start(dict.fromkeys(names, self.python_step), hold_timeout=0, max_retries=3)
        self.later = []

    def give(self, token, back):
        self.give_by_hold(token, back)

    def give_later(self, token, back, when):
        if "stopped" not in when:
            self.later.append((token, back))

    def come_to_rest(self):
        while self.later:
            self.give(*self.later.pop(0))
            self.owner.turn()


class Numbered(accessors.Accessors):
    """Lets a native plugin know which message it is: one of its functions tells the number."""

    def file_descriptor(self, message):
        return message.number


class NativeWorld(World, logging.Handler):
    """Its refusals are what is logged."""

    def __init__(self, owner, names, folder):
        logging.Handler.__init__(self)
        World.__init__(self, owner)
        plugins = owner.plugins({name: self.python_step for name in names if "python" in name})
        self.puppets = [Puppet(folder / f"{name}.so", self.native_step) for name in names if "native" in name]
        for puppet in self.puppets:
            plugins.load(puppet.path)
        self.dispatcher = owner.dispatcher(plugins, hold_timeout=0, max_retries=3)
        accessors.register(self.kind, Numbered())
        logging.getLogger("mqcore.plugins").addHandler(self)
        self.later = 0
        self.readable, other = os.pipe()
        os.write(other, b"x")
        os.close(other)

    def emit(self, record):
        self.refused += "that it does not hold" in record.getMessage()

    def native_step(self, context, connection, message):
        self.context = context
        return self.play(self.messages[mq.MQ_fileDescriptor(connection)], connection)

    def give(self, token, back):
        if isinstance(token, int):
            getattr(mq, f"MQ_{back}")(token)
        else:
            self.give_by_hold(token, back)

    def give_later(self, token, back, when):
        def called(*arguments):
            if "watcher" in when:
                mq.MQ_ioUnwatch(arguments[0])
            self.later -= 1
            self.give(token, back)

        self.later += "stopped" not in when
        puppet, stop = self.puppets[0], mq.MQ_stopTimer
        if "watcher" in when:
            handle, stop = puppet.watch(self.context, self.readable, mqcore.READ, called), mq.MQ_ioUnwatch
        elif "reset" in when:
            handle = puppet.timer(self.context, 100, called)
            mq.MQ_resetTimer(handle, 0)
        else:
            handle = puppet.timer(self.context, 0, called)
        if "stopped" in when:
            stop(handle)
            stop(handle)

    def come_to_rest(self):
        while self.later:  # what goes on may do something later again
            self.owner.run_until(lambda: not self.later)
            self.owner.turn()


def machine(name, names, later, folder):
    numbers = itertools.count()
    scripts = scripts_of(NOW + LATER.get(later, ()))

    class Machine(RuleBasedStateMachine):
        def __init__(self):
            super().__init__()
            sub = folder / str(next(numbers))
            self.native, self.reference = NativeWorld(OWNERS[name](), names, sub), ReferenceWorld(names)
            self.worlds = (self.native, self.reference)

        def both(self, operation):
            for world in self.worlds:
                operation(world)
            assert self.native.seen() == self.reference.seen()

        @rule(scripts=st.lists(scripts, min_size=1, max_size=5))
        def begin(self, scripts):
            self.both(lambda world: world.begin(scripts))

        @rule(number=st.integers(0, 60), back=st.sampled_from(BACK), by_thread=st.booleans())
        def give(self, number, back, by_thread):
            def operation(world):
                if not world.calls:
                    return
                arguments = (world.token(number, not later), back)
                if by_thread:
                    thread = threading.Thread(target=world.give, args=arguments)
                    thread.start()
                    thread.join()
                else:
                    world.give(*arguments)

            self.both(operation)

        @rule(number=st.integers(0, 20), back=st.sampled_from(BACK))
        def give_twice(self, number, back):
            """Before the dispatcher sees any of it."""

            def operation(world):
                if world.calls:
                    world.give(world.token(number, not later), back)
                    world.give(world.token(number, not later), "complete")

            self.both(operation)

        @rule(number=st.integers(0, 20))
        def cancel(self, number):
            def operation(world):
                if world.messages:
                    world.dispatcher.cancel(world.messages[-1 - number % len(world.messages)])

            self.both(operation)

        def teardown(self):
            logging.getLogger("mqcore.plugins").removeHandler(self.native)
            for world in self.worlds:
                world.owner.finish()
            os.close(self.native.readable)
            assert [error for puppet in self.native.puppets for error in puppet.errors] == []

    return Machine


@pytest.mark.parametrize(("chain", "later"), [("mixed", ""), ("native", ""), ("native", "timer"), ("native", "watcher")])
@pytest.mark.parametrize("name", ["uvloop", "pyuv"])
def test_against_the_reference(tmp_path, name, chain, later):
    run_state_machine_as_test(
        machine(name, CHAINS[chain], later, tmp_path),
        settings=settings(
            max_examples=examples(60), stateful_step_count=40, deadline=None, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )
