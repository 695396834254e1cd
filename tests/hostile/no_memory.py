"""Small scenarios in which the n-th allocation fails, for every n: `python -m no_memory OWNER SCENARIO [EVERY FIRST LAST]`.

Each n is a process of its own. It ends well when its books are in order, every `done` that was due was called (or its call
failed for want of memory, which then was told), nothing is left after close(), and the dispatcher worked on in between.
"""

from __future__ import annotations

import asyncio
import faulthandler
import fcntl
import gc
import logging
import os
import socket
import sys
import time
import traceback
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import hostile_tools as tools
from hostile_tools import Owner, books, mqcore

SCENARIOS: dict[str, type[Scenario]] = {}


class Scenario:
    """What is prepared, what is done without memory, and what must hold then."""

    only_uvloop = False
    hold_timeout = 0.0

    def __init_subclass__(cls) -> None:
        SCENARIOS[cls.__name__.lower()] = cls

    def __init__(self, owner: Owner) -> None:
        self.owner = owner
        self.holds: list[Any] = []
        self.contexts: list[Any] = []
        plugin = SimpleNamespace(mq_step=self.hook, mq_context_initialize=self.contexts.append)
        self.plugins = owner.plugins({"10-plugin": plugin})
        self.dispatcher: Any = owner.dispatcher(self.plugins, hold_timeout=self.hold_timeout)
        self.step = self.dispatcher.hook("mq_step")
        self.messages = [mqcore.Message() for _ in range(4)]
        self.told: dict[Any, Any] = dict.fromkeys(self.messages)
        self.returned: list[Any] = ["nothing"] * len(self.messages)
        self.done = self.told.__setitem__  # replaces what is there: needs no memory
        self.prepare()

    def prepare(self) -> None:
        pass

    def hook(self, context: Any, message: Any) -> Any:
        return True

    def run(self) -> None:
        """A message of each, as far as memory goes."""
        for index, message in enumerate(self.messages):
            try:
                self.returned[index] = self.step.run(message, done=self.done)
            except MemoryError:
                self.returned[index] = "raised"

    def body(self) -> Iterator[None]:
        """Each `yield` is a turn of the loop."""
        raise NotImplementedError

    def turns(self) -> Iterator[None]:
        for _ in range(5):
            yield

    def task(self, coroutine: Any) -> Iterator[None]:
        try:
            task = self.owner.loop.create_task(coroutine)
        except MemoryError:
            coroutine.close()
            raise
        for _ in range(60):
            yield
            if task.done():
                return task.result()
        # asyncio had no memory to wake the task up with.
        task.cancel()
        return None

    def check(self) -> None:
        """What holds after each body: this is called with memory again."""
        loop_errors = self.owner.loop_errors
        tools.assert_conserved(self.dispatcher)
        if not self.dispatcher.stats().entered:
            assert "nothing" in self.returned or "raised" in self.returned
        self.dispatcher.close()
        self._turn()
        missing = sum(
            returned is None and self.told[message] is None
            for message, returned in zip(self.messages, self.returned, strict=True)
        )
        told_for_nothing = [
            returned
            for message, returned in zip(self.messages, self.returned, strict=True)
            if returned is not None and self.told[message] is not None
        ]
        assert not told_for_nothing, (self.returned, list(self.told.values()))
        failed = sum(isinstance(error, MemoryError) for error in loop_errors)
        assert missing <= min(failed, 1), (self.returned, list(self.told.values()), loop_errors)
        s = self.dispatcher.stats()
        entered = [each for each in self.returned if each not in ("nothing", "raised")]
        assert s.held == s.running == 0 and s.entered == len(entered), s

    def _turn(self) -> None:
        for _ in range(5):
            self.owner.spin(wait=False)


class Passes(Scenario):
    def hook(self, context: Any, message: Any) -> Any:
        return False

    def body(self) -> Iterator[None]:
        self.run()
        yield


