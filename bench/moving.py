"""Moving mail by the command, and by programs that do the same: each run is a process of its own."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import movers
import peak
from subjects import PASSES_ON

BODY = b"\n\n" + b"This is one of the lines of a mail: it is as long as lines of mails are.\n" * 12
SIZE = 1_000
"""So many bytes are in a mail."""


def write_mbox(path: Path, count: int) -> Path:
    """An mbox of so many mails, each of its own."""
    with path.open("wb") as file:
        for number in range(count):
            head = b"From: sender@example.org\nMessage-ID: <%d@example.org>\nSubject: " % number
            mail = head.ljust(SIZE - len(BODY), b".") + BODY
            file.write(b"From sender@example.org Tue Nov 24 05:31:47 2026\n%b\n" % mail)
    return path


def write_plugins(folder: Path, count: int) -> Path:
    """A folder of so many plugins, which pass every mail on."""
    folder.mkdir()
    for number in range(count):
        (folder / f"{number:04}-plugin.py").write_text(PASSES_ON)
    return folder


class Moving:
    """Moves the mails of an mbox through a folder of plugins: to a new Maildir in `folder`, or to null: if there is none."""

    def __init__(self, mbox: Path, plugins: Path, folder: Path | None) -> None:
        """Maildirs stay until somebody deletes `folder`: some file systems are slow for a while after files were deleted."""
        self.mbox = mbox
        self.plugins = plugins
        self.folder = folder
        self.numbers = itertools.count()

    def new_sink(self) -> str:
        """Where the next run moves them."""
        return "null:" if self.folder is None else f"{self.folder}/{self.mbox.name}-{next(self.numbers)}"

    def command(self, way: str, sink: str) -> list[str]:
        """The command line."""
        if way != "mqcore":
            return [sys.executable, movers.__file__, way, str(self.mbox), sink, str(self.plugins)]
        place = sink if sink == "null:" else f"maildir:{sink}"
        options = ("--from", f"mbox:{self.mbox}", "--to", place, "--plugins", str(self.plugins), "--json")
        return [sys.executable, "-P", "-m", "mqcore", "run", *options]

    def run(self, way: str) -> str:
        """Move them; where they are now."""
        sink = self.new_sink()
        subprocess.run(self.command(way, sink), check=True, stdout=subprocess.DEVNULL, env=environment())
        return sink

    def peak(self) -> int:
        """Let mqcore move them; the most memory that it had."""
        return peak.measure_apart(self.command("mqcore", self.new_sink()), environment())


def environment() -> dict[str, str]:
    """What this process finds, another will find."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
