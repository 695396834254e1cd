"""What others do while the core is at work: handlers of logging that raise, clean-up that gives back, cancelling early."""

from __future__ import annotations

import logging

import pytest
from loop_tools import Lender

import mqcore


class Raises(logging.Handler):
    """A handler whose own log is gone, as when a disk is full."""

    def emit(self, record):
        raise OSError("no space for the log")


@pytest.fixture
def broken_log():
    logger = logging.getLogger("mqcore")
    logger.addHandler(handler := Raises())
    yield
    logger.removeHandler(handler)


def told(owner):
    """What the loop's exception handler was told of the log; a test that expects it clears it."""
    errors = [type(error) for error in owner.loop_errors]
    owner.loop_errors.clear()
    return errors


def test_a_deadline_fails_the_step_though_it_cannot_be_logged(owner, broken_log):
    dispatcher = owner.start({"a": Lender()}, hold_timeout=0.005)
    messages = [owner.Message() for _ in range(3)]
    dispatcher.hook("mq_step").run_many(messages, done=owner.done)
    owner.run_until(lambda: len(owner.finished) == 3)
    assert {outcome for _, outcome in owner.finished} == {mqcore.FAIL}
    assert {type(message.error) for message in messages} == {mqcore.HoldTimeout}
    assert set(told(owner)) == {OSError}


def test_a_hook_that_raises_fails_the_step_though_it_cannot_be_logged(owner, broken_log):
    def hook(context, message):
        raise ValueError("bad")

    dispatcher = owner.start({"a": hook})
    message = owner.Message()
    assert dispatcher.hook("mq_step").run(message) is mqcore.FAIL
    assert type(message.error) is ValueError
    assert told(owner) == [OSError]


def test_the_loop_goes_on_though_a_callback_that_raises_cannot_be_logged(owner, broken_log):
    called = []

    def callback(number):
        called.append(number)
        raise ValueError("bad")

    lender = Lender()
    dispatcher = owner.start({"a": lender})
    message = owner.Message()
    dispatcher.hook("mq_step").run(message, done=owner.done)
    for number in range(3):
        lender.context.start_timer(0, callback, number)
    owner.run_until(lambda: len(called) == 3)
    assert told(owner) == [OSError] * 3
    lender.context.complete(message)
    owner.run_until(lambda: owner.finished)


def test_a_clean_up_that_raises_ends_a_plugin_though_it_cannot_be_logged(owner, broken_log):
    ended = []

    class Ends:
        def mq_context_cleanup(self, context):
            raise ValueError("bad")

        def mq_cleanup(self):
            ended.append(True)

        def mq_step(self, context, message):
            return False

    plugins = owner.plugins({"a": Ends()})
    owner.dispatcher(plugins)
    plugins.remove("a")
    owner.turn()
    assert ended
    assert told(owner) == [OSError]


def test_what_a_clean_up_in_a_turn_gives_back_goes_on(owner):
    """The clean-up comes last in its turn: what it asks for needs another one."""
    first, last = Lender(), Lender()
    kept = [owner.Message()]

    class Ends(Lender):
        def mq_context_cleanup(self, context):
            first.context.complete(kept[0])

    ends = Ends()
    plugins = owner.plugins({"a": first, "b": ends})
    step = owner.dispatcher(plugins).hook("mq_step")
    passing = owner.Message()
    step.run(passing, done=owner.done)
    first.context.continue_(passing)
    owner.run_until(lambda: passing.holder == "b")
    step.run(kept[0], done=owner.done)
    plugins.remove("b")
    plugins.add("c", last)  # kept[0] keeps the chain that has b
    first.context.retry(kept[0])
    owner.run_until(lambda: kept[0].holder == "a")  # on the chain as it is now
    ends.context.complete(passing)  # the last that b is needed for
    owner.run_until(lambda: len(owner.finished) == 2)
    assert {outcome for _, outcome in owner.finished} == {mqcore.COMPLETE}


def test_cancel_says_each_time_that_a_message_not_yet_begun_is_in_a_step(owner):
    said = []
    messages = [owner.Message(), owner.Message()]

    def hook(context, message):
        if message is messages[0]:
            said.extend([dispatcher.cancel(messages[1]), dispatcher.cancel(messages[1])])

    dispatcher = owner.start({"a": hook})
    assert dispatcher.hook("mq_step").run_many(messages) == [mqcore.CONTINUE, mqcore.FAIL]
    assert said == [True, True]
    assert type(messages[1].error) is mqcore.Cancelled
