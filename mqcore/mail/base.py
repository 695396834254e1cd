"""What a kind of place is made of: a source offers mails and is told what became of them, a sink takes mails."""

from __future__ import annotations

import errno
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Protocol, Self

from ._jobs import Job
from ._mail import Mail
from ._transaction import Transaction
from ._writer import BATCH, BATCH_BYTES
from .errors import SourceError
from .origin import Origin
from .threads import begin_thread, in_thread
from .verdicts import Verdict

if TYPE_CHECKING:
    from ..plugins import Plugin
    from ._gateway import Gateway


class Answer(Protocol):
    """See `Sink.deliver_soon`."""

    def __call__(
        self,
        token: Any,
        verdict: Verdict | None,
        deliver: Callable[[Sequence[Mail]], Coroutine[Any, Any, Sequence[Verdict]]] | None = None,
        /,
    ) -> object: ...


class Option(NamedTuple):
    """An option of the command that is for some kinds of places only."""

    name: str
    """Without its dashes."""
    help: str
    metavar: str | None = None
    """None for one that is given or not, unless it has `choices`."""
    choices: tuple[str, ...] | None = None
    is_number: bool = False


class Prepared(NamedTuple):
    """What is ready to be put in force by a reload."""

    commit: Callable[[], object] = tuple
    """Puts it in force, and does not fail."""
    changed: tuple[str, ...] = ()
    """What is another than before, for people."""
    needs_restart: tuple[str, ...] = ()
    """What would have to be another, and cannot while it runs."""
    check: Callable[[Sequence[Plugin]], object] = list
    """Is told which plugins there will be, before any commit. Raises SourceError, SinkError or ValueError if it cannot
    work with these: then all stays as it was."""


def together(parts: Sequence[Prepared]) -> Prepared:
    """Several as one. What is told of twice is told of once."""

    def commit() -> None:
        for part in parts:
            part.commit()

    def check(plugins: Sequence[Plugin]) -> None:
        for part in parts:
            part.check(plugins)

    changed = dict.fromkeys(name for part in parts for name in part.changed)
    needs_restart = dict.fromkeys(name for part in parts for name in part.needs_restart)
    return Prepared(commit, tuple(changed), tuple(needs_restart), check)


class Place:
    """What sources and sinks have in common. Opened by being made; raises SourceError or SinkError."""

    options: ClassVar[Sequence[Option]] = ()
    """What `mqcore run` takes for places of this kind, and gives to the constructor by name."""
    url: str
    shares: ClassVar[bool] = False
    """Whether several processes of one run may use it at once."""

    @classmethod
    def check(cls, path: str, given: Mapping[str, Any]) -> None:
        """Raise ValueError for options that do not go together, before anything is opened."""

    changeable: ClassVar[frozenset[str]] = frozenset()
    """The options that `prepare` can change."""

    def prepare(self, options: Mapping[str, Any]) -> Prepared:
        """Make ready for a reload, with these options, which were checked; none but the changeable are others than before.
        Nothing changes before the commit. Raises SourceError or SinkError."""
        return Prepared()

    def figures(self) -> dict[str, Any]:
        """What it counts of its own while it is used, as plain data."""
        return {}

    def close(self) -> None:
        """Nothing to close."""


class Source(Place, ABC):
    """Where mails come from.

    `run` offers transactions to the gateway, and ends when there are no more, or after `stop` when what it had begun is
    over. How each ended is told to `Transaction.settle`.
    """

    finite: bool = True
    listens: ClassVar[bool] = False
    """Whether it may be given a `Listening`."""
    """Whether it ends by itself."""
    has_waiting_client: bool = False
    """Whether a client waits for each transaction, and is told of a refusal. Otherwise what is refused goes where failed
    mails go, and what is refused for now is tried again."""
    settles_each: bool = False
    """Whether each mail of a transaction is settled alone, so that a refusal of one holds back no other."""
    single_mail: bool = False
    """Whether a transaction has one mail only."""
    is_queue: bool = False
    """Whether it has each mail until it is settled, and keeps what is refused or failed for a later time, or sets it aside: see
    `Transaction.put_back`. Then transactions have one mail each, and what a sink has no room for waits until it has."""
    own_sink: ClassVar[type[BaseSink] | None] = None
    """Where its mail goes if nobody says so: it stays with the source. None if it has to go somewhere."""
    knows_recipients: bool = False
    """Whether each mail says to whom it goes."""
    traces: bool = True
    """Whether mail that comes from the network gets a line that says so, by which loops are found."""
    lenient: bool = False
    """Whether addresses and messages may be as the RFCs do not have them, since a server in front took them so."""
    longest_hold: ClassVar[float | None] = None
    """Seconds for which a plugin may hold a mail at most, as it is taken back later; None if that is never."""
    path: Path | None = None
    """The mailbox, if it is one."""
    total: int | None = None
    """What there is to do, in a unit of the source's own, for the progress bar; None if nobody knows."""
    done: int = 0
    ends_when: str | None = None
    """What it waits for after `stop`, for the person who stopped it; None if only the sink is waited for."""

    @abstractmethod
    async def run(self, gateway: Gateway) -> None: ...

    @abstractmethod
    def stop(self) -> None:
        """Offer no more."""

    def cut(self) -> None:
        """The time that was left after `stop` is over: let go what is still open. May be called again and again."""

    def hold_off(self, is_held_off: bool) -> None:
        """The sink takes nothing for now, or takes mails again: a client that waits may be told before it sends one."""

    async def end(self) -> None:
        """Called once, after `run`, when all that was offered is settled, before the sink ends."""


