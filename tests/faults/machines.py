"""Three machines that carry mail together, while one of them is killed and another one is cut off, again and again.

    python tests/faults/machines.py [--faults N] [--seed N] [--brokers 1|3]

Linux, as root: each machine is a network namespace, with a cable to a bridge; the next server, RabbitMQ and the clients are on
this side of it. The gateway takes mails by SMTP and publishes them to a queue; two relays, with two workers each, take them
out of it and bring them to the next server. Of ten mails, a plugin there refuses one, which goes to the queue of what failed,
and puts another one off, which comes again after a second. By turns

* all processes of a relay are killed by SIGKILL, and started again;
* the cable of the other one is pulled, for longer than the heartbeats allow;
* with three brokers, which share each queue, one of them is killed by SIGKILL, and started again.

Each fault lasts until mail has arrived in spite of it. In the end nothing waits any more, and the line says how many mails,
for each of their recipients,

* were acknowledged to the clients: `accepted`;
* are with the next server: `delivered`; in the queue of what failed: `failed`; in another queue: `queued`;
* are copies beyond the first: `doubles`; accepted + doubles = delivered + failed + queued, if nothing is lost;
* may be: `bound`. What a relay had in hand at each fault (all of them, if it was a broker's); and what was in doubt.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import NamedTuple

TESTS = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TESTS), str(TESTS / "faults"), str(TESTS / "partners")]

import pika
from broker import Broker, lasting_port, refuses
from cuts import HEARTBEAT
from faults_clients import Account, Client
from faults_command import Command, run
from faults_tools import Key, ServerOwner, Source, identify
from mail_tools import write_plugin
from networks import ip, joined
from queues import count_consumers, waiting

IN_FLIGHT = 100
"""Of each relay."""
WORKERS = 2
"""Of each relay, too."""
RELAYS = ("relay1", "relay2")
CLIENTS = 4
NEVER_LONGER = 300.0
"""Seconds: then what is waited for does not come."""
DRAINED_WITHIN = 900.0
"""Seconds: what the broker could not bring from a rung to the queue, as that had no leader, it tries again after three to six
minutes."""
QUEUES = ("q.retry.1", "q", "q.failed")
"""In the order in which a message may go from one to the other."""


class Network:
    """This machine's side of it: a bridge. Addresses are those for measuring (RFC 2544), which nobody else has."""

    def __init__(self, brokers: int) -> None:
        self._bridge = f"mq{os.getpid()}"
        self._addresses = (f"198.18.{os.getpid() % 256}.{number}" for number in itertools.count(1))
        self.address = next(self._addresses)
        self.brokers = [next(self._addresses) for _ in range(brokers)]

    def __enter__(self) -> Network:
        ip("link", "add", self._bridge, "type", "bridge")
        try:
            for address in (self.address, *self.brokers):
                ip("addr", "add", f"{address}/24", "dev", self._bridge)
            ip("link", "set", self._bridge, "up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *raised: object) -> None:
        ip("link", "del", self._bridge)

    @contextlib.contextmanager
    def machine(self, name: str) -> Iterator[Machine]:
        machine = Machine(f"mqcore-{os.getpid()}-{name}", next(self._addresses))
        cable, end = machine.cable, f"{machine.cable}e"
        hosts = Path("/etc/netns", machine.namespace, "hosts")  # what `ip netns exec` shows as /etc/hosts
        hosts.parent.mkdir(parents=True)
        with contextlib.ExitStack() as undo:
            undo.callback(shutil.rmtree, hosts.parent)
            hosts.write_text("".join(f"{address} broker.example\n" for address in self.brokers))
            undo.enter_context(joined(machine.namespace, cable, end))
            ip("link", "set", cable, "master", self._bridge)
            ip("link", "set", cable, "up")
            ip("-n", machine.namespace, "addr", "add", f"{machine.address}/24", "dev", end)
            ip("-n", machine.namespace, "link", "set", end, "up")
            ip("-n", machine.namespace, "link", "set", "lo", "up")
            undo.callback(machine.kill)
            yield machine


class Machine:
    def __init__(self, namespace: str, address: str) -> None:
        self.namespace = namespace
        self.address = address
        self.cable = f"mq{os.getpid()}n{address.rpartition('.')[2]}"
        """Its end on this side."""

    @property
    def inside(self) -> tuple[str, ...]:
        """What is run under this is on the machine."""
        return ("ip", "netns", "exec", self.namespace)

    def kill(self) -> None:
        """All of its processes."""
        pids = subprocess.check_output(["ip", "netns", "pids", self.namespace], text=True, timeout=30)
        for number in pids.split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(number), signal.SIGKILL)

    @contextlib.contextmanager
    def cut_off(self) -> Iterator[None]:
        ip("link", "set", self.cable, "down")
        try:
            yield
        finally:
            ip("link", "set", self.cable, "up")


