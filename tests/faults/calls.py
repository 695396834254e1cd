"""An hour of plugin calls with faults at random, in one process: does each message end once, and does memory stay as it is?

    python tests/faults/calls.py [--calls N] [--minutes M] [--rounds N] [--seed N]

Ten plugins from a folder count their calls. One of them does to some messages what calls_faults.py has: it holds them and gives
them back by timers, by two threads, or before it returns, begins the step again, ends it, raises, returns nonsense, forgets
what it holds, or holds it until its time is over; another one does so as a coroutine. One client runs messages in bulk, of
which one in a hundred is such a one. Others wait for one each, and a third of them go away while they wait. Twice in a round a
plugin's file changes, and all are loaded anew. The calls are spread over the time.

After each round nothing is held any more. Then each message must have ended once, as it had to, the plugins' own counts
must be the dispatcher's, and all Holds and handles of libuv must be gone that were made in the round. A line for each says
how many messages ended how, by then, and how much memory the process has, which must not be 4 MiB more than after the first
tenth. The exit code is 1 where any of that is not so.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import logging
import os
import random
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import uvloop

sys.path[:0] = [str(Path(__file__).resolve().parent.parent / name) for name in ("", "faults", "hostile")]

import calls_faults
from calls_faults import CALLS, COROUTINES, FAULTS, Message, Record
from hostile_tools import handles_and_holds
from waiting import until

import mqcore

HOOKS = [mqcore.HookSpec("on_bulk"), mqcore.HookSpec("on_single")]
PLUGINS = 10
BULK = 1000
FAULTY = 10  # of a bulk
CLIENTS = 100
HOLD_TIMEOUT = 3  # seconds: far longer than all that is given back takes
GROWTH = 4 << 20

COUNTS = """
from calls_faults import CALLS
calls = CALLS["{name}"]

def on_bulk(context, message):
    next(calls)

def on_single(context, message):
    next(calls)
"""
ACTS = """
from calls_faults import CALLS, COROUTINES
calls = CALLS["{name}"]

def on_bulk(context, message):
    next(calls)
    if message.record is not None:
        return message.record.fault.act(context, message)

def on_single(context, message):
    next(calls)
    if message.record.fault not in COROUTINES:
        return message.record.fault.act(context, message)
"""
WAITS = """
from calls_faults import CALLS, COROUTINES
calls = CALLS["{name}"]

async def on_single(context, message):
    next(calls)
    if message.record.fault in COROUTINES:
        return await message.record.fault.act(context, message)
"""


class Soak:
    """Messages run, and what became of them."""

    def __init__(self, folder: Path, dispatcher: mqcore.Dispatcher) -> None:
        self.folder = folder
        self.dispatcher = dispatcher
        self.bulk, self.single = dispatcher.hook("on_bulk"), dispatcher.hook("on_single")
        self.records: list[Record] = []
        """Of this round."""
        self.gone_away = self.passed = self.faults = self.reloads = 0
        self.wrong: list[str] = []

    def calls(self) -> int:
        """Of plugins, so far."""
        return sum(row.calls for row in self.dispatcher.stats().hooks)

    def ended(self, message: Message, outcome: mqcore.Outcome) -> None:
        """The end of a step that was not over at once."""
        message.record.ends.append(outcome)

    def run_bulk(self) -> None:
        """Many at once; those that are let pass must end at once."""
        faulty = [Message(random.choice(FAULTS)) for _ in range(FAULTY)]
        self.records += [message.record for message in faulty]
        messages = [Message() for _ in range(BULK - FAULTY)] + faulty
        random.shuffle(messages)
        outcomes = self.bulk.run_many(messages, done=self.ended)
        for message, outcome in zip(messages, outcomes, strict=True):
            if message.record is None:
                self.passed += 1
                if outcome is not mqcore.CONTINUE:
                    self.wrong.append(f"a message that is let pass ended with {outcome}")
            elif outcome is not None:
                message.record.ends.append(outcome)

    async def wait_for_messages(self, stopped: asyncio.Event) -> None:
        """A client's work, one after the other."""
        while not stopped.is_set():
            message = Message(random.choice(random.choice([FAULTS, COROUTINES])))
            record = message.record
            waiting = asyncio.ensure_future(self.single(message))
            del message
            if random.random() < 1 / 3:
                await asyncio.wait({waiting}, timeout=random.uniform(0, 2 * calls_faults.SOON))
                if waiting.cancel():
                    self.gone_away += 1
                    await asyncio.wait({waiting})
                    continue
            record.ends.append(await waiting)
            self.records.append(record)

    def reload(self, number: int) -> None:
        """One plugin's code is new, all are loaded anew."""
        name = f"{random.randrange(PLUGINS):02}-plugin"
        path = self.folder / f"{name}.py"
        path.write_text(path.read_text() + f"# {number}\n")
        self.dispatcher.plugins.reload()
        self.reloads += 1

    async def round(self, calls: int, seconds: float) -> None:
        """So many calls, in so many seconds or longer; then nothing is held any more."""
        begin, first, stopped, reloads = time.monotonic(), self.calls(), asyncio.Event(), 0
        clients = [asyncio.create_task(self.wait_for_messages(stopped)) for _ in range(CLIENTS)]
        while (done := (self.calls() - first) / calls) < 1:
            if done * 3 >= reloads + 1:
                reloads += 1
                await asyncio.to_thread(self.reload, self.reloads)
            self.run_bulk()
            await asyncio.sleep(max(0.0, begin + done * seconds - time.monotonic()))
        stopped.set()
        await asyncio.wait_for(asyncio.gather(*clients), 600)
        await until(lambda: not (self.dispatcher.stats().held or self.dispatcher.stats().running))
        calls_faults.KEPT.clear()

    def check(self) -> None:
        """What must be true between two rounds."""
        stats = self.dispatcher.stats()
        self.wrong += [f"{record.fault.act.__name__} ended with {record.ends}" for record in self.records if not record.right]
        self.faults += len(self.records)
        self.records.clear()
        if stats.entered != self.passed + self.faults + self.gone_away:
            self.wrong.append(f"{stats.entered} steps for {self.passed} + {self.faults} + {self.gone_away} messages")
        counted = dict.fromkeys(CALLS, 0)
        for row in stats.hooks:
            counted[row.plugin] += row.calls
        if counted != CALLS.so_far():
            self.wrong.append(f"calls: {counted} in the dispatcher's books, {CALLS.so_far()} by the plugins' own")


