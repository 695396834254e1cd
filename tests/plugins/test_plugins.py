"""Finding, ordering, starting, reloading and ending plugins, with a stand-in for the dispatcher."""

from __future__ import annotations

import dataclasses
import gc
import logging
import os
import pickle
import subprocess
import sys
import threading
import weakref
from collections.abc import Iterable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from mqcore.errors import MqError, PluginError
from mqcore.hooks import LIFECYCLE, MAILERQ_HOOKS, HookSpec
from mqcore.plugins import Plugin, Plugins

HOOK = "def mq_smtp_in_message(context, message): return {}\n"

LIFE = """
events = []
import builtins
def mq_initialize(): builtins.life.append(("initialize", {0!r}))
def mq_cleanup(): builtins.life.append(("cleanup", {0!r}))
"""


@pytest.fixture
def directory(tmp_path):
    """A directory of plugins, and a call to write files in it."""
    root = tmp_path / "plugins"
    root.mkdir()

    def write(**files: str) -> None:
        for name, text in files.items():
            path = root / name.replace("__", "/", 1)
            path.parent.mkdir(exist_ok=True)
            path.with_suffix(".py").write_text(text)

    return SimpleNamespace(path=root, write=write, file=lambda name, text: (root / name).write_text(text))


@pytest.fixture
def life(monkeypatch):
    """What plugins made with `LIFE` did, in order."""
    import builtins

    events: list[tuple[str, str]] = []
    monkeypatch.setattr(builtins, "life", events, raising=False)
    return events


def private_modules() -> set[str]:
    return {name for name in sys.modules if name.startswith("mqcore_plugins.")}


@pytest.fixture(autouse=True)
def no_module_stays():
    before = private_modules()
    yield
    gc.collect()
    assert private_modules() == before


class FakeDispatcher:
    """Keeps to the protocol between plugins and dispatchers, and can refuse a change."""

    def __init__(self, plugins: Plugins) -> None:
        self.error: BaseException | None = None
        self.log: list[str] = []
        self.plugins: tuple[Plugin, ...] = ()
        with plugins._attach(self) as snapshot:
            self.begin(snapshot)

    def begin(self, snapshot: tuple[Plugin, ...]) -> None:
        for plugin in snapshot:
            plugin._acquire()
        self.plugins = snapshot

    def _prepare(self, new: tuple[Plugin, ...]) -> SimpleNamespace:
        self.log.append("prepare")
        if self.error:
            raise self.error
        added = [plugin for plugin in new if plugin not in self.plugins]
        for plugin in added:
            plugin._acquire()

        def commit() -> None:
            self.log.append("commit")
            gone = [plugin for plugin in self.plugins if plugin not in new]
            self.plugins = new
            self.held = gone

        def discard() -> None:
            self.log.append("discard")
            for plugin in added:
                plugin._release()

        return SimpleNamespace(commit=commit, discard=discard)

    def let_go(self, plugins: list[Plugin]) -> None:
        for plugin in plugins:
            plugin._release()


def names(plugins: Iterable[Plugin]) -> list[str]:
    return [plugin.name for plugin in plugins]


class TestHookSpec:
    def test_holds_name_and_arguments(self):
        spec = HookSpec("mq_step", "left", "right")
        assert (spec.name, spec.args) == ("mq_step", ("left", "right"))
        assert spec == HookSpec("mq_step", "left", "right") != HookSpec("mq_step")
        assert hash(spec) == hash(HookSpec("mq_step", "left", "right"))
        assert spec.signature == "mq_step(context, message, left, right)"

    def test_is_frozen(self):
        with pytest.raises(dataclasses.FrozenInstanceError):
            HookSpec("mq_step").name = "mq_other"

    @pytest.mark.parametrize("name", ["step", "MQ_step", "on_upload", "x", "match", "type", "größe", "取る", "close", "a_"])
    def test_takes_any_identifier(self, name):
        spec = HookSpec(name)
        assert spec.signature == f"{name}(context, message)"
        with Plugins(hooks=[spec]) as plugins:
            plugins.add("a", SimpleNamespace(**{name: lambda context, message: None}))
            assert plugins.order(name) == ["a"]

    @pytest.mark.parametrize(
        ("name", "wrong"),
        [
            *[(name, "is an identifier, since a function of that name implements it") for name in ("mq-s", "mq_ s", "", "1")],
            *[(name, "is a keyword of Python, .*; choose another") for name in ("class", "None", "await")],
            *[(name, "begins with _, .*; choose another") for name in ("_step", "__call__", "_")],
            ("ﬁlter", "Python reads it as 'filter' in a plugin; declare it in that form"),
            *[(name, "plugins have it for their own life; choose another") for name in LIFECYCLE],
        ],
    )
    def test_refuses_what_cannot_be_a_hook(self, name, wrong):
        with pytest.raises(ValueError, match=f"{name}.*{wrong}|{wrong}.*{name}"):
            HookSpec(name)

    @pytest.mark.parametrize("name", [3, None, b"step", ["step"]])
    def test_a_name_is_a_str(self, name):
        with pytest.raises(TypeError, match="a hook's name is a str, not"):
            HookSpec(name)
        with pytest.raises(TypeError, match="an argument of step needs a str for a name, not"):
            HookSpec("step", name)

    def test_a_str_of_a_class_of_its_own_becomes_a_plain_one(self):
        class Name(str):
            def __eq__(self, other):
                raise AssertionError

            def __hash__(self):
                raise AssertionError

            def __str__(self):
                raise AssertionError

        assert type(HookSpec(Name("step")).name) is str
        assert HookSpec(Name("step")) == HookSpec("step")

    def test_refuses_arguments_that_are_no_identifiers(self):
        with pytest.raises(ValueError, match="'to whom'"):
            HookSpec("mq_step", "to whom")

    def test_mailerq_hooks(self):
        assert {spec.name: spec.args for spec in MAILERQ_HOOKS if spec.args} == {
            "mq_smtp_in_authenticate": ("login", "password"),
            "mq_smtp_in_mailfrom": ("address",),
            "mq_smtp_in_rcptto": ("address",),
            "mq_smtp_in_data": ("mime",),
        }
        assert len({spec.name for spec in MAILERQ_HOOKS}) == len(MAILERQ_HOOKS) == 11


