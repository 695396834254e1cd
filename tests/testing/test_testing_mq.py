"""Steps in tests: `Mq`, its results, and what its teardown finds."""

from __future__ import annotations

import asyncio
import pydoc
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import mqcore
import mqcore.testing
from mqcore.mail import Mail, Rejection
from mqcore.testing import Clock, Mq, PluginFactory, make_mail
from mqcore.testing.steps import STOP_OR_WAIT

HOOK = "mq_smtp_in_message"
FILES = {
    "10-tag.py": "def mq_smtp_in_message(context, message):\n    message.headers.add('X-Tag', '1')\n",
    "20-wait.py": "def mq_smtp_in_message(context, message):\n    context.start_timer(50, context.continue_, message)\n"
    "    return True\n",
    "30-no.py": "async def mq_smtp_in_message(context, message):\n    import asyncio\n    await asyncio.sleep(600)\n"
    "    message.reject(550, '5.7.1 no')\n    return context.plugin.config.get('then')\n",
    "40-never.py": "def mq_smtp_in_message(context, message):\n    raise AssertionError\n",
}


@pytest.fixture
def mq(factory: PluginFactory) -> Iterator[Mq]:
    with Clock() as clock, Mq(clock, factory) as made:
        yield made


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def hook(function: Any) -> Any:
    return SimpleNamespace(mq_smtp_in_message=function)


def test_a_step_in_no_time(mq: Mq, factory: PluginFactory, folder: Path) -> None:
    factory(folder)
    mq.hold_timeout = 1000
    step = mq.start(HOOK, make_mail(headers={"Subject": "hello"}, body="body\r\n"))
    assert step.held_by == "20-wait" and not step.is_over
    assert [(call.plugin, call.verdict) for call in step.timeline] == [("10-tag", "CONTINUE")]
    result = step.result()
    assert result.outcome is mqcore.COMPLETE
    assert result.rejection == Rejection(550, "5.7.1 no") and result.error is None
    assert result.changes == ("+X-Tag: 1", "rejected 550 5.7.1 no")
    assert [(call.plugin, call.verdict, call.held) for call in result.timeline] == [
        ("10-tag", "CONTINUE", None), ("20-wait", "CONTINUE", 50), ("30-no", "COMPLETE", 600),
    ]  # fmt: skip
    assert mq.clock.now == 650
    assert result.mail.headers["X-Tag"] == "1"
    assert "+X-Tag: 1" in result.diff().splitlines()


def test_a_step_that_fails(mq: Mq, factory: PluginFactory) -> None:
    factory(obj=hook(lambda context, message: 1 / 0))
    result = mq.run(HOOK, make_mail())
    assert result.outcome is mqcore.FAIL and isinstance(result.error, ZeroDivisionError)
    assert result.changes == () and result.diff() == ""


def test_arguments_and_other_messages(mq: Mq, factory: PluginFactory) -> None:
    seen: list[Any] = []
    asked = SimpleNamespace(mq_ask=lambda context, message, a, b: seen.append((a, b)))
    factory(obj=asked, hooks=[mqcore.HookSpec("mq_ask", "a", "b")])
    result = mq.run("mq_ask", mqcore.Message(), 1, 2)
    assert seen == [(1, 2)] and result.outcome is mqcore.CONTINUE and result.before is None
    with pytest.raises(mqcore.MqError, match="no hook"):
        mq.run("mq_asks", mqcore.Message())
    for wrong in ((mqcore.Message(), "mq_ask"), ("mq_ask", object())):
        with pytest.raises(TypeError, match="a step is of a hook, by its name, and of a message"):
            mq.run(*wrong, 1, 2)  # type: ignore[arg-type]


def test_the_newest_plugins_are_used(mq: Mq, factory: PluginFactory) -> None:
    with pytest.raises(mqcore.MqError, match="no plugins yet"):
        mq.run(HOOK, make_mail())
    factory(obj=hook(lambda context, message: message.headers.add("X", "1")))
    assert mq.run(HOOK, make_mail()).changes == ("+X: 1",)
    factory(obj=hook(lambda context, message: message.headers.add("X", "2")))
    assert mq.run(HOOK, make_mail()).changes == ("+X: 2",)


