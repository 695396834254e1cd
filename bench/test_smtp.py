"""Receiving by SMTP: mails of 1 KB over 16 connections, through ten plugins that implement three hooks each.

Every server runs all the time, in a process of its own. `smtp_load.c` sends them the mails, to one after the other, round
after round. With so little to do for a mail, a clock measures whoever is slower, server or client, and how busy the machine
is; so the processor time that the server took is measured beside it.
"""

from __future__ import annotations

import contextlib
import random
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import smtp_servers
from building import build_program
from comparing import row_of
from servers import SMTP_SINK, free_port, running
from test_command import DISK, MEMORY

CONNECTIONS = 16
COPIES = range(4)
"""Of a kind of server, where one is not enough."""
SIZE = 1024
PLUGIN = """
def mq_smtp_in_mailfrom(context, message, address):
    return False


def mq_smtp_in_rcptto(context, message, address):
    return False


def mq_smtp_in_message(context, message):
    return False
"""

HOLDS = """
def mq_smtp_in_message(context, message):
    hold = context.hold(message)
    context.start_timer(0.005, hold.continue_)
    return True
"""

LAST = ["nice", "-n", "5"]

HASHES = 3_000
"""Of each mail, made by a plugin that computes: 2 ms or more, beside which a sender, or a broker, costs little."""
COMPUTES = f"""
import hashlib


def mq_smtp_in_message(context, message):
    for _ in range({HASHES}):
        hashlib.sha256(message.mime)
    return False
"""

Served = Callable[..., tuple[int, int]]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """`served(name, copy=0)`: the port and the process id of a server, which runs from then on."""
    if shutil.which("smtp-sink") is None:
        pytest.skip("there is no smtp-sink; it is a part of Postfix")
    plugins = tmp_path_factory.mktemp("plugins")
    for number in range(10):
        (plugins / f"{number}-plugin.py").write_text(PLUGIN)
    (plugins / "holds").mkdir()
    (plugins / "holds" / "50-holds.py").write_text(HOLDS)
    (plugins / "computes").mkdir()
    (plugins / "computes" / "50-computes.py").write_text(COMPUTES)
    started: dict[tuple[str, int], tuple[int, int]] = {}
    with contextlib.ExitStack() as stack:

        def serve(name: str, copy: int = 0) -> tuple[int, int]:
            if (name, copy) not in started:
                started[name, copy] = stack.enter_context(listening(name, plugins))
            return started[name, copy]

        yield serve


@contextlib.contextmanager
def listening(name: str, plugins: Path) -> Iterator[tuple[int, int]]:
    port = free_port()
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory(dir=MEMORY) as memory:
        command = [sys.executable, "-P", "-m", "mqcore", "run", "--plugins", plugins, "--from", f"smtp://127.0.0.1:{port}"]
        commands = {
            "mqcore": [*command, "--to", "null:"],
            "1 worker": [*command, "--to", "null:", "--workers", 1],
            "2 workers": [*command, "--to", "null:", "--workers", 2],
            "1 worker, computes": [*LAST, *command, "--plugins", plugins / "computes", "--to", "null:", "--workers", 1],
            "2 workers, computes": [*LAST, *command, "--plugins", plugins / "computes", "--to", "null:", "--workers", 2],
            "all off": [*command, "--to", "null:", "--watchdog", "0"],
            "all on": [*command, "--to", "null:", f"--control={folder}/control", f"--metrics=unix:{folder}/metrics"],
            "a line in the log": [*command, "--to", "null:", "--watchdog", "0", "--log-level", "info"],
            "mqcore, Maildir": [*command, "--to", f"maildir:{folder}/inbox"],
            "mqcore, Maildir in memory": [*command, "--to", f"maildir:{memory}/inbox"],
            "mqcore, LMTP": [*command[:-1], f"lmtp://127.0.0.1:{port}", "--to", "null:"],
            "mqcore, holds": [*command, "--plugins", plugins / "holds", "--to", "null:"],
            "smtp-sink, LMTP": [*SMTP_SINK, "-L", f"127.0.0.1:{port}", 1024],
            "aiosmtpd": [sys.executable, smtp_servers.__file__, "aiosmtpd", port, plugins],
            "uvloop": [sys.executable, smtp_servers.__file__, "uvloop", port],
            "smtp-sink": [*SMTP_SINK, f"127.0.0.1:{port}", 1024],
        }
        with running(list(map(str, commands[name])), port) as process:
            while not greets(port):  # a supervisor listens before there is a worker
                time.sleep(0.05)
            yield port, process.pid


def greets(port: int) -> bool:
    """Whether somebody takes mail there."""
    with socket.create_connection(("127.0.0.1", port)) as client:
        return client.recv(4096).startswith(b"220")


def processor_time(pid: int) -> int:
    """What a process, and those that it started, have taken so far, in ns: by the clock that clock_getcpuclockid() gives."""
    workers = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return sum(time.clock_gettime_ns(~int(one) << 3 | 2) for one in (pid, *workers))


