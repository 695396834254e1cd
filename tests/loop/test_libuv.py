"""libuv is borrowed from the owner of the loop, and only where that is safe."""

from __future__ import annotations

import asyncio
import ctypes.util
import re
import socket
import sysconfig

import pytest
import pyuv
import uvloop
import uvloop.loop
from loop_tools import borrow, python

import mqcore
from mqcore.loop import _libuv

UVLOOP_FILE = uvloop.loop.__file__
PYUV_FILE = pyuv._cpyuv.__file__

# Debian's Python links modules so that calls in them of their own functions are never another's.
SYMBOLIC = "-Bsymbolic" in str(sysconfig.get_config_var("LDSHARED"))

SYSTEM_LIBUV = ctypes.util.find_library("uv")
needs_libuv = pytest.mark.skipif(SYSTEM_LIBUV is None, reason="needs libuv.so.1 of the system (Debian: libuv1)")


# What each owner gives


def test_the_libuv_of_uvloop():
    library = _libuv.Library("uvloop", UVLOOP_FILE)
    number = uvloop.loop.libuv_get_version()
    expected = f"{number >> 16}.{number >> 8 & 255}.{number & 255}"
    assert re.match(r"[0-9.]+", library.version)[0] == expected
    assert (library.owner, library.path) == ("uvloop", UVLOOP_FILE)


def test_the_libuv_of_pyuv():
    library = _libuv.Library("pyuv", PYUV_FILE)
    assert library.version == pyuv.LIBUV_VERSION
    assert (library.owner, library.path) == ("pyuv", PYUV_FILE)


def test_the_two_are_not_the_same():
    assert _libuv.Library("pyuv", PYUV_FILE).version != _libuv.Library("uvloop", UVLOOP_FILE).version


def test_a_missing_symbol_names_owner_symbol_and_version():
    with pytest.raises(ImportError) as caught:
        _libuv.Library("uvloop", _libuv.__file__)
    text = str(caught.value)
    assert "uvloop" in text and "uv_timer_init" in text and "unknown" in text and _libuv.__file__ in text
    assert caught.value.path == _libuv.__file__


def test_a_module_that_was_not_loaded_is_not_loaded_now(tmp_path):
    path = str(tmp_path / "loop.so")
    with pytest.raises(ImportError, match=re.escape(path)):
        _libuv.Library("uvloop", path)


def test_a_dispatcher_on_the_running_loop():
    async def main():
        with mqcore.Dispatcher(mqcore.Plugins()) as dispatcher:
            assert dispatcher.loop is asyncio.get_running_loop()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())


def test_the_loop_is_the_one_that_was_given(owner):
    dispatcher, context = borrow(owner)
    assert dispatcher.loop is owner.loop
    assert context.loop is owner.loop


def test_a_subclass_of_the_loop_is_accepted():
    class Loop(uvloop.Loop):
        pass

    loop = Loop()
    mqcore.Dispatcher(mqcore.Plugins(), loop=loop).close()
    loop.close()


# Loops that cannot be used


@pytest.mark.parametrize(
    "loop", [object(), "loop", 7, pyuv, uvloop, uvloop.Loop, pyuv.Loop], ids=lambda loop: type(loop).__name__
)
def test_what_is_no_loop_is_a_type_error(loop):
    with pytest.raises(TypeError, match=r"uvloop\.Loop or a pyuv\.Loop"):
        mqcore.Dispatcher(mqcore.Plugins(), loop=loop)


def test_the_loop_of_asyncio_itself_is_a_type_error():
    loop = asyncio.SelectorEventLoop()
    try:
        with pytest.raises(TypeError, match=r"uvloop\.Loop or a pyuv\.Loop") as caught:
            mqcore.Dispatcher(mqcore.Plugins(), loop=loop)
    finally:
        loop.close()
    assert "SelectorEventLoop" in str(caught.value)
    assert "uvloop.run(" in str(caught.value)  # the mend


def test_a_running_loop_of_asyncio_itself_is_a_type_error():
    async def main():
        with pytest.raises(TypeError, match=r"uvloop\.run\("):
            mqcore.Dispatcher(mqcore.Plugins())

    with asyncio.Runner(loop_factory=asyncio.SelectorEventLoop) as runner:
        runner.run(main())


def test_no_running_loop():
    with pytest.raises(mqcore.MqError, match="no loop is running"):
        mqcore.Dispatcher(mqcore.Plugins())


def test_a_closed_loop():
    loop = uvloop.new_event_loop()
    loop.close()
    with pytest.raises(mqcore.MqError, match="loop is closed"):
        mqcore.Dispatcher(mqcore.Plugins(), loop=loop)


def test_a_refused_dispatcher_can_be_dropped_and_closed():
    dispatcher = mqcore.Dispatcher.__new__(mqcore.Dispatcher)
    with pytest.raises(TypeError):
        dispatcher.__init__(mqcore.Plugins(), loop=object())
    dispatcher.close()


# Two libuvs in one process


class Traffic:
    """Timers and a watched socket on one loop, and how often they were called."""

    def __init__(self, owner):
        self.owner = owner
        self.fired = self.read = 0
        self.ours, self.theirs = socket.socketpair()
        self.dispatcher, self.context = borrow(owner)
        self.watcher = self.context.watch(self.ours, mqcore.READ, self.on_read)
        for number in range(20):
            self.context.start_timer(number / 1000, self.on_timer)

    def on_timer(self):
        self.fired += 1

    def on_read(self, watcher, events):
        self.read += len(self.ours.recv(100))

    def step(self):
        self.theirs.send(b"x")
        self.context.start_timer(0.001, pytest.fail, "stopped").stop()
        self.owner.spin(wait=True)

    def close(self):
        self.watcher.stop()
        self.ours.close()
        self.theirs.close()


