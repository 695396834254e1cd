"""Rule 5 for native plugins: `skip_others`, which accessors call for them."""

from __future__ import annotations

import ctypes
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
from native_tools import Puppet, compile_plugin, mq, start

import mqcore
from mqcore.mail import Mail
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


@pytest.mark.parametrize("count", [1, 2, 40])
@pytest.mark.parametrize("held", [False, True])
def test_a_mail_that_a_native_plugin_rejects(owner, puppets, count, held):
    """By `MQ_reject`, in the hook or while it holds: those after it are not called, whatever it gives back."""
    calls, outcomes = [], []

    def reject(connection):
        calls.append(2)
        mq.MQ_reject(connection, 550, b"5.7.1 no")
        mq.MQ_reject(connection, 450, b"4.7.1 later")
        if held:
            mq.MQ_retry(connection)

    puppets[0].step = lambda context, connection, message: calls.append(1) or False
    puppets[1].step = lambda context, connection, message: bool(
        puppets[1].timer(context, 0, reject, connection) if held else reject(connection))
    puppets[2].step = lambda context, connection, message: calls.append(3) or False
    hook = start(owner, puppets).hook("mq_step")
    mails = [Mail(b"x") for _ in range(count)]
    found = hook.run_many(mails, done=lambda message, outcome: outcomes.append(outcome))
    owner.run_until(lambda: len(outcomes) == count or not held)
    assert (outcomes if held else found) == [mqcore.COMPLETE] * count
    assert sorted(calls) == [1] * count + [2] * count
    assert {(mail.rejection, mail.rejected_by) for mail in mails} == {((550, "5.7.1 no"), "20-puppet")}


# Its hook waits, in the step of one message of many, as long as another thread needs to do something.
WAITS = """
#include <unistd.h>
enum { TENTHS = 100000 };  /* of a millisecond: ten seconds, should that thread not come */
static _Atomic int calls, waiting, over;
static void wait_for(_Atomic int *flag) { for (int n = 0; n < TENTHS && !*flag; n++) usleep(100); }

MQ_EXPORT int until_it_waits(void) { wait_for(&waiting); return waiting; }
MQ_EXPORT void go_on(void) { over = 1; }
MQ_EXPORT bool mq_step(MQ_Context *context, MQ_Connection *connection, MQ_Message *message)
{
    (void)context, (void)connection, (void)message;
    if (calls++ == 30) {
        waiting = 1;
        wait_for(&over);
    }
    return false;
}
"""


def test_another_thread_decides_while_a_chain_runs_without_the_gil(owner, tmp_path):
    """That may come too late for the step, but is not for the next one."""
    path = compile_plugin(tmp_path / "10-waits.so", WAITS)
    library, called = ctypes.CDLL(str(path)), []
    others = {name: SimpleNamespace(mq_other=lambda context, message, extra, name=name: called.append(name)) for name in "ab"}
    plugins = owner.plugins(others)
    plugins.load(path)
    dispatcher = owner.dispatcher(plugins)
    messages = [mqcore.Message() for _ in range(50)]

    def decide():
        waits = library.until_it_waits()
        messages[30].skip_others()
        library.go_on()
        return waits

    with ThreadPoolExecutor(1) as pool:
        waited = pool.submit(decide)
        outcomes = dispatcher.hook("mq_step").run_many(messages)
        assert waited.result()
    assert set(outcomes) <= {mqcore.CONTINUE, mqcore.COMPLETE}
    assert dispatcher.hook("mq_other").run(messages[30], None) is mqcore.CONTINUE
    assert called == ["a", "b"]
