"""Mail goes out to servers that others wrote: taken once, as it is, and what they refuse is known."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from cli_tools import serve
from mail_tools import counted, move, read_maildir
from partner_servers import Postfix
from smtp_tools import certificate

FROM_LINE = b"From a@sender.example Sun Nov 29 08:00:00 2026\n"
HEAD = b"From: a@sender.example\nTo: b@example.org\nSubject: %d\nDate: Sun, 29 Nov 2026 08:00:00 +0000\n" \
    b"Message-Id: <%d@sender.example>\n\n"  # fmt: skip
BODY = ".\n..\n.leading\nkäse\n".encode()
PLUGIN = "def mq_smtp_in_message(context, message):\n    message.recipients = {!r}\n"


@pytest.fixture
def mbox(tmp_path: Path) -> Path:
    path = tmp_path / "mbox"
    path.write_bytes(b"\n".join(FROM_LINE + HEAD % (number, number) + BODY for number in range(20)) + b"\n")
    return path


def recipients(folder: Path, *addresses: str) -> tuple[object, ...]:
    (folder / "plugins").mkdir()
    (folder / "plugins" / "10-to.py").write_text(PLUGIN.format(list(addresses)))
    return ("--plugins", folder / "plugins")


@pytest.mark.parametrize("tls", ["none", "may", "require", "verify"])
def test_postfix_takes_all(tmp_path, monkeypatch, mbox, tls):
    options = recipients(tmp_path, "one@example.org", "two@example.org")
    key = tmp_path / "key.pem"
    key.write_bytes(Path(certificate().file).read_bytes())
    key.chmod(0o600)
    settings = {} if tls == "none" else {"smtpd_tls_chain_files": str(key), "smtpd_tls_security_level": "may"}
    if tls == "verify":
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate().authority))
    with (
        serve("--to", f"maildir:{tmp_path}/in") as mailboxes,
        Postfix(
            tmp_path / "postfix", relayhost=f"[127.0.0.1]:{mailboxes.port}", smtpd_tls_loglevel="1", **settings
        ) as postfix,
    ):
        figures = move(f"mbox:{mbox}", f"smtp://127.0.0.1:{postfix.port}", "--tls-out", tls, *options)
        postfix.wait_until_sent(40)
        log = postfix.log
    assert counted(figures) == {"continued": 20}
    assert ("TLS connection established" in log) == (tls != "none")
    mails = read_maildir(tmp_path / "in")
    assert len(mails) == 40 and all(mail.replace(b"\r\n", b"\n").endswith(BODY) for mail in mails)
    numbers = sorted(int(re.search(rb"^Subject: (\d+)", mail, re.MULTILINE)[1]) for mail in mails)
    assert numbers == sorted([*range(20)] * 2)
    assert move(f"mbox:{mbox}", f"smtp://127.0.0.1:{postfix.port}", *options)["messages"]["present"] == 20  # nothing left to do


def test_what_postfix_refuses_is_known(tmp_path, mbox):
    """One of two may not be sent to there."""
    options = recipients(tmp_path, "one@example.org", "nobody@example.org")
    settings = {
        "smtpd_recipient_restrictions": "check_recipient_access inline:{ nobody@example.org=REJECT }, permit_mynetworks",
        "default_transport": "discard:",
    }
    with Postfix(tmp_path / "postfix", **settings) as postfix:
        figures = move(f"mbox:{mbox}", f"smtp://127.0.0.1:{postfix.port}", "--failed", f"maildir:{tmp_path}/failed", *options,
                       code=1)
        postfix.wait_for(r"status=sent", 20)
    assert counted(figures) == {"rejected": 20}, figures
    assert len(read_maildir(tmp_path / "failed")) == 20
    reasons = (tmp_path / "failed" / "mqcore.reasons.jsonl").read_text()
    assert reasons.count("nobody@example.org") >= 20 and "5.7.1" in reasons
