"""`mqcore try`: in this process, as it starts nothing and writes nothing."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mqcore.cli import main
from mqcore.testing.stages import HOOKS

FILES = {
    "10-tag.py": "def mq_smtp_in_message(context, message):\n    message.headers.add('X-Tag', '1')\n",
    "20-wait.py": "def mq_smtp_in_message(context, message):\n"
    "    context.start_timer(0.05, context.continue_, message)\n    return True\n",
    "30-no.py": "import asyncio\nasync def mq_smtp_in_message(context, message):\n    await asyncio.sleep(0.02)\n"
    "    if 'no' in message.headers.get('Subject', ''):\n        message.reject(550, '5.7.1 no')\n",
    "40-never.py": "def mq_smtp_in_message(context, message):\n    print('called')\n"
    "def mq_smtp_in_rcptto(context, message, address):\n    if address.startswith('nobody'):\n"
    "        message.reject(550, '5.1.1 nobody')\n",
}
NO, YES = b"Subject: no\r\n\r\nbody\r\n", b"Subject: yes\r\n\r\nbody\r\n"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plugins").mkdir()
    for name, text in FILES.items():
        (tmp_path / "plugins" / name).write_text(text)
    (tmp_path / "no.eml").write_bytes(NO)
    (tmp_path / "yes.eml").write_bytes(YES)
    return tmp_path


def run(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, list[str], str]:
    code = main(["try", *arguments])
    out, err = capfd.readouterr()
    return code, re.sub(r"\b\d+ us", "N us", out).splitlines(), err


def test_step_by_step(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before = sorted(path for path in folder.rglob("*") if "__pycache__" not in path.parts)
    code, lines, _ = run(capfd, "plugins", "no.eml", "--to-address", "bob@example.org")
    assert code == 1
    assert lines == [
        "mq_smtp_in_message  for bob@example.org",
        "  10-tag   CONTINUE  N us" + " " * (len(lines[1]) - len("  10-tag   CONTINUE  N us+X-Tag: 1")) + "+X-Tag: 1",
        "  20-wait  CONTINUE  held 50 ms (timer, 20-wait.py:1)",
        "  30-no    COMPLETE  held 20 ms (coroutine, 30-no.py:2)  rejected 550 5.7.1 no",
        "           not called: 40-never",
        "reply 550 5.7.1 no",
    ]
    assert sorted(path for path in folder.rglob("*") if "__pycache__" not in path.parts) == before


def test_what_is_accepted(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, lines, err = run(capfd, "plugins", "yes.eml", "--diff", "--clock", "real")
    assert code == 0 and "called" in err
    assert "reply 250 2.0.0 accepted" in lines and "+X-Tag: 1" in lines


def test_all_stages(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, lines, _ = run(capfd, "plugins", "yes.eml", "--stage", "all", "--to-address", "nobody@example.org")
    assert code == 1
    assert lines[0] == "mq_smtp_in_rcptto  for nobody@example.org" and lines[-1] == "reply 550 5.1.1 nobody"
    code, lines, _ = run(capfd, "plugins", "yes.eml", "--stage", "all")
    assert code == 0 and [line for line in lines if line.startswith("mq_")] == [
        "mq_smtp_in_rcptto  for recipient@example.net", "mq_smtp_in_message  for recipient@example.net",
    ]  # fmt: skip


LOGIN = """
def mq_smtp_in_secure(context, message):
    assert message.connection.tls
def mq_smtp_in_authenticate(context, message, login, password):
    if login == "broken":
        raise OSError("no database")
    message.connection.authenticated = (login, password) == ("alice", "a:b")
def mq_smtp_in_mailfrom(context, message, address):
    if not message.connection.authenticated:
        message.reject(530, "5.7.0 log in first")
def mq_smtp_in_close(context, message):
    message.json["closed"] = True
def mq_smtp_out_data(context, message):
    message.headers.add("X-Out", "1")
def mq_smtp_out_sent(context, message):
    (result,) = message.json["results"]
    assert (result["recipient"], result["state"], result["code"]) == ("recipient@example.net", "message", 250)
    1 / 0
