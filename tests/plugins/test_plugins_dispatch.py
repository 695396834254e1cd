"""Plugin files on a real dispatcher: their life, and reload while messages are held."""

from __future__ import annotations

import asyncio
import builtins
import threading
from types import SimpleNamespace

import pytest
import uvloop

import mqcore

LIFE = """
import builtins
from mqcore import COMPLETE, MqError
log = lambda what: builtins.life.append((what, {0!r}))
def mq_version():
    log("version")
    return 1
def mq_initialize(): log("initialize")
def mq_cleanup(): log("cleanup")
def mq_context_initialize(context): log("context in")
def mq_context_cleanup(context): log("context out")
"""
HOLD = """
def mq_smtp_in_message(context, message):
    log("hook")
    context.data[message] = context.hold(message)
    message.release = lambda: context.data.pop(message).continue_()
    return context.data[message]
"""
COMPLETE = """
def mq_smtp_in_message(context, message):
    log("hook")
    return COMPLETE
"""
GO_ON = """
def mq_smtp_in_message(context, message): log("hook")
"""


class Message(mqcore.Message):
    pass


@pytest.fixture
def life(monkeypatch):
    events: list[tuple[str, str]] = []
    monkeypatch.setattr(builtins, "life", events, raising=False)
    return events


def run(coroutine):
    """asyncio's debug mode would warn of a busy machine."""

    async def patiently():
        asyncio.get_running_loop().slow_callback_duration = 60
        await coroutine

    uvloop.run(patiently())


async def drained():
    """Let the loop turn until what is queued has been done."""
    for _ in range(5):
        await asyncio.sleep(0.001)


def test_the_life_of_a_plugin(tmp_path, life):
    (tmp_path / "a.py").write_text(LIFE.format("a") + COMPLETE)

    async def main():
        with mqcore.Plugins(tmp_path) as plugins:
            assert [what for what, _ in life] == ["version", "initialize"]
            async with mqcore.Dispatcher(plugins) as dispatcher:
                assert await dispatcher.hook("mq_smtp_in_message")(Message()) is mqcore.COMPLETE
            with mqcore.Dispatcher(plugins):
                pass

    uvloop.run(main())
    assert [what for what, _ in life] == [
        *["version", "initialize", "context in", "hook", "context out"],
        *["context in", "context out", "cleanup"],
    ]


def test_plugins_closed_first_end_with_the_dispatcher(tmp_path, life):
    (tmp_path / "a.py").write_text(LIFE.format("a") + GO_ON)

    async def main():
        plugins = mqcore.Plugins(tmp_path)
        with mqcore.Dispatcher(plugins) as dispatcher:
            plugins.close()
            with pytest.raises(mqcore.MqError, match="closed"):
                mqcore.Dispatcher(plugins)
            assert await dispatcher.hook("mq_smtp_in_message")(Message()) is mqcore.CONTINUE

    uvloop.run(main())
    assert [what for what, _ in life[-3:]] == ["hook", "context out", "cleanup"]


def test_reload_while_a_message_is_held(tmp_path, life):
    (tmp_path / "a.py").write_text(LIFE.format("old a") + HOLD)
    (tmp_path / "b.py").write_text(LIFE.format("old b") + COMPLETE)

    async def main():
        with mqcore.Plugins(tmp_path) as plugins, mqcore.Dispatcher(plugins) as dispatcher:
            hook = dispatcher.hook("mq_smtp_in_message")
            message, finished = Message(), []
            assert hook.run(message, done=lambda message, outcome: finished.append(outcome)) is None
            del life[:]
            (tmp_path / "a.py").write_text(LIFE.format("new a") + GO_ON)
            (tmp_path / "b.py").unlink()
            plugins.reload()
            assert hook.run(Message()) is mqcore.CONTINUE
            await drained()
            assert [event for event in life if event[0] != "version"] == [
                ("initialize", "new a"),
                ("context in", "new a"),
                ("hook", "new a"),
            ]
            del life[:]
            message.release()
            del message
            await drained()
            assert finished == [mqcore.COMPLETE]
            assert life[0] == ("hook", "old b")
            assert sorted(life[1:]) == sorted(
                (end, name) for end in ("context out", "cleanup") for name in ("old a", "old b")
            )
            for name in ("old a", "old b"):
                assert life.index(("context out", name)) < life.index(("cleanup", name))

    uvloop.run(main())


