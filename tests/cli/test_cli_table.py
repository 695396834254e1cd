"""The closing table: with rich and without, wide and narrow."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import pytest
from mail_tools import write_mbox

from mqcore.cli import tables
from mqcore.mail.report import Counts, Report
from mqcore.stats import HookStats


def report(*rows):
    zero = dict.fromkeys(HookStats._fields, 0)
    hooks = tuple(HookStats(**(zero | {"plugin": plugin, "hook": hook, "calls": 1_234})) for plugin, hook in rows)
    counts = Counts(read=1_000, continued=990, rejected=7, discarded=3)
    return Report(counts, seconds=2.0, hooks=hooks, refusals=Counter({("rcptto", 550): 5, ("message", 450): 2}))


LONG = "10-greylisting-by-the-network-of-the-client"


@pytest.mark.parametrize("has_rich", [True, False])
@pytest.mark.parametrize("width", [80, 160])
def test_no_name_is_cut(capsys, monkeypatch, has_rich, width):
    """So that no two rows look alike."""
    monkeypatch.setattr(tables, "HAS_RICH", has_rich)
    monkeypatch.setattr(tables, "WIDE", width)
    rows = [(f"{LONG}-{which}", hook) for which in "ab" for hook in ("mq_smtp_in_message", "mq_smtp_in_rcptto")]
    tables.print_report(report(*rows))
    out = capsys.readouterr().out
    lines = out.splitlines()
    if has_rich:
        assert max(map(len, lines)) <= width
    assert "\u2026" not in out
    begin = next(number for number, line in enumerate(lines) if line.split()[:1] == ["plugin"])
    calls_at = next(line.index("calls") for line in lines if "calls" in line)
    names = "".join("".join(line[:calls_at].split()) for line in lines[begin + 1 : -1] if "calls" not in line)
    for which in "ab":
        for hook in ("mq_smtp_in_message", "mq_smtp_in_rcptto"):
            assert names.count(f"{LONG}-{which}{hook}") == 1
    assert out.count("1,234") == 4


@pytest.mark.parametrize("has_rich", [True, False])
def test_what_became_of_the_mails(capsys, monkeypatch, has_rich):
    monkeypatch.setattr(tables, "HAS_RICH", has_rich)
    tables.print_report(report(("10-[red]x", "mq_smtp_in_message")))
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines() if line.strip()]
    assert lines[:6] == [
        "1,000 mails read", "990 stored", "7 rejected, by a plugin or by the next server", "3 discarded, as a plugin wanted",
        "2 refused with 450 at message", "5 refused with 550 at rcptto",
    ]
    (row,) = [line for line in lines if line.startswith("10-[red]x")]
    assert row.split()[1:4] == ["1,234", "0", "0"]
    assert lines[-1] == "2.00 s, 500 mails a second"


def test_where_rich_is_not_installed(tmp_path):
    box = write_mbox(tmp_path / "box", 3)
    program = "import sys; sys.modules['rich'] = None; from mqcore.cli import main; sys.exit(main())"
    result = subprocess.run(
        [sys.executable, "-P", "-c", f"import sys; sys.path[:] = {sys.path!r}; {program}", "run", "--from", f"mbox:{box}",
         "--to", "null:"], capture_output=True, text=True, timeout=60,
    )
    assert result.returncode == 0
    assert [" ".join(line.split()) for line in result.stdout.splitlines()[:2]] == ["3 mails read", "3 stored"]
