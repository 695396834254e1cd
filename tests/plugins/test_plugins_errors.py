"""What bad plugins get: one clear message with plugin, file, line and the mend, and nothing left behind."""

from __future__ import annotations

import builtins
import functools
import json
import os
import pickle
import re
import socket
import sys
import threading
from types import SimpleNamespace

import pytest

from mqcore.errors import MqError, PluginError
from mqcore.hooks import HookSpec
from mqcore.plugins import Plugins


@pytest.fixture(autouse=True)
def no_module_stays():
    before = set(sys.modules)
    yield
    assert not [name for name in set(sys.modules) - before if name.startswith("mqcore_plugins.")]


def refused(*args: object, **options: object) -> PluginError:
    """The error of a `Plugins` made in this way."""
    with pytest.raises(PluginError) as caught:
        Plugins(*args, **options)
    return caught.value


def refused_object(obj: object) -> PluginError:
    with Plugins() as plugins:
        with pytest.raises(PluginError) as caught:
            plugins.add("50-audit", obj)
        assert len(plugins) == 0
    assert caught.value.plugin == "50-audit"
    return caught.value


SOURCES = {
    "syntax error": ("x = 1\ndef f(:\n", 2, "syntax error: invalid syntax"),
    "unknown name": (
        "\n\ndef mq_smtp_in_mesage(context, message):\n    pass\n",
        3,
        "mq_smtp_in_mesage begins with mq_ and is no known hook; the nearest name is mq_smtp_in_message; "
        "correct the name, choose one that does not begin with mq_, or declare it with HookSpec",
    ),
    "unknown name of a module": (
        "import json as mq_json\n",
        None,
        "mq_json begins with mq_ and is no known hook; the nearest name is mq_",
    ),
    "unknown name from elsewhere": (
        "from inspect import unwrap as mq_unwrap\n",
        None,
        "mq_unwrap begins with mq_ and is no known hook",
    ),
    "too few parameters": (
        "x = 1\ndef mq_smtp_in_mailfrom(context, message):\n    pass\n",
        2,
        "mq_smtp_in_mailfrom cannot take its arguments: too many positional arguments; "
        "define it as mq_smtp_in_mailfrom(context, message, address)",
    ),
    "too many parameters": (
        "def mq_smtp_in_connect(context, message, address): pass",
        1,
        "mq_smtp_in_connect cannot take its arguments: missing a required argument: 'address'; "
        "define it as mq_smtp_in_connect(context, message)",
    ),
    "a required keyword": (
        "async def mq_smtp_in_connect(context, message, *, key): pass",
        1,
        "mq_smtp_in_connect cannot take its arguments: missing a required",
    ),
    "keywords only": (
        "def mq_smtp_in_connect(**both): pass",
        1,
        "mq_smtp_in_connect cannot take its arguments: too many positional arguments; define it as",
    ),
    "behind a decorator": (
        "import functools\n"
        "def decorate(function):\n"
        "    @functools.wraps(function)\n"
        "    def wrapper(): pass\n"
        "    return wrapper\n"
        "@decorate\n"
        "def mq_smtp_in_connect(context, message): pass\n",
        6,
        "mq_smtp_in_connect cannot take its arguments",
    ),
    "lifecycle with a parameter": (
        "def mq_initialize(plugin): pass",
        1,
        "mq_initialize cannot take its arguments: missing a required argument: 'plugin'; define it as mq_initialize()",
    ),
    "context without its parameter": (
        "def mq_context_cleanup(): pass",
        1,
        "mq_context_cleanup cannot take its arguments: too many positional arguments; "
        "define it as mq_context_cleanup(context)",
    ),
    "not callable": (
        "mq_smtp_in_data = {}",
        None,
        "mq_smtp_in_data is of type dict, which cannot be called; "
        "define it as a function, mq_smtp_in_data(context, message, mime)",
    ),
    "generator": (
        "def mq_smtp_in_connect(context, message):\n    yield True\n",
        1,
        "mq_smtp_in_connect is a generator, which nothing would run; return a verdict instead of yielding",
    ),
    "asynchronous generator": (
        "async def mq_smtp_in_connect(context, message):\n    yield True\n",
        1,
        "mq_smtp_in_connect is a generator",
    ),
    "generator behind a partial and a call": (
        "import functools\n"
        "class C:\n"
        "    def __call__(self, extra, context, message):\n"
        "        yield\n"
        "mq_smtp_in_connect = functools.partial(C(), 1)\n",
        3,
        "mq_smtp_in_connect is a generator",
    ),
    "coroutine for a lifecycle": (
        "async def mq_initialize(): pass",
        1,
        "mq_initialize is a coroutine function, and only hooks may be that; define it without async",
    ),
    "raise at import": (
        "def f():\n    return {}['key']\n\nf()\n",
        2,
        "importing it raised KeyError: 'key'; correct that, or take the plugin away",
    ),
    "raise at import, deeper": (
        "import json\n\njson.loads('{')\n",
        3,
        "importing it raised JSONDecodeError: Expecting property name",
    ),
    "missing library": (
        "import no_such_library\n",
        1,
        "importing it raised ModuleNotFoundError: No module named 'no_such_library'; "
        "correct that, or take the plugin away",
    ),
    "syntax error in what it makes": ("\nexec('def')\n", 2, "importing it raised SyntaxError: invalid syntax"),
    "exit at import": (
        "import sys\nsys.exit(3)\n",
        2,
        "importing it called sys.exit(3); a plugin that cannot work raises an error that says why",
    ),
    "an error that cannot be read": (
        "class Bad(Exception):\n    def __str__(self): return 1 / 0\nraise Bad\n",
        3,
        "importing it raised Bad: (its message cannot be read); correct",
    ),
    "an error without a message": ("raise ValueError", 1, "importing it raised ValueError; correct that"),
    "version": (
        "mq_version = 2",
        None,
        "mq_version is 2, but this mqcore runs plugins of version 1; "
        "adapt the plugin, or install the mqcore it was written for",
    ),
    "version of another type": ("\ndef mq_version(): return True", 2, "mq_version is True, but"),
    "version raises": (
        "def mq_version(): 1 / 0",
        1,
        "mq_version() raised ZeroDivisionError: division by zero; correct",
    ),
    "initialize raises": (
        "def mq_initialize():\n    import json\n    json.loads('')\n",
        3,
        "mq_initialize() raised JSONDecodeError: Expecting value",
    ),
    "initialize exits": (
        "import sys\ndef mq_initialize():\n    sys.exit()\n",
        3,
        "mq_initialize() called sys.exit(None)",
    ),
    "null byte": ("x = 1\n\n# \0\n", 3, "syntax error: there is a null byte; save the file as plain UTF-8 text"),
    "Latin-1": (b"x = 1\n\n# caf\xe9\n", 3, "syntax error: 'utf-8' codec can't decode byte 0xe9"),
    "UTF-16": ("x = 1\n".encode("utf-16"), 1, "syntax error: "),
    "unknown encoding": (b"# coding: klingon\n", 1, "syntax error: unknown encoding: klingon; save the file as UTF-8"),
}