class TestFinding:
    def test_a_directory_in_byte_order_of_names(self, directory):
        for name in ["20-b.py", "10-a.py", "é.py", "Z.py", "a.py", "a-b.py", "10-a b.py"]:
            directory.file(name, HOOK.format(False))
        with Plugins(directory.path) as plugins:
            assert names(plugins) == ["10-a", "10-a b", "20-b", "Z", "a", "a-b", "é"]
            assert plugins.order("mq_smtp_in_message") == names(plugins)
            assert plugins.order("mq_smtp_in_connect") == []
            assert plugins.snapshot[0].path == str(directory.path / "10-a.py")

    def test_what_is_no_plugin_is_left_alone(self, directory):
        for name in [".hidden.py", "_helper.py", "README", "10-a.py~", "10-a.py.bak", "c.pyc"]:
            directory.file(name, "this is not Python")
        for name in ["_private", ".git", "templates", "odd.py"]:
            (directory.path / name).mkdir()
        (directory.path / "_private" / "__init__.py").write_text("this is not Python")
        with Plugins(directory.path) as plugins:
            assert len(plugins) == 0

    def test_an_empty_directory_is_fine(self, directory):
        with Plugins(directory.path) as plugins:
            assert list(plugins) == []

    def test_files_packages_and_several_paths(self, tmp_path, directory):
        directory.write(a=HOOK.format(1), pkg____init__=HOOK.format(2))
        single = tmp_path / "_50-single.py"
        single.write_text(HOOK.format(3))
        with Plugins(str(single), directory.path / "a.py", os.fsencode(directory.path / "pkg") + b"/") as plugins:
            assert {p.name: p.hooks["mq_smtp_in_message"](None, None) for p in plugins} == {
                "_50-single": 3,
                "a": 1,
                "pkg": 2,
            }

    def test_a_file_reached_twice_is_one_plugin(self, directory, monkeypatch):
        directory.write(a=HOOK.format(1))
        monkeypatch.chdir(directory.path)
        with Plugins(directory.path, "a.py", ".") as plugins:
            assert names(plugins) == ["a"]
            monkeypatch.chdir("/")
            plugins.reload()
            assert names(plugins) == ["a"]

    def test_a_link_is_followed(self, tmp_path, directory):
        (tmp_path / "real.py").write_text(HOOK.format(1))
        (directory.path / "10-link.py").symlink_to(tmp_path / "real.py")
        with Plugins(directory.path) as plugins:
            assert names(plugins) == ["10-link"]

    def test_a_package_with_relative_imports_of_its_own_modules(self, directory, monkeypatch):
        monkeypatch.setattr(sys, "dont_write_bytecode", False)
        inner = directory.path / "pkg" / "sub"
        inner.mkdir(parents=True)
        (inner / "__init__.py").write_text("from ..verdict import VERDICT\n")
        (inner.parent / "verdict.py").write_text("VERDICT = 'first'\n")
        (inner.parent / "data.txt").write_text("text")
        (inner.parent / "__init__.py").write_text(
            "import importlib.resources\n"
            "from .sub import VERDICT\n"
            "TEXT = importlib.resources.files(__name__).joinpath('data.txt').read_text()\n"
            "def mq_smtp_in_message(context, message):\n"
            "    from .late import LATE\n"
            "    return VERDICT, TEXT, LATE\n"
        )
        (inner.parent / "late.py").write_text("LATE = 1\n")
        with Plugins(directory.path) as plugins:
            assert plugins.snapshot[0].hooks["mq_smtp_in_message"](None, None) == ("first", "text", 1)
            # Of the same size and in the same second: what a bytecode cache would not see.
            (inner.parent / "verdict.py").write_text("VERDICT = 'other'\n")
            plugins.reload()
            assert plugins.snapshot[0].hooks["mq_smtp_in_message"](None, None) == ("other", "text", 1)
        assert not list(directory.path.rglob("__pycache__"))

    def test_modules_are_whole(self, directory):
        directory.file(
            "10.a-é.py",
            "from __future__ import annotations\n"
            "import dataclasses\n"
            "from mqcore.errors import MqError\n"
            "@dataclasses.dataclass\n"
            "class Point:\n"
            "    x: int = 0\n" + HOOK.format("Point(1)"),
        )
        with Plugins(directory.path) as plugins:
            point = plugins.snapshot[0].hooks["mq_smtp_in_message"](None, None)
            assert pickle.loads(pickle.dumps(point)) == point
            assert type(point).__module__ == "mqcore_plugins.10%2Ea-é"
            module = sys.modules[type(point).__module__]
            assert module.__file__ == str(directory.path / "10.a-é.py")

    def test_a_file_without_hooks_is_told_of(self, directory, caplog):
        directory.write(common="x = 1\n")
        with Plugins(directory.path):
            assert "begin its name with _" in caplog.text


