"""Native plugins against the reference: random give-backs, by handles that are right, stale or another plugin's.

Both worlds have two native plugins and a Python plugin between them. A message carries a script: what the hooks do, one call
after the other. In the reference a Hold is what the handle of one call is in C: both stand for that call and nothing else.
"""

from __future__ import annotations

import itertools
import logging
import tempfile
import threading
from pathlib import Path

import pytest
from conftest import OWNERS, ReferenceOwner, assert_conserved
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test
from native_tools import Puppet, mq

import mqcore
from mqcore import accessors

NAMES = ("10-native", "20-python", "30-native")
BACK = ("continue", "complete", "retry")
actions = st.one_of(
    st.sampled_from(["false", "true", "true"]).map(lambda verdict: (None, verdict)),
    st.tuples(st.sampled_from(BACK), st.sampled_from(["false", "true"])),
)
scripts = st.lists(actions, max_size=6)


class World:
    """What both worlds do alike; `tokens` has what stands for each call of a hook, in order."""

    def __init__(self, owner):
        self.owner = owner
        self.tokens = []
        self.messages = []
        self.outcomes = {}
        self.refused = 0

        class Mine(owner.Message):
            def __init__(self, number, script):
                self.number, self.script = number, list(script)

        self.kind = Mine

    def begin(self, script):
        number = len(self.messages)
        message = self.kind(number, script)
        self.messages.append(message)
        outcome = self.dispatcher.hook("mq_step").run(message, done=lambda _, outcome: self.ended(number, outcome))
        if outcome is not None:
            self.ended(number, outcome)

    def ended(self, number, outcome):
        assert number not in self.outcomes
        self.outcomes[number] = outcome.name

    def play(self, message, token):
        """A hook."""
        self.tokens.append(token)
        back, verdict = message.script.pop(0) if message.script else (None, "false")
        if back is not None:
            self.give(token, back)
        return verdict == "true"

    def give_by_hold(self, token, back):
        try:
            getattr(token, "continue_" if back == "continue" else back)()
        except mqcore.MqError:
            self.refused += 1

    def python_step(self, context, message):
        return self.play(message, context.hold(message))

    def seen(self):
        self.owner.turn()
        assert_conserved(self.dispatcher)
        counted = [
            (hook.plugin, hook.calls, hook.holds, hook.continues, hook.completes, hook.retries, hook.failures)
            for hook in self.dispatcher.stats().hooks
            if hook.hook == "mq_step"
        ]
        held = [(message.holder, message.retries, type(message.error).__name__) for message in self.messages]
        return self.outcomes, held, counted, len(self.tokens), self.refused


class ReferenceWorld(World):
    def __init__(self):
        super().__init__(ReferenceOwner())
        self.dispatcher = self.owner.start(dict.fromkeys(NAMES, self.python_step), hold_timeout=0, max_retries=3)

    def give(self, token, back):
        self.give_by_hold(token, back)


class Numbered(accessors.Accessors):
    """Lets a native plugin know which message it is: one of its functions tells the number."""

    def file_descriptor(self, message):
        return message.number


class NativeWorld(World, logging.Handler):
    """Its refusals are what is logged."""

    def __init__(self, owner, folder):
        logging.Handler.__init__(self)
        World.__init__(self, owner)
        plugins = owner.plugins({NAMES[1]: self.python_step})
        self.puppets = [Puppet(folder / f"{name}.so", self.native_step) for name in (NAMES[0], NAMES[2])]
        for puppet in self.puppets:
            plugins.load(puppet.path)
        self.dispatcher = owner.dispatcher(plugins, hold_timeout=0, max_retries=3)
        accessors.register(self.kind, Numbered())
        logging.getLogger("mqcore.plugins").addHandler(self)

    def emit(self, record):
        self.refused += "that it does not hold" in record.getMessage()

    def native_step(self, context, connection, message):
        return self.play(self.messages[mq.MQ_fileDescriptor(connection)], connection)

    def give(self, token, back):
        if isinstance(token, int):
            getattr(mq, f"MQ_{back}")(token)
        else:
            self.give_by_hold(token, back)


def machine(name, folder):
    numbers = itertools.count()

    class Machine(RuleBasedStateMachine):
        def __init__(self):
            super().__init__()
            sub = folder / str(next(numbers))
            self.native, self.reference = NativeWorld(OWNERS[name](), sub), ReferenceWorld()
            self.worlds = (self.native, self.reference)

        def both(self, operation):
            for world in self.worlds:
                operation(world)
            assert self.native.seen() == self.reference.seen()

        @rule(script=scripts)
        def begin(self, script):
            self.both(lambda world: world.begin(script))

        @rule(number=st.integers(0, 60), back=st.sampled_from(BACK), by_thread=st.booleans())
        def give(self, number, back, by_thread):
            def operation(world):
                if not world.tokens:
                    return
                arguments = (world.tokens[-1 - number % len(world.tokens)], back)
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
                if world.tokens:
                    world.give(world.tokens[-1 - number % len(world.tokens)], back)
                    world.give(world.tokens[-1 - number % len(world.tokens)], "complete")

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
            assert [error for puppet in self.native.puppets for error in puppet.errors] == []

    return Machine


@pytest.mark.parametrize("name", ["uvloop", "pyuv"])
def test_against_the_reference(name):
    run_state_machine_as_test(
        machine(name, Path(tempfile.mkdtemp(prefix="mqcore-tests-"))),
        settings=settings(
            max_examples=60, stateful_step_count=40, deadline=None, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )
