"""What the programs of faults share: mails that can be told apart, sources that have them, and next owners that keep them."""

from __future__ import annotations

import asyncio
import contextlib
import mailbox
import random
import re
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import NamedTuple

from free_ports import free_port
from mail_tools import write_plugin
from smtp_tools import certificate

MARK = b"X-Mail: "
Key = tuple[int, str]
"""A mail, by its number, and one of its recipients; '' where the next owner does not say to whom it was."""

# Mails


BIG = 1_000_000
"""From this number on, mails have 20 MB."""


def text(number: int) -> bytes:
    """A mail that begins and ends as no other does; most are small, one of fifty has up to 100 KB. Lines end in LF."""
    chance = random.Random(number)
    lines = chance.randrange(4000) if number % 50 == 0 else chance.randrange(20)
    if number >= BIG:
        return b"%b%d\nSubject: big\n\n%bthe end of %d\n" % (MARK, number, b"twenty characters..\n" * BIG, number)
    body = b"".join(b"%d line\n" % line * (line % 3) + b"From the middle\n.\n" * (line % 7 == 6) for line in range(lines))
    return b"%b%d\nSubject: hello\n\n%bthe end of %d\n" % (MARK, number, body, number)


def recipients(number: int) -> list[str]:
    return [f"{name}@example.org" for name in ("abc" if number % 3 == 0 else "a")]


class Torn(Exception):
    """What is there is no mail that was sent."""


def identify(stored: bytes) -> Key:
    """Which mail it is; what servers and plugins put above it may be there."""
    above, mark, rest = stored.replace(b"\r\n", b"\n").partition(MARK)
    number = rest.partition(b"\n")[0]
    if not number.isdigit() or mark + rest != text(int(number)):
        raise Torn(stored[:200] + b" ... " + stored[-200:])
    tagged = re.search(rb"(?m)^X-To: (\S+)$", above)
    return int(number), tagged[1].decode() if tagged else ""


# Next owners


class Owner:
    """Where mails go to."""

    url: str
    names_recipients = False

    def arrived(self) -> Counter[Key]:
        raise NotImplementedError

    def left_behind(self) -> list[Path]:
        """What no run that has ended leaves there."""
        return []

    def progress(self) -> object:
        """Something that changes when a mail arrives, and is false before the first."""
        raise NotImplementedError


class NullOwner(Owner):
    url = "null:"


class MboxOwner(Owner):
    def __init__(self, path: Path) -> None:
        self.path = path
        self.url = f"mbox:{path}"

    def arrived(self) -> Counter[Key]:
        with contextlib.closing(mailbox.mbox(self.path, create=False)) as box:
            return Counter(identify(re.sub(rb"(?m)^>(>*From )", rb"\1", box.get_bytes(key))) for key in box.iterkeys())

    def left_behind(self) -> list[Path]:
        return list(self.path.parent.glob(f"{self.path.name}.lock"))

    def progress(self) -> object:
        return self.path.exists() and self.path.stat().st_size


class MaildirOwner(Owner):
    def __init__(self, path: Path) -> None:
        self.path = path
        self.url = f"maildir:{path}"

    def arrived(self) -> Counter[Key]:
        return Counter(identify(file.read_bytes()) for folder in ("new", "cur") for file in (self.path / folder).iterdir())

    def left_behind(self) -> list[Path]:
        return list((self.path / "tmp").iterdir())

    def progress(self) -> object:
        new = self.path / "new"
        return new.exists() and any(new.iterdir()) and new.stat().st_mtime_ns


