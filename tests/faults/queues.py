"""kill -9 of a RabbitMQ, and of the run that reads from it, again and again: what was published is there, and the sum is right.

    python tests/faults/queues.py [--kills N] [--seed N] [--to amqp|maildir]

A client publishes mails to a queue, each until it is confirmed or in doubt. `mqcore run` takes them to another queue, or to a
Maildir; of ten mails, a plugin refuses one, and puts another off, which comes again after a second. By turns the broker and
the run are killed at a random moment, and started again. In the end the line says

* how many mails were confirmed to the client: `published`;
* how many of these are neither with the sink, nor in the queue of what failed, nor in any other: `lost`;
* how many copies are there beyond the first: `doubles`;
* how many there may be: `bound`. What was on its way at each kill, once for where it came from and once for where it goes to.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

TESTS = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TESTS), str(TESTS / "faults"), str(TESTS / "partners")]

import pika
from broker import Broker, refuses
from faults_command import Command, run
from mail_tools import read_maildir, write_plugin

IN_FLIGHT = 100
QUEUES = ("q", "q.failed", "q.retry.1", "out")


class Figures(NamedTuple):
    faults: int
    published: int
    lost: int
    doubles: int
    bound: int

    def __str__(self) -> str:
        return f"{self.faults:6} {self.published:9,} {self.lost:4} {self.doubles:7} {self.bound:5}"

    @property
    def kept(self) -> bool:
        return self.lost == 0 and self.doubles <= self.bound and self.published > 0


class Client(threading.Thread):
    """Publishes one mail after the other, each with a number of its own."""

    def __init__(self, broker: Broker) -> None:
        super().__init__(daemon=True)
        self.confirmed: list[int] = []
        self.is_over = threading.Event()
        self._broker = broker
        self._next = 0

    def run(self) -> None:
        while not self.is_over.is_set():
            with contextlib.suppress(pika.exceptions.AMQPError, OSError):
                self._publish()
            time.sleep(0.1)

    def _publish(self) -> None:
        with contextlib.closing(pika.BlockingConnection(pika.URLParameters(self._broker.url))) as connection:
            channel = connection.channel()
            channel.confirm_delivery()
            while not self.is_over.is_set():
                number, self._next = self._next, self._next + 1  # what is in doubt is not published again
                body = {"envelope": "a@example.org", "recipient": "b@example.org", "mime": f"Subject: {number}\n\nhello\n"}
                properties = pika.BasicProperties(delivery_mode=2, message_id=str(number))
                channel.basic_publish("", "q", json.dumps(body).encode(), properties, mandatory=True)
                self.confirmed.append(number)


def read_queues(broker: Broker) -> dict[str, list[int]]:
    """Take out what is in each: all of it, as a quorum queue gives nobody more than 2,000 that are not acknowledged."""
    found: dict[str, list[int]] = {}
    with contextlib.closing(pika.BlockingConnection(pika.URLParameters(broker.url))) as connection:
        for queue in QUEUES:
            found[queue] = []
            channel = connection.channel()
            with contextlib.suppress(pika.exceptions.ChannelClosedByBroker):  # there is none
                for method, _, body in channel.consume(queue, auto_ack=True, inactivity_timeout=2):
                    if method is None:
                        break
                    found[queue].append(number_of(json.loads(body)["mime"].encode()))
                channel.close()
    return found


def number_of(mime: bytes) -> int:
    return int(mime.partition(b"Subject: ")[2].split()[0])


async def kill(broker: Broker, sink: str, kills: int, chance: random.Random, folder: Path) -> Figures:
    plugins = write_plugin(folder / "plugins", "10-refuses", refuses("Subject")).parent
    source = f"amqp://guest:guest@127.0.0.1:{broker.port}?queue=q&retry=1"
    to = f"amqp://guest:guest@127.0.0.1:{broker.port}?queue=out" if sink == "amqp" else f"maildir:{folder}/out"
    arguments = ["--from", source, "--to", to, "--plugins", plugins, "--max-in-flight", IN_FLIGHT]
    with run(folder, "--from", f"{source}&until=empty", "--to", to) as command:  # makes the queues
        assert await command.end() == 0, command.describe()
    client = Client(broker)
    client.start()
    done = 0
    while done < kills:
        with run(folder, *arguments) as command:
            await consuming(broker, command)  # who finds no broker at its start gives up after half a minute
            while done < kills:
                await asyncio.sleep(2 + chance.random() * 3)
                assert command.is_running, command.describe()
                done += 1
                if done % 3 == 0:
                    command.process.kill()
                    break
                await asyncio.to_thread(restart, broker)
    client.is_over.set()
    await asyncio.to_thread(client.join, 60)
    with run(folder, *arguments) as command:
        await drained(broker, command)
        command.process.send_signal(signal.SIGTERM)
        assert await command.end() == 0, command.describe()
    return sum_up(broker, client, sink, folder, done)


def sum_up(broker: Broker, client: Client, sink: str, folder: Path, faults: int) -> Figures:
    """What became of what was published, when nothing runs any more."""
    found = Counter(number for numbers in read_queues(broker).values() for number in numbers)
    if sink == "maildir":
        found.update(map(number_of, read_maildir(folder / "out")))
    lost = set(client.confirmed) - set(found)
    if lost:
        print("lost:", sorted(lost)[:20], flush=True)
    return Figures(faults, len(client.confirmed), len(lost), sum(found.values()) - len(found), 2 * faults * IN_FLIGHT)


async def consuming(broker: Broker, command: Command) -> None:
    """Until the run takes messages."""
    async with asyncio.timeout(60):
        while not await asyncio.to_thread(count_consumers, broker):
            assert command.is_running, command.describe()
            await asyncio.sleep(0.1)


def count_consumers(broker: Broker) -> int:
    with contextlib.closing(pika.BlockingConnection(pika.URLParameters(broker.url))) as connection:
        found: int = connection.channel().queue_declare("q", passive=True).method.consumer_count
        return found


def restart(broker: Broker) -> None:
    broker.kill()
    broker.start()


async def drained(broker: Broker, command: Command) -> None:
    """Until nothing waits any more, for three seconds."""
    quiet = 0
    async with asyncio.timeout(600):
        while quiet < 3:
            await asyncio.sleep(1)
            assert command.is_running, command.describe()
            quiet = quiet + 1 if await asyncio.to_thread(waiting, broker) == 0 else 0


def waiting(broker: Broker) -> int:
    """All that the broker has there, not only what could be given to somebody at once: what is on its way from a rung to the
    queue when it dies is tried again after three minutes."""
    rows = [line.split() for line in broker.control("list_queues", "name", "messages").splitlines()[1:]]
    return sum(int(count) for name, count in rows if name in ("q", "q.retry.1"))


def measure(sink: str, kills: int, seed: int) -> Figures:
    """With a broker and a folder of their own."""
    folder = Path(tempfile.mkdtemp(prefix="mqcore-queues-"))
    try:
        with Broker() as broker:
            return asyncio.run(kill(broker, sink, kills, random.Random(seed), folder))
    finally:
        shutil.rmtree(folder)


class Kept(Protocol):
    """What `run_program` prints: `kept` is whether the promise was."""

    @property
    def kept(self) -> bool: ...


def run_program(description: str | None, option: str, columns: str, measure: Callable[[str, int, int], Kept]) -> int:
    """Print what `measure(sink, count, seed)` gives, in these columns, for each sink that the command line asks for; the count
    is that of `option`. 1 if the promise was broken."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(option, type=int, default=30, metavar="N", dest="count")
    parser.add_argument("--seed", type=int, default=1, metavar="N")
    parser.add_argument("--to", choices=["amqp", "maildir"])
    given = parser.parse_args()
    kept = True
    print(f"sink     {columns} seconds", flush=True)
    for sink in [given.to] if given.to else ["amqp", "maildir"]:
        begin = time.monotonic()
        figures = measure(sink, given.count, given.seed)
        print(f"{sink:8} {figures} {time.monotonic() - begin:7.0f}", "" if figures.kept else "BROKEN", flush=True)
        kept = kept and figures.kept
    return 0 if kept else 1


COLUMNS = "faults published lost doubles bound"

if __name__ == "__main__":
    sys.exit(run_program(__doc__, "--kills", COLUMNS, measure))