class Traced(Scenario):
    """Steps that are looked at: some are held, and one retries for ever."""

    def hook(self, context: Any, message: Any) -> Any:
        if message is self.messages[3]:
            return mqcore.RETRY
        return message is not self.messages[2]

    def body(self) -> Iterator[None]:
        for index, message in enumerate(self.messages):
            try:
                self.returned[index] = self.step.run_traced(message, mqcore.Trace(), done=self.done)
            except MemoryError:
                self.returned[index] = "raised"
        for message, returned in zip(self.messages[:2], self.returned, strict=False):
            if returned is None:
                self.contexts[0].continue_(message)
        yield from self.turns()


class Fails(Scenario):
    def hook(self, context: Any, message: Any) -> Any:
        raise ValueError

    def body(self) -> Iterator[None]:
        self.run()
        yield


class Wrong(Scenario):
    def hook(self, context: Any, message: Any) -> Any:
        return 7

    def body(self) -> Iterator[None]:
        self.run()
        yield


class Retries(Scenario):
    def hook(self, context: Any, message: Any) -> Any:
        return mqcore.RETRY

    def body(self) -> Iterator[None]:
        self.run()
        yield


class Held(Scenario):
    def body(self) -> Iterator[None]:
        self.run()
        for message, give in zip(self.messages, ("continue_", "complete", "retry"), strict=False):
            getattr(self.contexts[0], give)(message)
        self.contexts[0].fail(self.messages[3], "failed")
        yield from self.turns()


class ByHold(Scenario):
    def hook(self, context: Any, message: Any) -> Any:
        hold = context.hold(message)
        hold.start_timer(100, print)
        hold.start_timer(0, hold.continue_)
        self.holds.append(hold)
        return hold

    def body(self) -> Iterator[None]:
        self.run()
        yield from self.turns()
        for hold in self.holds:
            if hold.message is not None:
                hold.complete()
        yield from self.turns()


class Early(Scenario):
    def hook(self, context: Any, message: Any) -> Any:
        context.start_timer(0, int)
        context.continue_(message)
        return True

    def body(self) -> Iterator[None]:
        self.run()
        yield from self.turns()


class Cancels(Scenario):
    def body(self) -> Iterator[None]:
        self.run()
        for message in self.messages:
            self.dispatcher.cancel(message)
        yield


class Timeouts(Scenario):
    hold_timeout = 0.001

    def body(self) -> Iterator[None]:
        self.run()
        time.sleep(0.003)
        yield from self.turns()


class Many(Scenario):
    def body(self) -> Iterator[None]:
        try:
            self.returned = self.step.run_many(self.messages, done=self.done)
        except MemoryError:
            self.returned = ["raised"] * 4
        self.contexts[0].continue_(self.messages[0])
        self.dispatcher.held()
        self.dispatcher.stats()
        yield from self.turns()


class Abandons(Scenario):
    def hook(self, context: Any, message: Any) -> Any:
        return context.hold(message)

    def body(self) -> Iterator[None]:
        self.run()
        yield from self.turns()


class Watches(Scenario):
    def prepare(self) -> None:
        self.pair = socket.socketpair()
        self.pair[1].send(b"x")
        if self.owner.name == "uvloop":
            # libuv keeps a table by fd, and frees it twice where there is no memory for a larger one: have it large before.
            high = fcntl.fcntl(self.pair[0].fileno(), fcntl.F_DUPFD, 200)
            self.owner.loop.add_reader(high, print)
            self.owner.loop.remove_reader(high)
            os.close(high)

    def hook(self, context: Any, message: Any) -> Any:
        context.hold(message).watch(self.pair[0], mqcore.READ, self.ready, message)
        return True

    def ready(self, watcher: Any, events: int, message: Any) -> None:
        watcher.events = mqcore.READ | mqcore.WRITE
        self.contexts[0].continue_(message)
        watcher.stop()

    def body(self) -> Iterator[None]:
        self.run()
        yield from self.turns()