Figures = dict[str, list[float]]


class Course:
    """Sends mails to servers in turn, in another order each time, and takes down what each mail took."""

    def __init__(self, servers: dict[str, tuple[int, int]], mails: int, options: list[object], per_connection: int) -> None:
        self.servers = servers
        self.clock: Figures = {name: [] for name in servers}
        self.processor: Figures = {name: [] for name in servers}
        self._mails = mails
        self._command = [build_program("smtp_load"), *options]
        self._shape = [CONNECTIONS, mails, per_connection, SIZE]

    def __call__(self) -> None:
        for name, (port, pid) in random.sample([*self.servers.items()], len(self.servers)):
            start, taken = time.perf_counter_ns(), processor_time(pid)
            subprocess.run(list(map(str, [*self._command, port, *self._shape])), check=True)
            self.clock[name].append((time.perf_counter_ns() - start) / self._mails)
            self.processor[name].append((processor_time(pid) - taken) / self._mails)


@pytest.mark.parametrize(
    ("shape", "mails", "per_connection", "options", "sink"),
    [
        ("100 mails a connection", 1600, 100, [], "mqcore"),
        ("100 mails a connection, pipelined", 1600, 100, ["-p"], "mqcore"),
        ("1 mail a connection", 800, 1, [], "mqcore"),
        ("100 mails a connection, to a Maildir", 1600, 100, [], "mqcore, Maildir"),
        ("100 mails a connection, 10 recipients", 800, 100, ["-p", "-n", 10], "mqcore"),
        ("100 mails a connection, 100 recipients", 160, 100, ["-p", "-n", 100], "mqcore"),
    ],
)
def test_receive(
    benchmark: Any,
    report: Callable[..., None],
    served: Served,
    shape: str,
    mails: int,
    per_connection: int,
    options: list[object],
    sink: str,
    *,
    short: bool,
) -> None:
    servers = {"smtp-sink": served("smtp-sink"), "mqcore": served(sink), "aiosmtpd": served("aiosmtpd")}
    servers["bare uvloop protocol"] = served("uvloop")
    course = Course(servers, mails, options, per_connection)
    rounds = 3 if short else 9
    benchmark.pedantic(course, rounds=rounds, warmup_rounds=1)
    for case, figures in ((shape, course.clock), (f"{shape}, processor time", course.processor)):
        report(row_of("receiving by SMTP", case, {name: each[-rounds:] for name, each in figures.items()}))


@pytest.mark.parametrize(
    ("where", "place", "sink", "mails"),
    [("in memory", MEMORY, "mqcore, Maildir in memory", 1600), ("on disk", DISK, "mqcore, Maildir", 800)],
)
def test_receive_and_store(
    benchmark: Any, report: Callable[..., None], served: Served, where: str, place: Path, sink: str, mails: int, *, short: bool
) -> None:
    """The whole way: each mail is on the disk when its sender is told so. The base is what two programs in C take, of which one
    receives, and the other makes the calls of the system that storing takes, for groups as large as they can be."""
    floor = build_program("maildir_floor")
    servers = {"smtp-sink": served("smtp-sink"), "mqcore": served(sink), "null:": served("mqcore")}
    course = Course(servers, mails, [], 100)
    stored: list[float] = []
    folder = Path(tempfile.mkdtemp(prefix="mqcore-bench-", dir=place))

    def measure() -> None:
        course()
        command = [floor, folder / str(len(stored)), mails, CONNECTIONS, SIZE]
        said = subprocess.run(list(map(str, command)), check=True, stdout=subprocess.PIPE, text=True).stdout
        stored.append(sum(map(float, said.split())))

    rounds = 3 if short else 15
    try:
        benchmark.pedantic(measure, rounds=rounds, warmup_rounds=1)
    finally:
        shutil.rmtree(folder)
    received = {name: each[-rounds:] for name, each in course.processor.items()}
    base = [*map(sum, zip(received.pop("smtp-sink"), stored[-rounds:], strict=True))]
    case = f"from SMTP to a Maildir {where}, processor time"
    report(row_of("storing in a Maildir", case, {"smtp-sink + bare system calls": base, **received}))


def test_all_that_an_operator_may_turn_on(benchmark: Any, report: Callable[..., None], served: Served, *, short: bool) -> None:
    """The watchdog, the control socket, and metrics; and a line in the log for each mail, which costs what writing one does."""
    course = Course({name: served(name) for name in ("all off", "all on", "a line in the log")}, 1600, [], 100)
    rounds = 3 if short else 31
    benchmark.pedantic(course, rounds=rounds, warmup_rounds=1)
    off, on, logging = (each[-rounds:] for each in course.processor.values())
    shape = "100 mails a connection"
    report(row_of("receiving by SMTP", f"{shape}, all on, processor time", {"all off": off, "mqcore": on}))
    report(row_of("receiving by SMTP", f"{shape}, a line in the log, processor time", {"no line": off, "mqcore": logging}))