class TestPlugin:
    def test_attributes(self, directory):
        directory.write(a=HOOK.format(1) + "def mq_context_initialize(context): pass\ndef helper(): pass\n")
        with Plugins(directory.path, config={"a": {"key": 1}}) as plugins:
            (plugin,) = plugins
            assert (plugin.name, plugin.kind, plugin.path) == ("a", "python", str(directory.path / "a.py"))
            assert list(plugin.hooks) == ["mq_smtp_in_message"]
            assert plugin.context_initialize.__name__ == "mq_context_initialize"
            assert plugin.context_cleanup is None
            assert plugin.log is logging.getLogger("mqcore.plugins.a")
            assert plugin.config == {"key": 1}
            for mapping in (plugin.hooks, plugin.config):
                with pytest.raises(TypeError):
                    mapping["other"] = None
            assert "a.py" in repr(plugin)
            assert repr(plugins) == "<mqcore.Plugins a>"

    def test_objects_of_all_kinds(self):
        class WithMethods:
            verdict = 1

            def mq_smtp_in_message(self, context, message):
                return self.verdict

            async def mq_smtp_in_connect(self, context, message):
                return None

        class OfStatics:
            @staticmethod
            def mq_smtp_in_message(context, message):
                return 2

        module = ModuleType("anything")
        module.mq_smtp_in_message = lambda *args: 3
        with Plugins() as plugins:
            plugins.add("40", SimpleNamespace(mq_smtp_in_message=lambda context, message, extra=None: 4))
            plugins.add("30", module)
            plugins.add("20", OfStatics)
            plugins.add("10", WithMethods())
            assert [plugin.hooks["mq_smtp_in_message"](None, None) for plugin in plugins] == [1, 2, 3, 4]
            assert plugins.order("mq_smtp_in_connect") == ["10"]
            assert plugins.snapshot[0].path is None

    def test_own_hooks_replace_the_default(self):
        with Plugins(hooks=[*MAILERQ_HOOKS, HookSpec("mq_own", "extra")]) as plugins:
            plugins.add("a", SimpleNamespace(mq_own=lambda context, message, extra: None))
            assert plugins.order("mq_own") == ["a"]
            assert "mq_smtp_in_data" in plugins.hooks
        with Plugins(hooks=[HookSpec("mq_own")]) as plugins:
            assert list(plugins.hooks) == ["mq_own"]
            with pytest.raises(
                PluginError,
                match=r"mq_smtp_in_data is a hook of MailerQ's, and hooks= put others in the place of those; "
                r"to have both, give Plugins hooks=\[\*mqcore.MAILERQ_HOOKS, ...\]",
            ):
                plugins.add("a", SimpleNamespace(mq_smtp_in_data=print))

    def test_bad_declarations_of_hooks(self):
        with pytest.raises(TypeError, match="'mq_own'"):
            Plugins(hooks=["mq_own"])
        one = r"hooks= is a list of HookSpec, not .*; write hooks=\[HookSpec\({0}, ...\)\], or hooks=\[\*mqcore.MAILERQ_HOOKS, "
        with pytest.raises(TypeError, match=one.format("'mq_own'")):
            Plugins(hooks=HookSpec("mq_own", "extra"))
        for wrong in ("mq_own", None, HookSpec):
            with pytest.raises(TypeError, match=one.format("name")):
                Plugins(hooks=wrong)
        with pytest.raises(ValueError, match="mq_own is declared twice"):
            Plugins(hooks=[HookSpec("mq_own"), HookSpec("mq_own", "extra")])
        with Plugins(hooks=[HookSpec("mq_own"), HookSpec("mq_own")]) as plugins:
            assert len(plugins.hooks) == 1

    def test_order_of_an_unknown_hook(self):
        with Plugins() as plugins, pytest.raises(MqError, match="the nearest name is mq_smtp_in_message"):
            plugins.order("mq_smtp_in_mesage")

    def test_a_thousand_plugins_load_fast(self):
        with Plugins() as plugins:
            for i in range(1000):
                plugins.add(f"{i:04}", SimpleNamespace())
            assert names(plugins) == [f"{i:04}" for i in range(1000)]