@pytest.mark.parametrize("error", ["OSError('no route')", "SystemExit(3)"])
def test_a_context_that_cannot_be_made_refuses_the_change(tmp_path, life, error):
    (tmp_path / "a.py").write_text(LIFE.format("old") + GO_ON)

    async def main():
        with mqcore.Plugins(tmp_path) as plugins, mqcore.Dispatcher(plugins) as dispatcher:
            before = plugins.snapshot
            hook = dispatcher.hook("mq_smtp_in_message")
            source = LIFE.format("new") + f"\ndef mq_context_initialize(context): raise {error}\n"
            (tmp_path / "a.py").write_text(source)
            (tmp_path / "0.py").write_text(LIFE.format("first"))
            del life[:]
            with pytest.raises(mqcore.PluginError, match=r"no route|sys\.exit") as caught:
                plugins.reload()
            assert (caught.value.plugin, caught.value.path) == ("a", str(tmp_path / "a.py"))
            assert plugins.snapshot is before
            assert [event for event in life if event[0] != "version"] == [
                ("initialize", "first"),
                ("initialize", "new"),
                ("context in", "first"),
                ("context out", "first"),
                ("cleanup", "new"),
                ("cleanup", "first"),
            ]
            assert hook.run(Message()) is mqcore.CONTINUE
            assert life[-1] == ("hook", "old")

    uvloop.run(main())


def test_changes_from_another_thread(tmp_path, life, caplog):
    (tmp_path / "a.py").write_text(LIFE.format("a") + GO_ON)

    async def main():
        with mqcore.Plugins(tmp_path) as plugins, mqcore.Dispatcher(plugins) as dispatcher:
            hook = dispatcher.hook("mq_smtp_in_message")

            def change() -> None:
                for i in range(20):
                    plugins.reload()
                    plugins.add(f"b{i}", SimpleNamespace(mq_smtp_in_message=lambda context, message: None))

            thread = threading.Thread(target=change)
            thread.start()
            while thread.is_alive():
                hook.run(Message())
                await asyncio.sleep(0)
            await drained()
            assert hook.run(Message()) is mqcore.CONTINUE
            called = {(stats.plugin, stats.hook) for stats in dispatcher.stats().hooks if stats.calls}
            assert ("b19", "mq_smtp_in_message") in called

    run(main())
    assert not caplog.records
    for start, end in [("initialize", "cleanup"), ("context in", "context out")]:
        assert life.count((start, "a")) == life.count((end, "a"))
    assert life.count(("initialize", "a")) == 21


def test_two_changes_from_another_thread_before_the_loop_turns(tmp_path, life, caplog):
    (tmp_path / "a.py").write_text(LIFE.format("first") + GO_ON)

    async def main():
        with mqcore.Plugins(tmp_path) as plugins, mqcore.Dispatcher(plugins) as dispatcher:

            def change() -> None:
                for name in ("second", "third"):
                    (tmp_path / "a.py").write_text(LIFE.format(name) + GO_ON)
                    plugins.reload()

            thread = threading.Thread(target=change)
            thread.start()
            thread.join()
            await drained()
            dispatcher.hook("mq_smtp_in_message").run(Message())
            assert life[-1] == ("hook", "third")

    run(main())
    assert not caplog.records
    for name in ("first", "second", "third"):
        assert life.count(("initialize", name)) == life.count(("cleanup", name)) == 1


def test_a_dispatcher_that_is_made_during_a_change_gets_it(tmp_path, life, monkeypatch):
    begun = threading.Event()
    monkeypatch.setattr(builtins, "begun", begun, raising=False)
    slow = "\ndef mq_context_initialize(context):\n    builtins.begun.set()\n    import time\n    time.sleep(0.05)\n"
    (tmp_path / "a.py").write_text(LIFE.format("old") + slow + GO_ON)
    plugins = mqcore.Plugins(tmp_path)

    def change() -> None:
        begun.wait()
        (tmp_path / "a.py").write_text(LIFE.format("new") + GO_ON)
        plugins.reload()

    async def main():
        thread = threading.Thread(target=change)
        thread.start()
        with mqcore.Dispatcher(plugins) as dispatcher:
            thread.join()
            await drained()
            dispatcher.hook("mq_smtp_in_message").run(Message())
            assert life[-1] == ("hook", "new")

    uvloop.run(main())
    plugins.close()
    assert ("cleanup", "old") in life
    assert life[-1] == ("cleanup", "new")


