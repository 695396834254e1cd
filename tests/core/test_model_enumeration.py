"""Every small chain: what each plugin may do, in every order, in the core and in the reference.

A case is a tuple of words, one for each plugin of the chain. All messages of one test go through one dispatcher, whose
plugins look up in the message what they are to do; what was observed is noted in the message, and compared case by case.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import queue
import threading

import pytest
from owners import ReferenceOwner

import mqcore

NAMES = "abcd"
BACK = ["continue", "complete", "retry", "fail"]

# What a plain hook may do. A retry is made once for each plugin and message; the second time the plugin says false.
RETURNS = ["false", "return complete", "return retry", "return nonsense", "raise"]
HOLDS = ["never", *(f"{by} {back} {when}" for by in ("true", "hold") for back in BACK for when in ("early", "late", "thread"))]
MIXED = [f"false {back} early" for back in BACK]  # gives back early, and then returns false
PLAIN = [*RETURNS, *HOLDS, *MIXED]
# What is enough of them for long chains.
SHORT = [
    "false",
    "return complete",
    "return retry",
    "raise",
    "never",
    *(f"true {back} {when}" for back in BACK for when in ("early", "late")),
]
# What a coroutine hook may do; it gives back "early" when it does so before it returns.
COROUTINE = [
    "false",
    "return complete",
    "return retry",
    "raise",
    "never",
    "wait",
    "wait return complete",
    "true complete early",
    "true continue late",
    "false complete early",
]


class World:
    """One implementation with its plugins, and what its driver has still to give back."""

    def __init__(self, owner, coroutines):
        self.owner = owner
        self.late = []  # (context or Hold, message, back): to be given back by the driver
        self.for_thread = queue.SimpleQueue()  # the same, by another thread
        self.give_backs = 0
        self.hooks = {name: self.coroutine_hook(name) if name in coroutines else self.hook(name) for name in NAMES}

        class Case(owner.Message):
            def __init__(self, case):
                self.case, self.trace, self.retried, self.ended = case, [], set(), None
                super().__init__()

        self.Case = Case

    def start(self, length, forgiving):
        config = {name: {"on_error": "continue"} for name in forgiving}
        return self.owner.start({name: self.hooks[name] for name in NAMES[:length]}, config=config, hold_timeout=0)

    # The plugins

    def plan(self, name, message):
        """The words for this call."""
        words = message.case[NAMES.index(name)].split()
        message.trace.append(name)
        if "retry" in words:
            if name in message.retried:
                return ["false"]
            message.retried.add(name)
        return words

    def hook(self, name):
        def mq_step(context, message):
            words = self.plan(name, message)
            match words:
                case ["return", what]:
                    return self.verdict(what)
                case ["raise"]:
                    raise ValueError(name)
                case ["never"]:
                    return True
                case [by, back, when]:
                    giver = context.hold(message) if by == "hold" else context
                    self.give_or_keep(giver, message, back, when)
                    return {"true": True, "false": False, "hold": giver}[by]
            return False

        return mq_step

    def coroutine_hook(self, name):
        async def mq_step(context, message):
            words = self.plan(name, message)
            if words[0] == "wait":
                await asyncio.sleep(0)
                words = words[1:]
            match words:
                case ["return", what]:
                    return self.verdict(what)
                case ["raise"]:
                    raise ValueError(name)
                case ["never"]:
                    while True:
                        await asyncio.sleep(0)
                case [by, back, "late"]:
                    self.late.append((context, message, back))
                    return by == "true"
                case [by, back, "early"]:
                    self.give(context, message, back)
                    await asyncio.sleep(0)
                    return by == "true"
            return False

        return mq_step

    @staticmethod
    def verdict(what):
        return {"complete": mqcore.COMPLETE, "retry": mqcore.RETRY, "nonsense": "nonsense"}[what]

    def give_or_keep(self, giver, message, back, when):
        if when == "early":
            self.give(giver, message, back)
        elif when == "late":
            self.late.append((giver, message, back))
        else:
            self.for_thread.put((giver, message, back))

    def give(self, giver, message, back):
        arguments = () if not hasattr(giver, "plugin") else (message,)
        if back == "fail":
            giver.fail(*arguments, LookupError("given back"))
        else:
            getattr(giver, "continue_" if back == "continue" else back)(*arguments)
        self.give_backs += 1

    # The driver

    def done(self, message, outcome):
        assert message.ended is None, f"done was called twice for {message.case}"
        message.ended = outcome

    def run(self, dispatcher, cases):
        """All cases to their ends: {case: what was observed}."""
        messages = [self.Case(case) for case in cases]
        outcomes = dispatcher.hook("mq_step").run_many(messages, done=self.done)
        while True:
            self.owner.run_until(lambda: dispatcher.stats().running == 0)
            if self.late:
                late, self.late = self.late, []
                for giver, message, back in late:
                    self.give_when_held(giver, message, back)
                continue
            if not self.for_thread.empty():
                thread = threading.Thread(target=self.give_all)
                thread.start()
                thread.join()
                continue
            if self.waits_for_nothing_but_never(messages):
                break
            self.owner.spin(wait=False)
        for message in messages:
            if message.holder:
                message.trace.append(f"cancelled at {message.holder}")
                assert dispatcher.cancel(message) is True
        observed = {}
        for message, outcome in zip(messages, outcomes, strict=True):
            assert (outcome is None) == (message.ended is not None), f"outcome {outcome}, done {message.ended}: {message.case}"
            observed[message.case] = (
                "".join(message.trace),
                str(outcome or message.ended),
                type(message.error).__name__,
                message.retries,
            )
        return observed

    def give_when_held(self, giver, message, back):
        if message.holder:  # else its coroutine has not returned yet
            self.give(giver, message, back)
        else:
            self.late.append((giver, message, back))

    def give_all(self):
        while not self.for_thread.empty():
            self.give(*self.for_thread.get())

    def waits_for_nothing_but_never(self, messages):
        """Whether all that is held is held for ever."""
        for message in messages:
            if message.holder and "never" not in message.case[NAMES.index(message.holder)]:
                return False
        return True


def compare(owner, words, coroutines="", forgiving=""):
    """Run every chain of these words, a list for each plugin, in both worlds; the number of chains."""
    length = len(words)
    cases = list(itertools.product(*words))
    expected = World(ReferenceOwner(), coroutines)
    found = World(owner, coroutines)
    reference_dispatcher, dispatcher = expected.start(length, forgiving), found.start(length, forgiving)
    for batch in batched(cases, 2000):
        want, got = expected.run(reference_dispatcher, batch), found.run(dispatcher, batch)
        for case in batch:
            assert got[case] == want[case], f"plugins {NAMES[:length]} with {case}"
    assert books(dispatcher) == books(reference_dispatcher)
    assert found.give_backs == expected.give_backs
    expected.owner.finish()
    return len(cases)


def batched(items, n):
    for i in range(0, len(items), n):
        yield items[i : i + n]


def books(dispatcher):
    s = dispatcher.stats()
    rows = sorted(
        (r.plugin, r.hook, r.calls, r.holds, r.continues, r.completes, r.retries, r.failures, r.timeouts, r.abandoned,
         r.refused)
        for r in s.hooks
        if r.hook == "mq_step"
    )
    return (s.entered, s.continued, s.completed, s.failed, s.cancelled, s.held, s.running), rows


@pytest.fixture(autouse=True)
def quiet(caplog):
    """Thousands of plugins raise on purpose."""
    caplog.set_level(logging.CRITICAL + 1, "mqcore")


@pytest.mark.parametrize("forgiving", ["", "a", "b"])
@pytest.mark.parametrize("length", [1, 2])
def test_every_short_chain(owner, length, forgiving):
    assert compare(owner, [PLAIN] * length, forgiving=forgiving) == len(PLAIN) ** length


@pytest.mark.parametrize("forgiving", ["", "bc"])
def test_every_chain_of_three(owner, forgiving):
    assert compare(owner, [SHORT, PLAIN, PLAIN], forgiving=forgiving) == len(PLAIN) ** 2 * len(SHORT)


def test_every_chain_of_four(owner):
    assert compare(owner, [SHORT] * 4) == len(SHORT) ** 4


def test_every_chain_of_four_given_back_by_another_thread(owner):
    words = ["false", "raise", "never", *(f"true {back} thread" for back in BACK)]
    assert compare(owner, [words] * 4) == len(words) ** 4


@pytest.mark.parametrize("forgiving", ["", "a"])
@pytest.mark.parametrize("coroutines", ["a", "b", "ab"])
def test_every_chain_of_two_with_coroutines(uvloop_owner, coroutines, forgiving):
    compare(uvloop_owner, [COROUTINE if name in coroutines else PLAIN for name in "ab"], coroutines, forgiving)


@pytest.mark.parametrize("coroutines", ["a", "c", "bd", "abcd"])
def test_every_chain_of_four_with_coroutines(uvloop_owner, coroutines):
    plain = ["false", "return retry", "raise", "true continue early", "true continue late", "true retry late"]
    some = ["false", "return complete", "return retry", "raise", "wait", "true continue late"]
    compare(uvloop_owner, [some if name in coroutines else plain for name in NAMES], coroutines)
