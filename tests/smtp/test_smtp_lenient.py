"""What is taken only behind a server that took it: addresses and parameters as Postfix reads them, and odd line ends."""

from __future__ import annotations

import re

import pytest
from effort import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from smtp_tools import EHLO, MAIL, OPEN, Talk, codes, converse

from mqcore.smtp.content import make_content, without_dots
from mqcore.smtp.events import MailFrom, Message, RcptTo
from mqcore.smtp.lenient import parse_path
from mqcore.smtp.syntax import is_safe

ODD = [
    (b"a@b.example", "a@b.example"),
    (b"   <a@b.example>", "a@b.example"),
    (b"\t< a@b.example >  ", "a@b.example"),
    (b"<a>", "a"),
    (b"a", "a"),
    (b"<a@b.example.>", "a@b.example"),
    (b"<<a@b.example>>", "a@b.example"),
    (b"<A B <a@b.example>>", "a@b.example"),
    (b"a@b.example>", "a@b.example"),
    (b"<a@b.example (a (nested) comment)>", "a@b.example"),
    (b"<@relay.example:a>", "a"),
    (b'<"a".b@c.example>', '"a.b"@c.example'),
    (b'<a."b\\"c"@d.example>', '"a.b\\"c"@d.example'),
    (b"<a@b@c.example>", '"a@b"@c.example'),
    (b"<a\\@b@c.example>", '"a@b"@c.example'),
    (b"<a:b@c.example>", '"a:b"@c.example'),
    (b"<@c.example>", '""@c.example'),
    (b"<" + b"a" * 300 + b"@b.example>", "a" * 300 + "@b.example"),
    ("<é@b.example>".encode(), "é@b.example"),
    (b"<\xe9@b.example>", "\udce9@b.example"),
]
NONE = [b"<a", b'<"a@b>', b"<a b@c>", b"<a@b,c@d>", b"<a;b>", b"<a@b>c", b"<a@>", b"<a@b@>", b"<a@b(c>", b"<a@b\x01>", b"<a>b>"]


@pytest.mark.parametrize(("given", "address"), ODD)
def test_odd_addresses(given, address):
    """Each got 250 from Postfix, and was refused for good by a filter behind it."""
    commands = b"MAIL FROM:%b\r\n" % given, b"MAIL FROM:<>\r\nRCPT TO:%b\r\n" % given
    events = MailFrom(address), RcptTo(address)
    for command, event in zip(commands, events, strict=True):
        assert converse([EHLO + command], lenient=True)[0][-1] == event
        assert event not in converse([EHLO + command])[0]


@pytest.mark.parametrize("given", [*NONE[:8], *NONE[9:]])
def test_what_is_no_address_in_any_case(given):
    events, out, _ = converse([EHLO + b"MAIL FROM:%b\r\n" % given], lenient=True)
    assert events == [] and len(re.findall(rb"\r\n5[05][013] ", out)) == 1, out


def test_nobody_as_a_sender_and_no_recipient():
    talk = Talk(lenient=True)
    talk.say(EHLO)
    assert codes(talk.say(b'MAIL FROM: ""\r\nRCPT TO:<>\r\nRCPT TO:""\r\nRCPT TO:\r\n')) == [
        *("250 2.1.0", "501 5.1.3", "501 5.1.3", "501 5.1.3")
    ]
    assert talk.events == [MailFrom("")]


@pytest.mark.parametrize(
    ("parameters", "code", "strict"),
    [
        (b"AUTH=<>", "250 2.1.0", "555 5.5.4"),
        (b"AUTH=a+40b", "250 2.1.0", "555 5.5.4"),
        (b"SIZE=1 SIZE=2", "250 2.1.0", "501 5.5.4"),
        (b"BODY=7BIT BODY=8BITMIME", "250 2.1.0", "501 5.5.4"),
        (b"X-UNKNOWN=1", "555 5.5.4", "555 5.5.4"),
        (b"SIZE=x", "501 5.5.4", "501 5.5.4"),
        (b"AUTH=<", "250 2.1.0", "555 5.5.4"),
    ],
)
def test_parameters(parameters, code, strict):
    for lenient, expected in ((True, code), (False, strict)):
        talk = Talk(lenient=lenient)
        talk.say(EHLO)
        assert codes(talk.say(b"MAIL FROM:<a@b> %b\r\n" % parameters)) == [expected]