@pytest.mark.parametrize("case", SOURCES)
@pytest.mark.parametrize("package", [False, True], ids=["file", "package"])
def test_bad_source(tmp_path, case, package):
    source, line, message = SOURCES[case]
    path = tmp_path / ("20-bad" if package else "20-bad.py")
    file = path
    if package:
        path.mkdir()
        file = path / "__init__.py"
    file.write_bytes(source if isinstance(source, bytes) else source.encode())
    error = refused(path)
    # Without a line only the plugin is known, which for a package is its directory.
    place = str(file) if line else str(path)
    assert (error.plugin, error.path, error.line) == ("20-bad", place, line)
    assert str(error).startswith(f"{place}{f':{line}' if line else ''}: plugin 20-bad: {message}")


def test_an_error_in_a_module_of_a_package_is_placed_there(tmp_path):
    package = tmp_path / "pkg"
    package.mkdir()
    (package / "__init__.py").write_text("from . import inner\n")
    (package / "inner.py").write_text("\n\n1 / 0\n")
    assert str(refused(package)).startswith(f"{package}/inner.py:3: plugin pkg: importing it raised ZeroDivisionError")
    (package / "inner.py").write_text("\ndef\n")
    assert str(refused(package)).startswith(f"{package}/inner.py:2: plugin pkg: syntax error: ")
    (package / "inner.py").write_text("")
    (package / "__init__.py").write_text("from . import missing\n")
    assert "cannot import name 'missing'" in str(refused(package))