"""


@pytest.mark.parametrize(
    ("arguments", "code", "reply"),
    [
        (["mq_smtp_in_secure"], 0, "250 2.0.0 accepted"),
        (["mq_smtp_in_authenticate"], 1, "535 5.7.8 login or password is wrong"),
        (["mq_smtp_in_authenticate", "--login", "alice:a:b"], 0, "235 2.7.0 you are logged in"),
        (["mq_smtp_in_authenticate", "--login", "broken:"], 1, "454 4.7.0 logins cannot be checked now; try again later"),
        (["mq_smtp_in_close"], 0, "none: the connection is closed"),
        (["mq_smtp_out_data"], 0, "250 2.0.0 accepted"),
        (["mq_smtp_out_sent"], 1, "none: the client was told already"),
        (["all"], 1, "530 5.7.0 log in first"),
        (["all", "--login", "alice:a:b"], 0, "250 2.0.0 accepted"),
        (["all", "--login", "alice:x"], 1, "535 5.7.8 login or password is wrong"),
    ],
)
def test_each_hook(
    folder: Path, capfd: pytest.CaptureFixture[str], arguments: list[str], code: int, reply: str
) -> None:
    (folder / "10-login.py").write_text(LOGIN)
    ended, lines, _ = run(capfd, "10-login.py", "yes.eml", "--stage", *arguments)
    assert (ended, lines[-1]) == (code, f"reply {reply}"), lines
    if arguments[0] == "all" and code == 0:
        hooks = ["mq_smtp_in_secure", "mq_smtp_in_authenticate  for alice", "mq_smtp_in_mailfrom  for sender@example.org"]
        assert [line for line in lines if line.startswith("mq_")] == hooks


SENDER = """
def mq_smtp_in_rcptto(context, message, address):
    if (message.envelope, message.recipient) == ("alice@example.org", address):
        message.reject(550, "5.7.1 not from you")
def mq_smtp_in_data(context, message, mime):
    if (message.envelope, message.recipients) == ("bob@example.org", ["recipient@example.net"]):
        message.reject(550, "5.7.1 not this")
"""


@pytest.mark.parametrize(
    ("stage", "sender", "reply"),
    [
        ("all", "alice", "550 5.7.1 not from you"),
        ("mq_smtp_in_rcptto", "alice", "550 5.7.1 not from you"),
        ("all", "bob", "550 5.7.1 not this"),
        ("mq_smtp_in_data", "bob", "550 5.7.1 not this"),
        ("all", "carol", "250 2.0.0 accepted"),
    ],
)
def test_the_sender_is_known_from_mail_on_without_a_hook_for_it(
    folder: Path, capfd: pytest.CaptureFixture[str], stage: str, sender: str, reply: str
) -> None:
    (folder / "10-sender.py").write_text(SENDER)
    _, lines, _ = run(capfd, "10-sender.py", "yes.eml", "--stage", stage, "--from-address", f"{sender}@example.org")
    assert lines[-1] == f"reply {reply}"


def test_json(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, lines, _ = run(capfd, "plugins", "no.eml", "--json")
    (row,) = map(json.loads, lines)
    assert code == 1 and row["reply"] == "550 5.7.1 no" and row["accepted"] is False
    assert [(call["plugin"], call["held"]) for call in row["stages"][0]["calls"]] == [
        ("10-tag", None), ("20-wait", 0.05), ("30-no", 0.02),
    ]  # fmt: skip


def test_mailboxes(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    mbox = b"From a@example.org Thu Jan  1 00:00:00 2026\nSubject: no\n\n>From here\n\n" * 2
    (folder / "box").write_bytes(mbox + mbox.replace(b"no", b"yes", 1))
    for name in ("cur", "new", "tmp"):
        (folder / "maildir" / name).mkdir(parents=True)
    (folder / "maildir" / "new" / "1.M1.x").write_bytes(YES)
    (folder / "maildir" / "cur" / "2.M1.x:2,S").write_bytes(YES)
    code, lines, _ = run(capfd, "plugins", "box")
    assert code == 1 and [line.split()[2] for line in lines[:4]] == ["550", "550", "250", "550"]
    assert lines[5] == "1 accepted, 3 rejected or failed" and lines[6].split()[:3] == ["hook", "plugin", "calls"]
    assert lines[7].split()[:4] == ["mq_smtp_in_message", "10-tag", "4", "0"]
    code, lines, _ = run(capfd, "plugins", "maildir", "--repeat", "3")
    assert code == 0 and [line.split()[1] for line in lines[:2]] == ["1.M1.x", "2.M1.x:2,S"]
    assert lines[3] == "6 accepted, 0 rejected or failed"


LATER = """
import asyncio
kept = []
def later(context, message):
    context.continue_(message)
