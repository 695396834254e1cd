"""Many connections while the workers are replaced again and again: `python reloads.py [CONNECTIONS [RELOADS]]`.

No client sees an error within a transaction, and no connection is refused or reset. One that is idle may be told 421. Each of
the `connections` is `whole`, `shut` (by 421, when it was idle), or an error.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from cli_tools import Server, serve

AT_ONCE = 40
GOODBYE = 421


class Shut(Exception):
    """The client was idle, and was told to come again."""


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, line: bytes, *, idle: bool = False) -> int:
    writer.write(line)
    while True:
        reply = await reader.readline()
        if idle and reply.startswith(b"421"):
            raise Shut
        if not reply:
            raise ConnectionResetError(f"no answer to {line!r}")
        if reply[3:4] == b" ":
            return int(reply[:3])


async def connection(port: int, seen: Counter[str]) -> None:
    """Two mails, one after the other, and a rest before each."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        await expect(reader, writer, b"", 220, idle=True)
        await expect(reader, writer, b"EHLO client.example\r\n", 250, idle=True)
        for _ in range(2):
            await asyncio.sleep(0.005)
            await expect(reader, writer, b"MAIL FROM:<a@example.org>\r\n", 250, idle=True)
            await expect(reader, writer, b"RCPT TO:<b@example.org>\r\n", 250)
            await expect(reader, writer, b"DATA\r\n", 354)
            await asyncio.sleep(0.005)
            await expect(reader, writer, b"Subject: x\r\n\r\nx\r\n.\r\n", 250)
            seen["mails"] += 1
        writer.write(b"QUIT\r\n")
        seen["whole"] += 1
    except Shut:
        seen["shut"] += 1
    finally:
        writer.close()


async def expect(reader: Any, writer: Any, line: bytes, code: int, *, idle: bool = False) -> None:
    got = await ask(reader, writer, line, idle=idle)
    if got != code:
        raise AssertionError(f"{got} to {line!r}")


async def client(port: int, left: list[int], seen: Counter[str], errors: list[str]) -> None:
    while left:
        left.pop()
        seen["connections"] += 1
        try:
            await connection(port, seen)
        except (OSError, AssertionError) as error:
            errors.append(f"{type(error).__name__}: {error}")


async def load(server: Server, connections: int, reloads: int) -> tuple[Counter[str], list[str]]:
    """What was seen, and what went wrong."""
    seen: Counter[str] = Counter()
    errors: list[str] = []
    left = list(range(connections))
    lines: asyncio.Queue[str] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    reading = loop.run_in_executor(None, read, server, lambda line: loop.call_soon_threadsafe(lines.put_nowait, line))
    clients = [loop.create_task(client(server.port, left, seen, errors)) for _ in range(AT_ONCE)]
    for _ in range(reloads):
        server.process.send_signal(signal.SIGHUP)
        while "reloaded" not in await lines.get():
            pass
        seen["reloads"] += 1
        if not left:  # it goes on as long as there are reloads
            left.extend(range(AT_ONCE))
            clients += [loop.create_task(client(server.port, left, seen, errors)) for _ in range(AT_ONCE)]
    await asyncio.gather(*clients)
    server.process.send_signal(signal.SIGTERM)
    await reading
    return seen, errors


def read(server: Server, heard: Any) -> None:
    for line in server.process.stderr:
        heard(line)


def main(connections: int, reloads: int) -> int:
    with serve("--to", "null:", "--workers", 2, code=0) as server:
        seen, errors = asyncio.run(load(server, connections, reloads))
        out = server.process.stdout.read()
        server.process.wait()
    assert seen["connections"] == seen["whole"] + seen["shut"] + len(errors), seen
    print(dict(seen), f"{len(errors)} errors", *errors[:10], sep="\n")
    print(out)
    return 1 if errors else 0


if __name__ == "__main__":
    numbers = [int(argument) for argument in sys.argv[1:]]
    sys.exit(main(*(numbers + [10_000, 100][len(numbers) :])))