def test_a_file_of_a_similar_name_is_no_part_of_the_plugin(tmp_path):
    (tmp_path / "pkg").mkdir()
    (tmp_path / "pkg" / "__init__.py").write_text(
        "exec(compile('\\n1 / 0', __file__.replace('/__init__.py', '-other.py'), 'exec'))"
    )
    assert str(refused(tmp_path)).startswith(f"{tmp_path}/pkg/__init__.py:1: plugin pkg: importing it raised")


def test_valid_signatures():
    def wrapped(context, message, database):
        pass

    @functools.wraps(wrapped)
    def decorated(context, message):
        return wrapped(context, message, None)

    class Callable:
        async def __call__(self, context, message):
            pass

    async def coroutine(context, message):
        pass

    odd = SimpleNamespace  # a builtin type, whose signature differs among versions of Python
    for function in [
        lambda *args: None,
        lambda context, *rest, key=None, **options: None,
        lambda context, message, third=None: None,
        functools.partial(wrapped, database=1),
        functools.partial(lambda extra, context, message: None, 0),
        functools.partial(coroutine),
        decorated,
        coroutine,
        Callable(),
        max,
        print,
        odd.__init__,
    ]:
        with Plugins() as plugins:
            plugins.add("50-audit", SimpleNamespace(mq_smtp_in_connect=function))
            assert plugins.order("mq_smtp_in_connect") == ["50-audit"]


OWN_HOOKS = [HookSpec("on_message"), HookSpec("on_close"), HookSpec("ended"), HookSpec("résumé")]


def refused_near(obj: object, wrong: str, right: str) -> PluginError:
    with Plugins(hooks=OWN_HOOKS) as plugins, pytest.raises(PluginError) as caught:
        plugins.add("50-audit", obj)
    assert str(caught.value).partition("plugin 50-audit: ")[2] == (
        f"{wrong} is one letter away from the hook {right}, which this plugin does not have; correct the name, or, if it is "
        "no hook, choose another or begin it with _"
    )
    return caught.value


def accepted(obj: object) -> list[str]:
    with Plugins(hooks=OWN_HOOKS) as plugins:
        plugins.add("50-audit", obj)
        return sorted(plugins.snapshot[0].hooks)


def function(context, message):
    pass