class Figures(NamedTuple):
    faults: int
    accepted: int
    delivered: int
    failed: int
    queued: int
    lost: int
    doubles: int
    bound: int
    seconds: float

    def __str__(self) -> str:
        counts = " ".join(f"{count:9,}" for count in self[1:5])
        return f"{self.faults:6} {counts} {self.lost:4} {self.doubles:7} {self.bound:6,} {self.seconds:7.0f}"

    @property
    def kept(self) -> bool:
        adds_up = self.accepted + self.doubles == self.delivered + self.failed + self.queued
        return adds_up and self.lost == 0 and self.doubles <= self.bound and min(self.delivered, self.failed) > 0


COLUMNS = "faults  accepted delivered    failed    queued lost doubles  bound seconds"


class Site:
    """All that runs, and what is known of it."""

    def __init__(self, network: Network, brokers: list[Broker], port: int, folder: Path) -> None:
        self.network = network
        self.brokers = brokers
        self.folder = folder
        self.queue = f"amqp://guest:guest@broker.example:{port}?queue=q&heartbeat={HEARTBEAT}"
        self.next = ServerOwner("smtp")
        self.account = Account()
        self.machines: dict[str, Machine] = {}
        self.commands: dict[str, Command] = {}
        self.clients: list[Client] = []
        self._runs = itertools.count()
        self._opened = contextlib.AsyncExitStack()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with self._opened:
            for name in ("gateway", *RELAYS):
                self.machines[name] = self._opened.enter_context(self.network.machine(name))
            await self._opened.enter_async_context(self.next.listening(self.network.address))
            gateway = f"smtp://{self.machines['gateway'].address}:2525"
            options = ("--failed", f"maildir:{self.folder}/failed", "--hostname", "mx.example.org")
            self._start("gateway", "--from", gateway, "--to", self.queue, *options)
            for relay in RELAYS:
                self.start_relay(relay)
            await self.wait_for(self.is_complete)
            yield

    def start_relay(self, name: str) -> None:
        plugins = write_plugin(self.folder / "plugins", "10-refuses", refuses("X-Mail")).parent
        arguments = ["--from", f"{self.queue}&retry=1", "--to", self.next.url, "--workers", WORKERS, "--plugins", plugins]
        self._start(name, *arguments, "--max-in-flight", IN_FLIGHT, "--hostname", f"{name}.example.org")

    def _start(self, name: str, *arguments: object) -> None:
        folder = self.folder / f"{next(self._runs)}-{name}"  # what each says is kept until the end
        folder.mkdir()
        self.commands[name] = self._opened.enter_context(run(folder, *arguments, under=self.machines[name].inside))

    @property
    def broker(self) -> Broker:
        """One that runs."""
        return next(each for each in self.brokers if each.is_running)

    def is_complete(self) -> bool:
        """Whether all workers take mail."""
        with contextlib.suppress(pika.exceptions.AMQPError):  # the queue is not there yet
            return count_consumers(self.broker) == len(RELAYS) * WORKERS
        return False

    def is_empty(self) -> bool:
        return waiting(self.broker) == 0

    async def wait_for(
        self, condition: Callable[[], bool], *, but: str = "", times: int = 1, within: float = NEVER_LONGER
    ) -> None:
        """Until it holds, a few times with a second between. All run meanwhile, but one. It may block."""
        async with asyncio.timeout(within):
            while times:
                for name, command in self.commands.items():
                    assert name == but or command.is_running, f"{name}: {command.describe()}"
                times = times - 1 if await asyncio.to_thread(condition) else times
                await asyncio.sleep(1 if times else 0)

    async def mail_arrives(self, count: int = 50, *, but: str = "") -> None:
        wanted = self.next.got.total() + count
        await self.wait_for(lambda: self.next.got.total() >= wanted, but=but)

    # What goes wrong

    async def kill(self, relay: str) -> None:
        """And start it again."""
        self.machines[relay].kill()
        await self.commands[relay].end()
        await self.mail_arrives(but=relay)
        self.start_relay(relay)

    async def cut_off(self, relay: str) -> None:
        with self.machines[relay].cut_off():
            await asyncio.sleep(4 * HEARTBEAT)
            await self.mail_arrives()

    async def kill_broker(self, number: int) -> None:
        self.brokers[number].kill()
        await self.mail_arrives()
        await asyncio.to_thread(self.brokers[number].start)

    async def load(self, faults: int, chance: random.Random) -> int:
        """Clients send as fast as it goes, and things go wrong meanwhile. How many messages may have become doubles."""
        source = Source("smtp", (self.machines["gateway"].address, 2525), None, "", ())
        numbers = itertools.count()
        self.clients = [Client(source, self.account, numbers) for _ in range(CLIENTS)]
        bound = 0
        async with asyncio.TaskGroup() as tasks:
            for client in self.clients:
                tasks.create_task(client.run())
            kinds = (self.kill, self.cut_off, self.kill_broker)[: 3 if len(self.brokers) > 1 else 2]
            for number in range(faults):
                await self.mail_arrives()
                await asyncio.sleep(chance.random())
                begin, kind = self.next.got.total(), kinds[number % len(kinds)]
                round_ = number // len(kinds)
                if kind == self.kill_broker:
                    await self.kill_broker(round_ % len(self.brokers))
                    bound += IN_FLIGHT * len(RELAYS)
                else:
                    await kind(RELAYS[(round_ + number) % 2])
                    bound += IN_FLIGHT
                await self.wait_for(self.is_complete)
                print(f"  {number + 1}: {kind.__name__}, {self.next.got.total() - begin} arrived meanwhile", flush=True)
            for client in self.clients:
                client.enough = True
        return bound

    async def end(self) -> int:
        """When nothing waits any more. How many mails the gateway had in doubt."""
        await self.wait_for(self.is_empty, times=3, within=DRAINED_WITHIN)
        for name, command in self.commands.items():
            command.process.send_signal(signal.SIGTERM)
            assert await command.end() == 0, f"{name}: {command.describe()}"
        in_doubt: int = self.commands["gateway"].figures["messages"]["in_doubt"]
        return in_doubt

    def in_queues(self) -> dict[str, Counter[Key]]:
        """What is there; it is taken out."""
        found: dict[str, Counter[Key]] = {queue: Counter() for queue in QUEUES}
        with contextlib.closing(pika.BlockingConnection(pika.URLParameters(self.broker.url))) as connection:
            for queue in QUEUES:
                channel = connection.channel()
                for method, _, body in channel.consume(queue, auto_ack=True, inactivity_timeout=2):
                    if method is None:
                        break
                    message = json.loads(body)
                    found[queue][identify(message["mime"].encode())[0], message["recipient"]] += 1
                channel.close()
        return found


