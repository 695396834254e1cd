"""What the tests of the loop share: a plugin that lends its context to the test, Python in a process of its own, and more."""

from __future__ import annotations

import os
import socket
import struct
import subprocess
import sys
import textwrap
from typing import Any


class Lender:
    """A plugin that holds every message, and whose context is used by the test itself."""

    context: Any = None
    cleaned = 0

    def mq_context_initialize(self, context: Any) -> None:
        self.context = context

    def mq_context_cleanup(self, context: Any) -> None:
        self.cleaned += 1

    def mq_step(self, context: Any, message: Any) -> Any:
        return True


def borrow(owner: Any, **options: Any) -> tuple[Any, Any]:
    """A dispatcher with one plugin, named "lender", and the context of that plugin."""
    lender = Lender()
    dispatcher = owner.start({"lender": lender}, **options)
    return dispatcher, lender.context


# For scripts that `python` runs: the loop of `sys.argv[1]`, "uvloop" or "pyuv", a borrowed context, and turns.
PROLOGUE = """
import errno, gc, os, socket, sys, threading, time
import uvloop, pyuv
import mqcore
from mqcore import READ, WRITE

class Lender:
    def mq_context_initialize(self, context):
        self.context = context
    def mq_step(self, context, message):
        return True

def new_loop():
    if sys.argv[1] != "uvloop":
        return pyuv.Loop()
    loop = uvloop.new_event_loop()
    loop.slow_callback_duration = 60  # asyncio's debug mode would warn on a busy machine
    return loop

def borrow():
    lender = Lender()
    plugins = mqcore.Plugins(hooks=[mqcore.HookSpec("mq_step")])
    plugins.add("lender", lender)
    return mqcore.Dispatcher(plugins, loop=loop), lender.context

def turn(milliseconds=2):
    if sys.argv[1] == "uvloop":
        loop.call_later(milliseconds / 1000, loop.stop)
        loop.run_forever()
    else:
        timer = pyuv.Timer(loop)
        loop.update_time()
        timer.start(lambda timer: timer.close(), milliseconds / 1000, 0)
        while not timer.closed:
            loop.run(pyuv.UV_RUN_ONCE)
        loop.run(pyuv.UV_RUN_NOWAIT)  # UV_RUN_ONCE ends with timers, whose turn is in the next iteration

# Collects what is garbage now and then, as CPythons differ in when they do: one without the GIL, when it is a quarter of all.
def repeat(function, times):
    for number in range(times):
        function()
        if number % 50 == 0:
            gc.collect()

loop = new_loop()
"""


def python(source: str, *arguments: object, stderr: str | None = "", dev: bool = True, timeout: float = 120) -> str:
    """What `source` prints, run in a process of its own with every warning an error.

    The process must end well, and print `stderr` there; None: anything. For what may abort, hang or fork. Where memory runs
    out it is not for `dev`: asyncio then looks at the stack, in which CPython 3.12 and 3.13 crash by themselves.
    """
    # The package under test is the one that this process imports, wherever it is.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    options = ["-P", *(["-X", "dev"] if dev else []), "-W", "error"]
    command = [sys.executable, *options, "-c", textwrap.dedent(source), *map(str, arguments)]
    process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=timeout)
    assert process.returncode == 0, process.stderr or f"exit code {process.returncode}"
    if stderr is not None:
        assert process.stderr == stderr
    return process.stdout


class Log(list):
    """Notes every call of a watcher: its name and the events."""

    def note(self, watcher, events, name=None):
        self.append((name, events))


def settle(owner):
    """Enough turns for all that is ready to be told."""
    owner.turn()
    owner.turn()


def reset_connection():
    """Our end of a connection that the other one has reset."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname())
        theirs, _ = listener.accept()
    ours.setblocking(False)
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    theirs.close()
    return ours