class TestOwnHooksMisspelt:
    @pytest.mark.parametrize(
        ("wrong", "right"),
        [
            ("on_mesage", "on_message"),
            ("on_messsage", "on_message"),
            ("on_messagee", "on_message"),
            ("xon_message", "on_message"),
            ("n_message", "on_message"),
            ("on_messagf", "on_message"),
            ("pn_message", "on_message"),
            ("on_mesasge", "on_message"),
            ("no_message", "on_message"),
            ("on_messaeg", "on_message"),
            ("On_message", "on_message"),
            ("onmessage", "on_message"),
            ("on_closed", "on_close"),
            ("resumé", "résumé"),
        ],
    )
    def test_one_edit_away(self, wrong, right):
        error = refused_near(SimpleNamespace(**{wrong: function}), wrong, right)
        assert (error.path, error.line) == (__file__, function.__code__.co_firstlineno)

    @pytest.mark.parametrize(
        "name",
        ["on_msage", "on_emssaeg", "message", "_on_message", "_on_messag", "end", "enden", "on_messages_", "no_emssage", "x"],
    )
    def test_further_away_or_private_or_short(self, name):
        assert accepted(SimpleNamespace(**{name: function})) == []

    def test_not_if_the_plugin_has_the_hook(self):
        assert accepted(SimpleNamespace(on_message=function, on_messages=function)) == ["on_message"]

    def test_one_hook_is_no_misspelling_of_another(self):
        with Plugins(hooks=[HookSpec("on_open1"), HookSpec("on_open2")]) as plugins:
            plugins.add("a", SimpleNamespace(on_open1=function))
            assert plugins.order("on_open2") == []

    def test_what_cannot_be_called_is_no_hook(self):
        class Messages:
            pass

        assert accepted(SimpleNamespace(on_messages=[], on_messag="", on_mesage=None)) == []
        with Plugins(hooks=[HookSpec("messages")]) as plugins:
            plugins.add("a", SimpleNamespace(Messages=Messages))

    def test_a_module_defines_functions_partials_and_callables(self, tmp_path):
        path = tmp_path / "10-a.py"
        for source, line in [
            ("\ndef on_mesage(context, message): pass\n", 2),
            ("\nasync def on_mesage(context, message): pass\n", 2),
            ("on_mesage = lambda context, message: None\n", 1),
            ("import functools\n\ndef f(a, c, m): pass\non_mesage = functools.partial(f, 1)\n", 3),
            ("class C:\n    def __call__(self, context, message): pass\non_mesage = C()\n", 2),
            ("import functools\n@functools.cache\ndef on_mesage(context, message): pass\n", 2),
        ]:
            path.write_text(source)
            error = refused(tmp_path, hooks=OWN_HOOKS)
            assert str(error).startswith(f"{path}:{line}: plugin 10-a: on_mesage is one letter away from the hook on_message")

    def test_what_a_module_imports_is_somebody_elses(self, tmp_path):
        (tmp_path / "10-a.py").write_text("from os import close as closed, fsync as on_clos\nfrom json import dumps as dump\n")
        with Plugins(tmp_path, hooks=[HookSpec("closed_"), HookSpec("on_close"), HookSpec("dumps")]) as plugins:
            assert len(plugins) == 1

    def test_a_package_is_one_plugin(self, tmp_path):
        package = tmp_path / "10-a"
        package.mkdir()
        (package / "__init__.py").write_text("from .inner import on_mesage\n")
        (package / "inner.py").write_text("def on_mesage(context, message): pass\n")
        assert str(refused(tmp_path, hooks=OWN_HOOKS)).startswith(f"{package}/inner.py:1: plugin 10-a: on_mesage is one")

    def test_an_instance_defines_what_its_class_does(self):
        class Methods:
            def on_mesage(self, context, message):
                pass

        class Static:
            on_mesage = staticmethod(function)

        class OfClass:
            @classmethod
            def on_mesage(cls, context, message):
                pass

        class OwnAttribute:
            def __init__(self):
                self.on_mesage = function

        for kind in (Methods, Static, OfClass, OwnAttribute):
            refused_near(kind(), "on_mesage", "on_message")
        refused_near(Static, "on_mesage", "on_message")

    def test_what_it_inherits_from_elsewhere_is_not_its_own(self):
        class Worker(threading.Thread):
            def on_start(self, context, message):
                pass

        with Plugins(hooks=[HookSpec("on_start"), HookSpec("starts"), HookSpec("is_live")]) as plugins:
            plugins.add("a", Worker())
            assert plugins.order("on_start") == ["a"]

    def test_no_property_is_read_for_it(self):
        class Audit:
            @property
            def on_mesage(self):
                raise AssertionError

            def __getattr__(self, name):
                raise AssertionError(name)

        assert accepted(Audit()) == []

    def test_values_that_raise_at_every_turn(self):
        class Hostile:
            def __getattribute__(self, name):
                raise SystemExit(name)

            def __call__(self):
                pass

        assert accepted(SimpleNamespace(on_mesage=Hostile())) == []

    def test_mailerqs_names_too(self):
        with Plugins() as plugins, pytest.raises(PluginError, match="mqsmtp_in_data is one letter away"):
            plugins.add("a", SimpleNamespace(mqsmtp_in_data=function))


class TestOwnHooks:
    def test_are_checked_as_all_are(self):
        with Plugins(hooks=[HookSpec("on_login", "user")]) as plugins:
            for value, wrong in [
                (function, "on_login cannot take its arguments: too many positional arguments; define it as on_login"),
                (json, "on_login is of type module, which cannot be called; define it as a function, .*, or give it another"),
            ]:
                with pytest.raises(PluginError, match=wrong):
                    plugins.add("a", SimpleNamespace(on_login=value))

    def test_an_imported_function_is_one(self, tmp_path):
        (tmp_path / "10-a.py").write_text("from os.path import join as on_message\n")
        with Plugins(tmp_path, hooks=OWN_HOOKS) as plugins:
            assert plugins.order("on_message") == ["10-a"]


