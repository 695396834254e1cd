"""What happens to a RabbitMQ and its queues beside kill -9 and cut networks, one thing at a time: what was published is there,
and the sum is right.

    python tests/faults/troubles.py [NAME ...]

A client publishes mails to a queue, and `mqcore run` takes them to another one, as in `queues.py`, which says what the columns
are. Meanwhile

* restart: the broker is stopped in good order, and started again;
* alarm: it has no memory left, and reads from nobody who publishes, until it has;
* full: a policy lets the queue that mails go to have no more than it has;
* deleted: the queue that they come from is deleted, with what is in it, and made again a second later;
* remade: the same, but at once, of which RabbitMQ tells its consumers nothing;
* poison: there is a mail that ends the process of each plugin that sees it;
* oversize: there is a mail that is too large for the broker as the next owner, as which it has more octets;
* no-mail: there are messages that are no JSON, or have no mail in them;
* two: there is a second run, on the same queue, that is killed by SIGKILL;
* held: a worker is killed by SIGKILL that has a thousand mails, which a plugin holds.

Then mail must arrive again, until nothing waits any more.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TESTS), str(TESTS / "faults"), str(TESTS / "partners")]

import pika
from broker import Broker
from faults_command import GIVE_UP, Command, run
from mail_tools import write_plugin
from queues import COLUMNS, IN_FLIGHT, QUEUES, Client, Figures, Relay, channel_of, consuming, count_ready, number_of, sum_up

from mqcore.mail.amqp.declare import arguments_of

CONFIG = "max_message_size = 1000000"
HELD = 1000
ODD = 1_000_000
"""From this number on, messages are not the client's."""


class Site:
    """A broker, the client, and a run from one queue of it to another."""

    def __init__(self, broker: Broker, folder: Path) -> None:
        self.broker = broker
        self.folder = folder
        self.relay = Relay(broker, "amqp", folder)
        self.client = Client(broker)
        self.bound = self.deleted = 0
        self._odd: list[int] = []

    @contextlib.asynccontextmanager
    async def running(self, *options: object) -> AsyncIterator[Command]:
        """A run, in the end told to stop, when nothing waits any more."""
        await self.relay.make_queues()
        with run(self.folder, *self.relay.arguments, *options) as command:
            await consuming(self.broker, command)
            self.client.start()
            await self.mail_arrives()
            yield command
            await self.mail_arrives()
            self.client.is_over.set()
            await asyncio.to_thread(self.client.join, 60)
            await self._quiet(command)
            command.process.send_signal(signal.SIGTERM)
            assert await command.end() == 0, command.describe()

    def sum_up(self) -> Figures:
        self.client.confirmed += self._odd
        figures = sum_up(self.broker, self.client, "amqp", self.folder, 1, self.bound)
        with channel_of(self.broker) as channel:
            for queue in QUEUES:
                channel.queue_delete(queue)
        return figures

    def plugin(self, name: str, source: str) -> None:
        write_plugin(self.folder / "plugins", name, source)

    def publish(self, text: str, **properties: object) -> None:
        """A message that is not the client's. In it, `{}` says its number."""
        number = ODD + len(self._odd)
        with channel_of(self.broker) as channel:
            channel.confirm_delivery()
            body = text.replace("{}", f"Subject: {number}").encode()
            channel.basic_publish("", "q", body, pika.BasicProperties(delivery_mode=2, **properties), mandatory=True)
        self._odd.append(number)

    def odd(self, queue: str) -> int:
        """How many of these are there: they stay."""
        with channel_of(self.broker) as channel:
            bodies = [channel.basic_get(queue)[2] for _ in range(count_ready(self.broker, queue))]
        return sum(number >= ODD for number in map(number_of, bodies))

    async def until(self, condition: Callable[[], bool]) -> None:
        """It may block. A broker that is not there has nothing."""
        async with asyncio.timeout(GIVE_UP):
            while not await asyncio.to_thread(condition):
                await asyncio.sleep(0.1)

    def count(self, *queues: str) -> int:
        return count_ready(self.broker, *queues)

    async def mail_arrives(self) -> None:
        wanted = await asyncio.to_thread(self.count, "out") + 100
        await self.until(lambda: self.count("out") >= wanted)

    async def _quiet(self, command: Command) -> None:
        """Until nothing has come out for three seconds, which is more than what is put off waits, and nothing is left."""
        quiet, before = 0, -1
        async with asyncio.timeout(GIVE_UP):
            while quiet < 3:
                await asyncio.sleep(1)
                assert command.is_running, command.describe()
                out = await asyncio.to_thread(self.count, "out", "q.failed")
                left = await asyncio.to_thread(self.count, "q", "q.retry.1")
                quiet = quiet + 1 if out == before and not left else 0
                before = out


# Troubles


async def restart(site: Site) -> None:
    async with site.running():
        site.broker.stop()
        site.broker.start()  # by this thread, with whose end it ends
    site.bound = 2 * IN_FLIGHT