def memory() -> int:
    """Bytes that are resident."""
    gc.collect()
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def threads() -> Iterator[None]:
    """Two that give back."""
    started = [threading.Thread(target=calls_faults.given_back_by_threads) for _ in range(2)]
    for thread in started:
        thread.start()
    try:
        yield
    finally:
        for _ in started:
            calls_faults.HOLDS.put(None)
        for thread in started:
            thread.join()


class Figures(NamedTuple):
    calls: int
    messages: int
    refused: int
    reloads: int
    growth: int  # bytes, since the first tenth
    wrong: list[str]


async def soak(folder: Path, calls: int, minutes: float, rounds: int) -> Figures:
    """All rounds, with a line for each."""
    for number in range(PLUGINS):
        name = f"{number:02}-plugin"
        (folder / f"{name}.py").write_text({4: ACTS, 7: WAITS}.get(number, COUNTS).format(name=name))
    sizes: list[int] = []
    left = None
    with mqcore.Plugins(folder, hooks=HOOKS) as plugins, mqcore.Dispatcher(plugins, hold_timeout=HOLD_TIMEOUT) as dispatcher:
        work = Soak(folder, dispatcher)
        print("round          calls     messages   continued  completed     failed  cancelled  reloads      MiB")
        for number in range(rounds):
            await work.round(calls // rounds, 60 * minutes / rounds)
            work.check()
            sizes.append(memory())
            if left not in (None, handles_and_holds()):
                work.wrong.append(f"handles and Holds left: {left} before a round, {handles_and_holds()} after it")
            left = handles_and_holds()
            stats = dispatcher.stats()
            line = f"{number + 1:5} {work.calls():14,} {stats.entered:12,} {stats.continued:11,} {stats.completed:10,}"
            print(f"{line} {stats.failed:10,} {stats.cancelled:10,} {work.reloads:8} {sizes[-1] / 2**20:8.1f}", flush=True)
            if work.wrong:
                break
        growth = sizes[-1] - sizes[len(sizes) // 10]
        return Figures(work.calls(), stats.entered, calls_faults.REFUSED.total(), work.reloads, growth, work.wrong)


def run(calls: int, minutes: float, rounds: int, seed: int) -> Figures:
    """In a folder that is gone afterwards. What threads and the clock do is not repeated with the seed."""
    random.seed(seed)
    for name in ("mqcore", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)  # all faults are told there
    with tempfile.TemporaryDirectory() as folder, threads():
        return uvloop.run(soak(Path(folder), calls, minutes, rounds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=1_000_000_000)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    figures = run(options.calls, options.minutes, options.rounds, options.seed)
    growth = f"{figures.growth / 2**20:+.1f} MiB since the first tenth"
    print(f"{figures.refused:,} give-backs came second and were refused; {growth}")
    for line in figures.wrong[:20]:
        print(line)
    sys.exit(bool(figures.wrong) or figures.growth > GROWTH)


if __name__ == "__main__":
    main()
