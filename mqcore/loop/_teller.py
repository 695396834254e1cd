"""What the watchdog tells that needs the GIL: the stack of whatever keeps the loop. In a thread of its own for each loop."""

from __future__ import annotations

import asyncio
import logging
import sys
import traceback
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._guard import Guard

MOST_FRAMES = 40

log = logging.getLogger("mqcore.watchdog")


def tell(guard: Guard) -> None:
    told = 0
    while guard.wait():
        try:
            told = tell_one(guard, told)
        except Exception:  # whatever handlers of logging do: it has to tell of the next one, too
            log.exception("the watchdog could not tell more")


def tell_one(guard: Guard, told: int) -> int:
    """`told`: the last turn that was told of as nobody's."""
    if (asked := guard.asked()) is None:
        return told
    lasts, known, plugin, hook, seconds, turn = asked
    frame = sys._current_frames().get(guard.ident) if lasts else None
    if known:
        what = f"plugin {plugin}" if plugin is not None else "a done callback"
        where = f" in {hook}" if plugin is not None and hook is not None else ""
        more = f"{what} keeps the loop{where}:\n{stack_of(frame)}"
        if not lasts:
            more = f"{what} has let the loop go{where}; it kept Python's lock until then, so there is no stack of it"
    else:
        if not is_running(guard.loop):
            return told
        task = name_of_task(guard.loop) if lasts else ""
        more = f"what is no plugin's has kept the loop for {seconds:.2f} s{task}"
        more += f":\n{stack_of(frame)}" if lasts else "; it kept Python's lock until now, so there is no stack of it"
        guard.confirm(turn, turn != told)
        told = turn
    del frame
    event = "stack" if lasts else "over"
    log.warning("%s", more, extra={"plugin": plugin, "hook": hook, "event": event, "seconds": round(seconds, 3)})
    return told


def is_running(loop: object) -> bool:
    """Only asyncio's loops tell that."""
    return isinstance(loop, asyncio.AbstractEventLoop) and loop.is_running()


def name_of_task(loop: object) -> str:
    """That of a coroutine hook names plugin and hook."""
    assert isinstance(loop, asyncio.AbstractEventLoop)
    task = asyncio.current_task(loop)
    return "" if task is None else f", in the task {task.get_name()}"


def stack_of(frame: FrameType | None) -> str:
    if frame is None:
        return "  (the loop's thread runs no Python code)"
    return "".join(traceback.format_list(traceback.extract_stack(frame)[-MOST_FRAMES:])).rstrip("\n")