def test_a_hold_without_an_end(mq: Mq, factory: PluginFactory) -> None:
    factory(obj=hook(lambda context, message: True), config={"hold_timeout": 0})
    step = mq.start(HOOK, make_mail())
    assert mq.next_deadline() is None
    with pytest.raises(AssertionError, match="plugin plugin holds the message, and nothing is due"):
        step.result()
    step.cancel()
    assert step.is_over and isinstance(step.result().error, mqcore.Cancelled)


@pytest.mark.parametrize("owner", ["uvloop", "pyuv"])
def test_what_is_left_is_told(factory: PluginFactory, owner: str) -> None:
    def forgets(context: Any, message: Any) -> bool:
        context.start_timer(60, print, "hello")
        context.start_timer(0, lambda: 1 / 0)
        return True

    clock = Clock(owner)
    mq = Mq(clock, factory(obj=hook(forgets), name="10-forgets"))
    mail = make_mail()  # which nobody gives back
    mq.start(HOOK, mail)
    with pytest.raises(AssertionError) as raised:
        mq.close()
    assert str(raised.value).splitlines() == [
        f"plugin 10-forgets still holds a message of {HOOK}",
        "plugin 10-forgets still has a timer, due at 60 s, for print",
        STOP_OR_WAIT,
        "a callback raised ZeroDivisionError: division by zero",
    ]
    mq.close()
    clock.close()


class Sweeps:
    """Does something every minute, from the beginning, or from its first message."""

    def __init__(self, begins: str, stops: bool) -> None:
        self.begins, self.stops = begins, stops
        self.swept = 0
        self.context: Any = None
        self.timer: Any = None

    def sweep(self, context: Any) -> None:
        self.swept += 1
        self.start(context)

    def start(self, context: Any) -> None:
        self.timer = context.start_timer(60, self.sweep, context)

    def mq_context_initialize(self, context: Any) -> None:
        self.context = context
        if self.begins == "at once":
            self.start(context)

    def mq_smtp_in_message(self, context: Any, message: Any) -> None:
        if self.begins == "with a message":
            self.start(context)

    def mq_context_cleanup(self, context: Any) -> None:
        if self.stops:
            self.timer.stop()


@pytest.mark.parametrize("owner", ["uvloop", "pyuv"])
@pytest.mark.parametrize(("begins", "stops"), [("at once", False), ("at once", True), ("with a message", True)])
def test_a_sweep_may_run_on(factory: PluginFactory, owner: str, begins: str, stops: bool) -> None:
    plugin = Sweeps(begins, stops)
    with Clock(owner) as clock, Mq(clock, factory(obj=plugin)) as mq:
        mq.run(HOOK, make_mail())
        clock.advance(3600)
        if begins == "at once":
            mq.check()
    assert plugin.swept == 60
    (plugins,) = factory.newest or ()
    assert plugins.context_cleanup == plugin.mq_context_cleanup


def test_a_sweep_that_nobody_stops_and_one_too_many_are_told(factory: PluginFactory) -> None:
    with Clock() as clock:
        for plugin in (Sweeps("with a message", False), Sweeps("at once", False)):
            mq = Mq(clock, factory(obj=plugin, name="10-sweeps"))
            mq.run(HOOK, make_mail())
            if plugin.begins == "at once":
                plugin.sweep(plugin.context)
            with pytest.raises(AssertionError, match=r"10-sweeps still has a timer, due at \d+ s, for Sweeps.sweep in test_"):
                mq.close()


