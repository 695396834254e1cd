"""Rule 13: hooks and callbacks that raise, and what else of a plugin is logged."""

from __future__ import annotations

import asyncio
import logging

import pytest
from loop_tools import Lender

import mqcore

KEEPS_GOING = {"10-bad": {"on_error": "continue"}}


def raises(error):
    def hook(context, message):
        raise error

    return hook


def records(caplog, *words):
    """The records of level ERROR and above of mqcore's loggers that have all these words in them."""
    texts = [
        f"{record.name} {record.getMessage()} {record.exc_text or record.exc_info or ''}"
        for record in caplog.records
        if record.name.startswith("mqcore") and record.levelno >= logging.ERROR
    ]
    return [text for text in texts if all(word in text for word in words)]


# Rule 13


class Forgets:
    """Takes control, and keeps nothing to give it back with."""

    def mq_step(self, context, message):
        context.hold(message)
        return context.hold(message)


@pytest.mark.parametrize(
    ("error", "plugin"),
    [
        (mqcore.HoldTimeout, lambda context, message: True),
        (mqcore.RetryLimit, lambda context, message: mqcore.RETRY),
        (mqcore.RetryLimit, lambda context, message: context.retry(message) or True),
        (mqcore.Abandoned, Forgets()),
    ],
)
def test_what_a_plugin_did_without_an_exception_is_logged(owner, caplog, error, plugin):
    dispatcher = owner.start({"10-bad": plugin}, hold_timeout=0.01)
    message = owner.Message()
    if dispatcher.hook("mq_step").run(message, done=owner.done) is None:
        owner.run_until(lambda: owner.finished)
    assert type(message.error) is error
    expected = ("mqcore.plugins.10-bad", logging.WARNING, str(message.error))
    assert caplog.record_tuples == [expected]
    assert "10-bad" in str(message.error) and "mq_step" in str(message.error)


class Cancels(logging.Handler):
    """Cancels the step of a message while it is logged that it failed."""

    def emit(self, record):
        self.cancelled = self.dispatcher.cancel(self.message)


@pytest.mark.parametrize("plugin", [lambda context, message: mqcore.RETRY, Forgets()])
def test_cancelled_while_it_is_logged(owner, plugin):
    dispatcher = owner.start({"10-bad": plugin})
    handler = Cancels()
    handler.dispatcher, handler.message = dispatcher, owner.Message()
    logging.getLogger("mqcore").addHandler(handler)
    try:
        if dispatcher.hook("mq_step").run(handler.message, done=owner.done) is None:
            owner.run_until(lambda: owner.finished)
    finally:
        logging.getLogger("mqcore").removeHandler(handler)
    assert handler.cancelled
    assert type(handler.message.error) is mqcore.Cancelled
    assert (dispatcher.stats().cancelled, dispatcher.stats().failed) == (1, 0)


@pytest.mark.parametrize("error", [ValueError("bad"), asyncio.CancelledError(), GeneratorExit(), StopIteration(3)], ids=repr)
def test_rule_13_a_hook_that_raises_fails_the_step(engine, caplog, error):
    dispatcher = engine.start({"10-bad": raises(error), "20": lambda context, message: pytest.fail("called")})
    message = engine.Message()
    assert dispatcher.hook("mq_step").run(message, done=engine.done) is mqcore.FAIL
    assert message.error is error
    notes = " ".join(error.__notes__)
    assert "10-bad" in notes and "mq_step" in notes
    assert len(records(caplog, "10-bad", "mq_step", type(error).__name__)) == 1
    assert dispatcher.stats().failed == 1
    engine.turn()
    assert engine.finished == []


def test_rule_13_the_traceback_leads_into_the_plugin(engine):
    message = engine.Message()
    engine.start({"a": raises(ValueError("bad"))}).hook("mq_step").run(message)
    traceback = message.error.__traceback__
    while traceback.tb_next:
        traceback = traceback.tb_next
    assert traceback.tb_frame.f_code.co_name == "hook"


