"""Plugins in Cython whose hooks are C functions: the example of docs/cython.md, and what c_hook checks."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from cython_tools import build

import mqcore

DOCS = Path(__file__).resolve().parents[2] / "docs" / "cython.md"
MORE = """

cdef object on_step(Context context, Message message):
    told.append((context.plugin.name, message, message.args))
    value = answers.pop()
    if isinstance(value, Exception):
        raise value
    return value


told = []
answers = []
mq_step = c_hook(on_step, Message)


def make(kind):
    return c_hook(on_step, kind)
"""


@pytest.fixture(scope="module")
def size(tmp_path_factory):
    """The module of the example, with a hook for tests beside its own."""
    source = re.findall(r"^```cython\n(.*?)^```", DOCS.read_text(), re.DOTALL | re.MULTILINE)[1]
    return build(tmp_path_factory.mktemp("size"), "size", source + MORE)


def test_the_example(owner, size):
    plugins = owner.plugins({"10-size": SimpleNamespace(mq_step=size.mq_smtp_in_message)})
    hook = owner.dispatcher(plugins).hook("mq_step")
    assert hook.run(size.Mail(10)) is mqcore.CONTINUE
    big = size.Mail(2_000_000)
    assert hook.run(big) is mqcore.FAIL and str(big.error) == "too big"
    other = mqcore.Message()
    assert hook.run(other) is mqcore.FAIL
    assert isinstance(other.error, TypeError) and str(other.error) == "this hook takes a Context and a size.Mail"


def test_it_may_return_and_raise_what_any_hook_may(owner, size):
    dispatcher = owner.dispatcher(owner.plugins({"10-size": SimpleNamespace(mq_step=size.mq_step, mq_other=size.mq_step)}))
    hook = dispatcher.hook("mq_step")
    for answer, outcome in ((None, mqcore.CONTINUE), (mqcore.COMPLETE, mqcore.COMPLETE), (ValueError("x"), mqcore.FAIL)):
        size.answers.append(answer)
        assert hook.run(mqcore.Message()) is outcome
    size.answers.append(True)
    message = mqcore.Message()
    assert hook.run(message) is None
    assert message.holder == "10-size"
    size.told.clear()
    size.answers.append(False)
    message = mqcore.Message()
    assert dispatcher.hook("mq_other").run(message, "extra") is mqcore.CONTINUE
    assert size.told.pop() == ("10-size", message, ("extra",))


def test_what_it_refuses(size):
    for kind in (None, int, 7):
        with pytest.raises(TypeError):
            size.make(kind)
    for arguments in ((), (None,), (None, mqcore.Message()), (1, 2, 3)):
        with pytest.raises(TypeError, match="this hook takes a Context and a"):
            size.mq_step(*arguments)
    with pytest.raises(TypeError):
        type(size.mq_step)()


# Each name that docs/cython.md promises, by the one cimport that it shows.
PUBLIC = """
# cython: language_level=3
from mqcore cimport (
    TO_COMPLETE, TO_CONTINUE, TO_FAIL, TO_RETRY, Context, Dispatcher, Hold, Hook, HookFunction, Message, StepCounts, c_hook,
    give_back)


cdef class Mail(Message):
    cdef readonly int decision

    def __init__(self, int decision):
        self.decision = decision


cdef object takes(Context context, Mail message):
    cdef Hold hold = context.hold(message)
    context.data[message] = hold
    return hold


cdef object another(Context context, Message message):
    give_back(context, message, TO_COMPLETE, None)
    return True


def back(Context context not None, Mail message not None, error):
    give_back(context, message, message.decision, error)


def counts(Dispatcher dispatcher not None):
    cdef StepCounts now = dispatcher.counts()
    return now.entered, now.held, dispatcher.counts().completed


def run(Hook hook not None, Message message not None, done):
    return hook.run_one(message, (), done)


cdef HookFunction function = another
hooks = c_hook(<HookFunction>takes, Mail), c_hook(function, Message)
decisions = TO_CONTINUE, TO_COMPLETE, TO_RETRY, TO_FAIL
"""


def test_all_that_may_be_cimported(owner, tmp_path):
    module = build(tmp_path, "public", PUBLIC)
    takes, another = module.hooks
    contexts = []
    dispatcher = owner.start(
        {
            "10-takes": SimpleNamespace(mq_step=takes, mq_context_initialize=contexts.append),
            "20-another": SimpleNamespace(mq_step=another),
        }
    )
    hook = dispatcher.hook("mq_step")
    to_continue, to_complete, to_retry, to_fail = module.decisions
    mails = [module.Mail(decision) for decision in (to_continue, to_complete, to_fail)]
    for mail in mails:
        assert module.run(hook, mail, owner.done) is None
        assert mail.holder == "10-takes"
    assert module.counts(dispatcher) == (3, 3, 0)
    with pytest.raises(mqcore.NotHeld):
        module.back(contexts[0], module.Mail(to_retry), None)
    error = ValueError("in C")
    for mail in mails:
        module.back(contexts[0], mail, error if mail is mails[2] else None)
    owner.run_until(lambda: len(owner.finished) == 3)
    assert dict(owner.finished) == dict(zip(mails, (mqcore.COMPLETE, mqcore.COMPLETE, mqcore.FAIL), strict=True))
    assert mails[2].error is error
    assert module.counts(dispatcher) == (3, 0, 2)
    contexts[0].data.clear()
