"""The supervisor: it starts workers, and others in place of those that end, and lets them end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import signal
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field

from ..mail.listening import Listening
from ..mail.maildir.lock import MaildirLock
from ..mail.report import UNREACHABLE, Report
from ..server import systemd
from ..server.server import ReloadError, Reloads
from .blame import Blame
from .books import Books
from .channel import Said
from .page import Page
from .process import State, Worker
from .slot import SHORT_LIFE, Doorman, Slot
from .start import Start

OF_OPERATORS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
"""By which people end a process: no message is to blame then."""
MOST_EARLY_CRASHES = 5
"""In a row, of each slot: then there is no use in going on."""

log = logging.getLogger("mqcore.server")


@dataclass(frozen=True, slots=True)
class Patience:
    """How long the supervisor waits for what, in seconds."""

    ready: float = 30.0
    """For a worker that was started."""
    stop: float = 30.0
    """For one that was told to stop."""
    beat: float = 60.0
    """For a sign of life: then it is told to show where it hangs, by SIGABRT."""
    abort: float = 5.0
    """For the end after that."""
    empty: float = 2.0
    """For a worker in a slot that has none, until its clients are told to come again."""
    look: float = 1.0
    """From one look at all that to the next."""


@dataclass(eq=False)
class Supervisor:
    """Runs `mqcore` with these `arguments` in so many processes. Made and run in a coroutine.

    `listening`: where clients come in; None for a source that fetches its mail. It stays open until the run is to end."""

    arguments: Sequence[str]
    workers: int
    in_flight: int
    """Most transactions of one worker."""
    listening: Listening | None = None
    implicit_tls: bool = False
    maildirs: Mapping[str, MaildirLock] = field(default_factory=dict)
    """By path, those that workers write to."""
    patience: Patience = field(default_factory=Patience)
    when_ready: Callable[[], object] = lambda: None
    """Is called once, when all of the first workers are ready."""
    reloads: Reloads = field(default_factory=Reloads, init=False)

    def __post_init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        shared = self.listening.slots if self.listening is not None else [[]]
        self.slots = [Slot(number, shared[number % len(shared)]) for number in range(self.workers)]
        self.books = Books(self.workers)
        self.blame = Blame(self._tell_blame)
        self.alive: set[Worker] = set()
        self.paused: set[str] = set()
        self._doorman = Doorman(silent=self.implicit_tls)
        self.started = time.time()
        """In seconds since 1970."""
        self._seed = secrets.randbits(64)
        self._generation = 0
        self._began = self._last_look = self._loop.time()
        self._tasks: set[asyncio.Task[None]] = set()
        self._reloading = asyncio.Lock()
        self._over = asyncio.Event()
        self._error: tuple[str, int] | None = None
        self.is_ready = self.is_stopping = self.is_draining = False
        self.killed_by: signal.Signals | None = None
        """What ended all workers at once."""

    # The run

    async def run(self) -> Report:
        """Ends after `stop` or `drain`, or when there is no use in going on."""
        looking = self._loop.create_task(self._look())
        try:
            await self._begin()
            await self._over.wait()
        finally:
            looking.cancel()
            self.stop()
            for task in self._tasks:
                task.cancel()
            while self.alive:
                await asyncio.wait([self._loop.create_task(one.ended.wait()) for one in self.alive])
        report = self.report()
        if self._error is not None:
            report.error, report.error_code = self._error
        return report

    def report(self) -> Report:
        """As of now."""
        return self.books.report(self.alive, self._loop.time() - self._began)

    async def _begin(self) -> None:
        """The first workers. If one of them cannot be, none is."""
        try:
            for slot in self.slots:
                slot.worker = self._start(slot)
        except OSError as error:
            return self._fail(f"no worker can be started: {error}", UNREACHABLE)
        settling = [self._loop.create_task(slot.worker.settled.wait()) for slot in self.slots if slot.worker is not None]
        await asyncio.wait(settling, timeout=self.patience.ready)
        for task in settling:
            task.cancel()
        for worker in [slot.worker for slot in self.slots]:
            if worker is not None and worker.state is State.STARTING and not self.is_stopping:
                self._fail(f"a worker was not ready within {self.patience.ready:g} s", UNREACHABLE)
        if self._error is None and not self.is_stopping:
            self.is_ready = True
            self._began = self._loop.time()
            self.when_ready()
        return None

    def _start(self, slot: Slot, *, after_crash: bool = False) -> Worker:
        self._generation += 1

        def start(channel: int, page: int) -> Start:
            listening = self.listening
            return Start(
                channel=channel,
                page=page,
                listeners=tuple(one.fileno() for one in slot.listeners),
                url="" if listening is None else listening.url,
                slot=slot.number,
                generation=self._generation,
                workers=self.workers,
                seed=self._seed,
                after_crash=after_crash,
                suspects=tuple(self.blame.suspects),
                refused=tuple(self.blame.refused),
                paused=tuple(self.paused),
                maildirs=tuple(self.maildirs),
            )

        worker = Worker(start, self.arguments, Page.make(self.in_flight), self._ended, self._told)
        self.alive.add(worker)
        self.books.began(worker)
        return worker

    def _told(self, worker: Worker, said: Said) -> None:
        if "ready" in said:
            self._open_doors(self._loop.time())
        else:
            self.blame.survived(said["digest"])

    # When one ends

    def _ended(self, worker: Worker) -> None:
        self.alive.discard(worker)
        slot = self.slots[worker.start.slot]
        crashed = self.is_ready and not worker.was_asked and slot.next is not worker  # of that one `reload` tells
        if not worker.was_asked and (worker.hung or -(worker.code or 0) not in OF_OPERATORS):
            self.blame.died(worker.page.digests())
        self.books.ended(worker, crashed=crashed)
        for maildir in self.maildirs.values():
            with contextlib.suppress(OSError):  # the next run cleans it
                maildir.clean(worker.start.writer)
        if slot.next is worker:
            slot.next = None
        if slot.worker is worker:
            slot.worker = None
            slot.empty_since = self._loop.time()
        if self.is_stopping or self.is_draining:
            if not self.alive:
                self._over.set()
        elif not self.is_ready:
            self._fail(f"a worker ended before all were ready: {worker.why}", worker.exit_code or UNREACHABLE)
        elif crashed:
            self._crashed(slot, worker)

    def _crashed(self, slot: Slot, worker: Worker) -> None:
        pause = slot.crashed(worker)
        log.error(
            "worker %d (process %d) ended after %.1f s, by itself: %s", slot.number, worker.pid, worker.age, worker.why
        )
        if all(one.early_crashes >= MOST_EARLY_CRASHES for one in self.slots) and not self.blame.suspects:
            self._fail(
                f"each worker ended {MOST_EARLY_CRASHES} times in a row within {SHORT_LIFE:g} s, the last one by {worker.why}",
                UNREACHABLE,
            )
        elif slot.worker is None and slot.next is None:
            self._in_background(self._restart(slot, pause))

    async def _restart(self, slot: Slot, pause: float) -> None:
        await asyncio.sleep(pause)
        if slot.worker is not None or slot.next is not None or self.is_stopping or self.is_draining:
            return
        try:
            slot.worker = worker = self._start(slot, after_crash=True)
        except OSError as error:
            log.error("no worker can be started: %s; it is tried again", error)
            self._in_background(self._restart(slot, max(1.0, pause)))
            return
        self.books.restarts += 1
        try:
            async with asyncio.timeout(self.patience.ready):
                await worker.settled.wait()
        except TimeoutError:
            log.error("worker %d is not ready within %g s, and is killed", slot.number, self.patience.ready)
            worker.signal(signal.SIGKILL)

    def _in_background(self, work: Coroutine[None, None, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _fail(self, reason: str, code: int) -> None:
        if self._error is None:
            self._error = reason, code
        self.stop()

    # Looking after them

    async def _look(self) -> None:
        while True:
            await asyncio.sleep(self.patience.look)
            now = self._loop.time()
            if now - self._last_look > 2 * self.patience.look:  # this process was stopped itself
                for worker in self.alive:
                    worker.last_beat = max(worker.last_beat, now)
            self._last_look = now
            self.blame.expire()
            for worker in self.alive:
                if worker.state is not State.STARTING and now - worker.last_beat > self.patience.beat:
                    self._end_hanging(worker)
            self._open_doors(now)

    def _end_hanging(self, worker: Worker) -> None:
        worker.last_beat = self._loop.time()
        log.error(
            "worker %d (process %d) gave no sign of life for %g s, and is ended",
            worker.start.slot,
            worker.pid,
            self.patience.beat,
        )
        worker.hung = True
        worker.signal(signal.SIGABRT)
        worker.kill_in(self.patience.abort)

    def _open_doors(self, now: float) -> None:
        """Turn away who comes to a slot that nobody serves. Where slots share sockets, all of them have to be empty."""
        served = {one for slot in self.slots if slot.is_served for one in slot.listeners}
        for slot in self.slots:
            if slot.is_served:
                slot.empty_since = None
            elif slot.empty_since is None:
                slot.empty_since = now
            if slot.is_served or self.is_stopping or self.is_draining or not self.is_ready:
                self._doorman.leave(slot.listeners)
            elif now - slot.empty_since >= self.patience.empty:  # type: ignore[operator]
                self._doorman.stand_at([one for one in slot.listeners if one not in served])

    # What it is told

    def stop(self) -> None:
        """Let all end when what is open is over, soon."""
        self.is_stopping = True
        self._listen_no_more()
        for worker in self.alive:
            worker.stop(self.patience.stop)
        if not self.alive:
            self._over.set()

    def drain(self, timeout: float | None = None) -> None:
        """The same, but without hurry; after `timeout` seconds as `stop`."""
        if self.is_stopping:
            return
        self.is_draining = True
        self._listen_no_more()
        for worker in self.alive:
            worker.stop(None, hurry=False)
        if timeout is not None:
            self._loop.call_later(timeout, self.stop)
        if not self.alive:
            self._over.set()

    def _listen_no_more(self) -> None:
        """Clients are refused as soon as no worker listens."""
        for slot in self.slots:
            self._doorman.leave(slot.listeners)
        if self.listening is not None:
            self.listening.close()

    def kill(self, why: signal.Signals) -> None:
        """All, at once."""
        self.killed_by = why
        self.is_stopping = True
        for worker in self.alive:
            worker.signal(signal.SIGKILL)
        if not self.alive:
            self._over.set()

    async def reload(self) -> None:
        """Slot by slot: start another worker, and when it is ready let the old one stop. Raises ReloadError if one is not
        ready: then all that were not replaced yet stay."""
        async with self._reloading:
            with systemd.reloading():
                await self._reload()

    async def _reload(self) -> None:
        for slot in self.slots:
            try:
                await self._replace(slot)
            except ReloadError as error:
                self.reloads.failed += 1
                self.reloads.error = str(error)
                log.error("%s", error)
                raise
        self.reloads.succeeded += 1
        self.reloads.last = time.time()
        self.reloads.error = None
        log.info("reloaded: %d workers took the place of those that there were", len(self.slots))

    async def _replace(self, slot: Slot) -> None:
        if self.is_stopping or self.is_draining or not self.is_ready:
            raise ReloadError("not reloaded: the server does not run")
        try:
            slot.next = new = self._start(slot)
        except OSError as error:
            raise ReloadError(f"not reloaded: no worker can be started: {error}") from error
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.patience.ready):
                await new.settled.wait()
        if new.state is not State.READY:
            slot.next = None
            why = new.why if new.state is State.ENDED else f"it was not ready within {self.patience.ready:g} s"
            new.stop(0.0)
            if slot.worker is None and not self.is_stopping:
                self._in_background(self._restart(slot, 0.1))
            raise ReloadError(f"not reloaded, the workers that there are stay: worker {slot.number} cannot be replaced: {why}")
        old, slot.worker, slot.next = slot.worker, new, None
        slot.early_crashes = 0
        if old is not None:
            old.stop(self.patience.stop)

    def _tell_blame(self) -> None:
        for worker in self.alive:
            worker.tell(do="blame", suspects=[*self.blame.suspects], refused=[*self.blame.refused])
