"""The connections to the next server."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence

from .._mail import Mail
from ._soon import Job
from .outgoing import Client, NoneFree, Unreachable
from .upstream import Health, Upstream

MAX_CONNECTIONS = 20
MORE_CONNECTIONS = 3
"""So many more for mails that came by other servers of this kind: one for those that came by at least one of them, one for
those that came by two, and so on. The further a mail has come, the less it waits, so that servers that deliver to each other
do not all wait for each other (as in store-and-forward networks, where buffers are kept for packets by their hops)."""
IDLE_TIMEOUT = 30.0
"""Seconds that a connection is kept open without a mail."""
STALLED = 30.0
"""Seconds without any transaction that ends, while all connections are in use, until no client is kept waiting for one: two
servers that deliver to each other would wait for each other's connections."""
AWAY_FOR = 10.0
"""Seconds between rounds of tries, when all that is waited for is that the server is there."""
MORE_AFTER = 60.0
"""Seconds until a server that took no more connections is asked for one more."""

log = logging.getLogger(__name__)


class Pool:
    """At most `MAX_CONNECTIONS` to one server, of all processes of the run, and some more, each of which is used for many
    mails, one after the other.

    When the server takes no more connections, those that there are must do. When there are none, it is tried again after
    each of `pauses` (in seconds), once for all who wait. Without pauses, nobody waits for a connection while nothing moves.
    """

    def __init__(self, upstream: Upstream, pauses: Sequence[float], processes: int = 1) -> None:
        self._now = asyncio.get_running_loop().time
        self._upstream = upstream
        self.health = Health(upstream.url)
        self._pauses = pauses
        self._most = -(-MAX_CONNECTIONS // processes)
        self._rooms = [asyncio.Semaphore(self._most + more) for more in range(MORE_CONNECTIONS + 1)]
        """A mail enters those from the number of its hops on, one after the other."""
        self._open = 0
        """Connections that there are, or that are being made."""
        self._full_until = 0.0
        self._moved = 0.0
        """When the last transaction ended."""
        self._idle: dict[Client, asyncio.TimerHandle] = {}
        self._waiting: dict[asyncio.Future[None], None] = {}
        """For a change: a connection that is idle, or lost, or the news that there is none."""
        self._jobs: deque[Job] = deque()
        """What waits without a coroutine, for a connection that is in use."""
        self._away: set[int] = set()
        """Ids of the tuples of mails for which a coroutine begins, which will make a connection."""
        self._coroutines = 0
        """That wait for room, or for a connection."""
        self._is_turn_of_job = False
        """When both wait, they have their turns."""
        self._trying_again = asyncio.Lock()
        self._begun: set[Client] = set()
        """On which there are jobs, also those that go on in a coroutine."""
        self._goodbyes: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def client(self, *, fresh: bool = False, waits: bool = True, hops: int = 0) -> AsyncIterator[Client]:
        """A connection, for one transaction; with `fresh`, a new one. Raises Unreachable: NoneFree where it does not wait.

        `hops`: by how many servers of this kind the mail came."""
        try:
            with contextlib.ExitStack() as rooms:
                for room in self._rooms[min(hops, MORE_CONNECTIONS) :]:
                    await self._enter(room, waits)
                    rooms.callback(room.release)
                client = await self._take(fresh, waits)
                try:
                    yield client
                finally:
                    self._moved = self._now()
                    self._put_back(client)
        finally:
            self.look()

    @contextlib.contextmanager
    def begun(self, client: Client) -> Iterator[Client]:
        """The connection of a job, on which it goes on in a coroutine."""
        try:
            yield client
        finally:
            self._moved = self._now()
            self._end(client)
            self.look()

    # What is sent without a coroutine. Its mails came by no other server of this kind, so they enter all rooms.

    def add(self, job: Job) -> bool:
        """Whether it is begun, or waits until a connection is free; else a connection is to be made first."""
        if not self._jobs and not any(room.locked() for room in self._rooms):
            client = self._take_idle()
            if client is not None:
                return self._begin(job, client)
            if self._open + len(self._away) < self._most:
                self._away.add(id(job.mails))
                return False
        if self._pauses:
            self._jobs.append(job)
        return bool(self._pauses)

    def arrived(self, mails: Sequence[Mail]) -> None:
        """The coroutine for these has begun."""
        self._away.discard(id(mails))

    def cancel(self, mails: Sequence[Mail]) -> None:
        """If these still wait, they are not sent."""
        for job in self._jobs:
            if job.mails is mails:
                self._jobs.remove(job)
                job.cancel()
                return

    def leave(self, client: Client) -> None:
        """A job is over."""
        self._moved = self._now()
        is_next = self._is_turn()
        if is_next and not client.is_readable():  # nor was anything left in the middle
            job = self._jobs.popleft()
            if client.begin(job):  # in the same rooms
                return
            self._jobs.appendleft(job)
        self._end(client)
        if is_next:
            self._begin_next()

    def look(self) -> None:
        """There may be room for a job."""
        if self._is_turn():
            self._begin_next()

    def _is_turn(self) -> bool:
        """Whether a job is next. If not, whoever is looks again when that is over."""
        if self._jobs and self._coroutines:
            self._is_turn_of_job = not self._is_turn_of_job
            return self._is_turn_of_job
        return bool(self._jobs)

    def _begin_next(self) -> None:
        """If there is room. Where there is no connection for it, its coroutine makes one."""
        if not any(room.locked() for room in self._rooms):
            job = self._jobs.popleft()
            client = self._take_idle()
            if client is None or not self._begin(job, client):
                self._away.add(id(job.mails))
                job.go_slowly()

    def _begin(self, job: Job, client: Client) -> bool:
        if not client.begin(job):
            self._put_back(client)
            return False
        for room in self._rooms:
            with contextlib.suppress(StopIteration):
                room.acquire().send(None)  # which does not wait, as it is not locked
        self._begun.add(client)
        return True

    def _end(self, client: Client) -> None:
        self._begun.remove(client)
        self._put_back(client)
        for room in self._rooms:
            room.release()

    @property
    def open(self) -> int:
        """Connections that there are, or that are being made."""
        return self._open

    async def probe(self) -> None:
        """See what the server offers, if it is there; if not, nothing follows from that."""
        health = Health(self._upstream.url)
        with contextlib.suppress(Unreachable):
            client = await Client.connect(self._upstream, health)
            self.health.extensions = health.extensions
            await client.quit()

    async def ready(self) -> None:
        """Wait until there is a connection."""
        while True:
            with contextlib.suppress(Unreachable):
                async with self.client():
                    return
            await asyncio.sleep(AWAY_FOR)

    async def _enter(self, room: asyncio.Semaphore, waits: bool) -> None:
        if not room.locked():
            await room.acquire()
        elif waits:
            await self._while_it_moves(room.acquire)
        else:
            raise NoneFree("all connections to it are in use")

    async def _while_it_moves(self, wait: Callable[[], Awaitable[object]]) -> None:
        """Raises Unreachable when nothing does."""
        self._coroutines += 1
        try:
            await self._wait_while_it_moves(wait)
        finally:
            self._coroutines -= 1

    async def _wait_while_it_moves(self, wait: Callable[[], Awaitable[object]]) -> None:
        if self._pauses:
            await wait()
            return
        now = self._now
        began = now()
        while True:
            try:
                async with asyncio.timeout_at(max(began, self._moved) + STALLED):
                    await wait()
                    return
            except TimeoutError:
                if now() >= max(began, self._moved) + STALLED:
                    raise Unreachable(f"its answers on all connections are due, and none came for {STALLED:g} s") from None

    async def _take(self, fresh: bool, waits: bool) -> Client:
        now = self._now
        while True:
            client = self._take_idle()
            if client is not None and not fresh:
                return client
            if client is not None:
                self._discard(client)  # there is room for a new one in its place
            elif self._open and now() < self._full_until:
                if not waits:
                    raise NoneFree("it takes no more connections")
                await self._while_it_moves(self._wait)
                continue
            try:
                return await self._connect()
            except Unreachable as error:
                if not self._open:
                    return await self._try_again(error)
                self._full_until = now() + MORE_AFTER

    def _take_idle(self) -> Client | None:
        while self._idle:
            client, timer = self._idle.popitem()
            timer.cancel()
            if client.is_reusable:
                return client
            self._discard(client)
        return None

    def _discard(self, client: Client) -> None:
        client.close()
        self._open -= 1
        if not self._open:
            self._notify_all()  # they wait for one that is open

    async def _connect(self) -> Client:
        self._open += 1
        try:
            return await Client.connect(self._upstream, self.health)
        except Unreachable:
            self._open -= 1
            raise
        except BaseException:  # nobody waits for it any more, but others may
            self._open -= 1
            if not self._open:
                self._notify_all()
            raise

    async def _try_again(self, error: Unreachable) -> Client:
        async with self._trying_again:
            for pause in self._pauses:
                if error.final:
                    break
                if (change := self.health.next_change(self._now())) is not None:
                    pause = min(pause, change)
                log.warning("cannot reach %s: %s; trying again in %g s", self._upstream.url, error, pause)
                await asyncio.sleep(pause)
                try:
                    client = await self._connect()
                except Unreachable as again:
                    error = again
                else:
                    self._full_until = 0.0
                    self._notify_all()
                    return client
        self._notify_all(error)
        raise error

    def _put_back(self, client: Client) -> None:
        if client.is_reusable:
            self._idle[client] = asyncio.get_running_loop().call_later(IDLE_TIMEOUT, self._retire, client)
            self._notify_one()
        else:
            self._discard(client)

    def _retire(self, client: Client) -> None:
        del self._idle[client]
        self._open -= 1
        goodbye = asyncio.create_task(client.quit())
        self._goodbyes.add(goodbye)
        goodbye.add_done_callback(self._goodbyes.discard)

    async def close(self) -> None:
        """Say goodbye on all connections, none of which is in use any more, or close them, where a job was broken off."""
        for client in list(self._begun):
            client.close()
            self._end(client)
        for client, timer in list(self._idle.items()):
            timer.cancel()
            self._retire(client)
        while self._goodbyes:
            await asyncio.wait(self._goodbyes)

    # Those who wait

    async def _wait(self) -> None:
        change: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[change] = None
        try:
            await change
        except asyncio.CancelledError:
            if change.done() and not change.cancelled():
                self._notify_one()  # in our place
            raise
        finally:
            self._waiting.pop(change, None)

    def _notify_one(self) -> None:
        while self._waiting:
            change = next(iter(self._waiting))  # who waits longest
            del self._waiting[change]
            if not change.done():
                change.set_result(None)
                return

    def _notify_all(self, error: Unreachable | None = None) -> None:
        while self._waiting:
            change, _ = self._waiting.popitem()
            if change.done():
                continue
            if error is None:
                change.set_result(None)
            else:
                change.set_exception(error)
