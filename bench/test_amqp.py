"""RabbitMQ: messages that are published, that are taken out of a queue, and that go from one queue to another.

Every client runs all the time, in a process of its own, with a queue of its own. What is measured is the processor time that
the process takes for each message. One that consumes is stopped (SIGSTOP) while its queue is filled, so that all find the same:
messages that wait. What fills a queue is the client in C.
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
from typing import Any, Self

import amqp_clients
import pytest
from building import HERE, build_program
from comparing import row_of
from moving import environment
from test_smtp import HASHES, LAST, processor_time

pytestmark = pytest.mark.large
PEERS = ("pika", "aio-pika", "faststream")
CLIENTS = ("librabbitmq", "mqcore", *PEERS)
QUORUM = {"x-queue-type": "quorum"}
SETTLES = 0.3
"""Seconds until a broker has heard, and said, all that there is."""
READY_AFTER = 5
"""Seconds: mqcore waits for the queues that it makes to be on the disk."""
IDLE = 5_000_000
"""Ns of the processor: who takes no more in that time has nothing to do."""

Process = subprocess.Popen[bytes]
IN_FLIGHT = 40
"""As many messages as the workers of a run have in hand together: with few, none has much left when there are no more."""
COMPUTES = f"""
import hashlib
import os
import time

taken = os.open({{path!r}}, os.O_WRONLY | os.O_CREAT | os.O_APPEND)


def mq_smtp_in_message(context, mail):
    for _ in range({HASHES}):
        hashlib.sha256(mail.mime)
    os.write(taken, time.monotonic_ns().to_bytes(8))
    return False
"""


class Queues:
    """Of a broker of the bench's own."""

    def __init__(self, port: int) -> None:
        import pika

        self.port = port
        self.program = build_program("amqp_client", "-lrabbitmq")
        self._connection = pika.BlockingConnection(pika.URLParameters(f"amqp://guest:guest@127.0.0.1:{port}/%2F?heartbeat=0"))
        self._channel = self._connection.channel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()

    def place(self, queue: str) -> str:
        """As `mqcore run` has it."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}?queue={queue}"

    def make(self, *names: str) -> None:
        """So that they are on the disk."""
        for name in names:
            self._channel.queue_declare(name, durable=True, arguments=QUORUM)
        time.sleep(2)

    def waiting(self, queue: str) -> int:
        """How many messages wait there."""
        count: int = self._channel.queue_declare(queue, passive=True).method.message_count
        return count

    def purge(self, queue: str) -> None:
        """Let nothing wait there."""
        self._channel.queue_purge(queue)


@contextlib.contextmanager
def client(command: list[Any]) -> Iterator[Process]:
    """A client, until the end of the block."""
    process = subprocess.Popen(
        list(map(str, command)),
        bufsize=0,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def publish(process: Process, size: int, count: int) -> None:
    """Let it publish so many messages. They are confirmed then."""
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(b"%d %d\n" % (count, size))
    assert process.stdout.readline() == b"done\n", "a client has ended"


def wait_until(is_so: Callable[[], bool], process: Process) -> None:
    """While this process lives, which is to see to it."""
    while not is_so():
        assert process.poll() is None, f"{process.args!r} has ended"
        time.sleep(0.02)


class Clients:
    """All that do one kind of work. Each waits for it, or has done all that there was."""

    def __init__(self, mode: str, queues: Queues, processes: dict[str, Process], fillers: dict[str, Process]) -> None:
        self.mode = mode
        self.queues = queues
        self._processes = processes
        self._fillers = fillers

    def measure(self, name: str, size: int, count: int) -> float:
        """The processor time, in ns, that it takes for each of so many messages."""
        process, queue = self._processes[name], f"{self.mode}.{name}"
        if self.mode == "publish":
            before = processor_time(process.pid)
            publish(process, size, count)
            taken = self.rest(process) - before
            self.queues.purge(queue)
            return taken / count
        os.kill(process.pid, signal.SIGSTOP)
        publish(self._fillers[name], size, count)
        # What was sent to the client does not count.
        wait_until(lambda: self.queues.waiting(queue) >= count - amqp_clients.WINDOW, process)
        time.sleep(SETTLES)
        before = processor_time(process.pid)
        os.kill(process.pid, signal.SIGCONT)
        done, left = (f"{queue}.to", count) if self.mode == "relay" else (queue, 0)
        wait_until(lambda: self.queues.waiting(done) == left, process)
        taken = self.rest(process) - before
        if self.mode == "relay":
            self.queues.purge(done)
        return taken / count

    def rest(self, process: Process) -> int:
        """Wait until it has nothing to do, and return all the processor time that it has taken so far."""
        taken = processor_time(process.pid)
        while True:
            time.sleep(SETTLES)
            assert process.poll() is None, f"{process.args!r} has ended"
            before, taken = taken, processor_time(process.pid)
            if taken - before < IDLE:
                return taken


@pytest.fixture(scope="module")
def queues() -> Iterator[Queues]:
    """A broker's, for all."""
    pytest.importorskip("pika")
    pytest.importorskip("aio_pika")
    pytest.importorskip("faststream")
    if not Path("/usr/include/amqp.h").exists():
        pytest.skip("librabbitmq-dev is not installed")
    sys.path += map(str, (tests := HERE.parent / "tests", tests / "partners"))
    from broker import Broker  # the tests'; skips where there is none

    with Broker() as broker, Queues(broker.port) as made:
        yield made