SLOW = """
import builtins
def mq_initialize():
    builtins.begun.set()
    assert builtins.end.wait(60)
"""


@pytest.fixture
def slow(monkeypatch):
    """Begins, and ends, `mq_initialize` of a plugin made with SLOW."""
    events = SimpleNamespace(begun=threading.Event(), end=threading.Event())
    for name, event in vars(events).items():
        monkeypatch.setattr(builtins, name, event, raising=False)
    return events


def test_the_loop_does_not_wait_while_another_thread_changes_the_plugins(tmp_path, life, slow, caplog):
    """It turns, also where a change of before is still to be taken over, and dispatchers are made and closed."""
    (tmp_path / "a.py").write_text(LIFE.format("old") + GO_ON)

    async def main():
        with mqcore.Plugins(tmp_path) as plugins, mqcore.Dispatcher(plugins) as dispatcher:

            def change() -> None:
                plugins.add("b", SimpleNamespace(mq_smtp_in_message=lambda context, message: mqcore.COMPLETE))
                (tmp_path / "a.py").write_text(LIFE.format("new") + SLOW + GO_ON)
                plugins.reload()

            thread = threading.Thread(target=change)
            thread.start()
            try:
                assert slow.begun.wait(60)
                await drained()
                assert await dispatcher.hook("mq_smtp_in_message")(Message()) is mqcore.COMPLETE
                with mqcore.Dispatcher(plugins) as other:
                    assert await other.hook("mq_smtp_in_message")(Message()) is mqcore.COMPLETE
                    assert thread.is_alive()
                    slow.end.set()
                    thread.join()
                    await drained()
                    for each in (dispatcher, other):
                        each.hook("mq_smtp_in_message").run(Message())
                        assert life[-1] == ("hook", "new")
            finally:
                slow.end.set()
                thread.join()

    run(main())
    assert not caplog.records
    assert life.count(("context in", "old")) == life.count(("context out", "old")) == 2


def test_a_change_by_a_plugin_whose_context_is_being_made(life):
    """It comes to that dispatcher in a turn, and to others at once."""

    async def main():
        plugins = mqcore.Plugins()

        class Adds:
            def mq_context_initialize(self, context):
                life.append("in")
                if len(plugins) == 1:
                    plugins.add("b", SimpleNamespace(mq_smtp_in_message=lambda context, message: mqcore.COMPLETE))

        plugins.add("a", Adds())
        with mqcore.Dispatcher(plugins) as dispatcher:
            assert await dispatcher.hook("mq_smtp_in_message")(Message()) is mqcore.CONTINUE
            await drained()
            assert await dispatcher.hook("mq_smtp_in_message")(Message()) is mqcore.COMPLETE
        plugins.close()

    uvloop.run(main())
    assert life == ["in"]


def test_plugins_that_are_closed_before_a_change_was_taken_over(life):
    """Then the dispatcher keeps what it has."""

    async def main():
        plugins = mqcore.Plugins()
        plugins.add("a", SimpleNamespace(mq_smtp_in_message=lambda context, message: mqcore.COMPLETE))

        def change() -> None:
            plugins.add("b", SimpleNamespace(mq_cleanup=lambda: life.append("b")))
            plugins.close()

        with mqcore.Dispatcher(plugins) as dispatcher:
            thread = threading.Thread(target=change)
            thread.start()
            thread.join()
            await drained()
            assert await dispatcher.hook("mq_smtp_in_message")(Message()) is mqcore.COMPLETE

    uvloop.run(main())
    assert life == ["b"]


def counted(name, life):
    """A plugin that is told apart from one that has ended: no context of it begins or ends then."""
    alive = []

    def check(context) -> None:
        assert alive == [True]

    return SimpleNamespace(
        mq_initialize=lambda: alive.append(True),
        mq_context_initialize=check,
        mq_context_cleanup=check,
        mq_cleanup=lambda: life.append((name, alive.pop())),
        on_thing=lambda context, message: None,
    )


