"""Rule 5 for native plugins: `skip_others`, which accessors call for them."""

from __future__ import annotations

import pytest
from native_tools import Puppet, mq, start

import mqcore
from mqcore.native import accessors

OUTCOMES = {"MQ_continue": mqcore.COMPLETE, "MQ_complete": mqcore.COMPLETE, "MQ_retry": mqcore.COMPLETE}


class Decided(mqcore.Message):
    pass


class DecidedAccessors(accessors.Accessors):
    def set_local(self, message, local):  # stands for whatever decides
        message.skip_others()


accessors.register(Decided, DecidedAccessors())


@pytest.fixture
def puppets(tmp_path):
    made = [Puppet(tmp_path / f"{n}0-puppet.so") for n in (1, 2, 3)]
    yield made
    for puppet in made:
        assert not puppet.errors, puppet.errors


def called_by(puppets):
    """Who was called, in order; the second decides."""
    calls = []

    def note(number):
        def step(context, connection, message):
            calls.append(number)
            if number == 2:
                mq.MQ_setLocal(message, True)
            return False

        return step

    for number, puppet in enumerate(puppets, 1):
        puppet.step = note(number)
    return calls


@pytest.mark.parametrize("count", [1, 2, 40])
def test_a_hook_that_passes_on(owner, puppets, count):
    calls = called_by(puppets)
    hook = start(owner, puppets).hook("mq_step")
    messages = [Decided() for _ in range(count)]
    outcomes = hook.run_many(messages) if count > 1 else [hook.run(messages[0])]
    assert (outcomes, calls) == ([mqcore.COMPLETE] * count, [1, 2] * count)
    assert hook.run_many([mqcore.Message()]) == [mqcore.CONTINUE]  # whose accessors know of nothing
    assert calls[-3:] == [1, 2, 3]


@pytest.mark.parametrize("what", OUTCOMES)
@pytest.mark.parametrize("early", [True, False])
def test_a_hook_that_holds(owner, puppets, what, early):
    calls, outcomes, held = called_by(puppets), [], []

    def step(context, connection, message):
        calls.append(1)
        held.append(connection)
        if early:
            mq.MQ_setLocal(message, True)
        return True

    puppets[0].step = step
    hook = start(owner, puppets).hook("mq_step")
    message = Decided()
    assert hook.run(message, done=lambda message, outcome: outcomes.append(outcome)) is None
    if not early:
        message.skip_others()
    getattr(mq, what)(held[0])
    owner.run_until(lambda: outcomes)
    assert (outcomes, calls) == ([mqcore.COMPLETE], [1])


def test_a_chain_that_goes_on_without_the_gil(owner, puppets):
    """The first holds, the second decides."""
    calls, outcomes, held = called_by(puppets), [], []
    puppets[0].step = lambda context, connection, message: held.append(connection) or True
    hook = start(owner, puppets).hook("mq_step")
    assert hook.run(Decided(), done=lambda message, outcome: outcomes.append(outcome)) is None
    mq.MQ_continue(held[0])
    owner.run_until(lambda: outcomes)
    assert (outcomes, calls) == ([mqcore.COMPLETE], [2])