async def alarm(site: Site) -> None:
    control = site.broker.control
    async with site.running():
        await asyncio.to_thread(control, "set_vm_memory_high_watermark", "absolute", "1MB")
        try:
            # The client, and what the run publishes by.
            await site.until(lambda: control("list_connections", "state").count("blocked") >= 2)
            there = site.count("out")
            await asyncio.sleep(1)
            assert site.count("out") == there
        finally:
            await asyncio.to_thread(control, "set_vm_memory_high_watermark", "0.4")


async def full(site: Site) -> None:
    control = site.broker.control
    async with site.running():
        await asyncio.to_thread(control, "set_policy", "full", "^out$", '{"max-length": 1}', "--apply-to", "queues")
        try:
            await site.until(lambda: site.count("q") >= 2 * IN_FLIGHT)  # what it has in hand is not counted
        finally:
            await asyncio.to_thread(control, "clear_policy", "full")


async def deleted(site: Site, pause: float = 1.0) -> None:
    async with site.running() as command:
        command.process.send_signal(signal.SIGSTOP)
        await site.until(lambda: site.count("q") >= IN_FLIGHT)
        with channel_of(site.broker) as channel:
            site.deleted = site.count("q") + IN_FLIGHT
            channel.queue_delete("q")
            await asyncio.sleep(pause)
            channel.queue_declare("q", durable=True, arguments=arguments_of("q", "q.failed"))
        command.process.send_signal(signal.SIGCONT)


async def remade(site: Site) -> None:
    await deleted(site, 0)


async def poison(site: Site) -> None:
    site.plugin(
        "20-dies",
        """
        import os

        def mq_smtp_in_message(context, mail):
            if b"poison" in mail.mime:
                os.abort()
        """,
    )
    async with site.running("--workers", 2) as command:
        site.publish(json.dumps({"recipient": "b@example.org", "mime": "{}\n\npoison\n"}))
        await site.until(lambda: site.odd("q.failed") == 1)
    assert command.figures["crashes"] == 3, command.figures
    site.bound = 3 * IN_FLIGHT // 2


async def oversize(site: Site) -> None:
    async with site.running():
        headers = {"envelope": "a@example.org", "recipient": "b@example.org"}
        site.publish("{}" + "\n" * 600_000, content_type="message/rfc822", headers=headers)
        await site.until(lambda: site.odd("q.failed") == 1)
    site.bound = 2 * IN_FLIGHT


async def no_mail(site: Site) -> None:
    async with site.running():
        for text in ("{}", '["{}"]', '{"mime": 5, "recipient": "{}"}'):
            site.publish(text, content_type="application/json")
        await site.until(lambda: site.odd("q.failed") == 3)


async def two(site: Site) -> None:
    folder = site.folder / "another"
    folder.mkdir()
    async with site.running():
        with run(folder, *site.relay.arguments) as another:
            await consuming(site.broker, another, 2)
            await site.mail_arrives()
            another.process.kill()
    site.bound = IN_FLIGHT


async def held(site: Site) -> None:
    flag, record = site.folder / "hold", site.folder / "held"
    site.plugin(
        "20-holds",
        f"""
        import os

        def mq_smtp_in_message(context, mail):
            if not os.path.exists({str(flag)!r}):
                return False
            context.start_timer(1000, print, mail)
            with open({str(record)!r}, "ab") as file:
                file.write(b".")
            return True
        """,
    )
    async with site.running("--workers", 1, "--max-in-flight", HELD) as command:
        record.touch()
        flag.touch()
        await site.until(lambda: record.stat().st_size == HELD)
        (worker,) = command.children()
        os.kill(worker, signal.SIGKILL)
        flag.unlink()
    assert command.figures["messages"]["unfinished"] == HELD, command.figures


TROUBLES: dict[str, Callable[[Site], Awaitable[None]]] = {
    "restart": restart,
    "alarm": alarm,
    "full": full,
    "deleted": deleted,
    "remade": remade,
    "poison": poison,
    "oversize": oversize,
    "no-mail": no_mail,
    "two": two,
    "held": held,
}


def is_kept(figures: Figures, deleted: int) -> bool:
    """What is lost was in the queue that somebody deleted."""
    return figures._replace(lost=0, published=figures.published - figures.lost).kept and figures.lost <= deleted


def measure(broker: Broker, name: str) -> tuple[Figures, bool]:
    """The sum, and whether the promise was kept."""
    folder = Path(tempfile.mkdtemp(prefix="mqcore-troubles-"))
    try:
        site = Site(broker, folder)
        try:
            asyncio.run(TROUBLES[name](site))
        finally:
            site.client.is_over.set()
        figures = site.sum_up()
        return figures, is_kept(figures, site.deleted)
    finally:
        shutil.rmtree(folder)


def main() -> int:
    """1 if the promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*TROUBLES, []], metavar="NAME")
    all_kept = True
    print(f"trouble  {COLUMNS} seconds", flush=True)
    with Broker(config=CONFIG) as broker:
        for name in parser.parse_args().names or TROUBLES:
            begin = time.monotonic()
            figures, kept = measure(broker, name)
            print(f"{name:8} {figures} {time.monotonic() - begin:7.0f}", "" if kept else "BROKEN", flush=True)
            all_kept = all_kept and kept
    return 0 if all_kept else 1


if __name__ == "__main__":
    sys.exit(main())
