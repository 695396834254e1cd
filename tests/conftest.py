"""Loops to test on, and the checks that every test ends with.

`owner` gives each test once on a uvloop loop and once on a pyuv loop. `engine` adds the reference model, for tests of
rules that need no real loop, timer or file descriptor. All three are used in the same way:

    def test_something(owner):
        dispatcher = owner.start({"10-a": hook_a, "20-b": hook_b})      # plugins with the hook mq_step
        step = dispatcher.hook("mq_step")
        step.run(message := owner.Message(), done=owner.done)
        owner.run_until(lambda: owner.finished)
        assert owner.finished == [(message, mqcore.CONTINUE)]

When the test is over, each dispatcher that was made through the fixture has its books checked (rule 16) and is closed,
and as many libuv handles and holds must have ended as were begun.
"""

from __future__ import annotations

import asyncio
import faulthandler
import gc
import itertools
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import effort
import pauses
import pytest
import uvloop
from owners import OWNERS, Owner, PyuvOwner, UvloopOwner, assert_conserved

import mqcore
import mqcore._holds
import mqcore.loop._reactor


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes longest goes first: where tests run side by side, nobody waits for it in the end."""
    items.sort(key=lambda item: item.path.name != "test_packaging.py")
    if pauses.KIND:  # what watches the clock says nothing then
        items[:] = [item for item in items if item.get_closest_marker("alone") is None]


def pytest_make_parametrize_id(config: pytest.Config, val: object, argname: str) -> str | None:
    """A value that is no text to read is named by its argument.

    What is made up while tests are collected, such as something compressed, which has the time in it, may be another one in
    the process beside, and pytest-xdist runs nothing where names differ.
    """
    is_name = isinstance(val, str) and val.isidentifier()
    unreadable = isinstance(val, bytes | str) and not is_name and (len(val) > 40 or not val.isascii())
    return argname if unreadable else None


def pytest_unconfigure() -> None:
    """What a failed test has left, a thread that waits for ever, must not keep the process: as for tests, see faulthandler."""
    faulthandler.dump_traceback_later(60, exit=True)


@pytest.fixture(autouse=True, scope="session")
def debug_mode_of_loops() -> None:
    """Python's development mode, in which the tests run, would turn it on for each loop."""
    if not effort.ASYNCIO_DEBUG:
        begin = uvloop.Loop.__init__

        def begin_without(loop: uvloop.Loop) -> None:
            begin(loop)
            loop.set_debug(False)

        uvloop.Loop.__init__ = begin_without


@pytest.fixture(autouse=True, scope="session")
def pauses_as_asked_for() -> Iterator[None]:
    """Tests that rely on luck fail with MQCORE_PAUSES; see pauses.py."""
    with pauses.as_asked_for():
        yield


# What a shell begins in the background ignores it, and so would all programs that tests start and interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Who asks for the current loop where there is none is told so. Else asyncio would make one, which nobody closes: a test that
# comes later, in whichever order, would be told of that.
asyncio.set_event_loop(None)

tests_begun = itertools.count()


def spare_the_collector() -> None:
    """Each test ends with a garbage collection: spare it all that is there before.

    Not once only, as pytest keeps something of each test, and not before each test, as what is spared is kept for good. (Nor
    is it asked how much is spared, which looks at each object.)
    """
    if next(tests_begun) % 100 == 0:
        gc.collect()
        gc.freeze()


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """After every test: each libuv handle that it made is freed, and each hold that it began is over."""
    spare_the_collector()
    handles, holds = mqcore.loop._reactor.handles(), mqcore._holds.holds()
    yield
    gc.collect()
    left = [d for d in gc.get_objects() if isinstance(d, mqcore.Dispatcher)]
    for dispatcher in left:
        assert_conserved(dispatcher)
    made, freed = mqcore.loop._reactor.handles()
    assert made - handles[0] == freed - handles[1], f"{made - handles[0]} handles made, {freed - handles[1]} freed"
    begun, ended = mqcore._holds.holds()
    assert begun - holds[0] == ended - holds[1], f"{begun - holds[0]} holds begun, {ended - holds[1]} ended"


@pytest.fixture(params=["uvloop", "pyuv"])
def owner(request: pytest.FixtureRequest, nothing_left_behind: None) -> Iterator[Owner]:
    yield from _owner(request.param)


@pytest.fixture(params=["uvloop", "pyuv", "reference"])
def engine(request: pytest.FixtureRequest, nothing_left_behind: None) -> Iterator[Owner]:
    yield from _owner(request.param)


@pytest.fixture
def uvloop_owner(nothing_left_behind: None) -> Iterator[UvloopOwner]:
    yield from _owner("uvloop")  # type: ignore[misc]


@pytest.fixture
def pyuv_owner(nothing_left_behind: None) -> Iterator[PyuvOwner]:
    yield from _owner("pyuv")  # type: ignore[misc]


@pytest.fixture
def socket_pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two sockets that are connected to each other, non-blocking."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    with ours, theirs:
        yield ours, theirs


@pytest.fixture
def puppet(tmp_path: Path) -> Iterator[Any]:
    """A native plugin whose functions the test sets: a `Puppet` of native_tools, which only these tests need."""
    from native_tools import Puppet

    made = Puppet(tmp_path / "20-puppet.so")
    yield made
    assert not made.errors, made.errors


def _owner(name: str) -> Iterator[Owner]:
    it = OWNERS[name]()
    yield it
    it.finish()
