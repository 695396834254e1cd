"""An hour's mail, as fast as it goes: whether the memory of a server grows with what has passed through it, and whether its
watchdog tells of anything where nothing blocks.

    pip install '.[bench,smtp]' && apt-get install postfix
    python bench/soak.py [--mails N] [--minutes M] [--busy N]

Postfix's smtp-source sends mails of 1 KB over 16 connections, by default 360,000, which are 100 a second for an hour, to
`mqcore run` with a plugin that holds each for 5 ms, and with each kind of sink in turn: null:, a Maildir whose files are
deleted as they arrive, and a server. Resident memory is read twenty times on the way. What it is after a tenth of the mails is
compared with what it is after all, and the growth for each 1,000 mails is the slope of a line through what was read since.

With `--minutes` it goes on until so many are over, with all sinks. `--busy`: so many other processes want the processors all
the time. The server has metrics that are asked for each second. What its watchdog tells, with the default limit of 500 ms, is
an alarm, and a false one: it is printed, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import contextlib
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from servers import mqcore, smtp_sink

CONNECTIONS = 16
SIZE = 1024
PORTIONS = 20
HOLDS = """
def mq_smtp_in_message(context, message):
    hold = context.hold(message)
    context.start_timer(0.005, hold.continue_)
    return True
"""


class Sample(NamedTuple):
    """What was read when so many mails had passed."""

    mails: int
    memory: int


def main() -> None:
    """Run with each sink, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mails", type=int, default=360_000)
    parser.add_argument("--minutes", type=float, default=0.0)
    parser.add_argument("--busy", type=int, default=0)
    options = parser.parse_args()
    print("sink        mails     mails/s   MiB after a tenth   MiB after all   peak MiB   bytes for each 1,000 mails   alarms")
    alarms = 0
    sinks = (null, maildir, server)
    with busy(options.busy):
        for sink in sinks:
            alarms += soak_with(sink, options.mails, 60 * options.minutes / len(sinks))
    sys.exit(1 if alarms else 0)


def soak_with(sink: Callable[[], contextlib.AbstractContextManager[str]], mails: int, seconds: float) -> int:
    """One line; how many alarms there were."""
    with tempfile.TemporaryFile("w+") as log, tempfile.TemporaryDirectory() as plugins, sink() as place:
        Path(plugins, "10-holds.py").write_text(HOLDS)
        metrics = f"{plugins}/metrics"
        options = ("--to", place, "--one-recipient", "--plugins", plugins, "--metrics", f"unix:{metrics}")
        with mqcore(*options, stderr=log) as (process, port), scraped(metrics):
            begin = time.monotonic()
            samples = list(soak(process.pid, port, mails, begin + seconds))
            sent = samples[-1].mails
            rate = sent / (time.monotonic() - begin)
            tenth, last = samples[PORTIONS // 10 - 1].memory, samples[-1].memory
            slope = statistics.linear_regression(*zip(*samples[PORTIONS // 10 - 1 :], strict=True)).slope
            peak = memory(process.pid, "VmHWM")
        log.seek(0)
        alarms = [line for line in log if "mqcore.watchdog" in line]
    figures = f"{rate:11,.0f} {tenth / 2**20:19.2f} {last / 2**20:15.2f} {peak / 2**20:10.2f} {1000 * slope:28.0f}"
    print(f"{sink.__name__:8} {sent:9,} {figures} {len(alarms):8}", flush=True)
    for line in alarms:
        print(f"    {line}", end="", flush=True)
    return len(alarms)


def soak(pid: int, port: int, mails: int, end: float) -> Iterator[Sample]:
    """Send the mails, in portions, and more until the end."""
    portion = 0
    while portion < PORTIONS or time.monotonic() < end:
        portion += 1
        command = ["smtp-source", "-d", "-s", str(CONNECTIONS), "-l", str(SIZE), "-m", str(mails // PORTIONS)]
        subprocess.run([*command, f"127.0.0.1:{port}"], check=True)
        yield Sample(portion * (mails // PORTIONS), memory(pid, "VmRSS"))


@contextlib.contextmanager
def busy(count: int) -> Iterator[None]:
    """So many processes take all the time that they get."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for other in others:
            other.kill()
            other.wait()


@contextlib.contextmanager
def scraped(path: str) -> Iterator[None]:
    """Each second, by somebody else."""
    stop = threading.Event()

    def scrape() -> None:
        while not stop.wait(1):
            with socket.socket(socket.AF_UNIX) as client:
                client.connect(path)
                client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
                while client.recv(1 << 16):
                    pass

    patience = time.monotonic() + 60
    while not Path(path).exists():  # on a machine so busy that the server is still starting
        if time.monotonic() > patience:
            sys.exit(f"there are no metrics at {path}")
        time.sleep(0.1)
    scraping = threading.Thread(target=scrape)
    scraping.start()
    try:
        yield
    finally:
        stop.set()
        scraping.join()


def memory(pid: int, kind: str) -> int:
    """In bytes."""
    (line,) = (line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith(f"{kind}:"))
    return int(line.split()[1]) * 1024


@contextlib.contextmanager
def null() -> Iterator[str]:
    """Mails are dropped."""
    yield "null:"


@contextlib.contextmanager
def maildir() -> Iterator[str]:
    """Mails are deleted as they arrive."""
    with tempfile.TemporaryDirectory() as folder:
        new = Path(folder, "in", "new")
        new.mkdir(parents=True)
        stop = threading.Event()
        reader = threading.Thread(target=delete_all, args=(new, stop))
        reader.start()
        try:
            yield f"maildir:{folder}/in"
        finally:
            stop.set()
            reader.join()


def delete_all(folder: Path, stop: threading.Event) -> None:
    """Until the end."""
    while not stop.wait(0.1):
        for file in folder.iterdir():
            file.unlink()


@contextlib.contextmanager
def server() -> Iterator[str]:
    """Mails are passed on."""
    with smtp_sink() as port:
        yield f"smtp://127.0.0.1:{port}"


if __name__ == "__main__":
    main()
