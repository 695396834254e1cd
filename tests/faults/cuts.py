"""A network between `mqcore run` and its RabbitMQ that is cut again and again: nothing is lost, and the sum is right.

    python tests/faults/cuts.py [--cuts N] [--seed N] [--to amqp|maildir]

Linux, as root: the run is in a network namespace of its own, with one cable to the broker. A client publishes mails as in
`queues.py`, from the broker's side. By turns the network

* drops what is sent, for so short that nobody notices: TCP sends it again;
* is silent, for longer than the heartbeats allow: both sides leave the connection, each without a word from the other;
* resets connections: who sends is told that nobody knows them.

The columns are those of `queues.py`, and `reconnects`: how often the run made its connections again.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

TESTS = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TESTS), str(TESTS / "faults"), str(TESTS / "partners")]

from broker import Broker, lasting_port, refuses
from faults_command import run
from mail_tools import write_plugin
from networks import ip, joined
from queues import COLUMNS, IN_FLIGHT, Client, Figures, consuming, drained, make_parser, show, sum_up

CUTS = ("drop", "silence", "reset")
HEARTBEAT = 1  # s; who hears nothing for two of them is left


class Cable:
    """Between this machine and a namespace. Addresses are those for measuring (RFC 2544), which nobody else has."""

    def __init__(self) -> None:
        self.namespace = f"mqcore-{os.getpid()}"
        self._end, self._other = f"mq{os.getpid()}a"[-15:], f"mq{os.getpid()}b"[-15:]
        network = f"198.18.{os.getpid() % 256}"
        self.address, self._far = f"{network}.1", f"{network}.2"

    @property
    def inside(self) -> tuple[str, ...]:
        """What is run under this is in the namespace."""
        return ("ip", "netns", "exec", self.namespace)

    def __enter__(self) -> Cable:
        with contextlib.ExitStack() as undo:
            undo.enter_context(joined(self.namespace, self._end, self._other))
            ip("addr", "add", f"{self.address}/30", "dev", self._end)
            ip("link", "set", self._end, "up")
            ip("-n", self.namespace, "addr", "add", f"{self._far}/30", "dev", self._other)
            ip("-n", self.namespace, "link", "set", self._other, "up")
            ip("-n", self.namespace, "link", "set", "lo", "up")
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *raised: object) -> None:
        self._undo.close()

    @contextlib.contextmanager
    def cut(self, how: str) -> Iterator[None]:
        if how == "reset":
            # In the namespace the other side's address is this side's own now, and nobody here knows the connections.
            address = ("addr", "add", f"{self.address}/32", "dev", "lo")
            ip("-n", self.namespace, *address)
            try:
                yield
            finally:
                ip("-n", self.namespace, "addr", "del", *address[2:])
        else:
            ip("link", "set", self._end, "down")
            try:
                yield
            finally:
                ip("link", "set", self._end, "up")


class Cuts(NamedTuple):
    figures: Figures
    reconnects: int

    def __str__(self) -> str:
        return f"{self.figures} {self.reconnects:10}"

    @property
    def kept(self) -> bool:
        return self.figures.kept and self.reconnects > 0


async def cut(cable: Cable, broker: Broker, port: int, sink: str, cuts: int, chance: random.Random, folder: Path) -> Cuts:
    plugins = write_plugin(folder / "plugins", "10-refuses", refuses("Subject")).parent
    place = f"amqp://guest:guest@{cable.address}:{port}?heartbeat={HEARTBEAT}"
    to = f"{place}&queue=out" if sink == "amqp" else f"maildir:{folder}/out"
    source = f"{place}&queue=q&retry=1"
    with run(folder, "--from", f"{source}&until=empty", "--to", to, under=cable.inside) as command:  # makes the queues
        assert await command.end() == 0, command.describe()
    arguments = ["--from", source, "--to", to, "--plugins", plugins, "--max-in-flight", IN_FLIGHT]
    with run(folder, *arguments, under=cable.inside) as command:
        await consuming(broker, command)
        client = Client(broker)
        client.start()
        for number in range(cuts):
            await asyncio.sleep(1 + chance.random())
            how = CUTS[number % len(CUTS)]
            with cable.cut(how):
                await asyncio.sleep(4 * HEARTBEAT if how == "silence" else 0.5)
            assert command.is_running, command.describe()
        client.is_over.set()
        await asyncio.to_thread(client.join, 60)
        await consuming(broker, command)
        await drained(broker, command)
        command.process.send_signal(signal.SIGTERM)
        assert await command.end() == 0, command.describe()
        reconnects = command.figures["messages"]["reconnects"]
    return Cuts(sum_up(broker, client, sink, folder, cuts, 2 * cuts * IN_FLIGHT), reconnects)


def measure(sink: str, cuts: int, seed: int) -> Cuts:
    """With a broker, a network and a folder of their own."""
    folder = Path(tempfile.mkdtemp(prefix="mqcore-cuts-"))
    port = lasting_port()
    try:
        with Cable() as cable, Broker(config=f"listeners.tcp.2 = {cable.address}:{port}") as broker:
            return asyncio.run(cut(cable, broker, port, sink, cuts, random.Random(seed), folder))
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    sys.exit(show(make_parser(__doc__, "--cuts").parse_args(), f"{COLUMNS} reconnects", measure))