class ServerOwner(Owner):
    """A server of SMTP or LMTP that has a mail as soon as it has its end; `silent_at` says a command, or `.`, to which it
    never answers."""

    names_recipients = True

    def __init__(self, scheme: str) -> None:
        self.scheme = scheme
        self.lmtp = scheme == "lmtp"
        self.got: Counter[Key] = Counter()
        self.silent_at = ""
        self.silent = asyncio.Event()
        """Set when it was silent."""
        self._writers: set[asyncio.StreamWriter] = set()

    def arrived(self) -> Counter[Key]:
        return self.got

    def progress(self) -> object:
        return self.got.total()

    @contextlib.asynccontextmanager
    async def listening(self, host: str = "127.0.0.1") -> AsyncIterator[ServerOwner]:
        server = await asyncio.start_server(self._serve, host, 0, limit=1 << 26)
        self.url = f"{self.scheme}://{host}:{server.sockets[0].getsockname()[1]}"
        try:
            yield self
        finally:
            server.close()
            self.disconnect()
            while self._writers:
                await asyncio.sleep(0.001)

    @property
    def connections(self) -> int:
        return len(self._writers)

    def disconnect(self) -> None:
        """End all connections."""
        for writer in list(self._writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            await self._talk(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        to: list[str] = []
        writer.write(b"220 next\r\n")
        while line := await reader.readuntil(b"\r\n"):
            command = line[:4].decode().upper()
            if command == "RCPT":
                to.append(re.findall("<(.*)>", line.decode())[0])
            await self._answer(reader, writer, command)
            if command == "DATA":
                content = (await reader.readuntil(b"\r\n.\r\n")).removesuffix(b".\r\n")
                number, _ = identify(content.replace(b"\r\n..", b"\r\n."))
                self.got.update((number, recipient) for recipient in to)
                for _ in to if self.lmtp else to[:1]:
                    await self._answer(reader, writer, ".")
                to = []
            elif command == "QUIT":
                return

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, command: str) -> None:
        if command == self.silent_at:
            self.silent.set()
            while await reader.read(10_000):
                pass
            raise ConnectionError
        replies = {"DATA": b"354 go on\r\n"} | dict.fromkeys(("EHLO", "LHLO"), b"250-next\r\n250 PIPELINING\r\n")
        writer.write(replies.get(command, b"250 ok\r\n"))


SINKS = ("mbox", "maildir", "smtp", "lmtp")


@contextlib.asynccontextmanager
async def owner(kind: str, folder: Path) -> AsyncIterator[Owner]:
    """One of that kind."""
    if kind == "null":
        yield NullOwner()
    elif kind in ("smtp", "lmtp"):
        async with ServerOwner(kind).listening() as server:
            yield server
    else:
        yield (MboxOwner if kind == "mbox" else MaildirOwner)(folder / f"sink.{kind}")


# Sources


class Source(NamedTuple):
    """A server, and how clients reach it."""

    scheme: str
    address: tuple[str, int] | str
    tls: ssl.SSLContext | None
    url: str
    options: tuple[object, ...]

    @property
    def lmtp(self) -> bool:
        return self.scheme == "lmtp"

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        if isinstance(self.address, str):
            return await asyncio.open_unix_connection(self.address)
        return await asyncio.open_connection(*self.address, ssl=self.tls)


SERVERS = ("smtp", "smtps", "lmtp", "lmtp-unix")
FILES = ("mbox", "maildir")


def server(kind: str, folder: Path) -> Source:
    """One that is to listen, always at the same address."""
    if kind == "lmtp-unix":
        return Source("lmtp", f"{folder}/lmtp", None, f"lmtp:unix:{folder}/lmtp", ())
    tls = certificate().client if kind == "smtps" else None
    options = ("--tls-certificate", certificate().file) if tls else ()
    port = free_port()
    return Source(kind, ("127.0.0.1", port), tls, f"{kind}://127.0.0.1:{port}", options)


def write_source(kind: str, path: Path, numbers: Iterable[int]) -> str:
    """A file source with these mails, and its URL."""
    if kind == "mbox":
        with path.open("wb") as file:
            for number in numbers:
                mail = re.sub(rb"(?m)^(>*From )", rb">\1", text(number))
                file.write(b"From a@example.org Tue Nov 24 05:31:47 2026\n%b\n" % mail)
    else:
        (path / "new").mkdir(parents=True)
        for number in numbers:
            (path / "new" / f"1700000000.M{number:06}.example").write_bytes(text(number))
    return f"{kind}:{path}"


TAGS = """
    def mq_smtp_in_message(context, message):
        message.mime = b"X-To: %b\\r\\n" % message.recipient.encode() + message.mime
    """
ADDRESSES = """
    def mq_smtp_in_message(context, message):
        message.envelope = "from@example.org"
        message.recipient = "a@example.org"
    """


def options_for(source: str, sink: str, folder: Path) -> tuple[object, ...]:
    """What a run of this pair needs: a plugin that says in the mail to whom it is, where the sink does not, or to whom it is to
    go, where the source does not; and where failed mails go, of which there are none."""
    plugin = ""
    if source in SERVERS and sink in FILES:
        plugin = TAGS
    elif source in FILES and sink not in (*FILES, "null"):
        plugin = ADDRESSES
    if plugin:
        write_plugin(folder / "plugins", "90-recipients", plugin)
    return (*(("--plugins", folder / "plugins") if plugin else ()), "--failed", f"maildir:{folder}/failed")
