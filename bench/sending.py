"""Sending by SMTP: `mqcore run --from mbox:... --to smtp://...` beside plain loops that do the same.

    pip install '.[bench]' && apt-get install postfix
    python bench/sending.py [--rounds N] [--mails N]

Mails of 1,000 bytes go from an mbox to Postfix's smtp-sink over 20 connections, by each in turn, round after round.
*aiosmtplib*, a library for sending, alone on a uvloop loop, is the measure; *smtplib* is the standard library in 20
threads; *smtp-source* is Postfix's, in C, and reads no mbox. mqcore has a plugin that says to whom, and keeps its record of
what is delivered. A rate is that of whole processes, less the time of a run that finds the mbox empty and connects to nobody:
so each pays for its connections. A figure is the median over the rounds of the ratio to aiosmtplib in the same round; its
spread is half the range of their middle half. Last come the processor time of the sending process for each mail, and its
ratio, of which the goal is a third.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import movers
from moving import SIZE, environment, write_mbox
from servers import smtp_sink

CONNECTIONS = 20
SENDER, RECIPIENT = "sender@example.org", "recipient@example.org"
PLUGIN = f"""
def mq_smtp_in_message(context, message):
    message.recipient = "{RECIPIENT}"
"""


def send_by_aiosmtplib(port: int, mbox: str) -> None:
    """As it is written in a few lines with the library."""
    import asyncio

    import aiosmtplib
    import uvloop

    mails = movers.split(mbox)

    async def send() -> None:
        async with aiosmtplib.SMTP(hostname="127.0.0.1", port=port) as client:
            for mail in mails:
                await client.sendmail(SENDER, [RECIPIENT], mail)

    async def send_all() -> None:
        await asyncio.gather(*(send() for _ in range(CONNECTIONS)))

    if os.path.getsize(mbox):
        uvloop.run(send_all())


def send_by_smtplib(port: int, mbox: str) -> None:
    """With the standard library."""
    import queue
    import smtplib
    import threading

    mails: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    for mail in movers.split(mbox):
        mails.put(mail)

    def send() -> None:
        with smtplib.SMTP("127.0.0.1", port) as client:
            while True:
                try:
                    mail = mails.get_nowait()
                except queue.Empty:
                    return
                client.sendmail(SENDER, [RECIPIENT], mail)

    threads = [threading.Thread(target=send) for _ in range(CONNECTIONS if os.path.getsize(mbox) else 0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


LOOPS = {"aiosmtplib": send_by_aiosmtplib, "smtplib": send_by_smtplib}
WAYS = ("aiosmtplib", "mqcore", "smtplib", "smtp-source")


def command_of(way: str, port: int, folder: Path, mails: int) -> list[str]:
    """What sends so many mails."""
    if way == "smtp-source":
        options = ["-d", "-s", str(CONNECTIONS), "-l", str(SIZE), "-m", str(max(mails, 1))]
        return ["smtp-source", *options, f"127.0.0.1:{port}"]
    mbox = folder / str(mails)
    if way == "mqcore":
        Path(f"{mbox}.sent.smtp.127.0.0.1:{port}").unlink(missing_ok=True)
        places = ("--from", f"mbox:{mbox}", "--to", f"smtp://127.0.0.1:{port}")
        return [sys.executable, "-P", "-m", "mqcore", "run", *places, "--plugins", f"{folder}/plugins", "--json"]
    return [sys.executable, __file__, way, str(port), str(mbox)]


def time_of(command: list[str]) -> tuple[float, float]:
    """The seconds of a run, by the clock and of the processor."""
    begin, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment())
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.perf_counter() - begin, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main() -> None:
    """Measure, and print a line for each."""
    if len(sys.argv) > 1 and sys.argv[1] in LOOPS:
        LOOPS[sys.argv[1]](int(sys.argv[2]), sys.argv[3])
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--mails", type=int, default=5_000, help="in a round, for each")
    options = parser.parse_args()
    rates: dict[str, list[float]] = {way: [] for way in WAYS}
    costs: dict[str, list[float]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory() as name, smtp_sink() as port:
        folder = Path(name)
        (folder / "plugins").mkdir()
        (folder / "plugins" / "10-to.py").write_text(PLUGIN)
        for count in (0, options.mails):
            write_mbox(folder / str(count), count)
        for number in range(options.rounds + 1):
            for way in WAYS:
                empty, full = (time_of(command_of(way, port, folder, count)) for count in (0, options.mails))
                if number:  # the first round warms up
                    rates[way].append(options.mails / (full[0] - empty[0]))
                    costs[way].append((full[1] - empty[1]) / options.mails)
    for way, measured in rates.items():
        rate, cost = ratio_of(measured, rates["aiosmtplib"]), ratio_of(costs[way], costs["aiosmtplib"])
        speed, spent = statistics.median(measured), statistics.median(costs[way]) * 1e6
        print(f"{way:11} {speed:9,.0f} mails/s {rate} x aiosmtplib, {spent:6.1f} us {cost} x aiosmtplib")


def ratio_of(measured: list[float], base: list[float]) -> str:
    """The median of the rounds, and its spread."""
    ratios = [one / other for one, other in zip(measured, base, strict=True)]
    lower, middle, upper = statistics.quantiles(ratios, n=4)
    return f"{middle:5.2f} +- {(upper - lower) / 2:.2f}"


if __name__ == "__main__":
    main()
