"""From one queue of RabbitMQ to another: raw bodies, each acknowledged when the broker has confirmed its copy.

Every relay runs all the time, in a process of its own, with queues of its own. It is stopped (SIGSTOP) while its queue is
filled, so that all find the same: messages that wait. What is measured is the processor time that it takes from then on until
its other queue has all of them.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import amqp_relays
import pytest
from building import HERE, build_program
from comparing import row_of
from moving import environment
from test_smtp import processor_time

pytestmark = pytest.mark.large
PEERS = ("pika", "aio-pika", "faststream")
RELAYS = ("librabbitmq", "mqcore", *PEERS)
QUORUM = {"x-queue-type": "quorum"}
SETTLES = 0.3
"""Seconds until a broker has heard, and said, all that there is."""


class Relays:
    """Each runs, and has relayed all that there was."""

    def __init__(self, port: int, processes: dict[str, subprocess.Popen[bytes]]) -> None:
        import pika

        self.pika = pika
        self.processes = processes
        self.connection = pika.BlockingConnection(pika.URLParameters(f"amqp://guest:guest@127.0.0.1:{port}/%2F"))
        self.channel = self.connection.channel()

    def relay(self, name: str, size: int, count: int) -> float:
        """Let one relay so many messages; the processor time that it took for each, in ns."""
        process = self.processes[name]
        os.kill(process.pid, signal.SIGSTOP)
        body = b"Subject: x\r\n\r\n".ljust(size, b".")
        for number in range(count):
            properties = self.pika.BasicProperties(
                content_type="message/rfc822", delivery_mode=2, message_id=f"{time.monotonic_ns()}-{number}",
                headers={"envelope": "sender@example.org", "recipient": "recipient@example.org"},
            )  # fmt: skip
            self.channel.basic_publish("", name, body, properties)
        while self.waiting(name) < count - amqp_relays.WINDOW:  # what was sent to the relay does not count
            time.sleep(0.05)
        time.sleep(SETTLES)
        before = processor_time(process.pid)
        os.kill(process.pid, signal.SIGCONT)
        while self.waiting(f"{name}.to") < count:
            assert process.poll() is None, f"{name} has ended"
            time.sleep(0.05)
        time.sleep(SETTLES)
        taken = processor_time(process.pid) - before
        self.channel.queue_purge(f"{name}.to")
        return taken / count

    def waiting(self, queue: str) -> int:
        """How many messages wait there."""
        count: int = self.channel.queue_declare(queue, passive=True).method.message_count
        return count


@pytest.fixture(scope="module")
def relays() -> Iterator[Relays]:
    """All of them."""
    pytest.importorskip("pika")
    pytest.importorskip("aio_pika")
    pytest.importorskip("faststream")
    if not Path("/usr/include/amqp.h").exists():
        pytest.skip("librabbitmq-dev is not installed")
    sys.path += map(str, (tests := HERE.parent / "tests", tests / "partners"))
    from broker import Broker  # the tests'; skips where there is none

    relay = build_program("amqp_relay", "-lrabbitmq")
    with contextlib.ExitStack() as stack:
        port = stack.enter_context(Broker()).port
        made = Relays(port, {})
        stack.callback(made.connection.close)
        for name in RELAYS:
            for queue in (name, f"{name}.to"):
                made.channel.queue_declare(queue, durable=True, arguments=QUORUM)
        time.sleep(2)  # until that is on the disk
        place = f"amqp://guest:guest@127.0.0.1:{port}?queue=mqcore"
        commands: dict[str, list[Any]] = {
            "librabbitmq": [relay, port, "librabbitmq"],
            "mqcore": [sys.executable, "-P", "-m", "mqcore", "run", "--from", place, "--to", f"{place}.to&format=mime"],
            **{name: [sys.executable, amqp_relays.__file__, name, port, name] for name in PEERS},
        }
        for name, command in commands.items():
            process = subprocess.Popen(
                list(map(str, command)), env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            stack.callback(process.wait)
            stack.callback(process.kill)
            made.processes[name] = process
        time.sleep(5)  # mqcore waits for the queues that it makes to be on the disk
        yield made


@pytest.mark.parametrize(("size", "count", "rounds"), [(1024, 4000, 7), (50 << 10, 1000, 5)], ids=["1 KB", "50 KB"])
def test_relay(benchmark: Any, report: Callable[..., None], relays: Relays, size: int, count: int, rounds: int) -> None:
    """In turn, round after round."""
    figures: dict[str, list[float]] = {name: [] for name in RELAYS}

    def measure() -> None:
        for name in RELAYS:
            figures[name].append(relays.relay(name, size, count))

    benchmark.pedantic(measure, rounds=rounds, warmup_rounds=1)
    case = f"relay of raw {size >> 10} KB bodies, processor time"
    report(row_of("RabbitMQ", case, {name: each[-rounds:] for name, each in figures.items()}))