def test_rule_13_also_after_it_was_held_before(engine):
    holder = Lender()
    dispatcher = engine.start({"a": holder, "b": raises(ValueError("bad"))})
    message = engine.Message()
    dispatcher.hook("mq_step").run(message, done=engine.done)
    holder.context.continue_(message)
    engine.run_until(lambda: engine.finished)
    assert engine.finished == [(message, mqcore.FAIL)]
    assert isinstance(message.error, ValueError)


def test_rule_13_one_bad_message_does_not_stop_run_many(engine):
    def hook(context, message):
        if message.data.get("bad"):
            raise ValueError("bad")

    messages = [engine.Message() for _ in range(3)]
    messages[1].data["bad"] = True
    outcomes = engine.start({"a": hook}).hook("mq_step").run_many(messages)
    assert outcomes == [mqcore.CONTINUE, mqcore.FAIL, mqcore.CONTINUE]


def test_rule_13_on_error_continue_goes_on_with_the_next(engine, caplog):
    trace = []
    hooks = {"10-bad": raises(ValueError("bad")), "20": lambda context, message: trace.append(20)}
    dispatcher = engine.start(hooks, config=KEEPS_GOING)
    message = engine.Message()
    assert dispatcher.hook("mq_step").run(message, done=engine.done) is mqcore.CONTINUE
    assert trace == [20]
    assert message.error is None
    assert len(records(caplog, "10-bad", "mq_step", "ValueError")) == 1
    stats = dispatcher.stats()
    assert (stats.continued, stats.failed) == (1, 0)


@pytest.mark.parametrize("early", ["continue_", "complete", "retry", "fail"])
def test_rule_13_on_error_continue_after_an_early_give_back(engine, early):
    trace = []

    def hook(context, message):
        getattr(context, early)(message, *(["early"] if early == "fail" else []))
        raise ValueError("bad")

    dispatcher = engine.start({"10-bad": hook, "20": lambda context, message: trace.append(20)}, config=KEEPS_GOING)
    message = engine.Message()
    assert dispatcher.hook("mq_step").run(message) is mqcore.CONTINUE
    assert trace == [20]
    assert message.error is None


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("config", [None, KEEPS_GOING], ids=["fail", "continue"])
def test_rule_13_what_ends_a_program_leaves_through_the_loop(uvloop_owner, error, config):
    dispatcher = uvloop_owner.start({"10-bad": raises(error("stop"))}, config=config)
    message = mqcore.Message()
    assert dispatcher.hook("mq_step").run(message) is mqcore.FAIL
    assert isinstance(message.error, error)
    assert dispatcher.stats().failed == 1
    with pytest.raises(error) as caught:
        uvloop_owner.turn()
    assert caught.value is message.error
    uvloop_owner.turn()
    dispatcher.close()


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_rule_13_it_leaves_from_a_turn_too_and_done_is_called_first(uvloop_owner, error):
    holder = Lender()
    dispatcher = uvloop_owner.start({"a": holder, "b": raises(error())})
    message = mqcore.Message()
    dispatcher.hook("mq_step").run(message, done=uvloop_owner.done)
    holder.context.continue_(message)
    with pytest.raises(error):
        uvloop_owner.run_until(lambda: False)
    assert uvloop_owner.finished == [(message, mqcore.FAIL)]


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_rule_13_on_pyuv_the_loop_stops_and_close_raises_it(pyuv_owner, error):
    holder = Lender()
    dispatcher = pyuv_owner.start({"a": holder, "b": raises(error())})
    message = mqcore.Message()
    dispatcher.hook("mq_step").run(message, done=pyuv_owner.done)
    holder.context.continue_(message)
    pyuv_owner.loop.run()  # keeps running as long as the fixture's timer does, unless it is stopped
    assert pyuv_owner.finished == [(message, mqcore.FAIL)]
    assert isinstance(message.error, error)
    pyuv_owner.loop_errors.clear()
    with pytest.raises(error):
        dispatcher.close()
    dispatcher.close()


