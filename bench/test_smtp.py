"""Receiving by SMTP: mails of 1 KB over 16 connections, through ten plugins that implement three hooks each.

Every server runs all the time, in a process of its own. `smtp_load.c` sends them the mails, to one after the other, round
after round. With so little to do for a mail, a clock measures whoever is slower, server or client, and how busy the machine
is; so the processor time that the server took is measured beside it.
"""

from __future__ import annotations

import contextlib
import shutil
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

CONNECTIONS = 16
SIZE = 1024
PLUGIN = """
def mq_smtp_in_mailfrom(context, message, address):
    return False


def mq_smtp_in_rcptto(context, message, address):
    return False


def mq_smtp_in_message(context, message):
    return False
"""

Served = Callable[[str], tuple[int, int]]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """`served(name)`: the port and the process id of a server, which runs from then on."""
    if shutil.which("smtp-sink") is None:
        pytest.skip("there is no smtp-sink; it is a part of Postfix")
    plugins = tmp_path_factory.mktemp("plugins")
    for number in range(10):
        (plugins / f"{number}-plugin.py").write_text(PLUGIN)
    started: dict[str, tuple[int, int]] = {}
    with contextlib.ExitStack() as stack:

        def serve(name: str) -> tuple[int, int]:
            if name not in started:
                started[name] = stack.enter_context(listening(name, plugins))
            return started[name]

        yield serve


@contextlib.contextmanager
def listening(name: str, plugins: Path) -> Iterator[tuple[int, int]]:
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-P", "-m", "mqcore", "run", "--plugins", plugins, "--from", f"smtp://127.0.0.1:{port}"]
        commands = {
            "mqcore": [*command, "--to", "null:"],
            "mqcore, Maildir": [*command, "--to", f"maildir:{folder}/inbox"],
            "aiosmtpd": [sys.executable, smtp_servers.__file__, "aiosmtpd", port, plugins],
            "uvloop": [sys.executable, smtp_servers.__file__, "uvloop", port],
            "smtp-sink": [*SMTP_SINK, f"127.0.0.1:{port}", 1024],
        }
        with running(list(map(str, commands[name])), port) as process:
            yield port, process.pid


def processor_time(pid: int) -> int:
    """What a process has taken so far, in ns: by the clock that clock_getcpuclockid() gives for it."""
    return time.clock_gettime_ns(~pid << 3 | 2)


@pytest.mark.parametrize(
    ("shape", "mails", "per_connection", "pipelined", "sink"),
    [
        ("100 mails a connection", 1600, 100, 0, "mqcore"),
        ("100 mails a connection, pipelined", 1600, 100, 1, "mqcore"),
        ("1 mail a connection", 800, 1, 0, "mqcore"),
        ("100 mails a connection, to a Maildir", 1600, 100, 0, "mqcore, Maildir"),
    ],
)
def test_receive(
    benchmark: Any,
    report: Callable[..., None],
    served: Served,
    shape: str,
    mails: int,
    per_connection: int,
    pipelined: int,
    sink: str,
    *,
    short: bool,
) -> None:
    load = build_program("smtp_load")
    servers = {"smtp-sink": served("smtp-sink"), "mqcore": served(sink), "aiosmtpd": served("aiosmtpd")}
    servers["bare uvloop protocol"] = served("uvloop")
    clock: dict[str, list[float]] = {name: [] for name in servers}
    processor: dict[str, list[float]] = {name: [] for name in servers}

    def measure() -> None:
        for name, (port, pid) in servers.items():
            command = [load, port, CONNECTIONS, mails, per_connection, SIZE, pipelined]
            start, taken = time.perf_counter_ns(), processor_time(pid)
            subprocess.run(list(map(str, command)), check=True)
            clock[name].append((time.perf_counter_ns() - start) / mails)
            processor[name].append((processor_time(pid) - taken) / mails)

    rounds = 5 if short else 15
    benchmark.pedantic(measure, rounds=rounds, warmup_rounds=1)
    for case, figures in ((shape, clock), (f"{shape}, processor time", processor)):
        report(row_of("receiving by SMTP", case, {name: each[-rounds:] for name, each in figures.items()}))
