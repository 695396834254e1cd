"""A plugin's module has a stable name, `mqcore_plugins.NAME`."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
import textwrap

import pytest

from mqcore import PluginError, Plugins

POINT = """
    from dataclasses import dataclass

    @dataclass
    class Point:
        x: int

    def mq_smtp_in_message(context, message):
        return Point(1)
"""


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(textwrap.dedent(text))
    return path


def module_of(plugins, name):
    (plugin,) = [plugin for plugin in plugins if plugin.name == name]
    return sys.modules[plugin.hooks["mq_smtp_in_message"].__module__]


def test_what_a_plugin_defines_can_be_pickled(tmp_path):
    write(tmp_path / "plugins" / "10-point.py", POINT)
    with Plugins(tmp_path / "plugins") as plugins:
        module = module_of(plugins, "10-point")
        assert module.__name__ == module.Point.__module__ == "mqcore_plugins.10-point"
        assert pickle.loads(pickle.dumps(module.Point(2))) == module.Point(2)
    assert "mqcore_plugins.10-point" not in sys.modules


def test_a_package_and_its_modules(tmp_path):
    write(tmp_path / "plugins" / "20-keys" / "__init__.py", """
        from . import inner

        def mq_smtp_in_message(context, message): pass
    """)
    write(tmp_path / "plugins" / "20-keys" / "inner.py", "class Key: pass")
    with Plugins(tmp_path / "plugins") as plugins:
        inner = module_of(plugins, "20-keys").inner
        assert inner.__name__ == "mqcore_plugins.20-keys.inner"
        assert type(pickle.loads(pickle.dumps(inner.Key()))) is inner.Key
        plugins.reload()
        again = module_of(plugins, "20-keys").inner
        assert again is not inner and sys.modules[again.__name__] is again
    assert not [name for name in sys.modules if name.startswith("mqcore_plugins.20-keys")]


def test_a_reload_keeps_the_name(tmp_path):
    path = write(tmp_path / "plugins" / "10-point.py", POINT)
    with Plugins(tmp_path / "plugins") as plugins:
        before = module_of(plugins, "10-point")
        kept = pickle.dumps(before.Point(3))
        path.write_text(path.read_text().replace("x: int", "x: int\n    y: int = 0"))
        plugins.reload()
        after = module_of(plugins, "10-point")
        assert after is not before and after.__name__ == before.__name__
        assert type(pickle.loads(kept)) is after.Point


def test_a_reload_that_fails_leaves_the_old_module(tmp_path):
    path = write(tmp_path / "plugins" / "10-point.py", POINT)
    with Plugins(tmp_path / "plugins") as plugins:
        before = module_of(plugins, "10-point")
        path.write_text("1 / 0")
        with pytest.raises(PluginError):
            plugins.reload()
        assert sys.modules["mqcore_plugins.10-point"] is before
        assert pickle.loads(pickle.dumps(before.Point(3))) == before.Point(3)


def test_two_sets_with_a_plugin_of_one_name(tmp_path):
    """The one that came last has the name, as long as it is there."""
    write(tmp_path / "one" / "10-point.py", POINT)
    write(tmp_path / "two" / "10-point.py", POINT)
    with Plugins(tmp_path / "one") as first:
        with Plugins(tmp_path / "two") as second:
            assert sys.modules["mqcore_plugins.10-point"].__file__ == str(tmp_path / "two" / "10-point.py")
            assert module_of(second, "10-point").Point is not None
        assert sys.modules["mqcore_plugins.10-point"].__file__ == str(tmp_path / "one" / "10-point.py")
        assert len(first) == 1


def test_a_name_with_a_dot(tmp_path):
    write(tmp_path / "plugins" / "10-a.b.py", POINT)
    with Plugins(tmp_path / "plugins") as plugins:
        point = module_of(plugins, "10-a.b").Point(1)
        assert pickle.loads(pickle.dumps(point)) == point


SPAWN = """
import multiprocessing
from concurrent.futures import ProcessPoolExecutor

from . import work


def mq_smtp_in_message(context, message):
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        print(pool.submit(work.add, work.Job(1, 2)).result())
"""
WORK = """
from dataclasses import dataclass


@dataclass
class Job:
    one: int
    other: int


def add(job):
    return job.one + job.other, type(job).__module__
"""
PROGRAM = """
import sys

import uvloop

import mqcore


async def main():
    with mqcore.Plugins(sys.argv[1]) as plugins, mqcore.Dispatcher(plugins) as dispatcher:
        message = mqcore.Message()
        print((await dispatcher.hook("mq_smtp_in_message").checked(message)).name)


if __name__ == "__main__":
    uvloop.run(main())
"""


def test_processes_that_are_spawned(tmp_path):
    package = tmp_path / "plugins" / "30-work"
    package.parent.mkdir()
    write(package / "__init__.py", SPAWN)
    write(package / "work.py", WORK)
    program = write(tmp_path / "program.py", PROGRAM)
    path = os.pathsep.join(path for path in sys.path if path)
    done = subprocess.run(
        [sys.executable, "-P", program, tmp_path / "plugins"],
        env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, timeout=120,
    )
    assert (done.stdout, done.stderr) == ("(3, 'mqcore_plugins.30-work.work')\nCONTINUE\n", "")


def test_the_environment_is_as_before(tmp_path):
    before = json.dumps(dict(os.environ))
    write(tmp_path / "plugins" / "10-point.py", POINT)
    plugins = Plugins(tmp_path / "plugins")
    assert os.environ["MQCORE_PLUGIN_FOLDERS"].split(os.pathsep)[-1] == str(tmp_path / "plugins")
    plugins.close()
    assert json.dumps(dict(os.environ)) == before
