"""Native plugins to measure, compiled by `cc`, and dispatchers over them."""

from __future__ import annotations

import functools
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from subjects import HOOK, PASSES_ON

import mqcore

NATIVE_PASSES_ON = """
#include <mqcore.h>
MQ_EXPORT int mq_version(void) { return MQ_API_VERSION; }
MQ_EXPORT bool mq_smtp_in_message(MQ_Context *context, MQ_Connection *connection, MQ_Message *message)
{
    (void)context, (void)connection, (void)message;
    return false;
}
"""

# Passes each message on, after a few hundred steps of a random number generator: what a small check costs.
NATIVE_WORKS = """
#include <mqcore.h>
#include <stdint.h>
MQ_EXPORT int mq_version(void) { return MQ_API_VERSION; }
MQ_EXPORT bool mq_smtp_in_message(MQ_Context *context, MQ_Connection *connection, MQ_Message *message)
{
    uint64_t number = (uint64_t)(uintptr_t)message | 1;
    (void)context, (void)connection;
    for (int step = 0; step < 200; step++) {
        number ^= number << 13;
        number ^= number >> 7;
        number ^= number << 17;
    }
    return number == 0;
}
"""

# Takes each message, and gives it back in the next turn.
NATIVE_TAKES = """
#include <mqcore.h>
MQ_EXPORT int mq_version(void) { return MQ_API_VERSION; }
static void give_back(void *data) { MQ_continue(data); }
MQ_EXPORT bool mq_smtp_in_message(MQ_Context *context, MQ_Connection *connection, MQ_Message *message)
{
    (void)message;
    MQ_startTimer(context, 0, give_back, connection);
    return true;
}
"""

# Takes each message, and gives all back when it is told to.
NATIVE_HOARDS = """
#include <mqcore.h>
static MQ_Connection *held[1 << 18];
static unsigned count;
MQ_EXPORT int mq_version(void) { return MQ_API_VERSION; }
MQ_EXPORT void give_all_back(void)
{
    while (count > 0)
        MQ_continue(held[--count]);
}
MQ_EXPORT bool mq_smtp_in_message(MQ_Context *context, MQ_Connection *connection, MQ_Message *message)
{
    (void)context, (void)message;
    held[count++] = connection;
    return true;
}
"""


@functools.cache
def _folder() -> Any:
    return tempfile.TemporaryDirectory(prefix="mqcore-bench-")


@functools.cache
def compiled(source: str) -> bytes:
    """The shared object that a source becomes."""
    folder = Path(_folder().name)
    (folder / "plugin.c").write_text(source)
    command = ("cc", "-O2", "-shared", "-fPIC", "-fvisibility=hidden", "-I", mqcore.get_include(), "plugin.c", "-o", "plugin")
    subprocess.run(command, cwd=folder, check=True)
    return (folder / "plugin").read_bytes()


def native(source: str, count: int, start: int = 0) -> tuple[str, ...]:
    """So many plugins of that source, each in a file of its own."""
    folder = Path(tempfile.mkdtemp(dir=_folder().name))
    paths = [folder / f"{number:04}-plugin.so" for number in range(start, start + count)]
    for path in paths:
        path.write_bytes(compiled(source))
    return tuple(map(str, paths))


@contextmanager
def dispatcher(loop: Any, *paths: str, python: tuple[int, ...] = ()) -> Iterator[mqcore.Dispatcher]:
    """Over native plugins, and Python plugins with these numbers in the order."""
    plugins = mqcore.Plugins(*paths)
    for number in python:
        namespace: dict[str, Any] = {}
        exec(compile(PASSES_ON, f"{number:04}-python.py", "exec"), namespace)
        plugins.add(f"{number:04}-python", type("Plugin", (), {HOOK: staticmethod(namespace[HOOK])})())
    made = mqcore.Dispatcher(plugins, loop)
    try:
        yield made
    finally:
        made.close()
        plugins.close()