@pytest.mark.parametrize(
    ("sent", "meant"),
    [
        (b"a\nb\r\n", b"a\r\nb\r\n"),
        (b"a\rb\r\n", b"a b\r\n"),
        (b"a\r\r\nb\r\n", b"a \r\nb\r\n"),
        (b"\n.\n\r\n", b"\r\n.\r\n\r\n"),
        (b"a\n.\r\n", b"a\r\n.\r\n"),
        (b"a\r.\r\n", b"a .\r\n"),
        (b"..a\n..b\r\n..c\r\n", b".a\r\n..b\r\n.c\r\n"),
        (b"\r\n\n", None),
    ],
)
def test_line_ends(sent, meant):
    """Only CR LF, dot, CR LF is the end of a message; what another server could take for it is made so that none can."""
    events, _, _ = converse([OPEN + sent + b"\r\n.\r\n" * (meant is None) + b".\r\n" * (meant is not None)], lenient=True)
    assert events[2:] == [Message(b"\r\n\r\n\r\n" if meant is None else meant)]


def test_loops_are_found_behind_any_line_end():
    received = b"Received: from a by b; now"
    for end in (b"\r\n", b"\n"):
        _, out, _ = converse([OPEN + (received + end) * 101 + b"\r\n\r\nx\ny\r\n.\r\n"], lenient=True)
        assert out.decode().split("\r\n")[-2].startswith("554 5.4.6 "), end
        events, _, _ = converse([OPEN + b"Subject: x" + end * 2 + (received + end) * 101 + b"x\ny\r\n.\r\n"], lenient=True)
        assert isinstance(events[-1], Message)


PIECES = st.sampled_from([b"\r\n", b"\r", b"\n", b".", b"..", b"a", b"\0", b"\r\n.\r", b"\n.\r\n", b"RCPT TO:<evil@b>\r\n"])


@settings(max_examples=examples(500), deadline=None)
@given(st.lists(PIECES, max_size=30).map(b"".join), st.integers(0, 100))
def test_nothing_is_smuggled(text, at):
    """In whatever pieces it comes: one message, up to the true end, which can be sent on as one."""
    whole = text + b"\r\n.\r\n"
    end = whole.index(b"\r\n.\r\n", 0) if not whole.startswith(b".\r\n") else -2
    rest = whole[end + 5 :]
    events, _, _ = converse([OPEN + whole[: max(at, 0)], whole[at:]], lenient=True, max_errors=1000)
    assert isinstance(events[2], Message)
    mime = events[2].mime
    assert mime.count(b"\r") == mime.count(b"\n") == mime.count(b"\r\n")
    content = make_content(mime)
    assert content.count(b"\r\n.\r\n") <= 1 and content.endswith(b".\r\n")
    assert without_dots(content) == mime
    assert (RcptTo("evil@b") in events) is False or b"evil" in rest


CHARACTERS = st.sampled_from([*'aZ9.@-<>"()\\ ,;:[]\u00e9\u00a0', "FROM:", "\udce9", "<a@b>", "x" * 50])


@settings(max_examples=examples(2000), deadline=None)
@given(st.lists(CHARACTERS, max_size=16).map("".join))
def test_whatever_is_taken_can_be_sent(text):
    found = parse_path(f"FROM:{text}", "FROM")
    if found is not None and found[0]:
        assert is_safe(found[0], raw=True), found
        again = parse_path(f"FROM:<{found[0]}> {found[1]}", "FROM")
        assert again == found


@pytest.mark.parametrize("piece", ["<", '"', "(", "\\", "<a", '"\\', "([", "a@", "@:", "<<", '<"'])
def test_no_address_takes_long(piece):
    """Not more steps than its length asks for: with these 4,000 characters it would not end."""
    parse_path("FROM:" + piece * (4000 // len(piece)), "FROM")


def test_a_line_that_is_no_text():
    talk = Talk(lenient=True)
    assert codes(talk.say(EHLO + b"NOOP \xff\r\nRSET \xff\r\nQUITT\xe9\r\nMAIL\xe9 FROM:<a@b>\r\n"))[-4:] == [
        *("250 2.0.0", "501 5.5.4", "500 5.5.1", "500 5.5.1")
    ]
    assert codes(talk.say(MAIL + b"RCPT TO:<\xff@b> X=\xff\r\nRCPT TO:<\xff@b>\r\n")) == ["250 2.1.0", "555 5.5.4", "250 2.1.5"]
    assert talk.events[-1] == RcptTo("\udcff@b")