class TestLifecycle:
    def test_initialized_in_order_and_cleaned_up_in_reverse_once(self, directory, life):
        directory.write(b=LIFE.format("b"), a=LIFE.format("a"))
        plugins = Plugins(directory.path)
        assert life == [("initialize", "a"), ("initialize", "b")]
        plugins.close()
        plugins.close()
        assert life[2:] == [("cleanup", "b"), ("cleanup", "a")]

    def test_the_order_is_that_of_names_not_of_files_or_paths(self, directory, tmp_path, life):
        directory.file("b.py", LIFE.format("b"))
        directory.file("b-c.py", LIFE.format("b-c"))
        (tmp_path / "a.py").write_text(LIFE.format("a"))
        with Plugins(directory.path, tmp_path / "a.py") as plugins:
            assert life == [("initialize", "a"), ("initialize", "b"), ("initialize", "b-c")]
            del life[:]
            plugins.reload()
            assert life[3:] == [("cleanup", "b-c"), ("cleanup", "b"), ("cleanup", "a")]

    def test_a_closed_set_can_do_nothing_more(self, directory):
        plugins = Plugins(directory.path)
        dispatcher = FakeDispatcher(plugins)
        plugins.close()
        assert len(plugins) == 0
        for call in (
            plugins.reload,
            plugins.load_entry_points,
            lambda: plugins.load(directory.path),
            lambda: plugins.add("a", SimpleNamespace()),
            plugins._attach(dispatcher).__enter__,
        ):
            with pytest.raises(MqError, match="closed"):
                call()

    def test_cleaned_up_when_the_last_dispatcher_lets_go(self, directory, life):
        directory.write(a=LIFE.format("a") + HOOK.format(1))
        plugins = Plugins(directory.path)
        first, second = FakeDispatcher(plugins), FakeDispatcher(plugins)
        plugin = plugins.snapshot[0]
        plugins.remove("a")
        assert first.held == second.held == [plugin]
        first.let_go(first.held)
        assert life == [("initialize", "a")]
        assert plugin.hooks["mq_smtp_in_message"].__module__ in sys.modules
        thread = threading.Thread(target=second.let_go, args=(second.held,))
        thread.start()
        thread.join()
        assert life == [("initialize", "a"), ("cleanup", "a")]
        with pytest.raises(PluginError, match="plugin a: it was removed"):
            plugin._acquire()
        plugins.close()
        assert len(life) == 2

    def test_closing_waits_for_dispatchers(self, directory, life):
        directory.write(a=LIFE.format("a"))
        plugins = Plugins(directory.path)
        dispatcher = FakeDispatcher(plugins)
        plugins.close()
        assert life == [("initialize", "a")]
        dispatcher.let_go(list(dispatcher.plugins))
        assert life[1:] == [("cleanup", "a")]

    def test_what_cleanup_raises_is_logged(self, life, caplog):
        def fail():
            raise RuntimeError("no disk")

        plugins = Plugins()
        plugins.add("a", SimpleNamespace(mq_cleanup=lambda: life.append("a")))
        plugins.add("b", SimpleNamespace(mq_cleanup=fail))
        plugins.add("c", SimpleNamespace(mq_cleanup=sys.exit))
        plugins.close()
        assert life == ["a"]
        assert [record.name for record in caplog.records] == ["mqcore.plugins.c", "mqcore.plugins.b"]
        assert "no disk" in caplog.text

    def test_an_interrupted_cleanup_does_not_stop_the_others(self, life):
        def interrupt():
            raise KeyboardInterrupt

        plugins = Plugins()
        plugins.add("a", SimpleNamespace(mq_cleanup=lambda: life.append("a")))
        plugins.add("b", SimpleNamespace(mq_cleanup=interrupt))
        with pytest.raises(KeyboardInterrupt):
            plugins.close()
        assert life == ["a"]

    def test_a_set_that_is_dropped_is_cleaned_up(self, directory, life):
        directory.write(a=LIFE.format("a"))
        plugins = Plugins(directory.path)
        del plugins
        gc.collect()
        assert life == [("initialize", "a"), ("cleanup", "a")]

    def test_cleaned_up_at_exit(self, directory):
        directory.write(a="def mq_cleanup(): print('a')\n", b="def mq_cleanup(): print('b')\n")
        code = (
            "from mqcore.plugins import Plugins\n"
            f"plugins = Plugins({str(directory.path)!r})\n"
            "[plugin._acquire() for plugin in plugins]\n"
            "plugins.snapshot[0].hooks, print('running')\n"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert (done.stdout, done.stderr) == ("running\nb\na\n", "")

    @pytest.mark.parametrize("version", ["mq_version = 1", "def mq_version(): return 1", ""])
    def test_versions_that_match(self, directory, version):
        directory.write(a=HOOK.format(1) + version)
        with Plugins(directory.path) as plugins:
            assert names(plugins) == ["a"]
            assert list(plugins.snapshot[0].hooks) == ["mq_smtp_in_message"]

    def test_a_failure_undoes_what_this_call_did(self, tmp_path, directory, life):
        (tmp_path / "first.py").write_text(LIFE.format("first"))
        plugins = Plugins(tmp_path / "first.py")
        directory.write(
            a=LIFE.format("a"),
            b=LIFE.format("b"),
            c="def mq_initialize(): raise OSError('no port')\n"
            "def mq_cleanup(): raise AssertionError('was never initialized')\n",
            d=LIFE.format("d"),
        )
        before, modules = plugins.snapshot, private_modules()
        with pytest.raises(PluginError, match=r"c\.py:1: plugin c: mq_initialize\(\) raised OSError: no port"):
            plugins.load(directory.path)
        assert life[1:] == [("initialize", "a"), ("initialize", "b"), ("cleanup", "b"), ("cleanup", "a")]
        assert plugins.snapshot is before
        assert private_modules() == modules
        plugins.reload()
        assert names(plugins) == ["first"]
        plugins.close()

    @pytest.mark.parametrize("where", ["import", "mq_initialize"])
    def test_an_interrupt_undoes_too_and_passes_through(self, directory, life, where):
        raising = "raise KeyboardInterrupt"
        directory.write(a=LIFE.format("a"), b=raising if where == "import" else f"def mq_initialize(): {raising}\n")
        with pytest.raises(KeyboardInterrupt):
            Plugins(directory.path)
        gc.collect()
        assert life == ([] if where == "import" else [("initialize", "a"), ("cleanup", "a")])

    def test_no_change_from_inside_a_change(self):
        plugins = Plugins()
        inner = SimpleNamespace(mq_initialize=lambda: plugins.add("c", SimpleNamespace()))
        with pytest.raises(PluginError, match=r"plugin a: .* while that is being changed; do it later"):
            plugins.add("a", inner)
        with pytest.raises(PluginError, match="while that is being changed"):
            plugins.add("b", SimpleNamespace(mq_initialize=plugins.close))
        assert plugins.snapshot == ()
        plugins.add("a", SimpleNamespace())


class TestDispatchers:
    def test_a_change_reaches_every_dispatcher(self):
        plugins = Plugins()
        first, second = FakeDispatcher(plugins), FakeDispatcher(plugins)
        plugins.add("a", SimpleNamespace())
        assert first.plugins is second.plugins is plugins.snapshot
        assert first.log == second.log == ["prepare", "commit"]
        plugins._detach(second)
        plugins.remove("a")
        assert first.plugins == ()
        assert names(second.plugins) == ["a"]
        first.let_go(first.held)

    @pytest.mark.parametrize("refusing", [0, 1, 2])
    def test_a_refused_change_reaches_none(self, life, refusing):
        plugins = Plugins()
        dispatchers = [FakeDispatcher(plugins) for _ in range(3)]
        asked = dispatchers[refusing]
        asked.error = PluginError("mq_context_initialize raised")
        before = plugins.snapshot
        obj = SimpleNamespace(mq_initialize=lambda: life.append("in"), mq_cleanup=lambda: life.append("out"))
        with pytest.raises(PluginError, match="mq_context_initialize raised"):
            plugins.add("a", obj)
        assert plugins.snapshot is before
        assert all(dispatcher.plugins is before for dispatcher in dispatchers)
        # Those that were asked before the one that refused are undone.
        logs = sorted(dispatcher.log for dispatcher in dispatchers)
        assert logs == [[]] * (2 - refusing) + [["prepare"]] + [["prepare", "discard"]] * refusing
        assert life == ["in", "out"]
        asked.error = None
        plugins.add("a", obj)
        assert all(names(dispatcher.plugins) == ["a"] for dispatcher in dispatchers)

    def test_dispatchers_are_not_kept_alive(self):
        plugins = Plugins()
        FakeDispatcher(plugins)
        gc.collect()
        assert plugins._take_over((), []) == []

    def test_a_dispatcher_may_compare_as_it_likes(self):
        class Odd(FakeDispatcher):
            __hash__ = None

            def __eq__(self, other):
                raise AssertionError

        plugins = Plugins()
        first, second = Odd(plugins), Odd(plugins)
        plugins.add("a", SimpleNamespace())
        plugins._detach(first)
        plugins.remove("a")
        assert (names(first.plugins), names(second.plugins)) == (["a"], [])


class SlowPlugin:
    """Its `mq_initialize` takes until it is told to end."""

    def __init__(self, error: Exception | None = None) -> None:
        self.begun, self.end, self.error = threading.Event(), threading.Event(), error

    def mq_initialize(self) -> None:
        self.begun.set()
        assert self.end.wait(60)
        if self.error:
            raise self.error


class LaterDispatcher(FakeDispatcher):
    """One whose own thread is another than that of the changes: it is only notified, and reads the plugins afterwards."""

    def _prepare(self, new: tuple[Plugin, ...]) -> SimpleNamespace:
        return SimpleNamespace(commit=lambda: self.log.append("commit"), discard=lambda: self.log.append("discard"))

    def turn(self, plugins: Plugins) -> None:
        with plugins._current() as snapshot:
            FakeDispatcher._prepare(self, snapshot).commit()


class TestChangesOfOtherThreads:
    @pytest.fixture
    def under_way(self):
        """A set of plugins with one named a, in which another thread is adding a slow one named b."""
        plugins = Plugins()
        plugins.add("a", SimpleNamespace())
        slow = SlowPlugin()
        thread = threading.Thread(target=plugins.add, args=("b", slow))
        thread.start()
        assert slow.begun.wait(60)

        def finish() -> None:
            slow.end.set()
            thread.join()

        yield SimpleNamespace(plugins=plugins, slow=slow, finish=finish)
        finish()

    def test_nothing_but_a_change_waits_for_a_change(self, under_way):
        plugins = under_way.plugins
        first, second = LaterDispatcher(plugins), LaterDispatcher(plugins)
        first.turn(plugins)
        plugins._detach(second)
        assert names(plugins) == names(first.plugins) == ["a"]
        assert (plugins.order("mq_smtp_in_message"), plugins.unused_config, len(plugins)) == ([], [], 1)
        under_way.finish()
        assert names(plugins) == ["a", "b"]
        assert (first.log[-1], second.log) == ("commit", [])
        first.turn(plugins)
        assert names(first.plugins) == ["a", "b"]

    def test_a_change_waits(self, under_way):
        plugins = under_way.plugins
        waiting = threading.Thread(target=plugins.remove, args=("a",))
        waiting.start()
        waiting.join(0.05)
        assert waiting.is_alive() and names(plugins) == ["a"]
        under_way.finish()
        waiting.join()
        assert names(plugins) == ["b"]

    def test_a_dispatcher_that_is_made_by_one_that_is_asked_gets_the_change(self):
        plugins = Plugins()
        made: list[FakeDispatcher] = []

        class Maker(FakeDispatcher):
            def _prepare(self, new):
                if len(made) < 3:
                    made.append(FakeDispatcher(plugins))
                return super()._prepare(new)

        maker = Maker(plugins)
        plugins.add("a", SimpleNamespace())
        assert [each.log for each in (maker, *made)] == [["prepare", "commit"]] * 2
        plugins.add("b", SimpleNamespace())
        assert [names(each.plugins) for each in (maker, *made)] == [["a", "b"]] * 3

    def test_and_when_it_refuses_nobody_does(self):
        plugins = Plugins()
        made: list[FakeDispatcher] = []

        class Maker(FakeDispatcher):
            def _prepare(self, new):
                made.append(FakeDispatcher(plugins))
                made[0].error = PluginError("refused")
                return super()._prepare(new)

        maker = Maker(plugins)
        with pytest.raises(PluginError, match="refused"):
            plugins.add("a", SimpleNamespace())
        assert (maker.log, made[0].log, len(plugins)) == (["prepare", "discard"], ["prepare"], 0)

    def test_plugins_that_are_removed_while_a_dispatcher_takes_them_do_not_end(self, life):
        plugins = Plugins()
        plugins.add("a", SimpleNamespace(mq_cleanup=lambda: life.append("out")))

        class Beginning(LaterDispatcher):
            def begin(self, snapshot):
                remover = threading.Thread(target=plugins.remove, args=("a",))
                remover.start()
                remover.join()
                assert life == []
                super().begin(snapshot)

        dispatcher = Beginning(plugins)
        assert dispatcher.log == ["commit"]  # it was notified of the change
        dispatcher.turn(plugins)
        assert names(dispatcher.held) == ["a"]
        assert life == []
        dispatcher.let_go(dispatcher.held)
        assert life == ["out"]

    def test_a_dispatcher_that_cannot_be_made_is_detached(self):
        class Failing(FakeDispatcher):
            def begin(self, snapshot):
                raise PluginError("mq_context_initialize raised")

        plugins = Plugins()
        plugins.add("a", SimpleNamespace())
        made = Failing.__new__(Failing)
        with pytest.raises(PluginError, match="mq_context_initialize"):
            made.__init__(plugins)
        plugins.remove("a")
        assert made.log == []

    def test_there_is_nothing_to_take_over_from_closed_plugins(self):
        plugins = Plugins()
        plugins.close()
        with plugins._current() as snapshot:
            assert snapshot is None

    def test_a_change_in_cleanup(self):
        plugins = Plugins()
        plugins.add("a", SimpleNamespace(mq_cleanup=lambda: plugins.remove("b")))
        plugins.add("b", SimpleNamespace(mq_cleanup=lambda: plugins.add("c", SimpleNamespace())))
        plugins.remove("a")
        assert names(plugins) == ["c"]
        plugins.close()


FAILURES = {
    "syntax": "def",
    "import": "raise RuntimeError('at import')",
    "name": "def mq_smtp_in_mesage(context, message): pass",
    "signature": "def mq_smtp_in_data(context, message): pass",
    "version": "mq_version = 99",
    "initialize": "def mq_initialize(): raise RuntimeError('no')",
}


class TestReload:
    def test_files_are_read_afresh_added_objects_stay(self, directory, life):
        directory.write(a=LIFE.format("a1") + HOOK.format(1), b=HOOK.format(1))
        plugins = Plugins(directory.path)
        plugins.add("added", SimpleNamespace(mq_smtp_in_connect=lambda context, message: None))
        old = {plugin.name: plugin for plugin in plugins}
        directory.write(a=LIFE.format("a2") + HOOK.format(2), c=HOOK.format(3))
        (directory.path / "b.py").unlink()
        plugins.reload()
        assert names(plugins) == ["a", "added", "c"]
        new = {plugin.name: plugin for plugin in plugins}
        assert new["added"] is old["added"]
        assert new["a"].hooks["mq_smtp_in_message"](None, None) == 2
        assert old["a"].hooks["mq_smtp_in_message"](None, None) == 1
        assert life == [("initialize", "a1"), ("initialize", "a2"), ("cleanup", "a1")]
        plugins.close()

    def test_a_held_plugin_stays_whole_until_it_is_let_go(self, directory, life):
        directory.write(pkg____init__=LIFE.format("old") + "def mq_smtp_in_message(c, m):\n    from . import late\n")
        (directory.path / "pkg" / "late.py").write_text("")
        plugins = Plugins(directory.path)
        dispatcher = FakeDispatcher(plugins)
        old = plugins.snapshot[0]
        directory.write(pkg____init__=LIFE.format("new"))
        plugins.reload()
        old.hooks["mq_smtp_in_message"](None, None)
        assert life == [("initialize", "old"), ("initialize", "new")]
        dispatcher.let_go(dispatcher.held)
        assert life[2:] == [("cleanup", "old")]
        dispatcher.let_go(list(dispatcher.plugins))
        plugins.close()

    @pytest.mark.parametrize("stage", [*FAILURES, "config", "missing", "writable", "double", "context"])
    def test_a_reload_that_fails_leaves_everything_as_it_was(self, directory, tmp_path, life, stage):
        config = tmp_path / "config.toml"
        config.write_text("[plugins.a]\nkey = 1\n")
        directory.write(a=LIFE.format("a") + HOOK.format(1), b=LIFE.format("b"))
        single = tmp_path / "single.py"
        single.write_text(HOOK.format(2))
        plugins = Plugins(directory.path, single, config=config)
        dispatcher = FakeDispatcher(plugins)
        before, modules = plugins.snapshot, {name: sys.modules[name] for name in private_modules()}
        del life[:]

        directory.write(a=LIFE.format("a, the second") + HOOK.format(3))
        if stage in FAILURES:
            directory.write(b=FAILURES[stage])
        elif stage == "config":
            config.write_text("[plugins.b]\nhold_timeout = 'long'\n")
        elif stage == "missing":
            single.unlink()
        elif stage == "writable":
            (directory.path / "b.py").chmod(0o666)
        elif stage == "double":
            directory.write(b____init__="")
        else:
            dispatcher.error = PluginError("mq_context_initialize raised")
        with pytest.raises(PluginError):
            plugins.reload()

        assert plugins.snapshot is before
        assert dispatcher.plugins is before
        assert {name: sys.modules[name] for name in private_modules()} == modules
        assert plugins.snapshot[0].config == {"key": 1}
        assert plugins.snapshot[0].hooks["mq_smtp_in_message"](None, None) == 1
        started = [name for event, name in life if event == "initialize"]
        assert [name for event, name in life if event == "cleanup"] == started[::-1]

        directory.write(b=LIFE.format("b"))
        (directory.path / "b.py").chmod(0o644)
        if stage == "double":
            (directory.path / "b" / "__init__.py").unlink()
        config.write_text("")
        single.write_text(HOOK.format(2))
        dispatcher.error = None
        plugins.reload()
        assert plugins.snapshot[0].hooks["mq_smtp_in_message"](None, None) == 3
        assert plugins.snapshot[0].config == {}
        dispatcher.let_go(dispatcher.held)
        dispatcher.let_go(list(dispatcher.plugins))
        plugins.close()

    def test_replaced_plugins_and_modules_are_let_go(self, directory):
        directory.write(a=HOOK.format(1))
        with Plugins(directory.path) as plugins:
            old = plugins.snapshot[0]
            gone = [weakref.ref(old), weakref.ref(sys.modules[old.hooks["mq_smtp_in_message"].__module__])]
            del old
            plugins.reload()
            gc.collect()
            assert [ref() for ref in gone] == [None, None]

    def test_in_two_threads(self, directory, life):
        directory.write(a=LIFE.format("a") + HOOK.format(1))
        plugins = Plugins(directory.path)
        errors: list[BaseException] = []

        def work() -> None:
            try:
                for i in range(20):
                    plugins.reload()
                    plugins.add(f"{threading.get_ident()}-{i}", SimpleNamespace())
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=work) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        assert len(plugins) == 41
        plugins.close()
        assert life.count(("initialize", "a")) == life.count(("cleanup", "a")) == 41

    def test_a_removed_plugin_of_a_directory_comes_back_a_file_of_its_own_does_not(self, directory, tmp_path):
        directory.write(a="mq_version = 1", b="mq_version = 1")
        single = tmp_path / "single.py"
        single.write_text("mq_version = 1")
        with Plugins(directory.path, single) as plugins:
            plugins.remove("a")
            plugins.remove("single")
            assert names(plugins) == ["b"]
            plugins.reload()
            assert names(plugins) == ["a", "b"]
            plugins.load(single)
            plugins.reload()
            assert names(plugins) == ["a", "b", "single"]

    def test_a_directory_that_is_added_later_is_reloaded_too(self, directory):
        with Plugins() as plugins:
            plugins.load(directory.path)
            directory.write(a="mq_version = 1")
            plugins.reload()
            assert names(plugins) == ["a"]

    def test_removing_what_is_not_there(self):
        with Plugins() as plugins:
            with pytest.raises(PluginError, match=r"no plugin is named 'x'$"):
                plugins.remove("x")
            plugins.add("50-audit", SimpleNamespace())
            with pytest.raises(PluginError, match=r"no plugin is named '50-audti'; the nearest name is 50-audit$"):
                plugins.remove("50-audti")


