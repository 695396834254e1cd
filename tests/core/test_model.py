"""The core against the reference: the same random plugins and operations, and every observation compared.

A message carries a script: what the hook does at each call, whoever calls it. Both worlds log, for each message, the calls of
hooks, what they met and the calls of `done`. What an operation returns or raises, the books, who holds what and the fields of
every message are compared after each operation; what the loop does is compared when it has settled.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
from types import SimpleNamespace

import pytest
from effort import examples
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule, run_state_machine_as_test
from owners import Owner, ReferenceOwner, assert_conserved

import mqcore

BACK = ["continue_", "complete", "retry", "fail"]
# Plugins by the first letter of their name: `f` forgives what its hook raises, `h` has a deadline that comes at the next
# turn of the loop, `o` has only the hook mq_other, and `w` may be a coroutine function.
KINDS = "bdfhow"
PHASES = [Phase.generate]  # add Phase.shrink to make a failure small: that takes minutes
HASTY = 0.001

verdicts = st.sampled_from(
    ["false"] * 3 + ["true"] * 3 + ["hold"] * 3 + ["none", "continue", "complete", "retry", "fail", "zero", "old hold"]
)
actions = st.deferred(
    lambda: st.one_of(
        st.tuples(st.just("return"), verdicts),
        st.tuples(st.just("return"), verdicts),
        st.tuples(st.sampled_from(["give back", "give back by thread", "give back by hold"]), st.sampled_from(BACK), verdicts),
        st.tuples(st.just("give back twice"), st.sampled_from(BACK), verdicts),
        st.just(("raise",)),
        st.tuples(st.just("give back and raise"), st.sampled_from(BACK)),
        st.tuples(st.just("cancel"), verdicts),
        st.tuples(st.just("skip others"), st.booleans(), verdicts),
        st.tuples(st.just("cancel another"), st.integers(0, 5), verdicts),
        st.tuples(st.just("run another"), st.lists(actions, max_size=2), verdicts),
        st.tuples(st.just("run itself"), verdicts),
        st.tuples(st.just("remove a plugin"), st.integers(0, 5), verdicts),
    )
)
scripts = st.lists(actions, max_size=5)
hooks = st.sampled_from(["mq_step", "mq_step", "mq_other"])


class World:
    """One implementation: its dispatcher, plugins, messages and Holds, and a log for each message.

    What is given back goes on in one order in both worlds. Coroutines come back in an order of asyncio's own: with them no
    message does anything to another one.
    """

    def __init__(self, owner: Owner, coroutines: bool) -> None:
        self.owner = owner
        self.coroutines = coroutines
        self.messages = {}
        self.holds = {}  # (key of the message, number) -> Hold
        self.log = {}  # key of the message -> what was seen of it
        self.open = set()  # keys of the messages whose `done` is due
        self.cancelled = set()  # keys of the messages that a hook of another one cancelled
        self.lives = []  # what became of contexts
        self.contexts = {}
        self.made = 0
        self.events = 0
        config = {f"f{n}": {"on_error": "continue"} for n in range(60)}
        config |= {f"h{n}": {"hold_timeout": HASTY} for n in range(60)}
        self.plugins = owner.plugins({}, config=config)
        self.dispatcher = owner.dispatcher(self.plugins, hold_timeout=1e6, max_retries=3)
        for kind in KINDS:
            self.add(kind)

        class Mine(owner.Message):
            def __init__(self, key, script):
                self.key, self.script = key, list(script)

        class Finalized(Mine):
            def __del__(self):
                pass

        self.classes = {"plain": Mine, "finalized": Finalized}

    # Plugins

    def add(self, kind):
        name = f"{kind}{self.made}"
        self.made += 1
        plugin = SimpleNamespace(
            mq_context_initialize=lambda context: self.contexts.__setitem__(name, context),
            mq_context_cleanup=lambda context: self.lives.append(name),
            mq_other=lambda context, message, extra: self.called(name, context, message),
        )
        if kind == "w" and self.coroutines:
            plugin.mq_step = self.coroutine_hook(name)
        elif kind != "o":
            plugin.mq_step = lambda context, message: self.called(name, context, message)
        self.plugins.add(name, plugin)

    def remove(self, n):
        names = [plugin.name for plugin in self.plugins]
        if names:
            self.plugins.remove(names[n % len(names)])

    def called(self, name, context, message):
        """A hook."""
        assert_conserved(self.dispatcher)
        self.note(message.key, f"{name} called")
        return self.act(context, message, message.script.pop(0) if message.script else ("return", "false"))

    def coroutine_hook(self, name):
        async def mq_step(context, message):
            self.note(message.key, f"{name} called")
            action = message.script.pop(0) if message.script else ("return", "false")
            for _ in range(len(message.script) % 3):
                await asyncio.sleep(0)
            return self.act(context, message, action)

        return mq_step

    def act(self, context, message, action):
        match action:
            case ("return", verdict):
                return self.verdict(context, message, verdict)
            case (("give back" | "give back by thread" | "give back by hold") as how, back, verdict):
                giver = self.take_hold(context, message) if how == "give back by hold" else context
                self.note(message.key, self.attempt(how == "give back by thread", self.give, giver, message, back))
                return self.verdict(context, message, verdict)
            case ("give back twice", back, verdict):
                self.note(message.key, self.attempt(False, self.give, context, message, back))
                self.note(message.key, self.attempt(False, self.give, context, message, back))
                return self.verdict(context, message, verdict)
            case ("raise",):
                raise ValueError
            case ("give back and raise", back):
                self.note(message.key, self.attempt(False, self.give, context, message, back))
                raise LookupError
            case ("skip others", thread, verdict):
                self.note(message.key, self.attempt(thread, message.skip_others))
                return self.verdict(context, message, verdict)
            case ("cancel", verdict):
                self.note(message.key, self.attempt(False, self.dispatcher.cancel, message))
                return self.verdict(context, message, verdict)
            case ("cancel another", n, verdict):
                self.cancel_another(message, n)
                return self.verdict(context, message, verdict)
            case ("run another", script, verdict):
                self.note(message.key, self.start(message.key + (len(self.log[message.key]),), "plain", script, "mq_step"))
                return self.verdict(context, message, verdict)
            case ("run itself", verdict):
                self.note(message.key, self.attempt(False, self.hook("mq_step").run, message))
                return self.verdict(context, message, verdict)
            case ("remove a plugin", n, verdict):
                if not self.coroutines:
                    self.remove(n)
                return self.verdict(context, message, verdict)
        raise AssertionError(action)

    def verdict(self, context, message, verdict):
        match verdict:
            case "hold":
                try:
                    return self.take_hold(context, message)
                except mqcore.NotHeld:  # given back or cancelled already
                    return True
            case "old hold":
                return next((hold for (key, _), hold in self.holds.items() if key == message.key), "none")
        values = {"false": False, "true": True, "none": None, "continue": mqcore.CONTINUE, "complete": mqcore.COMPLETE}
        return (values | {"retry": mqcore.RETRY, "fail": mqcore.FAIL, "zero": 0})[verdict]

    def take_hold(self, context, message):
        hold = context.hold(message)
        if not any(hold is other for other in self.holds.values()):
            self.holds[message.key, sum(key == message.key for key, _ in self.holds)] = hold
        return hold

    def cancel_another(self, message, n):
        if self.coroutines:
            return
        others = sorted(key for key, other in self.messages.items() if other is not message)
        if others:
            other = self.messages[others[n % len(others)]]
            # Not where a deadline may have come or not; and once, before the hook that is being called has returned.
            if not (other.holder or "").startswith("h") and other.key not in self.cancelled:
                self.cancelled.add(other.key)
                self.note(message.key, self.attempt(False, self.dispatcher.cancel, other))

    # Operations: each returns what is to be compared

    def hook(self, name):
        return self.dispatcher.hook(name)

    def start(self, key, cls, script, hook):
        self.messages[key] = self.classes[cls](key, script)
        self.log[key] = []
        return self.run(key, hook)

    def start_many(self, keys, many):
        messages = [self.classes["plain"](key, script) for key, script in zip(keys, many, strict=True)]
        for key, message in zip(keys, messages, strict=True):
            self.messages[key] = message
            self.log[key] = []
        return self.attempt(False, self.run_and_note, "mq_step", messages)

    def run(self, key, hook):
        return self.attempt(False, self.run_and_note, hook, [self.messages[key]])

    def run_and_note(self, name, messages):
        hook, extra = self.hook(name), ["extra"] if name == "mq_other" else []
        if len(messages) == 1 and messages[0].key[0] % 3 == 2 and not isinstance(self.owner, ReferenceOwner):
            outcomes = [hook.run_traced(messages[0], mqcore.Trace(), *extra, done=self.done)]  # no different
        elif len(messages) == 1:
            outcomes = [hook.run(messages[0], *extra, done=self.done)]
        else:
            outcomes = hook.run_many(messages, *extra, done=self.done)
        self.open |= {message.key for message, outcome in zip(messages, outcomes, strict=True) if outcome is None}
        return outcomes

    def run_twice(self, key):
        message = self.messages[key]
        return self.attempt(False, self.hook("mq_step").run_many, [message, message], done=self.done)

    def give_back(self, key, name, back, thread):
        return self.attempt(thread, self.give, self.contexts[name], self.messages[key], back)

    def give_back_hold(self, key, n, back, thread):
        if (key, n) not in self.holds:
            return "no such Hold"
        return self.attempt(thread, self.give, self.holds[key, n], None, back)

    def cancel(self, key):
        return self.attempt(False, self.dispatcher.cancel, self.messages[key])

    def skip_others(self, key, thread):
        return self.attempt(thread, self.messages[key].skip_others)

    def drop(self, key):
        for which in [which for which in self.holds if which[0] == key]:
            del self.holds[which]
        self.messages.pop(key, None)
        gc.collect()  # tracebacks make cycles

    def drop_hold(self, key, n):
        there = self.holds.pop((key, n), None) is not None
        gc.collect()
        return there

    def settle(self):
        """Run the loop until nothing more happens by itself. (A coroutine may take some turns before it is heard of.)"""
        quiet = 0
        while quiet < (12 if self.coroutines else 2):
            before = self.events
            self.owner.run_until(self.is_at_rest)
            self.owner.spin(wait=False)
            quiet = quiet + 1 if self.events == before else 0

    def is_at_rest(self):
        return self.dispatcher.stats().running == 0 and not any(held.plugin[0] == "h" for held in self.dispatcher.held())

    def close(self):
        self.dispatcher.close()
        self.plugins.close()

    # Helpers

    def give(self, giver, message, back):
        arguments = [] if message is None or giver in self.holds.values() else [message]
        getattr(giver, back)(*arguments, *([LookupError()] if back == "fail" else []))

    def attempt(self, thread, function, *args, **kwargs):
        """What a call returned, or what type it raised."""
        result = []

        def call():
            try:
                result.append(repr(function(*args, **kwargs)))
            except Exception as error:
                result.append(type(error).__name__)

        if thread:
            worker = threading.Thread(target=call)
            worker.start()
            worker.join()
        else:
            call()
        return result[0]

    def done(self, message, outcome):
        assert_conserved(self.dispatcher)
        self.open.discard(message.key)
        self.note(message.key, f"done {outcome} {type(message.error).__name__}")

    def note(self, key, what):
        self.log[key].append(what)
        self.events += 1

    # Observations

    def books(self):
        s = self.dispatcher.stats()
        rows = {}
        for r in s.hooks:
            row = (r.calls, r.holds, r.continues, r.completes, r.retries, r.failures, r.timeouts, r.abandoned, r.refused,
                   r.retry_limits)
            old = rows.get(r.plugin, (0,) * len(row))
            rows[r.plugin] = tuple(a + b for a, b in zip(old, row, strict=True))
        current = {plugin.name for plugin in self.plugins}
        return s.entered, s.continued, s.completed, s.failed, s.cancelled, s.held, s.running, {
            name: row for name, row in rows.items() if name in current and any(row)
        }

    def held(self):
        return sorted((held.message.key, held.plugin, held.hook) for held in self.dispatcher.held())

    def fields(self):
        """Of every message; `error` where no step is open, as a failure that was given back shows in it at once or not."""
        return [
            (key, message.holder, message.retries, key in self.open or type(message.error).__name__)
            for key, message in sorted(self.messages.items())
        ]


class Machine(RuleBasedStateMachine):
    messages = Bundle("messages")

    def __init__(self, owner, coroutines):
        super().__init__()
        self.count = 0
        gc.freeze()  # so that the collections of `drop` have only this machine to look at
        self.worlds = [World(ReferenceOwner(), coroutines), World(owner, coroutines)]

    def both(self, operation, *args):
        expected, found = (getattr(world, operation)(*args) for world in self.worlds)
        assert found == expected, (operation, args)
        return found

    def new_key(self):
        self.count += 1
        return (self.count,)

    def exists(self, key):
        return key in self.worlds[0].messages

    @rule(target=messages, script=scripts, hook=hooks, cls=st.sampled_from(["plain"] * 4 + ["finalized"]))
    def start(self, script, hook, cls):
        key = self.new_key()
        self.both("start", key, cls, script, hook)
        return key

    @rule(many=st.lists(scripts, min_size=1, max_size=3))
    def start_many(self, many):
        self.both("start_many", [self.new_key() for _ in many], many)

    @rule(key=messages, hook=hooks)
    def run_again(self, key, hook):
        if self.exists(key):
            self.both("run", key, hook)

    @rule(key=messages)
    def run_twice(self, key):
        if self.exists(key):
            self.both("run_twice", key)

    @rule(key=messages, back=st.sampled_from(BACK), thread=st.booleans())
    def give_back_by_the_holder(self, key, back, thread):
        if self.exists(key):
            holder = self.worlds[0].messages[key].holder
            if holder:
                self.both("give_back", key, holder, back, thread)

    @rule(key=messages, n=st.integers(0, 9), back=st.sampled_from(BACK), thread=st.booleans())
    def give_back_by_anyone(self, key, n, back, thread):
        names = sorted(self.worlds[0].contexts)
        if self.exists(key):
            self.both("give_back", key, names[n % len(names)], back, thread)

    @rule(key=messages, n=st.integers(0, 2), back=st.sampled_from(BACK), thread=st.booleans())
    def give_back_by_hold(self, key, n, back, thread):
        self.both("give_back_hold", key, n, back, thread)

    @rule(key=messages)
    def cancel(self, key):
        if self.exists(key):
            self.both("cancel", key)

    @rule(key=messages, thread=st.booleans())
    def skip_others(self, key, thread):
        if self.exists(key):
            self.both("skip_others", key, thread)

    @rule(key=messages)
    def drop(self, key):
        self.both("drop", key)

    @rule(key=messages, n=st.integers(0, 2))
    def drop_hold(self, key, n):
        self.both("drop_hold", key, n)

    @rule(kind=st.sampled_from(KINDS))
    def add_plugin(self, kind):
        self.both("add", kind)

    @rule(n=st.integers(0, 9))
    def remove_plugin(self, n):
        self.both("remove", n)

    @rule()
    def settle(self):
        self.both("settle")
        self.compare_logs()

    @invariant()
    def compare(self):
        for observation in ("books", "held", "fields"):
            self.both(observation)
        for world in self.worlds:
            assert_conserved(world.dispatcher)

    def compare_logs(self):
        expected, found = self.worlds
        assert found.log.keys() == expected.log.keys()
        for key in expected.log:
            assert found.log[key] == expected.log[key], f"message {key}"
        assert sorted(found.lives) == sorted(expected.lives)

    def teardown(self):
        self.both("close")
        self.compare_logs()
        for world in self.worlds:
            stats = world.dispatcher.stats()
            assert (stats.held, stats.running) == (0, 0)
            world.owner.dispatchers.clear()
            world.owner.turn()


@pytest.fixture
def quiet(caplog):
    """Thousands of plugins raise on purpose."""
    caplog.set_level(logging.CRITICAL + 1, "mqcore")


def drive(owner, coroutines):
    gc.collect()
    try:
        run_state_machine_as_test(
            lambda: Machine(owner, coroutines),
            settings=settings(
                max_examples=examples(200),
                stateful_step_count=40,
                phases=PHASES,
                deadline=None,
                suppress_health_check=list(HealthCheck),
                database=None,
            ),
        )
    finally:
        gc.unfreeze()
        gc.collect()
        gc.freeze()  # as it was: see conftest.py


def test_the_core_does_what_the_reference_does(owner, quiet):
    drive(owner, coroutines=False)


def test_with_coroutine_hooks_too(uvloop_owner, quiet):
    drive(uvloop_owner, coroutines=True)
