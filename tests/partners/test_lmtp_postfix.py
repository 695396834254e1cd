"""Postfix delivers to us by LMTP, as to a server of mailboxes, and knows of each recipient what became of his mail."""

from __future__ import annotations

import re
import shutil
import smtplib

import pytest
from cli_tools import serve
from mail_tools import counted, read_maildir, write_plugin
from partner_servers import Postfix

TEXT = b"From: a@sender.example\r\nTo: one@example.org\r\nSubject: hello\r\nMessage-Id: <1@sender.example>\r\n" \
    b"Date: Sun, 29 Nov 2026 08:00:00 +0000\r\n\r\n.\r\n..\r\nhello\r\n"  # fmt: skip
PLUGIN = """
def mq_smtp_in_rcptto(context, message, address):
    if address == "unknown@example.org":
        message.reject(550, "5.1.1 no such user")


def mq_smtp_in_message(context, message):
    name = message.recipient.partition("@")[0]
    if name == "full":
        message.reject(552, "5.2.2 the mailbox is full")
    if name == "later":
        message.reject(450, "4.2.0 come again")
    if name == "bug":
        raise ValueError("a bug")
"""


def statuses(log: str) -> dict[str, tuple[str, str]]:
    """Of each recipient: the status, and our words."""
    lines = re.findall(r"/lmtp\[.* to=<(\w+)@.*>.* status=(\w+) \((.*)\)", log)
    return {name: (status, said) for name, status, said in lines}


@pytest.mark.parametrize("way", ["unix", "inet"])
def test_each_recipient_has_a_status_of_its_own(way, tmp_path):
    write_plugin(tmp_path / "plugins", "10-judge", PLUGIN)
    options = ("--to", f"maildir:{tmp_path}/in", "--plugins", tmp_path / "plugins")
    (tmp_path / "run").mkdir()
    shutil.chown(tmp_path / "run", group="postfix")
    (tmp_path / "run").chmod(0o2750)  # so that the socket is of Postfix's group
    where = f"unix:{tmp_path}/run/lmtp" if way == "unix" else "//127.0.0.1:0"
    names = ("one", "full", "later", "unknown", "bug", "two")
    with serve(*options, source=f"lmtp:{where}") as server:
        next_hop = f"lmtp:unix:{tmp_path}/run/lmtp" if way == "unix" else f"lmtp:inet:127.0.0.1:{server.port}"
        with Postfix(tmp_path / "postfix", default_transport=next_hop) as postfix:
            with smtplib.SMTP("127.0.0.1", postfix.port, timeout=60) as client:
                client.sendmail("", [f"{name}@example.org" for name in names], TEXT)
            postfix.wait_for(r"/lmtp\[.*status=", len(names))
            told = statuses(postfix.log)
    expected = {"one": "sent", "two": "sent", "full": "bounced", "unknown": "bounced", "later": "deferred", "bug": "deferred"}
    assert {name: status for name, (status, _) in told.items()} == expected
    assert "250 2.6.0 stored as " in told["one"][1] and told["one"] != told["two"]
    assert "552 5.2.2 the mailbox is full" in told["full"][1] and "end of DATA" in told["full"][1]
    assert "550 5.1.1 no such user" in told["unknown"][1] and "RCPT TO" in told["unknown"][1]
    assert "450 4.2.0 come again" in told["later"][1] and "451 4.3.0" in told["bug"][1]
    mails = read_maildir(tmp_path / "in")
    assert len(mails) == 2 and all(mail.endswith(TEXT) for mail in mails)
    assert counted(server.figures) == {"continued": 2, "rejected": 2, "failed": 1}


def test_what_is_put_off_comes_again_for_that_recipient_only(tmp_path):
    write_plugin(
        tmp_path / "plugins",
        "10-once",
        """
        seen = set()

        def mq_smtp_in_message(context, message):
            if message.recipient == "later@example.org" and not seen:
                seen.add(1)
                message.reject(450, "4.2.0 come again")
        """,
    )
    with (
        serve("--to", f"maildir:{tmp_path}/in", "--plugins", tmp_path / "plugins", source="lmtp://127.0.0.1:0") as server,
        Postfix(
            tmp_path / "postfix",
            default_transport=f"lmtp:inet:127.0.0.1:{server.port}",
            minimal_backoff_time="1s",
            queue_run_delay="1s",
        ) as postfix,
    ):
        with smtplib.SMTP("127.0.0.1", postfix.port, timeout=60) as client:
            client.sendmail("a@sender.example", ["one@example.org", "later@example.org"], TEXT)
        postfix.wait_for(r"status=sent", 2, flush=True)
        postfix.wait_for(r": removed")
        assert len(re.findall(r"status=deferred", postfix.log)) == 1
    assert len(read_maildir(tmp_path / "in")) == 2
