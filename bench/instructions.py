"""Counts the instructions of the hottest paths: `python instructions.py FOLDER`, under `valgrind --tool=callgrind`.

callgrind writes one file for each call of `counted`, into the folder.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import uvloop
from building import build
from holding import ByDict, ByMqcore, ByWatched
from native import NATIVE_PASSES_ON, NATIVE_TAKES, dispatcher, native
from ringing import TIMES, WAYS
from subjects import HOOK, PASSES_ON, messages, subject
from test_dispatch import run_each
from test_native import Fires, Holds
from timing import ByCallLater
from timing import ByMqcore as TimersByMqcore

COUNT = 1_000


def cases(loop: Any) -> Iterator[tuple[str, dict[str, Callable[[], Any]]]]:
    """Name of each case, and its contenders, each of which does COUNT pieces of work. Valid until the next is taken."""
    floor = build("_floor").Floor
    taken = messages(COUNT)
    with subject(loop, PASSES_ON, 10) as made:
        many = floor(made.functions, made.contexts).run_many
        yield "run_many, 10 plugins", {"floor": lambda: many(taken), "mqcore": lambda: made.hook.run_many(taken)}
    with subject(loop, PASSES_ON, 1) as made:
        run = floor(made.functions, made.contexts).run
        contenders = {"floor": lambda: run_each(run, taken), "mqcore": lambda: run_each(made.hook.run, taken)}
        yield "run, 1 plugin", contenders
    by_dict, by_mqcore, by_watched = ByDict(loop, taken), ByMqcore(loop, taken), ByWatched(loop, taken)
    yield "hold and give back", {"dict + callback": by_dict.cycle, "mqcore": by_mqcore.cycle}
    yield "hold and give back, watched", {"not watched": by_mqcore.cycle, "mqcore": by_watched.cycle}
    by_mqcore.close()
    by_watched.close()
    with subject(loop, PASSES_ON, 10) as plain, subject(loop, PASSES_ON, 10, watchdog=0.5) as watched:
        ways = {"not watched": lambda: plain.hook.run_many(taken), "mqcore": lambda: watched.hook.run_many(taken)}
        yield "run_many, 10 plugins, watched", ways
    paths = native(NATIVE_PASSES_ON, 10)
    with dispatcher(loop, *paths) as made:
        functions, hook = build("_floor").NativeFloor(paths), made.hook(HOOK)
        ways = {"floor": lambda: functions.run_many(taken), "mqcore": lambda: hook.run_many(taken)}
        yield "run_many, 10 native plugins", ways
    with dispatcher(loop, *native(NATIVE_TAKES, 1)) as made:
        ways = {"libuv from C": Fires(made, COUNT).cycle, "mqcore": Holds(loop, made, COUNT).cycle}
        yield "hold, give back from a native timer", ways
    call_later, timers = ByCallLater(loop, COUNT), TimersByMqcore(loop, COUNT)
    contenders = {"uvloop": call_later.start_and_stop_in_turn, "mqcore": timers.start_and_stop_in_turn}
    yield "start and stop a timer", contenders
    timers.close()
    for case, places, count in (("ping-pong", 2, COUNT), ("100 sockets at once", COUNT // TIMES, 0)):
        with ExitStack() as stack:
            names = ("libuv from C", "uvloop", "mqcore")
            ways = {name: stack.enter_context(closing(WAYS[name](loop, places, count))) for name in names}
            yield case, {name: way.round for name, way in ways.items()}


def run_all() -> None:
    """Run every contender, once to warm up and once counted, and print the names in that order."""
    counted = build("_floor").counted
    for case, contenders in cases(uvloop.new_event_loop()):
        for name, contender in contenders.items():
            contender()
            counted(contender)
            print(f"{case}\t{name}", flush=True)


def count_all(folder: Path) -> dict[str, dict[str, float]]:
    """Instructions for each piece of work, by case and contender."""
    command = [
        *("valgrind", "--quiet", "--tool=callgrind", "--collect-atstart=no", "--toggle-collect=bench_counted"),
        *("--dump-after=bench_counted", f"--callgrind-out-file={folder}/out", sys.executable, __file__),
    ]
    # What this process finds, that one finds; and sets are in the same order each time.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": "0"}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
    counts: dict[str, dict[str, float]] = {}
    for number, line in enumerate(done.stdout.splitlines(), start=1):
        case, name = line.split("\t")
        found = re.search(r"^(?:totals|summary): (\d+)", (folder / f"out.{number}").read_text(), re.MULTILINE)
        assert found is not None
        counts.setdefault(case, {})[name] = int(found[1]) / COUNT
    return counts


if __name__ == "__main__":
    run_all()