async def measure(brokers: int, faults: int, seed: int) -> Figures:
    """With machines, brokers and a folder of their own."""
    began = time.monotonic()
    folder = Path(tempfile.mkdtemp(prefix="mqcore-machines-"))
    port = lasting_port()
    with contextlib.ExitStack() as opened:
        opened.callback(shutil.rmtree, folder)
        network = opened.enter_context(Network(brokers))
        started: list[Broker] = []
        for address in network.brokers:
            first = started[0] if started else None
            started.append(opened.enter_context(Broker(config=f"listeners.tcp.2 = {address}:{port}", beside=first)))
        site = Site(network, started, port, folder)
        async with site.running():
            if brokers > 1:
                members = started[0].control("list_queues", "name", "members")
                assert members.count("mqcore") == brokers * len(QUEUES), members
            bound = await site.load(faults, random.Random(seed)) + await site.end()
        found = site.in_queues()
    failed = found.pop("q.failed")
    queued = sum(found.values(), Counter[Key]())
    there = site.next.got + failed + queued
    lost = site.account.acknowledged - there.keys()
    if lost:
        print("lost:", sorted(lost)[:20], flush=True)
    counts = (len(site.account.acknowledged), site.next.got.total(), failed.total(), queued.total(), len(lost))
    bound += site.account.doubts.total()
    return Figures(faults, *counts, there.total() - len(there), bound, time.monotonic() - began)


def main() -> int:
    """1 if the promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", type=int, default=30, metavar="N")
    parser.add_argument("--seed", type=int, default=1, metavar="N")
    parser.add_argument("--brokers", type=int, choices=[1, 3], default=1)
    given = parser.parse_args()
    figures = asyncio.run(measure(given.brokers, given.faults, given.seed))
    print(f"{COLUMNS}\n{figures}", "" if figures.kept else "BROKEN", flush=True)
    return 0 if figures.kept else 1


if __name__ == "__main__":
    sys.exit(main())
