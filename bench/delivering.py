"""Receiving mails by SMTP and storing them in a Maildir: `mqcore run` beside Postfix's own delivery, and two programs in C.

    apt-get install postfix && pip install '.[bench]'
    python bench/delivering.py [--rounds N] [--mails N]

As root, as it starts a Postfix with folders of its own. smtp_load sends mails of 1 KB over 16 connections, 100 each, to one
server after the other, round after round; first with all files in memory, then on the disk that TMPDIR says.

*mqcore* says that it has a mail when it is on the disk in the Maildir; it has ten plugins. *mqcore, null:* is the same without
the Maildir. *Postfix* says so when a mail is on the disk in its queue; virtual(8) brings it to the Maildir from there, and the
clock runs until the last one is. *smtp-sink*, a part of Postfix, receives and keeps nothing; *bare system calls* is a program
that receives nothing and makes the calls that storing takes, for 16 mails at a time. The base is what these two take together.

Printed are mails a second, by the clock; the processor time of a mail in user code and in the system, of all processes of a
server (those that Postfix starts do not end meanwhile); and the ratio of their sum to the base, the median over the rounds,
with half the range of their middle half. Only the ratios mean anything where others use the machine.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from building import build_program
from postfixes import postfix
from servers import SMTP_SINK, free_port, running
from test_command import DISK, MEMORY
from test_smtp import CONNECTIONS, PLUGIN, SIZE, processor_time

MAIN = """\
virtual_mailbox_domains = example.org
virtual_mailbox_base = {home}
virtual_mailbox_maps = static:inbox/
virtual_uid_maps = static:65534
virtual_gid_maps = static:65534
max_idle = 1h
max_use = 1000000
"""
SERVICES = "127.0.0.1:{port} inet n - n - - smtpd\nvirtual unix - n n - - virtual\n"
SERVERS = ("mqcore", "mqcore, null:", "Postfix", "smtp-sink")
FLOOR = "bare system calls"
TICK = 1e9 / os.sysconf("SC_CLK_TCK")


class Cost(NamedTuple):
    """Of a mail, in ns."""

    clock: float
    user: float
    system: float

    @property
    def processor(self) -> float:
        return self.user + self.system


def split_time(pid: int) -> tuple[float, float]:
    """What a process and those that it started have taken in user code and in the system, in ns, by ticks of the clock."""
    pids = [str(pid), *Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    fields = [Path(f"/proc/{one}/stat").read_text().rpartition(")")[2].split() for one in pids]
    return sum(TICK * int(each[11]) for each in fields), sum(TICK * int(each[12]) for each in fields)


class Server:
    """Takes mails at a port, by this process and those that it starts. `new`: where they are in the end, if anywhere."""

    def __init__(self, port: int, pid: int, new: Path | None) -> None:
        self._port, self._pid, self._new = port, pid, new
        self._load = build_program("smtp_load")

    def measure(self, mails: int) -> Cost:
        there = self._count() + mails
        start, taken, (user, system) = time.perf_counter_ns(), processor_time(self._pid), split_time(self._pid)
        subprocess.run([self._load, *map(str, (self._port, CONNECTIONS, mails, 100, SIZE))], check=True)
        while self._new is not None and self._count() < there:
            time.sleep(0.01)
        clock, taken = time.perf_counter_ns() - start, processor_time(self._pid) - taken
        new_user, new_system = split_time(self._pid)
        # Ticks are too long for a round; what they say of its parts is told exactly by the other clock of the whole.
        of_user = (new_user - user) / max(TICK, new_user - user + new_system - system)
        return Cost(clock / mails, of_user * taken / mails, (1 - of_user) * taken / mails)

    def _count(self) -> int:
        return 0 if self._new is None or not self._new.exists() else len(os.listdir(self._new))


def serve(stack: contextlib.ExitStack, way: str, folder: Path) -> Server:
    """Start one, whose files are in that folder."""
    port = free_port()
    if way == "Postfix":
        home = folder / "postfix"
        services, main = SERVICES.format(port=port), MAIN.format(home=home)
        (home / "inbox").mkdir(parents=True)
        os.chown(home / "inbox", 65534, 65534)
        return Server(port, stack.enter_context(postfix(home, services, main)), home / "inbox" / "new")
    places = ("--from", f"smtp://127.0.0.1:{port}", "--plugins", str(folder / "plugins"))
    command = [sys.executable, "-P", "-m", "mqcore", "run", *places]
    commands = {
        "mqcore": [*command, "--to", f"maildir:{folder}/inbox"],
        "mqcore, null:": [*command, "--to", "null:"],
        "smtp-sink": [*SMTP_SINK, f"127.0.0.1:{port}", "1024"],
    }
    process = stack.enter_context(running(commands[way], port))
    return Server(port, process.pid, folder / "inbox" / "new" if way == "mqcore" else None)


def bare_calls(folder: Path) -> Callable[[int], Cost]:
    program = build_program("maildir_floor")

    def measure(mails: int) -> Cost:
        start = time.perf_counter_ns()
        command = [str(program), tempfile.mkdtemp(dir=folder), str(mails), str(CONNECTIONS), str(SIZE)]
        said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        return Cost((time.perf_counter_ns() - start) / mails, *map(float, said.split()))

    return measure


def compare(folder: Path, rounds: int, mails: int) -> dict[str, list[Cost]]:
    """What each way took of a mail, in each round."""
    folder.chmod(0o755)
    (folder / "plugins").mkdir()
    for number in range(10):
        (folder / "plugins" / f"{number}-plugin.py").write_text(PLUGIN)
    with contextlib.ExitStack() as stack:
        ways = {way: serve(stack, way, folder).measure for way in SERVERS} | {FLOOR: bare_calls(folder)}
        costs: dict[str, list[Cost]] = {way: [] for way in ways}
        for number in range(rounds + 1):
            for way, measure in ways.items():
                os.sync()
                cost = measure(mails)
                if number:  # the first round warms up
                    costs[way].append(cost)
    return costs


def main() -> None:
    """Measure, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--mails", type=int, default=1_600, help="in a round, for each")
    options = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("Postfix is started by root")
    for where, place in (("in memory", MEMORY), ("on disk", DISK)):
        with tempfile.TemporaryDirectory(prefix="mqcore-bench-", dir=place) as name:
            costs = compare(Path(name), options.rounds, options.mails)
        print(where)
        bases = [one.processor + other.processor for one, other in zip(costs["smtp-sink"], costs[FLOOR], strict=True)]
        for way, each in costs.items():
            ratios = (cost.processor / base for cost, base in zip(each, bases, strict=True))
            low, ratio, high = statistics.quantiles(ratios, n=4)
            clock, user, system = (statistics.median(part) for part in zip(*each, strict=True))
            took = f"{user / 1000:6.1f} us user {system / 1000:6.1f} us system"
            print(f"  {way:17} {1e9 / clock:7,.0f} mails/s {took} {ratio:6.2f} x base +- {(high - low) / 2:.2f}", flush=True)


if __name__ == "__main__":
    main()
