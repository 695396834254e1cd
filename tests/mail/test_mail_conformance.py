"""What every kind of place passes: each source alone, each sink alone, and every pair. A new kind is a function here."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from amqp_broker import Broker, Item, QueueBroker, serving
from mail_tools import make_maildir, read_maildir, read_mbox, untraced
from milter_tools import Mta
from sending_tools import ListSource, NextServer
from smtp_tools import Client, ListSink, certificate, run

import mqcore
from mqcore.amqp.client import Properties, encode_properties
from mqcore.mail import (
    ACCEPTED,
    CANCELLED,
    DISCARDED,
    FailedSink,
    Gateway,
    Kind,
    LmtpSink,
    LmtpSource,
    Mail,
    MaildirSink,
    MaildirSource,
    MboxSink,
    MboxSource,
    MilterSource,
    NullSink,
    Origin,
    Report,
    Sink,
    SinkError,
    SinkFull,
    SmtpSink,
    SmtpSource,
    SmtpsSource,
    Source,
    Store,
    Transaction,
    Verdict,
)
from mqcore.mail.amqp.body import read_body
from mqcore.mail.amqp.sink import AmqpSink
from mqcore.mail.amqp.source import AmqpSource

MAILS = [b"Subject: %d\n\nhello\n" % number for number in range(20)]


# Sources: each offers these mails, in this order


async def from_list(folder: Path, mails: list[bytes]) -> tuple[Any, None]:
    source = ListSource(mails, "a@example.org", "b@example.org")
    source.path = folder / "list"
    return source, None


async def from_mbox(folder: Path, mails: list[bytes]) -> tuple[Any, None]:
    path = folder / "mbox"
    path.write_bytes(b"".join(b"From a@example.org Tue Nov 24 05:31:47 2026\n%b\n" % mail for mail in mails))
    return MboxSource(str(path)), None


async def from_maildir(folder: Path, mails: list[bytes]) -> tuple[Any, None]:
    path = folder / "maildir"
    if not path.exists():
        make_maildir(path, mails)
    return MaildirSource(str(path)), None


async def submit(client: Client, hello: bytes, mails: list[bytes]) -> list[str]:
    """The codes of the replies to these mails, until the server closes the connection."""
    told = []
    with contextlib.suppress(ConnectionError):
        await client.reply()
        await client.ask(hello)
        for mail in mails:
            content = mail.replace(b"\n", b"\r\n")
            client.send(b"MAIL FROM:<a@example.org>\r\nRCPT TO:<b@example.org>\r\nDATA\r\n%b.\r\n" % content)
            replies = [await client.reader.readline() for _ in range(4)]
            if not replies[3]:
                break
            told.append(replies[3][:3].decode())
    client.leave()
    return told


async def from_smtp(folder: Path, mails: list[bytes]) -> tuple[Any, Callable[[], Any]]:
    source = SmtpSource("//127.0.0.1:0", one_recipient=True)

    async def send() -> list[str]:
        client = Client(*await asyncio.open_connection("127.0.0.1", source.port))
        return await submit(client, b"HELO client.example\r\n", mails)

    return source, send


async def from_smtps(folder: Path, mails: list[bytes]) -> tuple[Any, Callable[[], Any]]:
    source = SmtpsSource("//127.0.0.1:0", one_recipient=True, tls_certificate=str(certificate().file))

    async def send() -> list[str]:
        tls = {"ssl": certificate().client, "server_hostname": "localhost"}
        client = Client(*await asyncio.open_connection("127.0.0.1", source.port, **tls))
        return await submit(client, b"EHLO client.example\r\n", mails)

    return source, send


async def from_lmtp(folder: Path, mails: list[bytes]) -> tuple[Any, Callable[[], Any]]:
    source = LmtpSource(f"unix:{folder}/lmtp")

    async def send() -> list[str]:
        client = Client(*await asyncio.open_unix_connection(folder / "lmtp"))
        return await submit(client, b"LHLO client.example\r\n", mails)

    return source, send


async def from_milter(folder: Path, mails: list[bytes]) -> tuple[Any, Callable[[], Any]]:
    source = MilterSource("//127.0.0.1:0")

    async def send() -> list[str]:
        mta = await Mta.at(source.port)
        await mta.connect()
        replies = []
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):  # the run is over
            for mail in mails:
                replies.append(await mta.send_mail(mail.replace(b"\n", b"\r\n")))
        mta.leave()
        return ["250" if reply in ("continue", "discard") else reply[:3] for reply in replies]

    return source, send


async def from_amqp(folder: Path, mails: list[bytes]) -> tuple[Any, Callable[[], Any]]:
    """What the sink or a plugin will not have goes where failed mails go, at once, so nobody is told."""
    it = QueueBroker()
    it.requeues = False
    names = {"recipient": "b@example.org", "envelope": "a@example.org"}
    properties = encode_properties(Properties(content_type="message/rfc822", headers=names))
    it.put("q", *(Item(mail, properties) for mail in mails))
    stack = contextlib.AsyncExitStack()
    await stack.enter_async_context(serving(it))
    source = AmqpSource(f"//guest:guest@127.0.0.1:{it.port}?queue=q&retry=no")

    async def wait() -> None:
        done = -1
        while len(it.settled) < len(mails) and done < (done := len(it.settled) + it.delivered):
            with contextlib.suppress(TimeoutError):
                await it.until(lambda: len(it.settled) == len(mails), 1)

    async def end() -> None:
        await ended()
        assert it.unsettled == 0
        await stack.aclose()

    ended, source.end = source.end, end
    return source, wait


SOURCES = [from_list, from_mbox, from_maildir, from_smtp, from_smtps, from_lmtp, from_milter, from_amqp]


# Sinks: each, and what it has got


class OwnSink(Sink):
    url = "own:"

    def __init__(self) -> None:
        self.mails: list[bytes] = []

    async def deliver(self, mails):
        await asyncio.sleep(0)
        self.mails += [mail.mime for mail in mails]
        return [Verdict.accepted()] * len(mails)


@contextlib.asynccontextmanager
async def to_list(folder: Path, source: Any) -> AsyncIterator[tuple[Any, Callable[[], Iterable[bytes]]]]:
    sink = ListSink()
    yield sink, lambda: [mail.mime for mail in sink.mails]


@contextlib.asynccontextmanager
async def to_own(folder: Path, source: Any) -> AsyncIterator[tuple[Any, Callable[[], Iterable[bytes]]]]:
    sink = OwnSink()
    yield sink, lambda: sink.mails


@contextlib.asynccontextmanager
async def to_null(folder: Path, source: Any) -> AsyncIterator[tuple[Any, None]]:
    yield NullSink(""), None


@contextlib.asynccontextmanager
async def to_mbox(folder: Path, source: Any) -> AsyncIterator[tuple[Any, Callable[[], Iterable[bytes]]]]:
    yield MboxSink(str(folder / "out.mbox")), lambda: read_mbox(folder / "out.mbox")


@contextlib.asynccontextmanager
async def to_maildir(folder: Path, source: Any) -> AsyncIterator[tuple[Any, Callable[[], Iterable[bytes]]]]:
    yield MaildirSink(str(folder / "out")), lambda: read_maildir(folder / "out")


NEXT: dict[Path, NextServer] = {}
"""The next server of each test, which outlives a run."""


@contextlib.asynccontextmanager
async def to_smtp(folder: Path, source: Any) -> AsyncIterator[tuple[Any, Callable[[], Iterable[bytes]]]]:
    server = NEXT.setdefault(folder, NextServer())
    await server.start()
    try:
        yield SmtpSink.open(f"//127.0.0.1:{server.port}", source), lambda: [content for *_, content in server.mails]
    finally:
        await server.stop()


@contextlib.asynccontextmanager
async def to_lmtp(folder: Path, source: Any) -> AsyncIterator[tuple[Any, Callable[[], Iterable[bytes]]]]:
    server = NEXT.setdefault(folder, NextServer())
    await server.start()
    try:
        yield LmtpSink.open(f"//127.0.0.1:{server.port}", source), lambda: [content for *_, content in server.mails]
    finally:
        await server.stop()


QUEUES: dict[Path, Broker] = {}
"""The broker of each test, which outlives a run."""


@contextlib.asynccontextmanager
async def to_amqp(folder: Path, source: Any) -> AsyncIterator[tuple[Any, Callable[[], Iterable[bytes]]]]:
    it = QUEUES.setdefault(folder, Broker())
    it.outcome = lambda number: "ack"
    async with serving(it):
        sink = AmqpSink.open(f"//guest:guest@127.0.0.1:{it.port}?queue=q", source)
        yield sink, lambda: [read_body(body).mime for _, body in it.sent]


SINKS = [to_list, to_own, to_null, to_mbox, to_maildir, to_smtp, to_lmtp, to_amqp]
REMEMBERING = [to_mbox, to_maildir, to_smtp, to_lmtp, to_amqp]
"""Those that know in a second run what they have."""


def sum_of_ends(report: Report) -> int:
    counts = report.counts
    ends = (counts.present, counts.continued, counts.completed, counts.failed, counts.rejected, counts.discarded)
    return sum(ends) + counts.unfinished


async def move(
    make_source: Any,
    make_sink: Any,
    folder: Path,
    hook: Any = None,
    *,
    stop_after: int = 0,
    patience: float = 30,
    **options: Any,
) -> tuple[Report, list[bytes] | None, list[str] | None, list[Mail]]:
    """One run: its report, what the sink has got by now, what clients were told, and what was set aside."""
    source, send = await make_source(folder, MAILS)
    seen = 0

    def in_message(context, mail):
        nonlocal seen
        seen += 1
        if mail.recipient is None:
            mail.envelope, mail.recipient = "a@example.org", "b@example.org"
        if stop_after and seen == stop_after:
            gateway.stop(patience=patience)
        return hook(context, mail) if hook else False

    plugins = mqcore.Plugins()
    plugins.add("10-test", SimpleNamespace(mq_smtp_in_message=in_message))
    failed = ListSink()
    with contextlib.closing(source), mqcore.Dispatcher(plugins) as dispatcher:
        async with make_sink(folder, source) as (sink, read):
            with contextlib.closing(sink):
                gateway = Gateway(dispatcher, source, sink, FailedSink(failed, source.url), **options)
                running = asyncio.create_task(gateway.run())
                told = None
                if send is not None:
                    told = await send()
                    gateway.stop()
                report = await running
                got = None if read is None else [*(untraced(read()) if send is not None and source.traces else read())]
    if got is not None:
        got = sorted(mail.replace(b"\r\n", b"\n") for mail in got)
    assert report.counts.read == sum_of_ends(report)
    assert gateway.in_flight == gateway.bytes == 0
    return report, got, told, failed.mails


every_pair = pytest.mark.parametrize(
    ("source", "sink"), [pytest.param(a, b, id=f"{a.__name__} {b.__name__}") for a in SOURCES for b in SINKS]
)


@every_pair
@run
async def test_every_mail_arrives_once(source, sink, tmp_path):
    report, got, told, failed = await move(source, sink, tmp_path)
    assert report.counts.continued == len(MAILS) and report.error is None and report.exit_code == 0
    assert got is None or got == sorted(MAILS)
    assert told is None or told == ["250"] * len(MAILS)
    assert failed == []


@every_pair
@run
async def test_no_more_than_allowed_is_on_the_way(source, sink, tmp_path):
    held: set[Mail] = set()
    most = 0

    def hold(context, mail):
        nonlocal most
        held.add(mail)
        most = max(most, len(held))
        context.start_timer(0.001, go_on, context, mail)
        return True

    def go_on(context, mail):
        held.discard(mail)
        context.continue_(mail)

    report, got, *_ = await move(source, sink, tmp_path, hold, max_in_flight=3)
    assert report.counts.continued == len(MAILS) and 1 <= most <= 3
    assert got is None or got == sorted(MAILS)


@every_pair
@run
async def test_what_fails_or_is_rejected_is_told_or_set_aside(source, sink, tmp_path):
    def refuse(context, mail):
        if b"Subject: 3" in mail.mime:
            mail.reject(550, "5.7.1 no")
        if b"Subject: 5" in mail.mime:
            raise ValueError("a bug")

    report, got, told, failed = await move(source, sink, tmp_path, refuse)
    assert (report.counts.continued, report.counts.rejected, report.counts.failed) == (len(MAILS) - 2, 1, 1)
    assert got is None or got == sorted(mail for number, mail in enumerate(MAILS) if number not in (3, 5))
    if told is None:
        assert sorted(mail.mime for mail in failed) == [MAILS[3], MAILS[5]]
    else:
        assert (told[3], told[5]) == ("550", "451") and failed == []


@pytest.mark.parametrize("source", [from_mbox, from_maildir])
@pytest.mark.parametrize("sink", REMEMBERING)
@run
async def test_stopped_and_run_again_every_mail_arrives_once(source, sink, tmp_path):
    first, *_ = await move(source, sink, tmp_path, stop_after=7, max_in_flight=5)
    assert 0 < first.counts.stored < len(MAILS)
    second, got, *_ = await move(source, sink, tmp_path)
    assert (second.counts.present, got) == (first.counts.stored, sorted(MAILS))


# What becomes of mails where something goes wrong: the same for every source, whatever the sink


def number_of(mail: Mail) -> int:
    return int(mail.mime.partition(b"Subject: ")[2].split()[0])


class Saying(Sink):
    """Says of each mail what `says` makes of its number: a verdict, an error to raise, or None: it never says anything."""

    url = "saying:"

    def __init__(self, says: Callable[[int], object] = lambda number: ACCEPTED) -> None:
        self.says = says
        self.taken: list[int] = []
        self.busy = self.most_busy = 0

    def begin(self, gateway: Gateway) -> None:
        self.gateway = gateway

    async def deliver(self, mails):
        self.busy += len(mails)
        self.most_busy = max(self.busy, self.most_busy)
        await asyncio.sleep(0)
        self.busy -= len(mails)
        verdicts = []
        for mail in mails:
            said = self.says(number_of(mail))
            if said is None:
                await asyncio.Event().wait()
            if isinstance(said, Exception):
                raise said
            if said.kind is Kind.ACCEPTED:
                self.taken.append(number_of(mail))
            verdicts.append(said)
        return verdicts


def only(sink: Any) -> Any:
    """It, as one of SINKS."""

    @contextlib.asynccontextmanager
    async def to_it(folder: Path, source: Any) -> AsyncIterator[tuple[Any, None]]:
        yield sink, None

    return to_it


every_source = pytest.mark.parametrize("source", SOURCES)

SAID: dict[int, Any] = {
    3: Verdict.rejected(550, "5.1.1 no"),
    5: Verdict.deferred(450, "4.2.0 later"),
    7: Verdict.failed(),
    9: Verdict.in_doubt("4.4.2 no answer"),
    11: DISCARDED,
    13: ValueError("a bug"),
    15: CANCELLED,
}
TOLD = {3: "550", 5: "450", 7: "451", 9: "451", 13: "451", 15: "451"}


@every_source
@run
async def test_what_a_sink_says_is_told_or_set_aside(source, tmp_path):
    sink = Saying(lambda number: SAID.get(number, ACCEPTED))
    report, _, told, failed = await move(source, only(sink), tmp_path)
    counts = report.counts
    assert sink.taken == [number for number in range(len(MAILS)) if number not in SAID]
    assert (counts.continued, counts.rejected, counts.failed, counts.discarded, counts.unfinished) == (13, 3, 2, 1, 1)
    assert counts.in_doubt == 1
    if told is None:
        assert sorted(map(number_of, failed)) == [3, 5, 7, 9, 13]
    else:
        assert told == [TOLD.get(number, "250") for number in range(len(MAILS))] and failed == []


@every_source
@run
async def test_a_sink_that_breaks_ends_the_run_and_what_it_has_is_known(source, tmp_path):
    sink = Saying(lambda number: ACCEPTED if number < 7 else SinkError("it broke"))
    report, _, told, failed = await move(source, only(sink), tmp_path)
    assert (report.error, report.exit_code) == ("it broke", 4)
    assert sink.taken == [*range(7)] and report.counts.stored == 7
    assert failed == [], "it is no fault of theirs"
    assert told is None or told.count("250") == 7


@every_source
@run
async def test_a_store_that_is_full_loses_nothing(source, tmp_path):
    """A client comes again; what is read stays where it is."""
    taken: list[int] = []

    class Full(Store):
        url = "full:"

        def store(self, mails):
            numbers = [*map(number_of, mails)]
            if 7 in numbers:
                raise SinkFull("there is no room")
            taken.extend(numbers)

    report, _, told, failed = await move(source, only(Full()), tmp_path)
    assert report.counts.stored == len(taken) == len(set(taken)) and 7 not in taken and failed == []
    if source is from_amqp:  # it waits until there is room
        assert report.exit_code == 0 and report.counts.unfinished == 1
    elif told is None:
        assert (report.error, report.exit_code) == ("there is no room", 4)
    else:
        assert told == ["452" if number == 7 else "250" for number in range(len(MAILS))] and report.exit_code == 0


@every_source
@run
async def test_a_slow_sink_has_no_more_than_may_be_on_the_way(source, tmp_path):
    sink = Saying()
    report, *_ = await move(source, only(sink), tmp_path, max_in_flight=3)
    assert report.counts.stored == len(MAILS) and 1 <= sink.most_busy <= 3


@every_source
@pytest.mark.parametrize("where", ["in a step", "held", "being delivered", "delivered"])
@run
async def test_stopped_at_any_point_what_the_sink_has_is_known(source, where, tmp_path):
    def hook(context, mail):
        return where == "held" and number_of(mail) >= 6

    # It runs out where somebody waits for what never ends.
    patience = 0.05 if where in ("held", "being delivered") else 30

    def says(number):
        if number < 6 or where in ("in a step", "held"):
            return ACCEPTED
        sink.gateway.stop(patience=patience)
        return ACCEPTED if where == "delivered" else None

    sink = Saying(says)
    stop_after = 7 if where in ("in a step", "held") else 0
    report, _, told, _ = await move(source, only(sink), tmp_path, hook, stop_after=stop_after, patience=patience)
    counts = report.counts
    assert len(set(sink.taken)) == len(sink.taken) == counts.stored
    assert counts.unanswered == 0 and (counts.in_doubt > 0) == (where == "being delivered")
    assert told is None or told.count("250") == len(sink.taken)
    assert where == "delivered" or len(sink.taken) < len(MAILS)


# What becomes of mails whose clients go away: the same for every sink


class Told(Transaction):
    """It remembers what it was told."""

    def __init__(self, mail: Mail) -> None:
        super().__init__([mail])
        self.told: list[Verdict] = []

    def settle(self, verdicts):
        self.told += verdicts


class Clients(Source):
    """Each mail is of another client; every fourth goes away at once."""

    url = "clients:"
    has_waiting_client = single_mail = knows_recipients = True

    def __init__(self) -> None:
        origins = [
            Origin(mime, f"{number:032x}", number, "a@example.org", recipient="b@example.org")
            for number, mime in enumerate(MAILS)
        ]
        self.transactions = [Told(Mail.read(origin)) for origin in origins]

    async def run(self, gateway):
        gateway.offer(self.transactions)
        for transaction in self.transactions[1::4]:
            transaction.cancel()

    def stop(self):
        """All is offered already."""


@pytest.mark.parametrize("sink", SINKS)
@run
async def test_what_is_taken_back_is_stored_and_told_or_neither(sink, tmp_path):
    """Before its turn, when a plugin is done with it, or while one holds it."""
    source = Clients()
    untold: set[int] = set()

    def leave(number):
        if not source.transactions[number].told:
            untold.add(number)
        source.transactions[number].cancel()

    def hook(context, mail):
        if number_of(mail) % 4 == 2:
            asyncio.get_running_loop().call_soon(leave, number_of(mail))
            return False
        context.start_timer(0.001, go_on, context, mail)
        return True

    def go_on(context, mail):
        if number_of(mail) % 4 == 3:
            leave(number_of(mail))
        elif number_of(mail) % 4 == 0:
            context.continue_(mail)

    async def make(folder: Path, mails: list[bytes]) -> tuple[Any, None]:
        return source, None

    report, got, _, failed = await move(make, sink, tmp_path, hook, max_in_flight=3)
    told = [transaction.told for transaction in source.transactions]
    assert all([verdict.kind for verdict in each] in ([], [Kind.ACCEPTED]) for each in told)
    known = [number for number, each in enumerate(told) if each]
    assert {*range(0, len(MAILS), 4)} <= {*known} <= {*range(0, len(MAILS), 2)}
    assert report.counts.unanswered == len(untold & {*known})
    assert got is None or got == sorted(MAILS[number] for number in known)
    assert report.counts.stored == len(known) and failed == []


@pytest.mark.parametrize("sink", [to_mbox, to_maildir])
@pytest.mark.parametrize("source", [from_list, from_mbox, from_maildir])
@run
async def test_order_is_kept(source, sink, tmp_path):
    await move(source, sink, tmp_path)
    path = tmp_path / ("out.mbox" if sink is to_mbox else "out")
    again = MboxSource(str(path)) if sink is to_mbox else MaildirSource(str(path))
    with contextlib.closing(again):
        assert [origin.mime.replace(b"\r\n", b"\n") for origin in again] == MAILS
