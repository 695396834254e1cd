"""Receiving by SMTP: mqcore beside aiosmtpd with the same plugins, and beside Postfix's smtp-sink, which has none.

    pip install '.[bench]' && apt-get install postfix
    python bench/smtp.py [--rounds N] [--mails N] [--per-connection]

Postfix's smtp-source sends mails of 1 KB over 16 connections to each server in turn, round after round. Ten plugins
implement three hooks each; nothing is stored. A figure is the median over the rounds of the ratio to aiosmtpd in the
same round; its spread is half the range of their middle half.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

CONNECTIONS = 16
SIZE = 1024
PLUGINS = 10
PLUGIN = """
def mq_smtp_in_mailfrom(context, message, address):
    return False


def mq_smtp_in_rcptto(context, message, address):
    return False


def mq_smtp_in_message(context, message):
    return False
"""


def main() -> None:
    if sys.argv[1:2] == ["aiosmtpd"]:
        serve_with_aiosmtpd(int(sys.argv[2]), Path(sys.argv[3]))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--mails", type=int, default=CONNECTIONS * 100, help="in a round, for each server")
    parser.add_argument("--per-connection", action="store_true", help="a connection for each mail")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as running:
        plugins = Path(folder)
        for number in range(PLUGINS):
            (plugins / f"{number}-plugin.py").write_text(PLUGIN)
        ports = {name: running.enter_context(served(name, plugins)) for name in ("aiosmtpd", "mqcore", "smtp-sink")}
        rates: dict[str, list[float]] = {name: [] for name in ports}
        for number in range(options.rounds + 1):
            for name, port in ports.items():
                rate = measure(port, options.mails, per_connection=options.per_connection)
                if number:  # the first round warms up
                    rates[name].append(rate)
    for name, measured in rates.items():
        ratios = sorted(rate / base for rate, base in zip(measured, rates["aiosmtpd"], strict=True))
        lower, _, upper = statistics.quantiles(ratios, n=4)
        ratio, spread = statistics.median(ratios), (upper - lower) / 2
        print(f"{name:10} {statistics.median(measured):9,.0f} mails/s {ratio:6.2f} x aiosmtpd, +- {spread:.2f}")


@contextlib.contextmanager
def served(name: str, plugins: Path) -> Iterator[int]:
    """The port of a server, which runs until the end of the block."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    commands = {
        "mqcore": [
            *(sys.executable, "-m", "mqcore", "run", "--plugins", plugins),
            *("--from", f"smtp://127.0.0.1:{port}", "--to", "null:"),
        ],
        "aiosmtpd": [sys.executable, __file__, "aiosmtpd", port, plugins],
        "smtp-sink": ["smtp-sink", *(("-u", "nobody") if os.getuid() == 0 else ()), f"127.0.0.1:{port}", 1024],
    }
    process = subprocess.Popen(list(map(str, commands[name])), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while True:
            assert process.poll() is None, f"{name} does not run"
            with contextlib.suppress(ConnectionError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.05)
        yield port
    finally:
        process.terminate()
        process.wait()


def measure(port: int, mails: int, *, per_connection: bool) -> float:
    """Mails a second."""
    command = ["smtp-source", *(() if per_connection else ("-d",)), "-s", CONNECTIONS, "-m", mails, "-l", SIZE]
    begin = time.perf_counter()
    subprocess.run([*map(str, command), f"127.0.0.1:{port}"], check=True)
    return mails / (time.perf_counter() - begin)


def serve_with_aiosmtpd(port: int, folder: Path) -> None:
    """Calls the same functions, in loops, at the same stages."""
    import asyncio
    import importlib.util
    from typing import Any

    import uvloop
    from aiosmtpd.smtp import SMTP

    modules = []
    for path in sorted(folder.glob("*.py")):
        spec = importlib.util.spec_from_file_location(path.stem, path)
        assert spec is not None and spec.loader is not None
        modules.append(importlib.util.module_from_spec(spec))
        spec.loader.exec_module(modules[-1])

    class Handler:
        async def handle_MAIL(self, server: Any, session: Any, envelope: Any, address: str, options: Any) -> str:  # noqa: N802
            for module in modules:
                module.mq_smtp_in_mailfrom(session, envelope, address)
            envelope.mail_from = address
            return "250 OK"

        async def handle_RCPT(self, server: Any, session: Any, envelope: Any, address: str, options: Any) -> str:  # noqa: N802
            for module in modules:
                module.mq_smtp_in_rcptto(session, envelope, address)
            envelope.rcpt_tos.append(address)
            return "250 OK"

        async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:  # noqa: N802
            for module in modules:
                module.mq_smtp_in_message(session, envelope)
            return "250 OK"

    async def serve() -> None:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: SMTP(Handler(), hostname="localhost"), "127.0.0.1", port)
        await server.serve_forever()

    uvloop.run(serve())


if __name__ == "__main__":
    main()
