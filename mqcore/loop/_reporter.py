"""The watchdog's reports that need the GIL: the stack of whatever blocks the loop. In a thread of its own for each loop."""

from __future__ import annotations

import asyncio
import logging
import sys
import traceback
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._watchdog import LoopWatchdog

MOST_FRAMES = 40

log = logging.getLogger("mqcore.watchdog")


def report_all(watchdog: LoopWatchdog) -> None:
    reported = 0
    while watchdog.wait():
        try:
            reported = report_one(watchdog, reported)
        except Exception:  # whatever handlers of logging do: it has to report the next one, too
            log.exception("the watchdog could not report more")


def report_one(watchdog: LoopWatchdog, reported: int) -> int:
    """`reported`: the last iteration of which a block was reported that is no plugin's."""
    if (report := watchdog.report()) is None:
        return reported
    lasts, known, plugin, hook, seconds, iteration = report
    frame = sys._current_frames().get(watchdog.ident) if lasts else None
    if known:
        what = f"plugin {plugin}" if plugin is not None else "a reload" if hook == "reload" else "a done callback"
        where = f" in {hook}" if plugin is not None and hook is not None else ""
        more = f"{what} keeps the loop{where}:\n{stack_of(frame)}"
        if not lasts:
            more = f"{what} has let the loop go{where}; it kept Python's lock until then, so there is no stack of it"
    else:
        if not is_running(watchdog.loop):
            return reported
        task = name_of_task(watchdog.loop) if lasts else ""
        more = f"what is no plugin's has kept the loop for {seconds:.2f} s{task}"
        more += f":\n{stack_of(frame)}" if lasts else "; it kept Python's lock until now, so there is no stack of it"
        watchdog.acknowledge(iteration, iteration != reported)
        reported = iteration
    del frame
    event = "stack" if lasts else "over"
    log.warning("%s", more, extra={"plugin": plugin, "hook": hook, "event": event, "seconds": round(seconds, 3)})
    return reported


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