@pytest.fixture(scope="module", params=["publish", "consume", "relay"])
def clients(request: pytest.FixtureRequest, queues: Queues) -> Iterator[Clients]:
    """All that do this kind of work."""
    mode = request.param
    names = {name: f"{mode}.{name}" for name in CLIENTS}
    queues.make(*names.values(), *(f"{name}.to" for name in names.values() if mode == "relay"))
    with contextlib.ExitStack() as stack:

        def run(*command: Any) -> Process:
            return stack.enter_context(client([*command]))

        fillers = {} if mode == "publish" else {
            name: run(queues.program, "publish", queues.port, queue) for name, queue in names.items()
        }  # fmt: skip
        processes = {
            name: run(sys.executable, amqp_clients.__file__, name, mode, queues.port, queue)
            for name, queue in names.items()
            if name not in ("librabbitmq", "mqcore") or mode == "publish"
        }
        processes["librabbitmq"] = run(queues.program, mode, queues.port, names["librabbitmq"])
        if mode != "publish":
            place = queues.place(names["mqcore"])
            sink = "null:" if mode == "consume" else f"{place}.to&format=mime"
            processes["mqcore"] = run(sys.executable, "-P", "-m", "mqcore", "run", "--from", place, "--to", sink)
        time.sleep(READY_AFTER)
        yield Clients(mode, queues, processes, fillers)
    time.sleep(SETTLES)
    for queue in names.values():
        assert queues.waiting(queue) == 0, f"of {queue} not all was acknowledged"


@pytest.mark.parametrize(("size", "count", "rounds"), [(1024, 4000, 7), (50 << 10, 1000, 5)], ids=["1 KB", "50 KB"])
def test_messages(benchmark: Any, report: Callable[..., None], clients: Clients, size: int, count: int, rounds: int) -> None:
    """In turn, round after round. Of the peers on Python a thousand messages say enough."""
    figures: dict[str, list[float]] = {name: [] for name in CLIENTS}

    def measure() -> None:
        for name, each in figures.items():
            each.append(clients.measure(name, size, amqp_clients.WINDOW if name in PEERS else count))

    benchmark.pedantic(measure, rounds=rounds, warmup_rounds=1)
    case = f"{clients.mode} raw {size >> 10} KB bodies, processor time"
    report(row_of("RabbitMQ", case, {name: each[-rounds:] for name, each in figures.items()}))


class Workers:
    """A run of `mqcore run`, whose plugin computes, and writes when it was done with each message."""

    def __init__(self, queues: Queues, stack: contextlib.ExitStack, folder: Path, number: int) -> None:
        self.queues = queues
        self.queue = f"{number}-workers"
        self._written = folder / "written"
        (folder / "plugins").mkdir(parents=True)
        (folder / "plugins" / "50-computes.py").write_text(COMPUTES.format(path=str(self._written)))
        self._filler = stack.enter_context(client([queues.program, "publish", queues.port, self.queue]))
        command = [*LAST, sys.executable, "-P", "-m", "mqcore", "run", "--from", queues.place(self.queue), "--to", "null:"]
        options = ["--plugins", folder / "plugins", "--workers", number, "--max-in-flight", IN_FLIGHT]
        self._process = stack.enter_context(client([*command, *options]))

    def __call__(self, size: int, count: int) -> float:
        """The time by the clock, in ns, that each of so many messages takes."""
        pid = self._process.pid
        pids = [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]
        for each in pids:
            os.kill(each, signal.SIGSTOP)
        os.truncate(self._written, 0)
        publish(self._filler, size, count)
        wait_until(lambda: self.queues.waiting(self.queue) <= count - IN_FLIGHT, self._process)
        time.sleep(SETTLES)
        start = time.monotonic_ns()
        for each in pids:
            os.kill(each, signal.SIGCONT)
        wait_until(lambda: self._written.stat().st_size >= 8 * count, self._process)
        time.sleep(SETTLES)
        assert self.queues.waiting(self.queue) == 0
        written = self._written.read_bytes()
        assert len(written) == 8 * count, "no message came twice"
        last = max(int.from_bytes(written[place : place + 8]) for place in range(0, len(written), 8))
        return (last - start) / count


def test_workers(benchmark: Any, report: Callable[..., None], queues: Queues, tmp_path: Path) -> None:
    """One worker, and two. When the clock starts, the messages are in the queue, and the workers have long been ready: nobody
    else needs a core for long. The broker goes first, and takes little beside a plugin that works. Nothing is left to wait for
    when the plugin is done with the last message, so that is when the clock stops."""
    queues.make(*(f"{number}-workers" for number in (1, 2)))
    figures: dict[str, list[float]] = {"1 worker": [], "mqcore": []}
    with contextlib.ExitStack() as stack:
        runs = [Workers(queues, stack, tmp_path / str(number), number) for number in (1, 2)]
        time.sleep(READY_AFTER)

        def measure() -> None:
            for run, figure in zip(runs, figures.values(), strict=True):
                figure.append(run(1024, 800))

        benchmark.pedantic(measure, rounds=7, warmup_rounds=1)
    case = "consume, two workers, a plugin that computes"
    report(row_of("RabbitMQ", case, {name: each[-7:] for name, each in figures.items()}))
