"""Many mails, and a big one: memory stays flat."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from mail_tools import counted, move, start, write_mbox, write_plugin

pytestmark = pytest.mark.slow

SOME_HELD = """
    def mq_smtp_in_message(context, message):
        if len(message.mime) % 3:
            context.start_timer(0.001, context.continue_, message)
            return True
    """


# A small process of its own: Linux counts as a child's peak what its parent had, as whose copy it began.
RUN_AND_PRINT_PEAK = """
import os, sys
_, status, usage = os.wait4(os.posix_spawn(sys.argv[1], sys.argv[1:], os.environ), 0)
print(usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024))
sys.exit(os.waitstatus_to_exitcode(status))
"""


def peak(*arguments: Any) -> int:
    """The most memory that the command had, in bytes."""
    with start("run", *arguments, "--json", under=(sys.executable, "-S", "-c", RUN_AND_PRINT_PEAK)) as process:
        out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    return int(out.splitlines()[-1])


def test_memory_does_not_grow_with_the_number_of_mails(tmp_path):
    """From mbox to Maildir, which sorts what plugins let overtake, and back: the same file."""
    write_plugin(tmp_path / "plugins", "10-hold", SOME_HELD)

    def move_all(mbox: Path) -> int:
        used = peak("--from", f"mbox:{mbox}", "--to", f"maildir:{mbox}.out", "--plugins", tmp_path / "plugins")
        assert counted(move(f"maildir:{mbox}.out", f"mbox:{mbox}.back")) == {"continued": mbox_length(mbox)}
        assert Path(f"{mbox}.back").read_bytes() == mbox.read_bytes()
        return used

    few = move_all(write_mbox(tmp_path / "few", 5_000))
    many = move_all(write_mbox(tmp_path / "many", 100_000))
    assert many < few + 8_000_000


def mbox_length(mbox: Path) -> int:
    return mbox.read_bytes().count(b"\nMessage-ID: ")


def test_a_mail_of_200_megabytes(tmp_path):
    mbox, line = tmp_path / "mbox", b"This is a line of the mail of 200 megabytes.\n"
    with mbox.open("wb") as file:
        for subject in (b"before", b"big", b"after"):
            file.write(b"From a@example.org Tue Nov 24 05:31:47 2026\nSubject: " + subject + b"\n\n")
            for _ in range(200 if subject == b"big" else 1):
                file.write(line * (1_000_000 // len(line)))
            file.write(b"\n")
    size = mbox.stat().st_size
    used = peak("--from", f"mbox:{mbox}", "--to", f"maildir:{tmp_path}/maildir")
    assert used < 3 * size
    peak("--from", f"maildir:{tmp_path}/maildir", "--to", f"mbox:{tmp_path}/back")
    assert (tmp_path / "back").read_bytes() == mbox.read_bytes()