class Awaits(Scenario):
    only_uvloop = True

    def hook(self, context: Any, message: Any) -> Any:
        context.start_timer(0, context.continue_, message)
        return True

    async def main(self) -> None:
        for index, message in enumerate(self.messages):
            try:
                await asyncio.wait_for(self.step(message), 5)
            except MemoryError:
                continue
            finally:
                self.returned[index] = "raised"

    def body(self) -> Iterator[None]:
        yield from self.task(self.main())

    def check(self) -> None:
        tools.assert_conserved(self.dispatcher)
        self.dispatcher.close()
        s = self.dispatcher.stats()
        assert s.held == s.running == 0, s
        self._turn()


class Coroutine(Scenario):
    only_uvloop = True

    def prepare(self) -> None:
        self.ended = dict.fromkeys(self.messages, False)
        self.plugins.add("20-coroutine", SimpleNamespace(mq_step=self.coroutine))

    def hook(self, context: Any, message: Any) -> Any:
        return False

    async def coroutine(self, context: Any, message: Any) -> Any:
        await asyncio.sleep(0)
        self.ended[message] = True
        return False

    def body(self) -> Iterator[None]:
        self.run()
        yield from self.turns()
        yield from self.turns()

    def check(self) -> None:
        super().check()
        over = [message for message, returned in zip(self.messages, self.returned, strict=True) if returned is not None]
        assert not any(self.ended[message] for message in over), (self.returned, self.ended)


class Changes(Scenario):
    def body(self) -> Iterator[None]:
        self.run()
        self.plugins.add("20-new", SimpleNamespace(mq_step=lambda context, message: False, mq_context_cleanup=bool))
        self.plugins.reload()
        self.plugins.remove("20-new")
        self.contexts[0].retry(self.messages[0])
        yield from self.turns()

    def check(self) -> None:
        super().check()
        self.plugins.close()


class Closes(Scenario):
    def body(self) -> Iterator[None]:
        self.run()
        for context in self.contexts:
            context.start_timer(0, int)
        self.dispatcher.close()
        yield from self.turns()


class Makes(Scenario):
    def prepare(self) -> None:
        self.dispatcher.close()
        self._turn()

    def body(self) -> Iterator[None]:
        self.dispatcher = None
        self.dispatcher = self.owner.dispatcher(self.plugins)

        yield
    def check(self) -> None:
        if self.dispatcher is None:
            gc.collect()
            self._turn()
            assert tools.handles_and_holds() == (0, 0), tools.handles_and_holds()
            self.dispatcher = self.owner.dispatcher(self.plugins)
        self.step = self.dispatcher.hook("mq_step")
        assert self.step.run(mqcore.Message()) is None
        assert books(self.dispatcher) == (0, 0, 0, 0, 1, 0) or books(self.dispatcher)[4:] == (0, 1)
        self.dispatcher.close()
        self._turn()


class Streams(Scenario):
    only_uvloop = True

    def prepare(self) -> None:
        if hasattr(self.step, "stream"):
            self.step.stream([])  # imports what it needs

    def hook(self, context: Any, message: Any) -> Any:
        context.start_timer(0, context.continue_, message)
        return True

    async def main(self) -> None:
        async for message, outcome in self.step.stream(self.messages, max_in_flight=2):
            assert message in self.told and outcome in (mqcore.CONTINUE, mqcore.FAIL)

    def body(self) -> Iterator[None]:
        if hasattr(self.step, "stream"):
            yield from self.task(self.main())

    check = Awaits.check


# ------------------------------------------------------------------------------------------------------------------- a run