def test_a_sweep_does_not_let_a_test_wait_for_ever(
    mq: Mq, factory: PluginFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mqcore.testing.clock.MOST_MOVES", 100)
    plugin = Sweeps("at once", False)
    plugin.mq_smtp_in_message = lambda context, message: True  # type: ignore[method-assign, assignment]
    factory(obj=plugin, config={"hold_timeout": 0})
    step = mq.start(HOOK, make_mail())
    with pytest.raises(mqcore.MqError, match="in 100 steps of the clock"):
        step.result()
    step.cancel()


def test_plugins_find_the_loop_running(mq: Mq, factory: PluginFactory) -> None:
    """As in a server, in hooks and in what begins and ends a context."""
    seen: list[str] = []

    async def never() -> None:
        raise AssertionError

    class Plugin:
        def mq_context_initialize(self, context: Any) -> None:
            self.task = asyncio.create_task(self.begin())

        async def begin(self) -> None:
            seen.append("begun")

        def mq_smtp_in_message(self, context: Any, message: Any) -> None:
            assert asyncio.get_running_loop() is mq.clock.loop
            coroutine = never()
            try:
                asyncio.run(coroutine)
            finally:
                coroutine.close()

        def mq_context_cleanup(self, context: Any) -> None:
            assert asyncio.get_running_loop() is mq.clock.loop
            seen.append("ended")

    factory(obj=Plugin())
    result = mq.run(HOOK, make_mail())
    assert result.outcome is mqcore.FAIL and "cannot be called from a running event loop" in str(result.error)
    mq.close()
    assert seen == ["begun", "ended"]


def test_coroutines_that_wait(mq: Mq, factory: PluginFactory) -> None:
    async def waits(context: Any, message: Any) -> None:
        async with asyncio.timeout(20):
            await asyncio.sleep(10)
        await asyncio.to_thread(message.headers.add, "X", "1")

    factory(obj=hook(waits))
    assert mq.run(HOOK, make_mail()).changes == ("+X: 1",)
    assert mq.clock.now == 10


def test_mails(tmp_path: Path) -> None:
    (tmp_path / "one.eml").write_bytes(b"Subject: one\n\nbody\n")
    mail = make_mail(tmp_path / "one.eml", envelope="a@x.org", to="b@x.org")
    assert isinstance(mail, Mail) and mail.mime == b"Subject: one\n\nbody\n"
    assert (mail.envelope, mail.recipient, mail.recipients) == ("a@x.org", "b@x.org", ["b@x.org"])
    assert mail.connection is not None and (mail.connection.peer, mail.connection.helo) == ("192.0.2.1", "client.example.org")
    assert make_mail(b"X: 1\r\n\r\n").mime == b"X: 1\r\n\r\n"
    assert make_mail(headers=[("A", "1"), ("A", "2")], body="hello").mime == b"A: 1\r\nA: 2\r\n\r\nhello"
    several = make_mail(to=["b@x.org", "c@x.org"], json={"queue": "q"})
    assert (several.recipient, several.recipients, several.json["queue"]) == ("b@x.org", ["b@x.org", "c@x.org"], "q")
    assert make_mail(to=[]).recipient is None
    with pytest.raises(TypeError, match="not of both"):
        make_mail(b"", headers={})


def test_an_object_in_the_place_of_a_path(factory: PluginFactory) -> None:
    with pytest.raises(TypeError, match=r"not namespace\(\); an object is given as obj="):
        factory(SimpleNamespace())  # type: ignore[arg-type]


def test_all_names_are_shown_and_there() -> None:
    """To help(), and to whoever completes names."""
    assert set(mqcore.testing.__all__) <= set(dir(mqcore.testing))
    assert "class Peer" in pydoc.render_doc(mqcore.testing, renderer=pydoc.plaintext)
    for name in mqcore.testing.__all__:
        assert getattr(mqcore.testing, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'Mqq'"):
        _ = mqcore.testing.Mqq


def test_config_and_entry_points(factory: PluginFactory, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plugins = factory(folder / "30-no.py", config={"then": "x"})
    assert [(plugin.name, dict(plugin.config)) for plugin in plugins] == [("30-no", {"then": "x"})]
    assert factory.newest is plugins
    with pytest.raises(mqcore.PluginError, match="has no tables"):
        factory(folder, config={"then": "x"})
    with pytest.raises(mqcore.PluginError, match="config= has 30-on, and there is no plugin of that name; did you mean 30-no?"):
        factory(folder, config={"30-on": {"then": "x"}, "10-tag": {}})
    assert [each.name for each in factory(folder / "30-no.py", config={"30-no": {}, "40-no": {}, "others": {}})] == ["30-no"]
    with pytest.raises(mqcore.PluginError, match="no installed package has an entry point nobody"):
        factory(entry_point="nobody")
    info = folder / "lib"
    (info / "thing-1.dist-info").mkdir(parents=True)
    (info / "thing-1.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: thing\nVersion: 1\n")
    (info / "thing-1.dist-info" / "entry_points.txt").write_text("[mqcore.plugins]\nthing = thing_of_test:plugin\n")
    (info / "thing_of_test.py").write_text("class plugin:\n    mq_smtp_in_message = staticmethod(lambda context, mail: None)\n")
    monkeypatch.syspath_prepend(info)
    assert factory(entry_point="thing").order(HOOK) == ["thing"]