def test_workers(benchmark: Any, report: Callable[..., None], served: Served, *, short: bool) -> None:
    """One process, one with a supervisor, and two. What sends the mails needs a core, too: where there are two, only the
    processor time says how two workers compare with one. Processes that do the same cost up to a tenth more or less, each for
    all of its life, as memory lies; so there are several of the first two kinds, and what each kind costs is their mean."""
    kinds = {"one process": "mqcore", "mqcore": "1 worker"}
    servers = {f"{kind} {copy}": served(name, copy) for kind, name in kinds.items() for copy in COPIES}
    servers["2 workers"] = served("2 workers")
    course = Course(servers, 1600, ["-p"], 10)
    rounds = 3 if short else 9
    benchmark.pedantic(course, rounds=rounds, warmup_rounds=1)

    def taken(figures: Figures, kind: str) -> list[float]:
        return [*map(statistics.mean, zip(*(figures[f"{kind} {copy}"][-rounds:] for copy in COPIES), strict=True))]

    costs = {kind: taken(course.processor, kind) for kind in kinds} | {"2 workers": course.processor["2 workers"][-rounds:]}
    report(row_of("receiving by SMTP", "with a supervisor, processor time", costs))
    clock = {"1 worker": taken(course.clock, "mqcore"), "mqcore": course.clock["2 workers"][-rounds:]}
    report(row_of("receiving by SMTP", "two workers", clock))


def test_workers_that_compute(benchmark: Any, report: Callable[..., None], served: Served, *, short: bool) -> None:
    """What sends the mails takes little beside a plugin that works: so two cores are enough to see that two workers do twice as
    much as one in the same time. What sends goes first, as if it had a core of its own. Connections stay to the end: each
    worker has some of them, and so always has a mail; if they were made anew, chance would leave one idle now and then."""
    servers = {name: served(f"{name}, computes") for name in ("1 worker", "2 workers")}
    mails = 100 if short else 400
    course = Course(servers, mails, ["-p"], mails)
    rounds = 3 if short else 9
    benchmark.pedantic(course, rounds=rounds, warmup_rounds=1)
    clock = {"1 worker": course.clock["1 worker"][-rounds:], "mqcore": course.clock["2 workers"][-rounds:]}
    report(row_of("receiving by SMTP", "two workers, a plugin that computes", clock))


@pytest.mark.parametrize("recipients", [1, 10])
def test_receive_by_lmtp(benchmark: Any, report: Callable[..., None], served: Served, recipients: int, *, short: bool) -> None:
    servers = {"smtp-sink": served("smtp-sink, LMTP"), "mqcore": served("mqcore, LMTP")}
    course = Course(servers, 800, ["-l", "-p", "-n", recipients], 100)
    rounds = 3 if short else 9
    benchmark.pedantic(course, rounds=rounds, warmup_rounds=1)
    shape = f"LMTP, {recipients} recipient{'s' if recipients > 1 else ''}"
    for case, figures in ((shape, course.clock), (f"{shape}, processor time", course.processor)):
        report(row_of("receiving by SMTP", case, {name: each[-rounds:] for name, each in figures.items()}))


def test_latency(benchmark: Any, report: Callable[..., None], served: Served, *, short: bool) -> None:
    """Of a whole mail, at half of the rate of which the command is capable. One plugin more holds each for 5 ms."""
    load = build_program("smtp_load")
    port, _ = served("mqcore")
    start = time.perf_counter()
    subprocess.run(list(map(str, [load, port, CONNECTIONS, 4000, 100, SIZE])), check=True)
    rate = 4000 / (time.perf_counter() - start) / 2
    servers = {name: served(name)[0] for name in ("smtp-sink", "mqcore", "mqcore, holds")}
    mails = 1000 if short else 10_000
    taken: dict[str, dict[int, list[float]]] = {name: {500: [], 990: [], 999: []} for name in servers}

    def measure() -> None:
        for name, port in servers.items():
            # As many connections as there are mails on their way, and some more: a mail that is due finds one.
            command = [load, "-r", rate, port, 256, mails, 100, SIZE]
            said = subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True).stdout
            times = sorted(map(int, said.split()))
            for promille, each in taken[name].items():
                each.append(times[len(times) * promille // 1000])

    rounds = 3 if short else 5
    benchmark.pedantic(measure, rounds=rounds, warmup_rounds=1)
    for promille in (500, 990, 999):
        for name, what in (("mqcore", ""), ("mqcore, holds", ", and a plugin that holds it")):
            case = f"latency at half of the highest rate, p{promille / 10:g}{what}"
            costs = {"smtp-sink": taken["smtp-sink"][promille][-rounds:], "mqcore": taken[name][promille][-rounds:]}
            report(row_of("latency of a mail by SMTP", case, costs))