class TestObjects:
    def test_a_class_for_an_instance(self):
        class Audit:
            def mq_smtp_in_connect(self, context, message):
                pass

        error = refused_object(Audit)
        assert error.path == __file__
        assert error.line == Audit.mq_smtp_in_connect.__code__.co_firstlineno
        assert str(error).endswith("(this plugin is a class: did you mean an instance of it?)")
        Audit.mq_other = None
        del Audit.mq_smtp_in_connect
        assert str(refused_object(Audit)).endswith("declare it with HookSpec")

    def test_the_place_of_what_raises(self):
        def mq_initialize():
            raise OSError("no port")

        error = refused_object(SimpleNamespace(mq_initialize=mq_initialize))
        assert (error.path, error.line) == (__file__, mq_initialize.__code__.co_firstlineno + 1)
        assert isinstance(error.__cause__, OSError)

    def test_attributes_that_raise(self):
        class Audit:
            @property
            def mq_smtp_in_connect(self):
                raise RuntimeError("not now")

        error = refused_object(Audit())
        assert str(error) == (
            "plugin 50-audit: looking at its attributes raised RuntimeError: not now; "
            "correct that, or take the plugin away"
        )

    def test_attributes_that_exit(self):
        class Audit:
            mq_smtp_in_connect = property(sys.exit)

        assert "looking at its attributes called sys.exit(" in str(refused_object(Audit()))

    def test_a_dir_that_raises(self):
        class Audit:
            def __dir__(self):
                raise RuntimeError("not now")

        assert "looking at its attributes raised RuntimeError" in str(refused_object(Audit()))

    def test_values_that_raise_at_every_turn(self):
        class Hostile:
            def __getattribute__(self, name):
                raise RuntimeError(name)

            def __repr__(self):
                raise RuntimeError("repr")

        refused_object(SimpleNamespace(mq_other=Hostile()))
        refused_object(SimpleNamespace(mq_smtp_in_connect=Hostile()))

    def test_a_cycle_of_wrappers(self):
        def mq_other(context, message):
            pass

        mq_other.__wrapped__ = mq_other
        assert refused_object(SimpleNamespace(mq_other=mq_other)).line is None

    @pytest.mark.parametrize("name", ["", "a\nb", "a\0b", "\udcff", "a\x1b[31m"])
    def test_odd_names_are_refused(self, name):
        with Plugins() as plugins, pytest.raises(PluginError, match=re.escape(repr(name))):
            plugins.add(name, SimpleNamespace())

    @pytest.mark.parametrize("name", ["é", "a b", "a.b", "plugin 🙂", "a/b", "-"])
    def test_other_names_are_fine(self, name):
        with Plugins() as plugins:
            plugins.add(name, SimpleNamespace())
            assert [plugin.name for plugin in plugins] == [name]

    def test_a_name_is_a_string(self):
        with Plugins() as plugins, pytest.raises(TypeError, match="a plugin's name is a str, not 3"):
            plugins.add(3, SimpleNamespace())


class TestNamesTwice:
    def test_a_file_and_a_package(self, tmp_path):
        (tmp_path / "10-a.py").write_text("raise AssertionError('must not be executed')")
        (tmp_path / "10-a").mkdir()
        (tmp_path / "10-a" / "__init__.py").write_text("")
        assert str(refused(tmp_path)) == (
            f"{tmp_path}/10-a.py: plugin 10-a: another plugin has this name ({tmp_path}/10-a); "
            "rename or remove one of them"
        )

    def test_an_object_and_a_file(self, tmp_path):
        (tmp_path / "10-a.py").write_text("mq_version = 1")
        with Plugins() as plugins:
            plugins.add("10-a", SimpleNamespace())
            before = plugins.snapshot
            with pytest.raises(PluginError, match=r"10-a.py: plugin 10-a: another .*\(an added object\)"):
                plugins.load(tmp_path / "10-a.py")
            with pytest.raises(PluginError, match=r"^plugin 10-a: another"):
                plugins.add("10-a", SimpleNamespace())
            assert plugins.snapshot is before
            plugins.reload()