class TestConfig:
    @pytest.mark.parametrize("wrap", [lambda tables: tables, lambda tables: {"plugins": tables, "smtp": 3}])
    def test_a_mapping(self, directory, wrap):
        directory.write(a="mq_version = 1", b="mq_version = 1")
        tables = {"a": {"hold_timeout": 0.5, "on_error": "continue", "own": [1]}, "later": {"hold_timeout": 0}}
        with Plugins(directory.path, config=wrap(tables)) as plugins:
            assert [plugin.config for plugin in plugins] == [tables["a"], {}]
            assert plugins.unused_config == ["later"]
            plugins.add("later", SimpleNamespace())
            assert plugins.snapshot[2].config == {"hold_timeout": 0}
            assert plugins.unused_config == []

    def test_a_toml_file_that_reload_reads_again(self, directory, tmp_path):
        directory.write(a="mq_version = 1")
        config = tmp_path / "mqcore.toml"
        config.write_text("[smtp]\nport = 25\n[plugins.a]\nkey = 'é'\n", encoding="utf-8")
        with Plugins(directory.path, config=str(config)) as plugins:
            assert plugins.snapshot[0].config == {"key": "é"}
            config.write_text("[plugins.a]\nkey = 2\n")
            plugins.add("b", SimpleNamespace())
            assert plugins.snapshot[0].config == {"key": "é"}
            plugins.reload()
            assert plugins.snapshot[0].config == {"key": 2}