def test_rule_13_a_callback_of_a_timer_that_raises_is_logged(owner, caplog):
    fired = []

    def bad():
        raise ValueError("in a timer")

    class Plugin:
        def mq_context_initialize(self, context):
            context.start_timer(0, bad)
            context.start_timer(0.005, fired.append, 1)

        def mq_step(self, context, message):
            return False

    dispatcher = owner.start({"10-timer": Plugin()})
    owner.run_until(lambda: fired)
    assert len(records(caplog, "10-timer", "in a timer")) == 1
    assert dispatcher.stats().failed == 0


def test_rule_13_a_timer_that_gives_back_what_was_cancelled_is_logged_in_a_line(owner, caplog):
    fired = []

    class Plugin:
        def mq_step(self, context, message):
            context.start_timer(0, context.continue_, message)
            context.start_timer(0.005, fired.append, 1)
            return True

    dispatcher = owner.start({"10-timer": Plugin()})
    message = mqcore.Message()
    assert dispatcher.hook("mq_step").run(message) is None
    dispatcher.cancel(message)
    owner.run_until(lambda: fired)
    (record,) = caplog.records
    assert record.getMessage() == (
        "plugin 10-timer gave back a message of mq_step that it does not hold: its step is over"
    )
    assert (record.levelname, record.exc_info) == ("WARNING", None)
    assert dispatcher.stats().cancelled == 1


def test_rule_13_a_callback_of_a_watcher_that_raises_is_logged(owner, caplog, socket_pair):
    ours, theirs = socket_pair
    calls = []

    def ready(watcher, events):
        calls.append(ours.recv(1))
        raise ValueError("in a watcher")

    class Plugin:
        def mq_context_initialize(self, context):
            self.watcher = context.watch(ours.fileno(), mqcore.READ, ready)

        def mq_step(self, context, message):
            return False

    plugin = Plugin()
    owner.start({"10-watch": plugin})
    theirs.send(b"ab")
    owner.run_until(lambda: len(calls) == 2)
    assert len(records(caplog, "10-watch", "in a watcher")) == 2
    plugin.watcher.stop()


@pytest.mark.parametrize("config", [None, KEEPS_GOING], ids=["fail", "continue"])
@pytest.mark.parametrize("kind", ["timer", "watcher"])
def test_rule_13_a_callback_of_a_hold_that_raises_fails_the_step(owner, caplog, socket_pair, kind, config):
    ours, theirs = socket_pair
    trace = []
    theirs.send(b"x")

    def bad(*args):
        raise ValueError("in a callback")

    def hook(context, message):
        hold = context.hold(message)
        if kind == "timer":
            message.data["timer"] = hold.start_timer(0, bad)
        else:
            message.data["watcher"] = hold.watch(ours.fileno(), mqcore.READ, bad)
        return hold

    dispatcher = owner.start({"10-bad": hook, "20": lambda context, message: trace.append(20)}, config=config)
    message = owner.Message()
    dispatcher.hook("mq_step").run(message, done=owner.done)
    owner.run_until(lambda: owner.finished)
    if config:
        assert owner.finished == [(message, mqcore.CONTINUE)]
        assert trace == [20]
    else:
        assert owner.finished == [(message, mqcore.FAIL)]
        assert trace == []
        assert isinstance(message.error, ValueError)
        assert "10-bad" in " ".join(message.error.__notes__)
    assert records(caplog, "10-bad", "in a callback")


@pytest.mark.parametrize("what", ["continue_", "complete", "retry"])
def test_rule_13_a_callback_of_a_hold_that_gave_back_and_raises(owner, caplog, what):
    """The hold is over, so there is no step of it to fail: what was given back counts, and the error is logged."""
    trace = []

    def hook(context, message):
        trace.append("a")
        if message.retries:
            return False
        hold = context.hold(message)

        def bad():
            getattr(hold, what)()
            raise ValueError("too late")

        hold.start_timer(0, bad)
        return hold

    dispatcher = owner.start({"a": hook})
    message = owner.Message()
    dispatcher.hook("mq_step").run(message, done=owner.done)
    owner.run_until(lambda: owner.finished)
    assert owner.finished == [(message, mqcore.COMPLETE if what == "complete" else mqcore.CONTINUE)]
    assert records(caplog, "too late")
