"""An import of records: `python bench/importing.py [RECORDS]`, 20,000 where it is not said.

Ten plugins see each record. Nine do nothing; one asks a service, which takes a millisecond: about each record, or about one
in ten, as where the others are in a cache. What the same takes in other ways is printed as multiples of what it takes with
`hook.stream`: by the clock, and in processor time.
"""

from __future__ import annotations

import asyncio
import gc
import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import aiostream
import uvloop
from subjects import functions_of

import mqcore

HOOK = "on_record"
PASSES_ON = f"def {HOOK}(context, record):\n    return False\n"
PLUGINS = 10
ASKS = 4  # the place of the one that asks
ANSWERS_AFTER = 0.001  # seconds
AT_ONCE = 1_000
THREADS = 100
ROUNDS = 5

CHECKS = functions_of(PASSES_ON.replace(HOOK, "mq_smtp_in_message"), PLUGINS - 1)


class Record(mqcore.Message):
    """What is imported. `unknown`: no cache has what the service would say."""

    def __init__(self, number: int, every: int) -> None:
        self.unknown = number % every == 0


def records(count: int, every: int) -> Iterator[Record]:
    """As a file or a query gives them, one after the other."""
    for number in range(count):
        yield Record(number, every)


# The same work in other ways


def check(record: Record, checks: tuple[Callable[..., Any], ...]) -> None:
    for function in checks:
        function(None, record)


async def import_one(record: Record) -> None:
    """All ten plugins."""
    check(record, CHECKS[:ASKS])
    if record.unknown:
        await asyncio.sleep(ANSWERS_AFTER)
    check(record, CHECKS[ASKS:])


async def plain_loop(source: Iterator[Record]) -> None:
    """One after the other."""
    for record in source:
        await import_one(record)


async def tasks(source: Iterator[Record]) -> None:
    """A task for each; a semaphore has no more than so many made."""
    semaphore = asyncio.Semaphore(AT_ONCE)

    async def one(record: Record) -> None:
        try:
            await import_one(record)
        finally:
            semaphore.release()

    async with asyncio.TaskGroup() as group:
        for record in source:
            await semaphore.acquire()
            group.create_task(one(record))


async def by_aiostream(source: Iterator[Record]) -> None:
    """Its `map`, with so many tasks at most."""
    mapped = aiostream.stream.map(aiostream.stream.iterate(source), import_one, ordered=False, task_limit=AT_ONCE)
    async with mapped.stream() as streamer:
        async for _ in streamer:
            pass


def in_thread(record: Record) -> None:
    check(record, CHECKS[:ASKS])
    if record.unknown:
        time.sleep(ANSWERS_AFTER)
    check(record, CHECKS[ASKS:])


def thread_pool(source: Iterator[Record]) -> None:
    """No more than so many records at a time, over the threads."""
    with ThreadPoolExecutor(THREADS) as pool:
        waiting: deque[Future[None]] = deque()
        for record in source:
            if len(waiting) == AT_ONCE:
                waiting.popleft().result()
            waiting.append(pool.submit(in_thread, record))
        for future in waiting:
            future.result()


# With plugins


def by_timer(context: mqcore.Context, record: Record) -> mqcore.HookResult:
    """The service is asked through what calls back, as a socket that is watched, or a client library in C."""
    if not record.unknown:
        return mqcore.CONTINUE
    context.start_timer(ANSWERS_AFTER, context.continue_, record)
    return mqcore.HOLD


async def by_coroutine(context: mqcore.Context, record: Record) -> mqcore.HookResult:
    """The service is asked through a library for asyncio."""
    if record.unknown:
        await asyncio.sleep(ANSWERS_AFTER)
    return mqcore.CONTINUE


async def by_stream(source: Iterator[Record], asks: Callable[..., Any]) -> None:
    plugins = mqcore.Plugins(hooks=[mqcore.HookSpec(HOOK)])
    for number, function in enumerate((*CHECKS[:ASKS], asks, *CHECKS[ASKS:])):
        plugins.add(f"{number:02}-plugin", SimpleNamespace(**{HOOK: function}))
    with mqcore.Dispatcher(plugins) as dispatcher:
        async for _, outcome in dispatcher.hook(HOOK).stream(source, max_in_flight=AT_ONCE):
            assert outcome is mqcore.CONTINUE
    plugins.close()


WAYS: dict[str, Callable[[Iterator[Record]], Any]] = {
    "hook.stream, a plugin with a timer": lambda source: uvloop.run(by_stream(source, by_timer)),
    "hook.stream, a coroutine hook": lambda source: uvloop.run(by_stream(source, by_coroutine)),
    "asyncio tasks with a semaphore": lambda source: uvloop.run(tasks(source)),
    "aiostream": lambda source: uvloop.run(by_aiostream(source)),
    f"a pool of {THREADS} threads": thread_pool,
    "a plain loop": lambda source: uvloop.run(plain_loop(source)),
}


def cost(way: Callable[[Iterator[Record]], Any], count: int, every: int) -> tuple[float, float]:
    """Of a record, in us: by the clock, and of the processor."""
    gc.collect()
    began, used = time.perf_counter(), time.process_time()
    way(records(count, every))
    return (time.perf_counter() - began) / count * 1e6, (time.process_time() - used) / count * 1e6


def measure(count: int, every: int) -> dict[str, list[tuple[float, float]]]:
    """All ways in turn, round after round."""
    costs: dict[str, list[tuple[float, float]]] = {name: [] for name in WAYS}
    for _ in range(ROUNDS):
        for name, way in WAYS.items():
            # It waits for each answer before it goes on: fewer tell as much.
            costs[name].append(cost(way, count // 20 if name == "a plain loop" else count, every))
    return costs


def ratio(rounds: list[tuple[float, float]], base: list[tuple[float, float]], kind: int) -> float:
    return statistics.median(each[kind] / first[kind] for each, first in zip(rounds, base, strict=True))


def main(count: int) -> None:
    for every, what in ((1, "each"), (10, "one in ten")):
        print(f"\n{count:,} records, the service is asked about {what}")
        print(f"{'':36}{'records a second':>18}{'time':>10}{'processor':>12}")
        costs = measure(count, every)
        base = next(iter(costs.values()))
        for name, rounds in costs.items():
            rate = 1e6 / statistics.median(each[0] for each in rounds)
            print(f"{name:36}{rate:18,.0f}{ratio(rounds, base, 0):8.2f} x{ratio(rounds, base, 1):10.2f} x")


if __name__ == "__main__":
    main(int(sys.argv[1].replace(",", "")) if len(sys.argv) > 1 else 20_000)