class TestEntryPoints:
    @pytest.fixture
    def package(self, tmp_path, monkeypatch):
        """Installs a distribution that offers the given entry points, all from one module."""

        def install(name: str, source: str, **points: str) -> Path:
            module = tmp_path / f"{name}.py"
            module.write_text(source)
            info = tmp_path / f"{name}-1.0.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
            lines = [f"{point} = {value}" for point, value in points.items()]
            (info / "entry_points.txt").write_text("\n".join(["[mqcore.plugins]", *lines]))
            return module

        monkeypatch.syspath_prepend(tmp_path)
        yield install
        for file in tmp_path.glob("*.py"):
            sys.modules.pop(file.stem, None)

    def test_are_loaded_in_order_and_survive_reload(self, package):
        source = HOOK.format(5) + "class C:\n    " + HOOK.format(6).replace("(", "(self, ") + "instance = C()\n"
        package("some_package", source, b="some_package", a="some_package:instance")
        with Plugins(config={"a": {"key": 1}}) as plugins:
            plugins.load_entry_points()
            assert [plugin.hooks["mq_smtp_in_message"](None, None) for plugin in plugins] == [6, 5]
            assert plugins.snapshot[0].config == {"key": 1}
            before = plugins.snapshot
            plugins.reload()
            assert plugins.snapshot == before
            assert plugins.snapshot[0].path is None

    def test_none_is_fine(self):
        with Plugins() as plugins:
            plugins.load_entry_points("mqcore.no.such.group")
            assert len(plugins) == 0

    def test_one_that_fails_brings_in_none(self, package, life):
        package("good_package", LIFE.format("good"), a="good_package")
        bad = package("bad_package", "import missing_library\n", b="bad_package")
        with Plugins() as plugins:
            with pytest.raises(PluginError) as caught:
                plugins.load_entry_points()
            assert str(caught.value) == (
                f"{bad}:1: plugin b: loading the entry point bad_package of bad_package raised "
                "ModuleNotFoundError: No module named 'missing_library'; correct that, or take the plugin away"
            )
            assert len(plugins) == 0
        assert life == []

    def test_two_of_one_name(self, package):
        package("one_package", HOOK.format(1), a="one_package")
        package("two_package", HOOK.format(1), a="two_package")
        with Plugins() as plugins, pytest.raises(PluginError, match="plugin a: another plugin has this name"):
            plugins.load_entry_points()
