"""Pauses that end too early or too late, and a process that gets no turn: finds the tests that pass by luck.

A test that sleeps a little and then expects something to have happened passes on a quiet machine, and some day fails on
another one. With the variable MQCORE_PAUSES it fails each time:

    shorter   what a test awaits with asyncio.sleep() ends in the next turn of the loop, as it can on uvloop, which counts
              from the time at which its turn began
    longer    asyncio.sleep() and time.sleep() take 0.3 s more than they were asked for, as on a machine with much to do, and
              so do the library's own
    late      a tenth of a second passes each time before a test lets its loop turn (`turn` and `run_until` of owners.py)
    stops     the process of the tests is stopped for up to a tenth of a second, again and again, wherever it is

`shorter` and `longer` touch pauses of up to 0.3 s: those that are longer are no guesses at how long something takes.
time.sleep() is never shorter, as nothing makes it so: a test may rely on a clock that has gone on.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from owners import Owner

KIND = os.environ.get("MQCORE_PAUSES", "")

SHORT = 0.3
"""In seconds: pauses up to this one are changed, and become this much longer."""

TESTS = str(Path(__file__).parent)

sleep_a_task, sleep_a_thread = asyncio.sleep, time.sleep


def shorter(delay: float, result: Any = None) -> Any:
    by_a_test = sys._getframe(1).f_code.co_filename.startswith(TESTS)
    return sleep_a_task(0 if by_a_test and 0 < delay <= SHORT else delay, result)


def longer(delay: float, result: Any = None) -> Any:
    return sleep_a_task(delay + SHORT if 0 < delay <= SHORT else delay, result)


def longer_in_a_thread(seconds: float) -> None:
    sleep_a_thread(seconds + SHORT if 0 < seconds <= SHORT else seconds)


@contextmanager
def nothing() -> Iterator[None]:
    yield


@contextmanager
def shorter_pauses() -> Iterator[None]:
    asyncio.sleep = shorter
    yield
    asyncio.sleep = sleep_a_task


@contextmanager
def longer_pauses() -> Iterator[None]:
    asyncio.sleep, time.sleep = longer, longer_in_a_thread
    yield
    asyncio.sleep, time.sleep = sleep_a_task, sleep_a_thread


# Until the process of the tests closes our standard input, or is gone.
STOP_AGAIN_AND_AGAIN = """
import os, random, select, signal, sys, time
pid = int(sys.argv[1])
while not select.select([sys.stdin], [], [], random.random() * 0.05)[0]:
    os.kill(pid, signal.SIGSTOP)
    time.sleep(random.random() * 0.1)
    os.kill(pid, signal.SIGCONT)
"""


@contextmanager
def stops() -> Iterator[None]:
    program = [sys.executable, "-c", STOP_AGAIN_AND_AGAIN, str(os.getpid())]
    with subprocess.Popen(program, stdin=subprocess.PIPE) as stopping:
        yield
        stopping.communicate(b"", timeout=30)


@contextmanager
def late_turns() -> Iterator[None]:
    def late(method: Any) -> Any:
        def wait_first(*args: Any, **options: Any) -> Any:
            sleep_a_thread(0.1)
            return method(*args, **options)

        return wait_first

    turn, run_until = Owner.turn, Owner.run_until
    Owner.turn, Owner.run_until = late(turn), late(run_until)
    yield
    Owner.turn, Owner.run_until = turn, run_until


KINDS: dict[str, Callable[[], Any]] = {
    "": nothing,
    "shorter": shorter_pauses,
    "longer": longer_pauses,
    "late": late_turns,
    "stops": stops,
}


def as_asked_for() -> Any:
    """A context in which pauses are as the variable says."""
    return KINDS[KIND]()