class Attempt:
    """A scenario's body, driven in one run of the loop: uvloop itself cannot be started without memory."""

    def __init__(self, scenario: Scenario, nth: int) -> None:
        self.nth = nth
        self.error: BaseException | None = None
        self.enough = False  # the body needs fewer than n allocations
        self.ended = False
        self.loop = scenario.owner.loop
        self.steps = self._steps(scenario.body())

    def _steps(self, body: Iterator[None]) -> Iterator[None]:
        import _testcapi

        _testcapi.set_nomemory(self.nth, self.nth + 1)
        try:
            yield from body
        except BaseException as error:
            self.error = error
        try:
            for _ in range(self.nth + 1000):
                bytes(1000)
        except MemoryError:
            self.enough = True
        _testcapi.remove_mem_hooks()
        self.ended = True

    def run(self, owner: Owner) -> None:
        if owner.name == "pyuv":
            for _ in self.steps:
                tries = 0
                while tries < 3:  # no range(): that takes memory, too
                    tries += 1
                    try:
                        owner.spin(wait=False)
                    except MemoryError:  # pyuv's own
                        continue
                    break
            return
        for number in range(20):
            self.loop.call_later(0.1 * number, self._step)  # should uvloop have no memory for the next
        self.loop.run_forever()

    def _step(self) -> None:
        if self.ended:
            return
        try:
            next(self.steps)
        except StopIteration:
            self.loop.stop()
            return
        tries = 0
        while tries < 3:
            tries += 1
            try:
                self.loop.call_soon(self._step)
            except MemoryError:
                continue
            return


def child(owner_name: str, name: str, nth: int) -> int:
    """1: checked. 2: the scenario needs fewer than n allocations."""
    faulthandler.dump_traceback_later(30, exit=True)
    owner = tools.start_owner(owner_name)
    scenario = SCENARIOS[name](owner)
    attempt = Attempt(scenario, nth)
    gc.collect()
    attempt.run(owner)
    error, enough = attempt.error, attempt.enough
    assert attempt.ended
    if enough:
        assert error is None, repr(error)
    elif error is not None:
        assert_want_of_memory(error)
        traceback.clear_frames(error.__traceback__)
    del attempt, error
    scenario.check()
    owner.loop_errors.clear()
    del scenario
    owner.dispatchers.clear()
    owner.finish()
    gc.collect()
    assert tools.handles_and_holds() == (0, 0), tools.handles_and_holds()
    return 2 if enough else 1


def assert_want_of_memory(error: BaseException) -> None:
    """A MemoryError, or an error that one led to."""
    each: BaseException | None = error
    while each is not None:
        if isinstance(each, MemoryError):
            return
        # CPython's own functions may fail without an error when they have no memory; ours may not.
        assert not isinstance(each, SystemError) or "mqcore" not in str(each), repr(each)
        each = each.__cause__ or each.__context__
    # uvloop's and asyncio's own errors, for what they could not make, and those that say what was not begun.
    allowed = SystemError | mqcore.NotHeld | mqcore.PluginError | RuntimeError | asyncio.TimeoutError
    assert isinstance(error, allowed), repr(error)


def one(owner_name: str, name: str, nth: int) -> int:
    """Fork, and wait for what `child` says."""
    pid = os.fork()
    if pid:
        _, status = os.waitpid(pid, 0)
        return os.waitstatus_to_exitcode(status)
    code = 3
    try:
        code = child(owner_name, name, nth)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def main() -> None:
    owner_name, name = sys.argv[1:3]
    every, first, last = map(int, (*sys.argv[3:], *(1, 1, 10**6)[len(sys.argv) - 3 :]))
    logging.lastResort = None
    logging.getLogger("mqcore").addHandler(logging.NullHandler())
    sys.stdout.flush()
    gc.collect()
    gc.freeze()
    failed: list[str] = []
    enough = 0
    nth = first
    while nth <= last and enough < 3 and len(failed) < 10:
        code = one(owner_name, name, nth)
        enough = enough + 1 if code == 2 else 0
        if code not in (1, 2):
            failed.append(f"n = {nth}: exit code {code}")
        nth += every
    assert not failed, f"{owner_name}, {name}: {failed}"
    print(f"{nth - every} allocations")


if __name__ == "__main__":
    main()