class Reader(Source):
    """A source that is read, once, in a thread: what iterating over it gives is of type `Origin`. It is never changed."""

    path: Path
    total: int
    _is_stopping = False

    @abstractmethod
    def __iter__(self) -> Iterator[Origin]:
        """Raises SourceError."""

    async def run(self, gateway: Gateway) -> None:
        begin_thread()
        origins = iter(self)
        while room := await gateway.room():
            mails, present, read_all, error = await in_thread(self._take, origins, gateway, min(BATCH, room))
            gateway.skip(present)
            if not self._is_stopping:
                gateway.offer([Transaction([mail]) for mail in mails])
            if error is not None:
                raise error
            if read_all:
                break

    def _take(
        self, origins: Iterator[Origin], gateway: Gateway, limit: int
    ) -> tuple[list[Mail], int, bool, SourceError | None]:
        """The next mails, how many the sink has already, whether that is all, and why it cannot be read any further."""
        mails: list[Mail] = []
        size = present = 0
        try:
            for origin in origins:
                if gateway.has(origin.id):
                    present += 1
                else:
                    mails.append(Mail.read(origin))
                    size += len(origin.mime)
                if self._is_stopping or len(mails) + present == limit or size >= BATCH_BYTES:
                    return mails, present, False, None
        except SourceError as error:
            return mails, present, True, error
        except MemoryError:
            return mails, present, True, SourceError(f"cannot read {self.url}: {os.strerror(errno.ENOMEM)}")
        return mails, present, True, None

    def stop(self) -> None:
        self._is_stopping = True


class BaseSink(Place):
    """What a `Sink` and a `Store` have in common."""

    stores: ClassVar[bool]
    notes: Path | None = None
    """A file beside the mails, for the reasons why they are there; None if this sink keeps nothing."""
    commits_in_parts: bool = False
    """Whether it may take some mails of a transaction and then refuse others."""
    max_mail: int | None = None
    """Octets that a mail may have, as far as is known before; None: any number."""
    needs_recipients: bool = False
    """Whether it takes no mail that does not say to whom it goes."""
    remembers: bool = True
    """Whether mails of an earlier run may be in it, as `in` would say."""
    takes_dsn: bool = False
    """Whether it does what `json["dsn"]` of a mail says, as far as is known now (RFC 3461)."""
    ends_when: str

    @classmethod
    def open(cls, path: str, source: Source, **options: Any) -> Self:
        """For mails of this source."""
        return cls(path, **options)  # type: ignore[call-arg]

    def __contains__(self, id: object) -> bool:
        """Whether a mail was stored by an earlier run, by `Origin.id`. Does not change while the sink is open."""
        return False

    async def ready(self) -> None:
        """Wait until there is a next owner that takes mails, after a verdict that is `unavailable`. It may be cancelled."""


class Sink(BaseSink, ABC):
    """Where mails go to, by a coroutine."""

    stores = False
    ends_when = "the transactions that are open are over"
    delivers_soon: ClassVar[bool] = False
    """Whether it has `deliver_soon`."""

    def begin(self, gateway: Gateway) -> None:
        """Called once, before the first mail."""

    @abstractmethod
    async def deliver(self, mails: Sequence[Mail]) -> Sequence[Verdict]:
        """Give the mails of one transaction to their next owner, and return a verdict for each when it has them, on disk or
        confirmed, or refuses them.

        It is called again while it runs. SinkError ends the run, any other error fails these mails. Only when a run is
        stopped and takes too long is it cancelled; then the mails are in doubt."""

    def deliver_soon(self, mails: Sequence[Mail], token: object, answer: Answer) -> Verdict | bool:
        """As `deliver`, without a coroutine: mails to which nothing stands in the way now. A verdict on all of them, where that
        is known at once; or whether it is begun: if not, `deliver` is called. It raises what `deliver` may.

        Where it is begun, later `answer(token, verdict)` is called, once; or `answer(token, None, deliver)`, for what is not
        over yet: then that is called as `deliver` would be."""
        return False

    def cancel(self, mails: Sequence[Mail]) -> None:
        """What `deliver` was called with is not wanted any more: the client is gone, or the run is being stopped. A sink that
        has not begun to give it away may let `deliver` return CANCELLED soon."""

    def settled(self, mails: Sequence[Mail]) -> Coroutine[Any, Any, None] | None:
        """The source was told what became of these, which `deliver` had. What is still to be done with them may be returned:
        nobody waits for it, but they count as in flight until it is over, and it is cancelled like `deliver`."""
        return None

    async def end(self) -> None:
        """Called once, when nothing is on the way any more."""


class Store(BaseSink, ABC):
    """Where mails go to, by a function that stores a group, all or nothing."""

    stores = True
    ends_when = "what the plugins are done with is stored"
    blocks: bool = True
    """Whether `store` waits for a disk. It is called in a thread then, one at a time; else at once, in the loop's thread."""
    begins: ClassVar[bool] = False
    """Whether it has `begin` and `end`. A class with only a `store` of its own, or of a mixin, has not those of its base."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        first = next(vars(each) for each in cls.__mro__ if "begin" in vars(each) or "store" in vars(each))
        cls.begins = "begin" in first and cls.begin is not Store.begin

    @abstractmethod
    def store(self, mails: Sequence[Mail]) -> None:
        """Store a group. When this returns, its mails survive a power failure; if it raises SinkError, none of them counts.

        After SinkFull the sink can be used on; after any other SinkError it must be closed."""

    def begin(self, mails: Sequence[Mail]) -> Job | None:
        """As `store`, without the GIL: a job that is not begun, in the loop's thread. None if these mails are for `store`."""
        return None

    def end(self, job: Job) -> None:
        """The job is over: return or raise what `store` would."""
