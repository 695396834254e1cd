"""Whatever bytes a client sends, in whatever pieces: replies of SMTP or LMTP, within limits, and the same for every split.

The stored inputs in `corpus/` are what attackers send, and what was found by fuzzing; each is tried whole and byte by
byte. The rest is made up, of pieces that clients do send.
"""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import pytest
from effort import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from smtp_tools import EHLO, OPEN, converse

from mqcore.smtp.events import Event, MailFrom, Message, RcptTo
from mqcore.smtp.syntax import is_safe, parse_from, parse_to

CORPUS = sorted((Path(__file__).parent / "corpus").glob("*.smtp"))
REPLIES = re.compile(rb"(?:[2345]\d\d[ -][ -~]*\r\n)*")
LIMITS = {"max_message": 300, "max_line": 120, "max_recipients": 3, "max_errors": 8}
MODES: list[dict[str, Any]] = [
    LIMITS,
    {"auth": True, "auth_without_tls": True},
    {"auth": True, "secure": True},
    {"lmtp": True, **LIMITS},
    {"lenient": True, "lmtp": True, **LIMITS},
]

WORDS = st.sampled_from(
    [
        *(b"EHLO x", b"HELO x", b"LHLO x", b"MAIL FROM:<a@b>", b"MAIL FROM:<> SIZE=9 BODY=8BITMIME SMTPUTF8", b"RCPT TO:<c@d>"),
        *(b"RCPT TO:<\xc3\xa9@d>", b"DATA", b"RSET", b"NOOP", b"VRFY", b"AUTH PLAIN", b"AUTH LOGIN", b"AGEAYg==", b"*"),
        *(b"QUIT", b"GET / HTTP/1.1", b".", b"..", b".a", b"\r", b"\n", b"\0", b"\xff", b"x" * 70, b"Subject: x", b"", b" "),
    ]
)
ENDS = st.sampled_from([b"\r\n"] * 8 + [b"\n", b"\r", b"", b"\r\n.\r\n"])
SCRIPTS = st.lists(st.one_of(st.tuples(WORDS, ENDS).map(b"".join), st.binary(max_size=20)), max_size=40).map(b"".join)
OPENINGS = st.sampled_from([b"", EHLO, OPEN, OPEN.replace(b"EHLO", b"LHLO")])


def check(data: bytes, pieces: list[bytes], mode: dict[str, Any]) -> list[Event]:
    events, out, closed = converse([data], **mode)
    assert converse(pieces, **mode) == (events, out, closed)
    assert REPLIES.fullmatch(out), out
    accepted = recipients = 0
    for event in events:
        recipients = 0 if isinstance(event, MailFrom) else recipients + isinstance(event, RcptTo)
        accepted += isinstance(event, Message) and (recipients if mode.get("lmtp") else 1)
        if isinstance(event, Message):
            assert event.mime.count(b"\n") == event.mime.count(b"\r") == event.mime.count(b"\r\n")
            # A line end may have come as LF.
            assert len(event.mime) <= mode.get("max_message", 1 << 30) * (2 if mode.get("lenient") else 1)
            assert event.mime.endswith(b"\r\n") or not event.mime
        elif isinstance(event, MailFrom | RcptTo):
            assert mode.get("lenient") or len(event.address.encode()) <= 254
            assert event.address == "" or is_safe(event.address, raw=mode.get("lenient", False))
    assert out.count(b"250 2.6.0 ") == accepted
    return events


@pytest.mark.parametrize("mode", MODES, ids=["small limits", "passwords in the clear", "TLS", "LMTP", "lenient"])
@pytest.mark.parametrize("file", CORPUS, ids=lambda file: file.stem)
def test_the_stored_inputs(file, mode):
    data = file.read_bytes()
    events = check(data, [data[at : at + 1] for at in range(len(data))], mode)
    if not mode.get("lenient"):
        evil = [event.mime for event in events if isinstance(event, Message) and b"evil" in event.mime]
        assert all(b"\0" in mime for mime in evil)  # which is sent to no server that could take it for anything else
    assert MailFrom("evil@example.org") not in events


def test_there_are_stored_inputs():
    assert len(CORPUS) > 20


@settings(max_examples=examples(300), deadline=None)
@given(OPENINGS, SCRIPTS, st.lists(st.integers(0, 600), max_size=6), st.sampled_from(MODES))
def test_made_up_inputs(opening, script, cuts, mode):
    data = opening + script
    places = [0, *sorted(cuts), len(data)]
    check(data, [data[start:end] for start, end in itertools.pairwise(places)], mode)


@settings(max_examples=examples(300), deadline=None)
@given(st.lists(st.sampled_from([b"\r\n", b"\r", b"\n", b".", b"..", b"a", b"\0"]), max_size=30).map(b"".join))
def test_only_the_true_end_ends_a_message(text):
    """The message that is taken, made ready for SMTP again, is what was sent; and nothing behind its end is part of it."""
    events, _, _ = converse([OPEN + text + b"\r\n.\r\nNOOP\r\n"])
    for event in events:
        if isinstance(event, Message):
            stuffed = (b"\r\n" + event.mime).replace(b"\r\n.", b"\r\n..")[2:]
            sent = text + b"\r\n"
            assert sent.startswith(stuffed) or b"\r\n." in b"\r\n" + sent
            assert b"\r\n.\r\n" not in b"\r\n" + stuffed


ADDRESSES = st.lists(st.sampled_from([*"aZ9.@-_+=\"<>/", "x" * 120]), max_size=9).map("".join)


@settings(max_examples=examples(1000), deadline=None)
@given(st.sampled_from(["", "<", " <", "<<"]), ADDRESSES, st.sampled_from(["", ">", ">>"]))
def test_an_address_is_what_the_grammar_says(before, address, after):
    """Most are taken without the regular expressions that say what an address is."""
    argument = before + address + after
    sender, recipient = parse_from(f"FROM:{argument}"), parse_to(f"TO:{argument}")
    expected: list[Event] = [MailFrom(sender[1] or "")] if sender and len(sender[1] or "") <= 254 else []
    assert converse([EHLO + f"MAIL FROM:{argument}\r\n".encode()])[0] == expected
    expected = [RcptTo(recipient[1])] if recipient and len(recipient[1]) <= 254 else []
    assert converse([EHLO + f"MAIL FROM:<>\r\nRCPT TO:{argument}\r\n".encode()])[0] == [MailFrom(""), *expected]