def test_dispatchers_come_and_go_while_threads_change_the_plugins(life):
    """No context of a plugin that has ended is made, nothing fails, and every plugin ends once."""
    plugins = mqcore.Plugins(hooks=[mqcore.HookSpec("on_thing")])
    failures: list[object] = []

    def change(number: int) -> None:
        try:
            for i in range(300):
                plugins.add(f"{number}-{i}", counted(f"{number}-{i}", life))
                if i >= 3:
                    plugins.remove(f"{number}-{i - 3}")
        except BaseException as error:
            failures.append(error)

    async def main():
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: failures.append(context))
        threads = [threading.Thread(target=change, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            with mqcore.Dispatcher(plugins) as dispatcher:
                for _ in range(5):
                    assert await dispatcher.hook("on_thing")(Message()) is mqcore.CONTINUE
                    await asyncio.sleep(0)
        with mqcore.Dispatcher(plugins) as dispatcher:
            await dispatcher.hook("on_thing")(Message())
            assert len(dispatcher.stats().hooks) == len(plugins) == 6

    uvloop.run(main())
    plugins.close()
    assert not failures
    assert len(life) == len(set(life)) == 600


@pytest.mark.parametrize("name", ["x", "on_upload", "größe", "close"])
def test_a_hook_of_any_name(name):
    async def coroutine(context, message, extra):
        await asyncio.sleep(0)
        return mqcore.COMPLETE

    async def main():
        plugins = mqcore.Plugins(hooks=[mqcore.HookSpec(name, "extra")])
        plugins.add("a", SimpleNamespace(**{name: lambda context, message, extra: extra == "hold"}))
        plugins.add("b", SimpleNamespace(**{name: coroutine}))
        with mqcore.Dispatcher(plugins) as dispatcher:
            hook = dispatcher.hook(name)
            assert (hook.name, hook.spec.signature) == (name, f"{name}(context, message, extra)")
            assert await hook(Message(), "") is mqcore.COMPLETE
            message = Message()
            assert hook.run(message, "hold") is None
            assert [(held.plugin, held.hook) for held in dispatcher.held()] == [("a", name)]
            dispatcher.cancel(message)
            assert {row.hook for row in dispatcher.stats().hooks} == {name}

    uvloop.run(main())


def test_counters_go_on_over_a_reload_and_stay_when_the_plugin_goes(tmp_path, life):
    async def main():
        with mqcore.Plugins(tmp_path) as plugins, mqcore.Dispatcher(plugins) as dispatcher:
            hook = dispatcher.hook("mq_smtp_in_message")
            rows = []
            for source in (GO_ON, COMPLETE, None, GO_ON):
                if source is None:
                    (tmp_path / "a.py").unlink()
                else:
                    (tmp_path / "a.py").write_text(LIFE.format("a") + source)
                plugins.reload()
                hook.run(Message())
                await drained()
                (row,) = dispatcher.stats().hooks
                rows.append((row.plugin, row.hook, row.calls, row.completes))
        return rows

    expected = [("a", "mq_smtp_in_message", calls, completes) for calls, completes in [(1, 0), (2, 1), (2, 1), (3, 1)]]
    assert uvloop.run(main()) == expected


@pytest.mark.parametrize("thread", [False, True])
def test_a_plugin_that_is_removed_may_change_the_plugins_in_its_cleanup(life, thread):
    async def main():
        plugins = mqcore.Plugins()
        plugins.add("a", SimpleNamespace(mq_context_cleanup=lambda context: plugins.remove("b")))
        plugins.add("b", SimpleNamespace(mq_context_cleanup=lambda context: plugins.add("c", SimpleNamespace())))
        with mqcore.Dispatcher(plugins):
            if thread:
                await asyncio.to_thread(plugins.remove, "a")
            else:
                plugins.remove("a")
            await drained()
            assert [plugin.name for plugin in plugins] == ["c"]
        plugins.close()

    uvloop.run(main())


def test_a_removed_plugin_whose_context_closes_the_dispatcher_as_it_is_dropped(life):
    class Last:
        def __del__(self):
            dispatcher.close()

    def keep_last(context):
        context.data["last"] = Last()

    cleaned = []
    plugins = mqcore.Plugins()
    plugins.add("a", SimpleNamespace(mq_context_initialize=keep_last))
    plugins.add("b", SimpleNamespace(mq_context_cleanup=lambda context: cleaned.append("b")))

    async def main():
        nonlocal dispatcher
        dispatcher = mqcore.Dispatcher(plugins)
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: errors.append(context))
        plugins.remove("a")
        plugins.remove("b")
        await drained()

    dispatcher, errors = None, []
    uvloop.run(main())
    plugins.close()
    assert (cleaned, errors) == (["b"], [])
