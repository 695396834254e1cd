"""kill -9 a hundred times, and clients that try again: what got its 250 is there, and twice only what was in doubt."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import socket
import subprocess
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pytest
from cli_tools import serve
from mail_tools import start

pytestmark = pytest.mark.slow

KILLS = 100
CLIENTS = 8


class Persistent:
    """A client that sends one mail after the other, each again and again until it has got its 250."""

    def __init__(self, port: int, mails: Iterable[int]) -> None:
        self.port = port
        self.mails = iter(mails)
        self.acknowledged: set[int] = set()
        self.doubts: Counter[int] = Counter()
        """How often the server went away after a mail's last dot, and before its reply."""
        self.enough = False

    async def run(self) -> None:
        mail = next(self.mails)
        while not self.enough:
            sent = False
            try:
                reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
                with contextlib.closing(writer):
                    writer.write(b"HELO client.example\r\n")
                    await self.expect(reader, b"220 ", b"250 ")
                    while not self.enough:
                        writer.write(b"MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\n")
                        await self.expect(reader, b"250 ", b"250 ", b"354 ")
                        writer.write(b"%d\r\n.\r\n" % mail)
                        sent = True
                        await self.expect(reader, b"250 ")
                        sent = False
                        self.acknowledged.add(mail)
                        mail = next(self.mails)
            except ConnectionError:
                self.doubts[mail] += sent
                await asyncio.sleep(0.01)

    @staticmethod
    async def expect(reader: asyncio.StreamReader, *replies: bytes) -> None:
        for reply in replies:
            if not (await reader.readline()).startswith(reply):
                raise ConnectionError


async def load(sink: str, *options: str) -> list[Persistent]:
    """Clients, and a server from them to `sink` that is killed again and again, and lives on in the end."""
    chance = random.Random(20)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    clients = [Persistent(port, itertools.count(number, CLIENTS)) for number in range(CLIENTS)]

    async def wait_for(count: int) -> None:
        wanted = acknowledged(clients) + count
        async with asyncio.timeout(60):
            while acknowledged(clients) < wanted:
                await asyncio.sleep(0.001)

    running = [asyncio.create_task(client.run()) for client in clients]
    for _ in range(KILLS):
        command = ("run", "--from", f"smtp://127.0.0.1:{port}", "--to", sink, *options)
        with start(*command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
            await wait_for(chance.randrange(40))
            process.kill()
    with serve("--to", sink, *options, source=f"smtp://127.0.0.1:{port}"):
        await wait_for(100)
        for client in clients:
            client.enough = True
        async with asyncio.timeout(60):
            await asyncio.gather(*running)
    return clients


def acknowledged(clients: Iterable[Persistent]) -> int:
    return sum(len(client.acknowledged) for client in clients)


def check(clients: Iterable[Persistent], maildir: Path) -> int:
    """How many mails are stored, doubles counted."""
    stored = Counter(int(file.read_bytes()) for file in (maildir / "new").iterdir())
    doubts: Counter[int] = Counter()
    for client in clients:
        assert client.acknowledged <= stored.keys()
        doubts += client.doubts
    assert all(count <= 1 + doubts[mail] for mail, count in stored.items())
    assert acknowledged(clients) > 10 * KILLS
    assert stored.total() > len(stored)  # so the kills came at moments that matter
    assert not list((maildir / "tmp").iterdir())
    return stored.total()


def test_a_server_that_stores(tmp_path):
    check(asyncio.run(load(f"maildir:{tmp_path}/in")), tmp_path / "in")


def test_a_gateway(tmp_path):
    """What is stored is with the next server, which lives."""
    with serve("--to", f"maildir:{tmp_path}/in") as last:
        clients = asyncio.run(load(last.url, "--one-recipient"))
    assert last.figures["messages"]["stored"] == check(clients, tmp_path / "in")
