"""A real dispatcher, driven at random, with objects that misbehave (rule 21). What is checked:

after each operation, and within each piece of hostile code, rule 16; at the end of a world, that `done` was called once
for each run that returned None and for no other, that nothing is held or running, and that no handle is left.

    python tests/hostile/machine.py --operations 1000000 --seed 1 --owner uvloop

Reproducible by its seed, but for what threads, signals and the clock do. test_hostile_machine.py runs a short form.
"""

from __future__ import annotations

import argparse
import faulthandler
import gc
import logging
import os
import sys
import threading
import time
import weakref
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parent), str(Path(__file__).resolve().parent.parent)]  # run as a script

import hostile_objects as objects
import hostile_tools as tools
from hostile_world import TOP, World


def prepare() -> None:
    """Once in a process."""
    logger = logging.getLogger("mqcore")
    logger.addHandler(objects.Handler())
    logger.propagate = False
    logging.getLogger("asyncio").propagate = False
    logging.getLogger("asyncio").addHandler(logging.NullHandler())
    sys.unraisablehook = unraisable
    gc.collect()
    gc.freeze()  # else most of the time goes into looking at modules again and again
    threading.excepthook = lambda arguments: None


UNRAISABLE: list[str] = []


def unraisable(what: Any) -> None:
    """What finalizers raise is theirs; what nobody could raise in the core is a defect."""
    if issubclass(type(what.exc_value), SystemError) or (isinstance(what.object, str) and "mqcore" in what.object):
        UNRAISABLE.append(f"{what.exc_value!r} ignored in {what.object!r}")


def end_world(world: World) -> None:
    """Raises AssertionError when anything was not as it must be."""
    world.end()
    violations = world.violations
    reference = weakref.ref(world)
    del world
    gc.collect()
    gc.collect()
    if reference() is not None:
        reference = None  # type: ignore[assignment]  # a traceback may have kept it
        gc.collect()
    left = tools.handles_and_holds()
    if left != (0, 0):
        violations.append(f"{left[0]} handles and {left[1]} holds are left")
    violations.extend(UNRAISABLE)
    UNRAISABLE.clear()
    assert not violations, "\n".join(violations[:10])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--operations", type=int, default=1_000_000)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="stop earlier, after so long")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--owner", choices=["uvloop", "pyuv"], default="uvloop")
    parser.add_argument("--length", type=int, default=250, help="operations in one world")
    parser.add_argument("--verbose", action="store_true", help="tell each operation before it is done")
    arguments = parser.parse_args()
    prepare()
    limit = time.monotonic() + arguments.seconds
    done = worlds = 0
    while done < arguments.operations and time.monotonic() < limit:
        seed = arguments.seed * 1_000_000 + worlds
        if arguments.length >= arguments.operations:
            seed = arguments.seed
        faulthandler.dump_traceback_later(60, exit=True)
        os.write(2, f"\rworld {seed}, operation {done} ".encode())
        world = World(arguments.owner, seed)
        for number in range(min(arguments.length, arguments.operations - done)):
            operation = world.random.choice(TOP)
            if arguments.verbose:
                os.write(2, f"{number} {operation.__name__}\n".encode())
            world.operate(operation)
            if world.violations:
                os.write(2, f"\nviolated in operation {number}, {operation.__name__}\n".encode())
                break
        done += arguments.length
        worlds += 1
        end_world(world)
        del world
    print(f"{done} operations in {worlds} worlds: nothing found")


if __name__ == "__main__":
    main()