class TestPaths:
    def test_missing(self, tmp_path):
        path = tmp_path / "plugins"
        assert str(refused(path)) == f"{path}: there is no such file or directory; correct the path"

    def test_a_broken_link(self, tmp_path):
        (tmp_path / "10-a.py").symlink_to("gone.py")
        assert str(refused(tmp_path)) == (
            f"{tmp_path}/10-a.py: plugin 10-a: this links to gone.py, which is missing; correct the link"
        )

    def test_a_link_to_itself(self, tmp_path):
        (tmp_path / "10-a.py").symlink_to("10-a.py")
        assert "plugin 10-a: this cannot be read: Too many levels of symbolic links" in str(refused(tmp_path))

    def test_another_suffix(self, tmp_path):
        path = tmp_path / "10-a.txt"
        path.write_text("")
        assert str(refused(path)) == (
            f"{path}: plugin 10-a.txt: a plugin's file must end in .py or .so; rename it, or give another path"
        )

    def test_no_regular_file(self, tmp_path):
        os.mkfifo(tmp_path / "10-a.py")
        assert "plugin 10-a: this is not a regular file; a plugin is" in str(refused(tmp_path))
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(str(tmp_path / "20-b.py"))
            assert "plugin 20-b: this is not a regular file" in str(refused(tmp_path / "20-b.py"))

    def test_a_null_byte(self):
        assert "this cannot be read" in str(refused("a\0b.py"))

    def test_no_path_at_all(self):
        with pytest.raises(TypeError):
            Plugins(3)

    @pytest.mark.parametrize("name", [b"10-\xff.py", b"10-\n.py"])
    def test_an_odd_file_name(self, tmp_path, name):
        (tmp_path / os.fsdecode(name)).write_text("")
        assert f"{os.fsdecode(name)[:-3]!r} is no name for a plugin" in str(refused(tmp_path))

    def test_unreadable(self, tmp_path, monkeypatch):
        # Permissions do not bind root, who may be running this: the system's answer is played instead.
        def deny(path, *args, **options):
            raise PermissionError(13, "Permission denied", path)

        path = tmp_path / "10-a.py"
        path.write_text("")
        with monkeypatch.context() as patch:
            patch.setattr(builtins, "open", deny)
            error = refused(path)
            assert (
                str(error)
                == f"{path}: plugin 10-a: this cannot be read: Permission denied; correct the path, or its permissions"
            )
        with monkeypatch.context() as patch:
            patch.setattr(os, "listdir", deny)
            assert str(refused(tmp_path)) == (
                f"{tmp_path}: this cannot be read: Permission denied; correct the path, or its permissions"
            )
        with monkeypatch.context() as patch:
            patch.setattr(builtins, "open", deny)
            assert str(refused(config=tmp_path / "x.toml")).startswith(f"{tmp_path}/x.toml: this cannot be read")


class TestTrust:
    @pytest.fixture
    def plugins(self, tmp_path):
        root = tmp_path / "plugins"
        (root / "pkg" / "sub").mkdir(parents=True)
        for name in ["10-a.py", "pkg/__init__.py", "pkg/sub/data.txt"]:
            (root / name).write_text("")
            (root / name).chmod(0o664)
        root.chmod(0o775)
        return root

    def test_writable_by_the_group_is_fine(self, plugins):
        (plugins / "pkg" / "broken-link").symlink_to("nowhere")
        with Plugins(plugins) as loaded:
            assert len(loaded) == 2

    @pytest.mark.parametrize("name", ["", "10-a.py", "pkg", "pkg/__init__.py", "pkg/sub", "pkg/sub/data.txt"])
    def test_writable_by_everyone_is_refused(self, plugins, name):
        path = plugins / name
        path.chmod(path.stat().st_mode | 0o002)
        mode = f"{path.stat().st_mode & 0o7777:04o}"
        error = refused(plugins)
        assert error.path == str(path)
        assert error.plugin == ({"1": "10-a", "p": "pkg"}[name[0]] if name else None)
        assert f"everyone may write to this {'directory' if path.is_dir() else 'file'} (mode {mode})" in str(error)
        assert "trust_writable=True" in str(error)
        with Plugins(plugins, trust_writable=True) as loaded:
            assert len(loaded) == 2

    def test_the_directory_of_a_single_file(self, plugins):
        plugins.chmod(0o777)
        for path in [plugins / "10-a.py", plugins / "pkg"]:
            assert refused(path).path == str(plugins)
        plugins.chmod(0o1777)
        with Plugins(plugins / "10-a.py", plugins / "pkg") as loaded:
            assert len(loaded) == 2
        assert refused(plugins).path == str(plugins)

    def test_where_a_link_leads(self, plugins, tmp_path):
        elsewhere = tmp_path / "elsewhere"
        elsewhere.mkdir()
        (elsewhere / "b.py").write_text("")
        (plugins / "20-b.py").symlink_to(elsewhere / "b.py")
        elsewhere.chmod(0o777)
        error = refused(plugins)
        assert (error.plugin, error.path) == ("20-b", str(elsewhere))


