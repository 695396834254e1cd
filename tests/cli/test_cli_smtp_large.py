"""Many SMTP clients at once, and many mails: each is served, and memory stays within bounds."""

from __future__ import annotations

import asyncio
import contextlib
import resource
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import pytest
import uvloop
from cli_tools import Server, serve
from mail_tools import counted, write_plugin

pytestmark = pytest.mark.slow

CLIENTS = 10_000
OPEN = b"MAIL FROM:<a@example.org>\r\nRCPT TO:<b@example.org>\r\nDATA\r\n"

HOLDS_UNTIL_ALL_ARE_THERE = f"""
    held = []

    def mq_smtp_in_message(context, message):
        held.append(message)
        if len(held) == {CLIENTS}:
            context.start_timer(0.01, release, context)
        return True

    def release(context):
        while held:
            context.continue_(held.pop())
    """


@pytest.fixture(autouse=True)
def many_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = CLIENTS + 200
    if hard != resource.RLIM_INFINITY and hard < wanted:
        pytest.skip(f"needs {wanted} open files, and the system allows {hard}")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def memory(server: Server) -> int:
    """What the server has now, in bytes."""
    status = Path(f"/proc/{server.process.pid}/status")
    if not status.exists():
        pytest.skip("needs /proc")
    (line,) = (line for line in status.read_text().splitlines() if line.startswith("VmRSS:"))
    return int(line.split()[1]) * 1024


class Client(asyncio.Protocol):
    """Says what it is told to, and hands on each reply of one line."""

    def __init__(self) -> None:
        self.replies: asyncio.Queue[bytes] = asyncio.Queue()
        self._rest = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        *lines, self._rest = (self._rest + data).split(b"\r\n")
        for line in lines:
            self.replies.put_nowait(line)

    async def ask(self, data: bytes, replies: int = 1) -> bytes:
        """The last of so many replies."""
        self.transport.write(data)  # type: ignore[attr-defined]
        for _ in range(replies):
            reply = await self.replies.get()
        return reply


@contextlib.asynccontextmanager
async def connected(server: Server, count: int) -> AsyncIterator[list[Client]]:
    """So many clients, not all of them at the same moment."""
    loop = asyncio.get_running_loop()
    clients: list[Client] = []
    while len(clients) < count:
        some = [loop.create_connection(Client, "127.0.0.1", server.port) for _ in range(min(200, count - len(clients)))]
        clients += [client for _, client in await asyncio.gather(*some)]
    for client in clients:
        assert (await client.replies.get()).startswith(b"220 ")
    yield clients
    for client in clients:
        client.transport.abort()  # type: ignore[attr-defined]


def test_ten_thousand_idle_connections(tmp_path):
    async def main(server: Server) -> int:
        before = memory(server)
        async with connected(server, CLIENTS - 1), connected(server, 1) as (client,):
            assert (await client.ask(b"HELO client\r\n" + OPEN, 4)).startswith(b"354 ")
            assert (await client.ask(b"x\r\n.\r\n")).startswith(b"250 ")
            return memory(server) - before

    with serve("--to", f"maildir:{tmp_path}/in") as server:
        used = uvloop.run(main(server))
    assert counted(server.figures) == {"continued": 1}
    assert used < CLIENTS * 6_000


def test_ten_thousand_mails_held_at_once(tmp_path):
    async def main(server: Server) -> int:
        before = memory(server)
        async with connected(server, CLIENTS) as clients:
            replies = [client.ask(b"HELO client\r\n" + OPEN + b"x\r\n.\r\n", 5) for client in clients]
            assert all(reply.startswith(b"250 2.6.0 stored as ") for reply in await asyncio.gather(*replies))
            return memory(server) - before

    write_plugin(tmp_path / "plugins", "10-hold", HOLDS_UNTIL_ALL_ARE_THERE)
    options = ("--plugins", tmp_path / "plugins", "--max-in-flight", CLIENTS)
    with serve("--to", f"maildir:{tmp_path}/in", *options) as server:
        used = uvloop.run(main(server))
    assert counted(server.figures) == {"continued": CLIENTS}
    assert len(list((tmp_path / "in" / "new").iterdir())) == CLIENTS
    assert used < CLIENTS * 12_000


@contextlib.contextmanager
def sink(kind: str, tmp_path: Path) -> Iterator[Sequence[str]]:
    """A place that nothing stays in, however much comes."""
    if kind == "null":
        yield ("null:",)
    elif kind == "smtp":
        with serve("--to", "null:") as next_server:
            yield (next_server.url, "--one-recipient")
    else:
        yield (f"maildir:{tmp_path}/in",)


def empty(maildir: Path) -> None:
    """As somebody does who reads the mails and deletes them."""
    if maildir.exists():
        for file in (maildir / "new").iterdir():
            file.unlink()


@pytest.mark.parametrize(("kind", "count"), [("null", 3000), ("maildir", 300), ("smtp", 500)])
def test_memory_does_not_grow_with_the_number_of_mails(tmp_path, kind, count):
    async def send(client: Client, count: int) -> None:
        for number in range(count):
            text = b"%d\r\n" % number + b"x" * (number % 3000) + b"\r\n.\r\n"
            assert (await client.ask(OPEN + text, 4)).startswith(b"250 ")
            if number % 100 == 0:
                empty(tmp_path / "in")

    async def main(server: Server) -> tuple[int, int]:
        async with connected(server, 16) as clients:
            for client in clients:
                await client.ask(b"HELO client\r\n")
            await asyncio.gather(*(send(client, count // 10) for client in clients))
            few = memory(server)
            await asyncio.gather(*(send(client, count) for client in clients))
            return few, memory(server)

    with sink(kind, tmp_path) as to, serve("--to", *to) as server:
        few, many = uvloop.run(main(server))
    assert many < few + 1_000_000
    assert counted(server.figures) == {"continued": 16 * (count // 10 + count)}
