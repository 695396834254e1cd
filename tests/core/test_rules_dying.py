"""Rule 12 in full: a hold ends once, however the last reference went and whatever is read of the message meanwhile."""

from __future__ import annotations

import gc
import logging
import sysconfig
import threading
import time
import weakref
from types import SimpleNamespace

import pytest

import mqcore
import mqcore.mail

HERE = threading.get_ident()
WITHOUT_GIL = sysconfig.get_config_var("Py_GIL_DISABLED")


def rows_of(dispatcher):
    return [row for row in dispatcher.stats().hooks if row.hook == "mq_step"]


@pytest.mark.parametrize("how", ["weakly", "strongly"])
def test_rule_12_the_error_is_read_before_the_step_has_failed(owner, caplog, how):
    """Whoever has the message may look at it at any time: that changes nothing."""

    class Mine(mqcore.Message):
        if how == "strongly":

            def __del__(self):
                pass

    told, holds = [], []

    def hook(context, message):
        holds.append(context.hold(message))
        return holds[-1]

    caplog.set_level(logging.WARNING, "mqcore")
    dispatcher = owner.start({"a": hook})
    message = Mine()
    assert dispatcher.hook("mq_step").run(message, done=lambda message, outcome: told.append(outcome)) is None
    holds.clear()
    error = message.error
    assert isinstance(error, mqcore.Abandoned)
    owner.run_until(lambda: told)
    assert told == [mqcore.FAIL] and message.error is error
    (row,) = rows_of(dispatcher)
    assert (row.failures, row.abandoned) == (1, 1)
    assert [record.message for record in caplog.records] == [str(error)]
    reference = weakref.ref(message)
    del message, error
    caplog.clear()
    gc.collect()
    assert reference() is None


def test_rule_14_the_error_is_read_before_the_step_has_ended(owner):
    errors = []

    def hook(context, message):
        dispatcher.cancel(message)
        errors.append(message.error)

    dispatcher = owner.start({"a": hook})
    message = mqcore.Message()
    assert dispatcher.hook("mq_step").run(message) is mqcore.FAIL
    assert isinstance(message.error, mqcore.Cancelled) and errors == [message.error]


class Slots(mqcore.Message):
    __slots__ = ("slot",)


class Attributes(mqcore.Message):
    pass


class Mail(mqcore.mail.Mail):
    pass


class SlotsOfMail(mqcore.mail.Mail):
    __slots__ = ("slot",)


def is_kept_for_good():
    """Whether any class is, as on CPython 3.13 built without the GIL, once there was another thread (python/cpython#117783)."""
    class Other:
        pass

    other = weakref.ref(Other)
    del Other
    gc.collect()
    return other() is not None


@pytest.mark.parametrize("kind", [Slots, Attributes, Mail, SlotsOfMail])
def test_rule_12_a_message_of_any_class_that_gains_a_finalizer(owner, kind):
    """All that it had goes, once, in the tick in which the step fails; by then there is another message."""

    class Mine(kind):
        pass

    class Content:
        pass

    told, gone = [], []
    done = lambda message, outcome: told.append((type(message), outcome, type(message.error)))  # noqa: E731
    dispatcher = owner.start({"a": lambda context, message: True}, hold_timeout=0)
    messages = [Mine(b"\n") if issubclass(kind, mqcore.mail.Mail) else Mine() for _ in range(3)]
    references = [weakref.ref(message, lambda reference: gone.append(threading.get_ident())) for message in messages]
    contents = []
    for message in messages:
        content = Content()
        contents.append(weakref.ref(content))
        message.payload = message.data["content"] = content
        if hasattr(kind, "slot"):
            message.slot = content
        if kind is Mail:
            message.json = {"content": content}
    del content, message
    assert dispatcher.hook("mq_step").run_many(messages, done=done) == [None] * 3
    Mine.__del__ = lambda self: None
    thread = threading.Thread(target=messages.clear)
    thread.start()
    thread.join()
    assert (told, gone) == ([], [])
    assert (dispatcher.held(), dispatcher.stats().held, dispatcher.stats().running) == ([], 0, 3)
    owner.run_until(lambda: len(told) == 3)
    assert told == [(mqcore.Message, mqcore.FAIL, mqcore.Abandoned)] * 3
    assert gone == [HERE] * 3
    assert [each() for each in references + contents] == [None] * 6
    (row,) = rows_of(dispatcher)
    assert (row.failures, row.abandoned, row.held) == (3, 3, 0)
    kind_of = weakref.ref(Mine)
    del Mine
    gc.collect()
    assert kind_of() is None or (WITHOUT_GIL and is_kept_for_good())


def test_rule_12_what_is_dead_is_gone_before_timeouts_are_looked_at(owner):
    """They share a bucket: with many of them at its head, each look at what is due would have to go past them all."""

    class Mine(mqcore.Message):
        pass

    class Content:
        def __del__(self):
            seen.append("gone")

    seen = []
    hold = SimpleNamespace(mq_step=lambda context, message: True)
    dispatcher = owner.start({"a": hold}, hold_timeout=0.001)
    messages = [Mine(payload=Content()) for _ in range(3)]
    done = lambda message, outcome: seen.append(type(message.error))  # noqa: E731
    dispatcher.hook("mq_step").run_many(messages, done=done)
    late = mqcore.Message()
    dispatcher.hook("mq_step").run(late, done=done)
    Mine.__del__ = lambda self: None
    messages.clear()
    time.sleep(0.003)
    owner.run_until(lambda: len(seen) == 7)
    assert seen == ["gone"] * 3 + [mqcore.HoldTimeout] + [mqcore.Abandoned] * 3


def test_rule_12_a_scan_stands_at_a_message_that_dies(owner):
    """Its place moves on as messages come and go."""

    class Mine(mqcore.Message):
        pass

    told = []
    dispatcher = owner.start({"a": lambda context, message: True}, hold_timeout=0)
    messages = [Mine(payload=number) for number in range(6)]
    done = lambda message, outcome: told.append(outcome)  # noqa: E731
    dispatcher.hook("mq_step").run_many(messages, done=done)
    dispatcher._begin_scan()
    found = [each.message.payload for each in dispatcher._scan(2)]
    Mine.__del__ = lambda self: None
    del messages[1:4]
    owner.run_until(lambda: len(told) == 3)
    while (portion := dispatcher._scan(2)) is not None:
        found += [each.message.payload for each in portion]
    del portion
    assert found == [0, 1, 4, 5]
    for message in messages:
        dispatcher.cancel(message)
