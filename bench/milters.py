"""Plugins inside Postfix: the processor time that a milter takes for each mail, of mqcore and of others.

    pip install '.[bench]' pymilter && apt-get install postfix libmilter-dev        (libmilter-dev before pymilter)
    python bench/milters.py [--rounds N] [--mails N]

As root. A Postfix with folders of its own asks each milter in turn about as many mails, round after round, eight sessions at
once: one mail a session, and then as many mails as there are in few sessions. A mail has 15 fields and 8.8 kB. Each milter
sees the whole mail and puts a field on top; mqcore has ten plugins, of which nine look at the mail and pass it on. The *bare
uvloop* milter is the measure: see milter_servers.py. *no-reply* is what mqcore and the bare one do: the server need not wait
for an answer before the mail has ended.

A figure is the median over the rounds of the ratio to the bare one in the same round; its spread is half the range of their
middle half. Only the ratios mean anything where others use the machine.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import milter_servers
from building import HERE
from postfixes import postfix
from servers import free_port, running
from test_smtp import processor_time

LISTENS = "127.0.0.1:{port} inet n - n - - smtpd\n    -o smtpd_milters=inet:127.0.0.1:{milter}\n"
SESSIONS = 8
FIELDS = ("From: a@sender.example", "Date: Sun, 29 Nov 2026 08:00:00 +0000", "Message-Id: <1@sender.example>", "Subject: hello")
LINE = "This is one of the lines of a mail: it is as long as lines of mails are.\n"
MAIL = "".join(f"{field}\n" for field in (*FIELDS, *(f"X-Field-{n}: {'value ' * 8}" for n in range(11)))) + "\n" + LINE * 110
ADDS = """
def mq_smtp_in_message(context, message):
    message.headers.add("X-Filtered", "yes")
"""
LOOKS = """
def mq_smtp_in_message(context, message):
    return False
"""
BARE = "bare uvloop"
WAYS = (BARE, "mqcore", "libmilter", "libmilter, no-reply", "pymilter", "pymilter, no-reply")


def command_of(way: str, port: int, folder: Path) -> list[str]:
    """The milter, listening at that port."""
    if way == "mqcore":
        places = ("--from", f"milter://127.0.0.1:{port}", "--plugins", str(folder / "plugins"))
        return [sys.executable, "-P", "-m", "mqcore", "run", *places]
    if way.startswith("libmilter"):
        return [str(folder / "milter_floor"), str(port), *(("noreply",) if "no-reply" in way else ())]
    kind = {BARE: "uvloop", "pymilter": "pymilter"}.get(way, "pymilter-noreply")
    return [sys.executable, milter_servers.__file__, kind, str(port)]


def measure(port: int, pid: int, mails: int, text: Path, *, many: bool) -> float:
    """Microseconds of the processor for each mail."""
    begin = processor_time(pid)
    options = ["-s", str(SESSIONS), "-m", str(mails), "-F", str(text), *(("-d",) if many else ())]
    subprocess.run(["smtp-source", *options, "-f", "a@sender.example", "-t", "b@example.org", f"127.0.0.1:{port}"], check=True)
    return (processor_time(pid) - begin) / mails / 1000


def main() -> None:
    """Measure, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--mails", type=int, default=1_000, help="in a round, for each")
    options = parser.parse_args()
    if os.geteuid() != 0:
        parser.error("Postfix is started by root")
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as stack:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "plugins").mkdir()
        for number in range(10):
            (folder / "plugins" / f"{number}-plugin.py").write_text(LOOKS if number else ADDS)
        (folder / "mail").write_text(MAIL)
        sources = [str(HERE / "milter_floor.c"), "-o", str(folder / "milter_floor")]
        subprocess.run(["cc", "-O2", "-Wall", *sources, "-lmilter", "-lpthread"], check=True)
        milters = {way: free_port() for way in WAYS}
        pids = {
            way: stack.enter_context(running(command_of(way, port, folder), port)).pid for way, port in milters.items()
        }
        ports = {way: free_port() for way in milters}
        listens = "".join(LISTENS.format(port=ports[way], milter=milter) for way, milter in milters.items())
        stack.enter_context(postfix(folder / "postfix", listens))
        for many in (False, True):
            costs: dict[str, list[float]] = {way: [] for way in WAYS}
            for number in range(options.rounds + 1):
                for way in WAYS:
                    cost = measure(ports[way], pids[way], options.mails, folder / "mail", many=many)
                    if number:  # the first round warms up
                        costs[way].append(cost)
            print(f"{'many mails' if many else 'one mail'} a session")
            for way in WAYS:
                ratios = sorted(cost / base for cost, base in zip(costs[way], costs[BARE], strict=True))
                lower, middle, upper = statistics.quantiles(ratios, n=4)
                ratio = f"{middle:5.2f} x {BARE}, +- {(upper - lower) / 2:.2f}"
                print(f"  {way:20} {statistics.median(costs[way]):7,.0f} us {ratio}", flush=True)


if __name__ == "__main__":
    main()
