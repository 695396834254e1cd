"""An hour's mail, as fast as it goes: whether the memory of a server grows with what has passed through it.

    pip install '.[bench,smtp]' && apt-get install postfix
    python bench/soak.py [--mails N]

Postfix's smtp-source sends mails of 1 KB over 16 connections, by default 360,000, which are 100 a second for an hour, to
`mqcore run` with each kind of sink in turn: null:, a Maildir whose files are deleted as they arrive, and a server. Resident
memory is read twenty times on the way. What it is after a tenth of the mails is compared with what it is after all, and the
growth for each 1,000 mails is the slope of a line through what was read from then on.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from servers import mqcore, smtp_sink

CONNECTIONS = 16
SIZE = 1024
PORTIONS = 20


class Sample(NamedTuple):
    """What was read when so many mails had passed."""

    mails: int
    memory: int


def main() -> None:
    """Run with each sink, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mails", type=int, default=360_000)
    mails = parser.parse_args().mails
    print("sink      mails     mails/s   MiB after a tenth   MiB after all   peak MiB   bytes for each 1,000 mails")
    for sink in (null, maildir, server):
        with sink() as place, mqcore("--to", place) as (process, port):
            begin = time.perf_counter()
            samples = list(soak(process.pid, port, mails))
            rate = mails / (time.perf_counter() - begin)
            tenth, last = samples[PORTIONS // 10 - 1].memory, samples[-1].memory
            slope = statistics.linear_regression(*zip(*samples[PORTIONS // 10 - 1 :], strict=True)).slope
            figures = f"{rate:11,.0f} {tenth / 2**20:19.2f} {last / 2**20:15.2f} {memory(process.pid, 'VmHWM') / 2**20:10.2f}"
            print(f"{sink.__name__:8} {mails:7,} {figures} {1000 * slope:28.0f}", flush=True)


def soak(pid: int, port: int, mails: int) -> Iterator[Sample]:
    """Send the mails, in portions."""
    for portion in range(1, PORTIONS + 1):
        command = ["smtp-source", "-d", "-s", str(CONNECTIONS), "-l", str(SIZE), "-m", str(mails // PORTIONS)]
        subprocess.run([*command, f"127.0.0.1:{port}"], check=True)
        yield Sample(portion * (mails // PORTIONS), memory(pid, "VmRSS"))


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