async def ask(context, message):
    await asyncio.sleep(2)
    raise OSError("no database")
def tick(context):
    context.start_timer(1, tick, context)
def mq_smtp_in_message(context, message):
    match message.headers["Subject"]:
        case "no line":
            context.start_timer(1, context.continue_, message)
        case "line":
            context.start_timer(1, later, context, message)
        case "task":
            kept.append(asyncio.get_running_loop().create_task(ask(context, message)))
        case "coroutine":
            context.start_timer(0, ask, context, message)
        case "asyncio":
            asyncio.get_running_loop().call_later(3600, lambda: 1 / 0)
        case "endless":
            tick(context)
"""
REFUSED = "does not hold: its step is over; a hook that has a message given back later returns mqcore.HOLD"


@pytest.mark.parametrize(
    ("subject", "words"),
    [
        ("no line", ["NotHeld: plugin 10-later gave back a message of mq_smtp_in_message", REFUSED, "(10-later.py:11)"]),
        ("line", [REFUSED, "(10-later.py:5)"]),
        ("task", ["OSError: no database (10-later.py:8)"]),
        ("coroutine", ["ask() in ", "10-later.py:6 is a coroutine function"]),
        ("asyncio", ["ZeroDivisionError: division by zero (10-later.py:22)"]),
        ("endless", []),
        ("nothing", []),
    ],
)
def test_what_goes_wrong_afterwards(
    folder: Path, capfd: pytest.CaptureFixture[str], subject: str, words: list[str]
) -> None:
    (folder / "10-later.py").write_text(LATER)
    (folder / "mail.eml").write_text(f"Subject: {subject}\n\n")
    code, lines, _ = run(capfd, "10-later.py", "mail.eml")
    assert lines[2] == "reply 250 2.0.0 accepted"
    if words:
        assert code == 1 and lines[3] == "afterwards" and len(lines) == 5
        assert not [word for word in ["  10-later  ", *words] if word not in lines[4]], lines[4]
    else:
        assert code == 0 and len(lines) == 3


def test_what_goes_wrong_afterwards_with_many_mails(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (folder / "10-later.py").write_text(LATER)
    (folder / "box").write_bytes(b"From a@example.org Thu Jan  1 00:00:00 2026\nSubject: line\n\n" * 2)
    code, lines, _ = run(capfd, "10-later.py", "box")
    assert code == 1 and "2 accepted, 0 rejected or failed" in lines
    assert lines[-2] == "afterwards" and lines[-1].endswith(" (10-later.py:5), 2 times")
    code, lines, _ = run(capfd, "10-later.py", "box", "--json")
    (late,) = json.loads(lines[-1])["afterwards"]
    assert code == 1 and len(lines) == 3
    assert (late["plugin"], late["place"], late["times"]) == ("10-later", "10-later.py:5", 2)


def test_a_timer_that_comes_after_the_deadline(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (folder / "10-long.py").write_text(FILES["20-wait.py"].replace("0.05", "5000"))
    code, lines, _ = run(capfd, "10-long.py", "yes.eml")
    assert code == 1 and "FAIL      held 30 s (timer due in 5000 s, 10-long.py:1)" in lines[1]


def test_each_stage_is_told_when_it_is_over(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """What a plugin writes comes between the lines of the stages, where both are the same file."""
    (folder / "10-look.py").write_text(
        "import os\ndef mq_smtp_in_rcptto(context, message, address): pass\n"
        "def mq_smtp_in_message(context, message):\n"
        "    with open('seen', 'w') as seen: seen.write(open('out').read())\n"
    )
    with open("out", "w") as out:
        code = subprocess.run(
            [sys.executable, "-m", "mqcore", "try", "10-look.py", "yes.eml", "--stage", "all"], stdout=out, timeout=60
        ).returncode
    assert code == 0
    seen = (folder / "seen").read_text().splitlines()
    assert len(seen) == 2 and seen[0].startswith("mq_smtp_in_rcptto ") and seen[1].startswith("  10-look  CONTINUE")


def test_hooks_of_an_own_program_are_not_run(
    folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    hooks = "[mqcore.HookSpec('mq_order'), mqcore.HookSpec('mq_rest')]"
    (folder / "hooks_of_try.py").write_text(f"import mqcore\nHOOKS = {hooks}\n")
    (folder / "10-own.py").write_text("def mq_order(context, message): raise OSError\n" + FILES["10-tag.py"])
    monkeypatch.syspath_prepend(str(folder))
    code, lines, err = run(capfd, "10-own.py", "yes.eml", "--hooks", "hooks_of_try:HOOKS")
    assert code == 0 and "10-own" in lines[1]
    assert "mq_order of 10-own is not run, as it is no stage of a mail; test it with the fixture mq" in err
    assert "mq_rest" not in err


def test_help_lists_the_stages(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(capfd, "--help")
    shown = capfd.readouterr().out
    assert all(f" {hook}" in shown for hook in HOOKS)


def test_exit_codes_of_mistakes(
    folder: Path, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    (folder / "50-bad.py").write_text("def mq_smtp_in_mesage(context, message): pass\n")
    assert run(capfd, "50-bad.py", "yes.eml")[0] == 3
    (folder / "60-raises.py").write_text('import json\ndef mq_smtp_in_message(context, message):\n    json.loads("x")\n')
    code, lines, _ = run(capfd, "60-raises.py", "yes.eml")
    assert code == 1 and "JSONDecodeError" in lines[1] and lines[1].endswith("(60-raises.py:3)")
    assert lines[-1].startswith("reply 451")
    assert 'json.loads("x")' in caplog.text and "_trace.pyx" not in caplog.text  # what is logged begins in the plugin
    (folder / "mqcore.toml").write_text("[plugins.10-block]\nblocked = 'x'\n")
    assert "10-block, and there is no plugin of that name; load it, or take its table away" in run(
        capfd, "plugins", "yes.eml", "--config", "mqcore.toml"
    )[2]
    with pytest.raises(SystemExit):
        run(capfd, "yes.eml", "plugins")
    assert "no Maildir: it has neither new/ nor cur/; the mail comes last, after the plugins" in capfd.readouterr().err
    mistakes = ["nothing.eml"], ["yes.eml", "--repeat", "0"], ["yes.eml", "--login", "x"]
    for arguments in (["yes.eml"], *(["plugins", *mistake] for mistake in mistakes)):
        with pytest.raises(SystemExit) as ended:
            run(capfd, *arguments)
        assert ended.value.code == 2


def test_a_stage_that_no_plugin_has(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for name in ("10-tag", "20-wait", "30-no", "40-never"):
        (folder / "plugins" / f"{name}.py").unlink()
    (folder / "plugins" / "10-a.py").write_text("def mq_smtp_in_mailfrom(context, message, address): pass\n")
    code, lines, err = run(capfd, "plugins", "no.eml")
    assert (code, lines[1]) == (0, "  no plugin has this hook")
    said = "mqcore: no plugin has mq_smtp_in_message; there is mq_smtp_in_mailfrom: give --stage all, or --stage HOOK\n"
    assert err == said
    assert run(capfd, "plugins", "--stage", "all", "no.eml")[2] == ""