def test_both_owners_at_once(pyuv_owner, uvloop_owner):
    """Each dispatcher keeps to the libuv of its own loop, however their timers and watchers interleave."""
    both = [Traffic(uvloop_owner), Traffic(pyuv_owner)]
    for _ in range(20):
        for traffic in both:
            traffic.step()
    for traffic in both:
        traffic.owner.run_until(lambda traffic=traffic: traffic.fired == traffic.read == 20)
        traffic.close()


def test_both_owners_in_nested_loops(pyuv_owner, uvloop_owner):
    """A callback of one loop may run the other loop."""
    fired = []
    _, outer = borrow(uvloop_owner)
    _, inner = borrow(pyuv_owner)

    def run_the_other():
        inner.start_timer(0.002, fired.append, "inner")
        pyuv_owner.run_until(lambda: fired)
        fired.append("outer")

    outer.start_timer(0.001, run_the_other)
    uvloop_owner.run_until(lambda: "outer" in fired)
    assert fired == ["inner", "outer"]


# Libraries in the global scope that take each other's calls

PLUGINS_ON = """
    import ctypes, os, sys
    import mqcore

    def attempt(loop):
        try:
            dispatcher = mqcore.Dispatcher(mqcore.Plugins(), loop=loop)
        except ImportError as error:
            return str(error)
        dispatcher.close()
        return "accepted"
"""


def test_pyuv_in_the_global_scope_first():
    """uvloop's own calls would end in pyuv's libuv: uvloop.run() hangs then."""
    said = python(PLUGINS_ON + """
    flags = sys.getdlopenflags()
    sys.setdlopenflags(os.RTLD_NOW | os.RTLD_GLOBAL)
    import pyuv
    sys.setdlopenflags(flags)
    import uvloop
    print(attempt(uvloop.new_event_loop()))
    print(attempt(pyuv.Loop()))
    sys.stdout.flush()
    os._exit(0)  # what uvloop made with the other's functions cannot be closed
    """)
    on_uvloop, on_pyuv = said.splitlines()
    assert PYUV_FILE in on_uvloop and UVLOOP_FILE in on_uvloop and "RTLD_GLOBAL" in on_uvloop
    assert on_pyuv == "accepted"


def expect_refused_for_pyuv(said):
    if SYMBOLIC:
        assert said == "accepted"
    else:
        assert PYUV_FILE in said and "RTLD_GLOBAL" in said
        assert pyuv.LIBUV_VERSION in said


def test_uvloop_in_the_global_scope_first():
    said = python(PLUGINS_ON + """
    import uvloop.loop
    ctypes.CDLL(uvloop.loop.__file__, ctypes.RTLD_GLOBAL)
    import pyuv
    print(attempt(uvloop.new_event_loop()))
    print(attempt(pyuv.Loop()))
    sys.stdout.flush()
    os._exit(0)
    """)
    on_uvloop, on_pyuv = said.splitlines()
    assert on_uvloop == "accepted"
    expect_refused_for_pyuv(on_pyuv)


@needs_libuv
def test_a_libuv_of_the_system_in_the_global_scope_first():
    """uvloop is bound to it then, while dlsym() on uvloop gives uvloop's own."""
    said = python(PLUGINS_ON + """
    ctypes.CDLL(sys.argv[1], ctypes.RTLD_GLOBAL)
    import uvloop, pyuv
    print(attempt(uvloop.new_event_loop()))
    print(attempt(pyuv.Loop()))
    sys.stdout.flush()
    os._exit(0)
    """, SYSTEM_LIBUV)
    on_uvloop, on_pyuv = said.splitlines()
    assert "libuv.so" in on_uvloop and UVLOOP_FILE in on_uvloop and "RTLD_GLOBAL" in on_uvloop
    expect_refused_for_pyuv(on_pyuv)


@needs_libuv
def test_a_libuv_of_the_system_that_is_not_in_the_global_scope():
    said = python(PLUGINS_ON + """
    ctypes.CDLL(sys.argv[1], ctypes.RTLD_LOCAL)
    import uvloop, pyuv
    loop = uvloop.new_event_loop()
    print(attempt(loop))
    loop.close()
    print(attempt(pyuv.Loop()))
    """, SYSTEM_LIBUV)
    assert said.split() == ["accepted", "accepted"]


def test_both_owners_loaded_in_either_order():
    for imports in ("import uvloop, pyuv", "import pyuv, uvloop"):
        said = python(PLUGINS_ON + f"""
    {imports}
    loop = uvloop.new_event_loop()
    print(attempt(loop), attempt(pyuv.Loop()), attempt(loop))
    loop.close()
    """)
        assert said.split() == ["accepted"] * 3


def test_without_pyuv():
    said = python(PLUGINS_ON + """
    sys.modules["pyuv"] = None  # not installed
    import asyncio, uvloop
    loop = uvloop.new_event_loop()
    print(attempt(loop))
    loop.close()
    try:
        attempt(object())
    except TypeError as error:
        print(error)
    """)
    assert said.startswith("accepted\nmqcore needs a uvloop.Loop")


def test_the_import_does_not_load_pyuv():
    assert python("""
    import sys
    import mqcore
    print("pyuv" in sys.modules)
    """) == "False\n"
