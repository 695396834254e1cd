"""Resident memory of held messages: `python memory.py WAY COUNT` holds them and prints bytes per message as JSON."""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
from typing import Any

import uvloop
from holding import WAYS

import mqcore


class PlainMessage:
    """A message for those who need nothing of it."""

    __slots__ = ("__weakref__",)


def resident() -> int:
    """Bytes of resident memory."""
    gc.collect()
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def measure(name: str, count: int) -> dict[str, float]:
    """Hold `count` messages in that way."""
    kind: type[Any] = mqcore.Message if name == "mqcore" else PlainMessage
    loop = uvloop.new_event_loop()
    warm = WAYS[name](loop, [kind()])
    warm.cycle()
    held = [None] * count
    start = resident()
    for number in range(count):
        held[number] = kind()
    made = resident()
    warm.messages = held
    warm.hold()
    end = resident()
    return {"beyond the message": (end - made) / count, "with the message": (end - start) / count}


def bytes_per_message(name: str, count: int) -> dict[str, float]:
    """What `measure` finds in a process of its own."""
    command = [sys.executable, __file__, name, str(count)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}  # finds what this process finds
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=environment)
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], int(sys.argv[2]))), flush=True)
    os._exit(0)  # what is held need not be given back
