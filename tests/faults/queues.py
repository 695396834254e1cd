"""kill -9 of a RabbitMQ, and of the run that reads from it, again and again: what was published is there, and the sum is right.

    python tests/faults/queues.py [--kills N] [--workers N] [--seed N] [--to amqp|maildir]

A client publishes mails to a queue, each until it is confirmed or in doubt. `mqcore run` takes them to another queue, or to a
Maildir; of ten mails, a plugin refuses one, and puts another off, which comes again after a second. By turns the broker, twice,
and the run are killed at a random moment, and started again. With `--workers` the run has so many, and one of them is killed
each time, a few of them in a second, and nothing else.

In the end the line says how many mails

* were confirmed to the client: `published`; were not, but are there: `unsure`;
* are with the sink: `sunk`; in the queue of what failed: `failed`; in another queue: `queued`;
* were confirmed, and are nowhere: `lost`;
* are copies beyond the first: `doubles`. published + unsure + doubles = sunk + failed + queued + lost;
* may be: `bound`. What was on its way at each kill, once for where it came from and once for where it goes to; what a worker
  had in hand, with `--workers`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import functools
import json
import random
import re
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, Protocol

TESTS = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TESTS), str(TESTS / "faults"), str(TESTS / "partners")]

import pika
from broker import Broker, NotStarted, refuses
from faults_command import Command, kill_workers, run
from mail_tools import read_maildir, write_plugin

IN_FLIGHT = 100
QUEUES = ("q", "q.failed", "q.retry.1", "out")


class Figures(NamedTuple):
    faults: int
    published: int
    unsure: int
    sunk: int
    failed: int
    queued: int
    lost: int
    doubles: int
    bound: int

    def __str__(self) -> str:
        counts = f"{self.published:9,} {self.unsure:6} {self.sunk:9,} {self.failed:8,} {self.queued:6}"
        return f"{self.faults:6} {counts} {self.lost:4} {self.doubles:7} {self.bound:7,}"

    @property
    def kept(self) -> bool:
        adds_up = self.published + self.unsure + self.doubles == self.sunk + self.failed + self.queued + self.lost
        return adds_up and self.lost == 0 and self.doubles <= self.bound and self.published > 0


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
                while channel.queue_declare(queue, passive=True).method.message_count:
                    for method, _, body in channel.consume(queue, auto_ack=True, inactivity_timeout=0.5):
                        if method is None:
                            break
                        found[queue].append(number_of(body))
                    channel.cancel()
                channel.close()
    return found


def number_of(text: bytes) -> int:
    """Of a mail, or a message with one, or with what should be one."""
    found = re.search(rb"Subject: (\d+)", text)
    assert found is not None, text[:1000]
    return int(found[1])


class Relay:
    """What is run, from the queue to the sink, and killed."""

    def __init__(self, broker: Broker, sink: str, folder: Path) -> None:
        self.broker = broker
        self.sink = sink
        self.folder = folder
        plugins = write_plugin(folder / "plugins", "10-refuses", refuses("Subject")).parent
        source = f"amqp://guest:guest@127.0.0.1:{broker.port}?queue=q&retry=1"
        to = f"amqp://guest:guest@127.0.0.1:{broker.port}?queue=out" if sink == "amqp" else f"maildir:{folder}/out"
        self.arguments = ["--from", source, "--to", to, "--plugins", plugins, "--max-in-flight", IN_FLIGHT]

    async def make_queues(self) -> None:
        """By a run that finds nothing."""
        source, *others = self.arguments[1:]
        with run(self.folder, "--from", f"{source}&until=empty", *others) as command:
            assert await command.end() == 0, command.describe()

    async def kill(self, kills: int, chance: random.Random) -> None:
        """Of three times, the broker twice, and this run once."""
        done = 0
        while done < kills:
            with run(self.folder, *self.arguments) as command:
                await consuming(self.broker, command)  # who finds no broker at its start gives up after half a minute
                while done < kills:
                    await asyncio.sleep(1 + chance.random() * 3)
                    assert command.is_running, command.describe()
                    done += 1
                    if done % 3 == 0:
                        command.process.kill()
                        break
                    await asyncio.to_thread(restart, self.broker)

    async def kill_workers(self, workers: int, kills: int, chance: random.Random) -> None:
        async def ready(command: Command) -> None:
            await consuming(self.broker, command, workers)

        await kill_workers(kills, workers, chance, self.folder, self.arguments, ready)

    async def drain(self) -> None:
        """A last run, that nobody kills, until nothing waits any more."""
        with run(self.folder, *self.arguments) as command:
            await drained(self.broker, command)
            command.process.send_signal(signal.SIGTERM)
            assert await command.end() == 0, command.describe()


async def kill(broker: Broker, sink: str, kills: int, workers: int, chance: random.Random, folder: Path) -> Figures:
    relay = Relay(broker, sink, folder)
    await relay.make_queues()
    client = Client(broker)
    client.start()
    if workers:
        await relay.kill_workers(workers, kills, chance)
        bound = kills * -(-IN_FLIGHT // workers)
    else:
        await relay.kill(kills, chance)
        bound = kills * 2 * IN_FLIGHT
    client.is_over.set()
    await asyncio.to_thread(client.join, 60)
    await relay.drain()
    return sum_up(broker, client, sink, folder, kills, bound)


def sum_up(broker: Broker, client: Client, sink: str, folder: Path, faults: int, bound: int) -> Figures:
    """What became of what was published, when nothing runs any more."""
    found = read_queues(broker)
    sunk, failed = found.pop("out"), found.pop("q.failed")
    if sink == "maildir":
        sunk += map(number_of, read_maildir(folder / "out"))
    queued = [number for numbers in found.values() for number in numbers]
    there = Counter([*sunk, *failed, *queued])
    lost = set(client.confirmed) - there.keys()
    if lost:
        print("lost:", sorted(lost)[:20], flush=True)
    counts = len(client.confirmed), len(there.keys() - client.confirmed), len(sunk), len(failed), len(queued)
    return Figures(faults, *counts, len(lost), there.total() - len(there), bound)


async def consuming(broker: Broker, command: Command, workers: int = 1) -> None:
    """Until the run, with so many workers, takes messages."""
    async with asyncio.timeout(60):
        while await asyncio.to_thread(count_consumers, broker) < workers:
            assert command.is_running, command.describe()
            await asyncio.sleep(0.1)


def count_consumers(broker: Broker) -> int:
    with channel_of(broker) as channel:
        found: int = channel.queue_declare("q", passive=True).method.consumer_count
        return found


def count_ready(broker: Broker, *queues: str) -> int:
    """What could be given to somebody at once."""
    with channel_of(broker) as channel:
        return sum(channel.queue_declare(queue, passive=True).method.message_count for queue in queues)


@contextlib.contextmanager
def channel_of(broker: Broker) -> Iterator[Any]:
    """Of a connection of its own."""
    with contextlib.closing(pika.BlockingConnection(pika.URLParameters(broker.url))) as connection:
        yield connection.channel()


def restart(broker: Broker) -> None:
    """Once of some seventy times, a RabbitMQ 3.10.8 that was killed did not come up."""
    broker.kill()
    try:
        broker.start()
    except NotStarted as error:
        print(f"started once more: {error}"[:200], flush=True)
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


def measure(sink: str, kills: int, seed: int, workers: int = 0) -> Figures:
    """With a broker and a folder of their own."""
    folder = Path(tempfile.mkdtemp(prefix="mqcore-queues-"))
    try:
        with Broker() as broker:
            return asyncio.run(kill(broker, sink, kills, workers, random.Random(seed), folder))
    finally:
        shutil.rmtree(folder)


class Kept(Protocol):
    """What `show` prints: `kept` is whether the promise was."""

    @property
    def kept(self) -> bool: ...


def make_parser(description: str | None, option: str) -> argparse.ArgumentParser:
    """Of the command line of a program that has faults; their count is that of `option`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(option, type=int, default=30, metavar="N", dest="count")
    parser.add_argument("--seed", type=int, default=1, metavar="N")
    parser.add_argument("--to", choices=["amqp", "maildir"])
    return parser


def show(given: argparse.Namespace, columns: str, measure: Callable[[str, int, int], Kept]) -> int:
    """Print what `measure(sink, count, seed)` gives, in these columns, for each sink that the command line asks for. 1 if the
    promise was broken."""
    kept = True
    print(f"sink     {columns} seconds", flush=True)
    for sink in [given.to] if given.to else ["amqp", "maildir"]:
        begin = time.monotonic()
        figures = measure(sink, given.count, given.seed)
        print(f"{sink:8} {figures} {time.monotonic() - begin:7.0f}", "" if figures.kept else "BROKEN", flush=True)
        kept = kept and figures.kept
    return 0 if kept else 1


COLUMNS = "faults published unsure      sunk   failed queued lost doubles   bound"


def main() -> int:
    parser = make_parser(__doc__, "--kills")
    parser.add_argument("--workers", type=int, default=0, metavar="N")
    given = parser.parse_args()
    return show(given, COLUMNS, functools.partial(measure, workers=given.workers))


if __name__ == "__main__":
    sys.exit(main())