class TestConfig:
    @pytest.fixture
    def plugin(self, tmp_path):
        path = tmp_path / "10-a.py"
        path.write_text("raise AssertionError('must not be executed')")
        return path

    @pytest.mark.parametrize(
        ("table", "message"),
        [
            (3, "its config must be a table, and is 3"),
            (
                {"hold_timeout": "1"},
                "hold_timeout in its config must be a number of seconds, or 0 for none, and is '1'",
            ),
            ({"hold_timeout": True}, "hold_timeout .* and is True"),
            ({"hold_timeout": -0.1}, "hold_timeout .* and is -0.1"),
            ({"hold_timeout": float("nan")}, "hold_timeout .* and is nan"),
            ({"hold_timeout": float("inf")}, "hold_timeout .* and is inf"),
            ({"hold_timeout": 10**400}, "hold_timeout .* and is 10+"),
            ({"hold_timeout": None}, "hold_timeout .* and is None"),
            ({"on_error": True}, 'on_error in its config must be "fail" or "continue", and is True'),
            ({"on_error": ["fail"]}, r"on_error .* and is \['fail'\]"),
        ],
    )
    def test_wrong_values(self, plugin, table, message):
        for config in [{"10-a": table}, {"plugins": {"10-a": table}}]:
            error = refused(plugin, config=config)
            assert re.search(f"^{plugin}: plugin 10-a: {message}$", str(error))

    def test_a_wrong_value_in_a_file_names_the_file(self, plugin, tmp_path):
        config = tmp_path / "mqcore.toml"
        config.write_text('[plugins."10-a"]\nhold_timeout = "long"\n')
        assert str(refused(plugin, config=config)).startswith(f"{config}: plugin 10-a: hold_timeout")

    @pytest.mark.parametrize(
        ("text", "line", "message"),
        [
            (b"[plugins.a]\nkey = \n", 2, "not valid TOML: Invalid value, at column 7"),
            (b"[plugins\n", 1, "not valid TOML: Expected ']' at the end of a table declaration, at column 9"),
            (b"a = 1\na = 2\n", 2, "not valid TOML: Cannot overwrite a value, at column "),
            (b"\n\na = '''\n\n", 5, "not valid TOML: "),
            (b"a = 1\nb = '\xff'\n", 2, "'utf-8' codec can't decode byte 0xff"),
        ],
    )
    def test_toml_with_a_mistake(self, tmp_path, text, line, message):
        config = tmp_path / "mqcore.toml"
        config.write_bytes(text)
        error = refused(config=config)
        assert (error.path, error.line) == (str(config), line)
        assert str(error).startswith(f"{config}:{line}: {message}")

    def test_plugins_that_is_no_table(self, tmp_path):
        config = tmp_path / "mqcore.toml"
        config.write_text("plugins = 3\n")
        assert str(refused(config=config)) == (
            f"{config}: plugins must be a table of tables, one for each plugin, and is 3; write [plugins.NAME]"
        )
        assert str(refused(config={"plugins": "all"})).startswith("plugins must be a table of tables")

    def test_no_file(self, tmp_path):
        assert "there is no such file" in str(refused(config=tmp_path / "none.toml"))
        assert "this cannot be read: Is a directory" in str(refused(config=tmp_path))


class TestErrorClasses:
    def test_the_place_goes_in_front(self):
        assert str(PluginError("what")) == "what"
        assert str(PluginError("what", plugin="a")) == "plugin a: what"
        assert str(PluginError("what", path="/p.py", line=3)) == "/p.py:3: what"
        assert str(PluginError("what", plugin="a", path="/p.py")) == "/p.py: plugin a: what"
        assert str(PluginError("what", line=3)) == "what"

    def test_can_be_sent_to_another_process(self):
        error = pickle.loads(pickle.dumps(PluginError("what", plugin="a", path="/p.py", line=3)))
        assert (str(error), error.plugin, error.path, error.line) == ("/p.py:3: plugin a: what", "a", "/p.py", 3)

    def test_all_are_mqcore_errors_and_say_when(self):
        import mqcore.errors

        classes = [value for value in vars(mqcore.errors).values() if isinstance(value, type)]
        assert len(classes) == 8
        assert all(issubclass(kind, MqError) and kind.__doc__ for kind in classes)
